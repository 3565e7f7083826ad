"""`simulate --report`: the table and four drawings as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lodestar_fast import __version__, plots
from lodestar_fast.errors import ConfigError
from lodestar_fast.report import CSS, prediction_error
from lodestar_fast.simulate.plan import LEARNED, Measured
from lodestar_fast.simulate.show import NOTE, STANDARD_ERROR, result_rows


def write_page(
    folder: str,
    title: str,
    command: str,
    runs: Sequence[dict[str, Any]],
    first: Mapping[str, Measured],
    labels: Sequence[str],
) -> Path:
    """index.html in a folder, made if need be. Raises ConfigError naming --report.

    runs: as in the JSON document; first: by policy, the runs of the first seed, which are drawn;
    labels: by slot, e.g. "0 a30".
    """
    path = Path(folder) / "index.html"
    text = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Lodestar simulation</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>",
            "<h1>Lodestar simulation</h1>",
            f'<p class="verdict">{html.escape(title)}</p>',
            _table(runs, list(first)),
            *_figures(first, labels),
            "<h2>How this was made</h2>",
            f"<pre>{html.escape(command)}</pre>",
            f'<p class="soft">Lodestar {html.escape(__version__)}. Router and learner are the real '
            "ones, the engines a model in virtual time: it shows how policies compare, not what a "
            "GPU does to the millisecond. The first tenth of a run is warm-up and in no number of "
            "the table.</p>\n</main>\n</body>\n</html>\n",
        ]
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"--report: cannot write {path}: {e.strerror}") from None
    return path


def _table(runs: Sequence[dict[str, Any]], policies: Sequence[str]) -> str:
    head, rows = result_rows(runs, policies)
    lines = ['<div class="scroll"><table><thead><tr>']
    lines += [f'<th scope="col">{html.escape(name)}</th>' for name in head]
    lines.append("</tr></thead><tbody>")
    for cells in rows:
        kind = ' class="ours"' if cells[0] == LEARNED else ""
        lines.append(
            f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    lines.append("</tbody></table></div>")
    if STANDARD_ERROR in head:
        lines.append(f'<p class="soft">{html.escape(NOTE)}.</p>')
    return "\n".join(lines)


def _figures(first: Mapping[str, Measured], labels: Sequence[str]) -> list[str]:
    records = {name: run.records for name, run in first.items()}
    some = next(iter(first.values()))
    counted = {name: [r for r in its if r.arrival >= some.warm_up] for name, its in records.items()}
    took_over = next((r.arrival for r in records.get(LEARNED, []) if r.predicted is not None), None)
    figures = [
        _figure(
            "Time to first token over time",
            plots.ttft_over_time(records, took_over, some.warm_up, "counted"),
            f"Of seed {some.seed}. Every policy gets the same requests at the same moments; each "
            "point is the mean over what arrived in the ten seconds before it. Lower is better.",
        ),
        _figure(
            "Distribution",
            plots.distribution(counted),
            "For each time, the share of requests whose first token had come by then.",
        ),
    ]
    error = prediction_error(records.get(LEARNED, []))
    if error is not None:
        figures.append(
            _figure(
                "What was predicted, and what came",
                plots.prediction(records[LEARNED]),
                f"Each request that was routed with a model. The band, a factor of two either way, "
                f"holds {error[1]:.0%}; the median error is a factor of {error[0]:.2f}.",
                ' class="narrow"',
            )
        )
    counts = {
        name: Counter(_label(r.instance, labels) for r in its if r.instance)
        for name, its in records.items()
    }
    known = {label for by_label in counts.values() for label in by_label}
    if known:
        order = sorted(known, key=lambda label: int(label.split()[0]))
        figures.append(
            _figure(
                "Where the requests went",
                plots.shares(counts, order),
                "Share of requests that each engine got, by its slot and GPU.",
            )
        )
    return figures


def _label(slot: str, labels: Sequence[str]) -> str:
    return labels[int(slot)] if int(slot) < len(labels) else f"{slot} joined"


def _figure(title: str, svg: str, caption: str, kind: str = "") -> str:
    return (
        f"<h2>{title}</h2>\n<figure{kind}>\n{svg}\n"
        f"<figcaption>{html.escape(caption)}</figcaption>\n</figure>"
    )
