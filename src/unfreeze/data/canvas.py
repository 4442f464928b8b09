"""Drawing in figure units: outlines, patterns, and the canvas that maps them to pixels.

The origin is the middle of the face, the chin is at y = 1, y grows downward. A `Canvas` draws at twice the
wanted size; halving the picture at the end is the anti-aliasing.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
OVER = 2  # drawing scale over the final size


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` moved toward `second` by `share` (0 to 1)."""
    a, b, c = (round(x + (y - x) * share) for x, y in zip(first, second, strict=True))
    return a, b, c


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An 8-bit colour from hue, saturation and value, each 0 to 1."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(r * 255), round(g * 255), round(b * 255)


def smooth(points: list[tuple[float, float]], closed: bool = True, steps: int = 8) -> np.ndarray:
    """A Catmull-Rom curve through the points, as an (n, 2) array."""
    p = np.asarray(points, float)
    p = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None, :] for i in range(4))
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return out.reshape(-1, 2) if closed else np.vstack([out.reshape(-1, 2), p[-1:]])


def oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """An ellipse as a 40-point outline."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def both_sides(half: list[tuple[float, float]]) -> np.ndarray:
    """The smooth outline whose right half is given from top middle to bottom middle."""
    return smooth(half + [(-x, y) for x, y in half[::-1] if x > 0])


def motif(kind: str, period: float) -> Field:
    """A repeating pattern over figure units as 0..1 cover; soft edges keep it from crawling when scaled."""

    def field(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        a, b = u * (2 * np.pi / period), v * (2 * np.pi / period)
        wave = {
            "stripes": lambda: np.sin(b),
            "bars": lambda: np.sin(a),
            "diagonal": lambda: np.sin((a + b) * 0.7),
            "dots": lambda: np.cos(a) * np.cos(b) * 1.6 - 0.75,
            "checks": lambda: np.sin(a) * np.sin(b) * 1.5,
            "waves": lambda: np.sin(b + 1.3 * np.sin(a * 0.6)),
            "rings": lambda: np.sin(np.hypot(a, b)),
        }.get(kind, lambda: np.full_like(u, -1.0))()
        return np.clip(wave * 3.0 + 0.5, 0, 1)

    return field


class Canvas:
    """An oversized picture addressed in figure units; `depth` is how far a layer follows the head's turn."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator, zoom: float, lean: float) -> None:
        self.width, self.height = size[0] * OVER, size[1] * OVER
        self.image = Image.new("RGB", (self.width, self.height))
        self.pen = ImageDraw.Draw(self.image, "RGBA")
        span = min(self.height, self.width / 0.75)
        unit = 0.262 * span * zoom * rng.normal(1, 0.035)
        tilt = np.deg2rad(lean + rng.normal(0, 2.5))
        self.centre = np.array(
            [self.width * (0.5 + rng.normal(0, 0.022)), self.height * 0.5 + span * rng.normal(0, 0.018)]
        )
        self.axes = unit * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self.inverse = np.linalg.inv(self.axes)
        self.turn = np.array([rng.normal(0, 0.055), rng.normal(0, 0.025)])
        self.depth = 0.0

    def at(self, points: np.ndarray) -> np.ndarray:
        """Figure units to pixels."""
        moved: np.ndarray = (points + self.turn * self.depth) @ self.axes + self.centre
        return moved

    def fill(self, points: np.ndarray, colour: Colour, alpha: float = 1.0) -> None:
        """Fill an outline; `alpha` is the cover, 0 to 1."""
        if alpha > 0:
            flat = [(float(x), float(y)) for x, y in self.at(points)]
            self.pen.polygon(flat, fill=(*colour, round(255 * min(alpha, 1.0))))

    def stroke(
        self,
        points: list[tuple[float, float]],
        colour: Colour,
        width: float,
        alpha: float = 1.0,
        taper: float = 1.0,
    ) -> None:
        """A brush line through the points; `taper` 1 thins both ends to nothing, 0 keeps them blunt."""
        line = smooth(points, closed=False)
        along = np.gradient(line, axis=0)
        normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / (np.linalg.norm(along, axis=1)[:, None] + 1e-9)
        profile = 1 - taper * np.abs(np.linspace(-1, 1, len(line))) ** 2.5
        offset = normal * (width / 2 * profile)[:, None]
        self.fill(np.vstack([line + offset, (line - offset)[::-1]]), colour, alpha)

    def tint(
        self,
        points: np.ndarray | None,
        colour: Colour,
        strength: float,
        field: Field,
        fine: bool = False,
        near: np.ndarray | None = None,
    ) -> None:
        """Lay `colour` over an outline (None: everywhere) with cover `strength * field(x, y)`, softly.

        `fine` works the field out for each final pixel, not for blocks of them. `near` is an outline outside
        whose box the field is nothing; leaving the rest out saves time.
        """
        left, top, right, bottom = 0, 0, self.width, self.height
        pixels = None if points is None else self.at(points)
        if pixels is not None:
            box = pixels if near is None else self.at(near)
            left, top = (max(int(v), 0) for v in np.floor(box.min(axis=0)))
            right = min(int(np.ceil(box[:, 0].max())), self.width)
            bottom = min(int(np.ceil(box[:, 1].max())), self.height)
        if right - left < 2 or bottom - top < 2:
            return
        step = OVER if fine else 16
        columns, rows = max((right - left) // step, 4), max((bottom - top) // step, 4)
        x = left + (np.arange(columns, dtype=np.float32) + 0.5) * ((right - left) / columns) - self.centre[0]
        y = top + (np.arange(rows, dtype=np.float32) + 0.5) * ((bottom - top) / rows) - self.centre[1]
        (a, b), (c, d) = self.inverse.astype(np.float32)
        shift = (self.turn * self.depth).astype(np.float32)
        u = x[None, :] * a + y[:, None] * c - shift[0]
        v = x[None, :] * b + y[:, None] * d - shift[1]
        cover = (np.clip(field(u, v), 0, 1) * (255 * strength)).astype(np.uint8)
        layer = Image.fromarray(cover).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        if pixels is not None:
            shape = Image.new("L", layer.size)
            ImageDraw.Draw(shape).polygon([(float(p) - left, float(q) - top) for p, q in pixels], fill=255)
            layer = ImageChops.multiply(layer, shape)
        self.image.paste(colour, (left, top), layer)

    def glow(
        self, outline: np.ndarray, colour: Colour, strength: float, spot: tuple[float, float], radius: float
    ) -> None:
        """A round soft spot of colour kept inside an outline."""
        self.tint(
            outline,
            colour,
            strength,
            lambda u, v: np.exp(-((u - spot[0]) ** 2 + (v - spot[1]) ** 2) / radius**2),
            near=oval(*spot, 2.3 * radius, 2.3 * radius),
        )
