"""Photos in WebDataset shards: .tar files whose members of one name are one sample (https://github.com/webdataset).

`0001.jpg`, `0001.cls` and `0001.json` are a photo, its class and what else is known of it. The archives stay as they
are: photos are read where they lie (see `shards.py`).
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

from unfreeze.core.errors import SourceError, listed
from unfreeze.core.files import is_text
from unfreeze.core.recipe_sections import Source
from unfreeze.core.tables import Finding
from unfreeze.data.shards import SUFFIX, Member, contents
from unfreeze.data.sheet import Sheet
from unfreeze.data.tabular import GROUP_NAMES, LABEL_NAMES, SPLIT_NAMES, draft_of
from unfreeze.data.walk import (
    SPLIT_WORDS,
    Draft,
    counted,
    hidden_skipped,
    is_hidden,
    is_image_name,
    others_skipped,
    skipped,
    unreadable,
    walk,
)

CLASS_ENDINGS = ("cls", "txt")
"""Members that hold a class as text; the first that the first sample has is taken."""
SAMPLE, FOLDER = "sample", "folder"
_MOST_TEXT = 1 << 20
# Looked at before a folder is taken for something else.
_LOOKED_AT = 200


@dataclass
class Sample:
    """Members of one name: its photos, and texts by ending (`cls`, `json`)."""

    photos: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """What is told of the photos: the class by its ending, and the JSON's fields that are texts or numbers."""
        told = {ending: self.texts[ending].strip() for ending in CLASS_ENDINGS if ending in self.texts}
        try:
            parsed = json.loads(self.texts.get("json", "{}"))
        except (ValueError, RecursionError):
            return told
        return told | {str(name): _text(value) for name, value in _items(parsed) if _text(value)}


@dataclass
class Passed:
    """What was passed over: names that lead nowhere a photo may lie, members of no use, texts too long to be labels."""

    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    badly_named: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def findings(self) -> tuple[Finding, ...]:
        """One finding for each kind."""
        shown = [name.encode("utf-8", "backslashreplace").decode() for name in self.badly_named]
        found = (
            hidden_skipped(self.hidden),
            others_skipped(self.others),
            skipped(
                "names",
                "warning",
                shown,
                "name in an archive that is no plain path in UTF-8",
                "names in archives that are no plain paths in UTF-8",
                "Write the archive anew with other names if they are photos.",
            ),
            skipped(
                "repeated_rows",
                "warning",
                self.repeated,
                "photo whose name the archive holds twice",
                "photos whose names the archive holds twice",
                "Write the archive anew with other names; the first of each was taken.",
            ),
        )
        return tuple(f for f in found if f is not None)


def is_shards(source: object) -> bool:
    """Whether this is a .tar, or a folder with some, at its top or one level below, and without photos there."""
    if not isinstance(source, Path):
        return False
    if source.is_file():
        return source.name.lower().endswith(SUFFIX)
    try:
        return source.is_dir() and bool(_archives(source, depth=1))
    except OSError:
        return False


def _archives(folder: Path, depth: int) -> int | None:
    """How many .tar files lie here and `depth` levels below, as far as one looks; None if a photo lies there too."""
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
    """Root and the archives' paths relative to it. SourceError where there is none."""
    if source.is_file():
        return source.parent, [source.name]
    found = walk(source)
    archives = [path for path in found.others if path.endswith(SUFFIX)]
    if not archives:
        packed = [path for path in found.others if re.search(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$", path)]
        said = (
            f" {packed[0]} is compressed, and photos inside are read in any order: unpack it to .tar." if packed else ""
        )
        raise SourceError(f"{source}: no .tar files in it.{said}")
    return source, archives


def photos_in(source: Path) -> tuple[Path, list[str]]:
    """Root and the photos' paths of archives that are to be predicted. SourceError where there is none."""
    root, archives = archives_of(source)
    paths = [
        f"{archive}/{photo}"
        for archive in archives
        for _, sample in _samples(root, archive, Passed())
        for photo in sample.photos
    ]
    if not paths:
        raise SourceError(f"{source}: no photos in its {counted(len(archives), 'archive')}.")
    return root, paths


def draft(source: Path, options: Source) -> Draft:
    """The photos of all archives, labelled by what lies beside each. SourceError where a label is missing."""
    useless = [name for name, value in {"--path-column": options.path_column, "--root": options.root}.items() if value]
    if useless:
        raise SourceError(f"{source}: archives have no use for {listed(useless)}. Leave it out.")
    root, archives = archives_of(source)
    splits, passed = _splits(archives, options), Passed()
    label, group, paths, columns = tuple[str, ...](), "", list[str](), dict[str, list[str]]()
    for archive in archives:
        for key, sample in _samples(root, archive, passed):
            if not sample.photos:
                continue
            told = sample.fields() | {SAMPLE: f"{archive}/{key}"}
            if "/" in key:
                told.setdefault(FOLDER, key.rpartition("/")[0])
            if splits:
                told.setdefault("split", splits[archive])
            if not columns:
                label, group = _chosen(source, f"{archive}/{key}", told, options)
                split = () if options.split == "none" else (options.split,) if options.split else SPLIT_NAMES[:2]
                columns = {name: [] for name in dict.fromkeys((*label, group, *split)) if name in told}
            for photo in sample.photos:
                paths.append(f"{archive}/{photo}")
                for name, values in columns.items():
                    values.append(told.get(name, ""))
    if not paths:
        raise SourceError(f"{source}: no photos in its {counted(len(archives), 'archive')}.")
    # A label that some samples lack is told as the empty cells of a table are.
    sheet = Sheet(pd.DataFrame({"path": paths} | columns), str(source), first_row=1)
    taken = counted(len(archives), "WebDataset shard")
    found = draft_of(sheet, options, root, taken, "path", label, "" if options.group_regex else group, paths)
    return replace(
        found,
        grouping="each sample its own group" if group == SAMPLE else found.grouping,
        findings=(*passed.findings(), *found.findings),
    )


def _samples(root: Path, archive: str, passed: Passed) -> Iterator[tuple[str, Sample]]:
    """Samples of one archive in its order, whether or not its members of one name lie side by side."""
    found: dict[str, Sample] = {}
    seen: set[str] = set()
    try:
        with open(root / archive, "rb") as file:
            for member in contents(root / archive).members:
                _sort(file, f"{archive}/", member, found, seen, passed)
    except OSError as error:
        raise unreadable(root / archive, error) from None
    yield from found.items()


def _sort(file: Any, prefix: str, member: Member, found: dict[str, Sample], seen: set[str], passed: Passed) -> None:
    folder, _, base = member.name.rpartition("/")
    if not _plain(member.name):
        passed.badly_named.append(prefix + member.name)
        return
    if is_hidden(base):
        passed.hidden.append(prefix + member.name)
        return
    # WebDataset's rule: the name up to the first dot of its last part is the sample's, what follows is the kind.
    stem, _, ending = base.partition(".")
    sample = found.setdefault(f"{folder}/{stem}" if folder else stem, Sample())
    if is_image_name(base):
        if member.name in seen:
            passed.repeated.append(prefix + member.name)
            return
        seen.add(member.name)
        sample.photos.append(member.name)
    elif ending.lower() in (*CLASS_ENDINGS, "json") and member.size <= _MOST_TEXT:
        file.seek(member.start)
        sample.texts[ending.lower()] = file.read(member.size).decode("utf-8-sig", "replace")
    else:
        passed.others.append(prefix + member.name)


def _plain(name: str) -> bool:
    """Whether a member's name may stand in a table of paths: text, relative, without steps upward."""
    return is_text(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def _chosen(source: Path, where: str, told: dict[str, str], options: Source) -> tuple[tuple[str, ...], str]:
    """Label fields and group field, as asked for or as the first sample has them."""
    fields = listed(map(repr, told), 20) or "nothing but photos"
    for asked in (*options.label, *([options.group] if options.group else [])):
        if asked not in told:
            raise SourceError(f"{source}: the first sample {where} has no '{asked}'; it has {fields}.")
    usual = next((name for name in (*CLASS_ENDINGS, *LABEL_NAMES, FOLDER) if name in told), "")
    if not options.label and not usual:
        raise SourceError(
            f"{source}: nothing tells the class of {where}: no .cls beside the photo, no field "
            f"{', '.join(LABEL_NAMES)} in its .json, no folder; it has {fields}. Say which field tells it: "
            "--label FIELD."
        )
    group = options.group or next((name for name in GROUP_NAMES if name in told), SAMPLE)
    return options.label or (usual,), group


def _splits(archives: list[str], options: Source) -> dict[str, str]:
    """The split that each archive's name tells (`train-0001.tar`, `val/0001.tar`); empty unless all tell one."""
    if options.split:
        return {}
    told = {}
    for archive in archives:
        words = [word for word in re.split(r"[^a-z]+", archive.lower().removesuffix(SUFFIX)) if word in SPLIT_WORDS]
        if len(set(words)) != 1:
            return {}
        told[archive] = words[0]
    return told


def _items(parsed: object) -> Iterator[tuple[object, object]]:
    if isinstance(parsed, dict):
        yield from parsed.items()


def _text(value: object) -> str:
    """A JSON value as a label's text; empty for what is none (lists, objects, null, long texts)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, str | int | float) and len(str(value)) <= 500 else ""
