"""What the router tells of requests never contains what is in them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.test_server import Lodestar, request, run
from tests.tiny_engine import TinyEngine, page

CANARY = "kanarienvogel-7f3a"
PROMPT = f"prompt-{CANARY}"
KEY = f"key-{CANARY}"


def body(text: str) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "tiny", "stream": True, "messages": messages}).encode()


def test_no_prompt_answer_or_key_is_ever_told(tmp_path: Path) -> None:
    """Debug log in JSON, every page of the admin port, the decision log and all else that is kept:
    good and bad ends."""
    pages: list[bytes] = []

    async def requests(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        line = "POST /v1/chat/completions"
        keyed = f"x\r\nAuthorization: Bearer {KEY}"
        for event in (f'data: {{"text":"answer-{CANARY}"}}\n\n', "data: [DONE]\n\n"):
            engine.events.put_nowait(event.encode())
        engine.events.put_nowait(None)
        assert (await request(lodestar.data, line, body(PROMPT), keyed))[0] == 200
        # An error inside a stream, with the engine's words in it.
        engine.events.put_nowait(b'data: {"error":{"message":"%b"}}\n\n' % CANARY.encode())
        engine.events.put_nowait(None)
        await request(lodestar.data, line, body(PROMPT), keyed)
        # Bodies that are refused; a model and a path that a client made up.
        for bad in (PROMPT.encode(), b'{"messages":"%b"' % PROMPT.encode(), b'{"model":7}'):
            assert (await request(lodestar.data, line, bad, keyed))[0] == 400
        made_up = body(PROMPT).replace(b"tiny", f"model-{CANARY}".encode())
        assert (await request(lodestar.data, line, made_up, keyed))[0] == 404
        assert (await request(lodestar.data, f"POST /{CANARY}?q={CANARY}", b"{}"))[0] == 404
        # A client that leaves, and an engine that answers nonsense to checks.
        _, writer = await lodestar.open()
        text = body(PROMPT)
        head = f"{line} HTTP/1.1\r\nHost: {keyed}\r\nContent-Length: {len(text)}\r\n\r\n"
        engine.got_post.clear()
        writer.write(head.encode() + text)
        await engine.got_post.wait()
        writer.transport.abort()
        engine.events.put_nowait(None)
        engine.pages["/health"] = page(CANARY.encode(), 503)
        await lodestar.until("/readiness", lambda status, _: status == 503)
        for path in ("/metrics", "/workers", "/admin/model", "/admin/mode", "/admin/decisions"):
            status, page_ = await lodestar.get(path, lodestar.admin)
            assert status in (200, 404), path
            pages.append(page_)

    options = ("--log-level", "debug", "--log-json", "--explain-headers", "--decision-log")
    log = run(requests, *options, "--state-dir", str(tmp_path), clean=False)
    assert len(pages) == 5 and all(pages)
    assert CANARY.encode() not in b"".join(pages)
    assert CANARY not in log
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 1 and CANARY.encode() not in b"".join(kept)
    for line in log.splitlines():
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
