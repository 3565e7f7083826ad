"""Looking up a field in the lines of a head that pass: bytes, name: value and CRLF each."""

from __future__ import annotations

from collections.abc import Iterable


def first_of(lines: bytes, names: Iterable[bytes]) -> bytes | None:
    """The value of the first of these fields that is there and not empty, or None.

    names: in lower case, in the order in which they are asked for. Of a field that occurs more than
    once the first counts.
    """
    there: dict[bytes, bytes] = {}
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        there.setdefault(name.lower(), value.strip())
    return next((there[name] for name in names if there.get(name)), None)
