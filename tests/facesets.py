"""Photos with faces whose place is known: drawn people on larger, empty walls; and walls alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from unfreeze.demo.drawing import DemoPerson
from unfreeze.demo.portraits import draw_portrait

# Side of a drawn portrait; its face fills the middle.
PORTRAIT = (144, 192)


@cache
def portrait(person: int, state: int = 2) -> Image.Image:
    """A drawn person; state 0 wears a mask, 2 none. That `retinaface` finds them was measured: 416 of 420."""
    return draw_portrait(DemoPerson((person, 5), person % 2, 25 + person), state, 0, PORTRAIT)


def wall(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise without a face, of (width, height)."""
    pixels = np.random.default_rng(seed).normal(150, 6, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def scene(place: tuple[int, int], size: tuple[int, int] = (320, 240), person: int = 0, state: int = 2) -> Image.Image:
    """A wall with a portrait whose upper left corner is at `place`."""
    image = wall(size, person)
    image.paste(portrait(person, state), place)
    return image


def masks(root: Path, people: int = 8, faceless: int = 0, size: tuple[int, int] = (320, 240)) -> Path:
    """`root/worn/p03_0.jpg` and `root/bare/...`: each person with and without a mask, somewhere in the photo.

    The first `faceless` photos of class worn are walls.
    """
    for person, name, place in _places(people, size):
        image = scene(place, size, person, 0 if name == "worn" else 2)
        if name == "worn" and person < faceless:
            image = wall(size, person)
        (root / name).mkdir(parents=True, exist_ok=True)
        image.save(root / name / f"p{person:02d}_0.jpg", quality=92)
    return root


def _places(people: int, size: tuple[int, int]) -> Iterator[tuple[int, str, tuple[int, int]]]:
    draw = np.random.default_rng(3)
    for person in range(people):
        for name in ("bare", "worn"):
            x, y = (int(draw.integers(0, size[i] - PORTRAIT[i])) for i in (0, 1))
            yield person, name, (x, y)
