"""What engines cost: patterns of URLs, and what happens to them on a reload."""

from __future__ import annotations

import pytest

from lodestar_fast import cli
from lodestar_fast.config import Config, FleetConfig, RoutingConfig
from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy import prices
from lodestar_fast.proxy.prices import Prices
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.simulate.prices import bill, read_prices
from lodestar_fast.summary import Record
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


# -- in simulation -----------------------------------------------------------------------------


def test_an_engine_costs_while_it_has_a_request() -> None:
    specs = parse_fleet("1xa30+1xh100")

    def record(slot: str, arrival: float, e2e: float | None) -> Record:
        return Record(0, arrival, 10, output_tokens=2, ttft=0.1, e2e=e2e, instance=slot)

    records = [
        record("0", 0.0, 10.0),
        record("1", 5.0, 10.0),
        record("0", 8.0, 4.0),  # two of its seconds were paid
        record("0", 30.0, None),
        record("", 31.0, None),  # refused
        record("0", 95.0, 20.0),  # beyond the end
    ]
    prices = {"a30": 1.0, "h100": 4.0}
    assert bill(records, specs, prices, 100.0) == pytest.approx(0.17 * 1 + 0.10 * 4)
    assert bill([], specs, prices, 0.0) == 0.0


@pytest.mark.parametrize("text", ["v99=1", "a30", "a30=x", "a30=-1", "a30=nan", "a30=inf"])
def test_a_price_of_a_gpu_that_cannot_be_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--prices: .*(v99|a30)"):
        read_prices(f"l20=1,{text}")


def test_with_a_weight_the_dear_engine_is_used_less(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = ["--fleet", "2xa30+1xh100", "--rate", "5", "--seconds", "40", "--learner", "linear"]
    weights = "lodestar,lodestar:price_weight=0.3"
    command = ["simulate", *fleet, "--prices", "a30=1,h100=6", "--policy", weights]
    assert cli.main([*command, "--no-wall-time"]) == 0
    line = next(
        line for line in capsys.readouterr().out.split("\n") if line.startswith("price of an hour")
    )
    dear, cheap = (float(part.split()[-1]) for part in line.split(", "))
    assert cheap < 0.8 * dear <= 0.8 * 8.0
