"""Programs that no one here wrote, at the router before two real vLLM: run by `make test-real`.

Two load clients, whose own counts must be the router's, and a Prometheus that scrapes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fake_engine import free_port
from tests.real.engines import Engine, Router, get

DEPLOY = Path(__file__).parents[2] / "deploy"
REQUESTS = 24
OUTPUT = 16  # tokens each
SERVED = (
    'lodestar_requests_total{outcome="completed",path="/v1/chat/completions",status_class="2xx"}'
)


def run(program: Path, *words: str | Path, folder: Path) -> None:
    """A load client, to its end. HF_HUB_OFFLINE is for engines: aiperf takes no folder with it."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    path = f"{program.parent}:{env['PATH']}"
    said = subprocess.run(
        [program, *words],
        cwd=folder,
        env=env | {"PATH": path, "HOME": str(folder), "VLLM_NO_USAGE_STATS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert said.returncode == 0, said.stdout[-3000:]


def test_aiperf(
    router: Router, venv: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        venv / "aiperf/bin/aiperf",
        *("profile", "--model", "tiny", "--tokenizer", model, "--url", router.url),
        *("--endpoint-type", "chat", "--streaming", "--concurrency", "4", "--random-seed", "1"),
        *("--request-count", str(REQUESTS), "--workers-max", "2", "--record-processors", "1"),
        *("--synthetic-input-tokens-mean", "200", "--num-prefix-prompts", "3"),
        *("--prefix-prompt-length", "300", "--output-tokens-mean", str(OUTPUT)),
        *("--extra-inputs", "ignore_eos:true", "--use-server-token-count"),
        *("--no-server-metrics", "--no-gpu-telemetry", "--ui", "none"),
        *("--artifact-dir", tmp_path / "out"),
        folder=tmp_path,
    )
    (report,) = (tmp_path / "out").rglob("profile_export_aiperf.json")
    said = json.loads(report.read_text())
    assert said["request_count"]["avg"] == REQUESTS
    assert not said.get("error_summary") and not said.get("error_request_count")
    ttft = said["time_to_first_token"]
    with capsys.disabled():
        print(f"\naiperf: {REQUESTS} served, TTFT {ttft['avg']:.0f} ms, p99 {ttft['p99']:.0f} ms")
    check(router, said["total_output_tokens"]["avg"], ttft["avg"] / 1e3)


def test_vllm_bench(
    router: Router, venv: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        venv / "bin/vllm",
        *("bench", "serve", "--backend", "openai-chat", "--base-url", router.url),
        *("--endpoint", "/v1/chat/completions", "--model", "tiny", "--tokenizer", model),
        *("--dataset-name", "random", "--random-input-len", "200", "--random-prefix-len", "300"),
        *("--random-output-len", str(OUTPUT), "--num-prompts", str(REQUESTS), "--ignore-eos"),
        *("--max-concurrency", "4", "--ready-check-timeout-sec", "0", "--disable-tqdm"),
        *("--save-result", "--result-dir", tmp_path, "--result-filename", "result.json"),
        folder=tmp_path,
    )
    said = json.loads((tmp_path / "result.json").read_text())
    assert (said["completed"], said["failed"]) == (REQUESTS, 0)
    with capsys.disabled():
        print(
            f"\nvllm bench serve: {REQUESTS} served, TTFT {said['mean_ttft_ms']:.0f} ms,"
            f" p99 {said['p99_ttft_ms']:.0f} ms"
        )
    check(router, said["total_output_tokens"], said["mean_ttft_ms"] / 1e3)


def check(router: Router, output: float, ttft: float) -> None:
    """What a client counted against what the router did: requests, tokens, seconds to the first."""
    assert output == REQUESTS * OUTPUT
    assert router.samples("lodestar_requests_total{outcome")[SERVED] == REQUESTS
    assert sum(router.samples("lodestar_request_seconds_count").values()) >= REQUESTS
    first = router.samples("lodestar_ttft_seconds_count")
    assert len(first) == 2 and sum(first.values()) == REQUESTS
    # The client's clock starts before ours and ends after it.
    assert 0 < sum(router.samples("lodestar_ttft_seconds_sum").values()) / REQUESTS <= ttft
    assert not any(router.samples("lodestar_retries_total").values())
    assert not any(router.samples("lodestar_inflight_requests").values())


class Prometheus:
    """A running one, which scrapes a router as deploy/prometheus.yml says, but every 5 s."""

    def __init__(self, router: Router, folder: Path) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] |= {
            "scrape_interval": "5s", "scrape_timeout": "5s", "evaluation_interval": "5s",
        }  # fmt: skip
        config["rule_files"] = [str(DEPLOY / name) for name in config["rule_files"]]
        (job,) = config["scrape_configs"]
        job["authorization"]["credentials_file"] = str(folder / "admin_key")
        job["static_configs"] = [{"targets": [router.admin.removeprefix("http://")]}]
        (folder / "admin_key").write_text("of-no-use-from-loopback")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        port = free_port()
        self._api = f"http://127.0.0.1:{port}/api/v1"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def ask(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its API; None while it does not listen or is not ready."""
        try:
            text = get(f"{self._api}/{path}?{urllib.parse.urlencode(parameters)}")
        except OSError:
            assert self._process.poll() is None, self._log.read_text()
            return None
        return json.loads(text)["data"]

    def query(self, expression: str) -> list[float]:
        """The values of an instant vector."""
        found = self.ask("query", query=expression)
        return [float(series["value"][1]) for series in found["result"]] if found else []

    def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not what():
            assert time.monotonic() < end, self.ask("targets")
            time.sleep(0.2)


@pytest.fixture
def prometheus(router: Router, tmp_path: Path) -> Iterator[Prometheus]:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed")
    it = Prometheus(router, tmp_path)
    try:
        yield it
    finally:
        it.close()


def chat(router: Router) -> None:
    subprocess.run(
        [
            *("curl", "-sf", f"{router.url}/v1/chat/completions", "-d"),
            '{"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}',
            *("-H", "Content-Type: application/json", "-o", os.devnull),
        ],
        check=True,
        timeout=120,
    )


def test_prometheus(
    prometheus: Prometheus,
    router: Router,
    engines: list[Engine],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(3):
        chat(router)
    prometheus.until(lambda: prometheus.query("sum(lodestar_requests_total)") == [3])
    prometheus.until(lambda: prometheus.query("up") == [1])
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"]["job"] == "lodestar"
    assert prometheus.query("lodestar_instance_healthy") == [1, 1]
    assert len(prometheus.query("lodestar_instance_reported_running")) == len(engines)
    assert sum(prometheus.query("lodestar_request_seconds_count")) == 3
    chat(router)  # the next scrapes show it
    prometheus.until(lambda: prometheus.query("sum(lodestar_requests_total)") == [4])
    (samples,) = prometheus.query("scrape_samples_scraped")
    names = {rule["alert"] for rule in rules(yaml.safe_load((DEPLOY / "alerts.yml").read_text()))}

    def evaluated() -> bool:
        return all(rule["health"] == "ok" for rule in rules(prometheus.ask("rules")))

    prometheus.until(evaluated)
    loaded = rules(prometheus.ask("rules"))
    assert {rule["name"] for rule in loaded} == names
    assert [rule["name"] for rule in loaded if rule["state"] != "inactive"] == []
    with capsys.disabled():
        print(f"\nPrometheus: {samples:g} samples a scrape, {len(loaded)} rules evaluated")


def rules(groups: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in groups["groups"] for rule in group["rules"]]
