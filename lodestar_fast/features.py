"""The feature table as Python sees it. Everything here is read from csrc/features.h.

FEATURES: (name, unit, scale, help) for each column; WIDTH: how many; INDEX: {name: column};
SCHEMA_HASH: names the table in weight blobs, sample batches and checkpoints.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from lodestar_fast.core.policies import feature_table, schema_hash

if TYPE_CHECKING:
    import numpy as np

FEATURES: Final[list[tuple[str, str, float, str]]] = feature_table()
WIDTH: Final[int] = len(FEATURES)
INDEX: Final[dict[str, int]] = {name: column for column, (name, *_) in enumerate(FEATURES)}
SCHEMA_HASH: Final[int] = schema_hash()


@functools.cache
def sample_dtype() -> np.dtype[Any]:
    """A row of Router.drain() (struct ls_sample in csrc/lodestar.h). Needs numpy.

    Unknown floats are NaN; cached_tokens unknown is 0xFFFFFFFF.
    """
    import numpy as np

    fields: list[tuple[Any, ...]] = [("dispatched", "<f8"), ("x", "<f4", (WIDTH,))]
    fields += [
        (name, "<f4") for name in ("ttft", "e2e", "tpot", "predicted", "propensity", "reference")
    ]
    fields += [
        (name, "<u4")
        for name in (
            "prompt_tokens",
            "output_tokens",
            "cached_tokens",
            "hit_tokens",
            "weights_version",
            "tenant",
        )
    ]
    fields += [("slot", "<u2"), ("reason", "u1"), ("event", "u1")]
    packed = np.dtype(fields)
    if padding := -packed.itemsize % 8:
        packed = np.dtype([*fields, ("_padding", f"V{padding}")])
    return packed


def as_markdown() -> str:
    """The table for the documentation."""
    lines = ["| feature | unit | scale | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{name}` | {unit} | {scale:.6g} | {help} |" for name, unit, scale, help in FEATURES
    ]
    return "\n".join(lines) + "\n"
