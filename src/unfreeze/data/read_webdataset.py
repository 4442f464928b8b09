"""Reader for WebDataset shards: .tar files in which members with the same base name form a sample.

`0001.jpg`, `0001.cls` and `0001.json` are an image, its class and its metadata
(https://github.com/webdataset/webdataset). Archives are not unpacked: images are read in place (see `tar_index`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import SourceError, join_names
from unfreeze.core.files import is_valid_utf8
from unfreeze.core.format import pluralize
from unfreeze.core.messages import option
from unfreeze.core.names import nfc
from unfreeze.core.recipe_schema import Source
from unfreeze.data.directory_walk import (
    ParsedSource,
    hidden_skipped,
    image_format,
    is_hidden,
    is_image_name,
    misnamed_taken,
    others_skipped,
    scan_folder,
    skipped,
    unreadable,
)
from unfreeze.data.image_formats import HEAD_BYTES
from unfreeze.data.layout_tree import Layout, folder_tree
from unfreeze.data.layouts import SourceFolder, recognize
from unfreeze.data.read_tables import GROUP_NAMES, LABEL_NAMES, SPLIT_NAMES, parse_rows
from unfreeze.data.split_names import split_name, split_of
from unfreeze.data.table_paths import Located
from unfreeze.data.tar_index import SUFFIX, TarMember, tar_index
from unfreeze.data.text_table import TextTable

CLASS_ENDINGS = ("cls", "txt")
"""Suffixes of members that hold a class as text. The first one that occurs in the first sample is used."""
SAMPLE, FOLDER = "sample", "folder"
_MOST_TEXT = 1 << 20
# Maximum number of entries inspected to decide whether a folder contains shards.
_LOOKED_AT = 200


@dataclass
class Sample:
    """Members with the same base name.

    Attributes:
        photos: Names of the image members.
        texts: Content of the text members by suffix (`cls`, `json`).
    """

    photos: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """Metadata of the sample: the class by suffix, and the text and numeric fields of the JSON member."""
        found = {ending: self.texts[ending].strip() for ending in CLASS_ENDINGS if ending in self.texts}
        try:
            parsed = json.loads(self.texts.get("json", "{}"))
        except (ValueError, RecursionError):
            return found
        return found | {nfc(str(name)): _text(value) for name, value in _items(parsed) if _text(value)}


@dataclass
class SkippedMembers:
    """Archive members that were skipped, and images with the wrong suffix.

    Attributes:
        hidden: Hidden files.
        misnamed: (path, format) of members that are images by content only; these are used.
        others: Members that are neither images nor labels, including texts too long to be labels.
        badly_named: Names that are not plain relative paths in UTF-8.
        repeated: Images whose name occurs more than once in the archive.
    """

    hidden: list[str] = field(default_factory=list)
    misnamed: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    badly_named: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def findings(self) -> tuple[Finding, ...]:
        """One finding per kind of skipped member."""
        shown = [name.encode("utf-8", "backslashreplace").decode() for name in self.badly_named]
        found = (
            hidden_skipped(self.hidden),
            others_skipped(self.others),
            misnamed_taken(self.misnamed),
            skipped(
                "names",
                "warning",
                shown,
                "name in an archive that is no plain path in UTF-8",
                "names in archives that are no plain paths in UTF-8",
                "Recreate the archive with other names if they are images.",
            ),
            skipped(
                "repeated_rows",
                "warning",
                self.repeated,
                "photo whose name the archive holds twice",
                "photos whose names the archive holds twice",
                "Recreate the archive with unique names; the first of each was used.",
            ),
        )
        return tuple(f for f in found if f is not None)


def is_shards(source: object) -> bool:
    """Whether the source is a .tar file, or a folder with .tar files and no images at its top or one level below."""
    if not isinstance(source, Path):
        return False
    if source.is_file():
        return source.name.lower().endswith(SUFFIX)
    try:
        return source.is_dir() and bool(_archives(_inside_wrappers(source), depth=1))
    except OSError:
        return False


def _inside_wrappers(folder: Path) -> Path:
    """Descend through folders with a single subfolder, as in `dataset/shards`."""
    for _ in range(8):
        with os.scandir(folder) as entries:
            first = [entry for entry in islice(entries, _LOOKED_AT) if not is_hidden(entry.name)]
        folders = [entry for entry in first if entry.is_dir()]
        if len(folders) != 1 or any(is_image_name(e.name) or e.name.lower().endswith(SUFFIX) for e in first):
            return folder
        folder = folder / folders[0].name
    return folder


def _archives(folder: Path, depth: int) -> int | None:
    """Number of .tar files in a folder and `depth` levels below, up to a limit; None if there are images as well."""
    found, inner = 0, []
    with os.scandir(folder) as entries:
        for entry in islice(entries, 100_000):
            if is_image_name(entry.name):
                return None
            if entry.is_dir():
                inner.append(folder / entry.name)
            found += entry.name.lower().endswith(SUFFIX)
    for each in sorted(inner)[:_LOOKED_AT] if depth else []:
        below = _archives(each, depth - 1)
        if below is None:
            return None
        found += below
    return found


def archives_of(source: Path) -> tuple[Path, list[str]]:
    """List the archives of a source.

    Args:
        source: A .tar file or a folder with .tar files.

    Returns:
        Root folder and archive paths relative to it.

    Raises:
        SourceError: If there are no archives.
    """
    if source.is_file():
        return source.parent, [source.name]
    found = scan_folder(source)
    archives = [path for path in found.others if path.endswith(SUFFIX)]
    if not archives:
        packed = [path for path in found.others if re.search(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$", path)]
        said = (
            f" {packed[0]} is compressed, and photos inside are read in any order: unpack it to .tar." if packed else ""
        )
        raise SourceError(f"{source}: no .tar files in it.{said}")
    return source, archives


def photos_in(source: Path) -> tuple[Path, list[str]]:
    """List the images of all archives for prediction.

    Args:
        source: A .tar file or a folder with .tar files.

    Returns:
        Root folder and image paths relative to it.

    Raises:
        SourceError: If there are no images.
    """
    root, archives = archives_of(source)
    paths = [
        f"{archive}/{photo}"
        for archive in archives
        for _, sample in _samples(root, archive, SkippedMembers())
        for photo in sample.photos
    ]
    if not paths:
        raise SourceError(f"{source}: no photos in its {pluralize(len(archives), 'archive')}.")
    return root, paths


def parse_shards(source: Path, options: Source) -> ParsedSource:
    """Read the images of all archives with the label of each sample.

    Args:
        source: A .tar file or a folder with .tar files.
        options: How to read the source.

    Returns:
        The parsed source.

    Raises:
        SourceError: If there are no images, or a label is missing.
    """
    useless = [option(name) for name, value in {"path": options.path_column, "root": options.root}.items() if value]
    if useless:
        raise SourceError(f"{source}: {join_names(useless)} cannot be used with archives. Leave it out.")
    root, archives = archives_of(source)
    splits, passed = _splits(archives, options), SkippedMembers()
    label, group, paths, columns = tuple[str, ...](), "", list[str](), dict[str, list[str]]()
    samples = list[str]()  # sample of each image: the default group, so that the images of a sample stay together
    for archive in archives:
        for key, sample in _samples(root, archive, passed):
            if not sample.photos:
                continue
            fields = sample.fields() | {SAMPLE: f"{archive}/{key}"}
            if "/" in key:
                fields.setdefault(FOLDER, key.rpartition("/")[0])
            if splits:
                fields.setdefault("split", splits[archive])
            if not columns:
                label, group = _chosen(source, f"{archive}/{key}", fields, options)
                split = () if options.split == "none" else (options.split,) if options.split else SPLIT_NAMES[:2]
                columns = {name: [] for name in dict.fromkeys((*label, group, *split)) if name in fields}
            for photo in sample.photos:
                paths.append(f"{archive}/{photo}")
                samples.append(fields[SAMPLE])
                for name, values in columns.items():
                    values.append(fields.get(name, ""))
    if not paths:
        raise SourceError(f"{source}: no photos in its {pluralize(len(archives), 'archive')}.")
    layout, unplaced = _inner_layout(source, label, columns, options), list[str]()
    if layout:
        places = [layout.place(folder) for folder in columns[FOLDER]]
        unplaced = [path for path, place in zip(paths, places, strict=True) if not place]
        rows = [i for i, place in enumerate(places) if place]
        paths, placed = [paths[i] for i in rows], [place for place in places if place]
        samples = [samples[i] for i in rows]
        columns = {name: [values[i] for i in rows] for name, values in columns.items()}
        columns[FOLDER] = [name for name, _ in placed]
        columns |= {} if options.split else {"split": [split for _, split in placed]}
    # A missing label becomes an empty cell, and is reported like one.
    sheet = TextTable(pd.DataFrame({"path": paths} | columns), str(source), first_row=1)
    taken = pluralize(len(archives), "WebDataset shard")
    found = parse_rows(
        sheet,
        options,
        taken,
        "",
        label,
        "" if options.group_regex else group,
        lambda rows: Located(root, [paths[i] for i in rows]),
        samples,
    )
    outside = skipped(
        "no_class",
        "warning",
        unplaced,
        "image outside of class folders",
        "images outside of class folders",
        "Write the archive again with them in a class folder.",
    )
    return replace(
        found,
        grouping="each sample its own group" if group == SAMPLE else found.grouping,
        splitting=layout.described(options.split == "none")
        if layout and options.split in ("", "none")
        else found.splitting,
        findings=(
            *passed.findings(),
            *found.findings,
            *(layout.findings if layout else ()),
            *([outside] if outside else []),
        ),
    )


def _inner_layout(
    source: Path, label: tuple[str, ...], columns: dict[str, list[str]], options: Source
) -> Layout | None:
    """Layout of split folders inside the archives, as in `train/cat/1.jpg`; None if the folders are the classes."""
    if label != (FOLDER,) or options.label:
        return None
    folders = set(columns[FOLDER])
    if not any(split_of(part) for folder in folders for part in folder.split("/")):
        return None
    try:
        layout = recognize(
            folder_tree("", [f"{folder}/" for folder in columns[FOLDER]]),
            SourceFolder(str(source)),
            options.split == "none",
        )
    except SourceError as error:
        why = str(error).removeprefix(f"{source}").partition(". ")[0].lstrip("/: ")
        raise SourceError(
            f"{source}: the folders inside may be splits as well as classes ({why}). "
            f"If they are classes: {option('label', FOLDER)}. If they are splits, unpack the archives and "
            f"name them with {option('split')}."
        ) from None
    return layout if layout.splits else None


def _samples(root: Path, archive: str, passed: SkippedMembers) -> Iterator[tuple[str, Sample]]:
    """Yield the samples of an archive in order, even if the members of a sample are not adjacent."""
    found: dict[str, Sample] = {}
    seen: set[str] = set()
    try:
        with open(root / archive, "rb") as file:
            for member in tar_index(root / archive).members:
                _sort(file, f"{archive}/", member, found, seen, passed)
    except OSError as error:
        raise unreadable(root / archive, error) from None
    yield from found.items()


def _sort(
    file: Any, prefix: str, member: TarMember, found: dict[str, Sample], seen: set[str], passed: SkippedMembers
) -> None:
    folder, _, base = member.name.rpartition("/")
    if not _plain(member.name):
        passed.badly_named.append(prefix + member.name)
        return
    if is_hidden(base):
        passed.hidden.append(prefix + member.name)
        return
    # WebDataset convention: the sample key ends at the first dot of the base name; the rest is the suffix.
    stem, _, ending = base.partition(".")
    sample = found.setdefault(f"{folder}/{stem}" if folder else stem, Sample())
    form = ""
    if not is_image_name(base):
        file.seek(member.start)
        if ending.lower() in (*CLASS_ENDINGS, "json") and member.size <= _MOST_TEXT:
            sample.texts[ending.lower()] = file.read(member.size).decode("utf-8-sig", "replace")
            return
        form = image_format(file.read(min(HEAD_BYTES, member.size)))
        if not form:
            passed.others.append(prefix + member.name)
            return
    if member.name in seen:
        passed.repeated.append(prefix + member.name)
        return
    seen.add(member.name)
    sample.photos.append(member.name)
    if form:
        passed.misnamed.append((prefix + member.name, form))


def _plain(name: str) -> bool:
    """Whether a member name is a valid relative path: UTF-8 text without NUL, a leading slash or `..`."""
    return is_valid_utf8(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def _chosen(source: Path, where: str, fields: dict[str, str], options: Source) -> tuple[tuple[str, ...], str]:
    """Label fields and group field, as requested or as found in the first sample."""
    names = join_names(map(repr, fields), 20) or "nothing but photos"
    for asked in (*options.label, *([options.group] if options.group else [])):
        if asked not in fields:
            raise SourceError(f"{source}: the first sample {where} has no '{asked}'; it has {names}.")
    usual = next((name for name in (*CLASS_ENDINGS, *LABEL_NAMES, FOLDER) if name in fields), "")
    if not options.label and not usual:
        raise SourceError(
            f"{source}: no class found for {where}: no .cls next to the image, no field "
            f"{', '.join(LABEL_NAMES)} in its .json, no folder; it has {names}. Name the field with the class: "
            f"{option('label', metavar='FIELD')}."
        )
    group = options.group or next((name for name in GROUP_NAMES if name in fields), SAMPLE)
    return options.label or (usual,), group


def _splits(archives: list[str], options: Source) -> dict[str, str]:
    """Split word of each archive path (`train-0001.tar`, `val/0001.tar`); empty if not all of them have one.

    Raises:
        SourceError: If some archives are test shards and others have no split word.
    """
    if options.split:
        return {}
    splits_of = {}
    for archive in archives:
        names = [split_name(part) for part in archive.removesuffix(SUFFIX).split("/")]
        words = {name.split: name.word for name in names if name}
        if len(words) == 1:
            splits_of.update({archive: next(iter(words.values()))})
    silent = [archive for archive in archives if archive not in splits_of]
    if not silent:
        return splits_of
    if any(split_of(word) == "test" for word in splits_of.values()):
        raise SourceError(
            f"{pluralize(len(silent), 'archive')} of {len(archives):,} have no split in their names, unlike others: "
            f"{join_names(silent)}. Rename them, as train-0001.tar, or give {option('split', 'none')} to pool all."
        )
    return {}


def _items(parsed: object) -> Iterator[tuple[object, object]]:
    if isinstance(parsed, dict):
        yield from parsed.items()


def _text(value: object) -> str:
    """A JSON value as label text; empty for values that cannot be labels (lists, objects, null, long texts)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, str | int | float) and len(str(value)) <= 500 else ""
