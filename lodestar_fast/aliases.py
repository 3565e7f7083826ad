"""Flags of other routers: those that mean what a flag of ours means, and what to do about others.

Short names of the routers: *smg* is SMG and its relatives (sglang-router, vllm-router), *stack* is
vLLM's production-stack router. A flag whose meaning is near but not the same is no alias: it is
refused with a word on what to use instead, since an operator who moves over must notice.
deploy/migration.md shows both tables; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


def _retries(attempts: str) -> str:
    """Their count includes the first attempt."""
    return str(max(int(attempts) - 1, 0)) if attempts.isdigit() else attempts


def _level(name: str) -> str:
    return "warning" if name == "warn" else name


def _policy(name: str) -> str:
    return "round_robin" if name == "roundrobin" else name


class Alias(NamedTuple):
    """A flag of another router. name: the setting it stands for. convert: its text into ours.
    value: what it sets if it takes no value of its own."""

    router: str
    name: str
    convert: Callable[[str], str] = str
    value: str = ""
    note: str = ""


ALIASES = {
    "--max-payload-size": Alias("smg", "max_body_bytes"),
    "--request-timeout-secs": Alias("smg", "request_timeout"),
    "--shutdown-grace-period-secs": Alias("smg", "drain_grace"),
    "--queue-timeout-secs": Alias("smg", "queue_timeout"),
    "--retry-max-retries": Alias(
        "smg", "max_retries", _retries, note="theirs counts the first attempt: 5 becomes 4"
    ),
    "--disable-retries": Alias("smg", "max_retries", value="0"),
    "--cb-timeout-duration-secs": Alias(
        "smg", "eject_seconds", note="doubled here if failures recur"
    ),
    "--health-failure-threshold": Alias("smg", "health_failures"),
    "--health-check-timeout-secs": Alias("smg", "health_check_timeout"),
    "--health-check-interval-secs": Alias("smg", "health_check_interval"),
    "--prometheus-host": Alias(
        "smg", "admin_host", note="needs `--admin-key-file` beyond loopback"
    ),
    "--prometheus-port": Alias("smg", "admin_port"),
    "--service-discovery-namespace": Alias("smg", "kubernetes_namespace"),
    "--service-discovery-port": Alias("smg", "kubernetes_port"),
    "--static-backends": Alias("stack", "worker_urls"),
    "--routing-logic": Alias(
        "stack", "policy", _policy, note="`roundrobin` is `round_robin`; see below for the others"
    ),
    "--engine-stats-interval": Alias("stack", "scrape_interval"),
    "--max-instance-failover-reroute-attempts": Alias("stack", "max_retries"),
    "--k8s-namespace": Alias("stack", "kubernetes_namespace"),
    "--k8s-port": Alias("stack", "kubernetes_port"),
}

# The same name here and there, but not the same words as values.
VALUES = {"log_level": _level, "policy": _policy}

_NOT_NEEDED = "not needed, leave it out: "

# What has no counterpart, or one that differs.
HINTS = {
    "--selector": "theirs selects Pods by their labels; --kubernetes-selector selects by "
    "the labels of a Service",
    "--k8s-label-selector": "theirs selects Pods by their labels; --kubernetes-selector selects by "
    "the labels of a Service",
    "--service-discovery": "--worker-urls, --discovery-file, --discovery-dns and "
    "--kubernetes-selector each switch themselves on",
    "--static-models": _NOT_NEEDED + "engines are asked for their models",
    "--model-path": _NOT_NEEDED + "prompts are not tokenized",
    "--tokenizer-path": _NOT_NEEDED + "prompts are not tokenized",
    "--api-key": "keys come from files: --engine-api-key-file for the engines' own, --api-key-file "
    "for clients'",
    "--cache-threshold": "policy cache_aware has 0.5, as the gateway itself",
    "--balance-abs-threshold": "policy cache_aware has 32, as the gateway itself",
    "--balance-rel-threshold": "policy cache_aware has 1.1, as the gateway itself",
    "--max-tree-size": "the index has a budget in bytes: --index-bytes",
    "--eviction-interval-secs": _NOT_NEEDED + "the index keeps its budget all the time",
    "--cb-failure-threshold": "three failures in a row eject an engine",
    "--disable-circuit-breaker": "ejections cannot be switched off; --eject-seconds shortens them",
    "--health-success-threshold": "one good check brings an engine back",
    "--health-check-endpoint": "engines are asked for /health, or /v1/models if they have none",
    "--retry-initial-backoff-ms": _NOT_NEEDED + "a further try goes to another engine, at once",
    "--rate-limit-tokens-per-second": "--max-concurrent-requests and --queue-size bound what runs "
    "and waits; rates are for the gateway in front",
    "--tls-cert-path": "TLS is for the proxy in front",
    "--tls-key-path": "TLS is for the proxy in front",
    "--pd-disaggregation": "prefill and decode run on one engine here",
    "--session-key": "--policy session_affinity --session-headers NAME",
    "--dynamic-config-yaml": "--config FILE, and SIGHUP when it has changed",
    "--log-stats": _NOT_NEEDED + "/metrics on the admin port",
    "--otlp-traces-endpoint": "theirs is gRPC; --otlp-endpoint takes OTLP over HTTP, port 4318",
    "--enable-trace": "--otlp-endpoint switches traces on",
    "--request-stats-window": _NOT_NEEDED + "estimates decay by themselves",
}


def names_as_markdown() -> str:
    """The table of ALIASES."""
    lines = ["| theirs | router | ours | note |", "| --- | --- | --- | --- |"]
    for flag, a in ALIASES.items():
        ours = "--" + a.name.replace("_", "-") + (f" {a.value}" if a.value else "")
        lines.append(f"| `{flag}` | {a.router} | `{ours}` | {a.note} |")
    return "\n".join(lines)


def hints_as_markdown() -> str:
    """The table of HINTS."""
    lines = ["| theirs | instead |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{flag}` | {text} |" for flag, text in HINTS.items()])
