"""The page: whole, fetching nothing, honest about who won."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast import report
from lodestar_fast.errors import ConfigError
from lodestar_fast.report import Result, comparison, render, share_counts, verdict, write_report
from lodestar_fast.summary import Record

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Check(HTMLParser):
    """Every element closed in order, no id twice, every reference inside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.references.append(value or "")
            elif value:
                self.references += re.findall(r"url\(([^)]*)\)", value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def made(
    policy: str, mean: float, count: int = 400, took_over: float = 20.0, broken: int = 0
) -> list[Record]:
    rng = random.Random(f"{policy}{mean}")
    records = []
    for n in range(count):
        arrival = n * 150 / count
        ttft = rng.lognormvariate(0, 0.5) * mean / 1.133
        record = Record(n, arrival, 1000, output_tokens=50, ttft=ttft, tpot=0.02, e2e=ttft + 1)
        record.cached_tokens = rng.randrange(500)
        record.instance = f"id{rng.randrange(3)}"
        record.reason = "heuristic"
        if policy == "lodestar":
            record.reason = "learned" if arrival > took_over else "cold"
            record.predicted = ttft * rng.lognormvariate(0, 0.3) if arrival > took_over else None
        if n < broken:
            record.ttft, record.error = None, "503: none"
        records.append(record)
    return records


def result(ours: float = 0.07, **changes: object) -> Result:
    records = {
        "least_request": made("least_request", 0.3, broken=3),
        "lodestar": made("lodestar", ours),
        "lmetric": made("lmetric", 0.14),
    }
    labels = {f"id{n}": f"{n} {gpu}" for n, gpu in enumerate(("a30", "a30", "h100"))}
    made_result = Result(
        command="lodestar demo --seed 1 --fleet '<odd> & \"quoted\"'",
        seed=1,
        trace="mooncake_conversation",
        fleet="2xa30+1xh100",
        rate=13.0,
        workload="50 tokens a block",
        seconds=150.0,
        records=records,
        labels={policy: labels for policy in records},
        took_over=20.0,
        versions=report.versions(),
    )
    for name, value in changes.items():
        setattr(made_result, name, value)
    return made_result


@pytest.fixture(scope="module")
def page() -> str:
    return render(result())


def check(page: str) -> Check:
    parser = Check()
    parser.feed(page)
    parser.close()
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    for reference in parser.references:
        assert reference.startswith("#") and reference[1:] in parser.ids, reference
    return parser


def test_page_is_whole_and_fetches_nothing(page: str) -> None:
    parser = check(page)
    assert parser.tags.count("svg") == 4 and parser.tags.count("figcaption") == 4
    assert not {"script", "link", "iframe", "object"} & set(parser.tags)
    # Names of XML namespaces are the only addresses, and nothing fetches those.
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in page


def test_page_says_how_it_was_made(page: str) -> None:
    assert "--fleet &#x27;&lt;odd&gt; &amp; &quot;quoted&quot;&#x27;" in page
    for fact in (
        *("2xa30+1xh100", "400 to each router: mooncake_conversation", "seed 1"),
        *("13 requests a second", "within 0 ms of their time", "torch ", "cores"),
    ):
        assert fact in page
    assert "from 20 s on the model decides" in page


def test_colours_are_the_page_s_own(page: str) -> None:
    assert not re.search(r"#f[cde]00[0-9a-f]{2}", page)
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    defined = set(re.findall(r"(--[\w-]+):", report.CSS))
    assert used <= defined


def test_table_has_lodestar_last_and_ratios_to_it() -> None:
    rows = comparison(result())
    assert [row.policy for row in rows] == ["least_request", "lmetric", "lodestar"]
    assert rows[-1].ratio == pytest.approx(1.0)
    assert rows[0].ratio is not None and rows[0].ratio > 3
    assert rows[0].failed == 3 and rows[0].requests == 400
    assert rows[1].final["mean"] == pytest.approx(140, rel=0.15)


def test_verdict_is_honest() -> None:
    assert "with lmetric, the best heuristic: 2." in verdict(result(ours=0.06))
    assert "the heuristic was the faster one" in verdict(result(ours=0.9))
    assert "Nothing to compare" in verdict(result(records={"lmetric": []}))


def test_the_end_of_a_short_run_is_not_called_a_minute() -> None:
    assert (result().final_from, result().final_name) == (90.0, "final minute")
    short = result(seconds=8.0)
    assert short.final_from == pytest.approx(4.8) and short.final_name == "final 3.2 s"


def test_shares_are_counted_by_label() -> None:
    counts = share_counts(result(), "lodestar")
    assert set(counts) == {"0 a30", "1 a30", "2 h100"} and counts.total() == 400
    assert not share_counts(result(labels={}), "lodestar")


@pytest.mark.parametrize(
    "changes",
    [
        {"took_over": None, "labels": {}, "rate": None},
        {"records": {"lodestar": [], "lmetric": made("lmetric", 0.1, count=1)}},
        {"records": {"lmetric": made("lmetric", 0.1)}},
    ],
    ids=["nothing learned", "nothing measured", "no lodestar"],
)
def test_poor_runs_make_a_page_too(changes: dict[str, Any]) -> None:
    check(render(result(**changes)))


def test_written_or_refused(tmp_path: Path) -> None:
    path = write_report(str(tmp_path / "new" / "folder"), result())
    assert path.name == "index.html" and path.stat().st_size < 1 << 20
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--report"):
        write_report(str(tmp_path / "file"), result())
