"""Builds the compiled parts. Everything else about the package is in pyproject.toml.

LODESTAR_DEBUG=1     bounds checks, asserts, line tracing for coverage, no optimisation
LODESTAR_SANITIZE=1  address and undefined-behaviour sanitizers (for `make sanitize`)
LODESTAR_EXT=a,b     build only the extensions whose dotted name ends so
"""

from __future__ import annotations

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup


def toggle(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


DEBUG, SANITIZE = toggle("LODESTAR_DEBUG"), toggle("LODESTAR_SANITIZE")
ONLY = tuple(f".{name}" for name in os.environ.get("LODESTAR_EXT", "").split(",") if name)

# -iquote: with -I, csrc/features.h would stand before the C library's own <features.h>.
# -fno-plt: a request calls some hundred functions of Python and libc, mostly with cold caches; one
# line less for each is 2 % of its processor time (measured).
CFLAGS = ["-std=c11", "-fvisibility=hidden", "-fno-plt", "-iquote", "csrc"]
CFLAGS += ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O2", "-g1", "-DNDEBUG"]
LDFLAGS: list[str] = []
if SANITIZE:
    CFLAGS += ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    CFLAGS += ["-fno-omit-frame-pointer"]
    LDFLAGS += ["-fsanitize=address,undefined"]

MACROS: list[tuple[str, str | None]] = [("CYTHON_TRACE", "1")] if DEBUG else []
DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "cdivision": True,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "linetrace": DEBUG,
}


def extension(path: str) -> Extension:
    """One .pyx is one module; those of core/ contain the C library."""
    core = path.startswith("lodestar_fast/core/")
    return Extension(
        path.removesuffix(".pyx").replace("/", "."),
        [path, *(sorted(glob("csrc/*.c")) if core else [])],
        depends=glob("csrc/*.h"),
        define_macros=MACROS,
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
        libraries=["m"],
    )


extensions = [extension(path) for path in sorted(glob("lodestar_fast/**/*.pyx", recursive=True))]
if ONLY:
    extensions = [e for e in extensions if e.name.endswith(ONLY)]

setup(ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES))
