"""Draws synthetic portraits, so that the demo needs no shipped images and shows no real person.

Shapes are in the figure units of `drawing.Canvas`. `drawing.Appearance` holds what all images of a person share; a shot
varies only pose and lighting.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from unfreeze.demo.drawing import MASKS, OVER, Appearance, Canvas, DemoPerson, both_sides, mix, motif, oval, smooth


def draw_portrait(sitter: DemoPerson, state: int, shot: int, size: tuple[int, int]) -> Image.Image:
    """Draw one image of a person.

    Args:
        sitter: Person to draw.
        state: 0 mask worn, 1 worn incorrectly, 2 no mask.
        shot: Number of the image, which varies pose and lighting slightly.
        size: Width and height in pixels.

    Returns:
        RGB image of that size.
    """
    looks = Appearance(sitter)
    rng = np.random.default_rng([*sitter.seed, 12, shot])
    canvas = Canvas(size, rng, looks.zoom, looks.lean)
    _wall(canvas, looks)
    canvas.depth = 0.3
    _back_hair(canvas, looks)
    _body(canvas, looks)
    canvas.depth = 0.6
    _head(canvas, looks)
    canvas.depth = 1.0
    _features(canvas, looks)
    _age_marks(canvas, looks)
    if state < 2:
        _mask(canvas, looks, looks.masks[shot % len(looks.masks)], looks.slip if state else "worn")
    _glasses(canvas, looks)
    canvas.depth = 0.7
    _front_hair(canvas, looks)
    return _lit(canvas.image.reduce(OVER), looks, rng)


# Keep several points per line: one point per line would make the shapes unreadable.
# fmt: off
def _wall(canvas: Canvas, looks: Appearance) -> None:
    canvas.image.paste(looks.wall, (0, 0, canvas.width, canvas.height))
    canvas.tint(None, looks.wall_trim, 0.5, looks.wall_motif, fine=True)
    x, y, radius = looks.disc
    canvas.fill(oval(x, y, radius, radius), mix(looks.wall, (255, 255, 255), 0.45), 0.55)
    canvas.tint(None, (30, 30, 60), 0.25, lambda u, v: (v + 0.6 - 0.8 * u * looks.light) / 3)


def _back_hair(canvas: Canvas, looks: Appearance) -> None:
    w, dark = looks.wide, mix(looks.hair, (0, 0, 0), 0.22)
    if looks.length in ("long", "bob"):
        end = 1.75 if looks.length == "long" else 0.8
        half = [(0, -1.25), (w * 1.05, -0.95), (w * 1.3, -0.1), (w * 1.36, end - 0.3), (w * 1.15, end),
            (0, end + 0.05)]
        canvas.fill(both_sides(half), dark)
    elif looks.length == "bun":
        canvas.fill(oval(0.12 * looks.part, -1.38, 0.36, 0.32), dark)
        canvas.stroke([(-0.1, -1.5), (0.1, -1.58), (0.3, -1.45)], mix(looks.hair, (255, 255, 255), 0.3),
            0.05, 0.5)
    elif looks.length == "tail":
        s = looks.part * w
        canvas.fill(smooth([(s * 0.5, -1.0), (s * 1.4, -0.9), (s * 1.75, 0.2), (s * 1.5, 1.3),
            (s * 1.25, 0.2)]), dark)


def _body(canvas: Canvas, looks: Appearance) -> None:
    n, s, shade = looks.neck, looks.shoulder, mix(looks.skin, (120, 60, 50), 0.28)
    half = [(0, 1.3), (n * 1.05, 1.3), (0.75 * s, 1.58), (0.97 * s, 1.85), (1.08 * s, 2.6), (1.1 * s, 3.6),
        (0, 3.7)]
    body = both_sides(half)
    canvas.fill(body, looks.cloth)
    canvas.tint(body, looks.trim, 0.75, looks.cloth_motif, fine=True)
    canvas.tint(body, (20, 15, 50), 0.38, lambda u, v: (v - 1.3) / 3 - 0.45 * u * looks.light)
    for x in (-1, 1):
        canvas.stroke([(x * 0.8 * s, 3.6), (x * 0.78 * s, 2.6), (x * 0.84 * s, 2.2)], (20, 15, 50),
            0.05, 0.22)
    deep = {"vee": 2.0, "shirt": 1.85}.get(looks.top, 1.62)
    collar = [(-n, 1.25), (-n * 0.78, 1.5), (0, deep), (n * 0.78, 1.5), (n, 1.25), (0, 1.1)]
    if looks.top in ("tee", "hood"):
        thick = 0.3 if looks.top == "hood" else 0.12
        canvas.fill(oval(0, 1.36, n + thick + 0.05, 0.24 + thick), mix(looks.cloth, (0, 0, 0), 0.16))
        collar = [(float(x), float(y)) for x, y in oval(0, 1.36, n + 0.05, 0.25)]
    canvas.fill(smooth(collar), looks.skin)
    neck = np.array([(-n, 0.4), (n, 0.4), (n * 1.03, 1.42), (-n * 1.03, 1.42)])
    canvas.fill(neck, looks.skin)
    canvas.tint(neck, shade, 0.8, lambda u, v: (1.16 - v - 0.9 * (u - 0.08 * looks.light) ** 2) * 9,
        fine=True)
    if looks.top == "turtle":
        roll = smooth([(-n * 1.1, 1.14), (0, 1.24), (n * 1.1, 1.14), (n * 1.22, 1.5), (0, 1.64),
            (-n * 1.22, 1.5)])
        canvas.fill(roll, looks.cloth)
        canvas.tint(roll, (20, 15, 50), 0.4, lambda u, v: (v - 1.1) * 1.6 - 0.5 * u * looks.light)
    elif looks.top == "shirt":
        for x in (-1, 1):
            flap = np.array([(x * n * 1.1, 1.2), (x * n * 1.5, 1.42), (x * 0.3, 1.95), (x * 0.02, 1.78)])
            canvas.fill(flap, mix(looks.cloth, (255, 255, 255), 0.4))
            canvas.fill(flap + np.array([0, 0.03]), (20, 15, 50), 0.08)
    elif looks.top == "hood":
        for x in (-1, 1):
            canvas.stroke([(x * 0.22, 1.72), (x * 0.25, 2.0), (x * 0.22, 2.3)], (250, 250, 245),
                0.05, taper=0.3)


def _head(canvas: Canvas, looks: Appearance) -> None:
    w, skin, shade = looks.wide, looks.skin, mix(looks.skin, (150, 70, 60), 0.45)
    for x in (-1, 1):
        canvas.fill(oval(x * w * 1.03, 0.08, 0.13, 0.22), mix(skin, (150, 70, 60), 0.12))
        canvas.fill(oval(x * w * 1.05, 0.09, 0.06, 0.13), shade, 0.45)
        if looks.earring:
            canvas.fill(oval(x * w * 1.08, 0.36, 0.045, 0.045), (240, 214, 130))
    canvas.fill(looks.face, skin)
    canvas.tint(looks.face, shade, 0.6, lambda u, v: -0.55 * u * looks.light + 0.3 * v**2 - 0.08)
    canvas.glow(looks.face, (255, 250, 235), 0.3, (0.35 * looks.light, -0.55), 0.55)
    for x in (-1, 1):
        canvas.glow(looks.face, (232, 100, 100), looks.blush, (x * 0.5 * w / 0.75, 0.28), 0.22)


def _features(canvas: Canvas, looks: Appearance) -> None:
    dark, ink = mix(looks.hair, (30, 20, 25), 0.35), (44, 30, 34)
    shade = mix(looks.skin, (120, 50, 45), 0.5)
    for x in (-1, 1):
        cx, cy, e = x * looks.eye_x, looks.eye_y, looks.eye
        out = [(-0.155, 0.012), (-0.07, -0.062), (0.05, -0.072), (0.165, -0.012 - looks.slant), (0.08, 0.05),
            (-0.07, 0.05)]
        lid = [(cx + x * a * e, cy + b * e) for a, b in out]
        canvas.fill(smooth(lid), (252, 249, 244))
        iris = oval(cx, cy - 0.005, 0.075 * e, 0.075 * e)
        iris[:, 1] = np.clip(iris[:, 1], cy - 0.066 * e, cy + 0.048 * e)
        canvas.fill(iris, (62, 38, 30))
        canvas.fill(oval(cx, cy - 0.005, 0.036 * e, 0.036 * e), (18, 12, 14))
        canvas.fill(oval(cx + 0.025 * np.sign(looks.light), cy - 0.03, 0.018, 0.018), (255, 255, 255))
        canvas.stroke([(lid[0][0] - x * 0.01, lid[0][1]), *lid[1:4]],
            ink, 0.05 if looks.lashes else 0.034, taper=0.7)
        if looks.crease:
            canvas.stroke([(a, b - 0.055) for a, b in lid[:4]], shade, 0.02, 0.8)
        if looks.lashes:
            for k in range(3):
                a, b = 0.09 + 0.038 * k, -0.06 + 0.022 * k
                tip = (cx + x * (a + 0.07) * e, cy + (b - 0.075 + 0.012 * k) * e)
                canvas.stroke([(cx + x * a * e, cy + b * e), tip], ink, 0.024, taper=0.6)
        y = cy - 0.24
        brow = [(cx - x * 0.17, y + 0.03), (cx, y - looks.brow_arch), (cx + x * 0.2, y + 0.035)]
        canvas.stroke(brow, dark, looks.brow, 0.95, taper=0.75)
        canvas.fill(oval(x * looks.nose * 0.5, looks.nose_y + 0.015, 0.024, 0.013), shade, 0.8)
    n, y = looks.nose, looks.nose_y
    side = -1.0 if looks.light > 0 else 1.0
    canvas.stroke([(side * 0.07, -0.08), (side * 0.05, y - 0.16), (side * n, y - 0.02)], shade, 0.035, 0.4)
    canvas.stroke([(-n, y - 0.02), (-n * 0.7, y + 0.025), (0, y + 0.045), (n * 0.7, y + 0.025),
        (n, y - 0.02)], shade, 0.03)
    canvas.glow(looks.face, (255, 250, 240), 0.45, (0, y - 0.07), 0.07)
    m, y, f, lift = looks.mouth, 0.6, looks.fullness, looks.smile
    if looks.beard:
        tone, heavy = mix(looks.hair, looks.skin, 0.25), 0.3 if looks.beard == "stubble" else 0.9
        if looks.beard == "stubble":
            canvas.tint(looks.face, tone, 0.55,
                lambda u, v: (np.hypot(u, v) - 0.5) * 3 * np.clip(4 * v, 0, 1))
        if looks.beard == "goatee":
            canvas.fill(smooth([(-0.16, 0.74), (0, 0.7), (0.16, 0.74), (0.13, 0.93), (0, 1.0),
                (-0.13, 0.93)]), tone, heavy)
        canvas.stroke([(-m, y), (-0.12, y - 0.1), (0, y - 0.09), (0.12, y - 0.1), (m, y)], tone, 0.09, heavy)
    canvas.fill(smooth([(-m, y - lift), (-0.06, y - f), (0, y - 0.75 * f), (0.06, y - f), (m, y - lift),
        (0, y + 0.3 * f)]), looks.lip)
    canvas.fill(smooth([(-m * 0.95, y - lift), (0, y + 0.01), (m * 0.95, y - lift), (0.1, y + 1.3 * f),
        (-0.1, y + 1.3 * f)]), looks.lip)
    canvas.stroke([(-m, y - lift), (0, y + 0.012), (m, y - lift)], mix(looks.lip, (60, 10, 20), 0.6), 0.022)
    canvas.fill(oval(0.05 * looks.light, y + 0.7 * f, 0.06, 0.014), (255, 255, 255), 0.3)


def _age_marks(canvas: Canvas, looks: Appearance) -> None:
    shade, k = mix(looks.skin, (110, 50, 45), 0.55), looks.wrinkle
    for row in range(3):
        y, reach = -0.5 - 0.12 * row, 0.34 - 0.04 * row
        canvas.stroke([(-reach, y), (-0.1, y - 0.025), (0.1, y - 0.02), (reach, y + 0.01)],
            shade, 0.024, 0.9 * (k - 0.2 * row))
    for x in (-1, 1):
        cx, cy = x * looks.eye_x, looks.eye_y
        canvas.stroke([(cx - x * 0.13, cy + 0.12), (cx, cy + 0.165), (cx + x * 0.13, cy + 0.12)],
            shade, 0.026, 0.9 * k)
        canvas.glow(looks.face, shade, 0.4 * max(k - 0.3, 0), (cx, cy + 0.11), 0.14)
        for row in range(3):
            start, end = (cx + x * 0.2, cy + 0.03 * (row - 1)), (cx + x * 0.31, cy + 0.085 * (row - 1))
            canvas.stroke([start, end], shade, 0.022, k - 0.15)
        canvas.stroke([(x * 0.15, 0.32), (x * 0.27, 0.46), (x * 0.31, 0.62)], shade, 0.028, 0.9 * k - 0.1)
        canvas.stroke([(x * 0.29, 0.68), (x * 0.3, 0.8)], shade, 0.024, 0.9 * k - 0.4)
    for px, py, radius in looks.spots:
        canvas.fill(oval(px, py, radius * 1.2, radius), (120, 72, 50), 0.45)


def _mask(canvas: Canvas, looks: Appearance, which: int, wear: str) -> None:
    colour, trim, kind = MASKS[which]
    w, j, c = looks.wide, looks.jaw, looks.chin
    cord, edge = mix(colour, (255, 255, 255), 0.5), mix(colour, (20, 30, 60), 0.35)
    top = {"worn": 0.08, "nose": 0.43, "chin": 0.74}[wear]
    low = {"worn": 1.08, "nose": 1.1, "chin": 1.22}[wear]
    span = low - top
    cheek = w * 0.97 if wear == "worn" else (w * 0.9 if wear == "nose" else j * 0.98)
    half = [(0, top), (0.16, top + 0.02), (0.55 * cheek, top + 0.13 * span), (cheek, top + 0.2 * span),
        (min(cheek, j * 1.12), top + 0.55 * span), (c * 1.35, low - 0.1 * span), (0.5 * c, low), (0, low)]
    shape = both_sides(half)
    for x in (-1, 1):
        ear = (x * w * 1.06, -0.1)
        canvas.stroke([(x * cheek * 0.97, top + 0.22 * span), (x * w * 1.0, 0.0), ear], cord, 0.038, taper=0)
        foot = (x * min(cheek, j * 1.1) * 0.97, top + 0.58 * span)
        canvas.stroke([foot, (x * w * 1.02, 0.4), (x * w * 1.08, 0.18)], cord, 0.038, taper=0)
    canvas.fill(shape + np.array([0, 0.035]), (60, 25, 30), 0.22)
    canvas.fill(shape, colour)
    canvas.tint(shape, trim, 0.95, motif(kind, 0.24), fine=True)
    canvas.tint(shape, edge, 0.6, lambda u, v: -0.5 * u * looks.light + 0.55 * (v - top - 0.55 * span) + 0.05)
    for share in (0.34, 0.54, 0.74):
        y, reach = top + share * span, cheek * (0.9 - 0.42 * max(share - 0.4, 0))
        canvas.stroke([(-reach, y - 0.03), (0, y + 0.035), (reach, y - 0.03)], edge, 0.024, 0.5)
    rim = [(x, y + 0.03) for x, y in half[:4]]
    canvas.stroke([(-x, y) for x, y in rim[:0:-1]] + rim, trim, 0.035, 0.8)


def _glasses(canvas: Canvas, looks: Appearance) -> None:
    if not looks.glasses:
        return
    cy = looks.eye_y + 0.02
    for x in (-1, 1):
        cx = x * looks.eye_x
        box = [(cx - 0.24, cy - 0.14), (cx + 0.24, cy - 0.14), (cx + 0.22, cy + 0.17), (cx - 0.22, cy + 0.17)]
        outer = oval(cx, cy, 0.235, 0.21) if looks.glasses == "round" else smooth(box)
        inner = (outer - [cx, cy]) * 0.87 + [cx, cy]
        canvas.fill(inner, (225, 240, 250), 0.16)
        canvas.fill(np.vstack([outer, outer[:1], inner[:1], inner[::-1]]), looks.frame)
        canvas.stroke([(cx + x * 0.22, cy - 0.05), (x * looks.wide * 1.02, cy - 0.07)],
            looks.frame, 0.04, taper=0.1)
        canvas.stroke([(cx - 0.1, cy + 0.06), (cx + 0.03, cy - 0.12)], (255, 255, 255), 0.03, 0.5)
    reach = looks.eye_x - 0.22
    canvas.stroke([(-reach, cy - 0.03), (0, cy - 0.07), (reach, cy - 0.03)], looks.frame, 0.035, taper=0)


def _front_hair(canvas: Canvas, looks: Appearance) -> None:
    w, p, r, vol = looks.wide, looks.part, looks.recede, looks.volume
    light, dark = mix(looks.hair, (255, 240, 230), 0.28), mix(looks.hair, (0, 0, 0), 0.3)
    down = looks.length in ("long", "bob")
    inner = {"swept": [(-0.5, -0.62 - r), (-0.34, -0.86), (-0.05, -0.72 - r / 2), (0.45, -0.56 - r)],
        "centre": [(-0.5, -0.55), (-0.2, -0.76), (0, -0.96), (0.2, -0.76), (0.5, -0.55)],
        "bangs": [(-0.5, -0.42 - r), (-0.2, -0.38 - r), (0.2, -0.37 - r), (0.5, -0.42 - r)],
        "back": [(-0.5, -0.68 - r), (-0.2, -0.78 - r / 2), (0, -0.74), (0.2, -0.78 - r / 2),
        (0.5, -0.68 - r)], "spiky": [(x, (-0.44 if i % 2 else -0.66) - r) for i,
        x in enumerate(np.linspace(-0.5, 0.5, 7))]}[looks.front]
    if looks.front == "swept" and p < 0:
        inner = [(-x, y) for x, y in inner[::-1]]
    inner = [(x * w / 0.75, max(y, -1.0)) for x, y in inner]
    arc = [(w * 1.06, -0.5), (w * 0.95 * vol, -0.95), (w * 0.5, -1.22 * vol), (0, -1.29 * vol)]
    arc += [(-x, y) for x, y in arc[-2::-1]]
    if looks.front == "spiky":
        arc = [(x * (1.06 if i % 2 else 0.98), y * (1.07 if i % 2 else 0.97)) for i, (x, y) in enumerate(arc)]
    ends, sides = (w * 1.04, -0.05 - 0.5 * r), (w * 0.93, -0.08 - 0.5 * r)
    temples = [(-w * 0.9, -0.42), *inner, (w * 0.9, -0.42)]
    cap = smooth([ends, *arc, (-ends[0], ends[1]), (-sides[0], sides[1]), *temples, sides])
    canvas.fill(cap + np.array([0, 0.035]), mix(looks.skin, (80, 30, 30), 0.6), 0.28)
    canvas.fill(cap, looks.hair)
    canvas.tint(cap, dark, 0.6, lambda u, v: -0.6 * u * looks.light + 0.35 + 0.5 * (v + 0.5))
    if down:
        end = 1.72 if looks.length == "long" else 0.78
        for x in (-1, 1):
            lock = [(0.7, -0.75), (1.05, -0.6), (1.2, 0.1), (1.26, end - 0.25), (1.08, end),
                (0.93, end - 0.2), (0.98, 0.2), (0.9, -0.35)]
            side = smooth([(x * w * a, b) for a, b in lock])
            canvas.fill(side, looks.hair)
            canvas.tint(side, dark, 0.55, lambda u, v: 0.1 + 0.35 * v - 0.5 * u * looks.light)
            canvas.stroke([(x * w * 1.0, -0.4), (x * w * 1.11, 0.2), (x * w * 1.13, end - 0.3)],
                light, 0.03, 0.5)
    for k in range(5):
        a = (k - 2) * 0.24 + 0.2 * looks.light
        strand = mix(light, (235, 235, 238), min(looks.grey * 1.5, 1))
        canvas.stroke([(a * 1.15, -0.86), (a * 0.9, -1.06), (a * 0.5, -1.18)], strand, 0.035, 0.45)
# fmt: on


def _lit(image: Image.Image, looks: Appearance, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    gain = 1 + 0.1 * looks.light * x[None, :] - 0.07 * (x[None, :] ** 2 + y[:, None] ** 2)
    gain *= np.float32(1.03 + rng.normal(0, 0.05))
    warm = looks.warmth + rng.normal(0, 0.012)
    tone = np.array([1 + warm, 1.0, 1 - warm], np.float32)
    grain = rng.standard_normal((height, width), dtype=np.float32)[:, :, None] * np.float32(rng.uniform(2, 5))
    return Image.fromarray(np.clip(pixels * gain[:, :, None] * tone + grain, 0, 255).astype(np.uint8))
