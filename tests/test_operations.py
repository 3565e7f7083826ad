"""The whole program as a process: SIGHUP, the end of the grace, descriptors, engines that go and
come back, kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import time
from pathlib import Path

import uvloop

from tests.test_server import CHAT, FAST, Lodestar, chat, request, run
from tests.tiny_engine import TinyEngine


async def reloads(lodestar: Lodestar, outcome: str, n: int) -> None:
    """Wait until so many configurations were read again."""
    wanted = b'lodestar_reloads_total{outcome="%s"} %d.0' % (outcome.encode(), n)
    await lodestar.until("/metrics", lambda _, text: wanted in text, lodestar.admin)


def test_sighup_changes_limits_keys_and_engines_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with TinyEngine() as first, TinyEngine() as second:
            file, keys = tmp_path / "lodestar.toml", tmp_path / "keys"
            keys.write_text("sesame\n")
            file.write_text(f'[fleet]\nworker_urls = ["{first.url}"]\n')
            lodestar = await Lodestar.start("--config", str(file), "--policy", "lmetric", *FAST)
            try:
                await lodestar.ready()
                reader, writer = await lodestar.open()
                writer.write(chat())
                await first.got_post.wait()

                file.write_text(
                    f'[fleet]\nworker_urls = ["{second.url}"]\n'
                    f'[serve]\napi_key_file = "{keys}"\n[limits]\nmax_body_bytes = 100\n'
                )
                lodestar.process.send_signal(signal.SIGHUP)
                await reloads(lodestar, "applied", 1)
                _, text = await lodestar.get("/workers", lodestar.admin)
                workers = {w["url"]: w for w in json.loads(text)["workers"]}
                assert workers[first.url]["draining"] and not workers[second.url]["draining"]
                status, _ = await request(lodestar.data, "POST /v1/chat/completions", CHAT)
                assert status == 401, "keys are needed now"
                extra = "Authorization: Bearer sesame\r\nX: y"
                line = "POST /v1/chat/completions"
                status, _ = await request(lodestar.data, line, b"x" * 101, f"a\r\n{extra}")
                assert status == 413
                await lodestar.ready()
                second.events.put_nowait(None)
                status, _ = await request(lodestar.data, line, CHAT, f"a\r\n{extra}")
                assert status == 200 and second.got_post.is_set()

                first.events.put_nowait(b"data: late\n\n")
                first.events.put_nowait(None)
                text = await reader.readuntil(b"0\r\n\r\n")
                assert b"data: late\n\n" in text, "what ran goes on"
                writer.close()
            finally:
                await lodestar.stop()

    uvloop.run(main())


def test_a_bad_configuration_changes_nothing(tmp_path: Path) -> None:
    async def main() -> str:
        async with TinyEngine() as engine:
            file = tmp_path / "lodestar.toml"
            good = f'[fleet]\nworker_urls = ["{engine.url}"]\n'
            file.write_text(good)
            lodestar = await Lodestar.start("--config", str(file), "--policy", "lmetric", *FAST)
            try:
                bad = (
                    "[limits]\nmax_body_bytes = 0\n",
                    "[limits]\nmax_body_bytes = 9\n[serve]\napi_key_file = '/no/such'\n",
                    "[limits]\nmax_body_bytes = 9\n[routing]\nblock_bytes = 128\n",
                    "[limits]\nmax_body_bytes = 9\n[fleet]\nworker_urls = ['engine']\n",
                    "[[",
                )
                for n, text in enumerate(bad, 1):
                    file.write_text(text if "fleet" in text else good + text)
                    lodestar.process.send_signal(signal.SIGHUP)
                    await reloads(lodestar, "refused", n)
                await lodestar.ready()
                engine.events.put_nowait(None)
                status, _ = await request(lodestar.data, "POST /v1/chat/completions", CHAT)
                assert status == 200
                _, text_ = await lodestar.get("/workers", lodestar.admin)
                assert [w["url"] for w in json.loads(text_)["workers"]] == [engine.url]
            finally:
                log = await lodestar.stop()
        return log

    log = uvloop.run(main())
    for words in ("limits.max_body_bytes", "/no/such", "needs a restart: routing.block_bytes"):
        assert words in log
    assert "`engine` is not an engine URL" in log and "Traceback" not in log


def test_what_the_grace_cuts_is_the_routers_error() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        reader, writer = await lodestar.stream(engine)
        lodestar.process.send_signal(signal.SIGTERM)
        rest = await reader.read()
        assert b'"router_stopping"' in rest and not rest.endswith(b"0\r\n\r\n")
        code, _ = await lodestar.end()
        assert code == 0
        writer.close()

    run(body, "--policy", "lmetric", "--drain-grace", "0.1", clean=False)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_out_of_descriptors_it_neither_spins_nor_ends() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        reader, writer = await lodestar.open()
        engine.events.put_nowait(None)
        writer.write(chat())
        await reader.readuntil(b"0\r\n\r\n")
        pid = lodestar.process.pid
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        there = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (there + 8, hard))
        crowd = [await lodestar.open() for _ in range(40)]
        start, used = time.monotonic(), cpu_seconds(pid)
        while time.monotonic() < start + 1.0:
            engine.events.put_nowait(None)
            writer.write(chat())
            await reader.readuntil(b"0\r\n\r\n")
            await asyncio.sleep(0.1)
        assert cpu_seconds(pid) - used < 0.7, "it spins"
        for _, each in crowd:
            each.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        await lodestar.until("/version", lambda status, _: status == 200)
        writer.close()

    run(body, "--policy", "lmetric", clean=False)


def test_all_engines_down_is_said_at_once_and_over_when_one_is_back() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        port = engine.port
        await engine.stop()
        for _ in range(10):  # ejected or not, healthy or not
            async with asyncio.timeout(1.0):
                status, text = await request(lodestar.data, "POST /v1/chat/completions", CHAT)
            assert status == 503 and json.loads(text)["error"]["code"] == "connect"
        await lodestar.until("/readiness", lambda status, _: status == 503)
        await engine.start(port)
        async with asyncio.timeout(3.0):
            await lodestar.ready()
        engine.events.put_nowait(None)
        status, _ = await request(lodestar.data, "POST /v1/chat/completions", CHAT)
        assert status == 200

    run(body, "--policy", "lmetric", clean=False)


def test_an_engine_that_refuses_checks_and_is_silent_is_given_up() -> None:
    """What vLLM does on SIGTERM: it stops listening, and leaves its streams hanging."""

    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        reader, writer = await lodestar.stream(engine)
        engine.stop_listening()
        # One that goes on sending is being shut down, and finishes.
        for _ in range(8):
            await asyncio.sleep(0.1)
            engine.events.put_nowait(b"data: more\n\n")
            await reader.readuntil(b"data: more\n\n")
        rest = await reader.read()
        assert b'"engine_gone"' in rest and not rest.endswith(b"0\r\n\r\n")
        writer.close()

    run(body, "--policy", "lmetric", "--gone-grace", "0.5", clean=False)


def test_the_engines_key_is_shown_to_checks(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("engine-secret\n")

    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.until("/v1/models", lambda _, text: b"tiny" in text)
        assert engine.heads and all(
            b"authorization: bearer engine-secret\r\n" in head.lower() for head in engine.heads
        )

    log = run(body, "--policy", "lmetric", "--engine-api-key-file", str(key))
    assert "engine-secret" not in log


def test_after_kill_9_the_next_one_serves(tmp_path: Path) -> None:
    """At the same port and with the same folder, though a client was connected."""

    async def main() -> None:
        async with TinyEngine() as engine:
            options = ["--worker-urls", engine.url, "--state-dir", str(tmp_path / "state"), *FAST]
            lodestar = await Lodestar.start(*options)
            options += ["--port", str(lodestar.data)]
            await lodestar.ready()
            reader, writer = await lodestar.stream(engine)
            lodestar.process.kill()
            await lodestar.end()
            rest = b""
            with contextlib.suppress(ConnectionError):
                rest = await reader.read()
            assert b"0\r\n\r\n" not in rest, "the answer that was cut looks complete"
            engine.events.put_nowait(None)
            lodestar = await Lodestar.start(*options)
            try:
                await lodestar.ready()
                engine.events.put_nowait(None)
                status, _ = await request(lodestar.data, "POST /v1/chat/completions", CHAT)
                assert status == 200
            finally:
                await lodestar.stop()
            writer.close()

    uvloop.run(main())
