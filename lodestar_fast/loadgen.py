"""The load generator of `replay` and `demo`: a trace against OpenAI-compatible servers.

Open loop: each request is sent at its time, whatever became of those before, and to every target at
that same moment. The client is aiohttp, a client nobody here wrote; measured is what any user sees.

It has to stay light, as it may share the machine with the router: a body is made once for all
targets, and after the first token the task sleeps until the end of the stream instead of waking for
every chunk. So TPOT is (end - first token) / (tokens - 1), and there is no distribution of gaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
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
    requests: Iterable[Request],
    targets: Mapping[str, str],
    *,
    model: str,
    on_record: OnRecord,
    timeout: float = 600.0,
    headers: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    keep: bool = True,
) -> dict[str, list[Record]]:
    """Send every request, at its arrival, to every target; return when all have ended.

    targets: base URL by name. on_record(name, record): called as each request ends. Returns the
    records by target, in order of arrival; without keep none, for a load that never ends. A request
    that fails is a record with an error; nothing is raised for it. Cancellation cancels what is in
    flight.
    """
    clock = clock or MonotonicClock()
    records: dict[str, list[Record]] = {name: [] for name in targets}
    names = list(targets)
    async with client_session(headers) as client, asyncio.TaskGroup() as tasks:
        calls = _Calls(client, clock, timeout, on_record)
        for number, request in enumerate(requests):
            body = encode_body(request, model)
            await asyncio.sleep(calls.start + request.arrival - clock.now())
            # Each target is first in its turn: being last costs a fraction of a millisecond.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                record = Record(request.index, request.arrival, request.prompt_tokens)
                if keep:
                    records[name].append(record)
                tasks.create_task(calls.call(name, targets[name] + PATH, body, record))
    return records


def client_session(headers: Mapping[str, str] | None = None) -> aiohttp.ClientSession:
    """A session without a limit on connections: open loop means that nothing waits here."""
    return aiohttp.ClientSession(
        # vLLM closes idle connections after 5 s; to send on one as it closes would be a failure.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT),
        read_bufsize=READ_BUFFER_BYTES,
        headers={"content-type": "application/json", **(headers or {})},
        trust_env=False,
    )


class _Calls:
    """What all requests of a replay have in common."""

    def __init__(
        self, client: aiohttp.ClientSession, clock: Clock, timeout: float, on_record: OnRecord
    ) -> None:
        self.start = clock.now()
        self._client = client
        self._clock = clock
        self._timeout = timeout
        self._on_record = on_record

    async def call(self, name: str, url: str, body: bytes, record: Record) -> None:
        """One request; fills the record and raises nothing but cancellation."""
        sent = self._clock.now()
        record.late = max(0.0, sent - self.start - record.arrival)
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.post(url, data=body) as response,
            ):
                record.status = response.status
                _read_headers(response.headers, record)
                if response.status == 200:
                    await _read_stream(response.content, record, self._clock, sent)
                else:
                    record.error = _error_text(response.status, await response.read())
        except TimeoutError:
            record.error = f"no end within {self._timeout:g} s"
        except (aiohttp.ClientError, OSError) as e:
            record.error = f"{type(e).__name__}: {e}".rstrip(": ")
        self._on_record(name, record)


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
        if any(_decode(event).tokens for event in _events(head)):
            record.ttft = now - sent
    if not content.is_eof() and content.exception() is None:
        await content.wait_eof()
    record.e2e = clock.now() - sent
    events = _events(head + await content.read())
    # The engine's own counts come last; decoding a whole stream of chunks to count them is the
    # exception, as it costs as much as all the rest of this function.
    ended = events[-1:] == [b"[DONE]"]
    last = [_decode(event) for event in events[-3:]]
    usage = next((chunk.usage for chunk in reversed(last) if chunk.usage), _Usage())
    record.error = next(
        (f"error in the stream: {_message(chunk.error)}" for chunk in last if chunk.error), ""
    )
    tokens = usage.completion_tokens or sum(_decode(event).tokens for event in events)
    record.output_tokens = tokens
    record.prompt_tokens = usage.prompt_tokens or record.prompt_tokens
    if usage.prompt_tokens_details is not None:
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens
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


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None

    @property
    def tokens(self) -> int:
        """1 if the chunk carries output; the first one often names only the role."""
        deltas = [choice.delta for choice in self.choices if choice.delta]
        texts = ((d.content, d.reasoning, d.reasoning_content, d.tool_calls) for d in deltas)
        return int(any(map(any, texts)))


_CHUNK = msgspec.json.Decoder(_Chunk)


def _decode(event: bytes) -> _Chunk:
    """A chunk; an empty one for what is none, as the [DONE] at the end."""
    try:
        return _CHUNK.decode(event)
    except msgspec.DecodeError:
        return _Chunk()


def _message(error: Any) -> str:
    """The text of an OpenAI error, or of what looks like one."""
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def _error_text(status: int, body: bytes) -> str:
    try:
        content = msgspec.json.decode(body)
        text = _message(content.get("error", content) if isinstance(content, dict) else content)
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
    except aiohttp.ClientConnectorError as e:
        raise ConfigError(f"--url: cannot reach {url}: {e.strerror or e}") from None
    except (aiohttp.ClientError, OSError) as e:
        raise ConfigError(f"--url: cannot reach {url}: {e}") from None
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        raise ConfigError(f"--url: {url}/v1/models names no model; give --model") from None
