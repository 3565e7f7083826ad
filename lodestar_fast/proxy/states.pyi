"""Types of proxy/states.pyx."""

from __future__ import annotations

TRANSITIONS: dict[str, dict[str, str]]  # state -> step -> next state; nothing else is allowed
STATES: tuple[str, ...]
STEPS: tuple[str, ...]

def follow(state: str, step: str) -> str:
    """The next state. Raises InvariantError if the step is not allowed."""
