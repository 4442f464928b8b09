"""Thumbnails as data URIs, so that a page with images is a single file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unfreeze.core.errors import PhotoError
from unfreeze.data.decode import decode_image, read_bytes
from unfreeze.data.image_formats import format_of_refusal

if TYPE_CHECKING:
    from PIL import Image

SIDE = 160
QUALITY = 75
HEAVY = 12_000  # bytes; larger thumbnails (noise, grass) are compressed more, so that a page with 120 stays small
MOST_PIXELS = 89_000_000  # larger images would take too much memory


@dataclass(frozen=True)
class Thumbnail:
    """One image in a page.

    Attributes:
        path: Path of the image.
        source: Data URI; empty if there is a `problem`.
        width: In pixels.
        height: In pixels.
        problem: Why there is no thumbnail; empty otherwise.
    """

    path: str
    source: str
    width: int
    height: int
    problem: str = ""


def thumbnails(root: Path, paths: Iterable[str], *, side: int = SIDE, workers: int = 0) -> dict[str, Thumbnail]:
    """Make a thumbnail of every path (relative to `root`), by path. Each is decoded once; errors are never raised."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(workers or min(8, (os.cpu_count() or 1) + 1)) as pool:
        made = pool.map(lambda path: _thumbnail(root, path, side), wanted)
        return dict(zip(wanted, made, strict=True))


def scaled_jpeg(file: Path, side: int) -> bytes:
    """Encode an upright image as a JPEG with at most `side` pixels on the longer side.

    Raises:
        PhotoError: The image cannot be read.
    """
    return _jpeg(file, side, heavy=None)[0]


def _thumbnail(root: Path, path: str, side: int) -> Thumbnail:
    try:
        data, width, height = _jpeg(root / path, side)
    except PhotoError as error:
        return Thumbnail(path, "", side, side, _problem(error.reason))
    return Thumbnail(path, "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii"), width, height)


def _problem(reason: str) -> str:
    """Short text for display in place of the thumbnail."""
    if reason == "no such file":
        return "no longer there"
    if " pixels " in reason:
        return "too large to show"
    return reason if format_of_refusal(reason) else "cannot be decoded"


def _jpeg(file: Path, side: int, heavy: int | None = HEAVY) -> tuple[bytes, int, int]:
    from PIL import Image

    decoded = decode_image(read_bytes(file), side, MOST_PIXELS, file)
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((side, side), reducing_gap=2.0)
    data = _encoded(image, QUALITY)
    light = heavy is None or len(data) <= heavy
    return (data if light else _encoded(image, QUALITY // 2)), image.width, image.height


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
