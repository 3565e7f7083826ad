"""Sessions named by a field of the request: read in order, and the session stays on its engine."""

from __future__ import annotations

import pytest

from lodestar_fast.core.affinity import SessionAffinity
from lodestar_fast.proxy.lines import first_of
from tests.proxy_rig import Rig, chat, with_rig

LINES = b"accept: */*\r\nX-User-ID: ann \r\nx-empty:\r\nX-Session-Id: s:1\r\nx-session-id: 2\r\n"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ([b"x-session-id", b"x-user-id"], b"s:1"),
        ([b"x-user-id", b"x-session-id"], b"ann"),
        ([b"x-empty", b"x-user-id"], b"ann"),
        ([b"x-user", b"session-id"], None),
        ([], None),
    ],
)
def test_the_first_field_that_is_there_counts(names: list[bytes], wanted: bytes | None) -> None:
    assert first_of(LINES, names) == wanted


async def ask(rig: Rig, text: str, extra: str = "") -> int:
    """The engine that got a request."""
    before = [len(engine.calls) for engine in rig.engines]
    client = await rig.client()
    client.post(chat(text), extra=extra)
    assert (await client.reply()).status == 200
    now = [len(engine.calls) for engine in rig.engines]
    return [b != a for a, b in zip(before, now, strict=True)].index(True)


@with_rig(engines=4, policy=SessionAffinity())
async def test_a_session_stays_whatever_its_prompts_are(rig: Rig) -> None:
    rig.context.session_headers = (b"x-session-id", b"x-user-id")
    engines = set()
    for session in range(12):
        extra = f"X-Session-ID: {session}\r\n"
        places = {await ask(rig, f"{turn}" * 90, extra) for turn in range(3)}
        assert len(places) == 1
        engines |= places
        assert rig.router.routes[-1]["session"] == b"%d" % session
    assert len(engines) > 1
    await ask(rig, "no field")
    assert rig.router.routes[-1]["session"] is None


@with_rig(engines=2)
async def test_other_policies_do_not_read_it(rig: Rig) -> None:
    await ask(rig, "hello", "x-session-id: 1\r\n")
    assert rig.router.routes[-1]["session"] is None
