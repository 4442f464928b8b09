"""The tables that pass between stages: their columns, checked once at the border."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from unfreeze.core.errors import SourceError, listed

PHOTO_COLUMNS = ("path", "label", "group", "split")
FINDING_COLUMNS = ("check", "severity", "path", "message", "fix")
SEVERITIES = ("info", "warning", "error")
SPLITS = ("train", "test")

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing the checks found. `path` is a photo's path, or empty for the whole set."""

    check: str
    severity: Severity
    message: str
    fix: str
    path: str = ""


@dataclass(frozen=True)
class Photos:
    """What a reader makes of a source, and what every later stage starts from.

    table: one row a photo, index 0..n-1: `path` (text, relative to `root`, with /), one text column per
        name in `attributes`, `label` (text: the class), `group` (text: photos that must stay
        together), `split` ("train" or "test"; test rows never train). Later stages add columns.
    root: folder that the paths are relative to.
    classes: every class once, in the order of all probability columns.
    answers: what a submission writes for each class, same order.
    attributes: the label columns; more than one means that `label` is their combination.
    reader: name of the reader; `choice` says in one line what it took for what.
    findings: what reading itself found (hidden files, straddling groups, ...).
    """

    table: pd.DataFrame
    root: Path
    classes: tuple[str, ...]
    answers: tuple[int | str, ...]
    attributes: tuple[str, ...]
    reader: str
    choice: str
    findings: tuple[Finding, ...] = field(default=())

    def __post_init__(self) -> None:
        missing = [c for c in (*PHOTO_COLUMNS, *self.attributes) if c not in self.table.columns]
        if missing:
            raise SourceError(
                f"the photos table lacks the column(s) {listed(missing)}; it has {listed(self.table.columns, 20)}."
            )
        twice = self.table["path"].duplicated()
        if twice.any():
            raise SourceError(f"the photos table names a path twice: {listed(self.table.loc[twice, 'path'])}.")
        strange = set(self.table["split"]) - set(SPLITS)
        if strange:
            raise SourceError(
                f"the column 'split' holds {listed(sorted(map(repr, strange)))}; it may hold 'train' and 'test'."
            )
        unknown = set(self.table["label"]) - set(self.classes)
        if unknown:
            names = listed(sorted(map(str, unknown)))
            raise SourceError(f"the column 'label' holds classes that are not listed: {names}.")

    def __len__(self) -> int:
        return len(self.table)

    def with_table(self, table: pd.DataFrame, *findings: Finding) -> Photos:
        """The same source with another table, and further findings appended."""
        return replace(self, table=table, findings=(*self.findings, *findings))

    def files(self) -> list[Path]:
        """Absolute path of every photo, in the table's order."""
        return [self.root / path for path in self.table["path"]]


def findings_table(findings: tuple[Finding, ...] | list[Finding]) -> pd.DataFrame:
    """Findings as a table with FINDING_COLUMNS, errors first."""
    rows = [{column: getattr(f, column) for column in FINDING_COLUMNS} for f in findings]
    table = pd.DataFrame(rows, columns=list(FINDING_COLUMNS))
    rank = table["severity"].map({s: -i for i, s in enumerate(SEVERITIES)})
    return table.iloc[rank.argsort(kind="stable")].reset_index(drop=True)


def read_parquet(file: Any, columns: list[str] | None = None) -> pd.DataFrame:
    """A Parquet file's table. Raises nearly anything where it is none; ValueError where its text is not UTF-8, which
    pandas would tell only when the text is used.
    """
    import pyarrow

    table = pd.read_parquet(file, columns=columns)
    for i in range(table.shape[1]):
        values = table.iloc[:, i]
        if isinstance(values.dtype, pd.StringDtype):
            pyarrow.array(values.array).validate(full=True)
    return table


def probability_columns(classes: tuple[str, ...] | list[str]) -> list[str]:
    """Names of the probability columns of a predictions table, in class order: `p_<class>`."""
    return [f"p_{name}" for name in classes]
