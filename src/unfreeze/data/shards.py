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
# Members whose places are kept in memory at once: about 300 bytes each.
_KEPT = 300_000
_known: OrderedDict[tuple[int, ...], Contents] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Member:
    """A plain file in an archive: its name, and where in the archive its bytes are."""

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class Contents:
    """The plain files of an archive in its order, and each by its name; of two of one name the first counts."""

    members: tuple[Member, ...]
    named: dict[str, Member]


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


def contents(archive: str | Path) -> Contents:
    """What a .tar holds. Its headers are read once, and anew when it has changed.

    Raises SourceError if it is not an uncompressed tar, is damaged, or ends before what it says it holds; OSError as
    the system raises it.
    """
    status = os.stat(archive)  # noqa: PTH116
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    with _lock:  # one reads an archive's headers, the others wait for it
        known = _known.get(key)
        if known is None:
            members = tuple(_members(Path(archive)))
            known = _known[key] = Contents(members, {member.name: member for member in reversed(members)})
            kept = sum(len(each.members) for each in _known.values())
            while kept > _KEPT and len(_known) > 1:
                kept -= len(_known.popitem(last=False)[1].members)
        else:
            _known.move_to_end(key)
    return known


def read_member(archive: str, name: str, limit: int) -> bytes:
    """The bytes of a member. PhotoError: no such member, larger than `limit` bytes, or cut off."""
    path = f"{archive}/{name}"
    try:
        member = contents(archive).named.get(name)
    except SourceError as error:
        raise PhotoError(path, str(error).removeprefix(f"{archive}: ")) from None
    if member is None:
        raise PhotoError(path, "no such file in the archive")
    if member.size > limit:
        raise PhotoError(path, f"larger than {limit >> 20} MiB")
    data = _read_part(archive, member)
    if len(data) < member.size:
        raise PhotoError(path, "cut off: the archive ends before")
    return data


def has_member(archive: str, name: str) -> bool:
    """Whether a readable archive holds a plain file of this name."""
    try:
        return name in contents(archive).named
    except (OSError, SourceError):
        return False


def _read_part(archive: str, member: Member) -> bytes:
    with open(archive, "rb") as file:
        file.seek(member.start)
        return file.read(member.size)


def _members(archive: Path) -> Iterator[Member]:
    """The plain files of a .tar; links, devices and sparse files are passed over. Raises as `contents`."""
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
