"""What engines cost: patterns of their URLs, each with a price."""

from __future__ import annotations

import math
import re

from lodestar_fast.config import Config
from lodestar_fast.errors import ConfigError


class Prices:
    """Of what `fleet.engine_prices` says; an empty list: nothing has a price."""

    def __init__(self, entries: list[str]) -> None:
        """Raises ConfigError naming an entry that is not URL=PRICE."""
        self._known = [_entry(text) for text in entries]

    def of(self, url: str) -> float:
        """The price of the first pattern that fits. Of an engine that none fits it is the highest:
        one that was forgotten must not draw the requests of all others."""
        for pattern, price in self._known:
            if pattern.fullmatch(url):
                return price
        return max((price for _, price in self._known), default=0.0)


def _entry(text: str) -> tuple[re.Pattern[str], float]:
    pattern, _, price = text.rpartition("=")
    try:
        value = float(price)
    except ValueError:
        value = math.nan
    if not pattern or not 0 <= value < math.inf:
        raise ConfigError(
            f"fleet.engine_prices (--engine-prices): `{text}` is not URL=PRICE, a number from 0"
        )
    return re.compile(".*".join(map(re.escape, pattern.rstrip("/").split("*")))), value


def check(config: Config) -> None:
    """Raises ConfigError on prices that are none, or that are to count and are not there."""
    Prices(config.fleet.engine_prices)
    if config.routing.price_weight and not config.fleet.engine_prices:
        raise ConfigError("routing.price_weight (--price-weight): needs --engine-prices")
