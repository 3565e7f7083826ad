"""One engine, and how well it does.

Two sources judge it. *Checks* (health.py): health_failures bad ones in a row take it out, one good
one brings it back. *Requests* (exchange): EJECT_AFTER failures in a row eject it, for
eject_seconds, and for twice as long each time it recurs. An ejection ends with the first good check
after its hold. If connections were refused, a good check shows that this is over, so the first such
ejection ends with it: an engine that was restarted is back at once, one that flaps is not.

Then the instance is *half-open*: it gets one request at a time until one of them does well; one
more failure ejects it again. From there, and when its process was started again, it starts
*slowly*: at most `allowance` requests at a time may wait for their first token, one more with each
that does well. So what it may be asked doubles in the time of a first token, and an empty engine
with a cold cache is not buried under all that the others cannot take.

An engine from which bytes came a moment ago is busy, not broken: checks and first bytes that take
too long do not count against it then. An engine that refuses checks and sends nothing is gone,
though its connections may stay open: vLLM leaves them hanging after SIGTERM. One that refuses
checks and goes on sending is being shut down, and finishes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from lodestar_fast.proxy.fleet import Fleet

log = logging.getLogger(__name__)

# Failed requests in a row. HAProxy and Envoy eject after 5 to 10; with retries on other engines a
# dead one costs each request it sees a round trip, so a little sooner.
EJECT_AFTER = 3
HOLD_GROWTH = 10  # the longest hold, in eject_seconds
RESTARTED = 2  # the first allowance of an engine whose process was started again
SLOW_START = 32  # the last one: an engine that did so well is like the others
# Kinds of note_failure() that are no sign of a broken engine: it sheds load, or the task was long.
SOFT = frozenset({"busy", "request_timeout"})
# Kinds that are none while the engine answers others.
LATE = frozenset({"first_byte_timeout", "check_timeout"})


def opaque_id(url: str) -> str:
    """What clients may see of an engine: stable over restarts, and no address."""
    return hashlib.blake2b(url.encode(), digest_size=6).hexdigest()


class Instance:
    """One engine. The attributes are for everyone to read; only this module and Fleet write
    them."""

    def __init__(self, fleet: Fleet, slot: int, url: str, host: str, port: int) -> None:
        self.slot = slot
        self.id = opaque_id(url)
        self.url = url
        self.host = host
        self.port = port
        self.pool: Any = None
        self.models: tuple[str, ...] = ()  # ids it serves; empty: not known, any is tried
        self.cards: dict[str, msgspec.Raw] = {}  # id -> its entry in the engine's /v1/models
        self.draining = False
        self.answers = False  # what the checks say
        self.healthy = False  # it answers, and is not ejected
        self.allowance = 0  # requests at a time that may wait for a first token; 0: any number
        self.routable = False
        self.failures: dict[str, int] = {}  # since the start, by kind
        self.ejections = 0
        self.reports = 0  # load reports read
        # What they say of its process: its start, seconds since 1970, 0 if it does not tell; and
        # the prompt tokens it has ever had.
        self.started = 0.0
        self.prompted = 0.0
        self.losses = 0  # of all it had cached, since it was added
        self._fleet = fleet
        self._trials = 0  # requests sent under an allowance that wait for their first token
        self._misses = 0  # checks failed in a row
        self._strikes = 0  # requests failed in a row
        self._ejected = False
        self._until = 0.0  # an ejection holds until then
        self._recurs = 0  # ejections without a calm time between
        self._refused = False  # nothing listened there since the last good check
        self._refused_since: float | None = None  # all checks since then were refused
        self._silent_since_start = True
        self._known = False  # it has answered a check
        self._tasks: list[asyncio.Task[None]] = []

    # -- requests --

    def note_success(self) -> None:
        """A request was answered."""
        self._strikes = 0

    def note_failure(self, kind: str) -> None:
        """A request failed through the instance's fault. kind: a bounded set, a metric label."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
        if kind in SOFT or (kind in LATE and self._lively()):
            return
        self._strikes += 1
        if self._ejected or (self._strikes < EJECT_AFTER and not self.half_open):
            return
        hold = self._hold() if self._recurs or kind != "connect" else 0.0
        self._ejected = True
        self._recurs += 1
        self.ejections += 1
        self._until = self._fleet.now() + hold
        log.warning("engine %s %s: ejected for %g s: %s", self.id, self.url, hold, kind)
        self._allow(0)
        self._fleet.refresh()

    def note_trial(self, under_way: bool, well: bool = False) -> None:
        """Under an allowance, it was sent a request; or that has its first token, or has ended.

        well: as it should; the allowance grows.
        """
        room = self.has_room
        self._trials += 1 if under_way else -1
        if well and self.allowance:
            if self.half_open:
                log.info("engine %s %s: does well again", self.id, self.url)
            self._strikes = 0
            self._allow(self.allowance + 1 if self.allowance < SLOW_START else 0)
        if self.has_room != room:
            self._fleet.refresh()

    @property
    def has_room(self) -> bool:
        """Its allowance is not used up."""
        return not self.allowance or self._trials < self.allowance

    @property
    def half_open(self) -> bool:
        """It was ejected, and has not done well since."""
        return self.allowance == 1

    def _allow(self, requests: int) -> None:
        self.allowance = requests
        self._fleet.on_trial(self, requests > 0)

    def _hold(self) -> float:
        """Seconds that the next ejection holds."""
        base = self._fleet.config.eject_seconds
        return float(min(base * 2 ** min(self._recurs, 10), base * HOLD_GROWTH))

    def _lively(self) -> bool:
        """Whether it sent something to anyone within the time that a check may take."""
        config = self._fleet.config
        return bool(self.pool.heard_at > self._fleet.now() - config.health_check_timeout)

    # -- checks --

    def note_check(self, fault: str, text: str = "") -> None:
        """A health check's outcome. fault: its kind, a metric label; empty: it passed."""
        if fault:
            self._note_miss(fault, text)
        else:
            self._note_answer()
        if self.judge() != self.healthy:  # seldom; a refresh looks at every instance
            self._fleet.refresh()

    def _note_miss(self, fault: str, text: str) -> None:
        self.failures[fault] = self.failures.get(fault, 0) + 1
        if fault in LATE and self._lively():
            return
        self._misses += 1
        self._note_refusal(fault == "check_refused")
        if self.answers and self._misses >= self._fleet.config.health_failures:
            self.answers = False
            log.warning("engine %s %s: out: %s", self.id, self.url, text or fault)
        elif self._silent_since_start:
            self._silent_since_start = False
            log.warning("engine %s %s: not there yet: %s", self.id, self.url, text or fault)

    def _note_refusal(self, refused: bool) -> None:
        if not refused:
            self._refused_since = None
            return
        self._refused = True
        now = self._fleet.now()
        if self._refused_since is None:
            self._refused_since = now
        grace = self._fleet.config.gone_grace
        if now >= self._refused_since + grace:
            self._fleet.give_up(self, now - grace)

    def _note_answer(self) -> None:
        now = self._fleet.now()
        self._misses = 0
        self._refused_since = None
        self._silent_since_start = False
        if self._known and (self._refused or not self.answers):
            self._allow(RESTARTED)
        self._known = True
        if not self.answers:
            self.answers = True
            log.info("engine %s %s: answers", self.id, self.url)
        if self._refused:  # its process had gone, and its cache with it
            self._refused = False
            self.forget()
        if self._ejected and now >= self._until:
            self._ejected = False
            self._strikes = 0
            log.info("engine %s %s: half-open", self.id, self.url)
            self._allow(1)
        elif not self._ejected and now >= self._until + self._calm():
            self._recurs = 0

    # -- its cache --

    def forget(self) -> None:
        """It has lost all it had cached."""
        self.losses += 1
        self._fleet.router.forget_prefixes(self.slot)

    def note_process(self, started: float, prompted: float | None) -> bool:
        """What a page of its metrics says; if that is of a new process, its cache is lost."""
        restarted = not _same_process((self.started, self.prompted), (started, prompted))
        self.started = started or self.started
        self.prompted = self.prompted if prompted is None else prompted
        if restarted:
            log.info("engine %s %s: restarted", self.id, self.url)
            self.forget()
        return restarted

    def same_process(self, started: float, prompted: float) -> bool:
        """Whether it is still the process that once said this. If it has said nothing yet it is
        taken to be, and the first page decides."""
        if self.reports:
            return _same_process((started, prompted), (self.started, self.prompted))
        self.started, self.prompted = started, prompted
        return True

    def _calm(self) -> float:
        """Seconds after an ejection's hold that make it the past."""
        return float(self._fleet.config.eject_seconds * HOLD_GROWTH)

    def judge(self) -> bool:
        """Whether it is healthy, as the checks and the requests have it."""
        return self.answers and not self._ejected


def _same_process(before: tuple[float, float], now: tuple[float, float | None]) -> bool:
    """By its start, 0 if untold; else its prompt tokens, which can only grow, None if untold."""
    if before[0] and now[0]:
        return abs(before[0] - now[0]) < 1.0
    return now[1] is None or now[1] >= before[1]
