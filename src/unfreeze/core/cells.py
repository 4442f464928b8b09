"""Tables as CSV for people: no name in one becomes a formula in a spreadsheet, and none breaks a line.

A cell of text that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP's page on CSV
injection advises; plain numbers of a table stay as they are. Where names are wanted to the letter (a submission,
Parquet) none does.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Literal

import pandas as pd

from unfreeze.core.files import write_whole

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def guarded(text: str) -> str:
    """The text as a cell that no spreadsheet computes; `plain` takes the apostrophe off again."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def plain(cell: str) -> str:
    """The text that `guarded` was given."""
    return cell[1:] if len(cell) > 1 and cell[0] == "'" and cell[1] in _FORMULA else cell


def write_csv(path: Path, table: pd.DataFrame, exact: bool = False) -> Path:
    """Writes a table whole: UTF-8, a header, \\n after each row. exact: cells to the letter, formulas too.

    Raises StorageError where it cannot be written.
    """
    texts = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    shown = table if exact else table.assign(**{n: pd.Series(map(_cell, table[n]), table.index, object) for n in texts})
    # A \r alone ends a line for many readers, and the writer does not quote it by itself.
    broken = any(isinstance(value, str) and "\r" in value for n in texts for value in (n, *shown[n]))
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if broken else csv.QUOTE_MINIMAL
    return write_whole(path, lambda p: shown.to_csv(p, index=False, lineterminator="\n", quoting=quoting))


def _cell(value: object) -> object:
    """A plain number stays one: classes may be called -1 and 0."""
    return guarded(value) if isinstance(value, str) and not _NUMBER.fullmatch(value) else value
