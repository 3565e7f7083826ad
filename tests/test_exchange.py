"""One request's life against engines that fail in every way there is."""

from __future__ import annotations

from tests.fake_engine import DONE_EVENT, stream, token, usage
from tests.proxy_rig import Rig, chat, with_rig


@with_rig()
async def test_plain(rig: Rig) -> None:
    c = await rig.client()
    c.post()
    r = await c.reply()
    assert r.status == 200 and r.body == b'{"ok":true}' and r.whole
    assert rig.outcome() == ("/v1/chat/completions", "2xx", "completed")


@with_rig()
async def test_stream(rig: Rig) -> None:
    rig.engines[0].script.append(
        stream(token(0), token(1), b'data: {"usage":' + usage(10, 2, 8) + b"}\n\n", DONE_EVENT)
    )
    c = await rig.client()
    c.post(chat(stream=True))
    r = await c.reply()
    print(r.fields, r.body, rig.router.events)
    assert r.status == 200
