"""The whole program as a process: start, readiness, the fleet, drain, signals, mistakes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.tiny_engine import TinyEngine, page

ROOT = Path(__file__).parent.parent
CHAT = b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}'
FAST = ("--health-check-interval", "0.02", "--scrape-interval", "0.02")


class Lodestar:
    """`lodestar serve` on free ports."""

    def __init__(self, process: asyncio.subprocess.Process, data: int, admin: int) -> None:
        self.process = process
        self.data = data
        self.admin = admin

    @classmethod
    async def start(
        cls,
        *options: str,
        program: Sequence[str] = ("lodestar_fast",),
        variables: Mapping[str, str] | None = None,
    ) -> Lodestar:
        """program: the module to run, and its words before the verb. variables: of its
        environment, beside ours."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("LODESTAR_")}
        env |= variables or {}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *program, "serve", "--host", "127.0.0.1"),
            *("--port", "0", "--admin-port", "0", *options),
            cwd=ROOT,
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        words = (await process.stdout.readline()).decode().split()
        assert words[:1] == ["listening"], (await process.communicate())[1].decode()
        ports = {name: int(at.rpartition(":")[2]) for name, at in (w.split("=") for w in words[1:])}
        return cls(process, **ports)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.data)

    async def stream(self, engine: TinyEngine) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client whose answer has begun: its first event has come."""
        reader, writer = await self.open()
        writer.write(chat())
        await engine.got_post.wait()
        engine.events.put_nowait(b"data: one\n\n")
        await reader.readuntil(b"data: one\n\n")
        return reader, writer

    async def get(self, path: str, port: int = 0) -> tuple[int, bytes]:
        return await request(port or self.data, f"GET {path}")

    async def until(self, path: str, good: Callable[[int, bytes], bool], port: int = 0) -> bytes:
        """Ask until the answer is as wanted; its body. The suite's time-out bounds it."""
        while True:
            status, body = await self.get(path, port)
            if good(status, body):
                return body
            await asyncio.sleep(0.01)

    async def ready(self) -> None:
        await self.until("/readiness", lambda status, _: status == 200)

    async def end(self) -> tuple[int, str]:
        """Exit status and all of stderr, once it has ended."""
        _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()

    async def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        code, err = await self.end()
        assert code == 0, err
        return err


async def request(
    port: int, line: str, body: bytes = b"", host: str = "localhost"
) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


def chat() -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT


def run(
    body: Callable[[Lodestar, TinyEngine], Awaitable[None]], *options: str, clean: bool = True
) -> str:
    """Run a test body with a router before one engine; all that the router logged."""

    async def main() -> str:
        async with TinyEngine() as engine:
            lodestar = await Lodestar.start("--worker-urls", engine.url, *FAST, *options)
            try:
                await body(lodestar, engine)
                if lodestar.process.returncode is None:
                    return await lodestar.stop()
                return (await lodestar.end())[1]
            finally:
                if lodestar.process.returncode is None:
                    lodestar.process.kill()
                    await lodestar.end()

    log = uvloop.run(main())
    if clean:
        assert "Traceback" not in log and " error " not in log, log
    return log


def test_local_routes() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        assert await lodestar.get("/health") == (200, b'{"status":"ok"}')
        assert await lodestar.get("/liveness") == (200, b'{"status":"ok"}')
        await lodestar.ready()
        status, version = await lodestar.get("/version")
        assert status == 200 and json.loads(version)["version"]
        models = await lodestar.until("/v1/models", lambda _, b: b"tiny" in b)
        assert [m["id"] for m in json.loads(models)["data"]] == ["tiny"]
        assert (await lodestar.get("/workers"))[0] == 404, "admin is not on the data port"

    log = run(body, "--policy", "lmetric")
    assert log.count("data port http://127.0.0.1:") == 1


def test_ready_only_while_an_engine_is_healthy() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        engine.pages["/health"] = page(b"", 503)
        text = await lodestar.until("/readiness", lambda status, _: status == 503)
        assert json.loads(text) == {"status": "no healthy engine"}
        assert (await lodestar.get("/health"))[0] == 200
        engine.pages["/health"] = page(b"")
        await lodestar.ready()

    log = run(body, "--policy", "lmetric")
    assert "out: status: 503" in log


def test_an_engine_may_come_later_and_is_complained_about_once() -> None:
    async def main() -> None:
        async with TinyEngine() as engine:
            port = engine.port
            await engine.stop()
            lodestar = await Lodestar.start(
                *("--policy", "lmetric", "--worker-urls", f"http://127.0.0.1:{port}", *FAST)
            )

            async def failures() -> int:
                _, text = await request(lodestar.admin, "GET /workers")
                return sum(json.loads(text)["workers"][0]["failures"].values())

            while await failures() < 5:
                await asyncio.sleep(0.01)
            assert (await lodestar.get("/readiness"))[0] == 503
            await engine.start(port)
            await lodestar.ready()
            log = await lodestar.stop()
            assert log.count("not there yet: refused") == 1

    uvloop.run(main())


def test_a_stream_passes_and_is_counted() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        reader, writer = await lodestar.open()
        writer.write(chat())
        await engine.got_post.wait()
        for event in (b"data: one\n\n", b"data: [DONE]\n\n"):
            engine.events.put_nowait(event)
            await reader.readuntil(event)
        engine.events.put_nowait(None)
        await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        text = await lodestar.until("/metrics", lambda s, b: b"completed" in b, lodestar.admin)
        assert (
            b'lodestar_requests_total{outcome="completed",path="/v1/chat/completions",'
            b'status_class="2xx"} 1.0' in text
        )
        assert b"lodestar_instance_reports_total" in text

    run(body, "--policy", "lmetric")


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_the_real_page_satisfies_promtool() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        engine.events.put_nowait(b"data: [DONE]\n\n")
        engine.events.put_nowait(None)
        assert (await request(lodestar.data, "POST /v1/chat/completions", CHAT))[0] == 200
        assert (await request(lodestar.data, "POST /nowhere", b"{}"))[0] == 404
        _, text = await lodestar.get("/metrics", lodestar.admin)
        promtool = await asyncio.create_subprocess_exec(
            *("promtool", "check", "metrics"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await promtool.communicate(text)
        assert (promtool.returncode, said) == (0, b"")

    run(body)


def test_workers_can_be_changed_while_it_runs() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        async with TinyEngine() as second:
            add = json.dumps({"url": second.url}).encode()
            status, text = await request(lodestar.admin, "POST /workers", add)
            assert status == 201
            await lodestar.until(
                "/workers", lambda _, b: b.count(b'"healthy":true') == 2, lodestar.admin
            )
            _, text = await lodestar.get("/workers", lodestar.admin)
            first = next(w for w in json.loads(text)["workers"] if w["url"] == engine.url)
            assert first["models"] == ["tiny"]
            assert (await request(lodestar.admin, f"DELETE /workers/{first['id']}"))[0] == 200
            second.events.put_nowait(None)
            assert (await request(lodestar.data, "POST /v1/chat/completions", CHAT))[0] == 200
            assert second.got_post.is_set() and not engine.got_post.is_set()

    run(body, "--policy", "lmetric")


def test_sigterm_lets_requests_finish_and_closes_the_rest() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        idle, idle_writer = await lodestar.open()
        busy, busy_writer = await lodestar.stream(engine)
        lodestar.process.send_signal(signal.SIGTERM)
        assert await idle.read() == b"", "an idle client is closed"
        with pytest.raises(ConnectionRefusedError):
            await lodestar.open()
        _, text = await lodestar.get("/metrics", lodestar.admin)
        assert b"lodestar_draining 1.0" in text
        engine.events.put_nowait(b"data: two\n\n")
        engine.events.put_nowait(None)
        rest = await busy.read()
        assert b"data: two\n\n" in rest and rest.endswith(b"0\r\n\r\n")
        code, err = await lodestar.end()
        assert code == 0 and "Traceback" not in err
        idle_writer.close()
        busy_writer.close()

    run(body, "--policy", "lmetric", clean=False)


def test_after_the_grace_the_rest_is_cut() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        reader, writer = await lodestar.stream(engine)
        lodestar.process.send_signal(signal.SIGTERM)
        try:
            rest = await reader.read()
        except ConnectionResetError:
            rest = b""
        assert b"0\r\n\r\n" not in rest, "a cut stream must not look complete"
        code, err = await lodestar.end()
        assert code == 0 and "drain grace is over: 1 connections cut" in err
        writer.close()

    run(body, "--policy", "lmetric", "--drain-grace", "0.1", clean=False)


def test_a_second_signal_ends_at_once() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        idle, idle_writer = await lodestar.open()
        _, writer = await lodestar.open()
        writer.write(chat())
        await engine.got_post.wait()
        lodestar.process.send_signal(signal.SIGTERM)
        assert await idle.read() == b""
        lodestar.process.send_signal(signal.SIGINT)
        code, err = await lodestar.end()
        assert code == 128 + signal.SIGINT and "ending at once" in err
        idle_writer.close()
        writer.close()

    run(body, "--policy", "lmetric", clean=False)


def mistake(*options: str) -> str:
    """The one line of a router that cannot start."""
    done = subprocess.run(
        [sys.executable, "-m", "lodestar_fast", "serve", "--log-level", "error", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_port_in_use_is_named(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--port": "0", "--admin-port": "0"} | {option: str(port)}
        said = mistake("--host", "127.0.0.1", *(word for pair in ports.items() for word in pair))
    assert f"({option}): 127.0.0.1:{port} is in use" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "no.such.host.invalid"], "(--host): `no.such.host.invalid`"),
        (["--host", "192.0.2.1"], "(--host): `192.0.2.1` is no address of this machine"),
        (["--worker-urls", "engine:80"], "(--worker-urls): `engine:80` is not an engine URL"),
        (["--admin-key-file", "/no/such"], "(--admin-key-file): /no/such"),
        (["--state-dir", "/dev/null/x"], "(--state-dir): /dev/null/x: Not a directory"),
    ],
)
def test_other_mistakes_at_the_start(options: list[str], said: str) -> None:
    assert said in mistake("--port", "0", "--admin-port", "0", *options)


def test_keys_guard_both_ports(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")

    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        status, _ = await request(lodestar.data, "POST /v1/chat/completions", CHAT)
        assert status == 401
        assert (await lodestar.get("/metrics", lodestar.admin))[0] == 401

    log = run(body, "--api-key-file", str(keys), "--admin-key-file", str(keys))
    assert "sesame" not in log


def test_it_learns_in_the_background_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")

    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()

        # One request after the other, with pauses: the learner's thread has a low priority, and on
        # a machine that is kept busy it would wait for long.
        about: dict[str, Any] = {"version": 0}
        while not about["version"]:
            for event in (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', None):
                engine.events.put_nowait(event)
            assert (await request(lodestar.data, "POST /v1/chat/completions", CHAT))[0] == 200
            await asyncio.sleep(0.02)
            about = json.loads((await lodestar.get("/admin/model", lodestar.admin))[1])
        assert about["policy"] == "lodestar" and about["learner"]["state"] == "training"

    state = tmp_path / "made" / "state"
    run(body, *("--state-dir", str(state), "--min-samples", "8", "--round-seconds", "0.1"))
    assert list(state.iterdir())
