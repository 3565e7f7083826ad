"""What the proxy knows of the OpenAI API: the allow-list, the fields routing reads, error bodies.

The body of a request is forwarded byte for byte. Decoding it here finds a handful of top-level
fields and leaves the rest alone: the prompt stays raw JSON, and its bytes identify the prefix. A
turn of a chat extends the raw array of the turn before, so the two share all but the closing
bracket.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from lodestar_fast.errors import ClientError, HttpError

# POST paths that are passed on, each with the top-level fields that may hold its prompt, best
# first.
ROUTES: dict[bytes, tuple[str, ...]] = {
    b"/v1/chat/completions": ("messages",),
    b"/v1/completions": ("prompt",),
    b"/v1/responses": ("input",),
    b"/v1/embeddings": ("input", "messages"),
    b"/v1/messages": ("messages",),
    b"/v1/rerank": ("query",),
    b"/v1/score": ("text_1",),
    b"/tokenize": ("prompt", "messages"),
    b"/detokenize": ("tokens",),
}

MOST_DIGITS = 8  # of a number of tokens; what is longer bounds nothing

# GET paths that the router may answer by itself; a closed set, for it labels metrics.
LOCAL = (b"/v1/models", b"/health", b"/liveness", b"/readiness", b"/version")


class _Body(Struct, gc=False):
    """The fields that are read; all others are skipped. Absent raw fields are empty."""

    model: str | None = None
    stream: bool | None = None
    messages: Raw = Raw()
    prompt: Raw = Raw()
    input: Raw = Raw()
    query: Raw = Raw()
    text_1: Raw = Raw()
    tokens: Raw = Raw()
    # What an engine puts before the prompt, or hashes with it.
    tools: Raw = Raw()
    system: Raw = Raw()
    instructions: Raw = Raw()
    cache_salt: Raw = Raw()
    # How long an answer may be. Raw: what is no number is for the engine to refuse.
    max_completion_tokens: Raw = Raw()
    max_output_tokens: Raw = Raw()
    max_tokens: Raw = Raw()


class Routing(Struct, gc=False):
    """What routing needs of a request's body.

    model: "" if the body names none. prompt: the bytes that identify its prefix, perhaps empty.
    seed: what else the engine's cache depends on; two prompts with unlike seeds share no prefix.
    max_tokens: that the answer may have at most; 0: not told.
    """

    model: str
    prompt: Raw
    seed: bytes
    stream: bool
    max_tokens: int = 0


_decode = msgspec.json.Decoder(_Body).decode


def routing_fields(path: bytes, body: bytes) -> Routing:
    """The routed fields of a body posted to one of ROUTES.

    Raises ClientError (400) on a body that is not a JSON object, or where a field that is read has
    the wrong type.
    """
    try:
        fields = _decode(body)
    except msgspec.ValidationError as e:
        text, _, where = str(e).partition(" - at ")
        name = where.strip("`").removeprefix("$.")
        if not name:
            raise _bad("invalid_body", f"the request body must be a JSON object: {text}") from None
        raise _bad("invalid_type", f"`{name}`: {text}", name) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise _bad("invalid_json", f"the request body is not valid JSON: {e}") from None
    except RecursionError:
        raise _bad("invalid_json", "the request body is nested too deeply") from None
    prompt = Raw()
    for name in ROUTES[path]:
        prompt = getattr(fields, name)
        if prompt:
            break
    model = fields.model or ""
    seed = b"\0".join(
        (model.encode(), fields.cache_salt, fields.tools, fields.system, fields.instructions)
    )
    bounds = (fields.max_completion_tokens, fields.max_output_tokens, fields.max_tokens)
    most = next((n for n in map(_counted, bounds) if n), 0)
    return Routing(model, prompt, seed, fields.stream is True, most)


def _counted(value: Raw) -> int:
    """A plain number of tokens; 0: it is none."""
    text = bytes(value)
    return int(text) if len(text) <= MOST_DIGITS and text.isdigit() else 0


def _bad(code: str, message: str, param: str | None = None) -> ClientError:
    return ClientError(400, "invalid_request_error", code, message, param)


def unknown_model(model: str) -> ClientError:
    """No instance serves the model. The name is the client's: it is cut short."""
    shown = model if len(model) <= 100 else model[:100] + "..."
    return ClientError(
        404,
        "invalid_request_error",
        "model_not_found",
        f"the model `{shown}` does not exist on any instance",
        "model",
    )


def error_body(error: HttpError) -> bytes:
    """An error as JSON in OpenAI's shape."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def error_event(error: HttpError) -> bytes:
    """An error as the last event of a stream that cannot go on; no [DONE] follows it."""
    return b"data: " + error_body(error) + b"\n\n"
