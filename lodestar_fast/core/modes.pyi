"""Types of core/modes.pyx."""

from __future__ import annotations

from typing import final

from lodestar_fast.core.policies import Policy

@final
class Guarded(Policy):
    """A learned policy with a heuristic to fall back on; steer() says who decides how much.

    name, version and load() are the learned policy's.
    """

    def __init__(self, learned: Policy, fallback: Policy) -> None: ...
    @property
    def learned(self) -> Policy: ...
    @property
    def fallback(self) -> Policy: ...
    def steer(self, share: float, reason: int, asks: bool = True) -> None:
        """The learned policy decides this share (0..1) of the requests, by conversation.

        reason: a Reason for the decisions of the fallback. asks False: the learned policy is not
        even asked, and the fallback gives its own reasons. A new share draws every side anew.
        Raises ValueError.
        """
    mode_name: str  # as the operator set it; records of decisions bear it
    def forget(self) -> None:
        """Start the fading means anew."""
    @property
    def share(self) -> float: ...

    # Fading means over about the last 64 decisions the learned policy was asked about.
    @property
    def regret(self) -> float: ...  # log of physical estimates: its choice over the fallback's
    @property
    def absurd(self) -> float: ...  # share of predictions that are no number of seconds
    @property
    def raised(self) -> float: ...  # share of exceptions
    @property
    def last_error(self) -> str: ...  # the last exception, or ""

    # Since the start.
    @property
    def asked(self) -> int: ...  # decisions with a prediction
    @property
    def agreed(self) -> int: ...  # of them, with both policies choosing the same
    @property
    def predicted_learned(self) -> float: ...  # sum of predicted TTFTs of its choices, seconds
    @property
    def predicted_fallback(self) -> float: ...  # and of the fallback's choices
