"""Whether the learned policy may decide: compared with what comes true, and with its fallback.

Looked at once a tick. Two kinds of trouble:

* A fault shows without comparison. The policy raises; predicts no number of seconds; chooses what
  plain physics finds 1.6 times as costly as the fallback's (`regret`: needs no measurement, and
  none would come from a queue that swallows everything); is off by a factor of three in the median
  (`inaccurate`), of two if nothing was published for a minute (`stale`). Age alone is no fault: the
  speeds of the engines live in the core and stay current, and a frozen good model is within a
  percent of a fresh one.
* Being slower shows only against requests that the fallback decided. A canary has them. Where the
  learned policy decides everything there is no standing control group: 2 % of the requests would
  cost 0.1 to 1 % of the mean TTFT for good, to see what the faults do not. Instead its own
  decisions are split: where it deviates from the fallback it must do at least as well, measured
  against what physics promised the fallback, as where both agree. If not, it is suspected, and a
  quarter of the requests go to the fallback until both sides have been measured.

    trusted --- suspected ------> trial (3/4) ---- as good ---> trusted
    either  --- fault, slower --> demoted --- hold over, no fault --> trial (1/10)
    trial (1/10) -- as good ----> trusted      fault, slower --> demoted, for twice as long

What a decision costs others is in `regret` as the policy weighs it, and a request that it lets wait
for their sake, by its own forecast, is evidence for neither side. Healthy runs, 29 over eight
simulated cells, eleven of them near or beyond saturation: regret at most 0.13 (limit 0.47), median
error at most a factor of 2.2 (limit 3), never demoted.
"""

from __future__ import annotations

import logging
from collections import Counter
from math import log as ln
from math import sqrt
from typing import Any, Final

from lodestar_fast.core.evidence import Evidence
from lodestar_fast.core.modes import Guarded

log = logging.getLogger(__name__)

Arm = tuple[float, float, float, float]  # of Evidence: n, mean log ratio, its error, mean TTFT

TRUSTED, TRIAL, DEMOTED = "trusted", "trial", "demoted"
CAUSES: Final = ("raised", "absurd", "regret", "inaccurate", "stale", "slower")

OFTEN: Final = 0.1  # of the last 64 decisions or so
MOST_REGRET: Final = ln(1.6)
MOST_ERROR: Final = ln(3.0)
MOST_ERROR_STALE: Final = ln(2.0)
LEAST_WINDOW: Final = 64  # first tokens for a median
SLOWER: Final = ln(1.1)  # a difference that matters
SLIGHTLY: Final = ln(1.05)
SURE: Final = 3.5  # standard errors, for what is asked every second
LEAST_ARM: Final = 48  # first tokens of each side before they are compared
MOST_ARM: Final = 400  # of each side, after which a trial ends either way
ANEW: Final = 1000  # first tokens after which a comparison begins anew, to see changes
LONGEST_HOLD: Final = 3600.0  # seconds
CALM: Final = 10.0  # holds without a demotion after which the next one is short again
TRIAL_SHARE: Final = 0.1  # of the requests, after a demotion
SUSPECT_SHARE: Final = 0.75  # while only suspected


class Watchdog:
    """Judges a Guarded policy. hold: seconds of the first demotion; enabled False: only watches."""

    def __init__(self, policy: Guarded, hold: float = 30.0, enabled: bool = True) -> None:
        self.evidence = Evidence()
        self.state = TRUSTED
        self.cause = ""  # of the last demotion, one of CAUSES
        self.why = ""  # of the last change of state, for people
        self.demotions: Counter[str] = Counter()
        self._policy = policy
        self._enabled = enabled
        self._base = hold
        self._drifts = 0  # as last logged
        self.reset()

    def reset(self) -> None:
        """Trust the policy, on an operator's word."""
        self.state, self.why = TRUSTED, ""
        self._hold = self._quiet = self._base
        self._until = self._quiet_until = float("-inf")
        self._trusted_since: float | None = None
        self._suspected = False
        self._forget()

    @property
    def limit(self) -> float:
        """Share of the requests that the learned policy may decide at most."""
        if self.state == TRUSTED:
            return 1.0
        return 0.0 if self.state == DEMOTED else SUSPECT_SHARE if self._suspected else TRIAL_SHARE

    def look(self, now: float, stale: bool = False, shadow: bool = False) -> None:
        """Judge by what was seen up to now (seconds).

        stale: nothing was published for long. shadow: the learned policy decides nothing anyway.
        """
        if self._trusted_since is None:
            self._trusted_since = now
        fault = self._fault(stale)
        drifts = self.evidence.fleet_drifts + self.evidence.engine_drifts
        if drifts != self._drifts:
            self._drifts = drifts
            log.info("predictions drift: %s", self._drifted())
        if not self._enabled:
            return
        if self.state == DEMOTED:
            if now >= self._until and not fault and self.evidence.window >= LEAST_WINDOW:
                # In the shadow there is nothing to try.
                state = TRUSTED if shadow else TRIAL
                self._trusted_since = now
                self._enter(state, f"no fault for {self._window()}; {state} again")
        elif fault:
            self._demote(now, *fault)
        elif self.state == TRIAL:
            self._try(now)
        else:
            self._compare(now)

    def _fault(self, stale: bool) -> tuple[str, str] | None:
        """Cause and text of what needs no comparison."""
        policy, error = self._policy, self.evidence.error
        if policy.raised > OFTEN:
            return "raised", f"it raised: {policy.last_error}"
        if policy.absurd > OFTEN:
            return "absurd", "it predicts no number of seconds"
        if policy.regret > MOST_REGRET:
            return "regret", (
                f"it chooses what physics finds {factor(policy.regret)} as costly as the fallback's"
            )
        if self.evidence.window >= LEAST_WINDOW:
            seen = f"{n} verified ones" if (n := self.evidence.verified) else self._window()
            text = f"predictions are off by {factor(error)} in the median of {seen}"
            if error > MOST_ERROR:
                return "inaccurate", text
            if stale and error > MOST_ERROR_STALE:
                return "stale", text + ", and nothing new is learned"
        return None

    def _compare(self, now: float) -> None:
        """While trusted: against the canary's other side if there is one, else against itself."""
        assert self._trusted_since is not None
        if now - self._trusted_since > CALM * self._hold:
            self._hold = self._base
        seen = self.evidence
        learned, control = seen.learned(), seen.control()
        off, error = difference(learned, control)
        if min(learned[0], control[0]) >= LEAST_ARM and off - SURE * error > SLIGHTLY:
            self._demote(now, "slower", self._slower(off))
        elif now >= self._quiet_until and not control[0]:
            agreed, deviated = seen.agreed(), seen.deviated()
            off, error = difference(deviated, agreed)
            if min(agreed[0], deviated[0]) >= LEAST_ARM and off > max(SLOWER, SURE * error):
                self._suspected = True
                self._enter(TRIAL, f"where it deviates from the fallback it does {factor(off)}")
        if learned[0] + control[0] >= ANEW:
            seen.compare_anew()

    def _try(self, now: float) -> None:
        """In a trial: until both sides have been measured."""
        learned, control = self.evidence.learned(), self.evidence.control()
        least = min(learned[0], control[0])
        if least < LEAST_ARM:
            return
        off, error = difference(learned, control)
        if off > SLOWER and (off > 2.5 * error or least >= MOST_ARM):
            self._demote(now, "slower", self._slower(off))
        elif off + error < SLOWER or least >= MOST_ARM:
            if self._suspected:
                self._quiet_until = now + self._quiet
                self._quiet = min(2 * self._quiet, LONGEST_HOLD)
            self._suspected = False
            self._trusted_since = now
            self._enter(TRUSTED, f"as quick as the fallback or quicker ({factor(off)}): it decides")

    def _demote(self, now: float, cause: str, text: str) -> None:
        self.cause = cause
        self.demotions[cause] += 1
        self._until = now + self._hold
        text = f"{text}; the fallback decides for {self._hold:.0f} s at least"
        self._hold = min(2 * self._hold, LONGEST_HOLD)
        self._suspected = False
        self._enter(DEMOTED, text)

    def _enter(self, state: str, why: str) -> None:
        level = logging.WARNING if state == DEMOTED else logging.INFO
        cause = f" (watchdog_{self.cause})" if state == DEMOTED else ""
        log.log(level, "the learned policy is %s%s: %s", state, cause, why)
        self.state, self.why = state, why
        self._forget()

    def _forget(self) -> None:
        """What was seen before says nothing of what comes."""
        self.evidence.forget()
        self._policy.forget()

    def _drifted(self) -> str:
        seen = self.evidence
        if seen.drifted < -1:
            return ""
        where = "the fleet" if seen.drifted < 0 else f"slot {seen.drifted}"
        return f"{where} takes {'longer' if seen.slower else 'less'} than predicted"

    def _window(self) -> str:
        return f"{self.evidence.window} first tokens"

    def _slower(self, off: float) -> str:
        return f"its requests take {factor(off)} as long as the fallback's"

    def status(self, now: float) -> dict[str, Any]:
        """For /admin/model. Ratios as factors; times in seconds."""
        seen = self.evidence
        return {
            "enabled": self._enabled,
            "state": self.state,
            "cause": self.cause,
            "why": self.why,
            "hold_left": max(0.0, self._until - now) if self.state == DEMOTED else 0.0,
            "next_hold": self._hold,
            "demotions": {cause: self.demotions[cause] for cause in CAUSES},
            "median_error": known(seen.error),
            "verified": seen.verified,
            "drift": {
                "fleet": seen.fleet_drifts,
                "engine": seen.engine_drifts,
                "last": self._drifted(),
            },
            "regret": self._policy.regret,
            "absurd": self._policy.absurd,
            "raised": self._policy.raised,
            "learned": arm(seen.learned()),
            "control": arm(seen.control()),
        }


def difference(a: Arm, b: Arm) -> tuple[float, float]:
    """a - b of the mean log ratios, and its standard error; 0 and infinity if one is empty."""
    if not (a[0] and b[0]):
        return 0.0, float("inf")
    return a[1] - b[1], sqrt(a[2] ** 2 + b[2] ** 2)


def factor(logarithm: float) -> str:
    """`x1.25`."""
    return f"x{2.718281828459045**logarithm:.2f}"


def known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if value == value else None


def arm(values: Arm) -> dict[str, Any]:
    n, mean, error, ttft = values
    return {
        "requests": round(n, 1),
        "log_ratio": known(mean),
        "standard_error": known(error),
        "ttft_mean": known(ttft),
    }
