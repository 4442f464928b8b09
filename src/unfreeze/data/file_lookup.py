"""Resolve paths and ids from tables to image files, including paths without a suffix and other Unicode forms.

Paths here are strings with `/` as the separator, because `Path` objects are too slow for large tables.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from pathlib import Path

from unfreeze.core.names import nfc, on_disk
from unfreeze.data.directory_walk import is_hidden, is_image_name
from unfreeze.data.tar_index import has_member, split_path

_MOST_FOLDERS = 100
"""Maximum number of subfolders to search for ids. More of them are likely classes or persons, not parts of one set."""


def as_absolute(text: str, start: Path | str) -> str:
    """Make a path absolute and normalize `.` and `..`, without following symlinks.

    Args:
        text: Path with `/`; a leading `~/` is expanded.
        start: Folder that relative paths start from. A string must be absolute already, which saves time for many
            paths.

    Returns:
        The absolute path with `/`.
    """
    if text.startswith("~/"):
        text = os.path.expanduser(text)  # noqa: PTH111 - never raises
    if not is_absolute(text):
        folder = start if isinstance(start, str) else start.absolute().as_posix()
        text = f"{folder.rstrip('/')}/{text}"
    # normpath keeps two leading slashes, whose meaning POSIX leaves to the implementation; here they are one.
    return posixpath.normpath(f"/{text.lstrip('/')}" if text.startswith("//") else text)


def is_absolute(text: str) -> bool:
    """Whether a path with `/` is absolute: `/data`, `C:/data` or `~/data`."""
    return text.startswith(("/", "~/")) or (text[1:3] == ":/" and text[0].isalpha())


def with_slashes(text: str) -> str:
    """Replace the backslashes of a Windows path by `/`."""
    return text.replace("\\", "/")


def is_file(path: str) -> bool:
    """Whether the path is an existing file, on the disk or inside a .tar archive."""
    if os.path.isfile(path):  # noqa: PTH113 - several times faster than a Path, and never raises
        return True
    inside = split_path(path)
    return inside is not None and has_member(*inside)


def existing(path: str) -> str:
    """Return the path of an existing file as spelled on the disk, whose Unicode form may differ; else empty."""
    if is_file(path):
        return path
    if path.isascii():
        return ""
    there = os.fspath(on_disk(Path(path)))
    return there if is_file(there) else ""


class FileLookup:
    """Finds image files by path. A folder is listed at most once, and only if a path does not match a file exactly."""

    def __init__(self) -> None:
        self._images: dict[str, dict[str, tuple[str, ...]]] = {}
        self._subfolders: dict[Path, list[Path]] = {}

    def find(self, path: str) -> tuple[str, ...]:
        """Find the files that an absolute path may refer to.

        Args:
            path: Absolute path with `/`, with or without a suffix.

        Returns:
            The file itself if it exists, else the images in its folder whose name without suffix is the name of the
            path; empty if there are none.
        """
        if there := existing(path):
            return (there,)
        folder, _, name = path.rpartition("/")
        if not name or is_image_name(name):
            return ()
        folder = folder if folder.isascii() else os.fspath(on_disk(Path(folder)))
        images = self._by_stem(folder).get(nfc(name), ())
        images = tuple(image for image in images if image.startswith(f"{name}.")) or images
        return tuple(f"{folder}/{image}" for image in images)

    def near(self, path: str) -> str:
        """Return an image in the same folder whose name differs only in suffix or case, for messages; else empty."""
        folder, _, name = path.rpartition("/")
        stem = name.rpartition(".")[0] or name
        images = self._by_stem(folder)
        found = images.get(nfc(stem)) or next((images[each] for each in images if each.lower() == stem.lower()), ())
        return found[0] if found else ""

    def subfolders(self, folder: Path) -> list[Path]:
        """Return the visible direct subfolders of a folder, sorted; empty if there are more than 100."""
        if folder not in self._subfolders:
            try:
                inside = [path for path in folder.iterdir() if not is_hidden(path.name) and path.is_dir()]
            except OSError:
                inside = []
            self._subfolders[folder] = sorted(inside) if len(inside) <= _MOST_FOLDERS else []
        return self._subfolders[folder]

    def _by_stem(self, folder: str) -> dict[str, tuple[str, ...]]:
        """Names of the images of a folder, by their name without suffix in NFC."""
        if folder not in self._images:
            found = defaultdict[str, list[str]](list)
            try:
                with os.scandir(folder or "/") as entries:
                    for entry in entries:
                        if is_image_name(entry.name) and not is_hidden(entry.name) and entry.is_file():
                            found[nfc(entry.name.rpartition(".")[0])].append(entry.name)
            except (OSError, ValueError):  # the folder is missing or unreadable, or its name contains NUL
                pass
            self._images[folder] = {stem: tuple(sorted(names)) for stem, names in found.items()}
        return self._images[folder]
