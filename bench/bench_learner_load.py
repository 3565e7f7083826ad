"""What a learner that trains without pause costs the requests: one connection, 1 KB, not streamed.

    python bench/bench_learner_load.py [--turns 20] [--requests 2000] [--free]

Four routers with the same policy and a model that has learned stand before one engine. In the first
the learner's thread sleeps. In the second it has a round a second, as in service; in the third
round after round, with its usual pauses between the parts of a round (2 ms); in the fourth without
any. A round is a whole one, on 100 first tokens. They take turns, those whose turn it is not are
stopped, and the order changes from turn to turn. Printed: median and 99th percentile of all
requests, and the median over the turns of their ratios to the first's.

Routers run on the first core, engine and client on the second; --free lets the kernel decide.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

KINDS = ("rests", "serves", "trains", "trains-without-pause")
LEARN_FROM = 400  # streamed requests
FRESH = 100  # of the first tokens, in each round
_PLAIN = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "x" * 900}]}
_ANSWER = json.dumps({"choices": [{"message": {"content": "y" * 900}}]}).encode()
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_EVENT = b'data: {"choices":[{"delta":{"content":"y"}}]}\n\n'
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(_EVENT), _EVENT)
)


class Engine(asyncio.Protocol):
    """Answers at once."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if not blank or len(body) < int(length[1] if length else 0):
            return
        self._buffer = b""
        answer = b'{"data":[{"id":"m"}]}' if b"/v1/models" in head else _ANSWER
        self._transport.write(_STREAM if b'"stream": true' in body else _OK % (len(answer), answer))


async def engine() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Engine, "127.0.0.1", 0)
    print(f"at {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def router(kind: str, url: str) -> int:
    """`lodestar serve` whose learner, once it has published, does as its kind says."""
    from lodestar_fast import cli
    from lodestar_fast.learner import thread

    begin = thread.ThreadLearner.__init__

    def hook(trainer: Any) -> None:
        if trainer.version < 2:
            return
        never, buffer = threading.Event(), trainer.buffer
        pause = 0.0 if kind == "trains-without-pause" else thread.PAUSE
        while kind != "rests":
            if kind == "serves":
                never.wait(1.0)
            buffer._settled = buffer.total - FRESH
            trainer.round(lambda: not (pause and never.wait(pause)))
        never.wait()

    def patched(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, before_round=hook, **options)

    thread.ThreadLearner.__init__ = patched  # type: ignore[method-assign]
    options = ["--port", "0", "--admin-port", "0", "--log-level", "error"]
    return cli.main(
        ["serve", "--host", "127.0.0.1", *options, "--round-seconds", "0.2", "--worker-urls", url]
    )


def start(core: int | None, *arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
    """This program again, on a core; and the ports that it says it listens on."""
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    assert process.stdout
    return process, [int(n) for n in re.findall(r"(?:at |:)(\d+)", process.stdout.readline())]


def ask(connection: socket.socket, request: bytes, end: bytes) -> float:
    """Seconds to the whole answer."""
    began = time.perf_counter()
    connection.sendall(request)
    answer = b""
    while not answer.endswith(end):
        data = connection.recv(65536)
        assert data, "the router closed the connection"
        answer += data
    took = time.perf_counter() - began
    assert answer.startswith(b"HTTP/1.1 200")
    return took


def get(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        return b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[2]


def post(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(data) + data
    )


def percentiles(times: list[float]) -> tuple[float, float]:
    """Median and 99th percentile, in microseconds."""
    ordered = sorted(times)
    return statistics.median(ordered) * 1e6, ordered[int(len(ordered) * 0.99)] * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2000, help="of each router in a turn")
    parser.add_argument("--free", action="store_true", help="pin nothing to a core")
    args = parser.parse_args()
    first, second = (None, None) if args.free else (0, 1)
    processes = []
    try:
        process, (engine_port,) = start(second, "engine")
        processes.append(process)
        routers, lines = {}, {}
        if second is not None:
            os.sched_setaffinity(0, {second})
        plain = post(_PLAIN)
        for kind in KINDS:
            routers[kind], (port, admin) = start(first, kind, f"http://127.0.0.1:{engine_port}")
            processes.append(routers[kind])
            while b"ready" not in get(port, "/readiness"):
                time.sleep(0.05)
            line = lines[kind] = socket.create_connection(("127.0.0.1", port))
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while json.loads(get(admin, "/admin/model"))["version"] < 2:
                for i in range(LEARN_FROM):
                    prompt = f"{i} " * (50 + i % 200)
                    message = {"role": "user", "content": prompt}
                    ask(line, post({**_PLAIN, "stream": True, "messages": [message]}), b"0\r\n\r\n")
            time.sleep(1.0)
            routers[kind].send_signal(signal.SIGSTOP)
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        ratios: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for turn in range(args.turns + 1):
            got = {}
            for kind in KINDS if turn % 2 else KINDS[::-1]:
                routers[kind].send_signal(signal.SIGCONT)
                asked = [ask(lines[kind], plain, _ANSWER[-20:]) for _ in range(args.requests + 100)]
                got[kind] = asked[100:]
                routers[kind].send_signal(signal.SIGSTOP)
            for kind in KINDS if turn else ():  # the first one warms up
                (p50, p99), rests = percentiles(got[kind]), percentiles(got["rests"])
                ratios[kind].append((p50 / rests[0], p99 / rests[1]))
                times[kind] += got[kind]
        for kind in KINDS:
            p50, p99 = percentiles(times[kind])
            x50, x99 = (statistics.median(column) for column in zip(*ratios[kind], strict=True))
            print(f"{kind}: p50 {p50:.1f} us ({x50:.3f}), p99 {p99:.1f} us ({x99:.3f})")
        return 0
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        asyncio.run(engine())
    elif sys.argv[1:2] and sys.argv[1] in KINDS:
        sys.exit(router(*sys.argv[1:3]))
    else:
        sys.exit(main())
