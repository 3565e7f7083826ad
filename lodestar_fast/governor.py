"""How much the learned policy decides, and with which weights: mode, watchdog, life of the model.

Both drivers call tick() once a second: samples go to the watchdog and the learner, new weights into
the policy and the history. What an operator says comes in between: set_mode(), freeze(), thaw(),
rollback(). Nothing here runs per request.

    mode       decides                     the model is asked     the learner
    off        the fallback                no                     idle: it gets no samples
    shadow     the fallback                yes, for comparison    learns
    canary:P   the model, P % of requests  yes                    learns
    on         the model                   yes                    learns

Frozen, the learner goes on and its newest weights wait; thaw() puts them into use.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from lodestar_fast import features, history
from lodestar_fast.core.enums import Reason
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.router import Router
from lodestar_fast.errors import BlobError, ConfigError
from lodestar_fast.history import History
from lodestar_fast.learner import Learner
from lodestar_fast.watchdog import CAUSES, Watchdog

log = logging.getLogger(__name__)

MODES: Final = "off, shadow, canary:P (P percent, above 0 and below 100), on"
STALE_SECONDS: Final = 60.0  # without new weights ...
STALE_SAMPLES: Final = 64  # ... though so many first tokens came


def share_of(mode: str) -> float:
    """Share of the requests that the learned policy decides in a mode. Raises ConfigError."""
    if mode in ("off", "shadow", "on"):
        return float(mode == "on")
    word, _, percent = mode.partition(":")
    try:
        share = float(percent) / 100 if word == "canary" else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share < 1:  # NaN is neither
        raise ConfigError(f"no mode `{mode}`; there are: {MODES}")
    return share


class Governor:
    """Of one guarded policy.

    start_learner: called when a mode first needs it; None: nothing is learned. hold, watchdog: of
    Watchdog. state_dir: where versions are read from; "": nowhere. wall: seconds since 1970.
    Raises ConfigError on a mode that does not exist.
    """

    def __init__(
        self,
        policy: Guarded,
        mode: str = "on",
        *,
        learner: Learner | None = None,
        watchdog: bool = True,
        hold: float = 30.0,
        state_dir: str = "",
        wall: Callable[[], float] | None = None,
    ) -> None:
        share_of(mode)
        self.policy = policy
        self.mode = mode
        self.learner = learner
        self.watchdog = Watchdog(policy, hold, watchdog)
        self.history = History()
        self.frozen = False
        self.start_learner: Callable[[], Learner] | None = None
        self._state_dir = state_dir
        self._wall = wall
        self._pending = b""  # the newest weights that came while frozen
        self._published_at: float | None = None
        self._measured = 0  # first tokens up to the last publish
        self._stale = False
        self._demoted = 0  # decisions of the fallback for the watchdog's sake, as last counted
        self._fallbacks: Counter[str] = Counter()
        self._saved: tuple[list[int], int] = ([], 0)
        if state_dir:
            self._take_up(state_dir)
        self._steer()

    def _take_up(self, folder: str) -> None:
        """The versions an earlier process left; a frozen one is in use at once."""
        try:
            self.history.kept, frozen = history.load(folder)
        except OSError as e:
            log.warning("%s: %s", folder, e.strerror)
            return
        held = self.history.find(frozen) if frozen else None
        if held is not None:
            try:
                self.policy.load(held.blob)
            except BlobError as e:
                log.warning("version %d was frozen, but: %s", frozen, e)
            else:
                self.freeze()

    # -- once a second --

    def tick(self, router: Router, now: float) -> int | None:
        """Move samples out and weights in, and judge. now: seconds on the router's clock.

        Returns the version now in use if it is a new one. Raises BlobError if one was refused (the
        weights in use stay), and whatever the learner raises; judged is in any case.
        """
        self._count(router)
        samples = router.drain()
        if self.mode == "off":
            return None
        try:
            if samples:
                self.watchdog.evidence.take(samples)
                if self.learner is not None:
                    self.learner.submit(samples)
            blob = self.learner.poll() if self.learner is not None else None
            return None if blob is None else self._receive(blob, now)
        finally:
            self._stale = self._is_stale(now)
            self.watchdog.look(now, self._stale, shadow=self.mode == "shadow")
            self._steer()

    def _receive(self, blob: bytes, now: float) -> int | None:
        self._published_at, self._measured = now, self.watchdog.evidence.measured
        if self.frozen:
            self._pending = blob
            return None
        return self._use(blob, now)

    def _use(self, blob: bytes, now: float) -> int:
        version = self.policy.load(blob)
        self.history.add(version, self._wall() if self._wall else now, blob)
        return version

    def _is_stale(self, now: float) -> bool:
        if self._published_at is None:
            self._published_at = now
        quiet = now - self._published_at
        seen = self.watchdog.evidence.measured - self._measured
        return not self.frozen and quiet > STALE_SECONDS and seen >= STALE_SAMPLES

    def _steer(self) -> None:
        share, limit = share_of(self.mode), self.watchdog.limit
        self.policy.mode_name = self.mode
        if self.mode == "off":
            self.policy.steer(0, Reason.HEURISTIC, asks=False)
        elif self.mode == "shadow":
            self.policy.steer(0, Reason.SHADOW)
        elif limit == 0:
            self.policy.steer(0, Reason.DEMOTED)
        else:
            self.policy.steer(min(share, limit), Reason.CONTROL)

    # -- what an operator says --

    def set_mode(self, mode: str) -> None:
        """Change the mode; the watchdog begins with trust. Raises ConfigError."""
        share_of(mode)
        log.info("mode %s (was %s)", mode, self.mode)
        self.mode = mode
        self.watchdog.reset()
        self.ensure_learner()
        self._steer()

    def ensure_learner(self) -> None:
        """Start the learner if the mode needs one and there is none yet."""
        if self.mode != "off" and self.learner is None and self.start_learner is not None:
            self.learner = self.start_learner()

    def freeze(self) -> None:
        """Keep the weights in use; new ones wait."""
        self.frozen = True
        self.history.pinned = self.policy.version

    def thaw(self, now: float) -> None:
        """Take new weights again, the newest that waits at once. Raises BlobError."""
        self.frozen = False
        self.history.pinned = 0
        self._published_at = now
        blob, self._pending = self._pending, b""
        if blob:
            self._use(blob, now)

    def rollback(self, version: int | None = None) -> int:
        """Put an earlier version into use and freeze it: the one given, or the one before.

        Returns it. Raises LookupError if it is not kept, BlobError.
        """
        chosen = self.history.before(self.policy.version)
        if version is not None:
            chosen = self.history.find(version)
        if chosen is None:
            raise LookupError(f"version {version}" if version is not None else "an earlier version")
        self.policy.load(chosen.blob)
        self.freeze()
        self.watchdog.reset()
        self._steer()
        log.info("weights of version %d are back in use, frozen", chosen.version)
        return chosen.version

    def adopt(self, blob: bytes, now: float) -> int:
        """Put weights from elsewhere into use, enter them as a version, and freeze them.

        now: seconds on the router's clock. Returns their version. Raises BlobError if the core
        refuses them, or if their number is that of other weights that are kept.
        """
        version = history.blob_version(blob)
        held = self.history.find(version)
        if version < 1 or (held is not None and held.blob != blob):
            kept = "is kept, with other weights" if held else "is none"
            raise BlobError(f"version {version} {kept}; import them under another number")
        self.policy.load(blob)
        if held is None:
            self.history.add(version, self._wall() if self._wall else now, blob)
        self.freeze()
        self.watchdog.reset()
        self._steer()
        log.info("weights imported as version %d are in use, frozen", version)
        return version

    # -- what others read --

    def _count(self, router: Router) -> None:
        """Give the decisions of demoted times to the cause of that time."""
        total: int = router.stats()["decisions"]["demoted"]
        if total > self._demoted:
            self._fallbacks[self.watchdog.cause] += total - self._demoted
        self._demoted = total

    def fallbacks(self, router: Router) -> dict[str, int]:
        """Decisions of the fallback for the watchdog's sake, by cause."""
        self._count(router)
        return {f"watchdog_{cause}": self._fallbacks[cause] for cause in CAUSES}

    def counts(self, router: Router) -> dict[str, Any]:
        """For metrics.py."""
        policy, watchdog = self.policy, self.watchdog
        return {
            "mode": self.mode.partition(":")[0],
            "share": policy.share,
            "frozen": self.frozen,
            "stale": self._stale,
            "state": watchdog.state,
            "demotions": {cause: watchdog.demotions[cause] for cause in CAUSES},
            "fallbacks": self.fallbacks(router),
            "median_error": watchdog.evidence.error,
            "drifts": {
                "fleet": watchdog.evidence.fleet_drifts,
                "engine": watchdog.evidence.engine_drifts,
            },
            "regret": policy.regret,
            "choices": {"same": policy.agreed, "other": policy.asked - policy.agreed},
            "predicted": {
                "learned": policy.predicted_learned,
                "fallback": policy.predicted_fallback,
            },
            "sides": watchdog.evidence.totals(),
            "explored": getattr(policy.learned, "spent", 0.0),
        }

    def status(self, now: float) -> dict[str, Any]:
        """GET /admin/model. now: seconds on the router's clock."""
        policy = self.policy
        in_use = self.history.find(policy.version)
        asked = policy.asked
        return {
            "policy": policy.name,
            "mode": self.mode,
            "share": policy.share,
            "fallback": policy.fallback.name,
            "version": policy.version,
            "frozen": self.frozen,
            "stale": self._stale,
            "waiting_version": history.blob_version(self._pending) if self._pending else None,
            "watchdog": self.watchdog.status(now),
            "asked": {
                "decisions": asked,
                "agreed": policy.agreed,
                "predicted_ttft_learned": policy.predicted_learned / asked if asked else None,
                "predicted_ttft_fallback": policy.predicted_fallback / asked if asked else None,
            },
            "explored": {
                "spent_seconds": getattr(policy.learned, "spent", 0.0),
                "saved_seconds": getattr(policy.learned, "saved", 0.0),
            },
            "versions": [
                {"version": v.version, "time": v.time, "in_use": v.version == policy.version}
                for v in reversed(self.history.kept)
            ],
            "coefficients": coefficients(in_use.blob) if in_use else {},
            "network": bool(in_use and layers(in_use.blob)),
            "learner": self.learner.status() if self.learner is not None else None,
        }

    def unsaved(self) -> tuple[str, list[history.Version], int] | None:
        """What history.save() must write by now; None if the folder is up to date or there is none.

        The caller may write in another thread: nothing of it changes.
        """
        frozen = self.policy.version if self.frozen else 0
        state = [v.version for v in self.history.kept], frozen
        if not self._state_dir or state == self._saved:
            return None
        self._saved = state
        return self._state_dir, list(self.history.kept), frozen


def layers(blob: bytes) -> int:
    """Layers of the network in a blob that was in use; 0: linear."""
    return int(struct.unpack_from("<I", blob, 24)[0])


def coefficients(blob: bytes) -> dict[str, float]:
    """Of the physical model in such a blob: seconds for a feature of size 1, those not 0."""
    depth = layers(blob)
    at = 28 + (4 * (depth + 1) if depth else 0) + 4  # header, dims, bound
    values = struct.unpack_from(f"<{features.WIDTH}f", blob, at)
    return {name: values[column] for name, column in features.INDEX.items() if values[column]}
