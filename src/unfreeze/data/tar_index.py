"""Index of uncompressed .tar archives, for reading members in place without unpacking.

An image `b.jpg` inside `shards/train-0001.tar` has the path `shards/train-0001.tar/b.jpg` in all tables and messages,
so code that handles image paths needs no special case. A member name is only a key of the index and never a path on
disk, so a name such as `../../etc/passwd` is harmless.

The parser supports POSIX ustar and pax headers and GNU long names. The standard library's `tarfile` is not used,
because archives are untrusted: in CPython 3.11 it loops forever on a negative size (CVE-2025-8194) and takes quadratic
time on crafted pax headers (CVE-2024-6232). This parser reads each header once, always advances, and bounds its memory
use.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from unfreeze.core.errors import PhotoError, SourceError
from unfreeze.core.names import nfc, on_disk

BLOCK = 512
# Long names and pax headers hold only a path and a few numbers.
MAX_EXTENDED_BYTES = 64 << 10
# Maximum number of consecutive extended headers; real archives have fewer.
MAX_EXTENDED_IN_A_ROW = 8

_REGULAR = (b"0", b"\0", b"7")
_LONG_NAME, _LONG_LINK = b"L", b"K"
_SPARSE = b"S"
_PAX, _PAX_GLOBAL = (b"x", b"X"), b"g"
# Entries whose size field does not count bytes that follow (POSIX.1-1988): links, devices, directories, FIFOs.
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


class TarHeaderError(ValueError):
    """The file is not an uncompressed tar archive, is damaged, or is truncated."""


class TarEntry(NamedTuple):
    """A regular file in an archive.

    Attributes:
        name: Member name.
        offset: Offset of the content in the archive, in bytes.
        size: Size of the content, in bytes.
    """

    name: str
    offset: int
    size: int


def tar_entries(archive: Path) -> Iterator[TarEntry]:
    """Iterate over the regular files of an archive.

    Links, devices, directories and sparse files are skipped.

    Args:
        archive: The archive.

    Yields:
        The entries in archive order.

    Raises:
        TarHeaderError: If the file is not an uncompressed tar archive, is damaged, or is truncated.
        OSError: If the file cannot be read.
    """
    with archive.open("rb") as file:
        length = file.seek(0, 2)
        at, extended = 0, 0
        long_name: str | None = None
        pax: dict[str, str] = {}
        while True:
            header = _read(file, at, BLOCK)
            if len(header) < BLOCK or header == bytes(BLOCK):
                if at == 0 or 0 < len(header) < BLOCK:
                    raise TarHeaderError("empty file" if not length else "no tar header" if at == 0 else "cut off")
                if extended:
                    raise TarHeaderError("cut off after an extended header")
                return
            _check_sum(header, at)
            kind, size = header[156:157], _number(header[124:136], "size")
            data = at + BLOCK
            if kind in (_LONG_NAME, _LONG_LINK, *_PAX, _PAX_GLOBAL):
                extended += 1
                if size > MAX_EXTENDED_BYTES:
                    raise TarHeaderError(f"an extended header of {size:,} bytes")
                if extended > MAX_EXTENDED_IN_A_ROW:
                    raise TarHeaderError("too many extended headers in a row")
                content = _read(file, data, size)
                if len(content) < size:
                    raise TarHeaderError("cut off in an extended header")
                if kind == _LONG_NAME:
                    long_name = _text(content)
                elif kind in _PAX:
                    pax |= _pax_records(content)
                at = data + _padded(size)
                continue
            if "size" in pax:
                size = _decimal(pax["size"])
            name = pax.get("path") or long_name or _name(header)
            if kind in _REGULAR and not name.endswith("/") and not any(key.startswith("GNU.sparse") for key in pax):
                if data + size > length:
                    raise TarHeaderError(f"{name!r} is cut off")
                yield TarEntry(name.removeprefix("./"), data, size)
            if kind == _SPARSE:
                data = _after_sparse_map(file, header, data)
            at = data + (0 if kind in _WITHOUT_DATA else _padded(size))
            if at > length + BLOCK:
                raise TarHeaderError(f"{name!r} is cut off")
            long_name, pax, extended = None, {}, 0


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _after_sparse_map(file: BinaryIO, header: bytes, at: int) -> int:
    """Offset of the data of a GNU sparse file, whose map can continue in extra blocks."""
    more = header[482]
    while more:
        block = _read(file, at, BLOCK)
        if len(block) < BLOCK:
            raise TarHeaderError("cut off in the map of a sparse file")
        at, more = at + BLOCK, block[504]
    return at


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_sum(header: bytes, at: int) -> None:
    """Verify the header checksum: unsigned as in POSIX, or signed as written by some old programs."""
    expected = _number(header[148:156], "checksum")
    rest = header[:148] + header[156:]
    unsigned = 256 + sum(rest)
    if expected not in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest)):
        raise TarHeaderError("no tar header" if at == 0 else f"a damaged header at byte {at:,}")


def _number(field: bytes, what: str) -> int:
    """Parse a numeric field: octal digits, or base 256 if the first bit is set (GNU). Rejects negative numbers."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise TarHeaderError(f"a negative {what}")
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if len(digits.lstrip(b"01234567")):
        raise TarHeaderError(f"a {what} that is not a number")
    return int(digits, 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TarHeaderError("a size that is not a number")
    return int(text)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # Only ustar has a prefix field; the GNU format stores timestamps there.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[str, str]:
    """Parse the records `<length> <key>=<value>\\n` of a pax header (POSIX.1-2001)."""
    records: dict[str, str] = {}
    at = 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + 20)
        digits = content[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise TarHeaderError("a damaged pax header")
        end = at + int(digits)
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(content) or content[end - 1 : end] != b"\n" or not equals:
            raise TarHeaderError("a damaged pax header")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at = end
    return records


SUFFIX = ".tar"
_INSIDE = f"{SUFFIX}/"
# Maximum number of members in all cached indexes; about 300 bytes each.
_KEPT = 300_000
_known: OrderedDict[tuple[int, ...], TarIndex] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class TarMember:
    """A regular file in an archive.

    Attributes:
        name: Member name.
        start: Offset of the content in the archive, in bytes.
        size: Size of the content, in bytes.
    """

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """Index of the regular files of an archive.

    Attributes:
        members: Members in archive order.
        named: Members by name. If a name occurs twice, the first member is used.
    """

    members: tuple[TarMember, ...]
    named: dict[str, TarMember]

    def find(self, name: str) -> TarMember | None:
        """Find a member by name, in any Unicode normalization form; None if there is none."""
        return self.named.get(name) or (None if name.isascii() else self._in_nfc.get(nfc(name)))

    @cached_property
    def _in_nfc(self) -> dict[str, TarMember]:
        """Members with non-ASCII names by NFC name. If a name occurs twice, the first member is used."""
        return {nfc(name): member for name, member in reversed(self.named.items()) if not name.isascii()}


def split_path(path: str | Path) -> tuple[str, str] | None:
    """Split a path into a .tar file into archive and member name.

    Args:
        path: An image path.

    Returns:
        Archive and member name, or None if the path does not lead into an archive.
    """
    text = os.fspath(path)
    end = text.find(_INSIDE)
    while end >= 0:
        archive = text[: end + len(SUFFIX)]
        if not os.path.isfile(archive):  # noqa: PTH113 - asked for each photo: several times faster than a Path
            archive = archive if archive.isascii() else os.fspath(on_disk(Path(archive)))
        if os.path.isfile(archive):  # noqa: PTH113
            return archive, text[end + len(_INSIDE) :]
        end = text.find(_INSIDE, end + 1)  # a folder name may end in .tar as well
    return None


def containing_file(path: Path) -> Path:
    """The file on disk that contains an image: its archive, or the image itself."""
    inside = split_path(path)
    return Path(inside[0]) if inside else path


def tar_index(archive: str | Path) -> TarIndex:
    """Read the index of an archive; it is cached until the archive changes.

    Args:
        archive: The archive.

    Returns:
        The index.

    Raises:
        SourceError: If the file is not an uncompressed tar archive, is damaged, or is truncated.
        OSError: If the file cannot be read.
    """
    status = os.stat(archive)  # noqa: PTH116
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    with _lock:  # one thread reads the headers while the others wait
        known = _known.get(key)
        if known is None:
            members = tuple(_members(Path(archive)))
            known = _known[key] = TarIndex(members, {member.name: member for member in reversed(members)})
            kept = sum(len(each.members) for each in _known.values())
            while kept > _KEPT and len(_known) > 1:
                kept -= len(_known.popitem(last=False)[1].members)
        else:
            _known.move_to_end(key)
    return known


def read_member(archive: str, name: str, limit: int) -> bytes:
    """Read the content of a member.

    Args:
        archive: The archive.
        name: Member name.
        limit: Maximum size in bytes.

    Returns:
        The content.

    Raises:
        PhotoError: If there is no such member, it is larger than `limit`, or it is truncated.
    """
    path = f"{archive}/{name}"
    try:
        member = tar_index(archive).find(name)
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
    """Whether a readable archive contains a regular file with this name."""
    try:
        return tar_index(archive).find(name) is not None
    except (OSError, SourceError):
        return False


def _read_part(archive: str, member: TarMember) -> bytes:
    with open(archive, "rb") as file:
        file.seek(member.start)
        return file.read(member.size)


def _members(archive: Path) -> Iterator[TarMember]:
    """Yield the regular files of an archive. Raises the same errors as `tar_index`."""
    try:
        for entry in tar_entries(archive):
            yield TarMember(*entry)
    except TarHeaderError as error:
        why = " ".join(str(error).split())[:120]
        raise SourceError(
            f"{archive}: not a whole, uncompressed tar file ({why}). Copy it again, or write it without compression."
        ) from None
