"""What may be taken out of the learner to see what it is worth: the evaluation's variants.

No setting of a product: each default is what proved best in the closed loop, and all else is here
so that this can be measured again (`lodestar simulate --policy lodestar:prior=false`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from lodestar_fast.learner.archives import Coreset, Strata
from lodestar_fast.learner.buffer import Archive
from lodestar_fast.learner.linear import TERMS, Term


class Ablation(Struct, frozen=True, forbid_unknown_fields=True):
    """hidden: units in each of the network's two layers. prior: False leaves the coefficients of
    the physical model to the data alone: none is pulled anywhere, and none is given, not even
    those of work and queue, which are otherwise 1. buffer: rows that the network is trained on,
    the newest, or half of them and half older ones (archives.py).
    """

    hidden: Annotated[int, Meta(ge=1, le=128)] = 24
    prior: bool = True
    buffer: Literal["recent", "strata", "coreset"] = "recent"

    @property
    def terms(self) -> tuple[Term, ...]:
        """Of the physical model."""
        if self.prior:
            return TERMS
        # So little that ten samples outweigh it; without any the sums could not be inverted.
        return tuple(Term(term.column, 0.0, 0.01) for term in TERMS)

    def archive(self, seed: int) -> Archive | None:
        """A new one, of old rows."""
        if self.buffer == "strata":
            return Strata(seed)
        return Coreset() if self.buffer == "coreset" else None


NONE = Ablation()
