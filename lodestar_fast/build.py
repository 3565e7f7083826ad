"""From configuration to objects: the one place that knows how a router and a learner are made.

Drivers receive what is made here, which is why the proxy and the simulator run the same core.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

from lodestar_fast.config import Config, RoutingConfig
from lodestar_fast.core.policies import POLICIES, Policy
from lodestar_fast.core.router import Router
from lodestar_fast.errors import ConfigError
from lodestar_fast.learner import Learner

log = logging.getLogger(__name__)

LEARNED = "lodestar"
FALLBACK = "lmetric"  # decides while the learned policy may not
TICKETS = 16384  # requests in flight that are learned from; 3 MB


def policy_name(config: RoutingConfig) -> str:
    """The policy that decides: the configured one, or the fallback where the mode is off.

    Raises ConfigError on a policy or a mode that does not exist.
    """
    if config.policy not in POLICIES:
        raise ConfigError(
            f"routing.policy (--policy): no policy `{config.policy}`; there are: "
            + ", ".join(sorted(POLICIES))
        )
    if config.mode in ("on", "off"):
        return FALLBACK if config.policy == LEARNED and config.mode == "off" else config.policy
    if config.mode == "shadow" or config.mode.startswith("canary:"):
        raise ConfigError(
            f"routing.mode (--mode): `{config.mode}` is not supported yet; there are: off, on"
        )
    raise ConfigError(f"routing.mode (--mode): no mode `{config.mode}`; there are: off, on")


def make_policy(config: RoutingConfig) -> Policy:
    """The policy that decides. Raises ConfigError as policy_name() does."""
    return POLICIES[policy_name(config)]()


def make_router(config: Config) -> Router:
    """The decision core. Raises ConfigError."""
    routing, fleet = config.routing, config.fleet
    if len(fleet.worker_urls) > routing.max_instances:
        raise ConfigError(
            f"fleet.worker_urls (--worker-urls): {len(fleet.worker_urls)} engines, "
            f"but --max-instances is {routing.max_instances}"
        )
    policy = make_policy(routing)
    try:
        return Router(
            policy,
            block_bytes=routing.block_bytes,
            index_bytes=routing.index_bytes,
            max_instances=routing.max_instances,
            max_tickets=max(TICKETS, config.limits.max_concurrent_requests),
            seed=routing.seed,
        )
    except MemoryError:
        raise ConfigError(
            f"routing.index_bytes (--index-bytes): no memory for {routing.index_bytes} bytes"
        ) from None
    except ValueError as e:  # its text begins with the argument's name
        raise ConfigError(f"routing.{e}") from None


def learner_starter(config: Config) -> Callable[[], Learner] | None:
    """What starts the learner, if the policy that decides has one.

    Not the learner itself: its thread begins to import torch at once, and the proxy wants to listen
    before that. Without numpy nothing can be learned: one warning, and the fallback decides.
    """
    if policy_name(config.routing) != LEARNED:
        return None
    if importlib.util.find_spec("numpy") is None:
        log.warning(
            "numpy is not installed (pip install 'lodestar-fast[learner]'): "
            "nothing is learned, %s decides",
            FALLBACK,
        )
        return None

    def start() -> Learner:
        from lodestar_fast.learner.thread import ThreadLearner

        return ThreadLearner(config.learner, config.serve.state_dir)

    return start
