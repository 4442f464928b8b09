"""Photos inside .tar files, read where they lie: an index of each archive, and a member's bytes. Nothing is unpacked.

A photo `b.jpg` inside `shards/train-0001.tar` has the path `shards/train-0001.tar/b.jpg`, in every table and message,
so that all that speaks of photos by path speaks of these too. A member's name is never a path on the disk: it is only
looked up in the index, so a name such as `../../etc/passwd` can lead nowhere.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unfreeze.core.errors import PhotoError, SourceError

SUFFIX = ".tar"
_INSIDE = f"{SUFFIX}/"
# Archives whose index is kept in memory at once: about 200 bytes a member.
_KEPT = 128
_indices: OrderedDict[tuple[str, int, int], dict[str, tuple[int, int]]] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Member:
    """A plain file in an archive: its name, and where in the archive its bytes are."""

    name: str
    start: int
    size: int


def split_path(path: str | Path) -> tuple[str, str] | None:
    """Archive and member of a path that leads into a .tar file; None for every other path."""
    text = os.fspath(path)
    end = text.find(_INSIDE)
    while end >= 0:
        archive = text[: end + len(SUFFIX)]
        if os.path.isfile(archive):  # noqa: PTH113 - asked for each photo: several times faster than a Path
            return archive, text[end + len(_INSIDE) :]
        end = text.find(_INSIDE, end + 1)  # a folder may be named so too
    return None


def holder(path: Path) -> Path:
    """The file on the disk that holds a photo: its archive, or the photo itself."""
    inside = split_path(path)
    return Path(inside[0]) if inside else path


def members(archive: Path) -> Iterator[Member]:
    """The plain files of a .tar, in its order; links, devices and sparse files are passed over.

    Raises SourceError if it is not an uncompressed tar, is damaged, or ends before what it says it holds.
    """
    length = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as opened:
            for entry in opened:
                opened.members = []  # type: ignore[attr-defined] # tarfile keeps every entry that it has read
                if entry.isreg() and not entry.issparse():
                    if entry.offset_data + entry.size > length:
                        raise tarfile.ReadError(f"{entry.name!r} is cut off")
                    yield Member(entry.name.removeprefix("./"), entry.offset_data, entry.size)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        why = " ".join(str(error).split())[:120]
        raise SourceError(
            f"{archive}: not a whole, uncompressed tar file ({why}). Copy it again, or write it without compression."
        ) from None


def read_part(archive: str | Path, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on; fewer where it ends. OSError as the system raises it."""
    with open(archive, "rb") as file:
        file.seek(start)
        return file.read(size)


def read_member(archive: str, name: str, limit: int) -> bytes:
    """The bytes of a member. PhotoError: no such member, larger than `limit` bytes, or cut off."""
    path = f"{archive}/{name}"
    try:
        where = _index(archive).get(name)
    except SourceError as error:
        raise PhotoError(path, str(error).removeprefix(f"{archive}: ")) from None
    if where is None:
        raise PhotoError(path, "no such file in the archive")
    start, size = where
    if size > limit:
        raise PhotoError(path, f"larger than {limit >> 20} MiB")
    data = read_part(archive, start, size)
    if len(data) < size:
        raise PhotoError(path, "cut off: the archive ends before")
    return data


def has_member(archive: str, name: str) -> bool:
    """Whether a readable archive holds a plain file of this name."""
    try:
        return name in _index(archive)
    except (OSError, SourceError):
        return False


def _index(archive: str) -> dict[str, tuple[int, int]]:
    """Where each member is. Read anew when the archive has changed; of two members of one name the first counts."""
    status = os.stat(archive)  # noqa: PTH116
    key = (archive, status.st_mtime_ns, status.st_size)
    with _lock:  # one reads an archive's headers, the others wait for it
        known = _indices.get(key)
        if known is None:
            known = {}
            for member in members(Path(archive)):
                known.setdefault(member.name, (member.start, member.size))
            _indices[key] = known
            while len(_indices) > _KEPT:
                _indices.popitem(last=False)
        else:
            _indices.move_to_end(key)
    return known
