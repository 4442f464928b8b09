"""Search for a table with the labels of images that are not in class folders.

Competition data sets often consist of image folders and a CSV with labels. When a folder without class folders is
rejected, the error message uses this module to suggest the command that reads the matching table.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from unfreeze.core.errors import SourceError
from unfreeze.core.messages import wording
from unfreeze.core.recipe_schema import Source
from unfreeze.data.read_tables import parse_table
from unfreeze.data.text_table import TextTable, read_sheet, to_text

SUFFIXES = (".csv", ".tsv", ".parquet")
# Limits that keep the search fast: it only serves an error message.
_MOST_TABLES, _MOST_FOLDERS, _MOST_COLUMNS, _MOST_BYTES = 12, 6, 6, 64_000_000
_MOST_ENTRIES, _FIRST_ROWS, _HEAD_BYTES = 10_000, 20, 65_536


def table_beside(source: Path, others: Sequence[str], images: Sequence[str], folders: Sequence[str]) -> str:
    """Find a table that labels the images of the given folders, and describe how to read it.

    Tables in the source and in the two folders above it are considered. A table is read in full only if its first rows
    name images in these folders, because it may be unrelated to this data set.

    Args:
        source: Source folder.
        others: Paths of the non-image files, relative to `source`.
        images: Paths of all images, relative to `source`.
        folders: Paths of the folders whose images have no class, relative to `source`.

    Returns:
        A sentence for an error message, with the command that reads the table if one works; "" if there is no table.
    """
    bases = list(dict.fromkeys([*(source / folder for folder in folders[:_MOST_FOLDERS]), source]))
    suffixes = [name for name, _ in Counter(Path(image).suffix for image in images[:10_000]).most_common(3)]
    inside = _tables(source / path for path in others if path.count("/") < 2)
    for table in (*inside, *_tables(_above(source))):
        if (fitting := _bases(table, [*bases, table.parent], suffixes)) and (call := _call(table, fitting)):
            return f"{table.name} names classes: {call}."
    if not inside:
        return ""
    table = inside[0]
    given = wording(
        f"{shlex.join([str(table), '--root', str(bases[0])])} --path COL --label COL",
        f"{str(table)!r}, root={str(bases[0])!r}, path=COL, label=COL",
    )
    return f"{table.name} lies there: if it names them, give it instead: {given}."


def _above(source: Path) -> Iterator[Path]:
    """Yield the files in the two parent folders, up to `_MOST_ENTRIES` entries each."""
    whole = source if ".." not in source.parts and len(source.parts) > 2 else source.resolve()
    for parent in list(whole.parents)[:2]:
        with contextlib.suppress(OSError):
            yield from islice(parent.iterdir(), _MOST_ENTRIES)


def _tables(paths: Iterable[Path]) -> list[Path]:
    """Select the table files, those with label-like names first, up to `_MOST_TABLES`."""
    # Submission templates hold test ids with placeholder labels.
    named = [path for path in paths if path.name.lower().endswith(SUFFIXES) and "submission" not in path.name.lower()]
    named.sort(key=lambda path: ("train" not in path.name.lower() and "label" not in path.name.lower(), path.name))
    small = (path for path in named if path.is_file() and path.stat().st_size <= _MOST_BYTES)
    return list(islice(small, _MOST_TABLES))


def _bases(table: Path, bases: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Folders in which at least half of the first rows of a table name files, with or without a suffix."""

    def names(base: Path, cell: str) -> bool:
        path = f"{base}/{cell}"
        return any(os.path.isfile(f"{path}{suffix}") for suffix in ("", *suffixes))  # noqa: PTH113

    try:
        rows = _first_rows(table)
        fits = [sum(any(names(base, cell) for cell in row if cell) for row in rows) for base in bases]
    except (OSError, ValueError):
        return []
    return [base for base, hits in zip(bases, fits, strict=True) if rows and 2 * hits >= len(rows)]


def _first_rows(table: Path) -> list[list[str]]:
    """Cells of the first rows of a table.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not a valid table.
    """
    if table.suffix.lower() == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(table) as file:
            batch = next(file.iter_batches(batch_size=_FIRST_ROWS), None)
        return [[str(cell)[:500] for cell in row.values()] for row in batch.to_pylist()] if batch else []
    with table.open("rb") as file:
        lines = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace").splitlines()
    lines = lines[1 : 1 + _FIRST_ROWS]
    return [[cell.strip(' "').replace("\\", "/") for cell in re.split(r"[,;\t|]", line)][:20] for line in lines]


def _call(table: Path, bases: Sequence[Path]) -> str:
    """The shell command or Python call that reads the table; "" if the table cannot be read."""
    try:
        sheet = read_sheet(table)
    except (SourceError, OSError):
        return ""
    for base in dict.fromkeys(bases):
        root = "" if base.resolve() == table.resolve().parent else str(base)
        if (label := _label(sheet, table, Source(root=root))) is not None:
            options = {name: value for name, value in (("root", root), ("label", label)) if value}
            words = [str(table), *(word for name, value in options.items() for word in (f"--{name}", value))]
            call = ", ".join([repr(str(table)), *(f"{name}={value!r}" for name, value in options.items())])
            return wording(f"unfreeze check {shlex.join(words)}", f"uf.check({call})")
    return ""


def _label(sheet: TextTable, table: Path, options: Source) -> str | None:
    """The label column that must be passed explicitly: "" if none is needed, None if the table cannot be read."""
    if _reads(table, options):
        return ""
    rows = len(sheet.frame)
    likely = [name for name in sheet.frame.columns if 2 <= len(set(to_text(sheet.frame[name]))) <= max(2, rows // 2)]
    return next((n for n in likely[:_MOST_COLUMNS] if _reads(table, options.model_copy(update={"label": (n,)}))), None)


def _reads(table: Path, options: Source) -> bool:
    try:
        found = parse_table(table, options)
    except (SourceError, OSError):
        return False
    return found.table["label"].nunique() > 1
