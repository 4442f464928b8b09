"""Prediction: the same preprocessing as in training, nothing dropped, nothing swapped, nothing chosen anew."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unfreeze.core.errors import ProbabilityError, RunError, SourceError
from unfreeze.core.runs import open_run
from unfreeze.inference.ensemble import load
from unfreeze.inference.predictor import Classifier
from unfreeze.training.crossval import cross_validate
from unfreeze.training.linear_probe.heads import LinearHead

P = ["p_blue", "p_green", "p_red"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, recipe, photos_in, _engines):
    """A run, its photos, and the cache it filled; shared, so never written to."""
    home = tmp_path_factory.mktemp("fitted")
    (home / "cache").mkdir()
    (home / "cache" / "engines").symlink_to(_engines)
    photos = photos_in(home / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(home / "cache"))
        run = cross_validate(photos, recipe, home / "run")
    return run, photos


@pytest.fixture
def run(fitted, ready_cache):
    """The run, with a cache that has not seen a photo: everything is decoded and computed anew."""
    return fitted[0]


@pytest.fixture
def photos(fitted):
    return fitted[1]


@pytest.fixture
def copied(fitted, ready_cache, tmp_path):
    """A copy of the run to damage."""
    shutil.copytree(fitted[0].path, tmp_path / "copy")
    return tmp_path / "copy"


def test_held_out_predictions_come_out_again(run, photos):
    """Training-time preprocessing is prediction-time preprocessing: a fold's head gives its out-of-fold rows."""
    oof = run.predictions()
    everything = load(run)
    for k in range(3):
        rows = oof[oof["fold"] == k]
        alone = Classifier(run, (everything.heads[k],), everything.graphs)
        found = alone.predict([photos.root / path for path in rows["path"]])
        np.testing.assert_allclose(found[P].to_numpy(), rows[P].to_numpy(), atol=1e-6)
        assert [p.removeprefix("p_") for p in found[P].idxmax(axis=1)] == list(found["label"])
        assert list(found["error"]) == [""] * len(rows)


def test_the_folds_are_averaged_as_for_the_test_split(run, photos):
    held = pd.read_parquet(run.path / "test.parquet")
    found = load(run.path).predict(photos.root / "test")
    assert [f"test/{name}" for name in found["path"]] == list(held["path"])
    np.testing.assert_allclose(found[P].to_numpy(), held[P].to_numpy(), atol=1e-6)
    everything = load(run)
    single = [Classifier(run, (h,), everything.graphs).predict(photos.root / "test")[P] for h in everything.heads]
    np.testing.assert_allclose(found[P].to_numpy(), np.mean([s.to_numpy() for s in single], axis=0), atol=1e-9)


def test_a_tall_photo_is_seen_by_its_own_center(run, photos, tmp_path):
    """Height and width are not swapped: what is outside the center square of a tall or wide photo does not count."""
    from PIL import Image

    inner = np.asarray(Image.open(photos.root / "train/000.jpg").convert("RGB").resize((80, 80)))
    plain = Image.fromarray(inner)
    around = np.random.default_rng(0).integers(0, 256, (240, 80, 3)).astype(np.uint8)
    tall = around.copy()
    tall[80:160] = inner
    wide = around.transpose(1, 0, 2).copy()
    wide[:, 80:160] = inner
    for name, picture in (("plain", plain), ("tall", Image.fromarray(tall)), ("wide", Image.fromarray(wide))):
        picture.save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in ("plain", "tall", "wide")]
    found = load(run).predict(files)[P].to_numpy()
    np.testing.assert_allclose(found[1], found[0], atol=0.02)
    np.testing.assert_allclose(found[2], found[0], atol=0.02)
    turned = tmp_path / "turned.png"
    Image.fromarray(tall.transpose(1, 0, 2)).save(turned)
    assert load(run).predict([turned])["error"][0] == ""


def test_order_is_kept_and_nothing_is_dropped(run, photos, tmp_path):
    good = [photos.root / f"train/{i:03d}.jpg" for i in (30, 2, 17)]
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good[0].read_bytes()[:400])
    files = [good[0], tmp_path / "absent.jpg", good[1], cut, good[2], good[0]]
    found = load(run).predict(files)
    assert list(found["path"]) == [str(f) for f in files]
    assert list(found.columns) == ["path", "label", *P, "error"]
    assert list(found.index) == list(range(6))
    assert found["error"][1] == "no such file"
    assert found["error"][3]
    assert found["label"].isna().tolist() == [False, True, False, True, False, False]
    assert found[P].isna().all(axis=1).tolist() == [False, True, False, True, False, False]
    np.testing.assert_allclose(found.loc[[0, 2, 4, 5], P].sum(axis=1), 1)
    assert found.loc[0, P].tolist() == found.loc[5, P].tolist()
    alone = load(run).predict(good[1])
    assert alone["path"].tolist() == ["002.jpg"]
    np.testing.assert_allclose(alone[P].to_numpy()[0], found.loc[2, P].to_numpy(float), atol=1e-6)


def test_only_bad_photos_are_rows_too(run, tmp_path):
    found = load(run).predict([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert list(found["error"]) == ["no such file"] * 2
    assert found[P].isna().all(axis=None)


def test_a_table_is_predicted_in_its_order(run, photos):
    table = pd.DataFrame({"path": [str(photos.root / f"test/{i:03d}.jpg") for i in (40, 36)], "x": 1}, index=[7, 3])
    found = load(run).predict(table)
    assert list(found["path"]) == list(table["path"])
    with pytest.raises(SourceError, match="no column 'path'; it has x"):
        load(run).predict(table[["x"]])


def test_tta_is_the_mean_over_the_mirror_image(run, photos):
    classifier = load(run)
    by_default, flip, plain = (
        classifier.predict(photos.root / "test", tta=t)[P].to_numpy() for t in (None, "flip", "plain")
    )
    assert np.array_equal(by_default, flip)  # the views of training
    assert not np.allclose(plain, flip, atol=1e-6)
    assert np.abs(plain - flip).max() < 0.5
    with pytest.raises(SourceError, match="tta='mirror': known are plain, flip"):
        classifier.predict(photos.root / "test", tta="mirror")


def rewrite(path, **changes):
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(info | changes))


def test_another_class_order_is_refused(copied):
    """run.json edited, or heads of another run put in: probabilities would go to the wrong names without a word."""
    rewrite(copied, classes=["red", "green", "blue"])
    with pytest.raises(RunError, match=r"head\.safetensors: its classes \(blue, green, red\) are not.*force=True"):
        load(copied)


@pytest.mark.parametrize("shape", [((7, 3), (3,)), ((6400, 2), (2,))])
def test_a_head_of_another_shape_is_refused(copied, run, shape):
    head = LinearHead(*(np.zeros(s, np.float32) for s in shape), 1.0)
    head.save(copied / "fold-1" / "head.safetensors", "x", run.classes)
    with pytest.raises(RunError, match=r"fold-1.*does not fit this run of 6400 and 3"):
        load(copied)


def test_a_missing_or_damaged_head_is_refused(copied):
    head = copied / "fold-2" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-7])
    with pytest.raises(RunError, match=r"fold-2.*cannot be read as a head"):
        load(copied)
    head.unlink()
    with pytest.raises(RunError, match="fold-2"):
        load(copied)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_head_with_values_that_are_not_finite_is_refused(copied, value):
    """The argmax of NaN is 0: every image would be of the first class."""
    file = copied / "fold-1" / "head.safetensors"
    head, about = LinearHead.load(file)
    head.weight[0, 0] = value
    head.save(file, about["identity"], about["classes"])
    with pytest.raises(RunError, match="not all finite"):
        load(copied)


def test_features_that_are_not_finite_are_an_error_and_never_the_first_class(run, photos, monkeypatch):
    classifier = load(run)
    heads = tuple(replace(head, bias=head.bias * np.nan) for head in classifier.heads)
    with pytest.raises(ProbabilityError, match="not finite"):
        replace(classifier, heads=heads).predict(photos.root)


def test_other_weights_than_those_of_training_are_refused(copied, run):
    rewrite(copied, inputs=[run.info["inputs"][0] | {"weights": "0" * 64}])
    with pytest.raises(RunError, match="other weights or preprocessing of 'timm/tf_efficientnet_lite0'"):
        load(copied)


def test_an_unfinished_run_cannot_predict(copied):
    rewrite(copied, status="running")
    with pytest.raises(RunError, match="not finished"):
        load(copied)


def test_a_run_moved_elsewhere_predicts_the_same(copied, run, photos):
    a, b = load(copied).predict(photos.root / "test"), load(open_run(run.path)).predict(photos.root / "test")
    pd.testing.assert_frame_equal(a, b)
