"""Training photos against test photos: halves of one set, darkened photos, copies, and what is said."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

import unfreeze as uf
from photosets import class_folders
from unfreeze.core.errors import SourceError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """96 photos, each its own group."""
    return uf.read(str(class_folders(tmp_path_factory.mktemp("against") / "photos", groups=16)))


def part(photos, rows):
    return photos.with_table(photos.table.iloc[rows].reset_index(drop=True))


@pytest.fixture(scope="module")
def halves(photos):
    order = np.random.default_rng(1).permutation(len(photos))
    return part(photos, order[:48]), part(photos, order[48:])


@pytest.fixture(scope="module")
def dark(halves, tmp_path_factory):
    """The second half through another camera: darker and with less color."""
    folder = tmp_path_factory.mktemp("dark")
    for i, file in enumerate(halves[1].files()):
        with Image.open(file) as image:
            changed = ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.4)).enhance(0.5)
        changed.save(folder / f"{i:02d}.jpg", quality=70)
    return folder


def test_two_halves_are_not_distinguished(halves):
    found = uf.compare_datasets(*halves)
    assert found.result.low <= 0.5 + 0.05 and not (found.apart and found.result.auc > 0.65)
    assert 0.3 < found.result.auc < 0.7
    assert [f.severity for f in found.findings() if f.check == "shift"] == ["info"]


def test_another_camera_is(halves, dark):
    found = uf.compare_datasets(halves[0], dark)
    assert found.apart and found.result.low > 0.8
    assert "can clearly tell the test photos" in found.sentence
    (shift,) = (f for f in found.findings() if f.check == "shift")
    assert shift.severity == "warning"
    assert len(found.training) == 48 and len(found.test) == 48
    assert found.training["probability"].is_monotonic_increasing
    assert found.test["probability"].is_monotonic_decreasing
    assert set(found.test["path"]) == {f"{i:02d}.jpg" for i in range(48)}
    json.dumps(found.json(), allow_nan=False)


def test_again_is_the_same(halves, dark):
    one, two = uf.compare_datasets(halves[0], dark), uf.compare_datasets(halves[0], dark)
    assert one.result.auc == two.result.auc
    pd.testing.assert_frame_equal(one.test, two.test)


def test_copies_in_both_are_named(halves, tmp_path):
    train, test = halves
    for i, file in enumerate(test.files()[:20]):
        (tmp_path / f"{i:02d}.jpg").write_bytes(file.read_bytes())
    (tmp_path / "copy.jpg").write_bytes(train.files()[3].read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"x")
    found = uf.compare_datasets(train, tmp_path)
    assert found.copies.to_dict("records") == [
        {"training": train.table["path"].iloc[3], "test": "copy.jpg", "kind": "exact"}
    ]
    assert len(found.test) == 21
    assert [f.check for f in found.findings()] == ["shift", "test-duplicates"]


def test_groups_hidden_on_one_side_are_reckoned_with(tmp_path):
    """Four photos of each of 24 persons; of the test persons only the photos are known."""
    photos = uf.read(
        str(class_folders(tmp_path / "photos", groups=10, each=4)),
        uf.Recipe().replace(**{"source.group_regex": r"(?P<group>g\d+)_"}).source,
    )
    groups = np.random.default_rng(0).permutation(photos.table["group"].unique())
    second = photos.table["group"].isin(groups[:12]).to_numpy()
    train, test = part(photos, np.flatnonzero(~second)), part(photos, np.flatnonzero(second))
    hidden = test.with_table(test.table.assign(group=test.table["path"]))
    found = uf.compare_datasets(train, hidden)
    assert len(found.halves) == 39
    assert np.mean(found.halves) > 0.55
    assert "random splits of the training images by group give" in found.sentence
    assert uf.compare_datasets(train, test).halves == ()


def test_too_few_photos(halves, tmp_path):
    for i, file in enumerate(halves[1].files()[:4]):
        (tmp_path / f"{i}.jpg").write_bytes(file.read_bytes())
    with pytest.raises(SourceError, match="the test photos have 4 groups that can be read"):
        uf.compare_datasets(halves[0], tmp_path)
    with pytest.raises(SourceError, match="no such file or folder"):
        uf.compare_datasets(halves[0], tmp_path / "absent")


def test_a_copy_in_the_other_set_is_no_sign_of_a_difference(halves, tmp_path):
    """Test photos that are training photos: with the copy in training a model would call them training photos."""
    train = halves[0]
    for i, file in enumerate(train.files()[:30]):
        (tmp_path / f"{i:02d}.jpg").write_bytes(file.read_bytes())
    found = uf.compare_datasets(train, tmp_path)
    assert found.result.auc > 0.4 and not found.apart and len(found.copies) == 30
