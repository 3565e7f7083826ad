"""Links, commands, options, files and tables in the guides: all that they name exists."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lodestar_fast import cli
from lodestar_fast.aliases import ALIASES, HINTS

ROOT = Path(__file__).parent.parent
GUIDES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("deploy/**/*.md"), *ROOT.glob("bench/*.md")]
    + [*ROOT.glob("csrc/*.md"), *ROOT.glob("lodestar_fast/data/*.md")]
)
MAKEFILES = {".": ROOT / "Makefile", "csrc": ROOT / "csrc" / "Makefile"}
# Programs that are not ours, with options of their own.
OTHERS = ("curl", "docker", "git", "helm", "kubectl", "pip", "promtool", "python", "vllm-router")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


def parser(verb: str) -> argparse.ArgumentParser:
    """The options of a verb, as the program makes them."""
    entry = cli.VERBS[verb]
    made = argparse.ArgumentParser()
    add = entry.add_arguments or importlib.import_module(entry.module).add_arguments
    add(made)
    return made


def options(of: argparse.ArgumentParser) -> set[str]:
    """Its options, and those of the verbs under it."""
    found = set()
    for action in of._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for under in action.choices.values() for option in options(under)}
    return found


OPTIONS = {verb: options(parser(verb)) for verb in cli.VERBS}
EVERY = set().union(*OPTIONS.values())


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command line in indented blocks, whole lines joined."""
    blocks = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"^(?:    |\t)(\S.*)$", blocks, re.M):
        line = re.split(r"\s{4,}", line)[0]  # what it does stands behind
        for part in line.split(" && "):
            try:
                yield shlex.split(part, comments=True)
            except ValueError:  # prose, or a quote that goes on
                continue


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_links_lead_somewhere(guide: Path) -> None:
    text = guide.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (guide.parent / path).resolve() if path else guide
        assert page.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(page.read_text()), f"{target} has no such heading"


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_commands_of_ours_can_be_given(guide: Path) -> None:
    for words in commands(guide.read_text()):
        program = words[0].rsplit("/", 1)[-1] if words else ""
        if program == "lodestar" and len(words) > 1:
            verb = words[1]
            assert verb in cli.VERBS or verb.startswith("-"), " ".join(words)
            used = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert used <= OPTIONS.get(verb, set()), f"{verb}: {used - OPTIONS[verb]}"
        elif program in ("helm", "kubectl", "docker", "promtool"):
            for word in words:
                assert not word.startswith("deploy/") or (ROOT / word).exists(), word
        elif program == "make":
            check_make(words[1:])
        elif program == "python" and len(words) > 1:
            check_python(words[1:])


def check_make(words: list[str]) -> None:
    folder = "."
    if words[:1] == ["-C"]:
        folder, words = words[1].removeprefix("../"), words[2:]
    rules = MAKEFILES[folder].read_text()
    for word in words:
        if re.fullmatch(r"[a-z][\w/-]*", word):
            target = re.escape(word)
            assert re.search(
                rf"^([\w $()/.-]* )?(\$\(BUILD\)/|build/)?{target}\b.*:", rules, re.M
            ), f"make {word}"


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        if words[1].startswith("tests."):
            assert (ROOT / words[1].replace(".", "/")).with_suffix(".py").exists(), words[1]
    elif words[0].endswith(".py"):
        assert (ROOT / words[0]).exists(), words[0]


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_options_in_the_text_exist(guide: Path) -> None:
    known = EVERY | ALIASES.keys() | HINTS.keys() | {"--version", "--accept", "--ratio"}
    for span in re.findall(r"`([^`\n]+)`", guide.read_text()):
        if not span.startswith(OTHERS):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", span):
                assert option in known, f"{name(guide)}: {option}"


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_verbs_in_the_text_exist(guide: Path) -> None:
    for verb in re.findall(r"`(?:\.venv/bin/)?lodestar ([a-z][\w-]*)", guide.read_text()):
        assert verb in cli.VERBS, f"lodestar {verb}"


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_metrics_in_the_text_exist(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if guide.name == "metrics.md":
        return
    table = (ROOT / "deploy" / "metrics.md").read_text()
    declared = set(re.findall(r"^\| `(lodestar_\w+)`", table, re.M))
    declared |= {f"{n}_{part}" for n in declared for part in ("sum", "count", "bucket")}
    used = set(re.findall(r"`(lodestar_[a-z_]+)`", guide.read_text())) - {"lodestar_fast"}
    assert used <= declared, used - declared


def test_the_table_of_metrics_is_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["metrics"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "deploy" / "metrics.md").read_text()
