"""Tables as text: CSV, TSV, Parquet and DataFrame, without interpretation of the columns."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow.parquet import read_metadata

from unfreeze.core.dataset import read_parquet
from unfreeze.core.errors import SourceError, did_you_mean, join_names
from unfreeze.core.files import is_valid_utf8, unescape_formula
from unfreeze.core.format import pluralize
from unfreeze.core.names import nfc, number_names
from unfreeze.core.recipe_schema import Source
from unfreeze.data.directory_walk import is_image_name
from unfreeze.data.encodings import decode, first_word
from unfreeze.data.file_lookup import FileLookup, as_absolute, with_slashes

_SAMPLE = 20


def image_column(first: list[str], rows: list[list[str]], asked: Collection[str], bases: Collection[Path]) -> int:
    """Find the image column of a table without a header.

    It is a column whose first cell, and at least half of the sampled cells below, name images.

    Args:
        first: Cells of the first row.
        rows: Some of the following rows.
        asked: Column names given by the user. A first row that contains one of them is a header.
        bases: Folders that paths may start from.

    Returns:
        Position of the column; -1 if the first row is a header.
    """
    if {nfc(cell.strip()) for cell in first} & set(map(nfc, asked)):
        return -1
    lookup = FileLookup()
    places = [place for base in bases for place in (base, *lookup.subfolders(base))]

    def is_there(cell: str) -> bool:
        text = with_slashes(cell).strip()
        return bool(text) and any(lookup.find(as_absolute(text, place)) for place in places)

    for i, cell in enumerate(first):
        below = [row[i] for row in rows[:_SAMPLE] if i < len(row) and row[i].strip()]
        # A name with an image suffix is sufficient; an id without a suffix must match an image on disk.
        for names_image in (lambda text: is_image_name(text.strip()), is_there):
            if cell.strip() and names_image(cell) and sum(map(names_image, below)) * 2 >= len(below):
                return i
    return -1


def generated_names(count: int, image: int) -> list[str]:
    """Generate column names for a table without a header.

    Args:
        count: Number of columns.
        image: Position of the image column.

    Returns:
        `path` for the image column; `label` for the other one if there are two columns, else `column_2` and so on.
    """
    others = [i for i in range(count) if i != image]
    return ["path" if i == image else "label" if len(others) == 1 else f"column_{i + 1}" for i in range(count)]


KINDS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".tab": "TSV",
    ".txt": "CSV",
    ".parquet": "Parquet",
    ".pq": "Parquet",
}
SEPARATORS = (",", ";", "\t", "|")
MAX_BYTES = 1_000_000_000
MAX_COLUMNS = 10_000
MAX_ROWS = 100_000_000  # compression allows any number of equal rows in a few kB of Parquet


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        frame: The cells.
        name: Table name, for messages.
        first_row: Row number of the first data row, as shown to the user.
        note: Non-default properties of the file (encoding, no header); may be empty.
        predicted: Whether `unfreeze predict` wrote the table. Its cells are then used literally.
    """

    frame: pd.DataFrame
    name: str
    first_row: int
    note: str = ""
    predicted: bool = False

    def rows(self, positions: list[int]) -> str:
        """Format the number of rows and their row numbers: `3 rows (2, 17, 40)`."""
        numbers = join_names(position + self.first_row for position in positions)
        return f"{pluralize(len(positions), 'row')} ({numbers})"

    def column(self, name: str) -> list[str]:
        """Normalized cells of a column.

        Cells are stripped and in NFC; numbers are normalized by `number_names`. Cells of predicted tables are only
        converted to NFC.

        Args:
            name: Column name.

        Returns:
            One text per row; missing values are empty.

        Raises:
            SourceError: If there is no such column, or a cell is not valid text.
        """
        name = nfc(name)
        if name not in self.frame.columns:
            columns = list(self.frame.columns)
            raise SourceError(
                f"{self.name}: no column '{name}'.{did_you_mean(name, columns)} It has {join_names(columns, 20)}."
            )
        texts = to_text(self.frame[name], strip=not self.predicted)
        strange = [i for i, text in enumerate(texts) if not is_valid_utf8(text)]
        if strange:
            raise SourceError(f"{self.name}: '{name}' is not valid text in {self.rows(strange)}. Fix those values.")
        names = [nfc(text) for text in texts]
        return names if self.predicted else number_names(names)

    def raw(self, name: str) -> list[str]:
        """Cells of a column with surrounding whitespace, for paths.

        Args:
            name: Column name.

        Returns:
            One text per row.

        Raises:
            SourceError: As for `column`, or if a cell is empty.
        """
        self.filled(name)
        return to_text(self.frame[nfc(name)], strip=False)

    def filled(self, name: str) -> list[str]:
        """Normalized cells of a column without empty cells.

        Args:
            name: Column name.

        Returns:
            One text per row.

        Raises:
            SourceError: As for `column`, or if a cell is empty.
        """
        texts = self.column(name)
        empty = [i for i, text in enumerate(texts) if not text]
        if empty:
            raise SourceError(f"{self.name}: '{name}' is empty in {self.rows(empty)}. Fill or remove those rows.")
        return texts


def read_sheet(path: Path, options: Source | None = None) -> TextTable:
    """Read a CSV, TSV or Parquet file as text columns.

    Args:
        path: Table file; its suffix determines the format.
        options: The encoding, and the columns and root folder used to detect a header.

    Returns:
        The table. Columns without a name are dropped. A table without a header gets generated column names.

    Raises:
        SourceError: If the file is too large, its encoding is uncertain, or its content is invalid.
    """
    options = options or Source()
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SourceError(
            f"{path}: {size / 1e9:.1f} GB exceeds the limit for a table ({MAX_BYTES / 1e9:g} GB). "
            "Keep only the columns that name path, label, group and split."
        )
    if KINDS.get(path.suffix.lower()) == "Parquet":
        return as_sheet(_parquet(path), str(path), first_row=1)
    text, encoding = decode(path.read_bytes(), str(path), options.encoding)
    separator = _separator(text)
    _few_columns(text.partition("\n")[0].count(separator), str(path))  # before all cells are parsed
    try:
        # The header is read as a row: pandas would rename duplicate columns and use a surplus first column as index.
        # All cells are text, so that 000001 and the class "NA" are preserved.
        cells = pd.read_csv(io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False).fillna("")
    except pd.errors.EmptyDataError:
        raise SourceError(f"{path}: the file is empty. It needs a header and one row a photo.") from None
    except (ValueError, csv.Error, OverflowError) as error:
        raise SourceError(f"{path}: not a valid CSV ({_one_line(error)}). Fix that line.") from None
    first = [str(cell) for cell in cells.iloc[0]]
    notes = [f"{encoding}, '{word}'" if (word := first_word(text)) else encoding] if encoding else []
    asked = (options.path_column, *options.label, options.group, options.split)
    bases = [path.parent, *([Path(options.root).expanduser()] if options.root else [])]
    image = -1
    if not _is_predicted(first):
        image = image_column(first, cells.iloc[1:21].to_numpy().tolist(), [name for name in asked if name], bases)
    if image >= 0:
        notes.append("no header")
        frame, names = cells, generated_names(len(first), image)
    else:
        frame, names = cells.iloc[1:].reset_index(drop=True), first
    frame.columns = pd.Index(names, dtype=object)
    if _is_predicted(first):  # `write_csv` escapes formulas with an apostrophe
        frame = frame.map(unescape_formula)
    sheet = as_sheet(frame, str(path), first_row=1 if image >= 0 else 2)
    return replace(sheet, note=", ".join(notes))


def _is_predicted(columns: list[str]) -> bool:
    """Whether these are the columns of a table written by `unfreeze predict`."""
    return (
        len(columns) > 4
        and columns[:2] == ["path", "label"]
        and columns[-1] == "error"
        and all(column.startswith("p_") for column in columns[2:-1])
    )


def _parquet(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:  # permission errors are raised here, not reported as a damaged file
        try:
            rows = read_metadata(file).num_rows
            file.seek(0)
            if rows <= MAX_ROWS:
                return read_parquet(file)
        except Exception as error:  # damaged bytes or pandas metadata can raise any exception
            raise SourceError(f"{path}: not a valid Parquet file ({_one_line(error)}). Write it again.") from None
    raise SourceError(f"{path}: {rows:,} rows exceed the limit for a table ({MAX_ROWS:,}). Split it.")


def as_sheet(frame: pd.DataFrame, name: str, first_row: int) -> TextTable:
    """Convert a DataFrame to a `TextTable`; columns without a name are dropped.

    Args:
        frame: The DataFrame.
        name: Table name, for messages.
        first_row: Row number of the first row, as shown to the user.

    Returns:
        The table.

    Raises:
        SourceError: If two columns have the same name, or there are too many columns.
    """
    columns = [nfc(str(column)) for column in frame.columns]
    predicted = _is_predicted(columns)
    columns = columns if predicted else [column.strip() for column in columns]
    _few_columns(len(columns), name)
    twice = sorted(column for column, count in Counter(columns).items() if column and count > 1)
    if twice:
        raise SourceError(f"{name}: two columns are named {join_names(map(repr, twice))}. Rename one.")
    # Columns without a name cannot be selected, and several of them would be ambiguous.
    named = frame.loc[:, [bool(column) for column in columns]]
    frame = named.set_axis([column for column in columns if column], axis=1)
    return TextTable(frame, name, first_row, predicted=predicted)


def _few_columns(count: int, name: str) -> None:
    if count > MAX_COLUMNS:
        raise SourceError(
            f"{name}: {count:,} columns exceed the limit for a table ({MAX_COLUMNS:,}). "
            "Keep only those that name path, label, group and split."
        )


def _separator(text: str) -> str:
    """Detect the separator that gives the most consistent column count. `csv.Sniffer` is less accurate."""
    head = text[:65536]
    if len(text) > len(head):
        head = head[: head.rfind("\n") + 1] or head

    def score(separator: str) -> tuple[float, int]:
        try:
            widths = [len(row) for row in csv.reader(io.StringIO(head, newline=""), delimiter=separator) if row]
        except csv.Error:
            return 0.0, 0
        widths = widths[:50]
        if not widths or widths[0] < 2:
            return 0.0, 0
        return widths.count(widths[0]) / len(widths), widths[0]

    try:  # class names in a table of predictions can contain any of the other separators
        if _is_predicted(next(csv.reader(io.StringIO(head, newline="")), [])):
            return ","
    except csv.Error:
        pass
    return max(SEPARATORS, key=score)


def to_text(values: pd.Series, strip: bool = True) -> list[str]:
    """Convert a column of any type to text.

    Floats are formatted as in a CSV file and normalized by `number_names`.

    Args:
        values: The column.
        strip: Whether to strip surrounding whitespace.

    Returns:
        One text per row; missing values are empty.
    """
    if pd.api.types.is_float_dtype(values.dtype):
        # Format in the original precision: float32 0.1 is 0.1, but 0.10000000149 as float64.
        precision: Any = getattr(values.dtype, "numpy_dtype", values.dtype)
        numbers = values.to_numpy(precision, na_value=np.nan)
        return number_names(["" if np.isnan(number) else str(number) for number in numbers])
    texts = ["" if _absent(value) else str(value) for value in values.tolist()]
    return [text.strip() for text in texts] if strip else texts


def _absent(value: Any) -> bool:
    if isinstance(value, str):
        return False
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
