"""A CSV, TSV, Parquet file or DataFrame as a table of text, nothing guessed about what its columns mean."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.parquet import read_metadata

from unfreeze.core.errors import SourceError, listed, nearest
from unfreeze.core.files import is_text
from unfreeze.core.tables import read_parquet
from unfreeze.data.walk import counted

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
MAX_ROWS = 100_000_000  # a Parquet file of a few kB can hold as many as it likes of the same value


@dataclass(frozen=True)
class Sheet:
    """A table of text. `name` is for messages; `first_row` is the number people see on its first data row."""

    frame: pd.DataFrame
    name: str
    first_row: int

    def rows(self, positions: list[int]) -> str:
        """How many rows, and which: `3 rows (2, 17, 40)`."""
        numbers = listed(position + self.first_row for position in positions)
        return f"{counted(len(positions), 'row')} ({numbers})"

    def column(self, name: str) -> list[str]:
        """A column as text without outer spaces; an absent value is empty. SourceError: no such column."""
        if name not in self.frame.columns:
            columns = list(self.frame.columns)
            raise SourceError(f"{self.name}: no column '{name}'.{nearest(name, columns)} It has {listed(columns, 20)}.")
        texts = texts_of(self.frame[name])
        strange = [i for i, text in enumerate(texts) if not is_text(text)]
        if strange:
            raise SourceError(f"{self.name}: '{name}' is not valid text in {self.rows(strange)}. Mend those.")
        return texts

    def filled(self, name: str) -> list[str]:
        """A column that may have no empty cell. SourceError counts and names the rows that have one."""
        texts = self.column(name)
        empty = [i for i, text in enumerate(texts) if not text]
        if empty:
            raise SourceError(f"{self.name}: '{name}' is empty in {self.rows(empty)}. Fill or remove those rows.")
        return texts


def read_sheet(path: Path) -> Sheet:
    """A CSV, TSV or Parquet file as text columns. SourceError: too large, another encoding, ragged rows."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SourceError(
            f"{path}: {size / 1e9:.1f} GB is more than a table of photos may have ({MAX_BYTES / 1e9:g} GB). "
            "Keep only the columns that name path, label, group and split."
        )
    if KINDS.get(path.suffix.lower()) == "Parquet":
        return as_sheet(_parquet(path), str(path), first_row=1)
    text = _decoded(path, path.read_bytes())
    separator = _separator(text)
    _few_columns(text.partition("\n")[0].count(separator), str(path))  # before all of them are cut apart
    try:
        # Header kept as a row: pandas would rename columns of the same name, and take a surplus first
        # column for an index. Everything is text, so that 000001 stays 000001 and the class "NA" a class.
        cells = pd.read_csv(io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False).fillna("")
    except pd.errors.EmptyDataError:
        raise SourceError(f"{path}: the file is empty. It needs a header and one row a photo.") from None
    except (ValueError, csv.Error, OverflowError) as error:
        raise SourceError(f"{path}: not a valid CSV ({_one_line(error)}). Mend that line.") from None
    frame = cells.iloc[1:].reset_index(drop=True)
    frame.columns = pd.Index(list(cells.iloc[0]), dtype=object)
    return as_sheet(frame, str(path), first_row=2)


def _parquet(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:  # a file that may not be read says so here, not as one that is damaged
        try:
            rows = read_metadata(file).num_rows
            file.seek(0)
            if rows <= MAX_ROWS:
                return read_parquet(file)
        except Exception as error:  # bytes can be wrong in any way, and what pandas has written about itself too
            raise SourceError(f"{path}: not a valid Parquet file ({_one_line(error)}). Write it again.") from None
    raise SourceError(f"{path}: {rows:,} rows are more than one table may have ({MAX_ROWS:,}). Split it.")


def as_sheet(frame: pd.DataFrame, name: str, first_row: int) -> Sheet:
    """Any frame as a Sheet; columns without a name are left out. SourceError: two columns of one name."""
    columns = [str(column).strip() for column in frame.columns]
    _few_columns(len(columns), name)
    twice = sorted(column for column, count in Counter(columns).items() if column and count > 1)
    if twice:
        raise SourceError(f"{name}: two columns are named {listed(map(repr, twice))}. Rename one.")
    # Columns without a name cannot be meant, and several of them would be ambiguous.
    named = frame.loc[:, [bool(column) for column in columns]]
    return Sheet(named.set_axis([column for column in columns if column], axis=1), name, first_row)


def _few_columns(count: int, name: str) -> None:
    if count > MAX_COLUMNS:
        raise SourceError(
            f"{name}: {count:,} columns are more than a table of photos may have ({MAX_COLUMNS:,}). "
            "Keep only those that name path, label, group and split."
        )


def _decoded(path: Path, content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(f"{path}: encoded as UTF-16. Save it as UTF-8 (in Excel: 'CSV UTF-8').")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path}: not UTF-8: byte 0x{content[error.start]:02x} in line {line} (perhaps Latin-1 or "
            "Windows-1252). Save it as UTF-8 (in Excel: 'CSV UTF-8')."
        ) from None


def _separator(text: str) -> str:
    """The separator that cuts the first lines into the most even columns. csv.Sniffer guesses worse."""
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

    return max(SEPARATORS, key=score)


def texts_of(values: pd.Series) -> list[str]:
    """A column of anything as text. Whole floats lose their .0: they were integers beside a missing value."""
    if pd.api.types.is_float_dtype(values.dtype):
        numbers = [None if pd.isna(value) else float(value) for value in values]
        if all(number is None or number.is_integer() for number in numbers):
            return ["" if number is None else str(int(number)) for number in numbers]
    return ["" if _absent(value) else str(value).strip() for value in values.tolist()]


def _absent(value: Any) -> bool:
    if isinstance(value, str):
        return False
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
