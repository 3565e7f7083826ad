"""Request traces: what arrives when, how long it is, and which prefix it shares with what.

Called by replay and demo (over HTTP) and by the simulator (virtual time), so that the same trace,
options and seed mean the same requests everywhere. Reads no clock; draws only from the given seed.

A trace says by block ids which prompts share a prefix, and not what they say. prompt_text() turns
ids into text: each id expands to words of its own, always the same, so equal prefixes are equal
bytes, which is all that a router or a prefix cache looks at:

    h [5, 2, 9, 1], 3 tokens a block     5 . . | 6 . . | 9 .        8 tokens
    prompt                               words | words | wor        32 bytes, BYTES_PER_TOKEN each

Simulated engines count BYTES_PER_TOKEN bytes as a token, so lengths are exactly those of the trace.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.blocks import fill_prompt

BYTES_PER_TOKEN = 4

# A trace whose arrivals lie at least this far apart, several at a time, was stamped in steps
# (Mooncake: 3 s). Replayed as it stands, each step would be a burst that nobody measured.
STEP_SECONDS = 1.0

# What a number in a trace may be: beyond, a prompt has no room, and repeats overflow the ids.
MOST_TOKENS, MOST_ID = 1 << 24, 1 << 38

# 256 words, one for each value of a byte: 16 beginnings by 16 endings, 3 to 6 letters.
WORDS = tuple(
    head + tail
    for head in "b br c ch d f g gr l m n p s st t w".split()
    for tail in "ake all an and are ate ed ell en ide ight in ole one ore unt".split()
)


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace. Lengths in tokens, arrival in seconds since the replay began.

    A Struct: a run of a large fleet makes millions, and msgspec's replace() costs a tenth.
    """

    index: int  # place in the trace, also after others were dropped
    arrival: float
    prompt_tokens: int
    output_tokens: int
    block_tokens: int = 0  # tokens of a prefix block; 0: the trace knows of no blocks
    runs: tuple[int, ...] = ()  # ids of the leading blocks, run-length coded: start, length, ...
    tenant: int = -1  # ServeGen: whose request it is ...
    tenant_tokens: int = 0  # ... and how many leading tokens all of that tenant's requests share
    session: int = -1  # closed loop: which session it is of, ...
    think: float = 0.0  # ... how long its user waits before it, in seconds, ...
    group: int = -1  # ... and with which sessions that one shares its leading tokens, ...
    group_tokens: int = 0  # ... so many of them


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    name: str
    requests: tuple[Request, ...]
    block_tokens: int  # 0: no blocks
    sessions: bool = False  # closed loop: in order of session and turn, arrivals mean nothing

    @property
    def seconds(self) -> float:
        """Arrival of the last request; 0 for an empty trace."""
        return self.requests[-1].arrival if self.requests else 0.0

    def rescaled(
        self, block_tokens: int = 0, max_input: int = 0, output_scale: float = 1.0
    ) -> Trace:
        """The same requests for a smaller model or GPU.

        block_tokens: each block is that many tokens, and prompts shrink or grow with it; max_input:
        prompts longer than that, after rescaling, are dropped; 0 leaves either as it is.
        output_scale: factor on output tokens, of which at least one is left. Raises ConfigError if
        the trace has no blocks to rescale.
        """
        if block_tokens and not self.block_tokens:
            raise ConfigError(f"--block-tokens: {self.name} has no prefix blocks to rescale")
        size = block_tokens or self.block_tokens
        kept = []
        for request in self.requests:
            tokens = request.prompt_tokens
            if block_tokens:
                tokens = -(-tokens * block_tokens // self.block_tokens)
                shared = request.group_tokens * block_tokens // self.block_tokens
                request = replace(request, group_tokens=shared)
            if max_input and tokens > max_input:
                continue
            kept.append(
                replace(
                    request,
                    prompt_tokens=tokens,
                    output_tokens=max(1, round(request.output_tokens * output_scale)),
                    block_tokens=size,
                )
            )
        return changed(self, requests=tuple(kept), block_tokens=size)

    def extended(self, count: int) -> Trace:
        """At least `count` requests: the trace again and again, each time with other blocks.

        So a repeat finds nothing of the original in a cache; tenants keep their prefixes.
        """
        if count <= len(self.requests) or not self.requests:
            return self
        runs = [pair for r in self.requests for pair in _pairs(r.runs)]
        least = min((start for start, _ in runs), default=0)
        step = max((start + length for start, length in runs), default=0) - least
        last = 1 + max(request.index for request in self.requests)
        period = self.seconds * (1 + 1 / len(self.requests))
        out = []
        for k in range(-(-count // len(self.requests))):
            for r in self.requests:
                out.append(
                    replace(
                        r,
                        index=r.index + k * last,
                        arrival=r.arrival + k * period,
                        runs=tuple(n + k * step * (i % 2 == 0) for i, n in enumerate(r.runs)),
                    )
                )
        return changed(self, requests=tuple(out))

    def slowed(self, factor: float, seconds: float | None = None) -> Trace:
        """All arrivals times factor (0.5: twice the load); those after seconds are cut off."""
        return changed(
            self,
            requests=tuple(
                replace(request, arrival=request.arrival * factor)
                for request in self.requests
                if seconds is None or request.arrival * factor < seconds
            ),
        )

    def timed(
        self,
        seed: int,
        rate: float | None = None,
        seconds: float | None = None,
        cv: float = 1.0,
    ) -> Trace:
        """The same requests in the same order with arrivals for one replay, starting at 0.

        rate: redrawn as a Poisson process of that many requests a second; None: the trace's own
        times, where steps of a second and more are spread evenly at random. seconds: later ones are
        cut off. A trace that is too short for rate and seconds simply ends earlier. cv: coefficient
        of variation of the redrawn gaps, Gamma distributed; 1 is Poisson, more are bursts.
        """
        rng = random.Random(seed)
        if rate is None:
            times = _spread([request.arrival for request in self.requests], rng)
        else:
            times = _redrawn(len(self.requests), rate, cv, rng)
        start = times[0] if times else 0.0
        return changed(
            self,
            requests=tuple(
                replace(request, arrival=t - start)
                for request, t in zip(self.requests, times, strict=True)
                if seconds is None or t - start < seconds
            ),
        )


def _redrawn(count: int, rate: float, cv: float, rng: random.Random) -> list[float]:
    times, t, shape = [], 0.0, cv**-2.0
    for _ in range(count):
        times.append(t)
        t += rng.expovariate(rate) if cv == 1 else rng.gammavariate(shape, 1 / (shape * rate))
    return times


def _spread(times: list[float], rng: random.Random) -> list[float]:
    """Times stamped in steps, spread uniformly over their steps; others as they are."""
    steps = [(t, sum(1 for _ in group)) for t, group in groupby(times)]
    gaps = [after[0] - before[0] for before, after in zip(steps, steps[1:], strict=False)]
    if not gaps or len(steps) == len(times) or min(gaps) < STEP_SECONDS:
        return times
    gaps.append(sorted(gaps)[len(gaps) // 2])  # the last step is as long as the median one
    return [
        t
        for (start, count), gap in zip(steps, gaps, strict=True)
        for t in sorted(start + gap * rng.random() for _ in range(count))
    ]


# -- reading ---------------------------------------------------------------------------------------


def read_trace(path: str | Path, sessions: bool = False) -> Trace:
    """A trace file: JSON lines, gzip or plain; the first line holds {"meta": ...}.

    Fields of a request: t (arrival, s), in, out (tokens), h (run-length coded block ids), cid and
    pl (tenant and its shared prefix in tokens); of closed-loop sessions, which are refused without
    `sessions`, and all else with it: sid (session), think (s), sys ([group, shared tokens]). Others
    are ignored. Raises ConfigError naming the file, the line and the field.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise ConfigError(f"{path}: cannot read the trace: {reason}") from None
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    block_tokens = 0
    requests: list[Request] = []
    for number, line in enumerate(data.splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{where}: not JSON: {e}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: not a JSON object")
        if number == 1:
            block_tokens = _meta(row, where, sessions)
            continue
        requests.append(_request(row, len(requests), block_tokens, where))
        if sessions:
            requests[-1] = _of_session(row, requests, where)
        elif len(requests) > 1 and requests[-1].arrival < requests[-2].arrival:
            raise ConfigError(f"{where}: field `t`: earlier than the line before")
    if not requests:
        raise ConfigError(f"{path}: no requests in the trace")
    return Trace(name, tuple(requests), block_tokens, sessions)


def _meta(row: dict[str, Any], where: str, sessions: bool) -> int:
    """Tokens of a block, from the first line."""
    meta = row.get("meta")
    if not isinstance(meta, dict):
        raise ConfigError(f"{where}: field `meta`: missing; this is not a trace file")
    if (meta.get("kind") == "sessions") is not sessions:
        what = "not closed-loop sessions" if sessions else "closed-loop sessions cannot be replayed"
        raise ConfigError(f"{where}: field `meta.kind`: {what}")
    size = meta.get("block_size")
    if size is None:
        return 0
    if type(size) is not int or not 0 < size <= MOST_TOKENS:
        raise ConfigError(f"{where}: field `meta.block_size`: not a positive whole number or null")
    return size


def _request(row: dict[str, Any], index: int, block_tokens: int, where: str) -> Request:
    def fail(field: str, what: str) -> ConfigError:
        return ConfigError(f"{where}: field `{field}`: {what}")

    def whole(field: str, least: int, default: int | None = None, most: int = MOST_TOKENS) -> int:
        value = row.get(field, default)
        if type(value) is not int or not least <= value <= most:
            raise fail(field, f"not a whole number from {least} to {most}")
        return value

    arrival = row.get("t")
    if isinstance(arrival, bool) or not isinstance(arrival, int | float) or arrival < 0:
        raise fail("t", "not a number of seconds from 0")
    prompt_tokens = whole("in", 1)
    runs = row.get("h", [])
    if (
        not isinstance(runs, list)
        or len(runs) % 2
        or any(type(n) is not int or not 0 <= n <= MOST_ID for n in runs)
        or 0 in runs[1::2]
    ):
        raise fail("h", "not pairs of block id and run length")
    if runs and not block_tokens:
        raise fail("h", "block ids in a trace without meta.block_size")
    return Request(
        index,
        float(arrival),
        prompt_tokens,
        whole("out", 0),
        block_tokens,
        tuple(runs),
        whole("cid", -1, -1, MOST_ID),
        whole("pl", 0, 0),
    )


def _of_session(row: dict[str, Any], requests: list[Request], where: str) -> Request:
    """The last request with what only sessions have. Those of one must stand together."""
    session, shared = row.get("sid"), row.get("sys", [-1, 0])
    think = row.get("think")
    think = 0.0 if think is None else think  # null: not known
    if type(session) is not int or not 0 <= session <= MOST_ID:
        raise ConfigError(f"{where}: field `sid`: not a whole number from 0 to {MOST_ID}")
    if len(requests) > 1 and session < requests[-2].session:
        raise ConfigError(f"{where}: field `sid`: less than on the line before")
    if isinstance(think, bool) or not isinstance(think, int | float) or not think >= 0:
        raise ConfigError(f"{where}: field `think`: not a number of seconds from 0")
    if (
        not isinstance(shared, list)
        or len(shared) != 2
        or any(type(n) is not int or abs(n) > MOST_ID for n in shared)
        or not 0 <= shared[1] <= MOST_TOKENS
    ):
        raise ConfigError(f"{where}: field `sys`: not a group and its number of shared tokens")
    return replace(
        requests[-1],
        session=session,
        think=float(think),
        group=shared[0],
        group_tokens=shared[1],
    )


# -- prompts ---------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)  # 1.6 MB at 50 tokens a block, 16 MB at 512
def _words(key: str, length: int) -> str:
    """The first `length` characters of a key's own endless text."""
    draws = hashlib.shake_128(key.encode()).digest(length // 4 + 1)  # a word with its space: >= 4
    return " ".join(map(WORDS.__getitem__, draws)).ljust(length)[:length]


def _pairs(runs: Iterable[int]) -> Iterator[tuple[int, int]]:
    numbers = iter(runs)
    return zip(numbers, numbers, strict=True)


def _blocks(runs: Iterable[int]) -> Iterator[int]:
    for start, length in _pairs(runs):
        yield from range(start, start + length)


def _pieces(request: Request) -> Iterator[tuple[str, int, int]]:
    """A prompt from the first byte on: whose text it is (kind and id), and how many bytes of it.

    What no block covers belongs to this request alone.
    """
    left = request.prompt_tokens * BYTES_PER_TOKEN
    size = request.block_tokens * BYTES_PER_TOKEN
    for block in _blocks(request.runs):
        if not left:  # traces exist whose block lists are longer than their prompts
            break
        yield "block", block, min(size, left)
        left -= min(size, left)
    if request.tenant >= 0 and left and not request.runs:
        shared = min(left, request.tenant_tokens * BYTES_PER_TOKEN)
        yield "tenant", request.tenant, shared
        left -= shared
    if left:
        yield "request", request.index, left


def prompt_text(request: Request) -> str:
    """The prompt: exactly BYTES_PER_TOKEN ASCII letters and spaces a token.

    Two requests of one trace start with the same bytes as far as their blocks agree (or their
    tenant's prefix goes).
    """
    size = request.block_tokens * BYTES_PER_TOKEN
    return "".join(
        # The whole block is made, as others will want it, and then cut.
        _words(f"block {key}", size)[:length]
        if kind == "block"
        else _words(f"{kind} {key}", length)
        for kind, key, length in _pieces(request)
    )


def prompt_bytes(request: Request) -> bytes:
    """A prompt that shares what prompt_text() shares, as long, and nobody needs to read.

    Each piece is a number of its own over and over: made at the speed of memory, for virtual time.
    """
    r, tenant = request, request.tenant >= 0 and not request.runs
    return fill_prompt(
        r.runs,
        r.block_tokens * BYTES_PER_TOKEN,
        r.prompt_tokens * BYTES_PER_TOKEN,
        r.tenant_tokens * BYTES_PER_TOKEN if tenant else 0,
        r.tenant if tenant else 0,
        r.index,
    )
