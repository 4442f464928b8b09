"""Registry of data set checks.

A check is a function that takes an `ImageDataset` and its `ImageScan` and returns a list of `Finding`.
"""

from __future__ import annotations

from collections.abc import Callable

from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.data.scan import ImageScan

Check = Callable[[ImageDataset, ImageScan], list[Finding]]
CHECKS: dict[str, Check] = {}
# Names of the slow checks: `uf.check` runs them, `uf.fit` does not.
SLOW: set[str] = set()


def register(name: str, slow: bool = False) -> Callable[[Check], Check]:
    """Return a decorator that registers a check.

    Args:
        name: Name of the check, unique in `CHECKS`.
        slow: Whether `uf.fit` skips the check.

    Returns:
        A decorator that adds the function to `CHECKS` and returns it unchanged. It raises `ValueError` if the name is
        already registered.
    """

    def add(function: Check) -> Check:
        if name in CHECKS:
            raise ValueError(f"check '{name}' is registered twice")
        CHECKS[name] = function
        if slow:
            SLOW.add(name)
        return function

    return add
