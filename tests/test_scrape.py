"""What is read from engines' metric pages, and that hostile ones hurt nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from lodestar_fast.clock import MonotonicClock
from lodestar_fast.config import FleetConfig
from lodestar_fast.proxy import scrape
from lodestar_fast.proxy.instance import Instance
from lodestar_fast.proxy.scrape import Load, Reader, capacity, load, recognise, started
from tests.tiny_engine import TinyEngine, page

DATA = Path(__file__).parent / "data"


def captured(name: str) -> bytes:
    return (DATA / f"{name}-metrics.txt").read_bytes()


class FakeRouter:
    def __init__(self) -> None:
        self.reports: list[tuple[Any, ...]] = []
        self.configured: list[tuple[int, int, bool]] = []
        self.forgotten: list[int] = []
        self.reported = asyncio.Event()

    def report(self, *report: Any) -> None:
        self.reports.append(report)
        self.reported.set()

    def configure_instance(self, slot: int, *, kv_tokens: int, prefix_caching: bool) -> None:
        self.configured.append((slot, kv_tokens, prefix_caching))

    def forget_prefixes(self, slot: int) -> None:
        self.forgotten.append(slot)


def reader() -> tuple[Reader, FakeRouter]:
    router = FakeRouter()
    fleet: Any = SimpleNamespace(router=router)
    return Reader(fleet, Instance(fleet, 3, "http://e:1", "e", 1)), router


@pytest.mark.parametrize(
    ("name", "wanted", "config"),
    [
        ("vllm-0.32.0", Load(0, 0, 0.0, 64623), (12288, True)),
        ("vllm-0.6", Load(3, 7, 0.42, 1234), (27896 * 16, False)),
        ("sglang", Load(5, 2, 0.28, 8128902), (454932, True)),
        ("llamacpp", Load(1, 4, None, 512), (0, True)),
    ],
)
def test_pages_of_known_engines(name: str, wanted: Load, config: tuple[int, bool]) -> None:
    text = b"\n" + captured(name)
    names = recognise(text)
    assert names is not None
    assert load(text, names) == wanted
    assert capacity(text, names) == config


def test_data_parallel_ranks_add_up() -> None:
    read, router = reader()
    lines = [
        b'vllm:num_requests_running{engine="0",model_name="m"} 3',
        b'vllm:num_requests_running{engine="1",model_name="m"} 4',
        b'vllm:num_requests_waiting{engine="0",model_name="m"} 0',
        b'vllm:num_requests_waiting{engine="1",model_name="m"} 2',
        b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2',
        b'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.6',
        b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="10"} 1',
        b'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="20"} 1',
    ]
    assert read.take(b"\n".join(lines) + b"\n", 1.5)
    assert router.reports == [(3, 1.5, 7, 2, pytest.approx(0.4))]
    assert router.configured == [(3, 480, True)]


def test_capacity_is_told_once_and_again_when_it_changes() -> None:
    read, router = reader()
    text = captured("vllm-0.32.0")
    for _ in range(250):
        assert read.take(text, 0.0)
    assert router.configured == [(3, 12288, True)]
    text = text.replace(b'num_gpu_blocks="96"', b'num_gpu_blocks="48"')
    for _ in range(250):
        read.take(text, 0.0)
    assert router.configured == [(3, 12288, True), (3, 6144, True)]


def test_capacity_may_come_later_than_the_page() -> None:
    read, router = reader()
    text = captured("vllm-0.32.0")
    read.take(text.replace(b'num_gpu_blocks="96"', b'num_gpu_blocks="None"'), 0.0)
    assert not router.configured
    read.take(text, 0.0)
    assert router.configured == [(3, 12288, True)]


def test_a_restarted_engine_has_an_empty_cache() -> None:
    read, router = reader()
    text = captured("llamacpp")
    read.take(text, 0.0)
    read.take(text, 0.1)
    assert not router.forgotten
    read.take(text.replace(b"tokens_total 512", b"tokens_total 12"), 0.2)
    assert router.forgotten == [3]


def test_a_new_process_is_known_by_its_start() -> None:
    read, router = reader()
    text = captured("vllm-0.32.0")
    assert started(b"\n" + text) == 1795468968.29
    assert started(b"\nprocess_start_time_seconds x\nprocess_start_time_seconds NaN\n") == 0
    read.take(text, 0.0)
    busier = text.replace(b'prompt_tokens_total{engine="0",', b'prompt_tokens_total{engine="1",')
    read.take(busier.replace(b"1.79546896829e+09", b"1.79546897e+09"), 0.1)
    assert router.forgotten == [3]
    read.take(text.replace(b"process_start_time", b"other"), 0.2)  # not told: not restarted
    assert router.forgotten == [3]


def test_another_engine_at_the_same_address() -> None:
    read, router = reader()
    assert read.take(captured("sglang"), 0.0)
    assert not read.take(captured("llamacpp"), 0.1)
    assert read.take(captured("llamacpp"), 0.2)
    assert [report[2] for report in router.reports] == [5, 1]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "1e300", "x", "0x10", "9" * 400])
@pytest.mark.parametrize("name", ["running", "waiting"])
def test_a_load_that_is_no_number_is_not_reported(name: str, value: str) -> None:
    read, router = reader()
    text = captured("vllm-0.6").replace(
        b'num_requests_%s{model_name="m"} ' % name.encode(),
        b'num_requests_%s{model_name="m"} %s ' % (name.encode(), value.encode()),
    )
    assert not read.take(text, 0.0) and not router.reports


@pytest.mark.parametrize(("value", "usage"), [("NaN", 0.0), ("17", 1.0), ("-3", 0.0), ("1", 1.0)])
def test_usage_is_kept_in_range(value: str, usage: float) -> None:
    read, router = reader()
    text = captured("vllm-0.6").replace(b"0.42", value.encode())
    assert read.take(text, 0.0)
    assert router.reports == [(3, 0.0, 3, 7, usage)]


def test_labels_do_not_fool_the_reader() -> None:
    read, router = reader()
    text = captured("vllm-0.6").replace(b'{model_name="m"}', b'{model_name="a} 99 \\"{engine="}')
    assert read.take(text, 0.0)
    assert router.reports == [(3, 0.0, 3, 7, 0.42)]


def test_timestamps_are_allowed() -> None:
    read, router = reader()
    assert read.take(captured("llamacpp").replace(b" 4\n", b" 4 1712000000000\n"), 0.0)
    assert router.reports[0][2:4] == (1, 4)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_are_survived(noise: bytes, at: int) -> None:
    read, router = reader()
    text = captured("vllm-0.6")
    at += 600
    read.take(text[:at] + noise + text[at:], 0.0)
    read.take(noise, 0.0)
    for _, _, running, waiting, usage in router.reports:
        assert 0 <= running <= 1e9 and 0 <= waiting <= 1e9 and 0 <= usage <= 1


def watched(engine: TinyEngine) -> tuple[asyncio.Task[None], FakeRouter]:
    router = FakeRouter()
    config = FleetConfig(scrape_interval=0.001)
    fleet: Any = SimpleNamespace(
        router=router, now=MonotonicClock().now, config=config, engine_key=None
    )
    instance = Instance(fleet, 0, engine.url, "127.0.0.1", engine.port)
    task = asyncio.ensure_future(scrape.watch(fleet, instance))
    return task, router


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_scrapes_go_on_over_one_connection() -> None:
    async def run() -> None:
        async with TinyEngine() as engine:
            task, router = watched(engine)
            while len(router.reports) < 5:
                router.reported.clear()
                await router.reported.wait()
            await stop(task)
            assert engine.connections == 1
            assert {report[2:] for report in router.reports} == {(1, 2, 0.5)}

    uvloop.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        page(b"x" * 200),
        page(b"", 404),
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nx",
        b"HTTP/1.1 101 Up\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["noise", "404", "ssh", "short", "101", "bad-chunk"],
)
def test_useless_pages_are_survived(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "_RETRY", 0.001)
    monkeypatch.setattr(scrape, "_QUIET", 0.001)

    async def run() -> None:
        async with TinyEngine() as engine:
            good = engine.pages["/metrics"]
            engine.pages["/metrics"] = answer
            task, router = watched(engine)
            while len(engine.asked) < 3:
                await asyncio.sleep(0)
            assert not router.reports and not task.done()
            engine.pages["/metrics"] = good
            await router.reported.wait()
            await stop(task)

    uvloop.run(run())
