"""Registry of source readers, and `read`, which converts any supported source to an `ImageDataset`.

Each reader handles one layout and returns a `ParsedSource`. `_photos` then applies the rules common to all sources:
groups by regular expression, Unicode normalization, order of images and classes, and the minimum requirements of a
training set.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pandas as pd

from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import ArgumentTypeError, SourceError, did_you_mean, join_names, wrong_type
from unfreeze.core.format import pluralize
from unfreeze.core.messages import option
from unfreeze.core.names import as_number, look_alike, nfc, on_disk, visible
from unfreeze.core.recipe import Recipe, checked_recipe
from unfreeze.core.recipe_schema import Source
from unfreeze.data import mask_competition, read_folders, read_tables
from unfreeze.data import read_webdataset as webdataset
from unfreeze.data.directory_walk import ParsedSource, readable_name, refuse_other_places, unreadable
from unfreeze.data.groups import groups_from_regex

Given = Path | pd.DataFrame
DEFAULTS = Source()


@dataclass(frozen=True)
class Reader:
    """A registered reader.

    Attributes:
        name: Reader name, for `--reader`.
        recognises: Whether the reader handles a source.
        read: Converts a source to a dataset.
        needs: Required input; completes the sentence "it needs ..." in error messages.
    """

    name: str
    recognises: Callable[[Given], bool]
    read: Callable[[Given, Source], ImageDataset]
    needs: str


READERS: dict[str, Reader] = {}
"""All readers by name, in registration order. A source is handled by the first reader that recognizes it."""


def register(
    name: str, recognises: Callable[[Given], bool], needs: str
) -> Callable[[Callable[[Given, Source], ParsedSource]], Callable[[Given, Source], ImageDataset]]:
    """Decorator that registers a function `(source, options) -> ParsedSource` as a reader.

    Args:
        name: Reader name.
        recognises: Whether the reader handles a source.
        needs: Required input, for error messages.

    Returns:
        The decorator. The decorated function returns an `ImageDataset`.

    Raises:
        ValueError: If the name is already registered; raised by the decorator.
    """

    def add(make: Callable[[Given, Source], ParsedSource]) -> Callable[[Given, Source], ImageDataset]:
        if name in READERS:
            raise ValueError(f"two readers are named '{name}'")

        def read_layout(source: Given, options: Source) -> ImageDataset:
            return _photos(name, make(source, options), options)

        READERS[name] = Reader(name, recognises, read_layout, needs)
        return read_layout

    return add


class ReadOptions(TypedDict, total=False):
    """Keyword arguments of `read`; omitted ones are detected automatically."""

    label: str | Sequence[str]
    group: str
    path: str
    root: str | Path
    split: str | Mapping[str, str | Sequence[str]]
    group_regex: str
    reader: str
    encoding: str


def read(source: str | Path | pd.DataFrame, options: Source = DEFAULTS, **given: Unpack[ReadOptions]) -> ImageDataset:
    """Read a labeled image data set.

    The source can be class folders, split folders, WebDataset shards, the mask competition, a table file or a
    DataFrame.

    Args:
        source: A folder, a .tar file, a CSV, TSV or Parquet file that lists images, or a DataFrame that does.
        options: The section `source` of a recipe; its `path` is ignored. Keyword arguments take precedence.
        label: Label column, or a list of columns whose combination is the label.
        group: Column with the unit that must stay in one fold: person, patient, plant.
        path: Column with the image paths.
        root: Folder that relative paths start from. Default: the folder of the table, or the working directory for a
            DataFrame.
        split: Split column; "none" pools all splits. For a folder: `{"train": ["a", "b"], "test": "c"}`.
        group_regex: Regular expression with `(?P<group>...)` that extracts the group from the path.
        encoding: Encoding of a CSV file. Default: detected.
        reader: Name of the reader in `READERS`. Default: detected.

    Returns:
        The dataset. Its table has one row per image, sorted by `path`, with the columns `path`, the label columns,
        `label`, `group` and `split`. `choice` describes how the source was interpreted, `findings` what was skipped.

    Raises:
        SourceError: If the source cannot be read. The message gives the file, the problem and a fix.
        ArgumentTypeError: If the source or a keyword has an unsupported type.
    """
    if not isinstance(source, str | os.PathLike | pd.DataFrame):
        raise wrong_type("source", source, "a folder or table as a path, or a DataFrame")
    options = _options("read", options, given)
    if options.group and options.group_regex:
        raise SourceError(f"{option('group')} and {option('group_regex')} cannot be combined. Give one of them.")
    found = source if isinstance(source, pd.DataFrame) else _existing(source)
    try:
        return _reader(found, options.reader).read(found, options)
    except OSError as error:
        raise unreadable(error.filename or found, error) from None


def photos_of(
    function: str,
    photos: ImageDataset | str | Path | pd.DataFrame,
    recipe: Recipe | None,
    given: ReadOptions,
    default: Recipe | None = None,
) -> tuple[ImageDataset, Recipe]:
    """Resolve an argument that is either a dataset or a source.

    Args:
        function: Name of the public function, for messages.
        photos: A dataset, or a source as accepted by `read`.
        recipe: Recipe whose section `source` says how the source is read; None for `default`.
        given: Keyword arguments of `read`, which take precedence over the recipe.
        default: Default recipe; None for the built-in defaults.

    Returns:
        The dataset, and the recipe updated with the source and its options.

    Raises:
        ArgumentTypeError: If `photos` has an unsupported type.
        SourceError: If keywords are given for a dataset that is already read, or the source cannot be read.
    """
    recipe = checked_recipe(recipe, default)
    if isinstance(photos, ImageDataset):
        if given:
            raise SourceError(
                f"{join_names(f'{name}=' for name in given)}: these photos are read already. Give it to uf.read."
            )
        return photos, recipe
    if not isinstance(photos, str | os.PathLike | pd.DataFrame):
        raise wrong_type("photos", photos, "an ImageDataset of uf.read, a folder or table as a path, or a DataFrame")
    source = _options(function, recipe.source, given)
    path = "" if isinstance(photos, pd.DataFrame) else os.fspath(photos)
    recipe = recipe.replace(source={**source.model_dump(), "path": path})
    return read(photos, recipe.source), recipe


def _options(function: str, base: Source, given: ReadOptions) -> Source:
    """Merge keyword arguments into the recipe section.

    Raises:
        ArgumentTypeError: If a keyword is unknown or has an unsupported type.
    """
    if not isinstance(base, Source):
        raise wrong_type("options", base, "keywords, such as label=, group= or root=")
    known = tuple(ReadOptions.__annotations__)
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ArgumentTypeError(
                f"{function}() has no argument '{name}'.{did_you_mean(name, known)} The arguments are "
                f"{join_names(known, 9)}."
            )
        if value is None:
            continue
        if name == "label":
            columns = [value] if isinstance(value, str) else value
            if not isinstance(columns, Sequence) or not all(isinstance(column, str) for column in columns):
                raise wrong_type("label", value, "a column's name, or a list of names")
            changes["label"] = tuple(columns)
        elif name == "split" and isinstance(value, Mapping):
            changes["split"] = dict(value)
        elif isinstance(value, str) or (name == "root" and isinstance(value, os.PathLike)):
            changes["path_column" if name == "path" else name] = os.fspath(value)
        else:
            raise wrong_type(name, value, "a path" if name == "root" else "text")
    # Rebuilt through the recipe so that invalid values are rejected.
    return Recipe(source={**base.model_dump(), **changes}).source


def _reader(given: Given, asked: str) -> Reader:
    """The requested reader, otherwise the first one that recognizes the source.

    Raises:
        SourceError: If the reader is unknown, or no reader handles the source.
    """
    name = "the DataFrame" if isinstance(given, pd.DataFrame) else str(given)
    if asked:
        if asked not in READERS:
            raise SourceError(f"no reader '{asked}'.{did_you_mean(asked, READERS)} There are {', '.join(READERS)}.")
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
    return isinstance(source, Path) and mask_competition.train_folder(source) is not None


def _is_folder(source: Given) -> bool:
    return isinstance(source, Path) and source.is_dir()


@register("webdataset", webdataset.is_shards, "a .tar file, or a folder with some")
def read_webdataset(source: Given, options: Source) -> ParsedSource:
    """Read WebDataset shards: .tar files with images and their labels; see `read_webdataset.parse_shards`."""
    if not isinstance(source, Path):
        raise SourceError(f"a DataFrame is not an archive. Leave {option('reader')} out.")
    return webdataset.parse_shards(source, options)


@register("table", _is_table, "a CSV, TSV or Parquet file, or a DataFrame")
def read_table(source: Given, options: Source) -> ParsedSource:
    """Read a CSV, TSV or Parquet file or a DataFrame; see `read_tables.parse_table`."""
    return read_tables.parse_table(source, options)


@register("competition", _is_competition, "a folder with train/train.csv and train/images")
def read_competition(source: Given, options: Source) -> ParsedSource:
    """Read the mask competition: three attributes, 18 classes, one group per person; see `mask_competition`."""
    return mask_competition.parse_competition(read_folders.folder_of(source, options), options.encoding)


@register("class_folders", _is_folder, "a folder of class folders")
def read_class_folders(source: Given, options: Source) -> ParsedSource:
    """Read one folder per class, alone or inside split folders.

    If the reader is requested by name, the outermost folders are the classes.
    """
    return read_folders.parse_folders(read_folders.folder_of(source, options), options)


@register("split_folders", _is_folder, "a folder with split folders, as train/ and test/, that hold class folders")
def read_split_folders(source: Given, options: Source) -> ParsedSource:
    """Read class folders inside train/, val/ and test/; training and validation data are pooled.

    Automatic detection never selects this reader, because `class_folders` precedes it and also recognizes splits. It is
    used only if requested by name.
    """
    return read_folders.parse_folders(read_folders.folder_of(source, options), options)


def _photos(reader: str, draft: ParsedSource, options: Source) -> ImageDataset:
    """Apply the rules common to all sources and build the dataset."""
    table, grouping = draft.table, draft.grouping
    if options.group_regex:
        table = table.assign(group=groups_from_regex(list(table["path"]), options.group_regex))
        grouping = "group by a pattern"
    table, merged = _in_nfc(table, draft.attributes)
    columns = list(dict.fromkeys(["path", *draft.attributes, "label", "group", "split"]))
    paths = list(table["path"])
    table = table.iloc[sorted(range(len(paths)), key=paths.__getitem__)][columns].reset_index(drop=True)
    classes, answers = (draft.classes, draft.answers) if draft.classes else _ordered(table, draft.attributes)
    _check_trainable(table, classes, str(draft.root))

    taken = ", ".join(part for part in (draft.taken, grouping, draft.splitting) if part)
    counts = f"{pluralize(len(table), 'photo')}, {pluralize(len(classes), 'class')}, "
    counts += pluralize(table["group"].nunique(), "group")
    tested = int((table["split"] == "test").sum())
    if tested:
        counts += f", {tested:,} of the photos for testing"
    return ImageDataset(
        table=table,
        root=draft.root,
        classes=classes,
        answers=answers,
        attributes=draft.attributes,
        reader=draft.reader or reader,
        choice=f"{taken}; {counts}",
        findings=(*draft.findings, *merged, *_straddling(table)),
    )


def _in_nfc(table: pd.DataFrame, attributes: tuple[str, ...]) -> tuple[pd.DataFrame, list[Finding]]:
    """Normalize labels and groups to NFC, with findings for names that occur in several Unicode forms."""
    table, findings = table.copy(deep=False), list[Finding]()
    for column in dict.fromkeys((*attributes, "label", "group")):
        given = table[column].tolist()
        if all(map(str.isascii, given)):
            continue
        if column == "group" and given == table["path"].tolist():
            continue  # one group per image: distinct files stay distinct even if their names are canonically equivalent
        forms = defaultdict[str, set[str]](set)
        for name in set(given):
            forms[nfc(name)].add(name)
        table[column] = [nfc(name) for name in given]
        several = sorted(name for name, some in forms.items() if len(some) > 1)
        if several and column in (*attributes, "group"):
            message = f"{pluralize(len(several), column)} whose name comes in several Unicode forms, each read as one: "
            message += join_names(map(repr, several))
            findings.append(Finding("unicode-forms", "info", message, "none needed: names are compared in NFC"))
    return table, findings


def _ordered(table: pd.DataFrame, attributes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int | str, ...]]:
    """Order the classes, and determine the value that a submission uses for each.

    Numeric labels are sorted as numbers, also within individual label columns; all others as text.

    Returns:
        Classes, and their submission values: integers if all class names are plain integers, otherwise the names.
    """
    columns = list(attributes) if len(attributes) > 1 else ["label"]
    rows = table.drop_duplicates("label").sort_values("label")
    numeric = [name for name in columns if all(as_number(value) is not None for value in rows[name].unique())]
    keys = {name: [as_number(value) if name in numeric else value for value in rows[name]] for name in columns}
    labels = rows["label"].tolist()
    if numeric:
        order = list(zip(*keys.values(), labels, strict=True))
        labels = [labels[i] for i in sorted(range(len(labels)), key=order.__getitem__)]
    # 007 is not an integer here, because 7 is a different class name. 18 digits fit in an int64.
    whole = all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", label) for label in labels)
    return tuple(labels), tuple(map(int, labels) if whole else labels)


def _check_trainable(table: pd.DataFrame, classes: tuple[str, ...], root: str) -> None:
    trained = set(table.loc[table["split"] == "train", "label"])
    if not trained:
        raise SourceError(
            f"{root}: all photos are for testing, none for training. Give {option('split', 'none')} to pool them."
        )
    if len(classes) == 1:
        raise read_folders.one_class(classes[0], root)
    untrained = [name for name in classes if name not in trained]
    if untrained:
        known = {look_alike(name): name for name in sorted(trained)}
        like = [known.get(look_alike(name)) for name in untrained]
        named = [
            visible(name) + (f" (training has {visible(other)})" if other else "")
            for name, other in zip(untrained, like, strict=True)
        ]
        raise SourceError(
            f"{root}: {pluralize(len(untrained), 'class')} only in the test split: {join_names(named)}. Spell "
            "classes alike "
            f"everywhere, remove those photos, or give {option('split', 'none')} to pool all photos."
        )


def _straddling(table: pd.DataFrame) -> list[Finding]:
    """Warning about groups with images in both the training and the test split."""
    is_test = table["split"] == "test"
    both = sorted(set(table.loc[is_test, "group"]) & set(table.loc[~is_test, "group"]))
    if not both:
        return []
    message = f"{pluralize(len(both), 'group')} with photos in both train and test: {join_names(both)}"
    return [
        Finding(
            "groups",
            "warning",
            message,
            f"The test score is optimistic: move each group to one side, or give {option('split', 'none')}.",
        )
    ]


def _existing(source: str | Path) -> Path:
    """The source as an existing path. Raises `SourceError` if it is empty or does not exist."""
    if not str(source).strip():
        raise SourceError("no source given. Give a folder of photos or a CSV that names them.")
    path = Path(source)
    try:
        path = on_disk(path.expanduser())
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):
        refuse_other_places(source)
        raise SourceError(f"{source}: no such folder or file. Check the spelling.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    readable_name(path)
    # Resolve `.` and `..` so that messages show a folder name.
    return path if path.name not in ("", "..") else path.resolve()
