"""Peak memory of `unfreeze fit` over the number of photos: what grows is to be the table alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child
import image_sets

# quality -> numbers of photos
COUNTS = {"fast": (1_000, 20_000), "good": (1_000, 5_000, 10_000)}
CLASSES, SIDE = 4, 64
HEADLINE = ("quality", "photos", "peak_mb", "anon_mb", "grown_anon_mb", "grown_bytes_a_photo", "seconds")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a quality and number of tiny drawn photos; `grown` against the fewest, without and with file pages."""
    files = image_sets.drawn_set(scratch / "all", max(max(c) for c in COUNTS.values()), SIDE, SIDE, CLASSES)
    for quality, counts in COUNTS.items():
        fewest: dict[str, Any] = {}
        for count in counts:
            source = _subset(files, scratch / f"photos-{count}", count)
            # The engine is converted beforehand, for its peak does not depend on the photos and would hide what does.
            cache = scratch / f"cache-{quality}"
            if not fewest:
                child.fit(_subset(files, scratch / "few", 64), scratch / f"{quality}-0", cache, "--quality", quality)
            taken = child.fit(source, scratch / f"{quality}-{count}", cache, "--quality", quality)
            row = {
                "quality": quality,
                "photos": count,
                "peak_mb": taken.peak_mb,
                "anon_mb": taken.anon_mb,
                "seconds": taken.seconds,
                "cpu_s": taken.cpu_seconds,
                "repeats": 1,
                "load": taken.load,
            }
            fewest = fewest or row
            added = count - fewest["photos"]
            row["grown_anon_mb"] = round(row["anon_mb"] - fewest["anon_mb"], 1)
            row["grown_bytes_a_photo"] = round(row["grown_anon_mb"] * 2**20 / added) if added else 0
            row |= {f"{stage}_s": s for stage, s in child.stages(scratch / f"{quality}-{count}").items()}
            yield row


def _subset(files: list[Path], folder: Path, count: int) -> Path:
    """A folder with links to the first `count` photos in their class folders."""
    for file in files[:count]:
        target = folder / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.hardlink_to(file)
    return folder
