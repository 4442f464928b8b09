"""The readers on real data sets; skipped where those are absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfreeze.core.recipe_schema import Source
from unfreeze.data.readers import read

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real photos (shared/data) are not here")


def splits(photos) -> dict[str, int]:
    return photos.table["split"].value_counts().to_dict()


def test_reader_masks():
    photos = read(DATA / "masks/faces.csv", Source(group="photo"))
    assert photos.reader == "table"
    assert len(photos) == 1500
    assert photos.table["label"].value_counts().to_dict() == {
        "with_mask": 1102,
        "without_mask": 317,
        "mask_worn_incorrectly": 81,
    }
    assert photos.choice.startswith("CSV faces.csv: paths in 'file', label 'label', group 'photo'; 1,500 photos")
    assert 1 < photos.table["group"].nunique() < 1500
    assert all(path.is_file() for path in photos.files())


def test_reader_masks_groups_from_names():
    """The pattern for people without a CSV gives the very groups of the CSV."""
    given = read(DATA / "masks/faces.csv", Source(group="photo")).table
    found = read(DATA / "masks", Source(group_regex=r"/(?P<group>[^/]+)_\d+\.jpg$")).table
    assert list(found["path"]) == list(given["path"])
    assert list(found["group"]) == list(given["group"])


def test_reader_clothing_keeps_its_split():
    photos = read(DATA / "clothing/groups.csv", Source(group="sender_id"))
    assert len(photos) == 955
    assert len(photos.classes) == 10
    assert set(splits(photos)) == {"train", "test"}
    assert "split 'split' (train + validation pooled and cross-validated, test kept for testing)" in photos.choice
    # Train and validation share senders, but they are one pool here; test shares none.
    assert [f for f in photos.findings if f.check == "groups"] == []
    by_folder = read(DATA / "clothing")
    assert by_folder.reader == "split_folders"
    assert list(by_folder.table["path"]) == list(photos.table["path"])
    assert list(by_folder.table["label"]) == list(photos.table["label"])
    assert splits(by_folder) == splits(photos)


def test_reader_grocery():
    photos = read(DATA / "grocery")
    assert photos.reader == "split_folders"
    assert len(photos) == 834
    assert len(photos.classes) == 7
    assert set(splits(photos)) == {"train", "test"}
    assert set(splits(read(DATA / "grocery", Source(split="none")))) == {"train"}


def test_reader_trash():
    photos = read(DATA / "trash")
    assert photos.reader == "class_folders"
    assert len(photos) == 1377
    assert photos.classes == ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    assert splits(photos) == {"train": 1377}
