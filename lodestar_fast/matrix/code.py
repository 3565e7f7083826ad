"""Which code a run's numbers follow from: whether a row of the results file is still true.

Too wide, and a new page of the proxy throws hours of runs away; too narrow, and the report mixes
versions. So a policy's version is a hash of what decides its runs: the parts that all share, and
those that only this policy has. Lines that are only comment do not count. What is only configured
(defaults of LearnerConfig) counts by its values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

import lodestar_fast
from lodestar_fast.config import LearnerConfig
from lodestar_fast.simulate.plan import CLAIRVOYANTS, LEARNED, PAPER

# Patterns below the package; csrc stands beside it.
SHARED = (
    *("core/*.py", "core/*.pyx", "core/*.pxd", "sim/*.py", "sim/*.pyx", "sim/*.pxd"),
    *("simulate/plan.py", "slo.py", "summary.py", "matrix/workloads.py", "matrix/measure.py"),
    *("../csrc/*.c", "../csrc/*.h"),
)
CLAIRVOYANT = ("sim/oracle.py", "sim/references.py", "sim/bounds.py")
PUBLISHED = ("sim/paper/*.py",)
LEARNS = (
    *("core/learned.*", "core/modes.*", "core/evidence.*", "learner/*.py", "sim/later.py"),
    *("features.py", "governor.py", "watchdog.py"),
    *("../csrc/mlp.c", "../csrc/model.h", "../csrc/forward*"),
)
# In those folders, but in no run: the simulated engines' HTTP, kept decisions, snapshots.
APART = (
    *("sim/engine_*.py", "sim/calibrate.py", "sim/logged.py"),
    *("core/decisions.*", "core/record.*", "core/rerun.*", "core/snapshot.*"),
    *("../csrc/record.*", "../csrc/snapshot.*"),
    *("learner/checkpoint.py", "learner/preload.*", "learner/quiet.py"),
)


@cache
def code_version(policy: str) -> str:
    """policy: its name, without settings."""
    root = Path(lodestar_fast.__file__).parent
    only: tuple[str, ...] = ()
    if policy == LEARNED:
        only = LEARNS
    elif policy == PAPER:
        only = PUBLISHED
    elif policy in CLAIRVOYANTS:
        only = CLAIRVOYANT
    some = set(_files(root, SHARED)) - set(_files(root, (*CLAIRVOYANT, *PUBLISHED, *LEARNS)))
    paths = (some | set(_files(root, only))) - set(_files(root, APART))
    if not any(path.suffix == ".pyx" for path in paths):  # an installed wheel
        paths |= {*root.glob("core/*.so"), *root.glob("sim/*.so")}
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + _content(path))
    if policy == LEARNED:
        digest.update(msgspec.json.encode(LearnerConfig()))
    return digest.hexdigest()


def _files(root: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        folder = root
        if pattern.startswith("../"):
            folder, pattern = root.parent, pattern[3:]
        yield from folder.glob(pattern)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".so":
        return data
    comment = b"#"
    if path.suffix in (".c", ".h"):
        data, comment = re.sub(rb"/\*.*?\*/", b"", data, flags=re.DOTALL), b"//"
    lines = (line.rstrip() for line in data.splitlines())
    return b"\n".join(x for x in lines if x and not x.lstrip().startswith(comment))
