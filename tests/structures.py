"""Image files written by hand: small ones whose structure would cost a decoder minutes or gigabytes."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from hostile import encoded

Tag = tuple[int, int, int, "int | bytes"]


def tiff(tags: list[Tag], more: bytes = b"", order: str = "<") -> bytes:
    """A TIFF of one directory. tags: (tag, type, count, value); bytes are laid behind it. more: appended at the end.

    A value of -1 is the offset of `more`.
    """
    far, entries = b"", b""
    place = 8 + 2 + 12 * len(tags) + 4
    length = sum(len(v) + len(v) % 2 for *_, v in tags if isinstance(v, bytes))
    for tag, kind, count, value in sorted(tags, key=lambda t: t[0]):
        if isinstance(value, bytes):
            value_or_offset = place + len(far)
            far += value + bytes(len(value) % 2)
        else:
            value_or_offset = place + length if value == -1 else value
        entries += struct.pack(f"{order}HHII", tag, kind, count & 0xFFFFFFFF, value_or_offset & 0xFFFFFFFF)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + far + more


def strips(width: int, height: int, count: int, compression: int = 1, rows: int = 1, size: int = 64) -> bytes:
    """A gray TIFF that says it has `count` strips, all at its start."""
    return tiff(
        [
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 1, 8),
            (259, 3, 1, compression),
            (262, 3, 1, 1),
            (273, 4, count, struct.pack("<I", 8) * count),
            (277, 3, 1, 1),
            (278, 4, 1, rows),
            (279, 4, count, struct.pack("<I", size) * count),
        ]
    )


def tile(width: int, height: int, wide: int, high: int) -> bytes:
    """A gray TIFF of one deflated tile of zeros; its pixels are packed for real up to 64 megapixels."""
    packer = zlib.compressobj(9)
    left, parts = min(wide * high, 64_000_000), []
    while left > 0:
        parts.append(packer.compress(bytes(min(left, 1 << 20))))
        left -= 1 << 20
    body = b"".join(parts) + packer.flush()
    tags: list[Tag] = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)),
        *((322, 4, 1, wide), (323, 4, 1, high), (324, 4, 1, -1), (325, 4, 1, len(body))),
    ]
    return tiff(tags, body)


def overlapping(entries: int, size: int) -> bytes:
    """An EXIF block whose tags all point to the same bytes."""
    start = 8 + 2 + 12 * entries + 4
    rows = b"".join(struct.pack("<HHII", 1000 + i, 7, size, start) for i in range(entries))
    return b"II*\0" + struct.pack("<IH", 8, entries) + rows + bytes(4) + bytes(size)


def chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(middle: bytes, width: int = 8, height: int = 8) -> bytes:
    """A gray PNG with `middle` between its header and its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((width + 1) * min(height, 1000))))
    return b"\x89PNG\r\n\x1a\n" + head + middle + pixels + chunk(b"IEND", b"")


def jpeg_with(middle: bytes) -> bytes:
    """A JPEG with `middle` behind its first marker, and without the JFIF segment."""
    whole = encoded(Image.new("RGB", (16, 16), (200, 30, 60)), "JPEG")
    return whole[:2] + middle + whole[20:]


def segment(kind: int, body: bytes) -> bytes:
    """A JPEG segment."""
    return bytes((0xFF, kind)) + struct.pack(">H", len(body) + 2) + body


def exif_segments(block: bytes) -> bytes:
    """An EXIF block of any length, in as many segments as it needs."""
    pieces = [block[i : i + 65_000] for i in range(0, len(block), 65_000)]
    return b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces)


def gif_with(middle: bytes, width: int = 16, height: int = 16) -> bytes:
    """A GIF with `middle` before its first image, and this size in its header."""
    file = io.BytesIO()
    Image.new("P", (16, 16)).save(file, "GIF")
    whole = file.getvalue()
    at = whole.index(b",", 13)
    return whole[:6] + struct.pack("<HH", width, height) + whole[10:at] + middle + whole[at:]


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of these chunks."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def box(name: bytes, body: bytes, full: bool = False) -> bytes:
    """An ISO box; full: with version and flags 0."""
    body = bytes(4) + body if full else body
    return struct.pack(">I", len(body) + 8) + name + body


def boxed(brand: bytes, *meta: bytes) -> bytes:
    """An AVIF or HEIC file whose `meta` box holds these boxes."""
    handler = box(b"hdlr", bytes(4) + b"pict" + bytes(13), full=True)
    return box(b"ftyp", brand + bytes(4) + b"mif1" + brand) + box(b"meta", handler + b"".join(meta), full=True)


def bmp(width: int, height: int, compression: int, body: bytes) -> bytes:
    """An 8-bit BMP."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + bytes(1024) + body
