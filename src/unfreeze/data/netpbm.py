"""NumPy-based decoder for PBM, PGM, PPM and PFM files (netpbm.sourceforge.net/doc).

Pillow reads text formats and unusual maxvals byte by byte in Python. This takes minutes for a file of a few megabytes
and holds the GIL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.data.srgb import Range, extent, range_of, to_8_bit

MAX_HEADER_BYTES = 64 << 10
MAX_COMMENTS = 10_000
"""Maximum number of comments among the values of a text file; each one is removed separately."""

_SPACE = b" \t\n\v\f\r"
_FIELD = rb"(?:[ \t\n\v\f\r]|#[^\r\n]*[\r\n])+([-0-9.eE+]{1,30})"
_CHANNELS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3, b"Pf": 1, b"PF": 3}


class NetpbmError(Exception):
    """The file is damaged or exceeds a limit; the message gives the reason."""


@dataclass(frozen=True)
class Header:
    """Parsed header of a Netpbm file.

    Attributes:
        kind: Magic number: `P1` to `P6`, `Pf` or `PF`.
        width: Width in pixels.
        height: Height in pixels.
        maxval: Largest value; 1 for bitmaps. For PFM the scale factor, negative if the file is little-endian.
        start: Offset of the end of the header, in bytes.
    """

    kind: bytes
    width: int
    height: int
    maxval: float
    start: int

    @property
    def channels(self) -> int:
        """Number of values per pixel."""
        return _CHANNELS[self.kind]


def header(data: bytes) -> Header:
    """Parse the header, which must be within the first 64 KiB of the file.

    Args:
        data: File content.

    Returns:
        The header.

    Raises:
        NetpbmError: If the header is invalid.
    """
    kind, place = data[:2], 2
    fields: list[bytes] = []
    field = re.compile(_FIELD)
    for _ in range(2 if kind in (b"P1", b"P4") else 3):
        found = field.match(data, place, MAX_HEADER_BYTES)
        if found is None:
            raise NetpbmError("its header cannot be read")
        fields.append(found[1])
        place = found.end()
    try:
        width, height = int(fields[0]), int(fields[1])
        maxval = float(fields[2]) if len(fields) > 2 else 1.0
    except ValueError:
        raise NetpbmError("its header cannot be read") from None
    whole = kind not in (b"Pf", b"PF")
    if not width or not height or not np.isfinite(maxval) or not maxval or (whole and not 0 < maxval < 65536):
        raise NetpbmError("its header cannot be read")
    return Header(kind, width, height, maxval, place)


def pixels(data: bytes, head: Header) -> tuple[NDArray[np.uint8], Range | None]:
    """Decode the pixels.

    Args:
        data: File content.
        head: Header of the file.

    Returns:
        Pixels, uint8 (height, width, 3), and the value range that maps to 0..255. The range is None for 8-bit files.

    Raises:
        NetpbmError: If the data is truncated or invalid.
    """
    if head.kind in (b"Pf", b"PF"):
        values: NDArray[Any] = _floats(data, head)
        low, high = extent(values)
        shown = range_of(low, high, whole=False)
    else:
        values = _bits(data, head) if head.kind == b"P4" else _integers(data, head)
        shown = (0.0, head.maxval)
    found = values if values.dtype == np.uint8 and shown[1] == 255 else to_8_bit(values, shown)
    if head.kind in (b"P1", b"P4"):
        found = 255 - found  # 1 is black
    deep = head.maxval > 255 or head.kind in (b"Pf", b"PF")
    return np.ascontiguousarray(np.broadcast_to(found, (*found.shape[:2], 3))), shown if deep else None


def _integers(data: bytes, head: Header) -> NDArray[Any]:
    shape = (head.height, head.width, head.channels)
    count = head.height * head.width * head.channels
    if head.kind in (b"P5", b"P6"):
        kind = np.dtype(np.uint8 if head.maxval < 256 else ">u2")
        if len(data) - head.start - 1 < count * kind.itemsize:
            raise NetpbmError("cut off")
        return (
            np.frombuffer(data, kind, count, head.start + 1).reshape(shape).astype(kind.newbyteorder("="), copy=False)
        )
    body = data[head.start :]
    if body.count(b"#"):
        if body.count(b"#") > MAX_COMMENTS:
            raise NetpbmError(f"more than {MAX_COMMENTS:,} comments")
        body = re.sub(rb"#[^\r\n]*", b"", body)
    if head.kind == b"P1":  # digits may follow each other without whitespace
        digits = body.translate(None, _SPACE)
        if digits.translate(None, b"01"):
            raise NetpbmError("a value that is not a number")
        if len(digits) < count:
            raise NetpbmError("cut off")
        return (np.frombuffer(digits, np.uint8, count) - ord("0")).reshape(shape)
    if body.translate(None, b"0123456789" + _SPACE):
        raise NetpbmError("a value that is not a number")
    if len(body) < 2 * count - 1:
        raise NetpbmError("cut off")
    out = np.empty(count, np.uint16)
    done = 0
    for piece in _pieces(body):
        numbers = np.fromstring(piece, np.int64, sep=" ")
        some = numbers[: count - done]
        out[done : done + len(some)] = np.clip(some, 0, 65535)
        done += len(some)
        if done == count:
            return out.reshape(shape)
    raise NetpbmError("cut off")


def _pieces(body: bytes, size: int = 1 << 20) -> list[bytes]:
    """Split text at whitespace into pieces of about `size` bytes."""
    found, start = [], 0
    space = re.compile(rb"[ \t\n\v\f\r]")
    while start < len(body):
        at = space.search(body, min(len(body), start + size))
        end = at.start() if at else len(body)
        piece = body[start:end].strip()
        if piece:
            found.append(piece)
        start = max(end, start + 1)
    return found


def _bits(data: bytes, head: Header) -> NDArray[np.uint8]:
    stride = -(-head.width // 8)
    if len(data) - head.start - 1 < stride * head.height:
        raise NetpbmError("cut off")
    rows = np.frombuffer(data, np.uint8, stride * head.height, head.start + 1).reshape(head.height, stride)
    return np.unpackbits(rows, axis=1, count=head.width)[..., None]


def _floats(data: bytes, head: Header) -> NDArray[np.float32]:
    kind = np.dtype("<f4" if head.maxval < 0 else ">f4")
    count = head.width * head.height * head.channels
    if len(data) - head.start - 1 < count * 4:
        raise NetpbmError("cut off")
    values = np.frombuffer(data, kind, count, head.start + 1).reshape(head.height, head.width, head.channels)
    return values[::-1].astype(np.float32)  # rows are stored bottom to top
