"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lodestar_fast.proxy import llhttp


@pytest.fixture(params=["direct", "callbacks"])
def both_parsers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with each of the two ways to llhttp. See proxy/llhttp.pyx."""
    if request.param == "direct" and llhttp.WHY_NOT:
        pytest.skip(llhttp.WHY_NOT)
    llhttp.use(request.param == "direct")
    yield
    llhttp.use(not llhttp.WHY_NOT)
