"""One photo's bytes -> upright RGB pixels, by the fastest way that is right, within limits."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unfreeze.core.errors import PhotoError
from unfreeze.data.scans import TOO_MANY, too_many_scans
from unfreeze.data.shards import has_member, read_member, split_path

Pixels = NDArray[np.uint8]
# Left, top, right, bottom as shares of the upright photo's width and height.
Box = tuple[float, float, float, float]

# Formats whose decoders are plain libraries. EPS, PDF and their like start interpreters: never from here.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "TGA", "AVIF")
MAX_PIXELS = 178_000_000
MAX_BYTES = 1 << 29
NO_MEMORY = "not enough memory to decode it"
# Pillow takes some 10 bytes a pixel for a moment: a photo of more pixels waits for others of that kind, so that a few
# small files cannot fill the memory together. JPEGs are not meant: they are decoded small.
_LARGE = 30_000_000
_alone = threading.Lock()
_ORIENTATION = 0x0112
# libjpeg may shrink a photo to this many times the size that is needed: nearer, features drift from those of a full
# decode (mean cosine .998 instead of .999) and ordinary photos gain no speed.
_SPARE = 1.5
_TURNED = (5, 6, 7, 8)
_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# Our own limit below is checked before a pixel is decoded; Pillow's warning at half of it would only be noise, and
# so are its warnings about odd metadata: what counts is whether the pixels come.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or of one inside a .tar (see `shards.py`).

    PhotoError if it is absent, unreadable, empty, or larger than 512 MiB.
    """
    try:
        if inside := split_path(path):
            data = read_member(*inside, MAX_BYTES)
        elif not path.is_file():
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


def is_there(path: Path) -> bool:
    """Whether there is a file of this path, on the disk or inside a .tar."""
    inside = split_path(path)
    return has_member(*inside) if inside else path.is_file()


def decode(data: bytes, short_side: int = 0, max_pixels: int = MAX_PIXELS, path: object = "photo") -> Pixels:
    """Upright RGB pixels, uint8 (height, width, 3), of an image file's bytes.

    EXIF orientation is applied; palettes are resolved, transparency is laid on white, 16-bit and float
    values are brought to 8 bit, CMYK is converted, of an animation the first frame is taken.
    short_side: if positive, a JPEG may be decoded smaller by libjpeg, at least this many pixels on its
        short side. Decoding a large photo whole only to shrink it costs several times as much.
    Raises PhotoError with the reason if the bytes are no image, damaged, cut off, or hold more than
    `max_pixels` pixels (a decompression bomb is refused before it is unpacked).
    """
    return decode_sized(data, short_side, max_pixels, path)[0]


def decode_sized(
    data: bytes, short_side: int = 0, max_pixels: int = MAX_PIXELS, path: object = "photo"
) -> tuple[Pixels, tuple[int, int]]:
    """As `decode`, with the upright photo's full width and height, however small its pixels were decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise PhotoError(path, f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
            if too_many_scans(data):
                raise PhotoError(path, TOO_MANY)
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                pixels = _fast_jpeg(data, short_side)
                if pixels is not None:
                    orientation = _orientation(image)
                    size = (height, width) if orientation in _TURNED else (width, height)
                    return _upright(pixels, orientation), size
            with _alone if width * height > _LARGE else contextlib.nullcontext():
                image.load()
                # Asked after loading: Pillow turns a TIFF itself, and then takes the tag away.
                pixels = _upright(np.asarray(_rgb(image)), _orientation(image))
            return pixels, (pixels.shape[1], pixels.shape[0])
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(path, "not an image in a known format") from None
    except Image.DecompressionBombError:
        raise PhotoError(path, "more pixels than can be opened safely (a decompression bomb)") from None
    except MemoryError:
        raise PhotoError(path, NO_MEMORY) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise PhotoError(path, f"damaged ({str(error).strip() or type(error).__name__})") from None


def square(pixels: Pixels, size: int, crop: float, resample: str = "bicubic", squash: bool = False) -> Pixels:
    """The centre square, side `crop` times the short side, resized to uint8 (size, size, 3).

    resample: 'bicubic' or 'bilinear', with antialiasing (Pillow's), which is what timm's and torchvision's
    resize-then-crop compute, in one step. squash: the centre `crop` of both sides, pressed into the square.
    """
    height, width = pixels.shape[:2]
    wide, high = (width * crop, height * crop) if squash else (min(height, width) * crop,) * 2
    left, top = (width - wide) / 2, (height - high) / 2
    image = Image.fromarray(pixels).resize((size, size), _RESAMPLE[resample], box=(left, top, left + wide, top + high))
    return np.asarray(image)


def load_square(
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
    """`decode` then `square`: the one way from a file to a network's input, in training and prediction.

    box: what to show instead of the centre, within the photo and square in its pixels (see `FaceBoxes.squares`);
    `crop` and `squash` then have no say. gray: the square as `grayed` shows it.
    """
    shown = _cut(data, size, crop, max_pixels, path, resample, squash, box)
    return grayed(shown) if gray else shown


def grayed(pixels: Pixels) -> Pixels:
    """uint8 (..., 3): each pixel's luminance on all three channels, (19595 R + 38470 G + 7471 B + 2^15) >> 16.

    These are ITU-R BT.601's weights as whole numbers of 1/65536, exactly what Pillow's `convert("L")` computes.
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
        return square(decode(data, math.ceil(_SPARE * size / crop), max_pixels, path), size, crop, resample, squash)
    left, top, right, bottom = box
    # The larger of the two shares is the one along the short side.
    share = max(right - left, bottom - top)
    pixels = decode(data, math.ceil(_SPARE * size / share), max_pixels, path)
    height, width = pixels.shape[:2]
    edges = (left * width, top * height, min(right, 1.0) * width, min(bottom, 1.0) * height)
    return np.asarray(Image.fromarray(pixels).resize((size, size), _RESAMPLE[resample], box=edges))


def _fast_jpeg(data: bytes, short_side: int) -> Pixels | None:
    """libjpeg-turbo's pixels; None leaves the file to Pillow, the judge of what is damaged."""
    try:
        return simplejpeg.decode_jpeg(data, min_height=short_side, min_width=short_side, strict=True)
    except ValueError:
        return None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where the metadata is damaged, which says nothing about the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's EXIF parser raises nearly anything
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """EXIF orientations 1 to 8 (EXIF 2.3, tag 0x0112) undone."""
    if orientation in _TURNED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image) -> Image.Image:
    """A loaded Pillow image as RGB. Values wider than 8 bit are scaled, transparency is laid on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bit(np.asarray(image, np.float64), unit=image.mode == "F"))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(values: NDArray[np.float64], unit: bool) -> Pixels:
    """32-bit values to 8 bit, by the smallest usual range that holds them: 1 (if `unit`), 255 or 65535."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    full = 1.0 if unit and 0 < top <= 1 else 255.0 if top <= 255 else max(65535.0, top)
    return (np.clip(values, 0, full) * (255.0 / full)).astype(np.uint8)
