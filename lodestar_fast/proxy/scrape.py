"""Reads an engine's own metrics: load reports, KV capacity, restarts.

GET /metrics each scrape_interval, on a connection of its own; a beat is skipped while the last
answer is outstanding, and scrapes may keep an engine busy for a quarter of the time at most. Of a
page only the few names in ENGINES are looked for, by bytes.find; no other line is parsed.
What does not parse, is not finite or is out of range counts as absent and never hurts the instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from typing import NamedTuple

from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.instance import Instance
from lodestar_fast.proxy.probe import Probe, ProbeError

log = logging.getLogger(__name__)

_PAGE_BYTES = 4 << 20  # vLLM's is 52 kB an engine; labels can multiply it
_TIMEOUT = 2.0
_RETRY = 1.0  # after a failed scrape
_QUIET = 10.0  # for an engine that has no metrics to give
_RECHECK = 100  # pages until the capacity is read again, the dearest part of a page
_MOST = 1e9  # requests or tokens; beyond it a number is taken for garbage


class Names(NamedTuple):
    """What an engine calls things; empty: it does not tell. All gauges but `prompted`."""

    running: bytes
    waiting: bytes
    kv_usage: bytes  # 0..1
    prompted: bytes  # prompt tokens in all: falls only when the engine restarts
    config: bytes = b""  # an info metric with block_size, num_gpu_blocks, enable_prefix_caching
    capacity: bytes = b""  # KV capacity in tokens


# Tried in this order; the first whose `running` is on the page and all but `kv_usage` wins.
ENGINES = (
    Names(  # vLLM since 0.10
        running=b"vllm:num_requests_running",
        waiting=b"vllm:num_requests_waiting",
        kv_usage=b"vllm:kv_cache_usage_perc",
        prompted=b"vllm:prompt_tokens_total",
        config=b"vllm:cache_config_info",
    ),
    Names(  # vLLM before
        running=b"vllm:num_requests_running",
        waiting=b"vllm:num_requests_waiting",
        kv_usage=b"vllm:gpu_cache_usage_perc",
        prompted=b"vllm:prompt_tokens_total",
        config=b"vllm:cache_config_info",
    ),
    Names(  # SGLang with --enable-metrics
        running=b"sglang:num_running_reqs",
        waiting=b"sglang:num_queue_reqs",
        kv_usage=b"sglang:token_usage",
        prompted=b"sglang:prompt_tokens_total",
        capacity=b"sglang:max_total_num_tokens",
    ),
    Names(  # llama.cpp with --metrics; newer builds do not tell the usage
        running=b"llamacpp:requests_processing",
        waiting=b"llamacpp:requests_deferred",
        kv_usage=b"llamacpp:kv_cache_usage_ratio",
        prompted=b"llamacpp:prompt_tokens_total",
    ),
)

# One engine may show several data-parallel ranks; tensor-parallel ones repeat each other's numbers.
_RANK = re.compile(rb'[{,](?:engine|dp_rank)="([^"]*)"')
_LABEL = re.compile(rb'(\w+)="([^"]*)"')


class Load(NamedTuple):
    """What a page says of the present. None: it does not."""

    running: float | None
    waiting: float | None
    kv_usage: float | None
    prompted: float | None


def lines(page: bytes, name: bytes) -> dict[bytes, bytes]:
    """The sample lines of a metric by data-parallel rank, if there are several: all that follows
    the name."""
    found: dict[bytes, bytes] = {}
    needle = b"\n" + name
    at = page.find(needle)
    while at >= 0:
        start = at + len(needle)
        end = page.find(b"\n", start)
        if end < 0:
            break  # a line that is cut off
        if page[start : start + 1] in (b"{", b" ", b"\t"):
            line = page[start:end]
            # The samples of a metric stand together.
            at = end if page.startswith(needle, end) else -1
            if at < 0 and not found:
                return {b"": line}  # the only one, whatever its rank
            rank = _RANK.search(line)
            found.setdefault(rank[1] if rank else b"", line)
        else:  # a longer name that begins alike
            at = page.find(needle, end)
    return found


def _number(line: bytes) -> float | None:
    """The value of a sample; None unless it is in [0, _MOST]."""
    try:
        value = float(line[line.rfind(b"}") + 1 :].split(None, 1)[0])
    except (ValueError, IndexError):
        return None
    return value if math.isfinite(value) and 0 <= value <= _MOST else None


def _values(page: bytes, name: bytes) -> list[float]:
    """The usable values of a metric, one a rank."""
    numbers = [_number(line) for line in lines(page, name).values()] if name else []
    return [n for n in numbers if n is not None]


def _total(page: bytes, name: bytes) -> float | None:
    values = _values(page, name)
    return sum(values) if values else None


def started(page: bytes) -> float:
    """When the process began, seconds since 1970; 0 if untold."""
    for line in lines(page, b"process_start_time_seconds").values():
        with contextlib.suppress(ValueError):
            value = float(line.rsplit(None, 1)[-1])
            return value if math.isfinite(value) and value > 0 else 0.0
    return 0.0


def capacity(page: bytes, names: Names) -> tuple[int, bool]:
    """KV capacity in tokens over all ranks, 0 if untold, and whether prefixes are cached.

    An engine that does not say so is taken to cache them, as all of ENGINES do by default.
    """
    if not names.config:
        return int(_total(page, names.capacity) or 0), True
    tokens, caching = 0, True
    for line in lines(page, names.config).values():
        labels = dict(_LABEL.findall(line))
        caching = caching and labels.get(b"enable_prefix_caching") != b"False"
        try:
            tokens += int(labels[b"num_gpu_blocks"]) * int(labels[b"block_size"])
        except (KeyError, ValueError):
            return 0, caching  # "None" until the engine has profiled its memory
    return (tokens if 0 < tokens <= _MOST else 0), caching


def recognise(page: bytes) -> Names | None:
    """Whose page this is. None: nobody's we know."""
    ours = [names for names in ENGINES if lines(page, names.running)]
    for names in ours:
        if lines(page, names.kv_usage):
            return names
    return ours[0] if ours else None


def load(page: bytes, names: Names) -> Load:
    """What a page says. It must begin with a newline, so that each line is found alike."""
    usage = _values(page, names.kv_usage)
    return Load(
        _total(page, names.running),
        _total(page, names.waiting),
        min(sum(usage) / len(usage), 1.0) if usage else None,
        _total(page, names.prompted),
    )


class Reader:
    """Turns one instance's pages into what the router is told."""

    def __init__(self, fleet: Fleet, instance: Instance) -> None:
        self._fleet = fleet
        self._instance = instance
        self._names: Names | None = None
        self._configured = (0, True)
        self._pages_to_recheck = 0

    def take(self, body: bytes, now: float) -> bool:
        """Tell the router what a page says. False if it holds no load we know how to read."""
        page = b"\n" + body
        if self._names is None:
            self._names = recognise(page)
            if self._names is None:
                return False
        told = load(page, self._names)
        if told.running is None or told.waiting is None:
            self._names = None  # another engine may have taken the address
            return False
        router, slot = self._fleet.router, self._instance.slot
        if self._instance.note_process(started(page), told.prompted):
            self._pages_to_recheck = 0
        self._pages_to_recheck -= 1
        if self._pages_to_recheck < 0 or not self._configured[0]:
            self._pages_to_recheck = _RECHECK
            self._configure(*capacity(page, self._names))
        router.report(slot, now, int(told.running), int(told.waiting), told.kv_usage or 0.0)
        self._instance.reports += 1
        return True

    def _configure(self, kv_tokens: int, prefix_caching: bool) -> None:
        if (kv_tokens, prefix_caching) != self._configured:
            self._configured = (kv_tokens, prefix_caching)
            self._fleet.router.configure_instance(
                self._instance.slot, kv_tokens=kv_tokens, prefix_caching=prefix_caching
            )


async def watch(fleet: Fleet, instance: Instance) -> None:
    """Scrape an instance until cancelled."""
    probe = Probe(instance.host, instance.port, max_bytes=_PAGE_BYTES)
    reader = Reader(fleet, instance)
    told = True  # so that an engine we cannot read is named once
    status = 0

    def heard(code: int, body: bytes, spent: float) -> float | None:
        nonlocal status, told
        status = code
        if code != 200 or not reader.take(body, fleet.now()):
            return None
        told = True
        probe.authorize(fleet.engine_key)
        return max(fleet.config.scrape_interval - spent, 3 * spent)

    try:
        while True:
            probe.authorize(fleet.engine_key)
            try:
                await probe.repeat("/metrics", _TIMEOUT, heard)
            except ProbeError:
                pause = max(fleet.config.scrape_interval, _RETRY)
            else:
                pause = max(fleet.config.scrape_interval, _QUIET)
                if told:
                    log.warning("engine %s: no load in its /metrics (%d)", instance.id, status)
                    told = False
            await asyncio.sleep(pause)
    finally:
        probe.close()
