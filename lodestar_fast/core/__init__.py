"""The decision core: Router and the policies. Compiled; no clock, socket or configuration."""

from __future__ import annotations

from lodestar_fast.core.enums import Event, Reason
from lodestar_fast.core.policies import POLICIES, Candidates, Policy
from lodestar_fast.core.router import Decision, Router

__all__ = ["POLICIES", "Candidates", "Decision", "Event", "Policy", "Reason", "Router"]
