"""A log of decisions as a trace: what came when, how long it was, what it shared with what.

A request that was tried several times came once. What was not answered is taken to have wanted as
many tokens as the median answer.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from lodestar_fast.decisions.reading import read_files
from lodestar_fast.decisions.schema import Row
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.workload import Request, Trace, read_trace


def read_any(path: str | Path, sessions: bool = False) -> Trace:
    """A trace file, a log file, or the folder of a log; sessions: of read_trace(). Raises
    ConfigError."""
    path = Path(path)
    return read(path) if is_log(path) else read_trace(path, sessions)


def is_log(path: Path) -> bool:
    """Whether it is a folder, or its first line is that of a log."""
    if path.is_dir():
        return True
    try:
        with open(path, "rb") as file:
            return file.read(64).startswith(b'{"meta":{"kind":"decisions"')
    except OSError:
        return False  # the reader of traces says why


def read(path: Path) -> Trace:
    """Raises ConfigError."""
    rows: list[tuple[Row, int]] = []  # with what its process' numbers begin at here
    first: dict[float, int] = {}  # by process
    next_number, block_bytes = 0, 0
    for meta, found in read_files([str(path)]):
        block_bytes = meta["prefix_bytes"]
        base = first.setdefault(meta["since"], next_number)
        for row in found:
            if row["try"] == 1:
                rows.append((row, base))
            ends = [n + m for n, m in zip(row["h"][::2], row["h"][1::2], strict=True)]
            next_number = max([next_number, *(base + end for end in ends)])
    if not rows:
        raise ConfigError(f"{path}: no requests in the log")
    rows.sort(key=lambda pair: pair[0]["t"])
    start = rows[0][0]["t"]
    answered = [n for row, _ in rows if (n := (row["outcome"] or {}).get("output_tokens"))]
    usual = max(1, round(median(answered))) if answered else 1
    bytes_per_token = median(row["bytes"] / _prompt(row) for row, _ in rows)
    block_tokens = max(1, round(block_bytes / bytes_per_token)) if bytes_per_token else 0
    requests = []
    for index, (row, base) in enumerate(rows):
        numbers = [n + base * (k % 2 == 0) for k, n in enumerate(row["h"])]
        output = (row["outcome"] or {}).get("output_tokens") or usual
        requests.append(
            Request(index, row["t"] - start, _prompt(row), output, block_tokens, tuple(numbers))
        )
    return Trace(path.name.removesuffix(".jsonl"), tuple(requests), block_tokens)


def _prompt(row: Row) -> int:
    """Tokens as the engine counted them, if it did."""
    counted = (row["outcome"] or {}).get("prompt_tokens")
    return max(1, int(counted or row["in"]))
