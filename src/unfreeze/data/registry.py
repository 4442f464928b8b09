"""CHECKS by name: each a function from photos and looks to findings."""

from __future__ import annotations

from collections.abc import Callable

from unfreeze.core.tables import Finding, Photos
from unfreeze.data.looks import Looks

Check = Callable[[Photos, Looks], list[Finding]]
CHECKS: dict[str, Check] = {}
# Of CHECKS, those that take more than a moment: `check` runs them, `fit` does not.
SLOW: set[str] = set()


def register(name: str, slow: bool = False) -> Callable[[Check], Check]:
    """Registers a check under `name`; a second one of that name is a mistake and raises ValueError."""

    def add(function: Check) -> Check:
        if name in CHECKS:
            raise ValueError(f"check '{name}' is registered twice")
        CHECKS[name] = function
        if slow:
            SLOW.add(name)
        return function

    return add
