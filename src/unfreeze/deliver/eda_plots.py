"""Plots of the page about the photos: distributions, mean photos and a heat map, in the page's colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

_BINS = 32
_TALL = 72
_MEAN_SIDE = 112


def histogram(
    key: str, title: str, values: NDArray[np.float64], logarithmic: bool, told: Callable[[float], str]
) -> Markup:
    """How a measure is spread: bars from the smallest to the largest value, the median marked, three values told."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Markup("")
    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    x, ends = (
        (np.log1p(values), np.log1p([low, middle, high])) if logarithmic else (values, np.array([low, middle, high]))
    )
    span = ends[2] - ends[0]
    counts = np.histogram(x, _BINS, (ends[0], ends[2]) if span > 0 else (ends[0] - 0.5, ends[0] + 0.5))[0]
    wide = 100 / _BINS
    body = [
        f'<rect x="{i * wide:.2f}%" y="{_TALL - tall:.1f}" width="{wide * 0.9:.2f}%" height="{tall:.1f}" class="bar"/>'
        for i, tall in enumerate(np.maximum(1.5, _TALL * counts / max(counts.max(), 1)))
        if counts[i]
    ]
    at = 100 * (ends[1] - ends[0]) / span if span > 0 else 50.0
    anchor = "start" if at < 25 else "end" if at > 75 else "middle"
    body += [
        f'<line x1="0" x2="100%" y1="{_TALL}" y2="{_TALL}" class="axis"/>',
        f'<line x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="{_TALL}" class="mean"/>',
        f'<text x="{at:.2f}%" y="-6" text-anchor="{anchor}" class="small muted">median {escape(told(middle))}</text>',
        f'<text x="0" y="{_TALL + 18}" class="small muted">{escape(told(low))}</text>',
        f'<text x="100%" y="{_TALL + 18}" text-anchor="end" class="small muted">{escape(told(high))}</text>',
    ]
    said = f"from {told(low)} over the median {told(middle)} to {told(high)}, {len(values):,} photos"
    return _svg(key, "spread", f'width="100%" height="{_TALL + 24}"', title, said, body)


def mean_photo(grey: NDArray[np.uint8], thumb: NDArray[np.uint8], aspect: float) -> tuple[str, int, int]:
    """A data URI of the mean of photos, with its width and height: sharp in light, coarse in colour, like a JPEG.

    grey: uint8 (n, 32, 32). thumb: uint8 (n, 8, 8, 3). aspect: width / height to draw it in.
    """
    light, colour = grey.mean(0, dtype=np.float64), thumb.mean(0, dtype=np.float64)
    wide = round(_MEAN_SIDE * min(1.0, aspect))
    tall = round(_MEAN_SIDE * min(1.0, 1 / aspect))
    wide, tall = max(wide, 24), max(tall, 24)

    def grown(plane: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((wide, tall), Image.Resampling.BICUBIC))

    luma = colour @ np.array([0.299, 0.587, 0.114])
    bright = grown(light)
    pixels = np.stack([bright + grown(colour[..., c] - luma) for c in range(3)], -1)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), wide, tall


def heat_map(key: str, title: str, cells: NDArray[np.float64]) -> Markup:
    """A square of cells, 0 to the largest value, darker where it is larger."""
    side, most = len(cells), float(cells.max()) or 1.0
    body = [
        f'<rect x="{column}" y="{row}" width="1.02" height="1.02" class="heat" fill-opacity="{value / most:.2f}"/>'
        for (row, column), value in np.ndenumerate(cells)
        if value / most >= 0.01
    ]
    said = f"{side} by {side} cells; the fullest holds {most:.0%}"
    ground = f'<rect width="{side}" height="{side}" class="ground"/>'
    return _svg(key, "heats", f'viewBox="0 0 {side} {side}"', title, said, [ground, *body])


def _svg(key: str, kind: str, size: str, title: str, said: str, body: list[str]) -> Markup:
    return Markup(
        f'<svg class="plot {kind}" role="img" aria-labelledby="{key}-title {key}-desc" {size}>'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(said)}</desc>'
        f"{''.join(body)}</svg>"
    )
