"""From configuration to objects: the one place that knows how a router and a learner are made.

Drivers receive what is made here, which is why the proxy and the simulator run the same core.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import time
from pathlib import Path

from lodestar_fast.config import Config, RoutingConfig
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.policies import POLICIES, Lodestar, Policy
from lodestar_fast.core.router import Router
from lodestar_fast.errors import ConfigError
from lodestar_fast.governor import Governor, share_of
from lodestar_fast.learner import Learner

log = logging.getLogger(__name__)

LEARNED = "lodestar"
FALLBACK = "lmetric"  # decides while the learned policy may not
KEY_FILE, KEY_BYTES = "index.key", 64
LOGGED = 2048  # decisions that may wait for the log, which looks four times a second
TICKETS = 16384  # requests in flight that are learned from; 3 MB


def make_policy(config: RoutingConfig) -> Policy:
    """The policy that decides; the learned one with the fallback behind it.

    Raises ConfigError on a policy or a mode that does not exist.
    """
    if config.policy not in POLICIES:
        raise ConfigError(
            f"routing.policy (--policy): no policy `{config.policy}`; there are: "
            + ", ".join(sorted(POLICIES))
        )
    try:
        share_of(config.mode)
    except ConfigError as e:
        raise ConfigError(f"routing.mode (--mode): {e}") from None
    if config.policy != LEARNED:
        return POLICIES[config.policy]()
    learned = Lodestar(
        objective=config.objective,
        tpot_weight=config.tpot_weight,
        price_weight=config.price_weight,
    )
    return Guarded(learned, POLICIES[FALLBACK]())


def index_key(folder: str) -> bytes:
    """The secret under which prompts are hashed: random, and kept in the state folder if there is
    one, for what is stored there by its hashes. Raises ConfigError.
    """
    if not folder:
        return os.urandom(KEY_BYTES)
    path = Path(folder) / KEY_FILE
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            # Written whole or not at all: two routers that start at once shall read one key.
            aside = path.with_suffix(f".{os.getpid()}.tmp")
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
                f.write(os.urandom(KEY_BYTES))
            try:
                os.link(aside, path)
            finally:
                aside.unlink()
        key = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"serve.state_dir (--state-dir): {folder}: {e.strerror}") from None
    if len(key) != KEY_BYTES:
        raise ConfigError(f"serve.state_dir (--state-dir): {path} has not {KEY_BYTES} bytes")
    return key


def kept_decisions(config: Config) -> int:
    """How many the router keeps. Raises ConfigError if the log has no place to be."""
    kept = config.decisions
    if not kept.decision_log:
        return kept.decisions
    if not config.serve.state_dir:
        raise ConfigError("decisions.decision_log (--decision-log): needs --state-dir")
    return max(kept.decisions, LOGGED)


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
            decisions=kept_decisions(config),
            prefix_marks=config.decisions.decision_log,
            slo_ttft=routing.slo_ttft_ms / 1e3,
            slo_tpot=routing.slo_tpot_ms / 1e3,
            seed=routing.seed,
            key=index_key(config.serve.state_dir),
        )
    except MemoryError:
        raise ConfigError(
            f"routing.index_bytes (--index-bytes): no memory for {routing.index_bytes} bytes"
        ) from None
    except ValueError as e:  # its text begins with the argument's name
        raise ConfigError(f"routing.{e}") from None


def make_governor(config: Config, router: Router) -> Governor | None:
    """What governs the learned policy of a router; None if another policy decides.

    It is made without a learner, and knows how to start one: the thread begins to import torch at
    once, and the proxy wants to listen before that. Without numpy nothing can be learned: one
    warning, and the fallback decides.
    """
    policy, routing = router.policy, config.routing
    if not isinstance(policy, Guarded):
        return None
    governor = Governor(
        policy,
        routing.mode,
        watchdog=routing.watchdog,
        hold=routing.watchdog_hold,
        state_dir=config.serve.state_dir,
        wall=time.time,
    )
    if importlib.util.find_spec("numpy") is None:
        log.warning(
            "numpy is not installed (pip install 'lodestar-fast[learner]'): "
            "nothing is learned, %s decides",
            FALLBACK,
        )
        return governor

    def start() -> Learner:
        from lodestar_fast.learner.thread import ThreadLearner

        return ThreadLearner(config.learner, config.serve.state_dir)

    governor.start_learner = start
    return governor
