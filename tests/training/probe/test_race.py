"""The race of inputs: the better one wins inside each training fold, and the outer fold has no say in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from unfreeze.core.errors import BackboneError, RecipeError, StorageError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import PRESETS, Recipe
from unfreeze.core.recipe_schema import Probe
from unfreeze.features import inputs
from unfreeze.features.inputs import feature_extractors
from unfreeze.features.matrix import JoinedFeatureMatrix
from unfreeze.inference.ensemble import load
from unfreeze.metrics.classification import score_predictions
from unfreeze.training.crossval import cross_validate
from unfreeze.training.linear_probe.heads import LinearHead, fit_folds, predict_folds

PROBE = Probe(Cs=(1.0, 30.0, 1000.0))


class Lines(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def data(n=240, seed=0):
    draw = np.random.default_rng(seed)
    units = np.arange(n) // 2
    labels = draw.permutation(np.arange(n // 2) % 3)[units]
    told = 3 * np.eye(3)[labels]
    noise = [draw.normal(size=(n, w)).astype(np.float32) for w in (30, 20, 25)]
    noise[1][:, :3] += told  # the second input knows the class
    return noise, labels.astype(np.int64), units.astype(np.int64), (units % 4).astype(np.int64)


def raced(store_features, xs, y, units, folds, tmp_path):
    features = JoinedFeatureMatrix(tuple(store_features(x) for x in xs))
    return features, dict(fit_folds(features, y, units, folds, 3, PROBE, 0, "rows", tmp_path / "scratch"))


def test_the_input_that_knows_the_class_wins(store_features, fresh_cache, tmp_path):
    xs, y, units, folds = data()
    features, heads = raced(store_features, xs, y, units, folds, tmp_path)
    assert all(1 in head.inputs for head in heads.values())
    right = sum(
        (predict_folds(features, [h], np.flatnonzero(folds == k)).argmax(1) == y[folds == k]).sum()
        for k, h in heads.items()
    )
    assert right / len(y) > 0.8
    assert not list((tmp_path / "scratch").glob("*")) if (tmp_path / "scratch").exists() else True


def test_two_halves_of_the_truth_are_read_together(store_features, fresh_cache, tmp_path):
    _, y, units, folds = data()
    draw = np.random.default_rng(1)
    one, other = (draw.normal(size=(len(y), 10)).astype(np.float32) for _ in range(2))
    one[:, 0] += 4 * (y == 0)
    other[:, 0] += 4 * (y == 1)
    _, heads = raced(store_features, [one, other], y, units, folds, tmp_path)
    assert {frozenset(h.inputs) for h in heads.values()} == {frozenset({0, 1})}
    assert all(h.weight.shape == (20, 3) for h in heads.values())


def test_the_outer_fold_has_no_say_in_the_race(store_features, fresh_cache, tmp_path):
    xs, y, units, folds = data()
    _, before = raced(store_features, xs, y, units, folds, tmp_path)
    other = y.copy()
    other[folds == 2] = (y[folds == 2] + 1) % 3
    _, after = raced(store_features, xs, other, units, folds, tmp_path)
    assert before[2].inputs == after[2].inputs
    assert np.array_equal(before[2].weight, after[2].weight)


def test_with_shuffled_labels_the_race_stays_at_chance(store_features, fresh_cache, tmp_path):
    xs, y, units, folds = data()
    inside = 0
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(np.arange(len(y) // 2) % 3)[units].astype(np.int64)
        features, heads = raced(store_features, xs, shuffled, units, folds, tmp_path / str(seed))
        proba = np.zeros((len(y), 3))
        for k, head in heads.items():
            proba[folds == k] = predict_folds(features, [head], np.flatnonzero(folds == k))
        score = score_predictions(shuffled, proba, units, ("a", "b", "c"), resamples=300)["accuracy"]
        inside += score["low"] - 0.03 <= 1 / 3 <= score["high"] + 0.03
    assert inside >= 4


def test_a_head_remembers_its_inputs(tmp_path):
    head = LinearHead(np.ones((7, 2), np.float32), np.zeros(2, np.float32), 3.0, (2, 0))
    head.save(tmp_path / "head.safetensors", "mark", ("a", "b"))
    again, _ = LinearHead.load(tmp_path / "head.safetensors")
    assert again.inputs == (2, 0)
    head.save(tmp_path / "other.safetensors", "mark", ("a", "b"))
    assert (tmp_path / "head.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_best_is_a_race_and_stages_are_checked_before_work():
    graphs = feature_extractors(Recipe().replace(**PRESETS["best"]))
    named = [entry for entry in PRESETS["best"]["probe.input_candidates"] if entry["backbone"] != "here"]
    assert [g.preprocessing.size for g in graphs[: len(named)]] == [entry["size"] for entry in named]
    assert graphs[1].preprocessing.crop == 1.0
    assert [g.preprocessing.squash for g in graphs[: len(named)]] == [False] * 4 + [True]
    with pytest.raises(RecipeError, match="has 9 stages, stem"):
        feature_extractors(Recipe().replace(**{"probe.stages": "last:10"}))


def test_a_race_reads_all_stages_of_a_backbone_that_has_few():
    race = [{"backbone": "tf_efficientnet_lite0"}, {"backbone": "torchvision/googlenet", "size": 64}]
    graphs = feature_extractors(Recipe().replace(**{"probe.input_candidates": race}))
    assert [graph.taps.last for graph in graphs] == [5, 4]
    with pytest.raises(RecipeError, match=r"'last:5': torchvision/googlenet has 4 stages"):
        feature_extractors(Recipe().replace(**{"probe.input_candidates": race, "probe.stages": "last:5"}))


def test_a_size_that_a_network_cannot_take_is_refused_before_any_work(fresh_cache):
    for size in (1, 8):
        with pytest.raises(BackboneError, match=rf"cannot take images of {size} px; set image.size to 15 or more"):
            feature_extractors(Recipe().replace(**{"backbone": "torchvision/googlenet", "image.size": size}))


def test_backbones_whose_weights_are_here_race_too(tmp_path, monkeypatch, fresh_cache):
    recipe = Recipe().replace(**{"probe.input_candidates": [{"size": 64}, {"backbone": "here"}]})
    monkeypatch.setenv("UNFREEZE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(inputs, "MEET_FIRST", ("torchvision/vgg19", "torchvision/resnet18"))
    assert len(feature_extractors(recipe)) == 1
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"what is in it is looked at later")
    (tmp_path / "vgg19-dcbb9e9d.pth").write_bytes(b"too")
    found = feature_extractors(recipe)
    assert [g.backbone.name for g in found[1:]] == ["torchvision/resnet18", "torchvision/vgg19"]  # cheapest first
    assert [g.taps.last for g in found[1:]] == [5, 5]
    with pytest.raises(RecipeError, match="no backbone other than"):
        monkeypatch.setattr(inputs, "MEET_FIRST", ())
        feature_extractors(Recipe().replace(**{"probe.input_candidates": [{"backbone": "here"}]}))


RACE = ({"size": 64}, {"size": 64, "crop": 1.0}, {"backbone": "tf_efficientnet_lite1", "size": 64})


def test_a_whole_run_races_and_predicts_what_it_scored(photos_in, recipe, ready_cache, tmp_path, monkeypatch):
    photos = photos_in(tmp_path / "photos")
    monkeypatch.setattr("unfreeze.models.weights.PackagedWeights.path", _only_lite0)
    voice = Lines()
    run = cross_validate(photos, recipe.replace(**{"probe.input_candidates": RACE}), tmp_path / "run", reporter=voice)
    assert any(line.startswith("Left out: EfficientNet-Lite1") and "pip install" in line for line in voice.lines)
    assert [i["crop"] for i in run.info["inputs"]] == [0.875, 1.0]
    assert all(set(f["inputs"]) <= {0, 1} for f in run.scores()["folds"])
    test = pd.read_parquet(run.path / "test.parquet")
    columns = [c for c in test if c.startswith("p_")]
    predicted = load(run).predict(photos.root / "test")
    np.testing.assert_allclose(predicted[columns], test[columns], atol=1e-6)
    again = cross_validate(photos, recipe.replace(**{"probe.input_candidates": RACE}), tmp_path / "again")
    pd.testing.assert_frame_equal(run.predictions(), again.predictions(), check_exact=True)


def test_an_input_over_the_budget_is_left_out(photos_in, recipe, ready_cache, tmp_path):
    photos = photos_in(tmp_path / "photos")
    voice = Lines()
    short = recipe.replace(**{"probe.input_candidates": RACE[:2], "probe.candidate_minutes": 1e-6})
    run = cross_validate(photos, short, tmp_path / "run", reporter=voice)
    assert any("more than probe.candidate_minutes" in line for line in voice.lines)
    assert len(run.info["inputs"]) == 1


def test_the_recipe_s_limit_shrinks_the_grid_and_then_the_stages(photos_in, recipe, ready_cache, tmp_path):
    from unfreeze.features import inputs

    graph = feature_extractors(Recipe())[0]

    def chosen(gigabytes):
        voice = Lines()
        small = Recipe().replace(**{"probe.max_cache_gb": gigabytes})
        taps = inputs._within_disk(graph, 1000, small, voice).taps
        return taps.last, taps.grid, len(voice.lines)

    # 1,000 photos, two views, two bytes: 17,856 features on a 3 x 3 grid are 71 MB
    assert chosen(0.072) == (5, 3, 0)
    assert chosen(0.070) == (5, 2, 1)
    assert chosen(0.008) == (5, 1, 1)
    assert chosen(0.0075) == (3, 1, 1)
    assert chosen(1e-9) == (1, 1, 1)
    assert chosen(0.0) == (5, 3, 0)


def test_a_disk_that_is_nearly_full_changes_no_features(photos_in, recipe, fresh_cache, tmp_path, monkeypatch):
    """They would be others than on a disk with room: a fit stops and says what to do, before anything is computed."""
    from unfreeze.features import inputs

    photos = photos_in(tmp_path / "photos")
    monkeypatch.setattr(inputs, "_free_bytes", lambda folder: 100_000)
    with pytest.raises(
        StorageError, match=r"the disk is full; free some space.*probe.max_cache_gb.*9e-05.*0\.1 MB are free"
    ):
        cross_validate(photos, recipe, tmp_path / "run")
    assert not (fresh_cache / "engines").exists()


def test_neither_the_clock_nor_the_cache_decides_which_inputs_race(
    photos_in, recipe, ready_cache, tmp_path, monkeypatch
):
    """The second input is in the cache already; it is left out all the same, as it would be with an empty one."""
    photos = photos_in(tmp_path / "photos")
    both = recipe.replace(**{"probe.input_candidates": RACE[:2]})
    assert len(cross_validate(photos, both, tmp_path / "both").info["inputs"]) == 2
    short = cross_validate(photos, both.replace(**{"probe.candidate_minutes": 1e-6}), tmp_path / "short")
    assert len(short.info["inputs"]) == 1


def test_a_run_on_a_smaller_grid_predicts_what_it_scored(photos_in, recipe, ready_cache, tmp_path):
    photos = photos_in(tmp_path / "photos")
    voice = Lines()
    run = cross_validate(photos, recipe.replace(**{"probe.max_cache_gb": 0.001}), tmp_path / "run", reporter=voice)
    assert any(line.startswith("Disk: features of 42 images") for line in voice.lines)
    assert run.info["inputs"][0]["grid"] == 1
    test = pd.read_parquet(run.path / "test.parquet")
    columns = [c for c in test if c.startswith("p_")]
    np.testing.assert_allclose(load(run).predict(photos.root / "test")[columns], test[columns], atol=1e-6)


def _only_lite0(weights):
    from importlib.util import find_spec
    from pathlib import Path

    if "lite0" not in weights.package:
        return None
    return Path(find_spec(weights.module).submodule_search_locations[0]) / weights.file
