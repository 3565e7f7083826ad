"""Every setting, its default, its range and its help: one tree, used by the command line, the TOML
file, the environment, the docs and the tests.

A field's name is its TOML key; its flag is `--` + the name with dashes, its variable `LODESTAR_`
+ the name in capitals. So names are unique over the tree. Precedence: flag, environment, file,
default. This module reads no file and no environment; cli does, and calls resolve().
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from lodestar_fast.errors import ConfigError

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
Bytes = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]


def _doc(text: str) -> Meta:
    return Meta(description=text)


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServeConfig(_Section, frozen=True):
    """Where to listen and how to log."""

    host: Annotated[str, _doc("address of the data port")] = "0.0.0.0"
    port: Annotated[Port, _doc("data port; 0 picks a free one")] = 30000
    admin_host: Annotated[str, _doc("address of the admin port")] = "127.0.0.1"
    admin_port: Annotated[Port, _doc("admin port: /metrics, /workers, /admin")] = 29000
    state_dir: Annotated[
        str, _doc("folder for the model and the prefix index; empty: nothing is written")
    ] = ""
    api_key_file: Annotated[str, _doc("one client key a line; empty: the data port is open")] = ""
    forward_client_key: Annotated[
        bool, _doc("pass a client's Authorization on to engines though api_key_file is set")
    ] = False
    verified_key_file: Annotated[
        str,
        _doc("keys of tenants, one a line, that are the operator's: their requests are control"),
    ] = ""
    admin_key_file: Annotated[str, _doc("one admin key a line; empty: loopback only")] = ""
    drain_grace: Annotated[Seconds, _doc("seconds that requests may still take after SIGTERM")] = (
        30.0
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _doc("least level that is logged")
    ] = "info"
    log_json: Annotated[bool, _doc("log JSON lines instead of text")] = False
    otlp_endpoint: Annotated[
        str,
        Meta(pattern="^(https?://.+)?$"),
        _doc("collector for traces and GenAI metrics, http://host:4318; empty: none are made"),
    ] = ""
    trace_sample: Annotated[
        float, Meta(ge=0, le=1), _doc("share of the traces begun here that are recorded")
    ] = 1.0
    explain_headers: Annotated[bool, _doc("add x-lodestar-* headers to answers")] = False


class FleetConfig(_Section, frozen=True):
    """The engines, and how they are watched."""

    worker_urls: Annotated[list[str], _doc("engine base URLs, http://host:port")] = []
    engine_api_key_file: Annotated[
        str, _doc("the engines' own key, for checks and requests; empty: they have none")
    ] = ""
    engine_prices: Annotated[
        list[str],
        _doc(
            "what an hour of an engine costs, URL=PRICE; * is any text, the first that fits holds"
        ),
    ] = []
    health_check_interval: Annotated[Seconds, _doc("seconds between health checks")] = 1.0
    health_check_timeout: Annotated[Seconds, _doc("seconds a health check may take")] = 5.0
    health_failures: Annotated[
        int, Meta(ge=1, le=100), _doc("failed checks in a row that take an engine out")
    ] = 3
    eject_seconds: Annotated[
        Seconds, _doc("seconds an engine is out after failures in a row; doubled if they recur")
    ] = 30.0
    gone_grace: Annotated[
        Seconds,
        _doc("seconds of silence after which an engine that refuses checks loses its requests"),
    ] = 5.0
    scrape_interval: Annotated[Seconds, _doc("seconds between scrapes of engine metrics")] = 0.1
    kv_events: Annotated[
        str,
        _doc(
            "where an engine publishes KV events over ZeroMQ: tcp://{host}:5557, or {port+1000} "
            "for an own port each; empty: nobody listens"
        ),
    ] = ""


class DiscoveryConfig(_Section, frozen=True):
    """Where engines are found besides worker_urls; several sources make a union."""

    discovery_file: Annotated[
        str, _doc("file of engine URLs that is watched: one a line, or TOML with worker_urls")
    ] = ""
    discovery_dns: Annotated[
        list[str],
        _doc("names looked up again and again: name:port, or _port._tcp.name for SRV records"),
    ] = []
    discovery_interval: Annotated[Seconds, _doc("seconds between looks at the file and DNS")] = 2.0
    discovery_linger: Annotated[
        Seconds, _doc("seconds an idle engine is remembered after it has gone")
    ] = 30.0
    kubernetes_selector: Annotated[
        str, _doc("label selector of the EndpointSlices to watch, that is of their Services")
    ] = ""
    kubernetes_namespace: Annotated[
        str, Meta(pattern="^[a-z0-9-]*$"), _doc("their namespace; empty: the router's own")
    ] = ""
    kubernetes_port: Annotated[
        str, _doc("their port, by name or number; empty: the only one there is")
    ] = ""
    kubernetes_resync: Annotated[
        Seconds, _doc("seconds after which slices are listed anew and a watch is taken for dead")
    ] = 60.0
    kubernetes_api: Annotated[str, _doc("where the API server is")] = (
        "https://kubernetes.default.svc"
    )
    kubernetes_credentials: Annotated[
        str, _doc("folder with the service account's token, ca.crt and namespace")
    ] = "/var/run/secrets/kubernetes.io/serviceaccount"


class RoutingConfig(_Section, frozen=True):
    """How an engine is chosen."""

    policy: Annotated[str, _doc("routing policy; `lodestar policies` lists them")] = "lodestar"
    mode: Annotated[
        str, _doc("off | shadow | canary:P | on: how much the learned policy decides")
    ] = "on"
    objective: Annotated[
        Literal["ttft", "ttft+tpot", "e2e"],
        _doc(
            "what policy lodestar makes small: the time to the first token, to the last one (e2e), "
            "or the first one's and tpot_weight of what follows"
        ),
    ] = "ttft"
    tpot_weight: Annotated[
        float,
        Meta(ge=0, le=1000),
        _doc("seconds to the first token that a second between it and the last one is worth"),
    ] = 0.3
    slo_ttft_ms: Annotated[
        Milliseconds,
        _doc("goal of requests without an SLO: milliseconds to the first token; 0: none"),
    ] = 0.0
    slo_tpot_ms: Annotated[
        Milliseconds,
        _doc("goal of requests without an SLO: milliseconds for each further token; 0: none"),
    ] = 0.0
    price_weight: Annotated[
        float,
        Meta(ge=0, le=1e6),
        _doc("seconds of waiting that a second of an engine of price 1 is worth; 0: any price"),
    ] = 0.0
    watchdog: Annotated[bool, _doc("take the learned policy off while it does harm")] = True
    watchdog_hold: Annotated[
        Seconds, _doc("seconds that it is off at least; doubled from time to time")
    ] = 30.0
    session_headers: Annotated[
        list[Annotated[str, Meta(pattern="^[A-Za-z0-9-]+$")]],
        _doc("fields that name a request's session, the first one that it has; session_affinity"),
    ] = msgspec.field(default_factory=lambda: ["x-session-id", "x-user-id"])
    tenant_header: Annotated[
        str,
        Meta(pattern="^[A-Za-z0-9-]*$"),
        _doc(
            "field in which a gateway in front names the tenant; empty: it is the client's API key."
            " No tenant may teach the learner more than a share"
        ),
    ] = ""
    block_bytes: Annotated[
        int, Meta(ge=16, le=4096), _doc("prompt bytes in a prefix block (64: about 16 tokens)")
    ] = 64
    index_bytes: Annotated[
        int, Meta(ge=1 << 20), _doc("hard memory budget of the prefix index")
    ] = 64 << 20
    max_instances: Annotated[int, Meta(ge=1, le=1024), _doc("most engines at a time")] = 64
    seed: Annotated[int, Meta(ge=0), _doc("seed of policies that draw at random")] = 0


class LimitsConfig(_Section, frozen=True):
    """What a client may ask of the router, and for how long."""

    max_body_bytes: Annotated[Bytes, _doc("longest request body")] = 16 << 20
    max_header_bytes: Annotated[Bytes, _doc("longest request head")] = 64 << 10
    header_timeout: Annotated[Seconds, _doc("seconds to receive a request head")] = 10.0
    body_timeout: Annotated[Seconds, _doc("seconds to receive a request body")] = 60.0
    connect_timeout: Annotated[Seconds, _doc("seconds to connect to an engine")] = 3.0
    first_byte_timeout: Annotated[Seconds, _doc("seconds until the first body byte")] = 300.0
    stream_idle_timeout: Annotated[Seconds, _doc("seconds between two pieces of an answer")] = 120.0
    write_timeout: Annotated[Seconds, _doc("seconds a client may take nothing of its answer")] = (
        60.0
    )
    request_timeout: Annotated[Seconds, _doc("seconds a request may take in all")] = 3600.0
    keep_alive: Annotated[Seconds, _doc("seconds an idle client connection is kept")] = 75.0
    engine_keep_alive: Annotated[
        Seconds, _doc("seconds an idle engine connection is kept (vLLM closes after 5.0)")
    ] = 4.0
    max_retries: Annotated[
        int, Meta(ge=0, le=10), _doc("further engines tried before the first byte")
    ] = 2
    retry_budget: Annotated[
        float,
        Meta(ge=0, le=1),
        _doc("share of the requests in flight that may be on a further try"),
    ] = 0.2
    retry_floor: Annotated[int, Meta(ge=0), _doc("requests that always may be on one")] = 10
    max_connections: Annotated[
        int, Meta(ge=0), _doc("client connections; 0: as many as file descriptors allow")
    ] = 0
    max_inflight_body_bytes: Annotated[Bytes, _doc("request bodies held at a time, in all")] = (
        1 << 30
    )
    max_concurrent_requests: Annotated[
        int, Meta(ge=0), _doc("requests in flight at most; 0: as many as there are tickets")
    ] = 0
    max_engine_requests: Annotated[
        int, Meta(ge=0), _doc("requests in flight on one engine at most; 0: no limit")
    ] = 0
    queue_size: Annotated[int, Meta(ge=0), _doc("requests that may wait for a place")] = 0
    queue_timeout: Annotated[Seconds, _doc("seconds a request may wait for a place")] = 10.0
    priority_header: Annotated[
        str,
        Meta(pattern="^[A-Za-z0-9-]*$"),
        _doc("field with a whole number: least first out of the queue; empty: first come"),
    ] = ""


class LearnerConfig(_Section, frozen=True):
    """The background learner of policy `lodestar`."""

    model: Annotated[
        Literal["linear", "mlp"], _doc("linear, or linear with a bounded MLP correction")
    ] = "mlp"
    round_seconds: Annotated[Seconds, _doc("seconds between training rounds")] = 1.0
    min_samples: Annotated[
        int, Meta(ge=1), _doc("measured first tokens before the model may decide")
    ] = 8
    niceness: Annotated[
        int, Meta(ge=0, le=19), _doc("how much lower the training thread's priority is")
    ] = 15
    learner_seed: Annotated[int, Meta(ge=0), _doc("seed of the network's initial weights")] = 0


class DecisionsConfig(_Section, frozen=True):
    """What is kept of single decisions, to explain and to evaluate them."""

    decisions: Annotated[
        int,
        Meta(ge=0, le=1 << 16),
        _doc("last decisions kept for /admin/decisions and `lodestar explain`; 0: none"),
    ] = 512
    decision_log: Annotated[
        bool, _doc("write every decision to state_dir/decisions, as JSON lines; never a prompt")
    ] = False
    decision_log_bytes: Annotated[
        int, Meta(ge=1 << 16), _doc("bytes of a log file before the next one begins")
    ] = 64 << 20
    decision_log_files: Annotated[
        int, Meta(ge=1, le=1000), _doc("log files kept; the oldest goes")
    ] = 8


class Config(_Section, frozen=True):
    """The whole configuration."""

    serve: ServeConfig = ServeConfig()
    fleet: FleetConfig = FleetConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    routing: RoutingConfig = RoutingConfig()
    limits: LimitsConfig = LimitsConfig()
    learner: LearnerConfig = LearnerConfig()
    decisions: DecisionsConfig = DecisionsConfig()


class Option(Struct, frozen=True):
    """One setting as the command line sees it."""

    section: str
    name: str
    type: Any
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "LODESTAR_" + self.name.upper()


def options() -> Iterator[Option]:
    """Every setting, in the order of the tree."""
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            info = msgspec.inspect.type_info(field.type)
            text = ""
            while isinstance(info, msgspec.inspect.Metadata):
                text = (info.extra_json_schema or {}).get("description", text)
                info = info.type
            default = field.default
            if default is msgspec.NODEFAULT:
                default = field.default_factory()
            yield Option(section.name, field.name, info, default, text)


def _convert(option: Option, text: str, source: str) -> Any:
    """A flag's or variable's text as the type of its field."""
    kind = option.type
    try:
        if isinstance(kind, msgspec.inspect.BoolType):
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        if isinstance(kind, msgspec.inspect.IntType):
            return int(text)
        if isinstance(kind, msgspec.inspect.FloatType):
            return float(text)
    except (KeyError, ValueError):
        wanted = type(kind).__name__.removesuffix("Type").lower()
        raise ConfigError(f"{source}: `{text}` is not a value of type {wanted}") from None
    if isinstance(kind, msgspec.inspect.ListType):
        return text.replace(",", " ").split()
    return text


def resolve(
    flags: Mapping[str, Any], environ: Mapping[str, str], toml: str = "", path: str = ""
) -> Config:
    """The configuration from its sources; flags: by field name, text or already converted.

    Raises ConfigError naming the flag, the variable or the path in the file.
    """
    try:
        tree: dict[str, Any] = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: {e}") from None
    _check(tree, path)
    for option in options():
        section = tree.setdefault(option.section, {})
        for source, values, key in (
            (option.variable, environ, option.variable),
            (option.flag, flags, option.name),
        ):
            if (value := values.get(key)) is not None:
                section[option.name] = (
                    _convert(option, value, source) if isinstance(value, str) else value
                )
                _check({option.section: {option.name: section[option.name]}}, source, bare=True)
    return msgspec.convert(tree, Config)


def _check(tree: Mapping[str, Any], source: str, bare: bool = False) -> None:
    """Raise ConfigError if a tree does not fit. bare: the source already names the field."""
    try:
        msgspec.convert(tree, Config)
    except msgspec.ValidationError as e:
        text, _, where = str(e).partition(" - at ")
        where = where.strip("`").removeprefix("$.").removeprefix("$")
        if "unknown field" in text and where:
            text = f"in [{where}]: {text}"
        elif where and not bare:
            text = f"{where}: {text}"
        raise ConfigError(f"{source}: {text}") from None
