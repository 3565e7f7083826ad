"""The report: one HTML page that needs nothing else, and the same tables as Markdown."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lodestar_fast import __version__
from lodestar_fast.errors import ConfigError
from lodestar_fast.matrix import drawings, robust
from lodestar_fast.matrix.cells import OURS, Cell
from lodestar_fast.matrix.findings import Findings
from lodestar_fast.matrix.goals import goals
from lodestar_fast.matrix.store import Store
from lodestar_fast.matrix.tables import Table, every
from lodestar_fast.report import CSS, make_folder

STYLE = """
body { max-width: 84rem; }
td, th { font-size: .86rem; } td:nth-child(2) { white-space: normal; }
td.text, table.prose td, table.prose th { white-space: normal; text-align: left; }
td.text { min-width: 16rem; } table.prose td:nth-child(2) { white-space: nowrap; }
td.strong { font-weight: 700; }
figure, p, ul { max-width: 62rem; }
"""
LONG = 34  # letters from which on a cell is text, not a number


def write_report(folder: str, cells: Sequence[Cell], store: Store) -> Path:
    """index.html and report.md. Raises ConfigError naming --report or --store."""
    found = Findings(cells, store.of(cells))
    if not found.cells:
        raise ConfigError(f"--store: {store.path} has no run of {OURS} in these cells")
    make_folder(folder)
    path = Path(folder) / "index.html"
    tables = [goals(found), *every(found)]
    if store.draws:
        tables.append(robust.table(store.draws.values()))
    try:
        path.write_text(_page(found, tables, _made(cells, store)), encoding="utf-8")
        (Path(folder) / "report.md").write_text(markdown(tables, _made(cells, store)), "utf-8")
    except OSError as e:
        raise ConfigError(f"--report: cannot write {path}: {e.strerror}") from None
    return path


def _made(cells: Sequence[Cell], store: Store) -> list[str]:
    """What the numbers are from."""
    rows = store.of(cells)
    code = Counter(row.code for row in rows if row.policy == OURS)
    seeds = Counter(len({r.seed for r in rows if r.cell == c.name}) for c in cells)
    lines = [
        f"{len(rows):,} runs of {len({r.cell for r in rows})} cells, "
        f"{sum(row.requests for row in rows):,} requests, "
        f"{sum(row.cpu for row in rows) / 3600:.1f} hours of one processor. "
        f"Lodestar {__version__}.",
        "Seeds: " + ", ".join(f"{n} in {cells} cells" for n, cells in sorted(seeds.items())) + ".",
    ]
    if len(code) > 1:
        lines.append(
            f"The runs of {OURS} are of {len(code)} versions of the code: "
            + ", ".join(f"{name} ({count})" for name, count in code.most_common())
            + "."
        )
    return lines


def markdown(tables: Iterable[Table], made: Sequence[str]) -> str:
    parts = ["# Evaluation\n", *made, ""]
    for table in tables:
        parts += [f"## {table.title}\n", table.markdown(), ""]
    return "\n".join(parts)


def _page(found: Findings, tables: Sequence[Table], made: Sequence[str]) -> str:
    first, *others = tables
    adapted = any(cell.marks for cell in found.cells)
    figures = [
        _figure(
            "How many times faster",
            drawings.ratios(found),
            "Mean TTFT, by cell, with 95 % intervals over the seeds. The best heuristic is the one "
            "that hindsight would choose for that cell. The clairvoyant knows what no router can.",
        ),
        _figure(
            "From a cold start",
            drawings.learning(found),
            "Distance to the clairvoyant router, in windows of ten seconds, geometric mean over "
            "the headline cells and seeds. Both learned policies know nothing at 0 s.",
        ),
    ]
    if adapted:
        figures.append(
            _figure(
                "When something changes",
                drawings.adaptation(found),
                "Mean TTFT in windows of ten seconds, geometric mean over the seeds. Dotted: the "
                "moments of the change.",
            )
        )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Lodestar evaluation</title>\n<style>{CSS}{STYLE}</style>\n</head>\n<body>",
            "<main>\n<h1>Lodestar: every policy in every cell</h1>",
            '<p class="soft">The real router and learner before simulated engines, in virtual '
            "time. TTFT is the time to the first token.</p>",
            *(f'<p class="soft">{html.escape(line)}</p>' for line in made),
            _table(first),
            *figures,
            *map(_table, others),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _table(table: Table) -> str:
    lines = [f"<h2>{html.escape(table.title)}</h2>"]
    kind = ' class="prose"' if table.prose else ""
    lines.append(f'<div class="scroll"><table{kind}><thead><tr>')
    lines += [f'<th scope="col">{html.escape(name)}</th>' for name in table.head]
    lines.append("</tr></thead><tbody>")
    for i, row in enumerate(table.rows):
        lines.append("<tr>")
        for k, text in enumerate(row):
            style = "text" if len(text) > LONG else "strong" if (i, k) in table.strong else ""
            lines.append(f'<td class="{style}">' if style else "<td>")
            lines[-1] += f"{html.escape(text)}</td>"
        lines.append("</tr>")
    lines.append("</tbody></table></div>")
    if table.note:
        lines.append(f'<p class="soft">{html.escape(table.note)}</p>')
    return "\n".join(lines)


def _figure(title: str, svg: str, caption: str) -> str:
    return (
        f"<h2>{title}</h2>\n<figure>\n{svg}\n"
        f"<figcaption>{html.escape(caption)}</figcaption>\n</figure>"
    )
