"""The README's results: made from the results file, between two marks, and nothing typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from lodestar_fast.errors import ConfigError
from lodestar_fast.matrix.cells import CLAIRVOYANT, OURS, PUBLISHED, Cell
from lodestar_fast.matrix.findings import BEST, Findings, p99_ttft
from lodestar_fast.matrix.store import Store
from lodestar_fast.matrix.tables import PREFIX, Table, ms, times

BEGIN, END = "<!-- results -->", "<!-- /results -->"
SHOWN = {
    "mix-conversation-90": "4 A30 + 2 L20 + 1 H100",
    "a30-conversation-90": "8 A30",
    "v100-conversation-90": "7 A30 + 8 V100",
}
POLICIES = {
    PREFIX: "`prefix_cache`",
    "lmetric": "`lmetric`",
    "llmd_weighted": "`llmd_weighted`",
    "expected_completion": "`expected_completion`",
    PUBLISHED: f"`{PUBLISHED}`",
    OURS: "**lodestar**",
    CLAIRVOYANT: "*clairvoyant greedy*",
}
WIDTH = 120


def block(cells: Sequence[Cell], store: Store, quick: bool) -> str:
    """What stands between the marks. Raises ConfigError if the results have none of the cells."""
    found = Findings(cells, store.of(cells))
    shown = [cell for cell in found.cells if cell.name in SHOWN]
    if not shown:
        raise ConfigError(f"--readme: {store.path} has no results of {', '.join(SHOWN)}")
    shown.sort(key=lambda cell: list(SHOWN).index(cell.name))
    seeds = sorted({len(found.rows[cell.name][OURS]) for cell in found.cells})
    head = ["mean / P99 TTFT, ms"]
    for cell in shown:
        rate = next(iter(found.rows[cell.name][OURS].values())).rate
        head.append(f"{SHOWN[cell.name]}, {rate:.3g} req/s")
    rows = []
    for policy, label in POLICIES.items():
        levels = [(found.level(c, policy), found.level(c, policy, p99_ttft)) for c in shown]
        if any(mean for mean, _ in levels):
            texts = [f"{ms(mean)} / {ms(p99)}" for mean, p99 in levels]
            bold = policy == OURS
            rows.append([label, *(f"**{t}**" if bold else t for t in texts)])
    span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    intro = (
        f"Simulated engines, {span} {'seed' if span == '1' else 'seeds'} of "
        f"{shown[0].seconds:.0f} s, the model learning from "
        "cold in each; the first tenth is not counted. The load is 90 % of what a clairvoyant "
        "router keeps up with. `expected_completion` is told each GPU's true coefficients."
    )
    parts = [
        BEGIN,
        _filled(intro),
        "",
        Table("", head, rows).markdown(),
        "",
        _filled(_sentence(found, "make paper-quick" if quick else "make paper")),
        END,
    ]
    return "\n".join(parts)


def _filled(text: str) -> str:
    return fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def _sentence(found: Findings, command: str) -> str:
    """Over all headline cells."""
    texts, intervals = [], False
    for rival, name in (
        (PREFIX, f"`{PREFIX}`"),
        (PUBLISHED, f"`{PUBLISHED}` (the paper's system)"),
        (BEST, "the best heuristic of each cell in hindsight"),
    ):
        if mean := found.geometric(rival):
            intervals |= mean.low < mean.high
            texts.append(f"{times(mean)} times as fast as {name}")
    compared = found.comparisons(BEST)
    lost = [f"`{c.cell.name}` ({c.mean.value:.2f})" for c in compared if c.verdict == "lost"]
    if lost:
        outcome = f"Lost to that: {', '.join(lost)}."
    else:  # with a seed or two hardly anything is certain
        least = min(compared, key=lambda c: c.mean.value, default=None)
        outcome = "No cell is certainly lost to that"
        outcome += f"; the least is {least.mean.value:.2f}, `{least.cell.name}`." if least else "."
    return (
        f"[`{command}`](bench/paper/README.md), {len(found.headline)} cells, geometric means"
        f"{' with 95 % intervals' * intervals}: {', '.join(texts)}. {outcome}"
    )


def update_readme(path: Path, cells: Sequence[Cell], store: Store, quick: bool) -> None:
    """Put the block in. Raises ConfigError naming --readme."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"--readme: {path}: {e.strerror}") from None
    new, count = re.subn(
        f"{BEGIN}.*?{END}", lambda _: block(cells, store, quick), text, flags=re.DOTALL
    )
    if count != 1:
        raise ConfigError(f"--readme: {path} has not one pair of {BEGIN} and {END}")
    path.write_text(new, encoding="utf-8")
