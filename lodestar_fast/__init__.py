"""Lodestar: a router for LLM inference that learns online which engine answers soonest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lodestar-fast")
except PackageNotFoundError:  # run from a tree that was built but not installed
    __version__ = "0.0.0+tree"
