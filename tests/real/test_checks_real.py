"""What the checks find in real sets: known twins with two labels, hidden copies of faces, few alarms of shortcuts."""

from __future__ import annotations

from pathlib import Path

import pytest

import unfreeze as uf
from unfreeze.data.checks import run_checks

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real photo sets, which lie beside the checkout")


def test_trash_has_three_twins_under_two_labels(tmp_path):
    photos, looks = run_checks(uf.read(str(DATA / "trash")), slow=True)
    exact, near = looks.duplicates
    assert len(exact) == 3 and 1 <= len(near) <= 6
    (conflict,) = (f for f in photos.findings if f.check == "exact-duplicates-disagree")
    assert conflict.message.startswith("3 of 3 exact duplicate pair(s) have two labels: ")
    raised = [f for f in photos.findings if f.check == "shortcuts"]
    assert all(f.severity == "info" for f in raised)
    page = uf.write_data_report(photos, tmp_path / "eda.html")
    assert 50_000 < page.stat().st_size < 1_000_000


def test_masks_hold_copies_that_no_one_marked():
    """Crops of one photo that was in the original set several times; in one fold they flatter no score."""
    photos, looks = run_checks(uf.read(str(DATA / "masks")))
    _, near = looks.duplicates
    assert 50 <= len(near) <= 75
    unit = photos.table["unit"].to_numpy()
    assert (unit[near[:, 0]] == unit[near[:, 1]]).all()
