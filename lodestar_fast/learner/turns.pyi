"""Types of learner/turns.pyx."""

from __future__ import annotations

def set_turn(seconds: float) -> None:
    """Ask for turns of this length, 0.1 to 100 ms, where the kernel has such."""

def turn() -> float:
    """Seconds of the calling thread's turns; 0 if the kernel does not say."""
