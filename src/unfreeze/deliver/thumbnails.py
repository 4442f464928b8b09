"""Small pictures inside a page, so that a report shows the photos and still is one file."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unfreeze.core.errors import PhotoError
from unfreeze.data.images import FORMATS, read_bytes
from unfreeze.data.shards import split_path

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112
SIDE = 160
QUALITY = 75
HEAVY = 12_000  # bytes; a thumbnail over this (noise, grass) is pressed harder, so that 120 of them stay small


@dataclass(frozen=True)
class Thumbnail:
    """One photo in a page. `source` is a data URI, or empty when `problem` says why there is none."""

    path: str
    source: str
    width: int
    height: int
    problem: str = ""


def thumbnails(root: Path, paths: Iterable[str], *, side: int = SIDE, workers: int = 0) -> dict[str, Thumbnail]:
    """path -> Thumbnail for every path (relative to `root`); each is decoded once, none ever raises."""
    wanted = list(dict.fromkeys(paths))
    with warnings.catch_warnings():
        _refuse_bombs()
        with ThreadPoolExecutor(workers or min(8, (os.cpu_count() or 1) + 1)) as pool:
            made = pool.map(lambda path: _thumbnail(root, path, side), wanted)
            return dict(zip(wanted, made, strict=True))


def scaled_jpeg(file: Path, side: int) -> bytes:
    """A photo as a JPEG whose longer side has at most `side` pixels, upright. PhotoError says why there is none."""
    from PIL import Image

    try:
        return _jpeg(file, side, heavy=None)[0]
    except FileNotFoundError:
        raise PhotoError(file, "no longer there") from None
    except Image.DecompressionBombError:
        raise PhotoError(file, "too large to show") from None
    except Exception:  # as below: decoders raise nearly anything
        raise PhotoError(file, "cannot be decoded") from None


def _refuse_bombs() -> None:
    # Pillow only warns between one and two times its limit; a thumbnail is not worth that much memory.
    from PIL import Image

    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _thumbnail(root: Path, path: str, side: int) -> Thumbnail:
    from PIL import Image

    try:
        data, width, height = _jpeg(root / path, side)
    except FileNotFoundError:
        return Thumbnail(path, "", side, side, "no longer there")
    except PhotoError as error:
        return Thumbnail(path, "", side, side, error.reason)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Thumbnail(path, "", side, side, "too large to show")
    except Exception:  # decoders raise nearly anything on a damaged file, and a report must outlive it
        return Thumbnail(path, "", side, side, "cannot be decoded")
    return Thumbnail(path, "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii"), width, height)


def _jpeg(file: Path, side: int, heavy: int | None = HEAVY) -> tuple[bytes, int, int]:
    from PIL import Image

    given = io.BytesIO(read_bytes(file)) if split_path(file) else file
    with Image.open(given, formats=FORMATS) as opened:
        opened.draft("RGB", (side * 2, side * 2))  # JPEG only: decode at 1/2, 1/4 or 1/8
        image: Image.Image = opened
        if image.mode in ("P", "PA", "LA", "RGBA"):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        elif image.mode.startswith("I"):
            image = image.convert("I").point(lambda value: value / 256).convert("L")
        image.thumbnail((side, side), reducing_gap=2.0)
        image = _upright(image, opened)
        image = image.convert("RGB")
    data = _encoded(image, QUALITY)
    light = heavy is None or len(data) <= heavy
    return (data if light else _encoded(image, QUALITY // 2)), image.width, image.height


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        image.getexif()[ORIENTATION] = opened.getexif().get(ORIENTATION, 1)  # a converted copy has lost it
        return ImageOps.exif_transpose(image)
    except Exception:  # a photo with damaged EXIF is shown as it lies
        return image


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
