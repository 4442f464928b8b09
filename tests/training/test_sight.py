"""Photos seen around their faces: the same square in every cache, in training and in prediction."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import unfreeze as uf
from facesets import masks, scene
from finetuning import Says, no_processes
from unfreeze.core.cache import content_hash
from unfreeze.core.errors import DetectorError, MissingExtraError, RecipeError, RunError
from unfreeze.core.recipe import Recipe, from_dict, read_recipe
from unfreeze.data.decode import load_crop
from unfreeze.data.face_boxes import crop_of
from unfreeze.data.pixel_cache import CropSpec, cache_pixels
from unfreeze.features import crops, extract
from unfreeze.features.crops import face_crop_key, face_crops, needs_faces, preprocessing_of
from unfreeze.features.inputs import feature_extractors
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.pooling import FeatureSpec
from unfreeze.models.registry import find_backbone
from unfreeze.training.crossval import cross_validate

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("retinaface"), reason="the extra faces is not installed")

FACE = Recipe().replace(
    **{
        "image.crop": "face",
        "image.size": 64,
        "strategy": "probe",
        "backbone": "timm/test_resnet",
        "weights": "none",
        "engine": "torch",
        "folds.n_splits": 3,
        "probe.stages": "last:2",
        "probe.pool_size": 2,
        "probe.Cs": [1.0, 30.0],
        "train.epochs": 1,
        "train.precision": "f32",
        "train.memory_format": "contiguous",
        "train.micro_batch": 16,
        "source.group_regex": r"(?P<group>p\d+)_",
    }
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """18 people with and without a mask, each somewhere in the photo; one masked photo is a wall."""
    return masks(tmp_path_factory.mktemp("people") / "masks", people=18, faceless=1)


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """A probe run that sees faces."""
    return cross_validate(uf.read(source, FACE.source), FACE, tmp_path_factory.mktemp("runs") / "faces")


def keys_of(files):
    return np.array([content_hash(f.read_bytes()) for f in files], np.uint64)


def squares_for(files, recipe=FACE):
    return face_crops(recipe, files, keys_of(files), np.ones(len(files), bool))


def test_recipe_knows_the_word_and_its_margin(tmp_path):
    assert needs_faces(FACE) and not needs_faces(Recipe())
    assert read_recipe_back(FACE, tmp_path) == FACE
    assert Recipe().image.crop == 0.0 and Recipe().replace(**{"image.crop": 0.9}).image.crop == 0.9
    for bad in ("faces", 1.5, -0.1, True, "0.5", None, float("nan")):
        with pytest.raises(RecipeError, match="write a share from 0 to 1, or 'face'"):
            Recipe().replace(**{"image.crop": bad})
    with pytest.raises(RecipeError, match=r"image\.face_margin"):
        Recipe().replace(**{"image.face_margin": -1})
    raced = from_dict({"probe": {"input_candidates": [{"crop": "face"}, {"crop": 1.0}]}})
    assert needs_faces(raced)


def read_recipe_back(recipe, folder):
    file = folder / "recipe.toml"
    file.write_text(recipe.to_toml())
    return read_recipe(file)


def test_preprocessing_names_what_the_square_depends_on():
    backbone = find_backbone("tf_efficientnet_lite0")
    seen = preprocessing_of(backbone, FACE)
    assert (seen.size, seen.crop, seen.squash) == (64, 1.0, False)
    assert seen.face == face_crop_key(FACE.image)
    graph = FeatureExtractor(backbone, seen, FeatureSpec(1, 1))
    wider = FeatureExtractor(
        backbone, preprocessing_of(backbone, FACE.replace(**{"image.face_margin": 0.5})), FeatureSpec(1, 1)
    )
    assert graph.photos() != wider.photos()
    assert graph.key() == wider.key()  # the converted network does not depend on the crop
    assert "around the face" in graph.title()
    plain = FeatureExtractor(backbone, preprocessing_of(backbone, Recipe()), FeatureSpec(1, 1))
    assert set(plain.photos()) == {"crop", "resample", "squash"}  # as before there were faces: old caches serve
    assert preprocessing_of(backbone, Recipe()) == backbone.preprocessing


def test_a_race_sees_faces_where_it_is_asked_to():
    race = [{"size": 64}, {"size": 96, "squash": True}]
    every = feature_extractors(from_dict({"image": {"crop": "face"}, "probe": {"input_candidates": race}}))
    assert [bool(g.preprocessing.face) for g in every] == [True, False]
    one = feature_extractors(from_dict({"probe": {"input_candidates": [{"size": 64, "crop": "face"}, {"size": 64}]}}))
    assert [bool(g.preprocessing.face) for g in one] == [True, False]


def test_contradictions_and_absences_are_reported(monkeypatch, source):
    with pytest.raises(RecipeError, match=r"image\.squash"):
        feature_extractors(FACE.replace(**{"image.squash": True}))
    with pytest.raises(DetectorError, match="known are retinaface"):
        feature_extractors(FACE.replace(**{"image.face_detector": "eyes"}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("unfreeze.training.crossval.run_checks", lambda *_: pytest.fail("worked before it could"))
    with pytest.raises(MissingExtraError, match=r"unfreeze\[faces\]"):
        cross_validate(uf.read(source, FACE.source), FACE)


def test_squares_are_needed_where_faces_are_seen(fresh_cache, source):
    """Never the center because somebody forgot to hand the squares down."""
    files = sorted(source.rglob("*.jpg"))[:2]
    with pytest.raises(ValueError, match="squares"):
        extract.compute_features(
            files, keys_of(files), np.ones(2, bool), feature_extractors(FACE)[0], ("plain",), "torch"
        )
    with pytest.raises(ValueError, match="squares"):
        cache_pixels(files, keys_of(files), np.ones(2, bool), CropSpec(64, 1.0, face="x"))


def test_stored_pixels_are_the_probes_input(fresh_cache, source):
    """Fine-tuning and probe see one square, to the bit; the wall is seen whole."""
    files = sorted(source.rglob("*.jpg"))
    squares = squares_for(files)
    assert squares.faceless.sum() == 1
    p = preprocessing_of(find_backbone("tf_efficientnet_lite0"), FACE)
    frame = CropSpec(p.size, p.crop, p.resample, p.squash, p.face)
    assert (frame.margin, frame.side) == (0, 64)
    stored = cache_pixels(files, keys_of(files), np.ones(len(files), bool), frame, squares=squares.cut)
    pixels = stored.read(np.arange(len(files)))
    for i, file in enumerate(files):
        box = crop_of(squares.cut, i)
        np.testing.assert_array_equal(pixels[i], load_crop(file.read_bytes(), 64, 1.0, box=box))
    wall = int(np.flatnonzero(squares.faceless)[0])
    np.testing.assert_array_equal(pixels[wall], load_crop(files[wall].read_bytes(), 64, 1.0))


def test_one_face_in_two_places_is_one_square(fresh_cache, tmp_path):
    """What the crop is for: where the person stands no longer matters."""
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, place in zip(files, ((20, 10), (170, 45)), strict=True):
        scene(place, person=4).save(file)
    squares = squares_for(files).cut

    def apart(*boxes):
        one, other = (load_crop(f.read_bytes(), 64, 1.0, box=b) for f, b in zip(files, boxes, strict=True))
        return np.abs(one.astype(float) - other).mean()

    assert apart(crop_of(squares, 0), crop_of(squares, 1)) < 0.4 * apart(None, None)


def test_training_and_prediction_see_the_same(source, tmp_path, monkeypatch, run):
    """What reaches the network in fit and, in an empty cache, in predict: the same arrays and the same answers."""
    real, seen, new = extract.load_crop, {}, tmp_path / "new"

    def recorded(data, size, crop, limit, path, *more):
        pixels = real(data, size, crop, limit, path, *more)
        seen.setdefault(str(path).removeprefix(f"{source}/").removeprefix(f"{new}/"), []).append(pixels)
        return pixels

    monkeypatch.setattr(extract, "load_crop", recorded)
    answers = []
    shutil.copytree(source / "worn", new)
    for what in ("fit", "predict"):
        monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / what))
        seen.clear()
        if what == "fit":
            again = cross_validate(uf.read(source, FACE.source), FACE, tmp_path / "run")
            trained = dict(seen)
        answers.append(uf.load(again).predict(new))
    assert len(trained) == 36 and len(seen) == 18
    for name, (pixels, *_) in seen.items():
        np.testing.assert_array_equal(pixels, trained[f"worn/{name}"][0])
    columns = ["p_bare", "p_worn"]
    np.testing.assert_allclose(answers[0][columns], answers[1][columns], atol=1e-6)


def test_a_run_says_how_many_lack_a_face(run, source):
    findings = json.loads((run.path / "findings.json").read_text())
    (finding,) = [f for f in findings if f["check"] == "no-face"]
    assert finding["message"].startswith("no face was found in 1 of 36 images")
    assert finding["severity"] == "info"
    says = Says()
    answer = uf.load(run).predict(source / "worn", reporter=says)
    assert "Faces: no face was found in 1 of 18 images; the whole center square is used for them, as in training." in (
        says.lines
    )
    assert (answer["error"] == "").all()
    assert uf.load(run).sees_faces


def test_many_faceless_photos_are_a_warning():
    cut = np.full((10, 4), np.nan)
    cut[:7] = 0.5
    squares = crops.FaceCrops(cut, np.ones(10, bool))
    assert squares.finding().severity == "warning"
    assert crops.FaceCrops(cut[:7], np.ones(7, bool)).finding() is None


def test_a_damaged_photo_is_an_error_row_and_no_crash(run, source, tmp_path):
    for file in sorted((source / "bare").iterdir())[:2]:
        shutil.copy(file, tmp_path / file.name)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    answer = uf.load(run).predict(tmp_path).set_index("path")
    assert answer.loc["bad.jpg", "error"] and answer["error"].ne("").sum() == 1
    assert answer.drop("bad.jpg")[["p_bare", "p_worn"]].notna().all().all()


def test_a_run_of_another_detector_or_margin_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("unfreeze.inference.predictor.face_crop_key", lambda image: "another")
    with pytest.raises(RunError, match="preprocessing"):
        uf.load(run)


def test_export_says_what_to_cut_and_explain_frames_the_face(run, source, tmp_path):
    exported = uf.export(run, "torchscript", tmp_path / "a.pt")
    assert exported.difference < 2e-2 and exported.same == exported.photos  # held against the run on its squares
    (given,) = json.loads(exported.about.read_text())["inputs"]
    assert "margin" in given["face"]["detector"] and "before the file is called" in given["face"]["square"]
    bare, wall = source / "bare" / "p03_0.jpg", source / "worn" / "p00_0.jpg"
    found = uf.explain(run, [bare, wall], tmp_path / "page.html")
    square = squares_for([bare]).cut[0]
    np.testing.assert_allclose(found.photos[0].square, square)
    assert found.photos[1].square is None
    # The map lies on the square: 320 x 240 is drawn 360 px wide.
    left, top, right, _ = square * [360, 270, 360, 270]
    assert f"M{left:.1f} {top:.1f}h{right - left:.1f}" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("strategy", ["partial", "full", "scratch"])
def test_training_strategies_see_faces_too(source, tmp_path, strategy):
    """Out of fold and new predictions come, and the stored input is the square around the face."""
    recipe = FACE.replace(strategy=strategy)
    with no_processes():
        run = cross_validate(uf.read(source, recipe.source), recipe, tmp_path / "run")
    assert run.info["trained"]["face"] == face_crop_key(recipe.image)
    classifier = uf.load(run)
    assert classifier.sees_faces
    answer = classifier.predict(source / "worn")
    assert (answer["error"] == "").all() and answer[["p_bare", "p_worn"]].notna().all().all()
    (why,) = uf.explain(classifier, source / "bare" / "p03_0.jpg").photos
    square = squares_for([source / "bare" / "p03_0.jpg"]).cut[0]
    assert why.heat[0].method == "grad-cam" and why.heat[0].box == pytest.approx(square.tolist())
    # From scratch there is no network that both the photo and the training photos went through unseen.
    assert len(why.neighbours) == (0 if strategy == "scratch" else 6)
