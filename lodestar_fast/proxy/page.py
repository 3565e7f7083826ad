"""The files of the page on the admin port, as they lie in lodestar_fast/page/.

They hold no data, so they are served without a key: the page asks for it, and sends it with its
questions. All of it comes from here; the policy below keeps the browser from anything else, so that
a name that an engine or a client chose can never become code.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

HEADERS: Final = (
    b"content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'\r\n"
    b"referrer-policy: no-referrer\r\ncross-origin-resource-policy: same-origin\r\n"
)
_TYPES: Final = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


def _read() -> dict[str, tuple[bytes, bytes]]:
    found = {}
    for file in (files("lodestar_fast") / "page").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = kind, file.read_bytes()
    return found


PAGE: Final = _read()  # path -> content type, body
