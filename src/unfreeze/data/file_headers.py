"""Parsers for TIFF directories and PNG chunks that read structure without decoding data.

TIFF directories (IFDs) occur in TIFF files and EXIF blocks. Pillow and libtiff read every value of a directory, so a
few bytes of a malicious header can cost gigabytes of memory. This module reads only offsets and counts, and values on
request, so that such headers can be rejected before a decoder sees them. PNG chunks are listed by name, position and
length.

References:
    TIFF 6.0, section 2, and BigTIFF.
    W3C PNG, third edition, section 5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Size in bytes of one value of each type in TIFF 6.0 and BigTIFF, and the `struct` codes of the numeric types.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 277, 278, 279
MAX_SAMPLE, PLANAR, SUB_IFDS, SAMPLE_FORMAT, S_MAX_SAMPLE = 281, 284, 330, 339, 341
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
EXIF_IFD, GPS_IFD, INTEROP_IFD = 34665, 34853, 40965
_DNG_VERSION, _CFA, _LINEAR_RAW = 50706, 32803, 34892
# Compression tags of raw data: Nikon, Sony, Pentax, Samsung.
_RAW_COMPRESSION = {34713, 32767, 65535, 32770}
_MOST_DIRECTORIES = 16
MOST_ENTRIES = 4096
"""Maximum number of entries of a directory; valid files have a few dozen."""


@dataclass(frozen=True)
class Entry:
    """One directory entry.

    Attributes:
        tag: Tag number.
        kind: Type code of the values.
        count: Number of values.
        at: Offset of the values in the buffer; they may extend beyond its end.
    """

    tag: int
    kind: int
    count: int
    at: int

    @property
    def size(self) -> int:
        """Size of the values in bytes; 0 for an unknown type, which readers skip."""
        return _SIZES.get(self.kind, 0) * self.count


@dataclass(frozen=True)
class Directory:
    """One TIFF directory.

    Attributes:
        data: Buffer that the offsets refer to.
        order: Byte order as in `struct`, "<" or ">".
        entries: The first entry of each tag.
        following: Offset of the next directory; 0 if there is none.
        listed: Number of entries that the directory declares, including repeated tags.
    """

    data: bytes
    order: str
    entries: dict[int, Entry]
    following: int
    listed: int

    def values(self, tag: int, most: int = 64) -> tuple[int | float, ...]:
        """Return the first `most` values of a tag; () if it is absent, not numeric or beyond the buffer."""
        entry = self.entries.get(tag)
        code = _CODES.get(entry.kind) if entry else None
        if entry is None or code is None:
            return ()
        count = min(entry.count, most)
        try:
            return struct.unpack_from(f"{self.order}{count}{code}", self.data, entry.at)
        except (struct.error, OverflowError):  # BigTIFF offsets may exceed the address range
            return ()

    def integer(self, tag: int, otherwise: int) -> int:
        """Return the first value of a tag; `otherwise` if it is absent or not an integer."""
        found = self.values(tag, 1)
        return int(found[0]) if found and isinstance(found[0], int) else otherwise


def directories(data: bytes, chain: bool = False) -> Iterator[Directory]:
    """Iterate over the directories of a TIFF file or EXIF block.

    Args:
        data: The file or block, starting at its byte-order mark.
        chain: Whether to include the directories of further pages.

    Yields:
        The first directory, then its nested directories (SubIFDs, EXIF, GPS, interoperability), each once and at most
        16 in total; none if the header is invalid.
    """
    head = _head(data)
    if head is None:
        return
    order, big, first = head
    waiting, seen = [first], set[int]()
    while waiting and len(seen) < _MOST_DIRECTORIES:
        at = waiting.pop(0)
        if at in seen or not 0 < at < len(data):
            continue
        seen.add(at)
        found = _directory(data, order, big, at)
        if found is None:
            continue
        yield found
        for tag in (SUB_IFDS, EXIF_IFD, GPS_IFD, INTEROP_IFD):
            waiting += [value for value in found.values(tag, 8) if isinstance(value, int)]
        if chain:
            waiting.append(found.following)


def is_camera_raw(data: bytes) -> bool:
    """Whether a TIFF contains camera raw data.

    This is the case for a DNG, and if any directory has a color filter array or a raw compression. Pillow would decode
    the first directory of such a file, which is often a thumbnail.
    """
    for found in directories(data, chain=True):
        if _DNG_VERSION in found.entries or found.integer(PHOTOMETRIC, 0) in (_CFA, _LINEAR_RAW):
            return True
        if found.integer(COMPRESSION, 1) in _RAW_COMPRESSION:
            return True
    return False


def overlaps(data: bytes) -> bool:
    """Whether reading all values of the directories would copy far more bytes than the block has.

    In a valid file, the values of different tags do not overlap. If they do, a reader allocates memory for each of
    them. A directory with more than `MOST_ENTRIES` entries counts as overlapping too.
    """
    total = 0
    for found in directories(data):
        if found.listed > MOST_ENTRIES:
            return True
        total += sum(max(0, min(entry.size, len(data) - entry.at)) for entry in found.entries.values())
    return total > 4 * len(data) + (1 << 20)


def _head(data: bytes) -> tuple[str, bool, int] | None:
    """Byte order, whether the file is a BigTIFF, and the offset of the first directory; None if invalid."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return None
    # As in Pillow, either byte of the version number may hold 43, regardless of the byte order.
    big = 43 in data[2:4]
    try:
        (first,) = struct.unpack_from(f"{order}Q", data, 8) if big else struct.unpack_from(f"{order}I", data, 4)
    except struct.error:
        return None
    return order, big, first


def _directory(data: bytes, order: str, big: bool, at: int) -> Directory | None:
    try:
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, at)
    except struct.error:
        return None
    start, width = at + (8 if big else 2), 20 if big else 12
    held = min(count, max(0, (len(data) - start) // width))
    entries: dict[int, Entry] = {}
    for i in range(min(held, MOST_ENTRIES)):
        place = start + i * width
        tag, kind, many = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", data, place)
        if tag in entries:
            continue
        value = place + (12 if big else 8)
        entry = Entry(tag, kind, many, value)
        if entry.size > (8 if big else 4):
            (value,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, value)
            entry = Entry(tag, kind, many, value)
        entries[tag] = entry
    end = start + count * width
    try:
        (following,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, end)
    except (struct.error, OverflowError):
        following = 0
    return Directory(data, order, entries, following, count)


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the chunks of a PNG file.

    Args:
        data: The file.

    Yields:
        Name, offset of the content and length of the content of each chunk. The content of the last chunk may extend
        beyond the end of a truncated file.
    """
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], place + 8, length
        place += 12 + length


def significant_bits(data: bytes) -> int:
    """Return the number of significant bits of a 16-bit PNG from its sBIT chunk.

    Returns:
        8 to 15; 0 if the chunk is absent or holds another value.
    """
    for name, start, length in chunks(data):
        if name == b"sBIT":
            color = {0: 1, 2: 3, 4: 1, 6: 3}.get(data[25], 0)
            bits = max(data[start : start + min(length, color)], default=0)
            return bits if 8 <= bits < 16 else 0
        if name in (b"IDAT", b"PLTE"):
            return 0
    return 0
