"""Installed version of the package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("unfreeze")
except PackageNotFoundError:  # source tree that is not installed
    VERSION = "0+unknown"
