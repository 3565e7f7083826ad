"""Logging: text or JSON lines on stderr. Nothing here runs per request.

Prompts, answers and keys are never logged; what comes from outside (URLs, an engine's words) is
written with its control characters escaped, so that no line can be forged.
"""

from __future__ import annotations

import json
import logging
import sys
import time


class _Text(logging.Formatter):
    """2026-01-31T12:00:00.123Z warning lodestar_fast.proxy.fleet: text"""

    def format(self, record: logging.LogRecord) -> str:
        name = f"{_stamp(record)} {record.levelname.lower()} {record.name}: "
        text = name + _escape(record.getMessage())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _Json(logging.Formatter):
    """One object a line: time, level, logger, message, and exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _stamp(record: logging.LogRecord) -> str:
    """UTC, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _escape(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def configure(level: str, as_json: bool) -> None:
    """Send everything from level up to stderr; replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
