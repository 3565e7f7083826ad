"""Active checks of one engine: does it answer, and which models does it serve.

GET /health each health_check_interval. An engine without that path (404, 405) is asked for its
models instead. GET /v1/models follows when an engine starts to answer, then each MODELS_EVERY
seconds.
"""

from __future__ import annotations

import asyncio

import msgspec

from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.instance import Instance
from lodestar_fast.proxy.probe import Probe, ProbeError

MODELS_EVERY = 10.0
_MODELS_BYTES = 1 << 20
# More than one engine serves; a bound, since each becomes an entry in a table of ours.
_MODELS_MOST = 1024


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


async def watch(fleet: Fleet, instance: Instance) -> None:
    """Check an instance until cancelled."""
    probe = Probe(instance.host, instance.port, max_bytes=_MODELS_BYTES)
    models_due = 0.0
    try:
        while True:
            started = fleet.now()
            config = fleet.config
            probe.authorize(fleet.engine_key)
            try:
                await check(probe, config.health_check_timeout)
            except ProbeError as e:
                instance.note_check(f"check_{e.kind}", str(e))
                models_due = 0.0
            else:
                instance.note_check("")
                if started >= models_due:
                    models_due = started + MODELS_EVERY
                    await ask_models(fleet, instance, probe, config.health_check_timeout)
            spent = fleet.now() - started
            await asyncio.sleep(max(config.health_check_interval - spent, 0.0))
    finally:
        probe.close()


async def check(probe: Probe, timeout: float) -> None:
    """One health check. Raises ProbeError, of kind `status` if the engine answers otherwise."""
    status, _ = await probe.get("/health", timeout)
    if status in (404, 405):
        status, _ = await probe.get("/v1/models", timeout)
    if not 200 <= status < 300:
        raise ProbeError("status", str(status))


async def ask_models(fleet: Fleet, instance: Instance, probe: Probe, timeout: float) -> None:
    """Read /v1/models. An engine that does not tell (no such path, its own key) stays unknown."""
    try:
        status, body = await probe.get("/v1/models", timeout)
    except ProbeError:
        return  # the next check says what is wrong
    cards = parse_models(body) if status == 200 else {}
    fleet.set_models(instance, cards)


def parse_models(body: bytes) -> dict[str, msgspec.Raw]:
    """id -> entry of an OpenAI model list; empty if the body is not one."""
    try:
        entries = msgspec.json.decode(body, type=_Models).data[:_MODELS_MOST]
        return {msgspec.json.decode(entry, type=_Card).id: entry.copy() for entry in entries}
    except msgspec.DecodeError:
        return {}
