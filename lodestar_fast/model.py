"""`lodestar model`: look at the model of a running router, take it out, put one in.

All of it goes through the admin port. An exported file is what a router keeps in its --state-dir:
the weights, then a digest. An import is checked here for damage and by the router's core for the
rest (its table of features, its numbers); it is in use at once and frozen, until somebody thaws.
"""

from __future__ import annotations

import argparse
import json
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from lodestar_fast import features, history
from lodestar_fast.errors import BlobError, ConfigError

TIMEOUT = 10.0  # seconds for an answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="show|export|import")
    show = verbs.add_parser("show", help="mode, versions, coefficients in physical words")
    show.add_argument("--json", action="store_true", help="print GET /admin/model as it is")
    export = verbs.add_parser("export", help="write the weights of a version to a file")
    export.add_argument("file", metavar="FILE", help="file to write; it must not exist")
    export.add_argument(
        "--version", type=int, metavar="N", help="version to write [the one in use]"
    )
    imports = verbs.add_parser("import", help="put exported weights into use, frozen")
    imports.add_argument("file", metavar="FILE", help="file that `export` wrote")
    imports.add_argument(
        "--as", type=int, dest="number", metavar="N", help="version number to give them [their own]"
    )
    for verb in (show, export, imports):
        verb.add_argument(
            "--admin",
            default="http://127.0.0.1:29000",
            metavar="URL",
            help="admin port of the router [%(default)s]",
        )
        verb.add_argument(
            "--admin-key-file", metavar="F", help="file whose first line is an admin key"
        )


def run(args: argparse.Namespace) -> int:
    """0. Raises ConfigError: a bad option or file, or the router refused or does not answer."""
    if args.verb == "export":
        return _export(args)
    if args.verb == "import":
        return _import(args)
    content = json.loads(_ask(args, "/admin/model"))
    print(json.dumps(content, indent=2) if args.json else _described(content))
    return 0


def _export(args: argparse.Namespace) -> int:
    number = "current" if args.version is None else str(args.version)
    blob = _weights(_ask(args, f"/admin/model/versions/{number}"), args.admin)
    try:
        with open(args.file, "xb") as file:
            file.write(history.sealed(blob))
    except OSError as e:
        raise ConfigError(f"{args.file}: {e.strerror}") from None
    print(f"version {history.blob_version(blob)}: {len(blob):,} bytes in {args.file}")
    return 0


def _import(args: argparse.Namespace) -> int:
    try:
        blob = _weights(Path(args.file).read_bytes(), args.file)
    except OSError as e:
        raise ConfigError(f"{args.file}: {e.strerror}") from None
    if (schema := int.from_bytes(blob[8:16], "little")) != features.SCHEMA_HASH:
        raise ConfigError(
            f"{args.file}: made for another table of features ({schema:016x}, ours is "
            f"{features.SCHEMA_HASH:016x}): another version of Lodestar"
        )
    if args.number is not None:
        if not 0 < args.number < 1 << 32:
            raise ConfigError("--as: a version is from 1 to 4294967295")
        blob = history.renumbered(blob, args.number)
    answer = json.loads(_ask(args, "/admin/model/import", history.sealed(blob)))
    print(f"version {answer['version']} is in use, frozen: POST /admin/model/thaw ends that")
    return 0


def _weights(data: bytes, where: str) -> bytes:
    try:
        return history.unsealed(data)
    except BlobError as e:
        raise ConfigError(f"{where}: {e}") from None


def _ask(args: argparse.Namespace, path: str, body: bytes | None = None) -> bytes:
    """A GET, or a POST of a body. Raises ConfigError with the router's own words."""
    request = Request(args.admin.rstrip("/") + path, data=body)
    if args.admin_key_file:
        try:
            lines = Path(args.admin_key_file).read_text().split()
        except OSError as e:
            raise ConfigError(f"--admin-key-file: {args.admin_key_file}: {e.strerror}") from None
        request.add_header("Authorization", f"Bearer {lines[0] if lines else ''}")
    try:
        # The admin port is near; what the environment says of proxies is for elsewhere.
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT) as answer:
            return bytes(answer.read())
    except HTTPError as e:
        try:
            said = json.loads(e.read())["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = f"{e.code} {e.reason}: no admin port of Lodestar?"
        raise ConfigError(f"--admin {args.admin}: {said}") from None
    except (URLError, HTTPException, OSError, ValueError) as e:
        raise ConfigError(f"--admin {args.admin}: {getattr(e, 'reason', e)}") from None


def _described(about: dict[str, Any]) -> str:
    """For people."""
    if about.get("mode") is None:
        return f"policy {about['policy']}: a fixed rule, there is no model"
    lines = [
        f"policy    {about['policy']}, mode {about['mode']}; the model decides "
        f"{about['share']:.0%} of the requests, else {about['fallback']}",
        f"watchdog  {about['watchdog']['state']}"
        + (f": {why}" if (why := about["watchdog"]["why"]) else ""),
        f"version   {about['version'] or 'none yet'}" + (", frozen" if about["frozen"] else ""),
    ]
    if about["waiting_version"]:
        lines[-1] += f"; version {about['waiting_version']} waits"
    lines += ["", "a first token takes, by the physical part of the model:"]
    lines += [f"  {line}" for line in physics(about["coefficients"])] or ["  (no model yet)"]
    if about["network"]:
        lines.append("  times a factor from 0.5 to 2 of the network that corrects it")
    lines += ["", "versions kept (newest first)"]
    for version in about["versions"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(version["time"]))
        lines.append(f"  {version['version']:>8}  {when}{'  in use' if version['in_use'] else ''}")
    return "\n".join(lines)


def physics(coefficients: dict[str, float]) -> list[str]:
    """Each term in words: how much time a unit of its feature is, or by what it is multiplied."""
    rows = {row[0]: row for row in features.FEATURES}
    lines = []
    for name, value in coefficients.items():
        _, unit, scale, help = rows[name]
        size = value * scale
        if name == "base":
            text = f"{value * 1e3:.1f} ms"
        elif unit == "seconds":
            text = f"{size:.3g} x"
        else:
            text = f"{size * 1e3:.3g} ms a {'unit' if unit in ('ratio', 'none') else unit[:-1]}"
        lines.append(f"{text:>18}  {name}: {help}")
    return lines
