"""Decoding on real files that are damaged or unusual; skipped where those are absent."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import PhotoError
from unfreeze.data.decode import decode, decode_sized, load_crop, read_bytes
from unfreeze.data.image_formats import FORMATS
from unfreeze.data.scan import scan_images

MESSY = Path(__file__).parents[3] / "shared" / "data" / "messy"
pytestmark = [
    pytest.mark.skipif(not MESSY.is_dir(), reason="the malformed real files (shared/data/messy) are not here"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
FILES = sorted((MESSY / "images").iterdir()) if MESSY.is_dir() else []


def kinds() -> dict[str, str]:
    with (MESSY / "kinds.csv").open(newline="") as file:
        return {row["file"]: row["kind"] for row in csv.DictReader(file)}


def by_pillow(path: Path) -> Image.Image | None:
    """The first frame, upright; None where Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image) if image.format in (*FORMATS, "MPO") else None
    except Exception:  # whatever it says
        return None


def test_all_there():
    assert len(FILES) == len(kinds()) == 170


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_pillow_reads_we_read_and_nothing_else_happens(path):
    expected = by_pillow(path)
    try:
        pixels, size = decode_sized(read_bytes(path), path=path)
    except PhotoError as error:
        assert expected is None, str(error)
        assert str(error).startswith(f"{path}: ") and error.reason
        return
    assert expected is not None
    assert pixels.shape == (expected.height, expected.width, 3)
    assert size == expected.size
    assert pixels.dtype == np.uint8
    if expected.mode in ("RGB", "L") and "transparency" not in expected.info:
        # Two JPEG decoders may differ by how they smooth colors; every other format is exact.
        difference = np.abs(np.asarray(expected.convert("RGB"), np.int16) - pixels).mean()
        assert difference <= (3 if path.suffix.lower() in (".jpg", ".jpeg", ".mpo") else 0)
    assert load_crop(read_bytes(path), 64, 0.875).shape == (64, 64, 3)


def test_what_is_said_to_be_unreadable_is():
    unreadable = [name for name, kind in kinds().items() if kind == "unreadable"]
    assert len(unreadable) == 25
    for name in unreadable:
        with pytest.raises(PhotoError):
            decode(read_bytes(MESSY / "images" / name))


def test_looking_at_all_of_them_at_once():
    paths = [path.relative_to(MESSY).as_posix() for path in FILES]
    table = pd.DataFrame({"path": paths, "label": "x", "group": paths, "split": "train"})
    seen = scan_images(ImageDataset(table, MESSY, ("x",), ("x",), ("label",), "table", ""))
    readable = [by_pillow(path) is not None for path in FILES]
    assert seen.readable.tolist() == readable


@pytest.mark.parametrize("picture", ["Landscape", "Portrait"])
def test_exif_orientations_are_all_the_same_picture(picture):
    files = [MESSY / "exif" / f"{picture}_{i}.jpg" for i in range(9)]
    upright, *others = [decode(read_bytes(path)).astype(np.int16) for path in files]
    assert (upright.shape[1] > upright.shape[0]) == (picture == "Landscape")
    for other in others:
        assert other.shape == upright.shape
        assert np.abs(other - upright).mean() < 5  # each was compressed anew
        for wrong in (other[::-1], other[:, ::-1], other[::-1, ::-1]):
            assert np.abs(wrong - upright).mean() > 15
