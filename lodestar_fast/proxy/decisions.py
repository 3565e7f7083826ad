"""GET /admin/decisions and /admin/decisions/{request_id}: the last decisions, each with its why.

Making a decision readable takes some 0.2 ms, so a list is made piece by piece, with room for others
on the event loop in between.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import msgspec

from lodestar_fast.core.decisions import Batch
from lodestar_fast.decisions.schema import SCHEMA
from lodestar_fast.decisions.why import describe
from lodestar_fast.proxy.instance import opaque_id

LIMIT: Final = 20  # of a list, if nothing is asked for ...
MOST: Final = 512  # ... and at most


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
