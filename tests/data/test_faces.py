"""The tables of faces: shares with intervals over groups, sizes, places, and nothing of photos that cannot be read."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from facesets import masks, scene
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import DetectorError
from unfreeze.data.face_stats import FaceStats, clustered_proportion_ci, face_stats, faces_of, heat_map
from unfreeze.data.scan import scan_images

needs_model = pytest.mark.skipif(not importlib.util.find_spec("retinaface"), reason="the extra faces is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six people with and without a mask; two masked photos are walls, one bare one is cut off."""
    root = masks(tmp_path_factory.mktemp("people") / "masks", people=6, faceless=2)
    last = root / "bare" / "p05_0.jpg"
    last.write_bytes(last.read_bytes()[:2000])
    both = scene((0, 20), (320, 240), 1)
    both.paste(scene((0, 0), person=2).crop((0, 0, 144, 192)), (160, 20))
    both.save(root / "bare" / "p04_0.jpg", quality=92)
    return root


@pytest.fixture(scope="module")
def found(source) -> FaceStats:
    return uf.face_stats(uf.read(source))


@needs_model
def test_each_photo_has_its_row(found):
    table = found.photos.set_index("path")
    assert len(table) == 12
    assert table.loc["worn/p00_0.jpg", "found"] == 0 and table.loc["worn/p00_0.jpg", "searched"]
    assert not table.loc["bare/p05_0.jpg", "searched"]
    assert table.loc["bare/p04_0.jpg", "found"] == 2
    row = table.loc["bare/p00_0.jpg"]
    assert row["found"] == 1 and row["score"] > 0.5
    assert row["area"] == pytest.approx((row["right"] - row["left"]) * (row["bottom"] - row["top"]))
    assert row["x"] == pytest.approx((row["left"] + row["right"]) / 2)
    wide, high = (row["right"] - row["left"]) * 320, (row["bottom"] - row["top"]) * 240
    assert row["side"] == pytest.approx(max(wide, high) / 240)
    empty = table[table["found"] == 0]
    assert empty[["left", "score", "area", "side", "x", "y"]].isna().all().all()


@needs_model
def test_classes_are_counted_without_what_cannot_be_read(found):
    rows = found.classes.set_index("label")
    assert rows.loc["worn", ["photos", "without"]].tolist() == [6, 2]
    assert rows.loc["bare", ["photos", "without", "several"]].tolist() == [5, 0, 1]
    assert rows.loc["worn", "share"] == pytest.approx(1 / 3)
    assert rows.loc["worn", "low"] < 1 / 3 < rows.loc["worn", "high"]
    assert (found.total["photos"], found.total["without"], found.total["several"]) == (11, 2, 1)
    bare = found.photos[(found.photos["label"] == "bare") & found.photos["searched"]]
    assert rows.loc["bare", "side_median"] == pytest.approx(bare["side"].median())
    assert rows.loc["bare", "area_q25"] == pytest.approx(bare["area"].quantile(0.25))
    assert rows.loc["bare", "x_mean"] == pytest.approx(bare["x"].mean())
    assert rows.loc["bare", "y_sd"] == pytest.approx(bare["y"].std(ddof=0))
    assert "2 of 11 photos" in found.sentence() and "most often in 'worn' (33.3%)" in found.sentence()


@needs_model
def test_all_of_it_is_json_without_nan(found):
    told = json.loads(json.dumps(found.described(), allow_nan=False))
    assert len(told["photos"]) == 12 and len(told["classes"]) == 2
    assert np.array(told["heat"]).shape == (32, 32)
    assert told["photos"][0].keys() == set(found.photos.columns)
    assert told["detector"].startswith("retinaface-")
    assert told["sentence"] == found.sentence()


@needs_model
def test_the_heat_map_is_that_of_the_largest_faces(found):
    boxes = found.photos[["left", "top", "right", "bottom"]].to_numpy()
    np.testing.assert_array_equal(found.heat, heat_map(boxes))
    assert 0 < found.heat.max() <= 1 and found.heat[0, 0] < found.heat.max()


@needs_model
def test_a_set_without_any_face_is_said(tmp_path):
    root = masks(tmp_path / "walls", people=2, faceless=2)
    photos = uf.read(root)
    walls = photos.table[photos.table["label"] == "worn"].reset_index(drop=True)
    found = face_stats(ImageDataset(walls, root, ("worn",), ("worn",), (), "test", ""))
    assert found.total["share"] == 1.0 and found.heat.max() == 0
    assert np.isnan(found.total["area_median"])
    assert found.sentence().startswith("No face was found in 2 of 2 photos (100.0%")
    json.dumps(found.described(), allow_nan=False)


@needs_model
def test_no_readable_photo_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff")
    table = pd.DataFrame({"path": ["a/1.jpg"], "label": "a", "group": "g", "split": "train"})
    found = face_stats(ImageDataset(table, tmp_path, ("a",), ("a",), (), "test", ""))
    assert found.sentence() == "No photo could be searched for faces."
    assert found.total["photos"] == 0 and np.isnan(found.total["share"])
    json.dumps(found.described(), allow_nan=False)


@needs_model
def test_after_a_first_look_it_is_the_same(source, found):
    photos = uf.read(source)
    pd.testing.assert_frame_equal(faces_of(photos, scan_images(photos)).photos, found.photos)


def test_an_unknown_detector_is_refused_before_any_work(source, monkeypatch):
    monkeypatch.setattr("unfreeze.data.face_stats.scan_images", lambda *_: pytest.fail("looked"))
    with pytest.raises(DetectorError, match="known are retinaface"):
        face_stats(uf.read(source), "eyes")


def test_the_heat_map_is_the_share_that_covers_each_cell():
    boxes = np.array([[0.25, 0.5, 0.75, 1.0], [0.25, 0.0, 0.5, 1.0], [np.nan] * 4, [0.0, 0.0, 0.125, 1.0]])
    expected = np.array([[0.5, 1, 0, 0], [0.5, 1, 0, 0], [0.5, 2, 1, 0], [0.5, 2, 1, 0]]) / 3
    np.testing.assert_allclose(heat_map(boxes, 4), expected)
    assert heat_map(boxes).shape == (32, 32)
    assert heat_map(boxes).sum() == pytest.approx(1024 * (0.25 + 0.25 + 0.125) / 3)


def test_intervals_are_wilsons_for_photos_alone():
    """Against the textbook: 0 of 10 and 5 of 10 (Wilson 1927; e.g. R's binom.confint)."""
    assert clustered_proportion_ci(np.zeros(10, bool), np.arange(10)) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    half = clustered_proportion_ci(np.arange(10) < 5, np.arange(10))
    assert half == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert np.isnan(clustered_proportion_ci(np.zeros(0, bool), np.zeros(0))).all()


def test_photos_of_one_group_count_less():
    """Groups that are all alike weigh as one photo each; groups that are mixed by chance change little."""
    groups = np.repeat(np.arange(10), 7)
    alike = clustered_proportion_ci(groups < 3, groups)
    alone = clustered_proportion_ci(np.arange(10) < 3, np.arange(10))
    assert alike == pytest.approx(alone, abs=0.03)
    mixed = clustered_proportion_ci(np.random.default_rng(0).random(70) < 0.3, groups)
    assert mixed[2] - mixed[1] < 0.75 * (alike[2] - alike[1])
    assert clustered_proportion_ci(np.zeros(70, bool), groups) == pytest.approx((0, 0, 0.2775), abs=1e-4)


def test_intervals_hold_what_they_say():
    """Of 400 sets of 40 groups of 7 with a share of .2 that varies between groups, about 95% cover it."""
    draw = np.random.default_rng(1)
    groups, covered = np.repeat(np.arange(40), 7), 0
    for _ in range(400):
        chance = draw.beta(0.5, 2.0, 40)[groups]
        _, low, high = clustered_proportion_ci(draw.random(280) < chance, groups)
        covered += low <= 0.2 <= high
    assert 0.92 <= covered / 400 <= 0.98
