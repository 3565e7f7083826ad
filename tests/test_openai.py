"""What the proxy reads of a body, and what it says when it does not like one."""

from __future__ import annotations

import json

import pytest

from lodestar_fast.errors import ClientError, HttpError
from lodestar_fast.proxy import failures
from lodestar_fast.proxy.openai import (
    LOCAL,
    ROUTES,
    error_body,
    error_event,
    routing_fields,
    unknown_model,
)

CHAT = b"/v1/chat/completions"


def test_routes_are_those_of_the_interface() -> None:
    assert set(ROUTES) == {
        b"/v1/chat/completions",
        b"/v1/completions",
        b"/v1/responses",
        b"/v1/embeddings",
        b"/v1/messages",
        b"/v1/rerank",
        b"/v1/score",
        b"/tokenize",
        b"/detokenize",
    }
    assert set(LOCAL) == {b"/v1/models", b"/health", b"/liveness", b"/readiness", b"/version"}


def test_prompt_is_the_raw_json_of_its_field() -> None:
    body = b'{"stream": true, "messages": [ {"a":"\\u00e9"} ], "model": "m", "n": 1.5e3}'
    fields = routing_fields(CHAT, body)
    assert bytes(fields.prompt) == b'[ {"a":"\\u00e9"} ]'
    assert fields.model == "m"
    assert fields.stream


@pytest.mark.parametrize(
    ("path", "body", "prompt"),
    [
        (b"/v1/completions", b'{"prompt":"p"}', b'"p"'),
        (b"/v1/completions", b'{"prompt":[1,2]}', b"[1,2]"),
        (b"/v1/responses", b'{"input":"i"}', b'"i"'),
        (b"/v1/embeddings", b'{"input":["i"]}', b'["i"]'),
        (b"/v1/embeddings", b'{"messages":[1]}', b"[1]"),
        (b"/v1/messages", b'{"messages":[2]}', b"[2]"),
        (b"/v1/rerank", b'{"query":"q","documents":[]}', b'"q"'),
        (b"/v1/score", b'{"text_1":"t","text_2":"u"}', b'"t"'),
        (b"/tokenize", b'{"prompt":"p"}', b'"p"'),
        (b"/tokenize", b'{"messages":[3]}', b"[3]"),
        (b"/detokenize", b'{"tokens":[1]}', b"[1]"),
        (CHAT, b"{}", b""),
    ],
)
def test_each_route_has_its_prompt(path: bytes, body: bytes, prompt: bytes) -> None:
    assert bytes(routing_fields(path, body).prompt) == prompt


def test_a_turn_extends_the_turn_before() -> None:
    turns = [{"role": "user", "content": "x" * 100}]
    first = routing_fields(CHAT, json.dumps({"messages": turns}).encode())
    turns.append({"role": "assistant", "content": "y"})
    second = routing_fields(CHAT, json.dumps({"messages": turns}).encode())
    assert bytes(second.prompt).startswith(bytes(first.prompt)[:-1])


def test_an_image_is_bytes_of_the_prompt() -> None:
    """Prompts share what comes before the first image in which they differ, as in an engine."""

    def prompt(image: str) -> bytes:
        parts = [
            {"type": "text", "text": "x" * 100},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "text", "text": "What is this?"},
        ]
        body = {"messages": [{"role": "user", "content": parts}]}
        return bytes(routing_fields(CHAT, json.dumps(body).encode()).prompt)

    one, other = prompt("iVBORw0"), prompt("iVBORw1")
    assert one[: one.index(b"iVBORw0") + 6] == other[: other.index(b"iVBORw1") + 6] != b""
    assert one != other


@pytest.mark.parametrize("field", ["model", "tools", "cache_salt", "system", "instructions"])
def test_what_the_cache_depends_on_is_in_the_seed(field: str) -> None:
    seeds = {
        routing_fields(CHAT, json.dumps({field: value, "messages": []}).encode()).seed
        for value in ("a", "b")
    }
    assert len(seeds) == 2


def test_fields_of_the_seed_cannot_be_mistaken_for_each_other() -> None:
    seeds = {
        routing_fields(CHAT, json.dumps(body).encode()).seed
        for body in ({"tools": "x"}, {"cache_salt": "x"}, {"model": '"x"'}, {"system": "x"}, {})
    }
    assert len(seeds) == 5


def test_other_fields_are_neither_read_nor_missed() -> None:
    assert routing_fields(CHAT, b'{"user":3,"temperature":null,"x":{"model":1}}').model == ""


@pytest.mark.parametrize("value", [b"null", b"false"])
def test_stream_off(value: bytes) -> None:
    assert not routing_fields(CHAT, b'{"stream":%b}' % value).stream


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid_json", "not valid JSON"),
        (b'{"model":', "invalid_json", "not valid JSON"),
        (b'{"model":"m"} x', "invalid_json", "not valid JSON"),
        (b'{"model":"\xff"}', "invalid_json", "not valid JSON"),
        (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", "deep"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", "deep"),
        (b"[1]", "invalid_body", "must be a JSON object"),
        (b'"text"', "invalid_body", "must be a JSON object"),
        (b"null", "invalid_body", "must be a JSON object"),
        (b'{"model":3}', "invalid_type", "`model`"),
        (b'{"stream":"yes"}', "invalid_type", "`stream`"),
    ],
)
def test_bad_bodies_are_named(body: bytes, code: str, words: str) -> None:
    with pytest.raises(ClientError) as raised:
        routing_fields(CHAT, body)
    assert raised.value.status == 400
    assert raised.value.code == code
    assert words in raised.value.message


def test_error_bodies_have_openais_shape() -> None:
    error = unknown_model('m"' + "x" * 1000)
    assert json.loads(error_body(error)) == {
        "error": {
            "message": error.message,
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert error.status == 404
    assert len(error.message) < 200
    event = error_event(error)
    assert event.startswith(b'data: {"error":{') and event.endswith(b"}\n\n")


@pytest.mark.parametrize(
    "error",
    [
        *(failures.engine_error(kind) for kind in failures.ENGINE),
        *(failures.client_timeout(kind) for kind in failures.CLIENT),
        *(failures.refused(s, "x") for s in (400, 413, 417, 431, 501, 505)),
        failures.no_instance(),
        failures.overloaded(),
        failures.queue_timeout(),
        failures.unauthorized(),
        failures.not_found(),
        failures.wrong_method("GET"),
        failures.internal(),
    ],
)
def test_every_failure_has_a_code_and_words(error: HttpError) -> None:
    shape = json.loads(error_body(error))["error"]
    assert shape["code"] and shape["message"] and shape["type"]
    assert 400 <= error.status < 600


def test_timeouts_are_named_in_their_errors() -> None:
    for kind in ("connect_timeout", "first_byte_timeout", "stream_idle_timeout", "request_timeout"):
        assert failures.engine_error(kind).code == kind
    for kind in ("header_timeout", "body_timeout"):
        assert failures.client_timeout(kind).code == kind
