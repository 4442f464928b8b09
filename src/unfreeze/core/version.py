"""Installed versions of this package and of others."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("unfreeze")
except PackageNotFoundError:  # source tree that is not installed
    VERSION = "0+unknown"


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages; those that are not installed are left out."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
