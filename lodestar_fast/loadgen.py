"""The load generator of `replay` and `demo`: a trace against OpenAI-compatible servers.

Open loop: each request is sent at its time, whatever became of those before, and to every target at
that same moment. The client is aiohttp, a client nobody here wrote; measured is what any user sees.

It has to stay light, as it may share the machine with the router: a body is made once for all
targets, and after the first token the task sleeps until the end of the stream instead of waking for
every chunk. So TPOT is (end - first token) / (tokens - 1), and there is no distribution of gaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from lodestar_fast.clock import Clock, MonotonicClock
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.workload import Request, prompt_text
from lodestar_fast.summary import Record

# A whole answer must fit, or aiohttp would stop reading until the sleeping task reads some.
READ_BUFFER_BYTES = 16 << 20
CONNECT_TIMEOUT = 10.0
PATH = "/v1/chat/completions"

OnRecord = Callable[[str, Record], None]


def encode_body(request: Request, model: str) -> bytes:
    """The chat completion that asks for exactly the trace's output tokens, streamed."""
    return msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt_text(request)}],
            "max_tokens": max(1, request.output_tokens),
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


async def replay(
    requests: Sequence[Request],
    targets: Mapping[str, str],
    *,
    model: str,
    on_record: OnRecord,
    timeout: float = 600.0,
    headers: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    session: aiohttp.ClientSession | None = None,
) -> dict[str, list[Record]]:
    """Send every request, at its arrival, to every target; return when all have ended.

    targets: base URL by name. on_record(name, record): called as each request ends. Returns the
    records by target, in order of arrival. A request that fails is a record with an error; nothing
    is raised for it. Cancellation cancels what is in flight.
    """
    clock = clock or MonotonicClock()
    records: dict[str, list[Record]] = {name: [] for name in targets}
    names = list(targets)

    async with (
        session or client_session(headers) as client,
        asyncio.TaskGroup() as tasks,
    ):
        start = clock.now()
        for number, request in enumerate(requests):
            body = encode_body(request, model)
            await asyncio.sleep(start + request.arrival - clock.now())
            # Each target is first in its turn: being last costs a fraction of a millisecond.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                record = Record(request.index, request.arrival, request.prompt_tokens)
                records[name].append(record)
                call = _call(client, targets[name] + PATH, body, record, clock, start, timeout)
                tasks.create_task(_finish(call, name, record, on_record))
    return records


def client_session(headers: Mapping[str, str] | None = None) -> aiohttp.ClientSession:
    """A session without a limit on connections: open loop means that nothing waits here."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT),
        read_bufsize=READ_BUFFER_BYTES,
        headers={"content-type": "application/json", **(headers or {})},
        trust_env=False,
    )


async def _finish(call: Any, name: str, record: Record, on_record: OnRecord) -> None:
    await call
    on_record(name, record)


async def _call(
    client: aiohttp.ClientSession,
    url: str,
    body: bytes,
    record: Record,
    clock: Clock,
    start: float,
    timeout: float,
) -> None:
    """One request; fills the record and raises nothing but cancellation."""
    sent = clock.now()
    record.late = max(0.0, sent - start - record.arrival)
    try:
        async with asyncio.timeout(timeout), client.post(url, data=body) as response:
            record.status = response.status
            _read_headers(response.headers, record)
            if response.status != 200:
                record.error = _error_text(response.status, await response.read())
                return
            await _read_stream(response.content, record, clock, sent)
    except TimeoutError:
        record.error = f"no end within {timeout:g} s"
    except (aiohttp.ClientError, OSError) as e:
        record.error = f"{type(e).__name__}: {e}".rstrip(": ")


def _read_headers(headers: Mapping[str, str], record: Record) -> None:
    record.instance = headers.get("x-lodestar-instance", "")
    record.reason = headers.get("x-lodestar-reason", "")
    for name, field, scale in (
        ("x-lodestar-predicted-ttft-ms", "predicted", 1e-3),
        ("x-lodestar-decision-us", "decision", 1e-6),
    ):
        try:
            value = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if value == value:  # NaN: no model was asked
            setattr(record, field, value)


async def _read_stream(
    content: aiohttp.StreamReader, record: Record, clock: Clock, sent: float
) -> None:
    """Read server-sent events to the end; the first token's time is taken as it arrives."""
    head = b""
    while record.ttft is None:
        piece = await content.readany()
        if not piece:
            break
        now = clock.now()
        head += piece
        if any(_has_token(_decode(event)) for event in _events(head)):
            record.ttft = now - sent
    if not content.is_eof() and content.exception() is None:
        await content.wait_eof()
    record.e2e = clock.now() - sent
    events = _events(head + await content.read())
    # The engine's own counts come last; decoding a whole stream of chunks to count them is the
    # exception, as it costs as much as all the rest of this function.
    ended = events[-1:] == [b"[DONE]"]
    last = [_decode(event) for event in events[-3:]]
    usage: dict[str, Any] = next((e["usage"] for e in reversed(last) if e.get("usage")), {})
    record.error = next((f"error in the stream: {_message(e)}" for e in last if "error" in e), "")
    tokens = usage.get("completion_tokens") or sum(_has_token(_decode(e)) for e in events)
    record.prompt_tokens = usage.get("prompt_tokens") or record.prompt_tokens
    record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    record.output_tokens = tokens
    if record.ttft is not None and tokens > 1:
        record.tpot = (record.e2e - record.ttft) / (tokens - 1)
    if not record.error and not ended:
        record.error = "the stream broke off"
    if not record.error and record.ttft is None:
        record.error = "no token in the answer"


def _events(text: bytes) -> list[bytes]:
    """The data of each complete event of a stream."""
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def _decode(event: bytes) -> dict[str, Any]:
    """A chunk; empty for what is not a JSON object, as the [DONE] at the end."""
    try:
        chunk = msgspec.json.decode(event)
    except msgspec.DecodeError:
        return {}
    return chunk if isinstance(chunk, dict) else {}


def _has_token(chunk: dict[str, Any]) -> bool:
    """Whether a chunk carries output; the first one often names only the role."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if any(delta.get(k) for k in ("content", "reasoning_content", "reasoning", "tool_calls")):
            return True
    return False


def _message(content: Any) -> str:
    """The text of an OpenAI error body, or of one that looks like it."""
    if isinstance(content, dict):
        error = content.get("error", content)
        content = error.get("message", error) if isinstance(error, dict) else error
    return str(content)[:200]


def _error_text(status: int, body: bytes) -> str:
    try:
        text = _message(msgspec.json.decode(body))
    except msgspec.DecodeError:
        text = body.decode(errors="replace").strip()[:200]
    return f"{status}: {text}"


async def find_model(url: str, headers: Mapping[str, str] | None = None) -> str:
    """The first model that a server offers. Raises ConfigError naming --url."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT), client_session(headers) as client:
            async with client.get(url + "/v1/models") as response:
                body = await response.read()
                if response.status != 200:
                    raise ConfigError(
                        f"--url: GET {url}/v1/models: {_error_text(response.status, body)}"
                    )
                return str(msgspec.json.decode(body)["data"][0]["id"])
    except TimeoutError:
        raise ConfigError(f"--url: {url} does not answer in {CONNECT_TIMEOUT:g} s") from None
    except (aiohttp.ClientError, OSError) as e:
        raise ConfigError(f"--url: cannot reach {url}: {e}") from None
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        raise ConfigError(f"--url: {url}/v1/models names no model; give --model") from None
