"""Photos named by a CSV, TSV or Parquet file, or by a DataFrame."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

import pandas as pd

from unfreeze.core.errors import SourceError, listed
from unfreeze.core.recipe_sections import Source
from unfreeze.core.tables import PHOTO_COLUMNS, Finding
from unfreeze.data.sheet import KINDS, Sheet, as_sheet, read_sheet, texts_of
from unfreeze.data.walk import SPLIT_WORDS, Draft, counted, hidden_skipped, is_hidden, skipped, splitting

LABEL_NAMES = ("label", "class", "target", "category")
GROUP_NAMES = ("group", "group_id", "person", "patient", "subject")
SPLIT_NAMES = ("split", "subset", "fold", "set", "partition")
RESERVED = (*PHOTO_COLUMNS, "fold")
SAMPLE = 200


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
    taken = f"{kind}: paths in '{path_column}'"
    return draft_of(sheet, options, base, taken, path_column, label_columns, group_column)


def draft_of(
    sheet: Sheet,
    options: Source,
    base: Path,
    taken: str,
    path_column: str,
    label_columns: tuple[str, ...],
    group_column: str,
    paths: list[str] | None = None,
) -> Draft:
    """The rows under the rules that hold for all tables. SourceError for anything that leaves a row's meaning open.

    base: where paths start. taken: what the source was taken for, the label left out. group_column: may be empty: each
    photo its own group. paths: the photos' paths where they are known to be there; None: the sheet's, looked for.
    """
    attributes = _attributes(sheet, label_columns, path_column)
    # Labels before paths: a wrong column name should be told at once, not after 20,000 looks at the disk.
    labels = [sheet.filled(column) for column in label_columns]
    rows: dict[str, list[str]] = dict(zip(attributes, labels, strict=True))
    rows["label"] = _joined(sheet, label_columns, labels)
    rows["split"], split_text = _split(sheet, options)
    rows["path"] = _paths(sheet, path_column, base) if paths is None else paths
    rows["group"] = sheet.filled(group_column) if group_column else rows["path"]
    table, findings = _without_repeats(sheet, pd.DataFrame(rows))
    shown = " + ".join(f"'{column}'" for column in label_columns)
    return Draft(
        root=base.resolve(),
        table=table,
        attributes=attributes,
        taken=f"{taken}, label {shown}",
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


def _open(source: Path | pd.DataFrame) -> tuple[Sheet, Path, str]:
    """The table, the folder its paths start from, and what kind of thing it is."""
    if isinstance(source, pd.DataFrame):
        return as_sheet(source, "the DataFrame", first_row=0), Path.cwd(), "DataFrame"
    kind = KINDS.get(source.suffix.lower())
    if kind is None:
        raise SourceError(
            f"{source}: a file, but not a CSV, TSV or Parquet by its name ({', '.join(KINDS)}). "
            "Give one of those, or the folder of photos."
        )
    return read_sheet(source), source.parent, f"{kind} {source.name}"


def _path_column(sheet: Sheet, base: Path) -> str:
    """The one column whose values are files. SourceError if none or several are."""
    columns = list(sheet.frame.columns)
    candidates = []
    for column in columns:
        values = sheet.frame[column]
        sample = [text for text in texts_of(values.iloc[:: max(1, -(-len(values) // SAMPLE))]) if text]
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
    likely = [column for column in others if 2 <= len(set(texts_of(sheet.frame[column]))) <= most]
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
    hidden = hidden_skipped(list(table["path"][is_shadow]))
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
