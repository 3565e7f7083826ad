"""What another policy would have given, estimated from a log of decisions.

For each decision in the log: r, the reward (rewards.py) of what was measured with the chosen
candidate a; p, the probability with which each was to be chosen; pi, that of the other policy,
asked about the same candidates; q, the reward of each candidate's predicted TTFT (of the model;
plain physics where there was none), with the log's mean time from first token to end after it.

    w     = pi(a) / p(a)
    IPS   = mean of w r                                         (Horvitz and Thompson 1952)
    SNIPS = sum of w r / sum of w                               (Swaminathan and Joachims 2015)
    DR    = mean of sum over i of pi(i) q(i) + w (r - q(a))     (Dudik, Langford and Li 2011)

What they estimate: the mean reward if each decision *alone* had been the other policy's, in the
situations of this log. Had it decided all along, queues and caches would be others; `simulate`
plays that. Where pi chooses what p never would, the log says nothing, and the answer is a refusal.

Intervals: 95 %, by leaving out one of 20 consecutive parts of the log at a time (jackknife), since
neighbouring requests share queues and are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lodestar_fast import features
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.core.rerun import RERUN, Scene
from lodestar_fast.decisions.rewards import DEFAULT, REWARDS, Measured, Reward, Weights
from lodestar_fast.decisions.schema import Row
from lodestar_fast.errors import ConfigError

LEARNED: Final = "lodestar"
KNOWN: Final = sorted(RERUN | {LEARNED})
OWN_SECONDS: Final = features.INDEX["own_seconds"]
PARTS: Final = 20
QUANTILE: Final = 2.093  # Student's t, 97.5 %, PARTS - 1 degrees of freedom
MOST_UNSUPPORTED: Final = 0.05  # of the other policy's choices; more is a refusal
LEAST_EFFECTIVE: Final = 50.0  # decisions; with fewer an interval would be a guess

Odds = Callable[[Row], list[float]]


class Range(NamedTuple):
    """Of a mean reward, in the unit in which it is shown."""

    mean: float
    low: float
    high: float


@dataclass
class Estimate:
    """Of one policy. refusal: why there is none; then the estimates are None."""

    policy: str
    decisions: int = 0
    unsupported: float = 0.0  # share of its choices
    effective: float = 0.0  # sample size: (sum of w)^2 / sum of w^2
    modelled: float = 0.0  # share of the decisions whose q is the model's
    refusal: str = ""
    ips: Range | None = None
    snips: Range | None = None
    dr: Range | None = None
    logged: Range | None = None  # what the same decisions gave


@dataclass
class Usable:
    """The decisions of a log that can be learned from, and how many cannot, by why."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def whole(self) -> Usable:
        """Those whose answers came to their end: one that broke off was not quick."""
        done = [row for row in self.rows if row["outcome"]["event"] == "done"]
        more = Counter({"answer broke off": len(self.rows) - len(done)})
        return Usable(done, self.left_out + more)


def usable(rows: Iterable[Row]) -> Usable:
    out = Usable()
    for row in rows:
        outcome = row["outcome"]
        odds = [c["odds"] for c in row["candidates"]]
        if outcome is None:
            out.left_out["no outcome"] += 1
        elif not row["stream"]:
            out.left_out["not streamed: no first token to measure"] += 1
        elif outcome["ttft"] is None:
            out.left_out["failed or left before a first token"] += 1
        elif row["candidates_total"] > len(odds):
            out.left_out["more candidates than were kept"] += 1
        elif None in odds or not odds[row["chosen"]]:
            out.left_out["odds of the choice not known"] += 1
        else:
            out.rows.append(row)
    out.rows.sort(key=lambda row: row["t"])  # a log is in the order of ends
    return out


def odds_of(name: str) -> Odds:
    """How a policy would choose. Raises ConfigError if a log cannot tell."""
    scene = Scene()
    if name == LEARNED:
        lmetric = POLICIES["lmetric"]()
        return lambda row: learned_odds(row, scene.odds(lmetric, row))
    if name not in POLICIES:
        raise ConfigError(f"--policy: no policy `{name}`; there are: " + ", ".join(KNOWN))
    if name not in RERUN:
        raise ConfigError(
            f"--policy: {name} remembers earlier decisions or looks into the prefix index, which a "
            "log does not hold; `lodestar simulate --trace LOG` plays it. Here: " + ", ".join(KNOWN)
        )
    policy = POLICIES[name]()
    return lambda row: scene.odds(policy, row)


def learned_odds(row: Row, safe: list[float]) -> list[float]:
    """Of policy `lodestar` with the predictions of the time; NaN where there were none.

    safe: the odds of the heuristic that it falls back on.
    """
    scores = [c["score"] for c in row["candidates"]]
    if len(scores) == 1:
        return [1.0]
    if None in scores or "objective" in row:  # other aims weigh gains otherwise
        return [math.nan] * len(scores)
    least = min(scores)
    best = [i for i, score in enumerate(scores) if score == least]
    odds = [0.0] * len(scores)
    for i, p in enumerate(safe):
        if i in best or not least < scores[i] / row["margin"]:
            odds[i] += p
        else:
            for k in best:
                odds[k] += p / len(best)
    return odds


class _Term(NamedTuple):
    """What a decision adds to each sum."""

    w: float
    wr: float
    dr: float
    r: float


class Judge:
    """Rewards of what a log measured, and of what was predicted.

    slo: seconds for the first token of requests that asked for none themselves; 0: none.
    """

    def __init__(
        self, log: Usable, reward: Reward, slo: float = 0.0, weights: Weights = DEFAULT
    ) -> None:
        self._of = reward.of
        self._slo = slo
        self._weights = weights
        ends = [row["outcome"] for row in log.rows]
        after = [end["e2e"] - end["ttft"] for end in ends if end["event"] == "done"]
        self._after = math.fsum(after) / len(after) if after else 0.0

    def measured(self, row: Row) -> float:
        outcome = row["outcome"]
        after = outcome["e2e"] - outcome["ttft"] if outcome["event"] == "done" else math.inf
        return self._reward(row, row["chosen"], outcome["ttft"], after)

    def predicted(self, row: Row, i: int, ttft: float) -> float:
        return self._reward(row, i, ttft, self._after)

    def _reward(self, row: Row, i: int, ttft: float, after: float) -> float:
        """Of candidate i, with so many seconds from the first token to the end."""
        c = row["candidates"][i]
        answering = c["inflight"] - c["waiting"]
        taken = c["x"][OWN_SECONDS] + after / (answering + 1)
        limit = row.get("slo_ttft") or self._slo
        measured = Measured(ttft, ttft + after, limit, taken, c.get("price") or 0.0)
        return self._of(measured, self._weights)


def estimate(
    log: Usable, name: str, reward: str = "ttft", slo: float = 0.0, weights: Weights = DEFAULT
) -> Estimate:
    """Raises ConfigError if there is no such policy, or none that a log can tell of."""
    odds = odds_of(name)
    judge, shown = Judge(log, REWARDS[reward], slo, weights), REWARDS[reward].shown
    out = Estimate(name)
    terms: list[_Term] = []
    missing = unknown = 0.0
    modelled = 0
    for row in log.rows:
        pi = odds(row)
        if any(math.isnan(p) for p in pi):
            unknown += 1
            continue
        out.decisions += 1
        off = math.fsum(
            p for p, c in zip(pi, row["candidates"], strict=True) if p and not c["odds"]
        )
        missing += off
        if off:
            continue
        term, by_model = _term(row, pi, judge)
        terms.append(term)
        modelled += by_model
    if not out.decisions:
        out.refusal = "no decision in the log can be put before it"
        if unknown and name == LEARNED:
            out.refusal += ": there was no model when they were made"
        return out
    out.unsupported = missing / out.decisions
    squares = math.fsum(t.w * t.w for t in terms)
    out.effective = math.fsum(t.w for t in terms) ** 2 / squares if squares else 0.0
    out.modelled = modelled / len(terms) if terms else 0.0
    if out.unsupported > MOST_UNSUPPORTED:
        out.refusal = (
            f"no support: {100 * out.unsupported:.0f} % of its choices are such as this log never "
            "makes. Log decisions with chance in them: --mode canary:P, --policy random or "
            "power_of_two"
        )
    elif out.effective < LEAST_EFFECTIVE:
        out.refusal = (
            f"too little: the log is worth {out.effective:.0f} decisions for it; "
            f"{LEAST_EFFECTIVE:.0f} are the least"
        )
    else:
        out.ips = _range(terms, lambda s, n: s.wr / n, shown)
        out.snips = _range(terms, lambda s, n: s.wr / s.w, shown)
        out.dr = _range(terms, lambda s, n: s.dr / n, shown)
        out.logged = _range(terms, lambda s, n: s.r / n, shown)
    return out


def _term(row: Row, pi: list[float], judge: Judge) -> tuple[_Term, bool]:
    candidates, a, r = row["candidates"], row["chosen"], judge.measured(row)
    q = [c["predicted"] for c in candidates]
    by_model = None not in q
    if not by_model:
        q = [c["expected"] for c in candidates]
    q = [judge.predicted(row, i, ttft) for i, ttft in enumerate(q)]
    w = pi[a] / candidates[a]["odds"]
    direct = math.fsum(p * value for p, value in zip(pi, q, strict=True))
    return _Term(w, w * r, direct + w * (r - q[a]), r), by_model


def _range(
    terms: list[_Term], value: Callable[[_Term, int], float], shown: Callable[[float], float]
) -> Range:
    """An estimate from sums of terms, with its interval, as it is shown."""
    n = len(terms)
    bounds = [n * k // PARTS for k in range(PARTS + 1)]
    parts = [_sum(terms[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    whole = _sum(parts)
    mean = value(whole, n)
    without = [
        value(_Term(*(x - y for x, y in zip(whole, part, strict=True))), n - (b - a))
        for part, a, b in zip(parts, bounds, bounds[1:], strict=False)
    ]
    centre = math.fsum(without) / PARTS
    error = math.sqrt((PARTS - 1) / PARTS * math.fsum((x - centre) ** 2 for x in without))
    ends = (shown(mean - QUANTILE * error), shown(mean + QUANTILE * error))
    return Range(shown(mean), min(ends), max(ends))


def _sum(terms: Iterable[_Term]) -> _Term:
    return _Term(*map(math.fsum, zip(*terms, strict=True)))
