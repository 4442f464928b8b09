"""In-memory images under names that `decode.read_bytes` reads like files.

Images are held as the bytes of an image file: encoded images are kept unchanged, and pixels are stored as an
uncompressed TIFF. All images therefore share one decoding path, and equal pixels give equal predictions.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from unfreeze.core.errors import SourceError, wrong_type

ACCEPTED = (
    "a path, a PIL image, a NumPy array of uint8 (H x W, H x W x 3 or H x W x 4), bytes, a file opened in binary mode, "
    "a DataFrame with a column 'path', or a list, tuple or generator of these"
)
_ORIENTATION = 0x0112
# Modes that TIFF stores without conversion; all others are converted to RGB or RGBA first.
_TIFF_MODES = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I", "F")
_held: dict[str, bytes] = {}
_one = threading.Lock()


def name_of(position: int) -> str:
    """Return the name of the in-memory image at this position of the input, as used in tables and messages."""
    return f"<image {position}>"


@contextlib.contextmanager
def held(images: Mapping[str, bytes]) -> Iterator[None]:
    """Make images readable under their names within a `with` block.

    Only one thread at a time can hold images, because all calls use the same names; other threads wait.

    Args:
        images: Bytes of an image file by name.
    """
    if not images:
        yield
        return
    with _one:
        _held.update(images)
        try:
            yield
        finally:
            _held.clear()


def held_bytes(path: Path) -> bytes | None:
    """Return the bytes of the held image with this name; None for any other path."""
    return _held.get(str(path)) if _held else None


def any_held() -> bool:
    """Whether any images are held; other processes cannot read them."""
    return bool(_held)


def encoded(image: Any, argument: str, most: int) -> bytes | None:
    """Encode an in-memory image as the bytes of an image file.

    Args:
        image: bytes, bytearray, memoryview, a file opened in binary mode (read from its start if it is seekable), a
            PIL image, or a NumPy array of dtype uint8 and shape H x W, H x W x 1, H x W x 3 or H x W x 4.
        argument: Name of the argument in errors.
        most: Maximum number of bytes of a file. One more byte is read, so that `decode.read_bytes` can detect files
            that are too large.

    Returns:
        The bytes; None if `image` has another type.

    Raises:
        ArgumentTypeError: The array is not of dtype uint8, or the file is opened in text mode.
        SourceError: The array has another shape, the PIL image cannot be loaded, or the file cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _of_pil(image, argument)
    if isinstance(image, np.ndarray):
        return _tiff(Image.fromarray(_pixels(image, argument)))
    if callable(getattr(image, "read", None)):
        return _of_file(image, argument, most)
    return None


def _of_file(file: Any, argument: str, most: int) -> bytes:
    binary = "a file opened in binary mode: open(path, 'rb')"
    if isinstance(file, io.TextIOBase):
        raise wrong_type(argument, file, binary)
    try:
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)
        data = bytearray()
        while len(data) <= most:  # an unbuffered file may return fewer bytes than requested
            part = file.read(most + 1 - len(data))
            if not isinstance(part, bytes | bytearray | memoryview):
                raise wrong_type(argument, file, binary)
            if not part:
                break
            data += part
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise SourceError(f"{argument}: the file cannot be read ({error}). Give it open, in binary mode.") from None
    return bytes(data)


def _of_pil(image: Image.Image, argument: str) -> bytes:
    """Bytes of the JPEG file that the image was opened from, if the image is unmodified; else its pixels as a TIFF.

    JPEGs are decoded at a reduced size if possible, so pixels decoded at full size would give slightly different
    features than the file.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format in ("JPEG", "MPO"):
        data = _opened_from(image)
        if data is not None and _same(image, data):
            return data
    try:
        image.load()
    except Exception as error:  # Pillow's decoders can raise almost any exception for damaged files
        raise SourceError(f"{argument}: the PIL image cannot be loaded ({error}). Give the path of its file.") from None
    if not image.width or not image.height:
        raise SourceError(f"{argument}: the PIL image has no pixels. Give one of at least 1 x 1.")
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    if image.mode == "La":  # the only conversion that Pillow supports for gray with premultiplied alpha
        image = image.convert("LA")
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode not in _TIFF_MODES:
        image = image.convert("RGB")
    return _tiff(image, profile, orientation)


def _opened_from(image: ImageFile.ImageFile) -> bytes | None:
    """Bytes of the file that Pillow opened; None if it is closed, missing or not seekable."""
    try:
        if image.fp is not None and image.tile:
            place = image.fp.tell()
            image.fp.seek(0)
            data = image.fp.read()
            image.fp.seek(place)
            return data
        return Path(os.fsdecode(image.filename)).read_bytes() if image.filename else None
    except (OSError, ValueError, AttributeError):
        return None


def _same(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether the bytes decode to the image, which may have been modified, reduced or replaced on the disk since."""
    try:
        with Image.open(io.BytesIO(data)) as other:
            if (image.size, image.mode, image.tell()) != (other.size, other.mode, other.tell()):
                return False
            unread = bool(image.tile)
            return unread or image.tobytes() == other.tobytes()
    except Exception:  # Pillow's decoders can raise almost any exception for damaged files
        return False


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's EXIF parser can raise almost any exception
        return 1


def _tiff(image: Image.Image, profile: bytes | None = None, orientation: int = 1) -> bytes:
    buffer, tags = io.BytesIO(), Image.Exif()
    if 1 < orientation <= 8:
        tags[_ORIENTATION] = orientation
    image.save(buffer, "TIFF", compression="raw", icc_profile=profile, exif=tags)
    return buffer.getvalue()


def _pixels(array: NDArray[Any], argument: str) -> NDArray[np.uint8]:
    """Validate an array and return it in a layout that Pillow accepts: gray (H, W), RGB or RGBA."""
    if array.dtype != np.uint8:
        raise wrong_type(argument, array, "uint8 pixels from 0 to 255; convert them, as (255 * x).astype('uint8')")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        shape = " x ".join(map(str, array.shape)) or "no dimension"
        raise SourceError(
            f"{argument}: an array of {shape}; an image is H x W, H x W x 3 (RGB) or H x W x 4 (RGBA). Move the axes, "
            "as x.transpose(1, 2, 0), or give several images as a list."
        )
    return np.ascontiguousarray(array)
