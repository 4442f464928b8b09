"""Small generated photos for tests: three classes told apart by color, groups told apart by hue and texture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("red", "green", "blue")
GROUP_REGEX = r"(?P<group>g\d+)_"


def draw(colour: int, group: int, photo: int, seed: int = 0) -> Image.Image:
    """48 x 64 pixels: `colour` 0..2 is the class, `group` holds the hue, `photo` the noise."""
    hue = np.random.default_rng([seed, colour, group]).integers(0, 60, 3)
    hue[colour] += 90
    noise = np.random.default_rng([seed, colour, group, photo]).integers(0, 100, (16, 12, 3))
    pixels = np.clip(hue + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((48, 64), Image.Resampling.NEAREST)


def class_folders(
    root: Path, groups: int = 12, each: int = 2, classes: tuple[str, ...] = CLASSES, seed: int = 0
) -> Path:
    """`root/red/g003_1.jpg`: groups times each photos a class."""
    for colour, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for group in range(groups):
            for photo in range(each):
                draw(colour % 3, group, photo, seed).save(root / name / f"g{colour}{group:02d}_{photo}.jpg", quality=90)
    return root


def table(root: Path, groups: int = 6, each: int = 2, seed: int = 0) -> Path:
    """The same photos in one folder with `photos.csv`: file, color, plant, split (the last two groups are test)."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["file,colour,plant,split"]
    for colour, name in enumerate(CLASSES):
        for group in range(groups):
            for photo in range(each):
                file = f"{name}-{group}-{photo}.jpg"
                draw(colour, group, photo, seed).save(root / file, quality=90)
                lines.append(f"{file},{name},{name}{group},{'test' if group >= groups - 2 else 'train'}")
    (root / "photos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "photos.csv"
