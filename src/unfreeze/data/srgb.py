"""Conversion of loaded Pillow images to 8-bit sRGB: bit depth, ICC profiles, transparency and color modes.

Large images are converted in strips of rows to limit the memory use.

Bit depth: values with more than 8 bits are scaled to 8 bits by one rule for all formats. The value range is, in this
order of priority,

1. the range that the file declares: the maxval of a PPM; the BitsPerSample below 16, or the MaxSampleValue of a TIFF;
   the sBIT chunk of a PNG;
2. the smallest of `RANGES` that contains all values. Float values up to 1 have the range 0 to 1. Negative values have
   signed ranges; see `SIGNED`.

The range is mapped linearly to 0..255 and rounded to the nearest level. Each image is handled on its own, because other
images are not available at prediction time. Two images of a data set can therefore get different ranges, which a data
check reports.

ICC profiles: pixels are converted to sRGB, the color space that backbones are trained on, with Little CMS through
Pillow's ImageCms (perceptual intent, 8 bits). A profile counts as sRGB if it moves no color by more than two levels,
regardless of its name; the pixels are then left unchanged. Profiles that are damaged, too large, or for another color
space than the pixels are ignored.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from unfreeze.data import file_headers
from unfreeze.data.file_headers import significant_bits

Range = tuple[float, float]

RANGES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0, *(float(2**bits - 1) for bits in range(18, 33, 2)))
"""Upper ends of the ranges that start at 0: 8, 10, 12, 14 and 16 bits, then in steps of 2 bits up to 32."""

CT: Range = (-1024.0, 3071.0)
"""Hounsfield units of computed tomography, 12 bits. Values below are padding, values above are metal."""

SIGNED: tuple[Range, ...] = ((-1.0, 1.0), CT, (-32768.0, 32767.0), (-(2.0**31), 2.0**31 - 1))
"""Ranges with negative values, the first one for floats only. The first range that contains all values is used."""

# Resampling overshoots: values may exceed a range by this fraction of it, and are clipped.
_OVER = 0.02
# Scanners pad the area outside of the field of view with -2000 or -3024.
_CT_HOLDS: Range = (-4096.0, 4095.0)
_PIECE = 1 << 20


def range_of(low: float, high: float, whole: bool, declared: float = 0.0) -> Range:
    """Determine the value range of an image.

    Args:
        low: Smallest finite value.
        high: Largest finite value.
        whole: Whether the values are integers.
        declared: Largest possible value according to the file; 0 if not declared. Ignored if a value exceeds it.

    Returns:
        The values that map to 0 and 255.
    """
    top = _ladder(max(high, 0.0), whole)
    if low >= -_OVER * top:
        if declared >= 1 and high <= declared * (1 + _OVER):
            return 0.0, declared
        return 0.0, top
    for least, most in SIGNED[whole:]:
        holds_least, holds_most = _CT_HOLDS if (least, most) == CT else (least, most)
        over = _OVER * (most - least) if not whole else 0.0
        if low >= holds_least - over and high <= holds_most + over:
            return least, most
    return low, high


def step(value: float) -> float:
    """The smallest of `RANGES` that contains a value; the value itself if it exceeds all of them."""
    return next((full for full in RANGES if value <= full), value)


def _ladder(high: float, whole: bool) -> float:
    if not whole and high <= 1 + _OVER:
        return 1.0
    return next((full for full in RANGES if high <= full * (1 + _OVER)), high)


def extent(values: NDArray[np.generic]) -> Range:
    """Smallest and largest finite value; (0, 0) if there is none."""
    if values.dtype.kind != "f":
        return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    low, high = np.inf, -np.inf
    for piece in _pieces(values):
        finite = piece[np.isfinite(piece)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def to_8_bit(values: NDArray[np.generic], shown: Range) -> NDArray[np.uint8]:
    """Scale values to 8 bits.

    Args:
        values: Values of any shape and numeric dtype.
        shown: Value range that maps to 0..255; values outside are clipped.

    Returns:
        Rounded values, uint8 of the same shape. Non-finite values become 0.
    """
    low, high = shown
    scale = 255.0 / (high - low) if high > low else 0.0

    def scaled(some: NDArray[np.generic]) -> NDArray[np.uint8]:
        numbers = some.astype(np.float64)
        if some.dtype.kind == "f":
            numbers = np.where(np.isfinite(numbers), numbers, low)
        return (np.clip((numbers - low) * scale, 0, 255) + 0.5).astype(np.uint8)

    if values.dtype == np.uint16:  # a lookup table is several times faster
        return scaled(np.arange(1 << 16, dtype=np.uint16))[values]
    out = np.empty(values.shape, np.uint8)
    flat = out.reshape(-1)
    start = 0
    for piece in _pieces(values):
        flat[start : start + piece.size] = scaled(piece)
        start += piece.size
    return out


def _pieces(values: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    flat = values.reshape(-1)
    return [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)]


MAX_PROFILE_BYTES = 8 << 20
"""Larger profiles are ignored. Press profiles, the largest in use, take about 3 MB."""

# Maximum difference, in 8-bit levels, for a profile to count as sRGB.
_SAME = 2
_KEPT = 64
_MOST_TAGS = 256
_CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}

Transform: TypeAlias = ImageCms.ImageCmsTransform

_lock = threading.Lock()
_known: OrderedDict[bytes, tuple[str, Transform | None]] = OrderedDict()


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image to sRGB by its embedded profile.

    Args:
        image: Image of mode RGB, L or CMYK. A gray image with an RGB profile is expanded to RGB first.
        profile: Embedded ICC profile, untrusted; None if there is none.

    Returns:
        The image in mode RGB; the input image if the profile has no effect or does not apply.
    """
    mode, transform = _transform(profile) if profile else ("", None)
    if transform is None or (image.mode != mode and (image.mode, mode) != ("L", "RGB")):
        return image
    shown = image if image.mode == mode else image.convert(mode)
    return ImageCms.applyTransform(shown, transform) or image


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image of mode LAB (CIELAB, D50) to sRGB."""
    return ImageCms.applyTransform(image, _lab()) or image


def _transform(profile: bytes) -> tuple[str, Transform | None]:
    """Mode of a profile and its transform to sRGB, cached; None if it has no effect or cannot be used."""
    key = hashlib.blake2b(profile, digest_size=16).digest()
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    found = _built(profile)
    with _lock:
        _known[key] = found
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    return found


def _built(profile: bytes) -> tuple[str, Transform | None]:
    mode = _mode(profile)
    if not mode:
        return "", None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(opened, _srgb(), mode, "RGB")
        return mode, None if _changes_nothing(transform, mode) else transform
    except Exception:  # Little CMS and Pillow raise several kinds of errors on damaged profiles
        return "", None


def _mode(profile: bytes) -> str:
    """Pillow mode for the color space in the profile header (ICC.1:2022, 7.2); empty if it cannot be used."""
    if not 132 <= len(profile) <= MAX_PROFILE_BYTES or profile[36:40] != b"acsp":
        return ""
    tags = int.from_bytes(profile[128:132], "big")
    if profile[12:16] not in _CLASSES or tags > _MOST_TAGS or profile[8] > 4:
        return ""
    return _MODES.get(profile[16:20], "")


def _changes_nothing(transform: Transform, mode: str) -> bool:
    """Whether a transform maps all grays and a grid of colors to within `_SAME` levels of the input."""
    if mode == "CMYK":
        return False
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    shown = grays if mode == "L" else np.concatenate([grays, colors])
    given = Image.fromarray(shown[None, :, 0] if mode == "L" else shown[None])
    found = np.asarray(ImageCms.applyTransform(given, transform), np.int16)[0]
    return int(np.abs(found - shown).max()) <= _SAME


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _lab() -> Transform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB")


Pixels = NDArray[np.uint8]

_STRIP_PIXELS = 1 << 20
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
# Pillow keeps only the high byte of color images with 16 bits per channel. Decoding with the opposite byte order gives
# the low byte. Raw mode -> raw mode with the opposite byte order.
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "RGBX;16N": "RGBX;16B",
}


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent color."""
    return image.mode in _ALPHA or "transparency" in image.info


def raw_mode(image: Image.Image, data: bytes) -> str:
    """Pillow raw mode of a color image with 16 bits per channel; empty for other images.

    Args:
        image: Opened image whose pixels are not loaded yet.
        data: File content.
    """
    tiles = getattr(image, "tile", None)
    if image.format not in ("PNG", "TIFF") or not tiles:
        return ""
    arguments = tiles[0][3]
    raw = arguments if isinstance(arguments, str) else arguments[0] if arguments else ""
    if raw != "LA;16B" and raw not in _LOW_BYTES:
        return ""
    if (
        image.format == "TIFF"
        and next((d.integer(file_headers.PLANAR, 1) for d in file_headers.directories(data)), 1) != 1
    ):
        return ""  # the libtiff decoder for planar images ignores the raw mode
    return str(raw)


def rgb_pixels(image: Image.Image, data: bytes, raw: str) -> tuple[Pixels, Range | None]:
    """Convert a loaded image to 8-bit sRGB.

    Args:
        image: Loaded image opened from `data`. Its EXIF orientation is not applied yet, except for TIFF.
        data: File content, for metadata that Pillow does not keep.
        raw: Result of `raw_mode` before the image was loaded.

    Returns:
        Pixels, uint8 (height, width, 3), and the value range if the image has more than 8 bits per channel, else None.
    """
    profile = _profile(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray, shown = _deep_gray(image, data)
        return _in_strips(Image.fromarray(gray), lambda piece: to_srgb(piece, profile)), shown
    if raw:
        color, shown = _deep_color(image, data, raw)
        return (color if profile is None else _in_strips(Image.fromarray(color), lambda p: to_srgb(p, profile))), shown
    return _in_strips(image, lambda piece: _rgb(piece, profile)), None


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Apply a pointwise conversion in strips of rows."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return np.asarray(convert(image).convert("RGB"))
    out = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        out[top:bottom] = np.asarray(convert(image.crop((0, top, image.width, bottom))).convert("RGB"))
    return out


def _rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an 8-bit image to sRGB; transparent pixels are composited on white."""
    if image.mode == "LAB":
        return lab_to_srgb(image)
    if is_transparent(image):
        rgba = image.convert("RGBA")
        if profile:
            # The profile of a gray image applies to its single channel.
            color = image.convert("L") if image.mode in ("LA", "La") else rgba.convert("RGB")
            alpha = rgba.getchannel("A")
            rgba = to_srgb(color, profile).convert("RGBA")
            rgba.putalpha(alpha)
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if profile is None:
        return image
    return to_srgb(image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB"), profile)


def _profile(image: Image.Image) -> bytes | None:
    found: Any = image.info.get("icc_profile")
    return found if isinstance(found, bytes) and found else None


def _deep_gray(image: Image.Image, data: bytes) -> tuple[Pixels, Range]:
    """Convert a single-channel image of 16 or 32 bits, integer or float, to 8-bit gray."""
    values: NDArray[Any] = np.asarray(image)
    if values.dtype == np.dtype(">u2"):
        values = values.astype(np.uint16)
    declared, inverted = 0.0, False
    if image.format == "TIFF" and (found := next(file_headers.directories(data), None)):
        if (
            values.dtype == np.int32
            and found.integer(file_headers.SAMPLE_FORMAT, 1) == 1
            and found.integer(file_headers.BITS, 0) == 32
        ):
            values = values.view(np.uint32)  # Pillow stores uint32 values as int32
        declared = _declared(found, values)
        inverted = found.integer(file_headers.PHOTOMETRIC, 1) == 0 and values.dtype.kind != "f"
    elif image.format == "PNG" and (bits := significant_bits(data)):
        declared = float(2**bits - 1)
    low, high = extent(values)
    shown = range_of(low, high, values.dtype.kind != "f", declared)
    gray = to_8_bit(values, shown)
    if inverted:  # WhiteIsZero; Pillow applies it to 8-bit images only
        gray = 255 - gray
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return gray, shown


def _declared(found: file_headers.Directory, values: NDArray[Any]) -> float:
    """Largest possible value according to a TIFF; 0 if not declared."""
    bits = found.integer(file_headers.BITS, 0)
    if 8 < bits < 16:
        return float(2**bits - 1)
    stated = [value for tag in (file_headers.MAX_SAMPLE, file_headers.S_MAX_SAMPLE) for value in found.values(tag, 4)]
    top = max(stated, default=0.0)
    # Many programs write the largest actual value instead of the largest possible one: round up to a standard range.
    return step(top) if np.isfinite(top) and top > 1 else 0.0


def _deep_color(image: Image.Image, data: bytes, raw: str) -> tuple[Pixels, Range]:
    """Convert a PNG or TIFF with 16 bits per channel to 8 bits; transparent pixels are composited on white."""
    low = _low_bytes(data, image.format or "", raw)
    width, height = image.size
    channels = 1 if raw == "LA;16B" else 3
    rows = max(1, _STRIP_PIXELS // width)

    def strips() -> Any:
        for top in range(0, height, rows):
            box = (0, top, width, min(height, top + rows))
            yield box, _joined(image.crop(box), low.crop(box), raw)

    most, most_alpha = 0, 0
    for _, values in strips():
        most = max(most, int(values[..., :channels].max()))
        most_alpha = max(most_alpha, int(values[..., channels:].max(initial=0)))
    bits = significant_bits(data) if image.format == "PNG" else 0
    found = next(file_headers.directories(data), None) if image.format == "TIFF" else None
    declared = float(2**bits - 1) if bits else _declared(found, np.zeros(0, np.uint16)) if found else 0.0
    shown = range_of(0.0, float(most), True, declared)
    # Alpha uses the color range if it fits; otherwise 12-bit alpha scaled by 16 bits would be almost transparent.
    shown_alpha = shown if most_alpha <= shown[1] * 1.02 else (0.0, 65535.0)
    out = np.empty((height, width, 3), np.uint8)
    for (_, top, _, bottom), values in strips():
        color = to_8_bit(values[..., :channels], shown)
        if values.shape[-1] > channels:
            alpha = to_8_bit(values[..., channels:], shown_alpha)
            rgba = np.concatenate([np.broadcast_to(color, (*color.shape[:2], 3)), alpha], -1)
            white = Image.new("RGBA", (width, bottom - top), (255, 255, 255, 255))
            color = np.asarray(Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB"))
        key = image.info.get("transparency")
        if isinstance(key, tuple) and len(key) == channels:
            color[(values[..., :channels] == np.array(key)).all(-1)] = 255
        out[top:bottom] = color
    return out, shown


def _low_bytes(data: bytes, kind: str, raw: str) -> Image.Image:
    """Decode the image again to get the low bytes that Pillow drops."""
    with Image.open(io.BytesIO(data), formats=(kind,)) as opened:
        # 16-bit gray with alpha has four bytes per pixel, like 8-bit RGBA: both bytes are read at once.
        other = "RGBA" if raw == "LA;16B" else _LOW_BYTES[raw]
        opened.tile = [_with_mode(tile, other) for tile in opened.tile]
        opened.load()
        return opened.copy()


def _with_mode(tile: Any, raw: str) -> Any:
    """Replace the raw mode of a Pillow tile (decoder, box, offset, arguments)."""
    arguments = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _joined(high: Image.Image, low: Image.Image, raw: str) -> NDArray[np.uint16]:
    """Combine high and low bytes, uint16 (height, width, channels)."""
    if raw == "LA;16B":
        pairs = np.asarray(low, np.uint16)
        values, lower = pairs[..., ::2].copy(), pairs[..., 1::2]
    else:
        values, lower = np.asarray(high).astype(np.uint16), np.asarray(low, np.uint16)
    values <<= 8
    values |= lower
    return values
