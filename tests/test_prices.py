"""What engines cost: patterns of URLs, and what happens to them on a reload."""

from __future__ import annotations

import pytest

from lodestar_fast.config import Config, FleetConfig, RoutingConfig
from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy import prices
from lodestar_fast.proxy.prices import Prices
from tests.fake_fleet import FleetFixture


def test_the_first_pattern_that_fits_holds() -> None:
    known = Prices(["http://a:80=2.5", "http://10.0.*:8000=1", "http://[::1]:8000/=4", "*b*=0"])
    urls = ("http://a:80", "http://10.0.7.9:8000", "http://[::1]:8000", "http://ab:80")
    assert [known.of(url) for url in urls] == [2.5, 1.0, 4.0, 0.0]
    assert known.of("http://10.0.7.9:8001") == 4.0, "an engine that was forgotten is not cheap"
    assert Prices([]).of("http://a:80") == 0.0


@pytest.mark.parametrize("entry", ["http://a:80", "=3", "a=", "a=x", "a=-1", "a=nan", "a=inf"])
def test_what_is_no_price_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"--engine-prices.*is not URL=PRICE"):
        Prices(["http://b=1", entry])


def test_prices_that_are_to_count_must_be_there() -> None:
    prices.check(Config(fleet=FleetConfig(engine_prices=["*=1"])))
    with pytest.raises(ConfigError, match=r"--price-weight\): needs --engine-prices"):
        prices.check(Config(routing=RoutingConfig(price_weight=0.1)))


def test_engines_have_their_prices_from_the_start_and_new_ones_after_a_reload() -> None:
    at = FleetFixture(engine_prices=["http://a:80=2", "*=1"])
    at.fleet.add("http://a")
    assert at.router.prices == {0: 2.0}
    at.fleet.use(FleetConfig(engine_prices=["*=7"]), b"key")
    at.fleet.add("http://b")
    assert at.router.prices == {0: 7.0, 1: 7.0} and at.fleet.engine_key == b"key"
