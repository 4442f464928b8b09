"""What lies in a folder of photos: the photos, and everything that was passed over.

The lowest file of the readers: it knows folders and names, not labels. `Draft` is what each reader hands to
`readers.py`, which applies the rules that hold for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from unfreeze.core.errors import SourceError
from unfreeze.core.files import is_text
from unfreeze.core.tables import Finding, Severity

IMAGE_SUFFIXES = frozenset(
    (
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "webp",
        "ppm",
        "pgm",
        "pbm",
        "tga",
        "avif",
    )
)
"""File name endings, lower case and without the dot, that count as photos when a folder is walked."""

HIDDEN_NAMES = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
)
"""Lower-case names that systems leave behind; a name that starts with a dot is hidden anyway."""

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "train",
    "valid": "train",
    "validation": "train",
    "dev": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
"""What people call a split -> ours. Validation joins training, because unfreeze cross-validates."""


@dataclass(frozen=True)
class Draft:
    """A source as one reader understood it, before the rules that hold for all readers.

    table: columns `path`, `label`, `group`, `split` and those in `attributes`; any order, any index.
    taken, grouping, splitting: the parts of `Photos.choice`; `splitting` may be empty.
    classes, answers: empty where the usual order of classes is right.
    """

    root: Path
    table: pd.DataFrame
    attributes: tuple[str, ...]
    taken: str
    grouping: str
    splitting: str = ""
    findings: tuple[Finding, ...] = ()
    classes: tuple[str, ...] = ()
    answers: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Found:
    """One walk's harvest: paths relative to the walked folder, with /, each list sorted.

    photos: what goes on. folders: every folder entered. The rest was passed over: `hidden` (a folder ends in
    /), `others` (not an image by suffix), `badly_named` (not valid UTF-8), `repeated` (folders that were
    already walked: symlink loops, second links), `broken` (links to nothing, pipes).
    """

    photos: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    badly_named: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def findings(self) -> tuple[Finding, ...]:
        """One finding for each kind of thing passed over."""
        # A hidden folder counts as one: looking into .git or __MACOSX to count would cost more than it tells.
        hidden = "hidden files or folders" if any(p.endswith("/") for p in self.hidden) else "hidden files"
        findings = [
            hidden_skipped(self.hidden, hidden),
            others_skipped(self.others),
            skipped(
                "names",
                "warning",
                [p.encode("utf-8", "backslashreplace").decode() for p in self.badly_named],
                "name that is not valid UTF-8",
                "names that are not valid UTF-8",
                "Rename them if they are photos.",
            ),
            skipped(
                "links",
                "warning",
                self.repeated,
                "link to a folder that is already read",
                "links to folders that are already read",
                "Remove the links, or copy the photos if they belong to two classes.",
            ),
            skipped(
                "links",
                "warning",
                self.broken,
                "photo that is a broken link",
                "photos that are broken links",
                "Restore or remove them.",
            ),
        ]
        return tuple(f for f in findings if f is not None)

    def no_photos(self, root: Path) -> SourceError:
        """The error for a folder without photos, which says what is there instead."""
        passed = len(self.hidden) + len(self.others) + len(self.badly_named) + len(self.broken)
        there = f"{counted(passed, 'file')} hidden, broken or not an image" if passed else "it is empty"
        return SourceError(
            f"{root}: no photos found; {there}. Give a folder of class folders with photos "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})."
        )


def walk(root: Path) -> Found:
    """All below `root`; links to folders are followed, each real folder once. SourceError: unreadable."""
    found = Found()
    real = root.resolve()
    # The folders above count as seen: a link up there would lead back to here, through the whole disk.
    seen = {_identity(folder) for folder in (real, *real.parents)}
    folders, links = [""], list[str]()
    while folders or links:
        # Real folders go first and links in sorted order, so that the same tree always gives the same paths.
        links.sort(reverse=True)
        here = folders.pop() if folders else links.pop()
        if here:
            identity = _identity(root / here)
            if identity in seen:
                found.repeated.append(here)
                continue
            seen.add(identity)
            found.folders.append(here)
        _sort_entries(root, here, found, folders, links)
    for paths in vars(found).values():
        paths.sort()
    return found


def _sort_entries(root: Path, here: str, found: Found, folders: list[str], links: list[str]) -> None:
    """Put each entry of one folder where it belongs. scandir: a Path and a stat a file cost 10 times."""
    prefix = f"{here}/" if here else ""
    try:
        with os.scandir(root / here) as entries:
            for entry in entries:
                path = prefix + entry.name
                if not is_text(entry.name):
                    found.badly_named.append(path)
                elif is_hidden(entry.name):
                    found.hidden.append(f"{path}/" if _is_folder(entry) else path)
                elif _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(path)
                elif not is_image_name(entry.name):
                    found.others.append(path)
                elif _is_file(entry):
                    found.photos.append(path)
                else:
                    found.broken.append(path)
    except OSError as error:
        raise unreadable(root / here, error) from None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over as hidden."""
    return name.startswith(".") or name.lower() in HIDDEN_NAMES


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    _, dot, suffix = name.rpartition(".")
    return bool(dot) and suffix.lower() in IMAGE_SUFFIXES


def readable_name(path: Path) -> Path:
    """The path itself. SourceError if its name, or that of a folder above, is not valid UTF-8: no table can hold it."""
    if not is_text(os.fspath(path.absolute())):
        raise SourceError(f"{path.absolute()}: this name is not valid UTF-8. Rename the file, or the folder above.")
    return path


def skipped(check: str, severity: Severity, paths: Collection[str], one: str, many: str, fix: str) -> Finding | None:
    """The finding "13 hidden files skipped, first: ..."; None where there are none."""
    if not paths:
        return None
    message = f"{len(paths):,} {one if len(paths) == 1 else many} skipped, first: {next(iter(paths))}"
    return Finding(check, severity, message, fix)


def hidden_skipped(paths: Collection[str], many: str = "hidden files") -> Finding | None:
    """The finding of hidden files that every kind of source passes over; None where there are none."""
    return skipped("hidden", "info", paths, "hidden file", many, "None needed: these are not photos.")


def others_skipped(paths: Collection[str]) -> Finding | None:
    """The finding of files that are no images; None where there are none."""
    few, many = "file that is not an image", "files that are not images"
    return skipped("not_photos", "info", paths, few, many, "None needed: they stay unread.")


def counted(number: int, noun: str) -> str:
    """`1 photo`, `1,500 photos`, `2 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def splitting(words: Collection[str]) -> str:
    """What becomes of the splits named `words`, for `Photos.choice`."""
    train = [word for word, split in SPLIT_WORDS.items() if split == "train" and word in words]
    test = [word for word, split in SPLIT_WORDS.items() if split == "test" and word in words]
    said = " + ".join(train) + (" pooled and cross-validated" if len(train) > 1 else " cross-validated")
    return f"{said}, {' + '.join(test)} kept for testing" if test else said


def unreadable(path: object, error: OSError) -> SourceError:
    """What to say when the system refuses a file or folder."""
    return SourceError(f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions.")


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise unreadable(folder, error) from None
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
