"""The scanner of bodies against msgspec: what it is sure of, msgspec says too, and nothing else."""

from __future__ import annotations

import json
import random

import pytest

from lodestar_fast.errors import ClientError
from lodestar_fast.proxy.body import read, scan
from lodestar_fast.proxy.openai import ROUTES, routing_fields

CHAT = b"/v1/chat/completions"
TEXT = 'a "quoted" \\ text\n with  \u00e9 and / and \t' * 3
USUAL = [
    {"model": "m", "prompt": "p" * 70, "max_tokens": 16, "temperature": 0.0},
    {"model": "m", "messages": [{"role": "user", "content": TEXT}], "stream": True},
    {"messages": [], "tools": [{"type": "function", "x": [[1, {"y": {}}], -1.5e-7, []]}]},
    {"model": "m/n", "input": ["a", "b"], "system": "s", "instructions": None, "cache_salt": "c"},
    {"query": "q", "text_1": "t", "tokens": [1, 2, 30], "stream": False, "n": None},
    {"prompt": "long " * 2000, "model": "m", "stream": None, "logit_bias": {"5": 1e9}},
]
BODIES = [
    *(json.dumps(body).encode() for body in USUAL),
    *(json.dumps(body, ensure_ascii=False, indent=1).encode() for body in USUAL),
    *(json.dumps(body, separators=(",", ":")).encode() for body in USUAL),
]
BITS = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\0", b"\x1f", b"\xff", b"0"]
BITS += [b"-", b".", b"e", b"E+", b"1", b"true", b"null", b"fals", b'"model":', b'"stream":true,']
BITS += [
    b"\\u0041",
    b"\\ud83d\\ude00",
    b"\\ud800",
    b"\\uD8",
    b"\\q",
    b"//",
    b'"prompt":"x",',
    b"\t",
]
BITS += [b'"max_tokens":7,', b'"max_completion_tokens":null,', b'"max_output_tokens":-1,']
BITS += [b'"max_completion_tokens":30,', b'"max_tokens":1.5,', b'"max_output_tokens":"9",']
BITS += [b'"mod\\u0065l":"n",', b'"messages":[],', b"\xe2\x82\xac", b'"":1,', b"[" * 70, b"]" * 70]


def parts(routing: object) -> tuple[str, bytes, bytes, bool, int]:
    return (
        routing.model,  # type: ignore[attr-defined]
        bytes(routing.prompt),  # type: ignore[attr-defined]
        routing.seed,  # type: ignore[attr-defined]
        routing.stream,  # type: ignore[attr-defined]
        routing.max_tokens,  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", ROUTES)
def test_usual_bodies_are_scanned(path: bytes, body: bytes) -> None:
    routing = scan(path, body)
    assert routing is not None
    assert parts(routing) == parts(routing_fields(path, body)) == parts(read(path, body))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_scanned_is_what_msgspec_finds(seed: int) -> None:
    rng = random.Random(seed)
    paths, sure = list(ROUTES), 0
    for _ in range(3000):
        body, path = rng.choice(BODIES), rng.choice(paths)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, size = rng.randrange(len(body) + 1), rng.choice((0, 0, 0, 1, 2, 30))
            body = body[:at] + rng.choice([b"", *BITS]) + body[at + size :]
        routing = scan(path, body)
        if routing is not None:
            sure += 1
            assert parts(routing) == parts(routing_fields(path, body)), body
    assert sure > 300  # or nothing was compared


@pytest.mark.parametrize(
    "text",
    [
        *(
            b'{"x":%b}' % value
            for value in (b"01", b"1.", b"-", b"1e", b"+1", b".5", b"tru", b"NaN")
        ),
        *(b'{"x":"%b"}' % value for value in (b"\x01", b"\\q", b"\\u12", b"\n", b"\\ud800", b"\\")),
        *(b'{"x":%b}' % value for value in (b"[1,]", b'{"a":1,}', b'{"a"}', b"[", b"{1:2}", b'"')),
        *(b"", b"{", b"[]", b'"x"', b"{} x", b'{"a":1,}', b'{"a":1', b"\xef\xbb\xbf{}", b"{,}"),
        *(b'{"model":1}', b'{"stream":1}', b'{"stream":"true"}', b'{"model":["m"]}'),
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda text: text[:16],
)
def test_bad_bodies_are_refused(text: bytes) -> None:
    assert scan(CHAT, text) is None
    with pytest.raises(ClientError) as error:
        read(CHAT, text)
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"mod\\u0065l":"a"}', "a"),
        (b'{"model":"\\u00e9"}', "\u00e9"),
        ('{"model":"\u00e9"}'.encode(), "\u00e9"),
        (b'{"x":"\\ud83d\\ude00","model":"a"}', "a"),
        (b'{"model":"b","x":' + b"[" * 66 + b"]" * 66 + b"}", "b"),
    ],
)
def test_the_unusual_is_left_to_msgspec(body: bytes, model: str) -> None:
    assert scan(CHAT, body) is None
    assert read(CHAT, body).model == model


def test_the_last_of_equal_keys_counts() -> None:
    body = b'{"model":"a","messages":[1],"model":"b","messages":[2]}'
    routing = scan(CHAT, body)
    assert routing is not None
    assert parts(routing) == parts(routing_fields(CHAT, body))
    assert routing.model == "b" and bytes(routing.prompt) == b"[2]"


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        (b'"max_tokens":16', 16),
        (b'"max_completion_tokens":32', 32),
        (b'"max_output_tokens": 64 ', 64),
        (b'"max_tokens":16,"max_completion_tokens":32', 32),
        (b'"max_completion_tokens":null,"max_tokens":16', 16),
        (b'"max_completion_tokens":0,"max_tokens":16', 16),
        (b'"max_tokens":99999999', 99999999),
        *((b'"max_tokens":' + text, 0) for text in (b"-5", b"1e3", b"2.0", b"100000000", b'"7"')),
        *((b'"max_tokens":' + text, 0) for text in (b"null", b"true", b"[9]", b"0")),
        (b'"n":2,"x":{"max_tokens":5}', 0),
    ],
)
def test_an_answer_is_as_long_as_it_may_be_and_nonsense_is_the_engines(
    fields: bytes, most: int
) -> None:
    body = b'{"model":"m",%b}' % fields
    scanned = scan(CHAT, body)
    assert scanned is not None and scanned.max_tokens == most
    assert routing_fields(CHAT, body).max_tokens == most
    assert read(CHAT, b'{"x":"\\ud83d\\ude00",%b}' % fields).max_tokens == most


def test_models_are_not_mixed_up() -> None:
    for model in ("a", "b", "a", "", "ab"):
        routing = scan(CHAT, b'{"model":"%b"}' % model.encode())
        assert routing is not None and routing.model == model
        assert routing.seed == model.encode() + b"\0\0\0\0"
