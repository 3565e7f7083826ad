"""Types of core/evidence.pyx."""

from __future__ import annotations

from typing import TypeAlias, final

# n, mean of log(measured / reference), its standard error, mean TTFT in seconds; NaN where n is 0.
# n: requests, those of a tenant that sends more than its share (shares.py) counted less than one.
_Arm: TypeAlias = tuple[float, float, float, float]

@final
class Evidence:
    """What sample batches say of the learned policy."""

    def take(self, batch: bytes) -> None:
        """Read a batch of Router.drain(). Raises BlobError if it is none of this build."""
    @property
    def measured(self) -> int: ...  # first tokens with a prediction, since the start
    @property
    def window(self) -> int: ...  # how many of them `error` is taken over, at most 128
    @property
    def error(self) -> float:
        """Median |log(measured / predicted)|; NaN without any. Of verified ones, if there are 16 of
        the last five minutes; else of the window, each tenant weighing no more than its share."""
    @property
    def verified(self) -> int: ...  # over how many of those `error` is taken; 0: over the window
    @property
    def fleet_drifts(self) -> int: ...  # times that predictions drifted, since the start
    @property
    def engine_drifts(self) -> int: ...  # the same of one engine
    @property
    def drifted(self) -> int: ...  # slot of the last, -1: the fleet, -2: none yet
    @property
    def slower(self) -> bool: ...  # the last was to longer times than predicted
    def recent(self) -> list[tuple[float, float, int]]:
        """The last 512 first tokens, oldest first: predicted and measured TTFT in seconds, and the
        Reason as a number."""
    def forget(self) -> None:
        """Start anew, but for `measured`, counts of drifts, recent() and totals()."""
    def compare_anew(self) -> None:
        """Empty the arms."""

    def totals(self) -> dict[str, tuple[int, float]]:
        """By who decided (learned, fallback): first tokens since the start, their summed TTFTs."""

    # The arms of the comparison, since compare_anew().
    def learned(self) -> _Arm: ...  # decided by the learned policy: agreed and deviated
    def agreed(self) -> _Arm: ...  # as the fallback would have, or to the same physical estimate
    def deviated(self) -> _Arm: ...  # otherwise
    def control(self) -> _Arm: ...  # decided by the fallback
