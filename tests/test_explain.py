"""`lodestar explain` against an admin port, and what it prints."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lodestar_fast import cli
from lodestar_fast.decisions.explain import explain, table
from lodestar_fast.decisions.why import describe
from lodestar_fast.proxy.instance import opaque_id
from tests.test_admin import KEYS, Port, run
from tests.test_admin_decisions import decide
from tests.test_decisions import learned, simulate


async def lodestar(*words: str) -> int:
    """The program in a thread, while the admin port answers."""
    return await asyncio.to_thread(cli.main, list(words))


def test_a_request_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    async def body(port: Port) -> None:
        decide(port, "a", "b")
        admin = f"127.0.0.1:{port.port}"
        assert await lodestar("explain", "b", "--admin", admin) == 0
        text = capsys.readouterr().out
        assert "b, " in text and "64 prompt tokens, try 2" in text and "fixed picked i0" in text
        assert "outcome: done (200): first token after 250 ms, ended after 500 ms" in text
        assert await lodestar("explain", "--last", "5", "--admin", f"http://{admin}/") == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 and lines[1].split()[1] == "b" and "250 ms" in lines[1]
        assert await lodestar("explain", "b", "--json", "--admin", admin) == 0
        assert '"request_id": "b"' in capsys.readouterr().out

    run(body)


def test_what_goes_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("first-key\n")

    async def body(port: Port) -> None:
        admin = f"http://127.0.0.1:{port.port}"
        for words, said in (
            (["x", "--admin", admin], "a key of --admin-key-file is needed"),
            (["x", "--admin", admin, "--admin-key-file", str(key)], "among the last 0"),
            (["--last", "3", "--admin", admin, "--admin-key-file", str(key)], "no decision was"),
            (["x", "--admin", admin, "--admin-key-file", str(tmp_path / "no")], "No such file"),
            (["x", "--admin", "ftp://x"], "is no URL of the form"),
            (["x", "--admin", "http://127.0.0.1:1"], "no router answers there"),
            (["--last", "0"], "less than 1"),
            ([], "required"),
        ):
            assert await lodestar("explain", *words) == 2
            error = capsys.readouterr().err
            assert said in error and error.count("\n") == 1, error

    run(body, KEYS)


def test_learned_decisions_are_compared_in_the_terminal() -> None:
    _, rows = simulate(learned()[0], 300)
    decisions = [describe(row, row["outcome"], opaque_id, "lmetric") for row in rows]
    assert len(table(decisions)) == 301
    cached = next(d for d in decisions[100:] if "tokens cached" in d["why"])
    text = "\n".join(explain(cached))
    assert cached["why"] in text and "->" in text and "against the chosen one, ms:" in text
    assert "predicted" in text and "in 9 of 10 cases" in text and "model version 1" in text
    for d in decisions:
        assert all(len(line) < 400 for line in explain(d))
