"""The group of each photo, where its path or a table's column names it."""

from __future__ import annotations

import re
from pathlib import Path

from unfreeze.core.errors import SourceError, listed
from unfreeze.data.sheet import KINDS, read_sheet


def groups_in(paths: list[str], pattern: str) -> list[str]:
    """The part of each path that `pattern` calls `group`. SourceError: no such part, or paths without it."""
    example = r"for example --group-regex '(?P<group>[^/_]+)_[^/]*$'"
    try:
        regex = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise SourceError(f"--group-regex {pattern}: no valid pattern ({error}). Mend it, {example}.") from None
    if "group" not in regex.groupindex:
        raise SourceError(f"--group-regex {pattern}: no part is named group. Name it (?P<group>...), {example}.")
    matches = [regex.search(path) for path in paths]
    groups = [match["group"] if match else None for match in matches]
    # An empty group would tie together photos that have nothing in common, so it counts as none.
    without = [path for path, group in zip(paths, groups, strict=True) if not group]
    if without:
        raise SourceError(
            f"--group-regex {pattern}: no group in {len(without):,} of {len(paths):,} paths: "
            f"{listed(without)}. Mend it."
        )
    return [group for group in groups if group]


def groups_of(images: Path, names: list[str], column: str | None, pattern: str | None) -> list[str] | None:
    """The group of each photo that is to be predicted; None if neither a column nor a pattern names them.

    images: what `list_images` was given. names: what it gave. SourceError if there is no such column, a cell is empty,
    or the pattern is none.
    """
    if column and pattern:
        raise SourceError("--group and --group-regex both say what a group is. Give one of them.")
    if pattern:
        return groups_in(names, pattern)
    if not column:
        return None
    if images.is_dir() or images.suffix.lower() not in KINDS:
        raise SourceError(f"--group {column}: {images} is no table; say with --group-regex how paths name the group.")
    return read_sheet(images).filled(column)
