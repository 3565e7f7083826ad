"""Short turns at a core for the calling thread.

Since 6.6 Linux lets a thread finish a turn, 1.4 to 3 ms by default, before it makes room for one
that wakes, however low its priority: the event loop waits for the learner on a core they share.
Since 6.12 a thread can ask for shorter turns, and one that wakes with shorter turns than who runs
need not wait for the end of that one's. Older kernels make room at once, or cannot be asked.
"""

from __future__ import annotations


def set_turn(double seconds) -> None:
    """Ask for turns of this length, 0.1 to 100 ms, where the kernel has such."""
    lodestar_set_turn(<unsigned long long>(1e9 * seconds + 0.5))


def turn() -> float:
    """Seconds of the calling thread's turns; 0 if the kernel does not say."""
    cdef lodestar_sched_attr attributes
    return 1e-9 * lodestar_turn(&attributes)
