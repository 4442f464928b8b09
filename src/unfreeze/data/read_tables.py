"""Reader for CSV, TSV and Parquet files and DataFrames that list images.

Detects the path, label, group and split columns, validates every row and locates the image files. `parse_rows` applies
the same rules to rows of other origin, such as WebDataset samples.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from unfreeze.core.dataset import PHOTO_COLUMNS, Finding
from unfreeze.core.errors import SourceError, join_names
from unfreeze.core.files import unescape_formula
from unfreeze.core.format import pluralize
from unfreeze.core.messages import from_command_line, option
from unfreeze.core.names import on_disk
from unfreeze.core.recipe_schema import Source
from unfreeze.data.directory_walk import ParsedSource, hidden_skipped, is_hidden, is_image_name, packed, skipped
from unfreeze.data.file_lookup import FileLookup
from unfreeze.data.groups import groups_by_column
from unfreeze.data.label_columns import (
    as_one_hot,
    binary_columns,
    check_labels,
    labeled_rows,
    multi_hot_finding,
    multi_label_finding,
    several_at_once,
    split_names,
    unread_rows,
)
from unfreeze.data.split_names import SPLIT_WORDS, split_of, splitting
from unfreeze.data.table_paths import Located, find_paths, path_hits
from unfreeze.data.text_table import KINDS, TextTable, as_sheet, image_column, read_sheet, to_text

LABEL_NAMES = ("label", "class", "target", "category")
GROUP_NAMES = ("group", "group_id", "person", "patient", "subject")
PATH_NAMES = ("path", "file", "filename", "file_name", "image", "image_id", "imageid", "img", "id")
SPLIT_NAMES = ("split", "subset", "fold", "set", "partition")
RESERVED = (*PHOTO_COLUMNS, "fold")
SAMPLE = 200


def parse_table(source: Path | pd.DataFrame, options: Source) -> ParsedSource:
    """Read the images listed in a table.

    Args:
        source: Table file or DataFrame.
        options: How to read the source.

    Returns:
        The parsed source.

    Raises:
        SourceError: If a row or column is missing, invalid or ambiguous.
    """
    sheet, table_folder, kind = _open(source, options)
    if sheet.frame.empty:
        raise SourceError(f"{sheet.name}: no rows. It needs a header and one row a photo.")
    root = _root(options)
    options = options.model_copy(update={"label": split_names(sheet, options.label)})
    path_column = options.path_column or _path_column(sheet, table_folder, root, _meant(sheet, options))
    group_column = options.group or ("" if options.group_regex else _named(sheet, GROUP_NAMES))
    label_columns = options.label or _label_columns(sheet, path_column, group_column, options)

    def locate(rows: list[int]) -> Located:
        texts = sheet.raw(path_column)
        return find_paths([texts[i] for i in rows], path_column, sheet.name, table_folder, root)

    return parse_rows(sheet, options, kind, path_column, label_columns, group_column, locate)


def parse_rows(
    sheet: TextTable,
    options: Source,
    taken: str,
    path_column: str,
    label_columns: tuple[str, ...],
    group_column: str,
    locate: Callable[[list[int]], Located],
    own: list[str] | None = None,
) -> ParsedSource:
    """Convert table rows to a parsed source, with the rules that apply to all tables.

    Args:
        sheet: The table.
        options: How to read the source.
        taken: Description of the source for `ImageDataset.choice`.
        path_column: Name of the path column, for messages; may be empty.
        label_columns: Names of the label columns.
        group_column: Name of the group column. If empty, each image is its own group.
        locate: Returns the files of the rows at the given positions.
        own: Group of each row without a group; None to use its path.

    Returns:
        The parsed source.

    Raises:
        SourceError: If a row is missing a value, invalid or ambiguous.
    """
    split, split_text = _split(sheet, options)
    may_lack = [i for i, word in enumerate(split) if word == "test"]
    # Labels before paths, so that a wrong column name fails before thousands of file system lookups.
    rows, attributes, label_text, notices = _labels(sheet, label_columns, path_column, may_lack)
    rows["split"] = split
    kept, findings = labeled_rows(sheet, rows[attributes[0]])
    groups = _in(sheet.column(group_column), kept) if group_column else []
    rows = {name: _in(values, kept) for name, values in rows.items()}
    located = locate(kept)
    if located.escaped:  # spreadsheet-safe table: labels and groups are escaped like the paths
        plainly = {name: list(map(unescape_formula, values)) for name, values in rows.items()}
        rows, groups = plainly, list(map(unescape_formula, groups))
    rows["path"] = located.paths
    names = located.paths if own is None else _in(own, kept)
    rows["group"], grouping, about_groups = groups_by_column(
        sheet.name, group_column, groups, names, bool(options.group)
    )
    unlabeled = split.count("test") - rows["split"].count("test")
    if unlabeled:
        split_text += f", {unlabeled:,} of test without a label left out"
    table, repeats = _without_repeats(sheet, pd.DataFrame(rows))
    about = f": paths in '{path_column}'" + (f" ({located.note})" if located.note else "") if path_column else ""
    return ParsedSource(
        root=located.root.resolve(),
        table=table,
        attributes=attributes,
        taken=f"{taken}{about}, label {label_text}",
        grouping=grouping,
        splitting=split_text,
        findings=(*notices, *findings, *about_groups, *repeats),
    )


def paths_of(
    source: Path | pd.DataFrame, options: Source, notice: Callable[[str], None] | None = None
) -> tuple[Path, list[str]]:
    """List the images of a table for prediction.

    Missing files and absolute paths are kept.

    Args:
        source: Table file or DataFrame.
        options: How to read the source.
        notice: Called with one line if something is not interpreted literally.

    Returns:
        Root folder and paths, in table order.

    Raises:
        SourceError: As for `parse_table`, or if no file exists.
    """
    sheet, table_folder, kind = _open(source, options)
    if sheet.frame.empty:
        raise SourceError(f"{sheet.name}: no rows. It needs a header and one row a photo.")
    root = _root(options)
    column = options.path_column or _path_column(sheet, table_folder, root, _meant(sheet, options))
    texts = sheet.raw(column)
    found = find_paths(texts, column, sheet.name, table_folder, root, missing_ok=True, keep_absolute=True)
    if notice is not None and (found.note or sheet.note):
        notice(f"{kind}: paths in '{column}'" + (f" ({found.note})." if found.note else "."))
    return found.root, found.paths


def _root(options: Source) -> Path | None:
    """The folder given by the user. Raises `SourceError` if it is not a folder."""
    root = on_disk(Path(options.root).expanduser()) if options.root else None
    if root is not None and not root.is_dir():
        raise SourceError(f"{root}: no such folder ({option('root')}). Give the folder that the paths start from.")
    return root


def _open(source: Path | pd.DataFrame, options: Source) -> tuple[TextTable, Path, str]:
    """Open the table.

    Returns:
        The table, the folder that relative paths start from, and a description of the source.
    """
    if isinstance(source, pd.DataFrame):
        sheet, table_folder, kind = as_sheet(source, "the DataFrame", first_row=0), Path.cwd(), "DataFrame"
    else:
        suffix = source.suffix.lower()
        if suffix not in KINDS:
            reason = packed(source) or (
                f"a file, but not a CSV, TSV or Parquet by its name ({', '.join(KINDS)}). "
                "Give one of those, or the folder of photos."
            )
            raise SourceError(f"{source}: {reason}")
        sheet, table_folder, kind = read_sheet(source, options), source.parent, f"{KINDS[suffix]} {source.name}"
    names = [str(name) for name in sheet.frame.columns]
    if "no header" not in sheet.note and any(map(is_image_name, names)):
        rows = [list(map(str, row)) for row in sheet.frame.head(20).to_numpy().tolist()]
        asked = (options.path_column, *options.label, options.group, options.split)
        if (i := image_column(names, rows, list(filter(None, asked)), [])) >= 0:
            raise SourceError(
                f"{sheet.name}: its header is a row of data ('{names[i]}'). Name the columns; in pandas, read "
                "the file with header=None."
            )
    return sheet, table_folder, f"{kind} ({sheet.note})" if sheet.note else kind


def _meant(sheet: TextTable, options: Source) -> tuple[str, ...]:
    """Names of the columns that hold labels, groups or splits, either requested or recognized by name."""
    asked = (*options.label, options.group, "" if options.split == "none" else options.split)
    usual = (_named(sheet, names) for names in (LABEL_NAMES, GROUP_NAMES, SPLIT_NAMES[:2]))
    return tuple(filter(None, (*asked, *usual)))


def _path_column(sheet: TextTable, table_folder: Path, root: Path | None, meant: tuple[str, ...]) -> str:
    """Detect the column that holds file paths. Raises `SourceError` unless exactly one does."""
    columns = list(sheet.frame.columns)
    lookup = FileLookup()
    samples = {}
    for column in columns:
        values = sheet.frame[column]
        texts = to_text(values.iloc[:: max(1, -(-len(values) // SAMPLE))], strip=False)
        samples[column] = [text for text in texts if text.strip()]

    def are_files(column: str, full: bool) -> bool:
        sample = samples[column]
        # Files outside the root count here too; they are rejected later with a more specific error.
        return bool(sample) and path_hits(sample, table_folder, root, lookup, full) * 2 >= len(sample)

    candidates = [column for column in columns if are_files(column, full=False)]
    if not candidates:
        # Numbers and short words can match image names without suffix by chance: require mostly distinct values or a
        # typical name, and exclude columns with another meaning.
        free = [c for c in columns if c not in meant]
        free = [c for c in free if c.lower() in PATH_NAMES or len(set(samples[c])) * 2 > len(samples[c])]
        candidates = [column for column in free if are_files(column, full=True)]
    if not candidates:
        # The files do not exist; `find_paths` reports which ones and suggests a fix.
        named = [c for c in columns if samples[c] and sum(map(_looks_like_path, samples[c])) * 2 >= len(samples[c])]
        candidates = named if len(named) == 1 else []
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise SourceError(
            f"{sheet.name}: the columns {join_names(candidates)} all hold paths of files. "
            f"Choose one: {option('path', candidates[0])}."
        )
    raise SourceError(
        f"{sheet.name}: no column holds paths of files in {root or table_folder}. Its columns are "
        f"{join_names(columns, 20)}. Say "
        f"which one: {option('path', metavar='COL')}, and the folder that they start from: "
        f"{option('root', metavar='DIR')}."
    )


def _looks_like_path(text: str) -> bool:
    return is_image_name(text.strip())


def _labels(
    sheet: TextTable, columns: tuple[str, ...], path_column: str, may_lack: list[int]
) -> tuple[dict[str, list[str]], tuple[str, ...], str, list[Finding]]:
    """Read the label columns.

    Args:
        sheet: The table.
        columns: Names of the label columns.
        path_column: Name of the path column.
        may_lack: Positions of the rows that may lack a label.

    Returns:
        The attribute columns and `label`, the attribute names, a description for `ImageDataset.choice`, and findings.

    Raises:
        SourceError: If a row that requires a label has none.
    """
    attributes = _attributes(sheet, columns, path_column)
    values = [sheet.column(column) for column in columns]
    shown = " + ".join(f"'{column}'" for column in columns)
    found = as_one_hot(sheet, columns, may_lack)
    if found is not None and found.one_each:
        lacking = set(may_lack)
        empty = [i for i, label in enumerate(found.labels) if not label and i not in lacking]
        if empty:
            raise SourceError(f"{sheet.name}: {shown} are empty in {sheet.rows(empty)}. Fill or remove those rows.")
        return {"label": found.labels}, ("label",), f"from {found.kind} columns {join_names(map(repr, columns))}", []
    notices = [multi_hot_finding(sheet, found)] if found is not None and found.kind == "one-hot" else []
    unread = set(unread_rows(sheet))
    for column, texts in zip(columns, values, strict=True):
        if len(columns) == 1:
            check_labels(sheet, column, texts)
            notices += [one] if (one := multi_label_finding(column, [text for text in texts if text])) else []
        without = [i for i, text in enumerate(texts) if not text]
        # A row with only some of its labels is an error, even in the test split.
        fine = {i for i in without if i in unread or not any(each[i] for each in values)}
        fine &= unread | set(may_lack)
        if empty := [i for i in without if i not in fine]:
            raise SourceError(f"{sheet.name}: '{column}' is empty in {sheet.rows(empty)}. Fill or remove those rows.")
    rows = dict(zip(attributes, values, strict=True))
    rows["label"] = _joined(sheet, columns, values)
    return rows, attributes, shown, notices


def _in(values: list[str], positions: list[int]) -> list[str]:
    return values if len(positions) == len(values) else [values[i] for i in positions]


def _label_columns(sheet: TextTable, path_column: str, group_column: str, options: Source) -> tuple[str, ...]:
    """Detect the label columns by name or content. Raises `SourceError` if the choice is ambiguous."""
    named = _named(sheet, LABEL_NAMES)
    if named:
        return (named,)
    split_column = options.split or _named(sheet, SPLIT_NAMES[:2])
    others = [c for c in sheet.frame.columns if c not in (path_column, group_column, split_column)]
    if len(others) == 1 and len(sheet.frame.columns) == 2:
        return (others[0],)
    split, _ = _split(sheet, options)
    one_hot = binary_columns(sheet, others, [i for i, word in enumerate(split) if word == "test"])
    most = max(2, len(sheet.frame) // 2)
    one_hot_columns = one_hot.columns if one_hot else ()
    likely = [c for c in others if c not in one_hot_columns and 2 <= len(set(to_text(sheet.frame[c]))) <= most]
    if one_hot and one_hot.one_each and not likely:
        return one_hot.columns
    said = f"Say which holds the classes: {option('label', metavar='COL')} "
    said += f"(candidates: {join_names(likely or others, 20) or 'none'})."
    if one_hot:
        together, single = _label_option(one_hot.columns), _label_option(one_hot.columns[:1])
        if one_hot.one_each:
            said += f" The {one_hot.kind} columns as one label: {together}."
        else:
            said = (
                f"But {several_at_once(sheet, one_hot)}: several labels an image, which are not trained. Choose "
                f"one: {single}; or make each combination a class: {together}."
            )
    raise SourceError(f"{sheet.name}: no column is named {', '.join(LABEL_NAMES)}. {said}")


def _label_option(columns: tuple[str, ...]) -> str:
    """Format `--label a,b`, quoted for a shell, or the equivalent Python argument."""
    return option("label", shlex.quote(",".join(columns)) if from_command_line() else list(columns))


def _named(sheet: TextTable, names: tuple[str, ...]) -> str:
    """The first column with one of the given names, ignoring case; empty if there is none."""
    columns = {str(column).lower(): str(column) for column in reversed(list(sheet.frame.columns))}
    return next((columns[name] for name in names if name in columns), "")


def _attributes(sheet: TextTable, columns: tuple[str, ...], path_column: str) -> tuple[str, ...]:
    """Names of the label columns in the dataset table, without conflicts with reserved names."""
    if len(set(columns)) < len(columns):
        raise SourceError(f"{sheet.name}: {option('label')} names a column twice: {join_names(columns)}.")
    if path_column in columns:
        raise SourceError(
            f"{sheet.name}: '{path_column}' cannot be both path and label. Choose another {option('label')}."
        )
    clash = [column for column in columns if column in RESERVED]
    if len(columns) == 1:
        return ("label",) if clash else columns
    if clash:
        raise SourceError(
            f"{sheet.name}: with several label columns none may be named {join_names(RESERVED)}; "
            f"rename {join_names(map(repr, clash))}."
        )
    return columns


def _joined(sheet: TextTable, columns: tuple[str, ...], values: list[list[str]]) -> list[str]:
    if len(columns) == 1:
        return values[0]
    parts = list(zip(*values, strict=True))
    joined = [", ".join(row) for row in parts]
    if len(set(joined)) < len(set(parts)):
        raise SourceError(
            f"{sheet.name}: values of {join_names(columns)} hold ', ', so that two classes would get one name."
        )
    return joined


def _split(sheet: TextTable, options: Source) -> tuple[list[str], str]:
    """Split of each row ("train" or "test") and its description. Raises `SourceError` for unknown values."""
    all_train = ["train"] * len(sheet.frame)
    if options.split == "none":
        return all_train, "splits ignored" if _named(sheet, SPLIT_NAMES[:2]) else ""
    column = options.split or _named(sheet, SPLIT_NAMES)
    if not column:
        return all_train, ""
    words = [word.lower() for word in sheet.column(column)]
    known = {word: split_of(word) for word in set(words)}
    strange = [i for i, word in enumerate(words) if not known[word]]
    # A column named `fold` or `set` is used only if it holds split words. A column named split or subset, or one
    # that the user requested, must not be ignored silently.
    if len(strange) == len(words) and not options.split and column.lower() not in SPLIT_NAMES[:2]:
        return all_train, ""
    if strange:
        raise SourceError(
            f"{sheet.name}: split '{column}' holds {words[strange[0]]!r} in {sheet.rows(strange)}; known are "
            f"{', '.join(SPLIT_WORDS)}. Rename it, or give {option('split', 'none')} to pool all photos."
        )
    splits = {word: split for word, split in known.items() if split}
    return [splits[word] for word in words], f"split '{column}' ({splitting(splits)})"


def _without_repeats(sheet: TextTable, table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Finding, ...]]:
    """Drop repeated rows and hidden files. Raises `SourceError` if rows contradict each other about an image."""
    # Hidden folders are allowed, but `._name` is never an image; lists made with a glob contain such files.
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
                f"{sheet.name}: {pluralize(torn['path'].nunique(), 'photo')} with different {column}s: "
                f"{join_names(dict.fromkeys(torn['path']))}; {first} is {' and '.join(map(repr, said))}. "
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
