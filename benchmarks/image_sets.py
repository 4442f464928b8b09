"""Photos to measure on: real ones brought to one size, or drawn ones where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

_ENDINGS = {".jpg", ".jpeg", ".png"}


def real_photos(folder: Path) -> list[Path]:
    """Every photo below a folder, sorted; hidden files are left out."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS and not p.name.startswith("."))


def resized(source: Path, target: Path, width: int = 384, height: int = 512) -> None:
    """The photo's largest centre crop of that shape, as JPEG of quality 90."""
    with Image.open(source) as image:
        photo = image.convert("RGB")
    target.parent.mkdir(parents=True, exist_ok=True)
    ImageOps.fit(photo, (width, height), Image.Resampling.BICUBIC).save(target, quality=90)


def flat_set(data: Path | None, target: Path, count: int) -> list[Path]:
    """`count` JPEGs of 384x512 in a folder: photos of the trash set, or drawn ones where it is absent."""
    sources = real_photos(data / "trash") if data and (data / "trash").is_dir() else []
    if len(sources) < count:
        return drawn_set(target, count, 384, 512, classes=1)
    files = []
    for i, source in enumerate(sources[:: len(sources) // count][:count]):
        files.append(target / f"{i:05d}.jpg")
        resized(source, files[-1])
    return files


def drawn_set(target: Path, count: int, width: int, height: int, classes: int, seed: int = 0) -> list[Path]:
    """`count` distinct JPEGs in class folders: smooth random colour fields, each class with a tint of its own."""
    draws = np.random.default_rng(seed)
    tints = draws.integers(40, 216, (classes, 3))
    files = []
    for i in range(count):
        label = i % classes
        field = draws.normal(0, 50, (7, 7, 3)) + tints[label]
        small = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
        files.append(target / f"class-{label}" / f"{i:06d}.jpg")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        small.resize((width, height), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files
