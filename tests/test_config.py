"""Settings: names, defaults, precedence, and that each mistake is named."""

from __future__ import annotations

import math

import msgspec
import pytest

from lodestar_fast.config import Config, options, resolve
from lodestar_fast.errors import ConfigError

NAMES = [option.name for option in options()]


def test_names_are_unique_and_every_option_has_its_help() -> None:
    assert len(NAMES) == len(set(NAMES))
    for option in options():
        assert option.help and option.help[0].islower() and not option.help.endswith(".")
        assert option.flag == "--" + option.name.replace("_", "-")
        assert option.variable == "LODESTAR_" + option.name.upper()


def test_defaults_are_those_of_the_tree() -> None:
    assert resolve({}, {}) == Config()
    for option in options():
        assert getattr(getattr(Config(), option.section), option.name) == option.default


def test_flag_wins_over_variable_over_file_over_default() -> None:
    toml, environ, flags = "[serve]\nport = 1", {"LODESTAR_PORT": "2"}, {"port": "3"}
    assert resolve({}, {}).serve.port == 30000
    assert resolve({}, {}, toml).serve.port == 1
    assert resolve({}, environ, toml).serve.port == 2
    assert resolve(flags, environ, toml).serve.port == 3


def test_text_becomes_the_type_of_its_field() -> None:
    config = resolve(
        {"worker_urls": "http://a:1,http://b:2 http://c:3", "log_json": "true", "drain_grace": "5"},
        {"LODESTAR_EXPLAIN_HEADERS": "1", "LODESTAR_SEED": "7", "UNRELATED": "x"},
    )
    assert config.fleet.worker_urls == ["http://a:1", "http://b:2", "http://c:3"]
    assert config.serve.log_json is True and config.serve.explain_headers is True
    assert config.serve.drain_grace == 5.0 and config.routing.seed == 7


def test_flags_may_be_converted_already() -> None:
    assert resolve({"worker_urls": ["http://a:1"], "port": 5}, {}).serve.port == 5


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[serve]\nprot = 1", ["f.toml", "serve", "prot"]),
        ("[server]\nport = 1", ["f.toml", "server"]),
        ("[serve]\nport = 'x'", ["f.toml", "serve.port", "int"]),
        ("[serve]\nport = 70000", ["f.toml", "serve.port", "65535"]),
        ("[serve]\ndrain_grace = -1", ["f.toml", "serve.drain_grace"]),
        ("[serve]\nlog_level = 'loud'", ["f.toml", "serve.log_level", "loud"]),
        ("[fleet]\nworker_urls = 'http://a'", ["f.toml", "fleet.worker_urls", "array"]),
        ("[serve\nport = 1", ["f.toml", "line 1"]),
        ("serve = 1", ["f.toml", "serve"]),
    ],
)
def test_mistakes_in_the_file_name_file_and_path(toml: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        resolve({}, {}, toml, "f.toml")
    for word in said:
        assert word in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "x"),
        ("port", "-1"),
        ("log_json", "maybe"),
        ("drain_grace", "0"),
        ("drain_grace", "nan"),
        ("drain_grace", "soon"),
        ("index_bytes", "1.5"),
        ("log_level", "loud"),
        ("model", "transformer"),
    ],
)
def test_mistakes_elsewhere_name_flag_or_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="^--" + name.replace("_", "-") + ":"):
        resolve({name: value}, {})
    with pytest.raises(ConfigError, match=f"^LODESTAR_{name.upper()}:"):
        resolve({}, {f"LODESTAR_{name.upper()}": value})


def test_a_flag_does_not_excuse_a_wrong_variable() -> None:
    with pytest.raises(ConfigError, match="LODESTAR_PORT"):
        resolve({"port": "5"}, {"LODESTAR_PORT": "x"})


def test_the_tree_cannot_be_changed_afterwards() -> None:
    with pytest.raises(AttributeError):
        Config().serve.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_every_default_is_within_its_own_range(name: str) -> None:
    option = next(o for o in options() if o.name == name)
    tree = {option.section: {name: option.default}}
    assert msgspec.convert(tree, Config) == Config()
    if isinstance(option.default, float):
        assert math.isfinite(option.default)
