"""Any source of labelled photos -> the photos table.

A reader understands one layout and hands over a `Draft`; `_photos` then applies the rules that hold for all:
groups by pattern, order of photos and classes, and what a training set needs at least.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unfreeze.core.errors import SourceError, listed, nearest
from unfreeze.core.recipe_sections import Source
from unfreeze.core.tables import Finding, Photos
from unfreeze.data import competition, folders, tabular, webdataset
from unfreeze.data.grouping import groups_in
from unfreeze.data.walk import (
    Draft,
    counted,
    readable_name,
    unreadable,
)

Given = Path | pd.DataFrame
DEFAULTS = Source()


@dataclass(frozen=True)
class Reader:
    """One layout. `needs` finishes the sentence "it needs ..." where the layout was asked for in vain."""

    name: str
    recognises: Callable[[Given], bool]
    read: Callable[[Given, Source], Photos]
    needs: str


READERS: dict[str, Reader] = {}
"""Every reader by name; a source goes to the first one that recognises it."""


def register(
    name: str, recognises: Callable[[Given], bool], needs: str
) -> Callable[[Callable[[Given, Source], Draft]], Callable[[Given, Source], Photos]]:
    """Add a function `(source, options) -> Draft` to READERS as a reader. ValueError if the name is taken."""

    def add(make: Callable[[Given, Source], Draft]) -> Callable[[Given, Source], Photos]:
        if name in READERS:
            raise ValueError(f"two readers are named '{name}'")

        def read_layout(source: Given, options: Source) -> Photos:
            return _photos(name, make(source, options), options)

        READERS[name] = Reader(name, recognises, read_layout, needs)
        return read_layout

    return add


def read(source: str | Path | pd.DataFrame, options: Source = DEFAULTS) -> Photos:
    """The photos of a folder of class folders, of splits, the competition's root, a table or a DataFrame.

    Args:
        source: a folder; a CSV, TSV or Parquet file that names photos; or a DataFrame that does.
        options: which reader, which columns; what is empty is found out. `options.path` is not looked at.
    Returns:
        Photos, whose table has one row a photo, sorted by `path`: `path`, the label columns, `label`,
        `group`, `split`. `choice` says what was taken for what; `findings` what was passed over.
    Errors:
        SourceError, which names the file, what is wrong with it, and what to do.
    """
    if options.group and options.group_regex:
        raise SourceError("--group and --group-regex both say what a group is. Give one of them.")
    given = source if isinstance(source, pd.DataFrame) else _existing(source)
    try:
        return _reader(given, options.reader).read(given, options)
    except OSError as error:
        raise unreadable(error.filename or given, error) from None


def _reader(given: Given, asked: str) -> Reader:
    """The reader asked for, else the first that recognises the source. SourceError: unknown, not for it."""
    name = "the DataFrame" if isinstance(given, pd.DataFrame) else str(given)
    if asked:
        if asked not in READERS:
            raise SourceError(f"no reader '{asked}'.{nearest(asked, READERS)} There are {', '.join(READERS)}.")
        reader = READERS[asked]
        if not reader.recognises(given):
            raise SourceError(f"{name}: not for the reader '{reader.name}': it needs {reader.needs}.")
        return reader
    for reader in READERS.values():
        if reader.recognises(given):
            return reader
    raise SourceError(f"{name}: neither a folder nor a file. Give one of those.")


def _is_table(source: Given) -> bool:
    return isinstance(source, pd.DataFrame) or source.is_file()


def _is_competition(source: Given) -> bool:
    return isinstance(source, Path) and competition.train_folder(source) is not None


def _is_class_folders(source: Given) -> bool:
    return isinstance(source, Path) and source.is_dir()


@register("webdataset", webdataset.is_shards, "a .tar file, or a folder with some")
def read_webdataset(source: Given, options: Source) -> Draft:
    """WebDataset shards: .tar files with photos and, beside each, its class; see `webdataset.py`."""
    if not isinstance(source, Path):
        raise SourceError("a DataFrame is no archive. Leave --reader out.")
    return webdataset.draft(source, options)


@register("table", _is_table, "a CSV, TSV or Parquet file, or a DataFrame")
def read_table(source: Given, options: Source) -> Draft:
    """Rows of a CSV, TSV, Parquet file or DataFrame; see `tabular.py`."""
    return tabular.draft(source, options)


@register("competition", _is_competition, "a folder with train/train.csv and train/images")
def read_competition(source: Given, options: Source) -> Draft:
    """The mask competition's root: three attributes, 18 classes, a group a person; see `competition.py`."""
    return competition.draft(folders.folder_of(source, options))


@register(
    "split_folders",
    folders.has_splits,
    "a folder with train/ and val/ or test/, each with the same class folders",
)
def read_split_folders(source: Given, options: Source) -> Draft:
    """Class folders inside train/, val/, test/: training and validation pooled, test kept apart."""
    return folders.split_draft(folders.folder_of(source, options), options)


@register("class_folders", _is_class_folders, "a folder of class folders")
def read_class_folders(source: Given, options: Source) -> Draft:
    """A folder a class, with photos at any depth below it."""
    return folders.class_draft(folders.folder_of(source, options))


def _photos(reader: str, draft: Draft, options: Source) -> Photos:
    """A draft under the rules that hold for every source."""
    table, grouping = draft.table, draft.grouping
    if options.group_regex:
        table = table.assign(group=groups_in(list(table["path"]), options.group_regex))
        grouping = "group by --group-regex"
    columns = list(dict.fromkeys(["path", *draft.attributes, "label", "group", "split"]))
    paths = list(table["path"])
    table = table.iloc[sorted(range(len(paths)), key=paths.__getitem__)][columns].reset_index(drop=True)
    classes, answers = (draft.classes, draft.answers) if draft.classes else _ordered(set(table["label"]))
    _check_trainable(table, classes, str(draft.root))

    taken = ", ".join(part for part in (draft.taken, grouping, draft.splitting) if part)
    counts = f"{counted(len(table), 'photo')}, {counted(len(classes), 'class')}, "
    counts += counted(table["group"].nunique(), "group")
    tested = int((table["split"] == "test").sum())
    if tested:
        counts += f", {tested:,} of the photos for testing"
    return Photos(
        table=table,
        root=draft.root,
        classes=classes,
        answers=answers,
        attributes=draft.attributes,
        reader=reader,
        choice=f"{taken}; {counts}",
        findings=(*draft.findings, *_straddling(table)),
    )


def _ordered(labels: set[str]) -> tuple[tuple[str, ...], tuple[int | str, ...]]:
    """Classes in order, and what a submission writes for each: numbers where all are numbers."""
    # 007 is no number here: written as 7 it would not be the class's name any more. 18 digits fit an int64.
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", label) for label in labels):
        classes = tuple(sorted(labels, key=int))
        return classes, tuple(int(name) for name in classes)
    names = tuple(sorted(labels))
    return names, names


def _check_trainable(table: pd.DataFrame, classes: tuple[str, ...], root: str) -> None:
    trained = set(table.loc[table["split"] == "train", "label"])
    if not trained:
        raise SourceError(f"{root}: all photos are for testing, none for training. Give --split none to pool them.")
    if len(classes) == 1:
        raise folders.one_class(classes[0], root)
    untrained = [name for name in classes if name not in trained]
    if untrained:
        raise SourceError(
            f"{root}: {counted(len(untrained), 'class')} only in the test split: "
            f"{listed(map(repr, untrained))}. Spell classes alike everywhere, remove those photos, or give "
            "--split none to pool all photos."
        )


def _straddling(table: pd.DataFrame) -> list[Finding]:
    """The warning about groups with photos on both sides of the split."""
    is_test = table["split"] == "test"
    both = sorted(set(table.loc[is_test, "group"]) & set(table.loc[~is_test, "group"]))
    if not both:
        return []
    message = f"{counted(len(both), 'group')} with photos in both train and test: {listed(both)}"
    return [
        Finding(
            "groups",
            "warning",
            message,
            "The test score will flatter: move each group to one side, or give --split none.",
        )
    ]


def _existing(source: str | Path) -> Path:
    """The source as a path that exists. SourceError: empty, absent."""
    if not str(source).strip():
        raise SourceError("no source given. Give a folder of photos or a CSV that names them.")
    path = Path(source)
    try:
        path = path.expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):
        raise SourceError(f"{source}: no such folder or file. Check the spelling.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    readable_name(path)
    # `.` and `..` have no name of their own to show.
    return path if path.name not in ("", "..") else path.resolve()
