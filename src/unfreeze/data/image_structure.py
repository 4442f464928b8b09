"""Structure checks of image files that bound the work of a decoder before it sees the file.

A limit on width times height does not bound the work of a decoder: a few bytes of a header can request tiles of
gigabytes, millions of empty chunks are parsed one by one in Python, and each scan of a JPEG is a pass over all pixels.
`checked` parses the structure of a file without decoding pixels and raises `StructureError` if it exceeds a limit.
The limits lie far above what cameras and programs write. They keep a file of 32 MB below 5 seconds of CPU time and
1.2 GB of memory.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np

from unfreeze.data import file_headers, netpbm

# Cameras and encoders write at most a dozen scans. Each scan is a pass over all pixels but may take only a few bytes.
SCANS = 32
TOO_MANY = f"damaged (more than {SCANS} scans)"
_JPEG, _SCAN, _END = b"\xff\xd8", 0xDA, 0xD9
# A marker that ends the data of a scan. Within the data, 0xFF is followed by 0, a restart marker or padding.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def too_many_scans(data: bytes) -> bool:
    """Whether the file is a JPEG with more than `SCANS` scans, which can keep a decoder busy for minutes."""
    return data.startswith(_JPEG) and data.count(b"\xff\xda") > SCANS and count_jpeg_scans(data) > SCANS


def count_jpeg_scans(data: bytes) -> int:
    """Count the scans of the first image of a JPEG from its markers (ITU T.81, annex B).

    Args:
        data: The file.

    Returns:
        Number of scans before the end-of-image marker.
    """
    place, found = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind == 0xFF:  # padding
            place += 1
            continue
        if kind == _END:
            break
        if 0xD0 <= kind <= 0xD8 or kind == 1:  # markers without a segment
            place += 2
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == _SCAN:
            found += 1
            following = _MARKER.search(data, place)
            if following is None:
                break
            place = following.start()
    return found


MAX_JPEG_SEGMENTS = 10_000
MAX_JPEG_JUNK = 64 << 10
"""Bytes between the segments of a JPEG that belong to no segment."""
MAX_PNG_CHUNKS = 200_000
MAX_PNG_PROFILE = 1 << 20
"""Bytes of an uncompressed ICC profile in a PNG, which is Pillow's limit. A larger profile is dropped."""
MAX_GIF_BLOCKS = 20_000
"""Comment and extension blocks before the first image of a GIF."""
MAX_WEBP_CHUNKS = 100_000
MAX_BOX_ENTRIES = 10_000
"""Items, properties or references of an AVIF or HEIC file; phones write a few hundred."""
MAX_BOXES = 20_000
MAX_TIFF_PIECES = 200_000
"""Strips or tiles."""
MAX_TIFF_TILE = 1 << 24
"""Pixels of a tile. In larger images, a tile may have up to 4 times the pixels of the image."""
MAX_TIFF_NUMBERS = 4 << 20
"""Bytes of the numbers of a tag, except for strips and tiles. Pillow unpacks them to a Python tuple."""
MAX_RLE_PIXELS = 16_000_000
MAX_RLE_BYTES = 4 << 20
"""Pixel and byte limits of a run-length encoded BMP, which Pillow decodes in Python."""

_EXIF = b"Exif\0\0"
_BYTES = (1, 2, 6, 7)  # TIFF types that are read as raw bytes
_PIECES = (file_headers.STRIP_OFFSETS, file_headers.STRIP_BYTES, file_headers.TILE_OFFSETS, file_headers.TILE_BYTES)
_JPEG_IN_TIFF = (6, 7)
# Markers without a segment, according to Pillow.
_BARE = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco", b"dinf"}
_TABLES = {b"stsz", b"stts", b"stsc", b"stco", b"co64", b"stss", b"ctts", b"elst"}


class StructureError(Exception):
    """The file exceeds a structural limit; the message names it."""


def checked(data: bytes, name: str, max_pixels: int) -> bytes:
    """Check the structure of a file and remove metadata that would be expensive to parse.

    Args:
        data: The whole file.
        name: Its format in `image_formats.FORMATS`; empty if unknown.
        max_pixels: Maximum number of pixels. It is checked again after the decoder has read the header.

    Returns:
        The bytes for the decoder.

    Raises:
        StructureError: The file exceeds a limit.
    """
    if name == "JPEG":
        return _jpeg(data)
    if name == "PNG":
        return _png(data, max_pixels)
    check = {
        "GIF": _gif,
        "WEBP": _webp,
        "AVIF": _boxed,
        "HEIC": _boxed,
        "TIFF": _tiff,
        "BMP": _bitmap,
        "DIB": _bitmap,
        "PPM": _netpbm,
    }.get(name)
    if check:
        check(data, max_pixels)
    return data


def _refuse_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise StructureError(f"{width} x {height} pixels are more than the limit of {max_pixels:,}")


def _jpeg(data: bytes) -> bytes:
    """Check the segments up to the first scan, following Pillow's parser; damaged EXIF is masked, not rejected."""
    if too_many_scans(data):
        raise StructureError(TOO_MANY)
    place, steps, junk = 2, 0, 0
    blocks: list[tuple[int, int]] = []
    while place + 1 < len(data):
        steps += 1
        if steps > MAX_JPEG_SEGMENTS:
            raise StructureError(f"damaged (more than {MAX_JPEG_SEGMENTS:,} segments)")
        if data[place] != 0xFF:
            following = data.find(b"\xff", place)
            junk += (following if following >= 0 else len(data)) - place
            if junk > MAX_JPEG_JUNK:
                raise StructureError("damaged (data between its segments)")
            place = following if following >= 0 else len(data)
            continue
        kind = data[place + 1]
        if kind == 0xDA:
            break
        if kind in (0x00, 0x01, 0xFF) or kind in _BARE:
            place += 1 if kind == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == 0xE1 and data[place + 4 : place + 10] == _EXIF:
            blocks.append((place + 4, place + 2 + length))
        place += 2 + max(2, length)
    # Readers concatenate the EXIF blocks; only the first one starts with a TIFF header.
    if blocks and file_headers.overlaps(b"".join(data[start + 6 : end] for start, end in blocks)):
        masked = bytearray(data)
        for start, _ in blocks:
            masked[start : start + 4] = b"none"
        return bytes(masked)
    return data


def _png(data: bytes, max_pixels: int) -> bytes:
    dropped: list[tuple[int, int]] = []
    profiles = 0
    for number, (name, start, length) in enumerate(file_headers.chunks(data)):
        if number >= MAX_PNG_CHUNKS:
            raise StructureError(f"damaged (more than {MAX_PNG_CHUNKS:,} chunks)")
        if name == b"IHDR" and length >= 8:
            width, height = (int.from_bytes(data[start + i : start + i + 4], "big") for i in (0, 4))
            _refuse_pixels(width, height, max_pixels)
        elif name == b"iCCP":
            profiles += 1
            if profiles > 1 or not _is_profile(data[start : start + length]):
                dropped.append((start - 8, start + length + 4))
        elif name == b"IEND":
            break
    if not dropped:
        return data
    kept, place = [], 0
    for start, end in dropped:
        kept.append(data[place:start])
        place = end
    return b"".join((*kept, data[place:]))


def _is_profile(body: bytes) -> bool:
    """Whether an iCCP chunk (name, method, deflate data) holds a profile of at most `MAX_PNG_PROFILE` bytes."""
    end = body.find(b"\0", 0, 80)
    if end < 0 or body[end + 1 : end + 2] != b"\0":
        return False
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(body[end + 2 :], MAX_PNG_PROFILE)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _gif(data: bytes, max_pixels: int) -> None:
    if len(data) < 13:
        return
    _refuse_pixels(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"), max_pixels)
    place = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    blocks = 0
    while place + 1 < len(data) and data[place] != 0x2C:
        blocks += 1
        if data[place] == 0x21:
            place += 2
            while place < len(data) and data[place]:
                place += 1 + data[place]
                blocks += 1
                if blocks > MAX_GIF_BLOCKS:
                    break
        if blocks > MAX_GIF_BLOCKS:
            raise StructureError(f"damaged (more than {MAX_GIF_BLOCKS:,} blocks before its first image)")
        place += 1
    if place + 9 <= len(data):
        left, top, width, height = (int.from_bytes(data[place + i : place + i + 2], "little") for i in (1, 3, 5, 7))
        _refuse_pixels(left + width, top + height, max_pixels)


def _webp(data: bytes, max_pixels: int) -> None:
    place, chunks = 12, 0
    while place + 8 <= len(data):
        chunks += 1
        if chunks > MAX_WEBP_CHUNKS:
            raise StructureError(f"damaged (more than {MAX_WEBP_CHUNKS:,} chunks)")
        name, body = data[place : place + 4], data[place + 8 : place + 18]
        if name == b"VP8X" and len(body) == 10:
            _refuse_pixels(_number(body, 4, 3) + 1, _number(body, 7, 3) + 1, max_pixels)
        elif name == b"VP8L" and len(body) >= 5:
            bits = int.from_bytes(body[1:5], "little")
            _refuse_pixels((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, max_pixels)
        elif name == b"VP8 " and len(body) == 10:
            _refuse_pixels(_number(body, 6, 2) & 0x3FFF, _number(body, 8, 2) & 0x3FFF, max_pixels)
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + (length & 1)


def _number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width], "little")


def _boxes(data: bytes, start: int, end: int, budget: list[int]) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the content of each ISO box in a range.

    `budget[0]` is the number of boxes left; it is decremented for each box.
    """
    place = start
    while place + 8 <= end:
        budget[0] -= 1
        if budget[0] < 0:
            raise StructureError(f"damaged (more than {MAX_BOXES:,} boxes)")
        size, name, head = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        last = end if size == 0 else min(end, place + size)
        if last < place + head:
            return
        yield name, place + head, last
        place = last


def _boxed(data: bytes, max_pixels: int) -> None:
    """Check an AVIF or HEIC file: number of items, properties and samples, size of each item, and no overlays."""
    budget = [MAX_BOXES]
    waiting = [(0, len(data))]
    while waiting:
        for name, start, end in _boxes(data, *waiting.pop(), budget):
            if name == b"meta":
                waiting.append((start + 4, end))
            elif name in _CONTAINERS:
                waiting.append((start, end))
            elif name == b"ispe" and end - start >= 12:
                width, height = (int.from_bytes(data[start + i : start + i + 4], "big") for i in (4, 8))
                _refuse_pixels(width, height, max_pixels)
            elif name in (b"iinf", b"iloc", b"ipma"):
                _count_items(data, name, start)
                if name == b"iinf":
                    _refuse_overlays(data, start, end, budget)
            elif name == b"iref":
                for _, at, last in _boxes(data, start + 4, end, budget):
                    _refuse_entries((last - at) // 2)
            elif name in _TABLES:
                at = start + (8 if name == b"stsz" else 4)
                _refuse_entries(int.from_bytes(data[at : at + 4], "big"), 1_000_000)


def _count_items(data: bytes, name: bytes, start: int) -> None:
    version = data[start] if start < len(data) else 0
    if name == b"iinf":
        at, width = start + 4, 4 if version else 2
    elif name == b"iloc":
        at, width = start + 6, 4 if version > 1 else 2
        _count_extents(data, start, version, int.from_bytes(data[at : at + width], "big"))
    else:
        at, width = start + 4, 4
    _refuse_entries(int.from_bytes(data[at : at + width], "big"))


def _count_extents(data: bytes, start: int, version: int, items: int) -> None:
    """Check the number of extents of an `iloc` box; fields of zero width allow any number of them in a few bytes."""
    _refuse_entries(items)
    sizes = int.from_bytes(data[start + 4 : start + 6], "big")
    offset, length, base = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index = sizes & 15 if version else 0
    place, total = start + (10 if version > 1 else 8), 0
    for _ in range(items):
        place += (4 if version > 1 else 2) + (2 if version else 0) + 2 + base
        extents = int.from_bytes(data[place : place + 2], "big")
        total += extents
        _refuse_entries(total)
        place += 2 + extents * (offset + length + index)


def _refuse_overlays(data: bytes, start: int, end: int, budget: list[int]) -> None:
    first = start + (8 if start < end and data[start] else 6)
    for name, at, last in _boxes(data, first, end, budget):
        # An overlay decodes any number of other items at full size.
        if name == b"infe" and b"iovl" in data[at : min(last, at + 16)]:
            raise StructureError("an overlay of several images, which is not read here")


def _refuse_entries(count: int, most: int = MAX_BOX_ENTRIES) -> None:
    if count > most:
        raise StructureError(f"damaged (a table of {count:,} entries)")


def _tiff(data: bytes, max_pixels: int) -> None:
    found = next(file_headers.directories(data), None)
    if found is None:
        return
    if file_headers.overlaps(data):
        raise StructureError("damaged (its tags overlap, or are too many)")
    for directory in file_headers.directories(data):
        for entry in directory.entries.values():
            if entry.kind not in _BYTES and entry.tag not in _PIECES and entry.size > MAX_TIFF_NUMBERS:
                raise StructureError(f"damaged (tag {entry.tag} holds {entry.count:,} numbers)")
    width, height = found.integer(file_headers.WIDTH, 0), found.integer(file_headers.LENGTH, 0)
    if width <= 0 or height <= 0:
        return
    _refuse_pixels(width, height, max_pixels)
    planes = found.integer(file_headers.SAMPLES, 1) if found.integer(file_headers.PLANAR, 1) == 2 else 1
    if file_headers.TILE_WIDTH in found.entries or file_headers.TILE_OFFSETS in found.entries:
        wide, high = found.integer(file_headers.TILE_WIDTH, width), found.integer(file_headers.TILE_LENGTH, height)
        if wide <= 0 or high <= 0 or wide * high > max(4 * width * height, MAX_TIFF_TILE):
            raise StructureError(f"damaged (tiles of {wide} x {high} pixels in an image of {width} x {height})")
        expected, tags = (
            -(-width // wide) * -(-height // high) * planes,
            (file_headers.TILE_OFFSETS, file_headers.TILE_BYTES),
        )
    else:
        rows = found.integer(file_headers.ROWS_PER_STRIP, height)
        expected, tags = -(-height // max(rows, 1)) * planes, (file_headers.STRIP_OFFSETS, file_headers.STRIP_BYTES)
    count = max((found.entries[tag].count for tag in tags if tag in found.entries), default=0)
    if count > max(expected, 1024) or max(count, expected) > MAX_TIFF_PIECES:
        raise StructureError(f"damaged ({count:,} strips or tiles, {expected:,} expected)")
    # Without sizes, libtiff assumes that each piece extends to the next one.
    offsets, sizes = (np.array(found.values(tag, MAX_TIFF_PIECES), np.float64) for tag in tags)
    if sizes.sum() > 2 * len(data) + (1 << 20):
        raise StructureError("damaged (its strips or tiles overlap)")
    if found.integer(file_headers.COMPRESSION, 1) in _JPEG_IN_TIFF and data.count(b"\xff\xda") > SCANS:
        if len(sizes) < len(offsets):
            raise StructureError("damaged (strips or tiles without a size)")
        for at, size in zip(offsets.astype(np.int64).tolist(), sizes.astype(np.int64).tolist(), strict=False):
            piece = data[max(at, 0) : max(at + size, 0)]
            if piece.count(b"\xff\xda") > SCANS and count_jpeg_scans(piece) > SCANS:
                raise StructureError(TOO_MANY)


def _bitmap(data: bytes, max_pixels: int) -> None:
    head = 14 if data[:2] == b"BM" else 0
    if int.from_bytes(data[head : head + 4], "little") < 40:
        return  # OS/2 header: 16-bit sizes, no compression
    width, height = (int.from_bytes(data[head + i : head + i + 4], "little", signed=True) for i in (4, 8))
    _refuse_pixels(abs(width), abs(height), max_pixels)
    encoded = _number(data, head + 16, 4) in (1, 2)
    if encoded and (abs(width * height) > MAX_RLE_PIXELS or len(data) > MAX_RLE_BYTES):
        raise StructureError(
            f"a run-length encoded BMP of more than {MAX_RLE_PIXELS // 1_000_000} megapixels or "
            f"{MAX_RLE_BYTES >> 20} MiB: save it as PNG"
        )


def _netpbm(data: bytes, max_pixels: int) -> None:
    try:
        head = netpbm.header(data)
    except netpbm.NetpbmError as error:
        raise StructureError(f"damaged ({error})") from None
    _refuse_pixels(head.width, head.height, max_pixels)
