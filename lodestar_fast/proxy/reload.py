"""SIGHUP: a new configuration, checked whole and then in use; or none of it.

What the processes around us would not notice can change: limits, keys, engines, how they are found
and watched, the drain grace, the log level, the explanations. Ports, policy, index and learner are
made once; a configuration that changes them is refused, so that what runs is always what is
written.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lodestar_fast.config import Config
from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy import kv_events, prices
from lodestar_fast.proxy.discovery.membership import STATIC
from lodestar_fast.proxy.discovery.watching import sources
from lodestar_fast.proxy.fleet import parse_url
from lodestar_fast.proxy.keys import read_keys

if TYPE_CHECKING:
    from lodestar_fast.proxy.server import Proxy

log = logging.getLogger(__name__)

# Settings that can change; the sections `limits` and `fleet` can as a whole.
_SERVE = {
    "api_key_file",
    "forward_client_key",
    "verified_key_file",
    "admin_key_file",
    "drain_grace",
    "log_level",
    "explain_headers",
}


class Keys(NamedTuple):
    """What the key files hold; None or empty where there is no file."""

    clients: frozenset[bytes] | None
    admins: frozenset[bytes] | None
    engine: bytes
    verified: frozenset[bytes]


def read_all_keys(config: Config) -> Keys:
    """Raises ConfigError on a file that cannot be read, or holds no key or too many."""
    engines = read_keys(
        config.fleet.engine_api_key_file, "fleet.engine_api_key_file (--engine-api-key-file)"
    )
    if engines is not None and len(engines) > 1:
        raise ConfigError(
            f"fleet.engine_api_key_file (--engine-api-key-file): "
            f"{config.fleet.engine_api_key_file} holds more than one key"
        )
    verified = read_keys(
        config.serve.verified_key_file, "serve.verified_key_file (--verified-key-file)"
    )
    clients = read_keys(config.serve.api_key_file, "serve.api_key_file (--api-key-file)")
    if clients is not None and verified and not config.routing.tenant_header:
        clients |= verified
    return Keys(
        clients,
        read_keys(config.serve.admin_key_file, "serve.admin_key_file (--admin-key-file)"),
        next(iter(engines)) if engines else b"",
        verified or frozenset(),
    )


def parse_urls(urls: list[str]) -> list[str]:
    """Engine URLs as we write them, each once. Raises ConfigError."""
    try:
        return list(dict.fromkeys(parse_url(url)[0] for url in urls))
    except ConfigError as e:
        raise ConfigError(f"fleet.worker_urls (--worker-urls): {e}") from None


def fixed(old: Config, new: Config) -> list[str]:
    """The settings that differ and cannot change while the router runs."""
    names = []
    for section in ("serve", "routing", "learner", "decisions"):
        before = msgspec.structs.asdict(getattr(old, section))
        after = msgspec.structs.asdict(getattr(new, section))
        names += [
            f"{section}.{name}"
            for name, value in after.items()
            if value != before[name] and not (section == "serve" and name in _SERVE)
        ]
    return names


def apply(proxy: Proxy, new: Config) -> None:
    """Put a configuration to use. Raises ConfigError, and then nothing has changed.

    Engines that the old configuration names and the new one does not are drained, unless another
    source lists them. Those that were added through the admin port stay.
    """
    old = proxy.config
    if names := fixed(old, new):
        raise ConfigError("needs a restart: " + ", ".join(names))
    keys = read_all_keys(new)
    urls = parse_urls(new.fleet.worker_urls)
    sources(new.discovery)
    prices.check(new)
    kv_events.check(new.fleet.kv_events)
    if (count := proxy.members.would_be(STATIC, urls)) > new.routing.max_instances:
        raise ConfigError(
            f"fleet.worker_urls (--worker-urls): {count} engines, but "
            f"routing.max_instances is {new.routing.max_instances}"
        )
    proxy.config = new
    logging.getLogger().setLevel(new.serve.log_level.upper())
    proxy.use(keys)
    proxy.members.claim(STATIC, urls)
    proxy.discovery.use(new.discovery)
    log.info("configuration read again: %d engines", len(proxy.fleet))
