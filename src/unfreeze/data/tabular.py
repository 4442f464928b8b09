"""Photos named by a CSV, TSV or Parquet file, or by a DataFrame."""

from __future__ import annotations

import csv
import io
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.lib import ArrowException

from unfreeze.core.errors import SourceError, listed, nearest
from unfreeze.core.recipe import Source
from unfreeze.core.tables import PHOTO_COLUMNS, Finding
from unfreeze.data.walk import SPLIT_WORDS, Draft, counted, is_hidden, is_text, skipped, splitting

KINDS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".tab": "TSV",
    ".txt": "CSV",
    ".parquet": "Parquet",
    ".pq": "Parquet",
}
LABEL_NAMES = ("label", "class", "target", "category")
GROUP_NAMES = ("group", "group_id", "person", "patient", "subject")
SPLIT_NAMES = ("split", "subset", "fold", "set", "partition")
SEPARATORS = (",", ";", "\t", "|")
MAX_BYTES = 1_000_000_000
RESERVED = (*PHOTO_COLUMNS, "fold")
SAMPLE = 200


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
        texts = _texts(self.frame[name])
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


def draft(source: Path | pd.DataFrame, options: Source) -> Draft:
    """The photos that a table names. SourceError for anything that leaves a row's meaning open."""
    sheet, beside, kind = _open(source)
    if sheet.frame.empty:
        raise SourceError(f"{sheet.name}: no rows. It needs a header and one row a photo.")
    base = Path(options.root).expanduser() if options.root else beside
    if not base.is_dir():
        raise SourceError(f"{base}: no such folder (--root). Give the folder that the paths start from.")

    path_column = options.path_column or _path_column(sheet, base)
    label_columns = options.label or (_label_column(sheet, path_column),)
    group_column = options.group or ("" if options.group_regex else _named(sheet, GROUP_NAMES))
    attributes = _attributes(sheet, label_columns, path_column)

    # Labels before paths: a wrong column name should be told at once, not after 20,000 looks at the disk.
    labels = [sheet.filled(column) for column in label_columns]
    rows: dict[str, list[str]] = dict(zip(attributes, labels, strict=True))
    rows["label"] = _joined(sheet, label_columns, labels)
    rows["split"], split_text = _split(sheet, options)
    rows["path"] = _paths(sheet, path_column, base)
    rows["group"] = sheet.filled(group_column) if group_column else rows["path"]

    table, findings = _without_repeats(sheet, pd.DataFrame(rows))
    shown = " + ".join(f"'{column}'" for column in label_columns)
    return Draft(
        root=base.resolve(),
        table=table,
        attributes=attributes,
        taken=f"{kind}: paths in '{path_column}', label {shown}",
        grouping=f"group '{group_column}'" if group_column else "each photo its own group",
        splitting=split_text,
        findings=findings,
    )


def paths_of(source: Path, options: Source) -> tuple[Path, list[str]]:
    """Root and paths that a table names, in its order; files that are gone stay in. SourceError as for `draft`."""
    sheet, beside, _ = _open(source)
    if sheet.frame.empty:
        raise SourceError(f"{sheet.name}: no rows. It needs a header and one row a photo.")
    base = Path(options.root).expanduser() if options.root else beside
    column = options.path_column or _path_column(sheet, base)
    return base, _paths(sheet, column, base, gone_may_stay=True)


def read_sheet(path: Path) -> Sheet:
    """A CSV, TSV or Parquet file as text columns. SourceError: too large, another encoding, ragged rows."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SourceError(
            f"{path}: {size / 1e9:.1f} GB is more than a table of photos may have ({MAX_BYTES / 1e9:g} GB). "
            "Keep only the columns that name path, label, group and split."
        )
    if KINDS.get(path.suffix.lower()) == "Parquet":
        return _sheet(_parquet(path), str(path), first_row=1)
    text = _decoded(path, path.read_bytes())
    try:
        # Header kept as a row: pandas would rename columns of the same name, and take a surplus first
        # column for an index. Everything is text, so that 000001 stays 000001 and the class "NA" a class.
        cells = pd.read_csv(
            io.StringIO(text), sep=_separator(text), header=None, dtype=str, keep_default_na=False
        ).fillna("")
    except pd.errors.EmptyDataError:
        raise SourceError(f"{path}: the file is empty. It needs a header and one row a photo.") from None
    except (ValueError, csv.Error, OverflowError) as error:
        raise SourceError(f"{path}: not a valid CSV ({_one_line(error)}). Mend that line.") from None
    frame = cells.iloc[1:].reset_index(drop=True)
    frame.columns = pd.Index(list(cells.iloc[0]), dtype=object)
    return _sheet(frame, str(path), first_row=2)


def _parquet(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:  # a file that may not be read says so here, not as one that is damaged
        try:
            return pd.read_parquet(file)
        except (OSError, ValueError, NotImplementedError, ArrowException) as error:
            raise SourceError(f"{path}: not a valid Parquet file ({_one_line(error)}). Write it again.") from None


def _open(source: Path | pd.DataFrame) -> tuple[Sheet, Path, str]:
    """The table, the folder its paths start from, and what kind of thing it is."""
    if isinstance(source, pd.DataFrame):
        return _sheet(source, "the DataFrame", first_row=0), Path.cwd(), "DataFrame"
    kind = KINDS.get(source.suffix.lower())
    if kind is None:
        raise SourceError(
            f"{source}: a file, but not a CSV, TSV or Parquet by its name ({', '.join(KINDS)}). "
            "Give one of those, or the folder of photos."
        )
    return read_sheet(source), source.parent, f"{kind} {source.name}"


def _sheet(frame: pd.DataFrame, name: str, first_row: int) -> Sheet:
    columns = [str(column).strip() for column in frame.columns]
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise SourceError(f"{name}: two columns are named {listed(map(repr, twice))}. Rename one.")
    # Columns without a name cannot be meant, and several of them would be ambiguous.
    named = frame.loc[:, [bool(column) for column in columns]]
    return Sheet(named.set_axis([column for column in columns if column], axis=1), name, first_row)


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


def _texts(values: pd.Series) -> list[str]:
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


def _path_column(sheet: Sheet, base: Path) -> str:
    """The one column whose values are files. SourceError if none or several are."""
    columns = list(sheet.frame.columns)
    candidates = []
    for column in columns:
        values = sheet.frame[column]
        sample = [text for text in _texts(values.iloc[:: max(1, -(-len(values) // SAMPLE))]) if text]
        # Files outside the root count here too; the error about them comes later and says more.
        hits = sum(_is_file(_normal(text, base)) or _is_file(_normal(_slashes(text), base)) for text in sample)
        if sample and hits * 2 >= len(sample):
            candidates.append(column)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise SourceError(
            f"{sheet.name}: the columns {listed(candidates)} all hold paths of files. "
            f"Choose one: --path-column {candidates[0]}."
        )
    raise SourceError(
        f"{sheet.name}: no column holds paths of files in {base}. Its columns are {listed(columns, 20)}. Say "
        "which one: --path-column COL, and the folder that they start from: --root DIR."
    )


def _label_column(sheet: Sheet, path_column: str) -> str:
    named = _named(sheet, LABEL_NAMES)
    if named:
        return named
    most = max(2, len(sheet.frame) // 2)
    others = [column for column in sheet.frame.columns if column != path_column]
    likely = [column for column in others if 2 <= len(set(_texts(sheet.frame[column]))) <= most]
    raise SourceError(
        f"{sheet.name}: no column is named {', '.join(LABEL_NAMES)}. Say which holds the classes: "
        f"--label COL (candidates: {listed(likely or others, 20) or 'none'})."
    )


def _named(sheet: Sheet, names: tuple[str, ...]) -> str:
    """The first column that bears one of `names`, in any case; else empty."""
    columns = {str(column).lower(): str(column) for column in reversed(list(sheet.frame.columns))}
    return next((columns[name] for name in names if name in columns), "")


def _attributes(sheet: Sheet, columns: tuple[str, ...], path_column: str) -> tuple[str, ...]:
    """Names of the label columns in the photos table, clear of the names that mean something else there."""
    if len(set(columns)) < len(columns):
        raise SourceError(f"{sheet.name}: --label names a column twice: {listed(columns)}.")
    if path_column in columns:
        raise SourceError(f"{sheet.name}: '{path_column}' cannot be both path and label. Choose another --label.")
    clash = [column for column in columns if column in RESERVED]
    if len(columns) == 1:
        return ("label",) if clash else columns
    if clash:
        raise SourceError(
            f"{sheet.name}: with several --label columns none may be named {listed(RESERVED)}; "
            f"rename {listed(map(repr, clash))}."
        )
    return columns


def _joined(sheet: Sheet, columns: tuple[str, ...], values: list[list[str]]) -> list[str]:
    if len(columns) == 1:
        return values[0]
    parts = list(zip(*values, strict=True))
    joined = [", ".join(row) for row in parts]
    if len(set(joined)) < len(set(parts)):
        raise SourceError(
            f"{sheet.name}: values of {listed(columns)} hold ', ', so that two classes would get one name."
        )
    return joined


def _split(sheet: Sheet, options: Source) -> tuple[list[str], str]:
    """Our split of each row, and what to say about it. SourceError: a value that is no known split."""
    all_train = ["train"] * len(sheet.frame)
    if options.split == "none":
        return all_train, "splits ignored" if _named(sheet, SPLIT_NAMES[:2]) else ""
    column = options.split or _named(sheet, SPLIT_NAMES)
    if not column:
        return all_train, ""
    words = [word.lower() for word in sheet.column(column)]
    strange = [i for i, word in enumerate(words) if word not in SPLIT_WORDS]
    # A column named `fold` or `set` may hold anything; only where it speaks of splits is it one. A column
    # that is named split or subset, or that was asked for, must not be passed over in silence.
    if len(strange) == len(words) and not options.split and column.lower() not in SPLIT_NAMES[:2]:
        return all_train, ""
    if strange:
        raise SourceError(
            f"{sheet.name}: split '{column}' holds {words[strange[0]]!r} in {sheet.rows(strange)}; known are "
            f"{', '.join(SPLIT_WORDS)}. Rename it, or give --split none to pool all photos."
        )
    return [SPLIT_WORDS[word] for word in words], f"split '{column}' ({splitting(set(words))})"


def _paths(sheet: Sheet, column: str, base: Path, gone_may_stay: bool = False) -> list[str]:
    """Each row's path relative to `base`. SourceError: outside of it, or no such file unless those may stay."""
    texts = sheet.filled(column)
    # Two spellings of the same folder: as given, and with its links resolved.
    prefixes = {f"{_normal('', root).rstrip('/')}/": None for root in (base, base.resolve())}
    paths: list[str] = []
    outside: list[str] = []
    missing: list[str] = []
    for text in texts:
        full = _normal(text, base)
        if "\\" in text and not _is_file(full):  # written on Windows
            full = _normal(_slashes(text), base)
        prefix = next((prefix for prefix in prefixes if full.startswith(prefix)), None)
        if prefix is None:
            outside.append(text)
        elif not gone_may_stay and not _is_file(full):
            missing.append(text)
        else:
            paths.append(full.removeprefix(prefix))
    if outside:
        raise SourceError(
            f"{sheet.name}: {counted(len(outside), 'path')} in '{column}' outside of {base}, first: "
            f"{outside[0]}. Give a folder that holds them all: --root DIR."
        )
    if missing:
        raise SourceError(
            f"{sheet.name}: no such file in {base} for {len(missing):,} of {len(texts):,} paths in "
            f"'{column}': {listed(missing)}. Mend them, or say where they start: --root DIR."
        )
    return paths


def _normal(text: str, base: Path) -> str:
    """`text` as an absolute path from `base`, without . and .., links not followed."""
    absolute = text.startswith("/") or text[1:3] == ":/"
    return posixpath.normpath(text if absolute else f"{base.absolute().as_posix().rstrip('/')}/{text}")


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - several times faster than a Path, and never raises


def _without_repeats(sheet: Sheet, table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Finding, ...]]:
    """Each photo once, hidden files dropped. SourceError: rows that contradict each other about a photo."""
    # Folders are the table's own choice, but ._name is never a photo: lists made by a glob hold them.
    is_shadow = [is_hidden(path.rpartition("/")[2]) for path in table["path"]]
    hidden = skipped(
        "hidden",
        "info",
        list(table["path"][is_shadow]),
        "hidden file",
        "hidden files",
        "None needed: these are not photos.",
    )
    table = table[[not shadow for shadow in is_shadow]]
    if table.empty:
        raise SourceError(f"{sheet.name}: no photos; all of its files are hidden ones.")
    once = table.drop_duplicates()
    for column in ("label", "split", "group"):
        values = once.drop_duplicates(["path", column])
        torn = values[values["path"].duplicated(keep=False)]
        if len(torn):
            first = torn["path"].iloc[0]
            said = torn.loc[torn["path"] == first, column]
            raise SourceError(
                f"{sheet.name}: {counted(torn['path'].nunique(), 'photo')} with different {column}s: "
                f"{listed(dict.fromkeys(torn['path']))}; {first} is {' and '.join(map(repr, said))}. "
                "Keep one row of each."
            )
    repeats = table[table["path"].duplicated()]
    repeated = skipped(
        "repeated_rows",
        "warning",
        list(repeats["path"]),
        "row that repeats a photo",
        "rows that repeat a photo",
        "Remove the repeated rows.",
    )
    return once, tuple(f for f in (hidden, repeated) if f is not None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
