"""What happens to a simulated fleet during a run: the events file of `lodestar simulate`.

JSON lines, blank ones and those that begin with # left out; each has `t`, in seconds from the
start, and one thing that happens then:

    {"t": 150, "slot": 3, "slow": 3.0}   iterations of slot 3 take 3 times as long; 1.0 ends it
    {"t": 200, "crash": 2}               slot 2 stops; its requests fail, its cache is lost
    {"t": 230, "drain": 1}               slot 1 gets no new requests
    {"t": 240, "up": 2}                  a crashed or draining slot takes requests (again)
    {"t": 260, "join": "a30"}            an engine joins, as the next slot
    {"t": 300, "replace": 1, "gpu": "h100"}   slot 1 is another engine now, with an empty cache;
                                         the requests that it had fail
    {"t": 0, "scrape_s": 1.0}            seconds between scrapes of the engines
    {"t": 0, "scrape_loss": 0.2}         share of scrapes that get no answer
    {"t": 100, "freeze": 0}              slot 0 reports from now on what it reports now
    {"t": 160, "thaw": 0}                and again what is so

Lines may stand in any order; those of equal `t` happen in the order of the file. Slots count from 0
in the order of the fleet. Whether a slot exists, is up or is down is checked before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.gpus import MODEL, EngineSpec, spec
from lodestar_fast.sim.run import Simulation, most_engines

TELEMETRY = ("scrape_s", "scrape_loss", "freeze", "thaw")
ACTIONS = ("slow", "crash", "drain", "up", "join", "replace", *TELEMETRY)
OTHER_FIELDS = {"slow": {"slot"}, "replace": {"gpu"}}
ON_A_SLOT = ("crash", "drain", "up", "freeze", "thaw")  # those whose value is the slot

Call = tuple[float, Callable[[Simulation], None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One line, checked by itself. value: a factor, seconds, a share or a GPU; slot -1: none."""

    time: float
    action: str
    slot: int
    value: Any
    where: str  # file and line, for errors


def read_events(
    path: str | Path,
    fleet: Sequence[EngineSpec],
    factors: Mapping[str, float] | None = None,
    model: str = MODEL,
) -> list[Call]:
    """The calls a Simulation of that fleet is to be given.

    factors, model: of engines that join, as the fleet has them. Raises ConfigError naming the file,
    the line and the field.
    """
    faults = read_faults(path, fleet, model)
    return [(fault.time, _call(fault, factors or {})) for fault in faults]


def read_faults(path: str | Path, fleet: Sequence[EngineSpec], model: str = MODEL) -> list[Fault]:
    """What happens, in order. Raises ConfigError, also if it cannot happen to that fleet."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as e:
        raise ConfigError(f"--events: {path}: {e.strerror}") from None
    faults = [
        _parse(line, f"{path}: line {number}", model)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith(b"#")
    ]
    faults.sort(key=lambda fault: fault.time)
    _check(faults, len(fleet))
    return faults


def _parse(line: bytes, where: str, model: str) -> Fault:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{where}: not JSON: {e}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: not a JSON object")
    named = [action for action in ACTIONS if action in row]
    if len(named) != 1:
        has = f"has {' and '.join(f'`{name}`' for name in named)}" if named else "says not what"
        raise ConfigError(f"{where}: {has} happens: one of {', '.join(ACTIONS)}")
    (action,) = named
    extra = row.keys() - {"t", action} - OTHER_FIELDS.get(action, set())
    if extra:
        raise ConfigError(f"{where}: field `{min(extra)}`: unknown with `{action}`")
    time = _number(row, "t", where, 0)
    slot, value = -1, row[action]
    if action == "slow":
        slot, value = _slot(row, "slot", where), _number(row, "slow", where, 0, open_end=True)
    elif action in ON_A_SLOT:
        slot = _slot(row, action, where)
    elif action == "join":
        value = _gpu(row, "join", where, model)
    elif action == "replace":
        slot, value = _slot(row, "replace", where), _gpu(row, "gpu", where, model)
    elif action == "scrape_s":
        value = _number(row, action, where, 0, open_end=True)
    else:
        value = _number(row, action, where, 0)
        if value > 1:
            raise ConfigError(f"{where}: field `{action}`: a share is at most 1, got {value:g}")
    return Fault(time, action, slot, value, where)


def _number(
    row: dict[str, Any], field: str, where: str, least: float, open_end: bool = False
) -> float:
    """A finite number of at least `least`, or above it with open_end."""
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if value > least or (value == least and not open_end):
            return float(value)
    wanted = f"above {least:g}" if open_end else f"of at least {least:g}"
    raise ConfigError(f"{where}: field `{field}`: not a number {wanted}")


def _slot(row: dict[str, Any], field: str, where: str) -> int:
    value = row.get(field)
    if type(value) is not int or value < 0:
        raise ConfigError(f"{where}: field `{field}`: not a slot, a whole number from 0")
    return value


def _gpu(row: dict[str, Any], field: str, where: str, model: str) -> EngineSpec:
    name = row.get(field)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: field `{field}`: not the name of a GPU")
    try:
        return spec(name, model=model)
    except ConfigError as e:
        raise ConfigError(f"{where}: field `{field}`: {e}") from None


def _check(faults: Sequence[Fault], engines: int) -> None:
    """Whether all can happen, in this order, to a fleet of that many. Raises ConfigError."""
    most = most_engines(engines)
    down: set[int] = set()
    draining: set[int] = set()
    for fault in faults:
        slot, action = fault.slot, fault.action
        field = f"{fault.where}: field `{'slot' if action == 'slow' else action}`"
        if action == "join":
            if engines == most:
                raise ConfigError(f"{field}: a fleet of this size may grow to {most} engines")
            engines += 1
        elif slot >= engines:
            raise ConfigError(
                f"{field}: no slot {slot} at t = {fault.time:g}; there are 0 to {engines - 1}"
            )
        elif slot in down and action != "up":
            raise ConfigError(f"{field}: slot {slot} is down at t = {fault.time:g}")
        elif action == "up":
            if slot not in down | draining:
                raise ConfigError(f"{field}: slot {slot} is up already at t = {fault.time:g}")
            down.discard(slot)
            draining.discard(slot)
        elif action == "crash":
            down.add(slot)
        elif action == "drain":
            draining.add(slot)


def _call(fault: Fault, factors: Mapping[str, float]) -> Callable[[Simulation], None]:
    slot, value = fault.slot, fault.value

    def make(run: Simulation) -> None:
        match fault.action:
            case "slow":
                run.engines[slot].slow = value
            case "crash":
                run.crash(slot)
            case "drain":
                run.drain(slot)
            case "up":
                run.up(slot)
            case "join":
                run.add(value.scaled(**factors))
            case "replace":
                run.replace(slot, value.scaled(**factors))
            case "scrape_s":
                run.scrape_seconds = value
            case "scrape_loss":
                run.scrape_loss = value
            case "freeze":
                run.freeze(slot)
            case "thaw":
                run.thaw(slot)

    return make
