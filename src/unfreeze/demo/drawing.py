"""Vector drawing for synthetic portraits, and the appearance of a person.

Coordinates are figure units: the origin is the middle of the face, the chin is at y = 1, and y grows downward. A
`Canvas` maps them to pixels at twice the final size, which is halved at the end for anti-aliasing. `Appearance` derives
everything that all images of a person share from the person's seed.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Field = Callable[[np.ndarray, np.ndarray], np.ndarray]
OVER = 2  # oversampling factor


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Interpolate from `first` to `second` by `share` (0 to 1)."""
    a, b, c = (round(x + (y - x) * share) for x, y in zip(first, second, strict=True))
    return a, b, c


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """8-bit RGB color from hue, saturation and value, each 0 to 1."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(r * 255), round(g * 255), round(b * 255)


def smooth(points: list[tuple[float, float]], closed: bool = True, steps: int = 8) -> np.ndarray:
    """Catmull-Rom spline through points.

    Args:
        points: Control points (x, y).
        closed: Whether the curve is closed.
        steps: Number of samples per segment.

    Returns:
        Points on the curve, float64 (n, 2).
    """
    p = np.asarray(points, float)
    p = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None, :] for i in range(4))
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return out.reshape(-1, 2) if closed else np.vstack([out.reshape(-1, 2), p[-1:]])


def oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Outline of an ellipse with 40 points, float64 (40, 2)."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def both_sides(half: list[tuple[float, float]]) -> np.ndarray:
    """Smooth symmetric outline whose right half is given from top center to bottom center."""
    return smooth(half + [(-x, y) for x, y in half[::-1] if x > 0])


def motif(kind: str, period: float) -> Field:
    """Periodic pattern over figure units, as coverage from 0 to 1. Soft edges avoid aliasing when it is scaled.

    Args:
        kind: Name of the pattern; unknown names, such as `plain`, give coverage 0.
        period: Period in figure units.
    """

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
    """Oversampled image that is addressed in figure units.

    `depth` is how far the layer being drawn follows the turn of the head.

    Args:
        size: Width and height of the final image in pixels.
        rng: Random generator for scale, tilt, position and turn.
        zoom: Scale of the figure.
        lean: Tilt of the figure in degrees.
    """

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
        """Map points (n, 2) from figure units to pixels."""
        moved: np.ndarray = (points + self.turn * self.depth) @ self.axes + self.centre
        return moved

    def fill(self, points: np.ndarray, colour: Colour, alpha: float = 1.0) -> None:
        """Fill an outline; `alpha` is the opacity, 0 to 1."""
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
        """Draw a brush stroke through points; with `taper` 1 both ends narrow to a point, with 0 they are blunt."""
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
        """Blend a color over an outline with opacity `strength * field(x, y)`.

        Args:
            points: Outline; None tints the whole image.
            colour: 8-bit RGB color.
            strength: Factor of the opacity.
            field: Opacity as a function of figure units, clipped to 0..1.
            fine: Evaluate the field for every pixel of the final image instead of a coarse grid.
            near: Outline outside of whose bounding box the field is 0, to save time.
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
        """Blend a Gaussian spot of color, clipped to an outline."""
        self.tint(
            outline,
            colour,
            strength,
            lambda u, v: np.exp(-((u - spot[0]) ** 2 + (v - spot[1]) ** 2) / radius**2),
            near=oval(*spot, 2.3 * radius, 2.3 * radius),
        )


SKINS: tuple[Colour, ...] = (
    (250, 219, 192),
    (241, 200, 165),
    (228, 180, 140),
    (205, 154, 115),
    (172, 122, 88),
)
HAIRS: tuple[Colour, ...] = ((30, 26, 30), (44, 33, 32), (66, 44, 36), (92, 58, 40), (38, 36, 52))
MOTIFS = ("plain", "stripes", "bars", "diagonal", "dots", "checks", "waves", "rings")
MASKS: tuple[tuple[Colour, Colour, str], ...] = (
    ((139, 190, 224), (214, 233, 245), "plain"),
    ((244, 245, 243), (214, 219, 222), "plain"),
    ((48, 49, 55), (84, 86, 94), "plain"),
    ((226, 142, 146), (250, 226, 214), "dots"),
    ((92, 138, 126), (205, 224, 204), "checks"),
    ((82, 96, 148), (222, 196, 140), "diagonal"),
    ((246, 218, 222), (228, 182, 192), "plain"),
    ((150, 204, 196), (226, 243, 238), "plain"),
)


@dataclass(frozen=True)
class DemoPerson:
    """A synthetic person.

    Attributes:
        seed: Determines the appearance.
        gender: 0 male, 1 female.
        age: Age in years.
    """

    seed: tuple[int, ...]
    gender: int
    age: int


class Appearance:
    """Traits that all images of a person share, derived from the person's seed.

    Gender and age act only through noisy traits (each is right more often than not), so that no single trait determines
    the class.
    """

    def __init__(self, sitter: DemoPerson) -> None:
        rng = np.random.default_rng([*sitter.seed, 11])
        man = 1.0 if sitter.gender == 0 else -1.0

        def manly(noise: float = 0.8) -> float:
            return man + rng.normal(0, 0.75 * noise)

        age = sitter.age + rng.normal(0, 3)
        skin_at = rng.uniform(0, len(SKINS) - 1.001)
        self.skin = mix(SKINS[int(skin_at)], SKINS[int(skin_at) + 1], skin_at % 1)
        self.wide = 0.75 + 0.02 * manly() + rng.normal(0, 0.025)
        self.jaw = self.wide * np.clip(0.79 + 0.055 * manly(), 0.66, 0.92)
        self.chin = self.jaw * np.clip(0.5 + 0.05 * manly(), 0.38, 0.64)
        self.eye_x, self.eye_y = rng.uniform(0.30, 0.37), rng.uniform(-0.12, -0.04)
        self.eye = rng.uniform(0.9, 1.15) - 0.05 * manly()
        self.slant, self.crease = rng.uniform(-0.01, 0.035), rng.random() < 0.6
        self.brow = np.clip(0.062 + 0.017 * manly(), 0.03, 0.1)
        self.brow_arch = rng.uniform(0.01, 0.05) - 0.015 * manly()
        self.nose, self.nose_y = rng.uniform(0.10, 0.15) + 0.008 * manly(), rng.uniform(0.27, 0.34)
        self.mouth, self.smile = rng.uniform(0.2, 0.27), rng.uniform(0.0, 0.05)
        self.lashes = manly(0.7) < -0.1
        lip = hsv(rng.uniform(0.95, 1.02), 0.55, 0.82) if manly(0.7) < 0 else mix(self.skin, (170, 70, 70), 0.42)
        self.lip, self.fullness = lip, np.clip(0.055 - 0.012 * manly(), 0.03, 0.09)
        self.beard = rng.choice(["stubble", "moustache", "goatee"]) if man > 0 and rng.random() < 0.45 else ""
        self.blush = np.clip(0.2 - 0.1 * manly(), 0.04, 0.45)

        self.wrinkle = float(np.clip((age - 25) / 34 + rng.normal(0, 0.06), 0, 1.1))
        dyed = rng.random() < (0.06 if man > 0 else 0.14)
        self.grey = float(np.clip((age - 44) / 18 + rng.normal(0, 0.12), 0, 1)) * (0.15 if dyed else 1.0)
        base = HAIRS[rng.integers(len(HAIRS))]
        if age < 31 and rng.random() < 0.55:
            base = hsv(rng.choice([0.04, 0.07, 0.62, 0.92]), 0.55, 0.5)
        self.hair = mix(base, (206, 206, 208), 0.9 * self.grey**1.2)
        long_hair = manly(0.75) < 0
        self.length = str(rng.choice(["long", "bob", "bun", "tail", "long"] if long_hair else ["short"]))
        fronts = ["swept", "centre", "bangs", "back"] if long_hair else ["swept", "back", "spiky", "bangs", "swept"]
        self.front = str(rng.choice(fronts))
        self.recede = max(0.0, (age - 38) / 110 + rng.normal(0, 0.05)) if man > 0 and rng.random() < 0.8 else 0.0
        self.volume = rng.uniform(0.97, 1.07)
        self.part = float(rng.choice([-1, 1]))
        self.glasses = str(rng.choice(["round", "square"])) if rng.random() < 0.05 + 0.012 * max(age - 25, 0) else ""
        self.frame = hsv(rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.15, 0.45))
        count = rng.poisson(max(age - 45, 0) / 5) + rng.integers(0, 2)
        self.spots = [
            (rng.choice([-1, 1]) * rng.uniform(0.2, 0.6), rng.uniform(-0.5, 0.4), rng.uniform(0.012, 0.03))
            for _ in range(count)
        ]
        self.earring = manly(0.7) < -0.8

        self.shoulder = 1.42 + 0.1 * manly()
        self.neck = 0.38 + 0.04 * manly()
        self.top = str(rng.choice(["tee", "shirt", "vee", "hood", "turtle"]))
        fade = np.clip((age - 20) / 55, 0, 1)  # older people wear less saturated colors
        self.cloth = hsv(rng.random(), rng.uniform(0.25, 0.75) * (1 - 0.6 * fade), rng.uniform(0.45, 0.95) - 0.2 * fade)
        self.trim = mix(self.cloth, (255, 255, 255) if rng.random() < 0.6 else (20, 20, 40), rng.uniform(0.3, 0.7))
        self.cloth_motif = motif(str(rng.choice(MOTIFS[:7])), rng.uniform(0.22, 0.5))
        hue = rng.random()
        self.wall = hsv(hue, rng.uniform(0.18, 0.5), rng.uniform(0.68, 0.97))
        self.wall_trim = hsv(hue + rng.normal(0, 0.12), rng.uniform(0.15, 0.55), rng.uniform(0.6, 1.0))
        self.wall_motif = motif(str(rng.choice(MOTIFS[1:])), rng.uniform(0.4, 1.1))
        self.disc = (rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.2), rng.uniform(1.35, 1.7))
        self.light = rng.uniform(-1, 1)
        self.warmth = rng.normal(0, 0.035)
        self.zoom, self.lean = rng.normal(1, 0.05), rng.normal(0, 2.5)
        self.masks = [int(i) for i in rng.permutation(len(MASKS))]
        self.slip = str(rng.choice(["nose", "nose", "chin"]))

        w, j, c = self.wide, self.jaw, self.chin
        self.face = both_sides(
            [
                (0, -1.1),
                (0.5 * w, -1.04),
                (0.87 * w, -0.74),
                (w, -0.25),
                (0.98 * w, 0.15),
                (j, 0.62),
                (c, 0.92),
                (0, 1.0),
            ]
        )
