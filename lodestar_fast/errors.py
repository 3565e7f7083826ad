"""Every error that has a meaning to a user, sorted by whose fault it is.

Raised anywhere; turned into an HTTP answer only by proxy/exchange, into an exit code only by cli.
"""

from __future__ import annotations


class LodestarError(Exception):
    """Root of ours; never raised itself."""


class ConfigError(LodestarError):
    """The operator's: a wrong option, file or value. The text names the option or the path."""


class BlobError(LodestarError):
    """A weight blob, sample batch or checkpoint of another format, version or feature schema."""


class InvariantError(LodestarError):
    """Ours: a state that cannot be. Logged and counted; the request is answered with 500."""


class HttpError(LodestarError):
    """Something a client gets to see, in OpenAI's error shape.

    status: the HTTP status; type, code: the fields of that name in the body; message: the text.
    """

    def __init__(
        self, status: int, type: str, code: str, message: str, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.message = message
        self.param = param


class ClientError(HttpError):
    """The client's: 4xx."""


class UpstreamError(HttpError):
    """The engines': 502, 503, 504. retryable: no byte of an answer had been relayed."""

    def __init__(self, status: int, code: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(status, "upstream_error", code, message)
        self.retryable = retryable


class NoInstanceError(LodestarError):
    """No instance may be chosen: none exists, none is routable, or all were avoided."""
