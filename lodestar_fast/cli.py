"""The program `lodestar`: its verbs, their options, and what goes wrong at the start.

The only module that reads the environment and the command line. A verb's modules are imported when
it is called, so that `--help` is quick and `serve` listens early. An operator's mistake ends the
program with status 2 and one line on stderr that names the option, the variable or the path.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lodestar_fast import __version__
from lodestar_fast.errors import ConfigError

if TYPE_CHECKING:
    from lodestar_fast.config import Config, Option

# What verbs need beyond the router itself comes with an extra of the package.
_TOOLS = frozenset({"aiohttp", "matplotlib", "numpy", "rich", "torch"})


class Verb(NamedTuple):
    """One verb. module: has add_arguments(parser) and run(args); "": both are given here."""

    help: str
    module: str = ""
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None
    run: Callable[[argparse.Namespace], int] | None = None


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _metavar(option: Option) -> str:
    """What an option's value looks like in the help."""
    values = getattr(option.type, "values", None)  # of a Literal
    if values:
        return "|".join(values)
    named = {bool: "true|false", int: "N", float: "S"}
    if isinstance(option.default, list):
        listed = {"worker_urls": "URL", "engine_prices": "URL=PRICE"}
        return listed.get(option.name, "NAME")
    return named.get(type(option.default), option.name.rpartition("_")[2].upper())


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    """Every option of the configuration, in the groups of its tree."""
    from lodestar_fast import aliases, config

    parser.usage = f"{parser.prog} [options]"
    parser.epilog = "Brackets hold the default and the environment variable. A flag wins over the "
    parser.epilog += "variable, the variable over the file. S: seconds. Other routers' names for "
    parser.epilog += "some of these work too: " + " ".join(aliases.ALIASES) + "."
    parser.add_argument("--config", metavar="FILE", help="TOML file [none] [LODESTAR_CONFIG]")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in config.options():
        if option.section not in groups:
            section = getattr(config.Config(), option.section)
            groups[option.section] = parser.add_argument_group(
                option.section, (type(section).__doc__ or "").replace("%", "%%")
            )
        kind: dict[str, Any] = {"metavar": _metavar(option)}
        if isinstance(option.default, bool):
            kind |= {"nargs": "?", "const": "true"}
        elif isinstance(option.default, list):
            kind |= {"nargs": "+"}
        default = option.default
        if isinstance(default, list):
            default = " ".join(default)
        elif not isinstance(default, str):
            default = json.dumps(default)
        groups[option.section].add_argument(
            option.flag,
            dest=option.name,
            help=f"{option.help} [{default or 'none'}] [{option.variable}]".replace("%", "%%"),
            **kind,
        )
    for flag, alias in aliases.ALIASES.items():
        nargs = 0 if alias.value else "+" if alias.name == "worker_urls" else None
        parser.add_argument(
            flag, dest=alias.name, action=_Foreign, nargs=nargs, help=argparse.SUPPRESS
        )
    for flag in aliases.HINTS:
        parser.add_argument(flag, action=_Unlike, nargs="*", help=argparse.SUPPRESS)


class _Foreign(argparse.Action):
    """Another router's flag that means what one of ours does."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, values: Any, flag: Any = ""
    ) -> None:
        from lodestar_fast.aliases import ALIASES

        alias = ALIASES[flag]
        if isinstance(values, str):
            values = alias.convert(values)
        setattr(args, self.dest, alias.value or values)


class _Unlike(argparse.Action):
    """Another router's flag that has no counterpart here, or one that differs."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, values: Any, flag: Any = ""
    ) -> None:
        from lodestar_fast.aliases import HINTS

        raise ConfigError(f"{flag} is of another router: {HINTS[flag]}")


def _load_config(args: argparse.Namespace) -> Config:
    """The configuration from flags, environment and file. Raises ConfigError."""
    from lodestar_fast import aliases, config

    # Kubernetes gives every pod LODESTAR_PORT=tcp://... if a service is called `lodestar`, and
    # likewise for LODESTAR_ADMIN_PORT; that is not addressed to us.
    environ = {k: v for k, v in os.environ.items() if not v.startswith(("tcp://", "udp://"))}
    path = args.config or environ.get("LODESTAR_CONFIG", "")
    toml = ""
    if path:
        try:
            with open(path, encoding="utf-8") as file:
                toml = file.read()
        except OSError as e:
            raise ConfigError(f"--config: {path}: {e.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"--config: {path}: not UTF-8") from None
    flags = {option.name: getattr(args, option.name) for option in config.options()}
    for name, value in flags.items():
        if value is not None and name in aliases.VALUES:
            flags[name] = aliases.VALUES[name](value)
        if isinstance(value, list):  # words, each of which may hold several
            flags[name] = [item for part in value for item in part.replace(",", " ").split()]
    return config.resolve(flags, environ, toml, path)


def _serve(args: argparse.Namespace) -> int:
    config = _load_config(args)

    from lodestar_fast import build, log

    log.configure(config.serve.log_level, config.serve.log_json)
    router = build.make_router(config)
    governor = build.make_governor(config, router)

    import uvloop

    from lodestar_fast.clock import MonotonicClock
    from lodestar_fast.proxy import server

    def announce(data: str, admin: str) -> None:
        if 0 in (config.serve.port, config.serve.admin_port):
            print(f"listening data={data} admin={admin}", flush=True)

    def read_again() -> Config:
        return _load_config(args)

    uvloop.run(server.serve(config, router, governor, MonotonicClock(), announce, read_again))
    if any(thread.name == "lodestar-learner" for thread in threading.enumerate()):
        # Left behind: back from torch while the interpreter ends, it would take the process down
        # by SIGABRT. All that was to be closed is closed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _add_check_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="the same as --config FILE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of TOML")
    _add_config_options(parser)


def _check_config(args: argparse.Namespace) -> int:
    if args.file:
        if args.config:
            raise ConfigError("--config: give the file once")
        args.config = args.file
    config = _load_config(args)

    import msgspec

    from lodestar_fast import build
    from lodestar_fast.proxy import prices
    from lodestar_fast.proxy.discovery.watching import sources
    from lodestar_fast.proxy.reload import parse_urls, read_all_keys

    build.make_router(config)
    parse_urls(config.fleet.worker_urls)
    read_all_keys(config)
    sources(config.discovery)
    prices.check(config)
    tree = msgspec.to_builtins(config)
    print(json.dumps(tree, indent=2) if args.json else _toml(tree), end="\n" if args.json else "")
    return 0


def _toml(tree: dict[str, dict[str, Any]]) -> str:
    """Two levels of strings, numbers, booleans and lists of them: JSON's forms are TOML's too."""
    sections = []
    for name, section in tree.items():
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in section.items()]
        sections.append(f"[{name}]\n" + "".join(lines))
    return "\n".join(sections)


def _features(args: argparse.Namespace) -> int:
    from lodestar_fast import features

    print(features.as_markdown().rstrip("\n"))
    return 0


def _metrics(args: argparse.Namespace) -> int:
    from lodestar_fast import build, metrics
    from lodestar_fast.clock import MonotonicClock
    from lodestar_fast.config import Config
    from lodestar_fast.proxy.server import Proxy

    config = Config()
    router = build.make_router(config)
    proxy = Proxy(config, router, build.make_governor(config, router), MonotonicClock())
    print(metrics.as_markdown(proxy.admin.collector))
    return 0


def _policies(args: argparse.Namespace) -> int:
    import inspect

    from lodestar_fast.core.policies import POLICIES

    width = max(map(len, POLICIES))
    for name, policy in sorted(POLICIES.items()):
        # Cython puts the signature before the text.
        lines = [line for line in (inspect.getdoc(policy) or "").splitlines() if line.strip()]
        text = next((line for line in lines if not line.startswith(policy.__name__ + "(")), "")
        print(f"{name:{width}}  {text}")
    return 0


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


VERBS = {
    "serve": Verb("run the router", "", _add_config_options, _serve),
    "engine": Verb("run simulated engines over HTTP", "lodestar_fast.sim.engine_http"),
    "demo": Verb("see it learn: simulated engines, a real trace, a report", "lodestar_fast.demo"),
    "watch": Verb("see the page with a fleet that lives, until Ctrl-C", "lodestar_fast.watch"),
    "model": Verb("show, export or import the model of a running router", "lodestar_fast.model"),
    "simulate": Verb(
        "what a policy, one more GPU or a fault would do, in virtual time", "lodestar_fast.simulate"
    ),
    "matrix": Verb("run the evaluation that the README reports", "lodestar_fast.matrix"),
    "log": Verb("how another policy would have done, from a log", "lodestar_fast.decisions.verb"),
    "explain": Verb("why a request went where it went", "lodestar_fast.decisions.explain"),
    "replay": Verb("replay a trace against a server", "lodestar_fast.replay"),
    "calibrate": Verb("try the engine model on a real log", "lodestar_fast.sim.calibrate"),
    "check-config": Verb("print the resolved configuration", "", _add_check_config, _check_config),
    "features": Verb("print the table of model inputs", "", _no_arguments, _features),
    "metrics": Verb("print the table of metrics", "", _no_arguments, _metrics),
    "policies": Verb("list the routing policies", "", _no_arguments, _policies),
}


def _available() -> dict[str, Verb]:
    """The verbs whose modules this build has."""
    return {
        name: verb
        for name, verb in VERBS.items()
        if not verb.module or importlib.util.find_spec(verb.module)
    }


def _overview(verbs: dict[str, Verb]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    return (
        "usage: lodestar VERB [options]\n\nA router for LLM inference that learns online which "
        "engine answers soonest.\n\n"
        + "\n".join(lines)
        + "\n\n`lodestar VERB --help` lists a verb's options; `lodestar --version` the version."
    )


def _dispatch(name: str, verb: Verb, argv: Sequence[str]) -> int:
    add_arguments, run = verb.add_arguments, verb.run
    if verb.module:
        try:
            module = importlib.import_module(verb.module)
        except ModuleNotFoundError as e:
            if e.name not in _TOOLS:
                raise
            raise ConfigError(
                f"{e.name} is not installed: pip install 'lodestar-fast[tools]'"
            ) from None
        add_arguments, run = module.add_arguments, module.run
    assert add_arguments is not None and run is not None
    parser = _Parser(prog=f"lodestar {name}", description=verb.help, allow_abbrev=False)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status: 0, 2 after an operator's mistake, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    verbs = _available()
    name = argv[0] if argv else ""
    if name in ("-h", "--help", "help"):
        print(_overview(verbs))
        return 0
    if name in ("-V", "--version"):
        print(f"lodestar {__version__}")
        return 0
    try:
        if name not in verbs:
            given = f"no verb `{name}`" if name else "a verb is missing"
            raise ConfigError(f"{given}; there are: " + ", ".join(verbs))
        return _dispatch(name, verbs[name], argv[1:])
    except ConfigError as e:
        where = f"lodestar {name}" if name in verbs else "lodestar"
        print(f"{where}: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `lodestar features | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
