"""The program: its verbs, its help, one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from lodestar_fast import cli
from lodestar_fast.config import Config, options
from lodestar_fast.core.policies import POLICIES

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in options():
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.delenv("LODESTAR_CONFIG", raising=False)


def mistake(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr that a wrong call gives."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lodestar")
    return err


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, verb in cli.VERBS.items():
        assert f"  {name} " in out and verb.help in out


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_each_verb_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main([name, "--help"])
    assert e.value.code == 0
    assert f"usage: lodestar {name}" in capsys.readouterr().out


def test_every_setting_is_a_flag_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in options():
        assert f" {option.flag} " in text
        assert option.help in text
        assert f"[{option.variable}]" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lodestar ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "a verb is missing; there are: serve"),
        (["sevre"], "no verb `sevre`"),
        (["serve", "--prot", "1"], "unrecognized arguments: --prot"),
        (["serve", "--po", "1"], "unrecognized arguments: --po"),
        (["serve", "--port"], "--port: expected one argument"),
        (["serve", "--port", "x"], "--port: `x` is not a value of type int"),
        (["serve", "--policy", "best"], "no policy `best`; there are: cache_aware, dynamo"),
        (["serve", "--mode", "canary:0"], "--mode): no mode `canary:0`; there are: off, shadow"),
        (["serve", "--mode", "maybe"], "--mode): no mode `maybe`; there are: off, shadow"),
        (["serve", "--config", "/no/such.toml"], "--config: /no/such.toml: No such file"),
        (["check-config", "a.toml", "--config", "b.toml"], "--config: give the file once"),
        (["check-config", "--worker-urls", "10.0.0.1:80"], "--worker-urls): `10.0.0.1:80`"),
        (["check-config", "--api-key-file", "/no/such"], "--api-key-file): /no/such: No such"),
        (
            ["check-config", "--max-instances", "1", "--worker-urls", "http://a", "http://b"],
            "2 engines, but --max-instances is 1",
        ),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in mistake(capsys, *argv)


def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LODESTAR_ADMIN_PORT", "eighty")
    assert "LODESTAR_ADMIN_PORT: `eighty`" in mistake(capsys, "check-config")


def test_a_key_file_without_a_key_would_lock_everyone_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n  \n")
    said = mistake(capsys, "check-config", "--admin-key-file", str(keys))
    assert "--admin-key-file" in said and "holds no key" in said


def test_check_config_prints_what_it_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lodestar.toml"
    file.write_text('[fleet]\nworker_urls = ["http://a:1"]\n[serve]\nport = 1\nadmin_port = 2\n')
    monkeypatch.setenv("LODESTAR_ADMIN_PORT", "3")
    argv = ["check-config", str(file), "--log-json", "--drain-grace", "7"]
    assert cli.main(argv) == 0
    tree = tomllib.loads(capsys.readouterr().out)
    config = msgspec.convert(tree, Config)
    assert (config.serve.port, config.serve.admin_port) == (1, 3)
    assert config.serve.log_json is True and config.serve.drain_grace == 7.0
    assert config.fleet.worker_urls == ["http://a:1"]
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == tree


def test_the_file_may_be_named_by_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lodestar.toml"
    file.write_text("[serve]\nport = 77\n")
    monkeypatch.setenv("LODESTAR_CONFIG", str(file))
    assert cli.main(["check-config"]) == 0
    assert "port = 77\n" in capsys.readouterr().out


def test_urls_may_be_given_either_way(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["check-config", "--worker-urls", "http://a:1,http://b:2", "http://c:3"])
    tree = tomllib.loads(capsys.readouterr().out)
    assert tree["fleet"]["worker_urls"] == ["http://a:1", "http://b:2", "http://c:3"]


def test_what_kubernetes_sets_for_a_service_of_our_name_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LODESTAR_PORT", "tcp://10.0.0.1:30000")
    assert cli.main(["check-config"]) == 0
    assert f"port = {Config().serve.port}\n" in capsys.readouterr().out


def test_policies_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(POLICIES)
    assert all(len(line.split()) > 3 for line in lines)


def test_features_are_a_markdown_table(capsys: pytest.CaptureFixture[str]) -> None:
    from lodestar_fast import features

    assert cli.main(["features"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert len(rows) == features.WIDTH


def test_help_and_checks_load_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from lodestar_fast import cli; cli.main(['--help']);"
        "cli.main(['check-config']); cli.main(['policies']);"
        "import lodestar_fast.proxy.server;"
        "print(sorted({'torch', 'numpy', 'aiohttp', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_reader_that_stops_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m lodestar_fast serve --help | head -1",
        cwd=ROOT,
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("usage: lodestar serve") and done.stderr == ""
