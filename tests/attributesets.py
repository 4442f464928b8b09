"""Small generated photos with two attributes: three colors, each dark or bright; a table names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS, LIGHTS = ("red", "green", "blue"), ("dark", "bright")
LABELS = {"source.label": ["colour", "light"], "source.group": "plant"}


def two_attributes(root: Path, groups: int = 6, each: int = 2, tests: int = 0) -> Path:
    """`root/photos.csv`: groups times each photos of six combinations; `tests` more groups of each are for testing."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["file,colour,light,plant,split"]
    for c, colour in enumerate(COLOURS):
        for v, light in enumerate(LIGHTS):
            for group in range(groups + tests):
                for photo in range(each):
                    draws = np.random.default_rng([c, v, group, photo])
                    hue = np.full(3, 30) + np.random.default_rng([c, v, group]).integers(0, 30, 3)
                    hue[c] += 60
                    noise = draws.integers(0, 60, (16, 12, 3))
                    pixels = np.clip(hue * (1 + v) + noise, 0, 255).astype(np.uint8)
                    file = f"{colour}-{light}-{group}-{photo}.jpg"
                    Image.fromarray(pixels).resize((48, 64), Image.Resampling.NEAREST).save(root / file, quality=90)
                    split = "train" if group < groups else "test"
                    lines.append(f"{file},{colour},{light},{colour[0]}{light[0]}{group},{split}")
    (root / "photos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "photos.csv"
