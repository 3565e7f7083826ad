"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lodestar_fast.proxy import llhttp, reader


@pytest.fixture(params=["direct", "usual"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test past httptools and uvloop's transports, and with what these are meant to be used
    for. See proxy/llhttp.pyx and proxy/reader.pyx."""
    direct = request.param == "direct"
    if direct and (llhttp.WHY_NOT or reader.WHY_NOT):
        pytest.skip(llhttp.WHY_NOT or reader.WHY_NOT)
    llhttp.use(direct)
    reader.use(1 if direct else 0)
    yield
    llhttp.use(not llhttp.WHY_NOT)
    reader.use(reader.USUAL)
