"""Log lines: one a record, in either form, and none that an outsider's words can forge."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from lodestar_fast import log


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", as_json=False)
    logging.getLogger("lodestar.x").info("%d engines", 3)
    logging.getLogger("lodestar.x").debug("not shown")
    line = capsys.readouterr().err
    time, rest = line.split(" ", 1)
    assert rest == "info lodestar.x: 3 engines\n"
    assert len(time) == len("2026-01-31T12:00:00.123Z") and time.endswith("Z")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("warning", as_json=True)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("lodestar.x").exception('it "failed"\n')
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert (fields["level"], fields["logger"]) == ("error", "lodestar.x")
    assert fields["message"] == 'it "failed"\n' and "ValueError: why" in fields["exception"]


def test_a_forged_line_stays_inside_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", as_json=False)
    logging.getLogger("x").info("engine said %s", "no\n2026 info x: all is well\x1b[2J")
    (line,) = capsys.readouterr().err.splitlines()
    assert r"no\n2026" in line and r"\x1b[2J" in line
