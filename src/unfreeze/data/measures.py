"""What can be measured of every photo without asking a network: light, colour, sharpness, border, how it is stored."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfreeze.data.images import FORMATS, Pixels

# Photos are measured at this short side (smaller ones as they are), so that sharpness means the same in all of them.
SIDE = 128
# Share of the short side that counts as border.
_BORDER = 1 / 16
_ORIENTATION = 0x0112
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

DTYPE = np.dtype(
    [
        ("bytes", "<u8"),
        ("format", "S8"),
        ("mode", "S8"),
        ("orientation", "u1"),
        ("brightness", "<f4"),
        ("contrast", "<f4"),
        ("sharpness", "<f4"),
        ("colourfulness", "<f4"),
        ("border", "u1", 3),
        ("border_spread", "<f4"),
    ]
)


@dataclass(frozen=True)
class Measure:
    """How a measure is named, and how it is compared: by its logarithm where ratios count."""

    name: str
    title: str
    unit: str
    logarithmic: bool
    low: str
    high: str


# The measures that have a distribution, outliers and a plot; `size` is the root of width times height.
MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        Measure("size", "Size", "pixels, root of width x height", True, "small", "large"),
        Measure("aspect", "Aspect", "width / height", True, "tall", "wide"),
        Measure("brightness", "Brightness", "mean luma, 0-255", False, "dark", "bright"),
        Measure("contrast", "Contrast", "deviation of luma, 0-128", False, "flat", "contrasty"),
        Measure("sharpness", "Sharpness", "variance of the Laplacian", True, "blurred", "sharp"),
        Measure("colourfulness", "Colourfulness", "Hasler and Suesstrunk's M3", False, "pale", "colourful"),
        Measure("bytes", "File size", "bytes", True, "small as a file", "large as a file"),
    )
}


def measure(data: bytes, image: Image.Image) -> NDArray[np.void]:
    """One row of DTYPE, shape (1,).

    data: the file's bytes, of which only the header is read here. image: the upright photo, from `shrunk`.

    brightness, contrast: mean and deviation of luma. sharpness: variance of the 4-neighbour Laplacian of luma
    (Pech-Pacheco et al. 2000) at a short side of SIDE. colourfulness: M3 of Hasler & Suesstrunk 2003. border: mean
    colour of a frame of 1/16 of the short side; border_spread: its deviation, about 0 where the frame is one colour.
    """
    row = np.zeros(1, DTYPE)
    row["bytes"] = len(data)
    row["format"], row["mode"], row["orientation"] = _header(data)
    small = np.asarray(image, np.float32)
    luma = small @ _LUMA
    row["brightness"], row["contrast"] = luma.mean(), luma.std()
    row["sharpness"] = _laplacian(luma)
    row["colourfulness"] = _colourfulness(small)
    frame = _frame(small)
    row["border"] = np.rint(frame.mean(0))
    row["border_spread"] = frame.std(0).mean()
    return row


def shrunk(pixels: Pixels) -> Image.Image:
    """The photo with a short side of SIDE, antialiased; smaller ones as they are."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    if short <= SIDE:
        return image
    size = (max(1, round(image.width * SIDE / short)), max(1, round(image.height * SIDE / short)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _header(data: bytes) -> tuple[bytes, bytes, int]:
    """Format and mode as Pillow names them and the EXIF orientation; nothing is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            name = "JPEG" if image.format == "MPO" else str(image.format)
            mode = (
                "alpha" if _transparent(image) else "grey" if image.mode in ("1", "L", "I", "F", "I;16") else "colour"
            )
            try:
                turned = int(image.getexif().get(_ORIENTATION, 1))
            except Exception:  # Pillow's EXIF parser raises nearly anything
                turned = 1
            return name.encode()[:8], mode.encode(), turned if 1 <= turned <= 8 else 1
    except Exception:  # it decoded a moment ago; what its header says is no reason to fail
        return b"", b"", 1


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _laplacian(luma: NDArray[np.float32]) -> float:
    if min(luma.shape) < 3:
        return 0.0
    middle = luma[1:-1, 1:-1]
    edges = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(edges.var())


def _colourfulness(pixels: NDArray[np.float32]) -> float:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def _frame(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels of the border, float32 (n, 3)."""
    wide = max(1, round(min(pixels.shape[:2]) * _BORDER))
    sides = (pixels[:wide], pixels[-wide:], pixels[wide:-wide, :wide], pixels[wide:-wide, -wide:])
    return np.concatenate([side.reshape(-1, 3) for side in sides])
