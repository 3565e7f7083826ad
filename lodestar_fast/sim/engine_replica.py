"""An engine model driven by the clock: one timer, set to the end of the running iteration.

Made by sim/engine_http, one for each engine; sim/engine_connection submits to it. It knows answers
only as something that takes tokens, and sockets not at all.

Time does not drift: an iteration begins at the computed end of the one before, however late the
timer was, so a busy machine catches up. The loop's timers tick in milliseconds; EARLY makes the
rounding fall to both sides.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Protocol

from lodestar_fast.clock import Clock
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.engine_events import Publisher, events_of
from lodestar_fast.sim.engine_metrics import EngineMetrics
from lodestar_fast.sim.engine_openai import Generation
from lodestar_fast.sim.gpus import EngineSpec

EARLY = 0.0005  # seconds; half a tick of the loop's timers


class Answer(Protocol):
    """Who waits for the tokens of a generation. The Replica sets rid, arrival and cached."""

    generation: Generation
    rid: int
    arrival: float
    cached: int

    def on_token(self, generated: int, finished: bool) -> None:
        """The generated-th token has come. Must not submit or cancel before it returns."""
        ...


class Replica:
    """One engine in real time, and who waits for its tokens.

    speedup: seconds of the engine in a second of the clock. publisher: of its KV events.
    """

    def __init__(
        self, engine: Engine, model: str, clock: Clock, loop: asyncio.AbstractEventLoop,
        speedup: float = 1.0, publisher: Publisher | None = None,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.spec: EngineSpec = engine.spec
        self.model = model
        self.metrics = EngineMetrics(engine, model)
        self.created = int(datetime.now(UTC).timestamp())
        self.loop = loop
        self._clock = clock
        self._speedup = speedup
        self._origin = clock.now()
        self._answers: dict[int, Answer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for = math.inf
        self._rids = 0
        self._publisher = publisher
        self._journal: list[int | tuple[int, int]] = []
        if publisher is not None:
            engine.pool.journal = self._journal

    def now(self) -> float:
        """The engine's time, in seconds since it started."""
        return (self._clock.now() - self._origin) * self._speedup

    def submit(self, answer: Answer) -> None:
        now = self.now()
        self._catch_up(now)
        self._rids += 1
        answer.rid, answer.arrival = self._rids, now
        what = answer.generation
        # An iteration may have been taken EARLY: then its successor starts after `now`.
        self.engine.submit(answer.rid, what.hashes, what.prompt_tokens, what.output_tokens, now)
        self._answers[answer.rid] = answer
        self._arm(now)

    def cancel(self, answer: Answer) -> None:
        if self._answers.pop(answer.rid, None) is not None:
            self.engine.cancel(answer.rid, self.now())

    def reset_prefix_cache(self) -> bool:
        """Empty the cache. False while requests hold blocks of it, as with vLLM."""
        self._catch_up(self.now())
        if not self.engine.pool.clear():
            return False
        if self._publisher is not None:
            self._publisher.send([{"type": "AllBlocksCleared"}], self.created + self.now())
        return True

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()

    def _on_timer(self) -> None:
        self._timer, self._timer_for = None, math.inf
        now = self.now()
        self._catch_up(now)
        self._arm(now)

    def _catch_up(self, now: float) -> None:
        """Hand out the tokens of all iterations that have ended."""
        engine, answers, limit = self.engine, self._answers, now + EARLY * self._speedup
        while (end := engine.next_time()) <= limit:
            for rid, generated, finished in engine.step(end):
                answer = answers[rid]
                if generated == 1:
                    self.metrics.ttft.observe(end - answer.arrival)
                    answer.cached = engine.cached_tokens(rid)
                if finished:
                    del answers[rid]
                    self.metrics.finished += 1
                    self.metrics.e2e.observe(end - answer.arrival)
                answer.on_token(generated, finished)
        if self._publisher is not None and self._journal:
            self._publisher.send(events_of(self._journal), self.created + now)
            self._journal.clear()

    def _arm(self, now: float) -> None:
        """Set the timer to the end of the running iteration."""
        end = self.engine.next_time()
        if end == self._timer_for:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_for = end
        if end < math.inf:
            self._timer = self.loop.call_later(max(0.0, end - now) / self._speedup, self._on_timer)
