"""Real engines, vLLM on one core each and others, and a router before them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.fake_engine import free_port

START = 600.0  # seconds an engine may take to be healthy; 26 to 53 on two cores


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


class Server:
    """An engine's process, started when made."""

    def __init__(self, command: list[str], env: dict[str, str], port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = command
        self._env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} | env
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its processes end together
            )

    def wait(self) -> None:
        """Until it is healthy. Raises AssertionError if it ends before, or never is."""
        until = time.monotonic() + START
        while time.monotonic() < until:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(OSError):
                get(self.url + "/health")
                return
            time.sleep(0.3)
        raise AssertionError(f"{self.url} is not healthy after {START:g} s")

    def terminate(self) -> None:
        """SIGTERM to the server, as an orchestrator does."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Engine(Server):
    """`vllm serve` on one core, with a KV cache of 12,288 tokens."""

    def __init__(self, venv: Path, model: Path, core: int, log: Path) -> None:
        port = free_port()
        command = [
            *(str(venv / "bin/vllm"), "serve", str(model)),
            *("--served-model-name", "tiny", "--load-format", "dummy", "--enforce-eager"),
            *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "8192"),
            *("--max-num-seqs", "8", "--block-size", "32", "--num-gpu-blocks-override", "384"),
            "--enable-prompt-tokens-details",
        ]
        env = {
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "VLLM_NO_USAGE_STATS": "1",
        }
        super().__init__(command, env, port, log)

    def running(self) -> float:
        """Requests that it says it runs."""
        return self._sum("vllm:num_requests_running{")

    def generated(self) -> float:
        """Tokens that it has generated."""
        return self._sum("vllm:generation_tokens_total{")

    def _sum(self, start: str) -> float:
        """Over the series of its metrics that begin so."""
        lines = get(self.url + "/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


class Transformers(Server):
    """`transformers serve`: one request at a time, no metrics, no cache of prefixes.

    It goes by the path of its model. Asked for its models it looks into the Hub's cache, which is
    not there: 500.
    """

    def __init__(self, venv: Path, model: Path, log: Path) -> None:
        port = free_port()
        command = [
            *(str(venv / "bin/transformers"), "serve", str(model), "--device", "cpu"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
        env = {"HF_HOME": str(log.with_suffix(".none")), "OMP_NUM_THREADS": "1"}
        super().__init__(command, env, port, log)


S = TypeVar("S", bound=Server)


@contextlib.contextmanager
def started(engines: list[S]) -> Iterator[list[S]]:
    """All of them once they answer; ended with the block."""
    try:
        for engine in engines:
            engine.wait()
        yield engines
    finally:
        for engine in engines:
            engine.kill()


class Router:
    """`lodestar serve` before the engines."""

    def __init__(self, engines: Sequence[Server], log: Path, *options: str) -> None:
        with log.open("ab") as err:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "lodestar_fast", "serve", "--host", "127.0.0.1"),
                    *("--port", "0", "--admin-port", "0", "--explain-headers", *options),
                    *("--worker-urls", *(engine.url for engine in engines)),
                ],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        assert self._process.stdout
        words = self._process.stdout.readline().split()
        assert words[:1] == ["listening"], log.read_text()
        self.url, self.admin = ("http://" + word.partition("=")[2] for word in words[1:])

    def __enter__(self) -> Router:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(60)
        assert self._process.stdout
        self._process.stdout.close()

    def healthy(self) -> int:
        """Engines that it takes for healthy."""
        workers = json.loads(get(self.admin + "/workers"))["workers"]
        return sum(worker["healthy"] for worker in workers)

    def until_healthy(self, n: int) -> None:
        until = time.monotonic() + START
        while self.healthy() != n:
            assert time.monotonic() < until, f"{self.healthy()} engines healthy, not {n}"
            time.sleep(0.1)

    def samples(self, start: str) -> dict[str, float]:
        """What /metrics says now: value by series, of those that begin so."""
        lines = (line.rpartition(" ") for line in get(self.admin + "/metrics").splitlines())
        return {name: float(value) for name, _, value in lines if name.startswith(start)}
