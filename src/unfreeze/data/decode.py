"""Image decoding: bytes of an image file to upright sRGB pixels, with limits on size and memory.

JPEGs are decoded by libjpeg-turbo, at a reduced size where that is sufficient; all other formats and unusual JPEGs are
decoded by Pillow. Every file passes the format check (`image_formats`), the structure check (`image_structure`) and the
pixel limit before a decoder unpacks it. `load_crop` is the only preprocessing for networks, in training and prediction.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unfreeze.core.errors import PhotoError
from unfreeze.core.names import on_disk
from unfreeze.core.parallel import Budget
from unfreeze.data import netpbm
from unfreeze.data.file_headers import overlaps
from unfreeze.data.image_formats import FORMATS, damaged, format_of, refusal, unknown
from unfreeze.data.image_structure import StructureError, checked
from unfreeze.data.in_memory import held_bytes
from unfreeze.data.netpbm import NetpbmError
from unfreeze.data.srgb import Range, is_transparent, raw_mode, rgb_pixels, to_srgb
from unfreeze.data.tar_index import has_member, read_member, split_path

Pixels = NDArray[np.uint8]
# Left, top, right, bottom as fractions of the width and height of the upright image.
Box = tuple[float, float, float, float]

DECODER = 2
"""Version of the pixels that `decode` returns. Part of the cache key of everything that is computed from pixels."""

MAX_PIXELS = 178_000_000
MAX_BYTES = 1 << 29
NO_MEMORY = "not enough memory to decode it"
# Peak memory in bytes per pixel for decoder, conversion and result together, measured at 50 megapixels.
_PIXEL_BYTES = {"JPEG": 12, "WEBP": 16, "AVIF": 12, "HEIC": 14}
_OTHER_BYTES = 8
_DEEP_BYTES = 13
_ORIENTATION = 0x0112
# libjpeg may reduce an image to no less than this multiple of the required size. With a smaller factor, features
# deviate more from those of a full decode (mean cosine similarity 0.998 instead of 0.999), and ordinary images are not
# decoded faster.
_SPARE = 1.5
_TURNED = (5, 6, 7, 8)
_GRAY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")
_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# Concurrent decodes that would exceed this budget together wait for each other, so that a few highly compressed files
# cannot exhaust the memory. A single image is never blocked.
_memory = Budget(max(1_200_000_000, psutil.virtual_memory().total // 16))

# `max_pixels` is checked before any pixel is decoded, so Pillow's earlier warning is redundant. Its warnings about
# unusual metadata do not affect the pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_bytes(path: Path) -> bytes:
    """Read the bytes of an image.

    Args:
        path: A file, a member of a .tar archive (see `tar_index`), or the name of an image in memory (see `in_memory`).
            The Unicode normalization form of a file name may differ from that on the disk.

    Returns:
        The encoded bytes.

    Raises:
        PhotoError: The file does not exist, cannot be read, is empty, or is larger than 512 MiB.
    """
    try:
        if (known := held_bytes(path)) is not None:
            data = known
            if len(data) > MAX_BYTES:
                raise PhotoError(path, f"larger than {MAX_BYTES >> 20} MiB")
        elif inside := split_path(path):
            data = read_member(*inside, MAX_BYTES)
        elif not (path := on_disk(path)).is_file():
            raise PhotoError(path, "no such file")
        elif path.stat().st_size > MAX_BYTES:
            raise PhotoError(path, f"larger than {MAX_BYTES >> 20} MiB")
        else:
            data = path.read_bytes()
    except OSError as error:
        raise PhotoError(path, (error.strerror or str(error)).lower()) from None
    if not data:
        raise PhotoError(path, "the file is empty")
    return data


def exists(path: Path) -> bool:
    """Whether the path is an existing file, on the disk or inside a .tar archive."""
    inside = split_path(path)
    return has_member(*inside) if inside else on_disk(path).is_file()


@dataclass(frozen=True)
class DecodedImage:
    """Pixels and header data of one image file.

    Attributes:
        pixels: uint8 (height, width, 3), upright, sRGB. Those of a JPEG may be smaller than `size`.
        size: Full width and height of the upright image.
        format: Name of the format in `image_formats.FORMATS`.
        mode: Color mode of the file: "grey", "colour" or "alpha".
        orientation: EXIF orientation, 1 to 8.
        value_range: The source values that map to 0 and 255, for files with more than 8 bits per channel; else None.
    """

    pixels: Pixels
    size: tuple[int, int]
    format: str
    mode: str
    orientation: int
    value_range: Range | None = None


def decode(data: bytes, short_side: int = 0, max_pixels: int = MAX_PIXELS, path: object = "photo") -> Pixels:
    """Decode an image file to upright sRGB pixels.

    The EXIF orientation is applied, palettes are resolved, transparency is composited onto white, an embedded ICC
    profile and CMYK are converted to sRGB, and values of more than 8 bits are scaled (see `srgb`). Of an animation, the
    first frame is used.

    Args:
        data: Bytes of the image file.
        short_side: If positive, libjpeg may decode a JPEG at a reduced size, with at least this many pixels on the
            short side. Decoding a large image at full size only to shrink it takes several times as long.
        max_pixels: Maximum number of pixels. A decompression bomb is rejected before it is unpacked.
        path: Name of the image in errors.

    Returns:
        uint8 (height, width, 3).

    Raises:
        PhotoError: The bytes are not an image, are damaged or truncated, have a format that cannot be decoded here, or
            have more than `max_pixels` pixels.
    """
    return decode_image(data, short_side, max_pixels, path).pixels


def decode_sized(
    data: bytes, short_side: int = 0, max_pixels: int = MAX_PIXELS, path: object = "photo"
) -> tuple[Pixels, tuple[int, int]]:
    """Decode an image as `decode` does, and return its full size too.

    See `decode` for arguments and errors.

    Returns:
        The pixels, uint8 (height, width, 3), and the width and height of the upright image at full size.
    """
    found = decode_image(data, short_side, max_pixels, path)
    return found.pixels, found.size


def decode_image(
    data: bytes, short_side: int = 0, max_pixels: int = MAX_PIXELS, path: object = "photo"
) -> DecodedImage:
    """Decode an image as `decode` does, and return its header data too.

    See `decode` for arguments and errors. All decoding goes through this function.
    """
    name, data = _checked(data, max_pixels, path)
    try:
        if name == "PPM":
            return _netpbm(data)
        with _opened(data, name, max_pixels, path) as image:
            return _decoded(image, data, short_side)
    except PhotoError:
        raise
    except Exception as error:  # Pillow's decoders can raise almost any exception for damaged files
        raise _photo_error(path, error, name) from None


def image_size(data: bytes, max_pixels: int = MAX_PIXELS, path: object = "photo") -> tuple[int, int]:
    """Read the width and height from the header, without decoding pixels.

    The orientation is not applied. All limits are checked first.

    Args:
        data: Bytes of the image file.
        max_pixels: Maximum number of pixels.
        path: Name of the image in errors.

    Returns:
        Width and height in pixels.

    Raises:
        PhotoError: As in `decode`.
    """
    name, data = _checked(data, max_pixels, path)
    if name == "PPM":
        head = netpbm.header(data)
        return head.width, head.height
    with _opened(data, name, max_pixels, path) as image:
        return image.width, image.height


def _checked(data: bytes, max_pixels: int, path: object) -> tuple[str, bytes]:
    """Format name and bytes of a file whose structure is within all limits; PhotoError otherwise."""
    name = format_of(data)
    if name and (why := refusal(name)):
        raise PhotoError(path, why)
    try:
        return name, checked(data, name, max_pixels)
    except StructureError as error:
        raise PhotoError(path, str(error)) from None


@contextlib.contextmanager
def _opened(data: bytes, name: str, max_pixels: int, path: object) -> Iterator[Image.Image]:
    """Open a Pillow image without decoding its pixels; PhotoError if the header cannot be read or is too large."""
    try:
        # TGA files have no signature, so content without any known signature is tried as TGA.
        image = Image.open(io.BytesIO(data), formats=FORMATS[name or "TGA"].readers)
    except UnidentifiedImageError:
        raise PhotoError(path, damaged(name, "its header cannot be read") if name else unknown(data)) from None
    except Exception as error:
        raise _photo_error(path, error, name) from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise PhotoError(path, f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
        yield image


def _netpbm(data: bytes) -> DecodedImage:
    head = netpbm.header(data)
    with _memory.held(head.width * head.height * _bytes_a_pixel("PPM", "", head.maxval > 255)):
        pixels, value_range = netpbm.pixels(data, head)
    mode = "colour" if head.channels == 3 else "grey"
    return DecodedImage(pixels, (head.width, head.height), "PPM", mode, 1, value_range)


def _photo_error(path: object, error: Exception, name: str) -> PhotoError:
    if isinstance(error, PhotoError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return PhotoError(path, "more pixels than can be opened safely (a decompression bomb)")
    if isinstance(error, NetpbmError):
        return PhotoError(path, f"damaged ({error})")
    if isinstance(error, MemoryError):
        return PhotoError(path, NO_MEMORY)
    return PhotoError(path, damaged(name, str(error).strip() or type(error).__name__))


def _decoded(image: Image.Image, data: bytes, short_side: int) -> DecodedImage:
    form = {"MPO": "JPEG", "HEIF": "HEIC"}.get(str(image.format), str(image.format))
    mode = "alpha" if is_transparent(image) else "grey" if image.mode in _GRAY else "colour"
    width, height = image.size
    raw = raw_mode(image, data)
    needed = width * height
    if form == "JPEG" and not image.info.get("progressive") and 0 < 2 * short_side < min(width, height):
        needed = needed * (2 * short_side) ** 2 // min(width, height) ** 2  # libjpeg decodes at a reduced size
    with _memory.held(needed * _bytes_a_pixel(form, image.mode, bool(raw))):
        if form == "JPEG" and image.mode in ("RGB", "L") and (fast := _fast_jpeg(data, short_side)) is not None:
            orientation = _orientation(image)
            pixels = _upright(_in_srgb(fast, image), orientation)
            size = (height, width) if orientation in _TURNED else (width, height)
            return DecodedImage(pixels, size, form, mode, _stated(orientation))
        # Pillow rotates a TIFF while loading it and then removes the tag. The EXIF chunk of a PNG may follow its
        # pixels, so the orientation of other formats is read after loading.
        stated = _orientation(image) if form == "TIFF" else 0
        image.load()
        orientation = 1 if form == "TIFF" else _orientation(image)
        pixels, value_range = rgb_pixels(image, data, raw)
        pixels = _upright(pixels, orientation)
    size = (pixels.shape[1], pixels.shape[0])
    return DecodedImage(pixels, size, form, mode, _stated(stated or orientation), value_range)


def _bytes_a_pixel(form: str, mode: str, deep: bool) -> int:
    return max(_PIXEL_BYTES.get(form, _OTHER_BYTES), _DEEP_BYTES if deep or mode in ("I", "F") else 0)


def _stated(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _in_srgb(pixels: Pixels, image: Image.Image) -> Pixels:
    """Convert pixels decoded by libjpeg to sRGB, using the ICC profile of `image`."""
    profile = image.info.get("icc_profile")
    if not profile:
        return pixels
    shown = Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if image.mode == "L" else pixels)
    found = to_srgb(shown, profile)
    return pixels if found is shown else np.asarray(found)


def center_crop_resize(
    pixels: Pixels, size: int, crop: float, resample: str = "bicubic", squash: bool = False
) -> Pixels:
    """Resize the center square of an image.

    Equivalent to the resize-then-crop transforms of timm and torchvision, in one step.

    Args:
        pixels: uint8 (height, width, 3).
        size: Side of the result in pixels.
        crop: Side of the square as a fraction of the short side.
        resample: 'bicubic' or 'bilinear', with Pillow's antialiasing.
        squash: Whether to use the center `crop` of both sides instead, resized without keeping the aspect ratio.

    Returns:
        uint8 (size, size, 3).
    """
    height, width = pixels.shape[:2]
    wide, high = (width * crop, height * crop) if squash else (min(height, width) * crop,) * 2
    left, top = (width - wide) / 2, (height - high) / 2
    image = Image.fromarray(pixels).resize((size, size), _RESAMPLE[resample], box=(left, top, left + wide, top + high))
    return np.asarray(image)


def load_crop(
    data: bytes,
    size: int,
    crop: float,
    max_pixels: int = MAX_PIXELS,
    path: object = "photo",
    resample: str = "bicubic",
    squash: bool = False,
    box: Box | None = None,
    gray: bool = False,
) -> Pixels:
    """Decode an image and resize a crop of it to the input size of a network, for training and prediction.

    Args:
        data: Bytes of the image file.
        size: Side of the result in pixels.
        crop: Fraction of the center crop (see `center_crop_resize`).
        max_pixels: Maximum number of pixels of the image.
        path: Name of the image in errors.
        resample: 'bicubic' or 'bilinear'.
        squash: Whether to ignore the aspect ratio (see `center_crop_resize`).
        box: Region to crop instead of the center, within the image and square in its pixels (see `FaceBoxes.squares`).
            `crop` and `squash` are then ignored.
        gray: Whether to convert the result with `to_grayscale`.

    Returns:
        uint8 (size, size, 3).

    Raises:
        PhotoError: As in `decode`.
    """
    shown = _cut(data, size, crop, max_pixels, path, resample, squash, box)
    return to_grayscale(shown) if gray else shown


def to_grayscale(pixels: Pixels) -> Pixels:
    """Replace each pixel by its luma on all three channels.

    The luma is (19595 R + 38470 G + 7471 B + 2^15) >> 16: the ITU-R BT.601 weights in units of 1/65536, identical to
    Pillow's `convert("L")`.

    Args:
        pixels: uint8 (..., 3).

    Returns:
        uint8 (..., 3).
    """
    weights = np.array([19595, 38470, 7471], np.uint32)
    luminance = ((pixels @ weights + (1 << 15)) >> 16).astype(np.uint8)
    return np.repeat(luminance[..., None], 3, axis=-1)


def _cut(
    data: bytes,
    size: int,
    crop: float,
    max_pixels: int,
    path: object,
    resample: str,
    squash: bool,
    box: Box | None,
) -> Pixels:
    if box is None:
        return center_crop_resize(
            decode(data, math.ceil(_SPARE * size / crop), max_pixels, path), size, crop, resample, squash
        )
    left, top, right, bottom = box
    # The box is square in pixels, so its larger fraction is along the short side.
    share = max(right - left, bottom - top)
    pixels = decode(data, math.ceil(_SPARE * size / share), max_pixels, path)
    height, width = pixels.shape[:2]
    edges = (left * width, top * height, min(right, 1.0) * width, min(bottom, 1.0) * height)
    return np.asarray(Image.fromarray(pixels).resize((size, size), _RESAMPLE[resample], box=edges))


def _fast_jpeg(data: bytes, short_side: int) -> Pixels | None:
    """Decode with libjpeg-turbo; None if it rejects the file, which Pillow then decodes or reports as damaged."""
    try:
        return simplejpeg.decode_jpeg(data, min_height=short_side, min_width=short_side, strict=True)
    except ValueError:
        return None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 if the metadata is damaged, since the pixels may still be valid."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and overlaps(exif.removeprefix(b"Exif\0\0")):
        return 1  # parsing it would take gigabytes of memory
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's EXIF parser can raise almost any exception
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate and flip pixels upright according to the EXIF orientation, 1 to 8 (EXIF 2.3, tag 0x0112)."""
    if orientation in _TURNED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
