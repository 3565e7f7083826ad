"""The admin port's routes about the model: mode, freeze, thaw, rollback, export, import."""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from lodestar_fast import history
from lodestar_fast.clock import Clock
from lodestar_fast.errors import BlobError, ConfigError
from lodestar_fast.governor import Governor
from lodestar_fast.proxy.refused import Refused, allow

IMPORT: Final = "/admin/model/import"


class _NewMode(msgspec.Struct, forbid_unknown_fields=True):
    mode: str


class _Version(msgspec.Struct, forbid_unknown_fields=True):
    version: int | None = None


class Model(Protocol):
    """What of the proxy the admin port needs for these routes and the probes."""

    governor: Governor | None
    clock: Clock

    def model_status(self) -> dict[str, Any]: ...

    def answer(self, method: bytes, path: bytes) -> tuple[int, bytes, bytes] | None: ...


def answer(model: Model, method: bytes, parts: list[str], body: bytes) -> Any:
    """What a path of these answers: bytes, or something JSON-ready; None for any other path.

    parts: the path, split at its slashes. Raises Refused.
    """
    if parts == ["admin", "model"]:
        allow(method, b"GET")
        return model.model_status()
    if parts == ["admin", "mode"]:
        allow(method, b"GET", b"POST")
        return _mode(_governor(model), body if method == b"POST" else b"")
    if parts[:2] != ["admin", "model"]:
        return None
    if parts[2:] in (["freeze"], ["thaw"], ["rollback"], ["import"]):
        allow(method, b"POST")
        return _steer(_governor(model), model.clock.now(), parts[2], body)
    if parts[2:3] == ["versions"] and len(parts) == 4:
        allow(method, b"GET")
        return _export(_governor(model), parts[3])
    return None


def _governor(model: Model) -> Governor:
    if model.governor is None:
        raise Refused(409, "the policy that decides does not learn (--policy)")
    return model.governor


def _mode(governor: Governor, body: bytes) -> dict[str, Any]:
    """Set the mode, if there is a body. The mode, and the share that the model decides now."""
    if body:
        try:
            governor.set_mode(msgspec.json.decode(body, type=_NewMode).mode)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Refused(400, f'the body must be {{"mode": "canary:10"}}: {e}') from None
        except ConfigError as e:
            raise Refused(400, str(e)) from None
    state = governor.watchdog.state
    return {"mode": governor.mode, "share": governor.policy.share, "watchdog": state}


def _steer(governor: Governor, now: float, verb: str, body: bytes) -> dict[str, Any]:
    """freeze, thaw, rollback, import."""
    try:
        if verb == "freeze":
            governor.freeze()
        elif verb == "thaw":
            governor.thaw(now)
        elif verb == "import":
            governor.adopt(history.unsealed(body), now)
        else:
            governor.rollback(msgspec.json.decode(body or b"{}", type=_Version).version)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Refused(400, f'the body may be {{"version": n}}: {e}') from None
    except LookupError as e:
        raise Refused(404, f"{e.args[0]} is not kept; GET /admin/model lists them") from None
    except BlobError as e:
        raise Refused(409, str(e)) from None
    return {"version": governor.policy.version, "frozen": governor.frozen}


def _export(governor: Governor, word: str) -> bytes:
    """A kept version's weights, as they are kept in files; word: its number, or `current`."""
    number = governor.policy.version if word == "current" else -1
    if word.isascii() and word.isdigit() and len(word) < 12:
        number = int(word)
    held = governor.history.find(number)
    if held is None:
        raise Refused(404, f"version {word[:20]} is not kept; GET /admin/model lists them")
    return history.sealed(held.blob)
