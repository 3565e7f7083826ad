"""What a run would cost if an engine without requests cost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.gpus import GPUS, EngineSpec
from lodestar_fast.summary import Record


def read_prices(text: str) -> tuple[tuple[str, float], ...]:
    """`a30=1,h100=4`: an hour's price by GPU. Raises ConfigError."""
    prices: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        gpu, _, price = part.partition("=")
        if gpu not in GPUS:
            raise ConfigError(f"--prices: no GPU `{gpu}`; there are {', '.join(GPUS)}")
        try:
            prices[gpu] = float(price)
        except ValueError:
            prices[gpu] = -1.0
        if not 0 <= prices[gpu] < 1e9:
            raise ConfigError(f"--prices: {gpu}: `{price}` is not a number from 0")
    return tuple(prices.items())


def bill(
    records: Sequence[Record], specs: Sequence[EngineSpec], prices: Mapping[str, float], span: float
) -> float:
    """The price of an hour of the engines in use: each by the share of span (seconds) in which it
    had a request. specs: by slot."""
    busy = dict.fromkeys(range(len(specs)), 0.0)
    until = dict.fromkeys(busy, 0.0)
    for record in records:  # in the order of arrival
        if not record.instance or record.e2e is None:
            continue
        slot, start = int(record.instance), record.arrival
        end = min(start + record.e2e, span)
        busy[slot] += max(0.0, end - max(start, until[slot]))
        until[slot] = max(until[slot], end)
    total = sum(prices.get(specs[slot].gpu, 0.0) * seconds for slot, seconds in busy.items())
    return total / span if span else 0.0
