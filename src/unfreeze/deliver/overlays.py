"""A heat map over its photo, as inline SVG: blue speaks for the class that was said, orange for the other."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from unfreeze.core.errors import PhotoError
from unfreeze.data.images import decode_sized, grayed, read_bytes
from unfreeze.deliver.map_words import WORDS
from unfreeze.learn.maps import HeatMap

SIDE = 360
FOR, AGAINST = (0, 114, 178), (213, 94, 0)  # of the stylesheet's --for and --against
_FAINT = 0.05  # cells under this share of the strongest carry no number
_MOST = 0.62  # opacity of the strongest


def picture(path: str, limit: int, gray: bool, side: int = SIDE) -> tuple[str, tuple[int, int]]:
    """A data URI of the photo, `side` pixels on its longer side, and its size; empty where it is gone meanwhile.

    limit: pixels above which it is not decoded. gray: without its colours, as the network saw it.
    """
    from PIL import Image

    try:
        pixels, _ = decode_sized(read_bytes(Path(path)), side, limit, path)
    except PhotoError:
        return "", (side, side)
    image = Image.fromarray(grayed(pixels) if gray else pixels)
    scale = side / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return _uri(buffer, "jpeg"), image.size


def overlay(source: str, size: tuple[int, int], heat: HeatMap, scale: float, label: str) -> Markup:
    """The photo under a map. source, size: as of `picture`. scale: the value of full strength. label: the class.

    Exact cells are drawn one by one with their numbers; maps of another kind are soft, for they know no edges.
    """
    width, height = size
    left, top = heat.box[0] * width, heat.box[1] * height
    wide, high = heat.box[2] * width - left, heat.box[3] * height - top
    whole = f'width="{width}" height="{height}"'
    outside = f"M0 0H{width}V{height}H0Z M{left:.1f} {top:.1f}h{wide:.1f}v{high:.1f}h{-wide:.1f}Z"
    said = escape(_said(heat, label))
    body = [
        f'<svg class="overlay" viewBox="0 0 {width} {height}" {whole} role="img" aria-label="{said}">',
        f'<image href="{source}" {whole}/>' if source else "",
        f'<path class="unread" fill-rule="evenodd" d="{outside}"/>',
    ]
    if heat.method == "cells":
        body += _cells(heat.values, scale, (left, top, wide, high))
    else:
        at = f'x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        body.append(f'<image {at} preserveAspectRatio="none" href="{_soft(heat, scale)}"/>')
    return Markup("".join(body) + "</svg>")


def signed(value: float, digits: int = 1) -> str:
    """`+1.2`, `−0.4`, with the true minus sign."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("+-")


def _said(heat: HeatMap, label: str) -> str:
    rows, columns = heat.values.shape
    said = f"Photo with a map of {rows} by {columns} cells, {WORDS[heat.method].name}"
    return said + (f"; the sum is {heat.values.sum():+.1f} for {label}" if heat.method == "cells" else f", for {label}")


def _cells(cells: NDArray[np.float64], scale: float, box: tuple[float, float, float, float]) -> list[str]:
    left, top, wide, high = box
    across, down, body = wide / cells.shape[1], high / len(cells), []
    for (row, column), value in np.ndenumerate(cells):
        share = min(abs(value) / max(scale, 1e-12), 1.0)
        x, y = left + column * across, top + row * down
        tone, area = "for" if value >= 0 else "against", f'width="{across:.1f}" height="{down:.1f}"'
        body.append(f'<rect class="{tone}" x="{x:.1f}" y="{y:.1f}" {area} fill-opacity="{_MOST * share:.2f}"/>')
        if share >= _FAINT and across >= 32:
            body.append(f'<text x="{x + across / 2:.1f}" y="{y + down / 2 + 5:.1f}">{signed(value)}</text>')
    return body


def _soft(heat: HeatMap, scale: float) -> str:
    """The map as a small picture with opacity, its cells run into each other."""
    from PIL import Image

    values = heat.values - heat.values.min() if heat.method == "rollout" else heat.values
    scale = float(values.max()) if heat.method == "rollout" else scale
    shares = Image.fromarray((values / max(scale, 1e-12)).clip(-1, 1).astype(np.float32))
    rows, columns = values.shape
    grown = np.asarray(shares.resize((max(48, 2 * columns), max(48, 2 * rows)), Image.Resampling.BICUBIC))
    pixels = np.empty((*grown.shape, 4), np.uint8)
    pixels[..., :3] = np.where(grown[..., None] >= 0, FOR, AGAINST)
    pixels[..., 3] = np.round(255 * (_MOST + 0.1) * np.abs(grown).clip(0, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    return _uri(buffer, "png")


def _uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
