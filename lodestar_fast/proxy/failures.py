"""What can go wrong between a client and an engine, by name, and what the client is told.

The names label metrics and are what Instance.note_failure() is given; interface and documentation
use them too. An answer made here never says which engine it was.
"""

from __future__ import annotations

from lodestar_fast.errors import ClientError, HttpError, UpstreamError

# kind: (status, message). The kind is the code in the body.
ENGINE: dict[str, tuple[int, str]] = {
    "connect": (503, "no engine accepted a connection"),
    "connect_timeout": (503, "connecting to an engine took longer than the connect timeout"),
    "reset": (502, "the engine closed the connection before it answered"),
    "malformed": (502, "the engine's answer was not valid HTTP"),
    "first_byte_timeout": (504, "no byte of an answer came within the first-byte timeout"),
    "request_timeout": (504, "the request took longer than the request timeout"),
    "stream_idle_timeout": (504, "the answer stopped for longer than the stream-idle timeout"),
    "truncated": (502, "the engine closed the connection in the middle of its answer"),
    "engine_gone": (502, "the engine refuses connections and sends nothing more"),
}

CLIENT: dict[str, tuple[int, str]] = {
    "header_timeout": (408, "the request head did not arrive within the header timeout"),
    "body_timeout": (408, "the request body did not arrive within the body timeout"),
}

_REFUSALS = {
    400: "bad_request",
    413: "body_too_large",
    417: "unknown_expectation",
    431: "head_too_large",
    501: "not_implemented",
    505: "unknown_version",
}


def engine_error(kind: str) -> UpstreamError:
    """The engines' fault; kind: a key of ENGINE."""
    status, message = ENGINE[kind]
    return UpstreamError(status, kind, message)


def client_timeout(kind: str) -> ClientError:
    """The client was too slow; kind: a key of CLIENT."""
    status, message = CLIENT[kind]
    return ClientError(status, "invalid_request_error", kind, message)


def refused(status: int, reason: str) -> ClientError:
    """The parser, or a limit, refused the request."""
    return ClientError(status, "invalid_request_error", _REFUSALS[status], reason)


def no_instance() -> UpstreamError:
    return UpstreamError(503, "no_instance", "no engine can take the request now")


def overloaded() -> HttpError:
    return HttpError(503, "overloaded_error", "overloaded", "too many requests at once")


def bodies_too_large() -> HttpError:
    return HttpError(
        503, "overloaded_error", "bodies_too_large", "the bodies of all requests take too much room"
    )


def too_many_connections() -> HttpError:
    return HttpError(
        503, "overloaded_error", "too_many_connections", "too many connections at once"
    )


def stopping() -> HttpError:
    """The drain grace is over."""
    return HttpError(503, "server_error", "router_stopping", "the router is being shut down")


def queue_timeout() -> HttpError:
    return HttpError(
        503, "overloaded_error", "queue_timeout", "no place was free within the queue timeout"
    )


def unauthorized() -> ClientError:
    return ClientError(
        401, "invalid_request_error", "invalid_api_key", "a valid API key is needed: Bearer KEY"
    )


def not_found() -> ClientError:
    """The path is not repeated: it is the client's, and may be long."""
    return ClientError(404, "invalid_request_error", "unknown_url", "unknown URL")


def wrong_method(allowed: str) -> ClientError:
    return ClientError(
        405, "invalid_request_error", "method_not_allowed", f"this URL takes {allowed} only"
    )


def internal() -> HttpError:
    return HttpError(500, "server_error", "internal_error", "the router failed; it was logged")
