"""GET /admin/decisions and /admin/decisions/{request_id}: the last decisions, each with its why.
And the log of all of them, if there is to be one.

Making a decision readable takes some 0.2 ms, so a list is made piece by piece, with room for others
on the event loop in between.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote

import msgspec

from lodestar_fast import __version__
from lodestar_fast.config import Config
from lodestar_fast.core.decisions import Batch
from lodestar_fast.decisions.log import FOLDER, Log, Writer
from lodestar_fast.decisions.schema import SCHEMA
from lodestar_fast.decisions.why import describe
from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.instance import opaque_id

if TYPE_CHECKING:
    from lodestar_fast.proxy.server import Proxy

LIMIT: Final = 20  # of a list, if nothing is asked for ...
MOST: Final = 512  # ... and at most
HAND_OVER: Final = 0.25  # seconds between looks for what the log does not have yet


class Unknown(LookupError):
    """No such decision, or a limit that is no number; text for the operator. status: HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Decisions:
    """router: anything with `decisions`. since: when its clock stood at 0, seconds since 1970.
    fallback: the heuristic behind the model, by name."""

    def __init__(self, router: Any, since: float, fallback: str) -> None:
        self._router = router
        self._since = since
        self._fallback = fallback

    async def answer(self, path: str, query: str) -> bytes:
        """JSON of what is asked for; path: what follows /admin/decisions. Raises Unknown."""
        kept = self._router.decisions
        if kept is None:
            raise Unknown(404, "no decisions are kept (--decisions 0)")
        if path.strip("/"):
            request_id = unquote(path.strip("/"))
            found = kept.find(request_id)
            if not len(found):
                n = min(kept.made, kept.capacity)
                raise Unknown(404, f"no decision for that request id among the last {n}")
            return msgspec.json.encode(self._describe(found, 0, found.rows(self._since)[0]))
        try:
            limit = int(parse_qs(query).get("limit", [str(LIMIT)])[0])
        except ValueError:
            raise Unknown(400, "limit must be a whole number") from None
        batch = kept.last(max(0, min(limit, MOST)))
        pieces = []
        for i, row in reversed(list(enumerate(batch.rows(self._since)))):
            pieces.append(msgspec.json.encode(self._describe(batch, i, row)))
            await asyncio.sleep(0)
        return b'{"schema":%d,"decisions":[%b]}' % (SCHEMA, b",".join(pieces))

    def _describe(self, batch: Batch, i: int, row: bytes) -> dict[str, Any]:
        return describe(
            msgspec.json.decode(row + b"}"), batch.outcome(i), opaque_id, self._fallback
        )


# -- the log ---------------------------------------------------------------------------------------


def begin_log(config: Config, since: float, fallback: str) -> Log | None:
    """The log, if the configuration wants one. Raises ConfigError."""
    kept = config.decisions
    if not kept.decision_log:
        return None
    folder = os.path.join(config.serve.state_dir, FOLDER)
    try:
        writer = Writer(
            folder,
            since=since,
            block_bytes=config.routing.block_bytes,
            fallback=fallback,
            version=__version__,
            file_bytes=kept.decision_log_bytes,
            files=kept.decision_log_files,
        )
    except OSError as e:
        raise ConfigError(f"serve.state_dir (--state-dir): {folder}: {e.strerror}") from None
    return Log(writer)


def hand_over(proxy: Proxy) -> None:
    """What was decided and what ended since the last time. Copies, and never waits."""
    if proxy.decision_log is not None and proxy.router.decisions is not None:
        proxy.decision_log.offer(proxy.router.decisions.take())


async def keep_logging(proxy: Proxy) -> None:
    while proxy.decision_log is not None:
        await asyncio.sleep(HAND_OVER)
        hand_over(proxy)


async def end_log(proxy: Proxy) -> None:
    if proxy.decision_log is not None:
        hand_over(proxy)
        await asyncio.to_thread(proxy.decision_log.close)


def log_counts(proxy: Any) -> dict[str, int]:
    """Decisions by what the log did with them; empty without one."""
    if proxy.decision_log is None:
        return {}
    counts: dict[str, int] = proxy.decision_log.counts()
    return {**counts, "dropped": counts["dropped"] + proxy.router.decisions.lost}
