"""Types of core/rerun.pyx."""

from __future__ import annotations

from typing import Any, Final, final

from lodestar_fast.core.policies import Policy

RERUN: Final[frozenset[str]]  # policies that look at nothing but what a row holds

@final
class Scene:
    """Puts policies before decisions that were kept."""

    def odds(self, policy: Policy, row: dict[str, Any]) -> list[float]:
        """With which probability the policy would choose each of a row's candidates.

        NaN where it cannot tell. Raises ValueError for a row of another table of features, and what
        the policy raises.
        """
