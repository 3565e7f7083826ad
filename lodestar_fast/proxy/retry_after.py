"""What an engine's Retry-After says: a number of seconds, or a date."""

from __future__ import annotations

import math
from datetime import UTC
from email.utils import parsedate_to_datetime

_DIGITS = 9  # a number longer than this is not one


def seconds_of(value: bytes, now: float) -> int | None:
    """Whole seconds to wait, not below 0; None if it says neither. now: Unix time in seconds.

    A date may be in any of the three forms of RFC 9110, 5.6.7.
    """
    if value.isdigit():
        return int(value) if len(value) <= _DIGITS else None
    try:
        date = parsedate_to_datetime(value.decode("ascii"))
        # Of the forms, asctime's names no zone; all mean UTC.
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        wait = math.ceil(date.timestamp() - now)
    except (ValueError, OverflowError, IndexError):
        return None
    return max(wait, 0) if wait < 10**_DIGITS else None
