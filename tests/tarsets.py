"""The generated photos of `photosets` in WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from photosets import CLASSES, draw


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def jpeg(colour: int, group: int, photo: int) -> bytes:
    held = io.BytesIO()
    draw(colour, group, photo).save(held, "JPEG", quality=90)
    return held.getvalue()


def shards(root: Path, groups: int = 8, each: int = 2, names: str = "shard-{:03d}.tar") -> Path:
    """Photos, classes (.cls) and plants (.json), four groups an archive: `shard-000.tar` with `red-0-0.jpg`, ..."""
    root.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, groups, 4)):
        with tarfile.open(root / names.format(number), "w") as archive:
            for group in range(start, min(start + 4, groups)):
                for colour, label in enumerate(CLASSES):
                    for photo in range(each):
                        key = f"{label}-{group}-{photo}"
                        add(archive, f"{key}.jpg", jpeg(colour, group, photo))
                        add(archive, f"{key}.cls", f"{label}\n".encode())
                        told = {"person": f"{label}{group}", "kind": label, "age": 7.0, "boxes": [1, 2]}
                        add(archive, f"{key}.json", json.dumps(told).encode())
    return root
