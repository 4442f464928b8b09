"""Faces in real photos; skipped where those are absent. The figures are those of docs/faces.md, with some room."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import unfreeze as uf
from unfreeze.core.recipe_schema import Source

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason="the real photos (shared/data) are not here"),
    pytest.mark.skipif(not importlib.util.find_spec("retinaface"), reason="the extra faces is not installed"),
]


def test_faces_on_masks():
    """Masked faces are missed more often than bare ones, and the faces of these crops sit in the middle."""
    photos = uf.read(DATA / "masks/faces.csv", Source(group="photo"))
    found = uf.face_stats(photos)
    rows = found.classes.set_index("label")
    assert rows["photos"].to_dict() == {"with_mask": 1102, "without_mask": 317, "mask_worn_incorrectly": 81}
    assert rows.loc["without_mask", "share"] < 0.02
    assert 0.02 < rows.loc["with_mask", "share"] < 0.07
    assert rows.loc["with_mask", "low"] > rows.loc["without_mask", "share"]
    assert abs(found.total["x_mean"] - 0.5) < 0.02 and found.total["x_sd"] < 0.1
    assert found.heat[12, 16] > 0.9 > 0.1 > found.heat[0, 0]
    assert "most often in 'with_mask'" in found.sentence()


def test_things_are_no_faces():
    found = uf.face_stats(uf.read(DATA / "trash"))
    assert found.total["share"] > 0.99


def test_messy_files_end_nothing():
    found = uf.face_stats(uf.read(DATA / "messy"))
    assert 0 < found.total["photos"] < len(found.photos)
