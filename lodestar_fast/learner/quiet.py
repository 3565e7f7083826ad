"""Importing torch beside a running event loop, without stopping it.

A plain `import torch` in a thread stalls the loop for 170-220 ms. What the stalls are made of, and
the remedy for each:

    dlopen with the GIL held              -> preload() the libraries with the GIL released
    full garbage collections, 30-50 ms    -> collector off meanwhile; freeze() what came, then on
    pure Python holding on for 5 ms       -> a switch interval of 0.5 ms meanwhile

Lowering the switch interval for good brings nothing (torch releases the GIL in its own loops) and
costs context switches.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lodestar_fast.learner.preload import preload

# In the order of their dependencies; names that this build of torch lacks are skipped.
LIBRARIES: Final = (
    "libgomp*.so*",
    "libc10.so",
    "libtorch_cpu.so",
    "libtorch.so",
    "libshm.so",
    "libtorch_python.so",
)
SWITCH_INTERVAL: Final = 0.0005  # seconds


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection and short turns at the GIL, for the whole process, inside the block.

    What was allocated inside stays out of later collections: modules live for good.
    """
    interval, collecting = sys.getswitchinterval(), gc.isenabled()
    gc.disable()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.freeze()
        if collecting:
            gc.enable()


def preload_torch() -> int:
    """Open torch's libraries without the GIL; how many were. 0 if torch is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return 0
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    paths = [path for pattern in LIBRARIES for path in sorted(folder.glob(pattern))]
    return sum(preload(bytes(path)) for path in paths)
