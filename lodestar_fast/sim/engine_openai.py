"""OpenAI's request and answer formats, as vLLM 0.32 speaks them, for the simulated engine.

Used by sim/engine_http. Bytes in, a Generation or a ClientError out; then the pieces of the answer.
No sockets, no clock, no engine.

What a prompt is here: TOKEN_BYTES bytes of UTF-8 text are a token, 16 tokens a cache block. A chat
is its tools (raw JSON) and then role and content of each message, one after the other. A prompt
given as token ids counts each id as a token.

Answers are as long as max_tokens asks, end for "length", and consist of words of one token.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

import msgspec

from lodestar_fast.errors import ClientError
from lodestar_fast.sim.blocks import hash_prompt
from lodestar_fast.sim.gpus import EngineSpec

TOKEN_BYTES = 4
DEFAULT_CHAT_TOKENS = 64
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own default for completions

# One token each, all of one length, so that a stream's chunks differ in nothing but the word.
WORDS = tuple(
    f" {word}".encode()
    for word in (
        "the sun and sea are far out but our old map can aid any who ask the way now one may see "
        "how low red sky met dry hay"
    ).split()
)
assert all(len(word) == TOKEN_BYTES for word in WORDS)


class Part(msgspec.Struct):
    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    role: str = "user"
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class Common(msgspec.Struct, kw_only=True):
    """The fields that matter here; all others are accepted and ignored, as vLLM does."""

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class Chat(Common, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: msgspec.Raw = msgspec.Raw()


class Completion(Common, kw_only=True):
    prompt: str | list[str | int | list[int]]


@dataclass(frozen=True, slots=True)
class Generation:
    """A request as the engine needs it. hashes: of the full blocks of the prompt."""

    chat: bool
    hashes: array[int]
    prompt_tokens: int
    output_tokens: int
    stream: bool
    include_usage: bool


_chat = msgspec.json.Decoder(Chat)
_completion = msgspec.json.Decoder(Completion)


def refusal(
    message: str, param: str | None = None, status: int = 400, type: str = "BadRequestError"
) -> ClientError:
    return ClientError(status, type, str(status), message, param)


def error_body(error: ClientError) -> bytes:
    """vLLM's shape: the code is the HTTP status, as a number."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.status,
            }
        }
    )


def parse(body: bytes, *, chat: bool, model: str, engine: EngineSpec) -> Generation:
    """Reads a request body. ClientError: not JSON, wrong types, unknown model, too long, ..."""
    request: Chat | Completion
    try:
        request = _chat.decode(body) if chat else _completion.decode(body)
    except msgspec.ValidationError as error:
        raise refusal(f"1 validation error: {error}", "body", type="Bad Request") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refusal(
            f"1 validation error: JSON decode error: {error}", type="Bad Request"
        ) from None
    if request.model not in (None, model):
        raise refusal(
            f"The model `{request.model}` does not exist. Valid aliases: {model}.",
            "model",
            404,
            "NotFoundError",
        )
    if request.n not in (None, 1):
        raise refusal("this simulated engine gives one answer a request: n must be 1", "n")
    if request.stream_options is not None and not request.stream:
        raise refusal("Stream options can only be defined when `stream=True`.", "stream_options")
    prompt, tokens = _chat_prompt(request) if isinstance(request, Chat) else _prompt(request.prompt)
    return Generation(
        chat=chat,
        hashes=hash_prompt(prompt, TOKEN_BYTES * engine.block),
        prompt_tokens=tokens,
        output_tokens=_output_tokens(request, tokens, engine.max_model_len),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _text_tokens(text: bytes) -> int:
    return max(1, -(-len(text) // TOKEN_BYTES))


def _chat_prompt(request: Chat) -> tuple[bytes, int]:
    if not request.messages:
        raise refusal(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    pieces = [bytes(request.tools)]
    for message in request.messages:
        content = message.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        pieces += (message.role.encode(), content.encode())
    text = b"".join(pieces)
    return text, _text_tokens(text)


def _prompt(prompt: str | list[str | int | list[int]]) -> tuple[bytes, int]:
    if not isinstance(prompt, str):
        if len(prompt) == 1 and not isinstance(prompt[0], int):
            return _prompt_of_one(prompt[0])
        if not prompt or not all(isinstance(token, int) for token in prompt):
            raise refusal(
                "prompt must be a string, a list of token ids, or a list of one of these", "prompt"
            )
        return _prompt_of_one([token for token in prompt if isinstance(token, int)])
    return _prompt_of_one(prompt)


def _prompt_of_one(prompt: str | list[int]) -> tuple[bytes, int]:
    if isinstance(prompt, str):
        text = prompt.encode()
        return text, _text_tokens(text)
    try:
        return struct.pack(f"<{len(prompt)}I", *prompt), max(1, len(prompt))
    except struct.error:
        raise refusal("token ids must be from 0 to 4294967295", "prompt") from None


def _output_tokens(request: Chat | Completion, prompt_tokens: int, longest: int) -> int:
    room = longest - prompt_tokens
    if room < 1:
        raise refusal(
            f"This model's maximum context length is {longest} tokens. However, your prompt "
            f"contains {prompt_tokens} input tokens, which leaves no room for an answer. Please "
            f"reduce the length of the input prompt.",
            "input_tokens",
        )
    wanted = request.max_tokens
    if isinstance(request, Chat) and request.max_completion_tokens is not None:
        wanted = request.max_completion_tokens
    if wanted is None:
        default = DEFAULT_CHAT_TOKENS if isinstance(request, Chat) else DEFAULT_COMPLETION_TOKENS
        return min(default, room)
    if wanted < 1:
        raise refusal(f"max_tokens must be at least 1, got {wanted}.", "max_tokens")
    if wanted > room:
        raise refusal(
            f"max_tokens={wanted} cannot be greater than {room}: the model's maximum context "
            f"length is {longest} tokens and the prompt has {prompt_tokens}.",
            "max_tokens",
        )
    return wanted


def usage(prompt_tokens: int, output_tokens: int, cached_tokens: int) -> bytes:
    return (
        b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d}}'
        % (prompt_tokens, prompt_tokens + output_tokens, output_tokens, cached_tokens)
    )


def word(index: int) -> bytes:
    """The text of the index-th token of any answer."""
    return WORDS[index % len(WORDS)]


def answer(chat: bool, identity: bytes, created: int, model: bytes, generation: Generation,
           cached: int) -> bytes:  # fmt: skip
    """The whole answer of a request that does not stream. identity, model: encoded JSON strings."""
    text = b"".join(word(index) for index in range(generation.output_tokens))
    counts = usage(generation.prompt_tokens, generation.output_tokens, cached)
    if chat:
        kind = b"chat.completion"
        choice = (
            b'"message":{"role":"assistant","content":"%b","refusal":null},"logprobs":null,' % text
        )
    else:
        kind, choice = b"text_completion", b'"text":"%b","logprobs":null,' % text
    return (
        b'{"id":%b,"object":"%b","created":%d,"model":%b,"choices":[{"index":0,%b'
        b'"finish_reason":"length","stop_reason":null}],%b}'
        % (identity, kind, created, model, choice, counts)
    )


class Chunks:
    """The pieces of one stream, as HTTP chunks of server-sent events.

    A token's chunk is `head + word + tail`; the last token's ends in `last_tail` instead. For chats
    `role` comes with the first token. Everything is built here, once, and not token by token.
    """

    __slots__ = ("common", "head", "last_head", "last_tail", "role", "tail")

    def __init__(self, chat: bool, identity: bytes, created: int, model: bytes) -> None:
        kind = b"chat.completion.chunk" if chat else b"text_completion"
        self.common = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            identity,
            kind,
            created,
            model,
        )
        if chat:
            opening, closing = b'{"index":0,"delta":{"content":"', b'"},"logprobs":null,'
            self.role = framed(
                self.common + b'{"index":0,"delta":{"role":"assistant","content":""},'
                b'"logprobs":null,"finish_reason":null}]}\n\n'
            )
        else:
            opening, closing = b'{"index":0,"text":"', b'","logprobs":null,'
            self.role = b""
        opening = self.common + opening
        going = closing + b'"finish_reason":null,"token_ids":null}]}\n\n'
        ended = closing + b'"finish_reason":"length","stop_reason":null,"token_ids":null}]}\n\n'
        size = len(opening) + TOKEN_BYTES
        self.head = b"%x\r\n" % (size + len(going)) + opening
        self.tail = going + b"\r\n"
        self.last_head = b"%x\r\n" % (size + len(ended)) + opening
        self.last_tail = ended + b"\r\n"

    def end(self, counts: bytes | None) -> bytes:
        """What follows the last token: usage if asked for, the end mark, the last HTTP chunk."""
        final = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        if counts is None:
            return final
        return framed(self.common + b"]," + counts + b"}\n\n") + final


def framed(data: bytes) -> bytes:
    """One chunk of a chunked HTTP body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
