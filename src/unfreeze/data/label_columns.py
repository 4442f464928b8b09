"""Interpretation of the label columns of a table.

Supported are single columns with one class per row, and one-hot or probability columns with one column per class.
Lists and numeric quantities raise a `SourceError`. Multi-label columns are read as one class per combination and
reported as a finding.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import SourceError, join_names
from unfreeze.core.format import pluralize
from unfreeze.core.messages import option
from unfreeze.data.text_table import TextTable

_ONES = frozenset({"1", "1.0", "true"})
_ZEROS = frozenset({"0", "0.0", "false"})
_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?")
_LIST = re.compile(r"\[.*\]|\{.*\}|\(.*,.*\)", re.S)
_BETWEEN_LABELS = ("|", ";", ",", " ")
_FEW_ROWS = 10  # with fewer rows, distinct integers are accepted as classes


@dataclass(frozen=True)
class OneHot:
    """One-hot or probability columns, one column per class.

    Attributes:
        columns: Column names, which are the classes.
        labels: Class of each row; empty if the row has none or more than one.
        kind: "one-hot" or "probability".
        several: Positions of rows with more than one 1 (or more than one largest probability).
        none: Positions of rows without any 1.
    """

    columns: tuple[str, ...]
    labels: list[str]
    kind: str
    several: list[int]
    none: list[int]

    @property
    def one_each(self) -> bool:
        """Whether no row has several classes, and no row that requires a label has none."""
        return not self.several and not self.none


def split_names(sheet: TextTable, names: tuple[str, ...]) -> tuple[str, ...]:
    """Resolve the requested label columns.

    A name such as `apple,banana` that is not itself a column is split if all of its parts are columns.

    Args:
        sheet: The table.
        names: Requested column names.

    Returns:
        Column names, with comma-separated names expanded.
    """
    columns = set(sheet.frame.columns)
    found: list[str] = []
    for name in names:
        parts = [part.strip() for part in name.split(",")]
        found += parts if name not in columns and len(parts) > 1 and columns.issuperset(parts) else [name]
    return tuple(found)


def as_one_hot(sheet: TextTable, columns: tuple[str, ...], unlabeled: Collection[int] = ()) -> OneHot | None:
    """Parse columns as one-hot or probability columns.

    Args:
        sheet: The table.
        columns: Column names, one per class.
        unlabeled: Positions of rows that may lack a label. In these rows, all zeros mean "no label". A row with only
            empty cells has no label in any case.

    Returns:
        The parsed columns, or None if they hold anything else.
    """
    if len(columns) < 2:
        return None
    values = np.column_stack([_numbers(sheet.column(column)) for column in columns])
    known = ~np.isnan(values)
    empty = ~known.any(axis=1)
    if np.isnan(values[~empty]).any() or empty.all() or not ((values >= 0) & (values <= 1) | ~known).all():
        return None
    may_lack = np.zeros(len(values), bool)
    may_lack[list(unlabeled)] = True
    filled = np.nan_to_num(values)
    lacking = empty | (may_lack & (filled == 0).all(axis=1))
    rows = filled[~lacking]
    if np.isin(rows, (0.0, 1.0)).all():
        kind, ones = "one-hot", (filled == 1).sum(axis=1)
    elif len(rows) and np.allclose(rows.sum(axis=1), 1, atol=0.01):
        kind = "probability"
        ones = (filled == filled.max(axis=1, keepdims=True)).sum(axis=1)
    else:
        return None
    labels = [
        columns[k] if one == 1 and not out else "" for k, one, out in zip(filled.argmax(1), ones, lacking, strict=True)
    ]
    several = np.flatnonzero((ones > 1) & ~lacking).tolist()
    none = np.flatnonzero((ones == 0) & ~lacking).tolist()
    return OneHot(columns, labels, kind, several, none)


def binary_columns(sheet: TextTable, others: list[str], unlabeled: Collection[int] = ()) -> OneHot | None:
    """Find the columns that together form a one-hot or probability encoding.

    Args:
        sheet: The table.
        others: Names of the columns to consider.
        unlabeled: Positions of rows that may lack a label; see `as_one_hot`.

    Returns:
        The columns that hold only 0 and 1; otherwise the columns with values in [0, 1], if each row sums to 1. None if
        fewer than two classes occur.
    """
    binary, shares = [], []
    for column in others:
        values = _numbers(sheet.column(column))
        values = values[~np.isnan(values)]
        if len(values) and ((values >= 0) & (values <= 1)).all():
            shares.append(column)
            if np.isin(values, (0.0, 1.0)).all():
                binary.append(column)
    for columns in (binary, shares):
        found = as_one_hot(sheet, tuple(columns), unlabeled)
        if found is not None and len(set(found.labels) - {""}) + len(found.several) > 1:
            return found
    return None


def several_at_once(sheet: TextTable, found: OneHot) -> str:
    """Describe the rows that do not have exactly one class, for messages."""
    parts = []
    what = "with several 1s" if found.kind == "one-hot" else "with no single largest value"
    for rows, said in ((found.several, what), (found.none, "with none")):
        if rows:
            parts.append(f"{sheet.rows(rows)} {said}")
    return f"the columns {join_names(found.columns, 20)} hold {' and '.join(parts)}"


def multi_hot_finding(sheet: TextTable, found: OneHot) -> Finding:
    """Build the warning that columns that look one-hot are combined into a single label."""
    return Finding(
        "multi-hot",
        "warning",
        f"{several_at_once(sheet, found)}: read as attributes, each combination of them as a class",
        "None needed if these are attributes; several labels an image are not trained: name one column with "
        f"{option('label')}.",
    )


def check_labels(sheet: TextTable, column: str, texts: list[str]) -> None:
    """Check that a label column holds classes.

    Args:
        sheet: The table.
        column: Column name.
        texts: Cells of the column as text.

    Raises:
        SourceError: If the column holds lists or a numeric quantity.
    """
    cells = [(i, value) for i, value in enumerate(sheet.frame[column].tolist()) if _is_collection(value)]
    if not cells:  # lists stored as text; if only some cells have brackets, they may be ordinary names
        cells = [(i, text) for i, text in enumerate(texts) if _LIST.fullmatch(text)]
        cells = cells if len(cells) == sum(map(bool, texts)) else []
    if cells:
        first = join_names([cells[0][1]])
        raise SourceError(
            f"{sheet.name}: '{column}' holds lists in {sheet.rows([i for i, _ in cells])}, first: {first[:80]}. "
            f"A row needs one label: give a column of texts, in pandas df['{column}'].str[0] for lists of one."
        )
    distinct = set(texts) - {""}
    rows = sum(map(bool, texts))
    if len(distinct) < 3 or len(distinct) * 2 <= rows or not all(map(_NUMBER.fullmatch, distinct)):
        return
    whole = all(_as_float(text).is_integer() for text in distinct)
    if not whole or rows >= _FEW_ROWS:
        raise SourceError(
            f"{sheet.name}: '{column}' holds {len(distinct):,} different numbers in {rows:,} rows: a quantity, not "
            f"classes. Make ranges of it first (pandas.cut), or choose another "
            f"column: {option('label', metavar='COL')}."
        )


def multi_label_finding(column: str, labels: list[str]) -> Finding | None:
    """Build the warning that some labels combine other labels, such as `scab rust` if `scab` and `rust` also occur.

    Args:
        column: Column name, for the message.
        labels: Non-empty labels, one per row.

    Returns:
        The finding, or None if no label is a combination.
    """
    counts = Counter(labels)
    for between in _BETWEEN_LABELS:
        combined = []
        for label in counts:
            parts = [part.strip() for part in label.split(between)]
            if len(parts) > 1 and all(part in counts for part in parts):
                combined.append(label)
        if combined:
            images = pluralize(sum(counts[label] for label in combined), "image")
            shown = join_names([f"{label!r} ({counts[label]:,})" for label in sorted(combined)])
            return Finding(
                "multi-label",
                "warning",
                f"{pluralize(len(combined), 'label')} of '{column}' made of others, in {images}: {shown}",
                "Each combination is a class of its own; several labels an image are not trained. Keep one a row.",
            )
    return None


def unread_rows(sheet: TextTable) -> list[int]:
    """Positions of the rows whose image `unfreeze predict` could not read.

    Always empty for tables that `unfreeze predict` did not write.
    """
    if not sheet.predicted:
        return []
    return [
        i
        for i, (label, error) in enumerate(zip(sheet.column("label"), sheet.column("error"), strict=True))
        if error and not label
    ]


def labeled_rows(sheet: TextTable, labels: list[str]) -> tuple[list[int], list[Finding]]:
    """Select the rows that have a label.

    Args:
        sheet: The table.
        labels: Label of each row; empty if it has none.

    Returns:
        Positions of the labeled rows, and findings about the rows left out: unlabeled test images and images that could
        not be read during prediction.
    """
    unread = set(unread_rows(sheet))
    lacking = [i for i, label in enumerate(labels) if not label]
    unlabeled = [i for i in lacking if i not in unread]
    failed = [i for i in lacking if i in unread]
    findings = []
    if unlabeled:
        findings.append(
            Finding(
                "unlabeled_test",
                "info",
                f"{pluralize(len(unlabeled), 'test image')} without a label left out: they can be predicted, "
                "not scored",
                "None needed; unfreeze predict RUN TABLE predicts them.",
            )
        )
    if failed:
        findings.append(
            Finding(
                "unpredicted",
                "warning",
                f"{pluralize(len(failed), 'image')} left out that could not be read when predicted: "
                f"{sheet.rows(failed)}",
                "None needed: the table's column 'error' says why.",
            )
        )
    gone = set(lacking)
    return [i for i in range(len(labels)) if i not in gone], findings


def _numbers(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Parse cells as float64 (n,): NaN for an empty cell, infinity for a cell that is not a number."""
    known: dict[str, float] = {"": math.nan}
    for text in set(texts) - {""}:
        word = text.lower()
        one = 1.0 if word in _ONES else 0.0 if word in _ZEROS else math.inf
        known[text] = _as_float(text) if one == math.inf and _NUMBER.fullmatch(text) else one
    return np.array([known[text] for text in texts], np.float64)


def _as_float(text: str) -> float:
    return float(text.replace(",", "."))


def _is_collection(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset | dict | np.ndarray | pd.Series)
