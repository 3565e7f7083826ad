"""What the page on the admin port shows: GET /admin/state, and a quarter of an hour behind it.

Every five seconds the counters that others keep anyway are read and their differences become one
point of a bounded series; a state is made when somebody asks, at most twice a second, however many
ask. Both go through the fleet in pieces, so that requests are never held up for long. Nothing is
paid per request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from lodestar_fast import __version__

SCHEMA: Final = 1
STEP: Final = 5.0  # seconds between points
POINTS: Final = 180  # a quarter of an hour
WINDOW: Final = 12  # steps over which an instance's share of the requests is taken
FRESH: Final = 0.5  # seconds for which a state is given again
SLOW: Final = 1.5  # times the fleet's median: to be shown as slow
LEAST_LABELS: Final = 8  # first tokens before a speed is believed
_PIECE: Final = 32  # instances read at a time, some 10 us each


class Overview:
    """Of one proxy. Owned by its event loop."""

    def __init__(self, proxy: Any) -> None:
        """proxy: has context, router, fleet, governor (may be None), clock, model_status(),
        complain()."""
        self._proxy = proxy
        self._start = proxy.clock.now()
        self._points: deque[dict[str, Any]] = deque(maxlen=POINTS)
        self._numbered = 0  # points made since the start
        self._before = self._totals()
        self._counts: dict[int, int] = {}  # slot -> first tokens, as last read
        self._decided: deque[dict[int, int]] = deque(maxlen=WINDOW)  # slot -> decisions
        self._made: dict[str, Any] = {}
        self._made_at = float("-inf")
        self._making = asyncio.Lock()

    async def keep(self) -> None:
        """Make a point every STEP seconds, for as long as the proxy runs."""
        while True:
            await asyncio.sleep(STEP)
            try:
                await self.record()
            except Exception as e:
                self._proxy.complain("overview", e)

    # -- the series --

    async def record(self) -> None:
        """Make the next point from what was counted since the last one."""
        router = self._proxy.router
        times: list[float] = []
        decided: dict[int, int] = {}
        counts: dict[int, int] = {}
        for number, instance in enumerate(list(self._proxy.fleet.all)):
            if number % _PIECE == _PIECE - 1:
                await asyncio.sleep(0)
            slot = instance.slot
            if slot not in self._proxy.context.instances:
                continue  # removed while we slept
            about = router.instance(slot)
            counts[slot] = sum(about["ttft"][1])
            decided[slot] = about["decisions"]
            # A slot may have been given to another instance, which counts from 0.
            new = counts[slot] - self._counts.get(slot, 0)
            if new > 0:
                times += router.ring(slot, "ttft")[:new]
        self._counts = counts
        self._decided.append(decided)
        now, before = self._totals(), self._before
        self._before = now
        self._numbered += 1
        self._points.append(_point(self._numbered, before, now, times))

    def _totals(self) -> dict[str, Any]:
        """Counters since the start, flat; two of them make a point."""
        proxy = self._proxy
        stats = proxy.router.stats()
        _, error_counts, error_sum = stats["prediction_error"]
        policy = proxy.governor.policy if proxy.governor else None
        outcomes: dict[str, int] = {}
        for (_, _, outcome), n in proxy.context.counters.snapshot()["requests"].items():
            outcomes[outcome] = outcomes.get(outcome, 0) + n
        return {
            "at": proxy.clock.now(),
            "reasons": stats["decisions"],
            "outcomes": outcomes,
            "errors": sum(error_counts),
            "error_seconds": error_sum,
            "asked": policy.asked if policy else 0,
            "learned_seconds": policy.predicted_learned if policy else 0.0,
            "fallback_seconds": policy.predicted_fallback if policy else 0.0,
            "believed": stats["predicted_hit_tokens"],
            "delivered": stats["delivered_hit_tokens"],
            "evictions": stats["index_evictions"],
            "index_bytes": stats["index_bytes"],
            "version": stats["weights_version"],
        }

    # -- the state --

    async def state(self, since: int = 0) -> dict[str, Any]:
        """All of it, JSON-ready. since: number of the last point the asker has; 0: none."""
        async with self._making:
            if self._proxy.clock.now() >= self._made_at + FRESH:
                self._made = await self._make()
                self._made_at = self._proxy.clock.now()
        # One that is ahead of us has talked to the process before this one.
        wanted = since if since <= self._numbered else 0
        points = [point for point in self._points if point["n"] > wanted]
        return {**self._made, "series": {"step": STEP, "last": self._numbered, "points": points}}

    async def _make(self) -> dict[str, Any]:
        proxy = self._proxy
        now = proxy.clock.now()
        stats, context = proxy.router.stats(), proxy.context
        seen = proxy.governor.watchdog.evidence.recent() if proxy.governor else []
        return {
            "schema": SCHEMA,
            "version": __version__,
            "policy": proxy.router.policy.name,
            "now": now,
            "uptime": now - self._start,
            "draining": context.draining,
            "inflight": context.inflight,
            "queued": context.queued,
            "connections": len(context.connections),
            "model": proxy.model_status(),
            "index": {
                "bytes": stats["index_bytes"],
                "budget_bytes": stats["index_budget_bytes"],
                "evictions": stats["index_evictions"],
                "believed_tokens": stats["predicted_hit_tokens"],
                "delivered_tokens": stats["delivered_hit_tokens"],
            },
            "reasons": stats["decisions"],
            "pairs": [[_ms(predicted), _ms(ttft), reason] for predicted, ttft, reason in seen],
            "instances": await self._instances(),
        }

    async def _instances(self) -> list[dict[str, Any]]:
        proxy, rows = self._proxy, []
        before = self._decided[0] if self._decided else {}
        for number, instance in enumerate(list(proxy.fleet.all)):
            if number % _PIECE == _PIECE - 1:
                await asyncio.sleep(0)
            slot = instance.slot
            if slot not in proxy.context.instances:
                continue
            about = proxy.router.instance(slot)
            times = sorted(proxy.router.ring(slot, "ttft"))
            earlier, decisions = before.get(slot, 0), about["decisions"]
            told = about["reported"]
            rows.append(
                {
                    "id": instance.id,
                    "url": instance.url,
                    "models": instance.models,
                    "health": _health(instance),
                    "draining": instance.draining,
                    "routable": instance.routable,
                    "inflight": about["inflight"],
                    "prefill": about["prefill_requests"],
                    "decode": about["decode_requests"],
                    "queue_tokens": about["prefill_own_tokens"],
                    "running": about["reported_running"] if told else None,
                    "waiting": about["reported_waiting"] if told else None,
                    "kv_usage": about["reported_kv_usage"] if told else None,
                    "ttft_ms": _ms(sum(times) / len(times)) if times else None,
                    "ttft_p99_ms": _ms(percentile(times, 0.99)) if times else None,
                    "decisions": decisions,
                    # A slot that another instance had counts from 0 again.
                    "recent": decisions - earlier if decisions >= earlier else decisions,
                    "us_per_token": round(about["speed"] * 1e6, 2),
                    "speed_labels": about["speed_labels"],
                    "failed": about["failed"] + about["timeout"],
                    "ejections": instance.ejections,
                }
            )
        _compare(rows)
        return rows


def _compare(rows: Sequence[dict[str, Any]]) -> None:
    """Enter each row's share of the recent decisions and its speed beside the fleet's."""
    total = sum(row["recent"] for row in rows)
    speeds = sorted(row["us_per_token"] for row in rows if row["speed_labels"] >= LEAST_LABELS)
    # Of two, the quicker one is the measure.
    median = speeds[(len(speeds) - 1) // 2] if speeds else 0.0
    for row in rows:
        row["share"] = round(row.pop("recent") / total, 4) if total else 0.0
        known = median > 0 and row["speed_labels"] >= LEAST_LABELS
        row["times_median"] = round(row["us_per_token"] / median, 2) if known else None
        row["slow"] = known and row["us_per_token"] >= SLOW * median


def _health(instance: Any) -> str:
    """One word, the worst that is so."""
    if instance.draining:
        return "draining"
    if not instance.answers:
        return "down"
    if not instance.healthy:
        return "ejected"
    return "half-open" if instance.half_open else "up"


def _point(
    number: int, before: dict[str, Any], now: dict[str, Any], times: list[float]
) -> dict[str, Any]:
    """One point of the series: what came between two readings; times: its first tokens."""
    times.sort()
    asked = now["asked"] - before["asked"]
    errors = now["errors"] - before["errors"]
    gained = {
        key: now[key] - before[key]
        for key in ("learned_seconds", "fallback_seconds", "error_seconds")
    }
    return {
        "n": number,
        "at": round(now["at"], 3),
        "seconds": round(now["at"] - before["at"], 3),
        "reasons": _difference(now["reasons"], before["reasons"]),
        "outcomes": _difference(now["outcomes"], before["outcomes"]),
        "ttft_ms": _ms(sum(times) / len(times)) if times else None,
        "ttft_p99_ms": _ms(percentile(times, 0.99)) if times else None,
        "learned_ms": _ms(gained["learned_seconds"] / asked) if asked else None,
        "fallback_ms": _ms(gained["fallback_seconds"] / asked) if asked else None,
        "error_ms": _ms(gained["error_seconds"] / errors) if errors else None,
        "believed_tokens": now["believed"] - before["believed"],
        "delivered_tokens": now["delivered"] - before["delivered"],
        "evictions": now["evictions"] - before["evictions"],
        "index_bytes": now["index_bytes"],
        "version": now["version"],
    }


def _difference(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """What was counted in between, without what was not."""
    return {key: n - before.get(key, 0) for key, n in now.items() if n != before.get(key, 0)}


def percentile(ordered: Sequence[float], q: float) -> float:
    """The nearest rank. ordered: not empty."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
