"""Image datasets: the validated table that stages exchange, check findings and combined labels.

The columns of an `ImageDataset` are checked on construction. `label_columns` splits classes that are combinations of
several label columns into one `LabelColumn` each. Parquet files are read with a limit on their decoded size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import SourceError, join_names

PHOTO_COLUMNS = ("path", "label", "group", "split")
FINDING_COLUMNS = ("check", "severity", "path", "message", "fix")
SEVERITIES = ("info", "warning", "error")
SPLITS = ("train", "test")
# Limits of `check_parquet_size`, and the memory overhead of a Python string in bytes.
_MIN_DECODED_BYTES, _MAX_EXPANSION, _TEXT_BYTES = 256 << 20, 32, 64

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Result of a data check.

    Attributes:
        check: Name of the check.
        severity: `info`, `warning` or `error`.
        message: What was found.
        fix: What to do about it.
        path: Path of the image, or empty if the finding concerns the whole dataset.
    """

    check: str
    severity: Severity
    message: str
    fix: str
    path: str = ""


@dataclass(frozen=True)
class ImageDataset:
    """Images with labels, groups and splits, as read from a source.

    Attributes:
        table: One row per image with index 0..n-1. Columns: `path` (text, relative to `root`, with /), one text column
            per name in `attributes`, `label` (text, the class), `group` (text; images of a group are never split
            between folds) and `split` (`train` or `test`; test images are never trained on). Later stages add columns.
        root: Folder that the paths are relative to.
        classes: Every class once, in the order of all probability columns.
        answers: Value that a submission writes for each class, in class order.
        attributes: Names of the label columns. With several, `label` is their combination.
        reader: Name of the reader.
        choice: One sentence on how the reader interpreted the source.
        findings: Findings of the reader, such as hidden files or groups that straddle splits.

    Raises:
        SourceError: A column is missing, a path occurs twice, or a split or label is unknown.
    """

    table: pd.DataFrame
    root: Path
    classes: tuple[str, ...]
    answers: tuple[int | str, ...]
    attributes: tuple[str, ...]
    reader: str
    choice: str
    findings: tuple[Finding, ...] = field(default=())

    def __repr__(self) -> str:
        groups = self.table["group"].nunique()
        return (
            f"ImageDataset({str(self.root)!r}: {len(self):,} images, {len(self.classes):,} classes, {groups:,} groups, "
            f"{len(self.findings):,} findings; {self.reader})"
        )

    def __post_init__(self) -> None:
        missing = [c for c in (*PHOTO_COLUMNS, *self.attributes) if c not in self.table.columns]
        if missing:
            raise SourceError(
                f"the photos table lacks the column(s) {join_names(missing)}; it has "
                f"{join_names(self.table.columns, 20)}."
            )
        twice = self.table["path"].duplicated()
        if twice.any():
            raise SourceError(f"the photos table names a path twice: {join_names(self.table.loc[twice, 'path'])}.")
        strange = set(self.table["split"]) - set(SPLITS)
        if strange:
            raise SourceError(
                f"the column 'split' holds {join_names(sorted(map(repr, strange)))}; it may hold 'train' and 'test'."
            )
        unknown = set(self.table["label"]) - set(self.classes)
        if unknown:
            names = join_names(sorted(map(str, unknown)))
            raise SourceError(f"the column 'label' holds classes that are not listed: {names}.")

    def __len__(self) -> int:
        return len(self.table)

    def with_table(self, table: pd.DataFrame, *findings: Finding) -> ImageDataset:
        """Copy of the dataset with another table and additional findings."""
        return replace(self, table=table, findings=(*self.findings, *findings))

    def files(self) -> list[Path]:
        """Path of every image (`root` joined with its relative path), in table order."""
        return [self.root / path for path in self.table["path"]]


def findings_frame(findings: tuple[Finding, ...] | list[Finding]) -> pd.DataFrame:
    """Convert findings to a table with the columns `FINDING_COLUMNS`, errors first."""
    rows = [{column: getattr(f, column) for column in FINDING_COLUMNS} for f in findings]
    table = pd.DataFrame(rows, columns=list(FINDING_COLUMNS))
    rank = table["severity"].map({s: -i for i, s in enumerate(SEVERITIES)})
    return table.iloc[rank.argsort(kind="stable")].reset_index(drop=True)


def read_parquet(file: Any, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet file, with limits on its decoded size and checks of its text.

    Args:
        file: Path or open binary file.
        columns: Columns to read; all by default.

    Raises:
        ValueError: Text is not valid UTF-8, which pandas would report only when the text is used, or the table is too
            large (see `check_parquet_size`).
        Exception: The file is not valid Parquet. The exceptions of pyarrow have no common base class.
    """
    import pyarrow

    check_parquet_size(file, columns)
    table = pd.read_parquet(file, columns=columns)
    for i in range(table.shape[1]):
        values = table.iloc[:, i]
        if isinstance(values.dtype, pd.StringDtype):
            pyarrow.array(values.array).validate(full=True)
    return table


def check_parquet_size(file: Any, columns: list[str] | None = None) -> None:
    """Check the decoded size of a Parquet file before decoding it.

    Compression and dictionary encoding let a file of a few MB expand to any size. The footer states the decompressed
    size; the decoded size of text columns is computed from their dictionaries.

    Args:
        file: Path or open binary file.
        columns: Columns that will be read; all by default.

    Raises:
        ValueError: The decoded table exceeds both 256 MiB and 32 times the size of the file.
    """
    import pyarrow.compute as pc
    from pyarrow.parquet import ParquetFile

    size = file.seek(0, 2) if hasattr(file, "seek") else Path(file).stat().st_size
    if hasattr(file, "seek"):
        file.seek(0)
    limit = max(_MIN_DECODED_BYTES, _MAX_EXPANSION * size)
    opened = ParquetFile(file)
    try:
        metadata, schema = opened.metadata, opened.schema_arrow
        wanted = {name for name in schema.names if columns is None or name in columns}
        texts = [name for name in wanted if _is_text(schema.field(name).type)]
        stored = decoded = 0
        for group in range(metadata.num_row_groups):
            for chunk in map(metadata.row_group(group).column, range(metadata.num_columns)):
                if chunk.path_in_schema.partition(".")[0] in wanted:
                    stored += chunk.total_uncompressed_size
                    decoded += chunk.num_values * (_TEXT_BYTES if chunk.physical_type == "BYTE_ARRAY" else 8)
        if max(stored, decoded) <= limit and texts:
            coded = ParquetFile(file, read_dictionary=texts)
            for batch in coded.iter_batches(columns=texts):
                for values in batch.columns:
                    if hasattr(values, "dictionary"):
                        values = pc.take(pc.binary_length(values.dictionary), values.indices)
                    else:
                        values = pc.binary_length(values)
                    decoded += pc.sum(values).as_py() or 0
                if decoded > limit:
                    break
    finally:
        if hasattr(file, "seek"):
            file.seek(0)
        else:
            opened.close()
    if max(stored, decoded) > limit:
        raise ValueError(
            f"its {metadata.num_rows:,} rows take {max(stored, decoded) / 1e6:,.0f} MB or more once decoded; the limit "
            f"for a file of {size / 1e6:,.1f} MB is {limit / 1e6:,.0f} MB"
        )


def _is_text(kind: Any) -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return any(f(kind) for f in (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_binary))


def probability_columns(classes: tuple[str, ...] | list[str]) -> list[str]:
    """Names of the probability columns of a prediction table, in class order: `p_<class>`."""
    return [f"p_{name}" for name in classes]


@dataclass(frozen=True)
class LabelColumn:
    """One label column of a combined label.

    Attributes:
        name: Name of the column.
        values: Its values, in order of first appearance in the classes.
        of_class: Index into `values` for each class, in class order.
    """

    name: str
    values: tuple[str, ...]
    of_class: tuple[int, ...]

    def of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map class indices, int64 (n,), to value indices of this column, int64 (n,)."""
        return np.array(self.of_class, np.int64)[labels]


def label_columns(photos: ImageDataset) -> tuple[LabelColumn, ...]:
    """Label columns whose combinations are the classes.

    Classes are combinations if at least two label columns have two or more values each, every class has one value in
    each column, and no two classes have the same values. Columns with a single value are left out.

    Returns:
        The columns in the order of `ImageDataset.attributes`; empty if the classes are not combinations.
    """
    names = [name for name in photos.attributes if name != "label"]
    if len(names) < 2:
        return ()
    table = photos.table
    # The label and the attributes of a relabeled image may disagree, so such images are left out.
    rows = table[table["action"] != "relabel"] if "action" in table else table
    values = _values(rows[["label", *names]].drop_duplicates(), photos.classes, names)
    if values is None:
        return ()
    found = []
    for i, name in enumerate(names):
        column = [row[i] for row in values]
        every = tuple(dict.fromkeys(column))
        if len(every) > 1:
            found.append(LabelColumn(name, every, tuple(every.index(value) for value in column)))
    return tuple(found) if len(found) > 1 else ()


def _values(distinct: pd.DataFrame, classes: tuple[str, ...], names: list[str]) -> list[tuple[str, ...]] | None:
    """Attribute values of each class, in class order, or None if the classes are not combinations."""
    if distinct["label"].duplicated().any():
        return None
    known = {row[0]: tuple(map(str, row[1:])) for row in distinct.itertuples(index=False, name=None)}
    # The values of a class without images are parsed from its name, in which readers join them with ", ".
    values = [known.get(label, tuple(label.split(", "))) for label in classes]
    whole = all(len(row) == len(names) for row in values)
    return values if whole and len(set(values)) == len(values) else None
