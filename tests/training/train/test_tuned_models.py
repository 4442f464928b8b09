"""A finished run's networks predict what they predicted out of fold; damage is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import unfreeze as uf
from finetuning import Says, colours, fit_here
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import RunError, SourceError
from unfreeze.data.scan import scan_images
from unfreeze.features.extract import compute_features
from unfreeze.features.matrix import JoinedFeatureMatrix
from unfreeze.features.views import TtaViews
from unfreeze.inference.networks import FineTunedNetworks
from unfreeze.training.linear_probe.heads import predict_folds

NAMES = ["p_blue", "p_green", "p_red"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("photos") / "colours")


@pytest.fixture(scope="module")
def runs(source, tmp_path_factory):
    """A run of each strategy, and one of a head that the network came with. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {
        "partial": {"train__cached_views": 3},
        "full": {},
        "scratch": {},
        "classifier": {"train__head": "classifier"},
    }
    return {
        name: fit_here(source, folder / name, "full" if name == "classifier" else name, **more)
        for name, more in changes.items()
    }


@pytest.mark.parametrize("name", ["partial", "full", "scratch", "classifier"])
def test_out_of_fold_equals_what_the_saved_network_predicts(name, runs):
    run = runs[name]
    stored, photos = run.predictions(), run.photos().set_index("path")
    classifier = uf.load(run)
    root = run.info["root"]
    table = run.photos()
    seen = ImageDataset(table, Path(root), run.classes, run.classes, (), "images", "")
    looks = scan_images(seen, 10**8, Says())
    for fold in range(3):
        rows = np.flatnonzero((photos["fold"] == fold).to_numpy())
        (tuned,) = classifier.tuned
        alone = FineTunedNetworks(tuned.setting, tuned.settings, (tuned.files[fold],), 3)
        found, failed = alone.probabilities(
            seen.files(), looks.keys, looks.readable, TtaViews(run.recipe.probe.views), 10**8, Says()
        )
        assert not failed
        expected = stored.set_index("path").loc[table["path"][rows], NAMES].to_numpy()
        if classifier.heads:
            graph = classifier.graphs[0]
            part = compute_features(seen.files(), looks.keys, looks.readable, graph, run.recipe.probe.views, "torch")
            head = predict_folds(JoinedFeatureMatrix((part,)), [classifier.heads[fold]], rows)
            found[rows] = (found[rows] + head) / 2
        assert np.abs(found[rows] - expected).max() < 1e-3


def test_a_photo_that_cannot_be_read_is_a_row_with_its_reason(runs, source, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    for run in runs.values():
        answer = uf.load(run).predict([bad, source / "red" / "g000_0.jpg"])
        assert answer["error"][0] and not answer["error"][1]
        assert pd.isna(answer["label"][0]) and answer["label"][1] in run.classes
        assert answer[NAMES].iloc[0].isna().all() and abs(answer[NAMES].iloc[1].sum() - 1) < 1e-9


def test_an_unknown_tta_is_refused(runs, source):
    with pytest.raises(SourceError, match="known are plain, flip"):
        uf.load(runs["partial"]).predict(source, tta="six")


@pytest.fixture
def copy(runs, tmp_path):
    shutil.copytree(runs["partial"].path, tmp_path / "run")
    return tmp_path / "run"


def test_a_network_that_is_gone(copy):
    (copy / "fold-1" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"fold-1.model.safetensors: is missing; fit the run again with force=True"):
        uf.load(copy)


@pytest.mark.parametrize("damage", ["cut off", "other names", "other shapes"])
def test_a_damaged_network(damage, copy, source):
    file = copy / "fold-1" / "model.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        state = load_file(file)
        if damage == "other names":
            state["more"] = state["head.bias"].clone()
        else:
            state["head.bias"] = state["head.bias"][:2].clone()
        save_file(state, file)
    with pytest.raises(RunError, match=r"fold-1.model.safetensors: does not fit its network"):
        uf.load(copy).predict(source)


@pytest.mark.parametrize("change", [("first", 2), ("size", 96), ("weights", "another")])
def test_other_weights_or_preprocessing_than_here(change, copy):
    about = json.loads((copy / "run.json").read_text())
    about["trained"][change[0]] = change[1]
    (copy / "run.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match="fit the run again with force=True"):
        uf.load(copy)


def test_a_run_file_without_its_training(copy):
    about = json.loads((copy / "run.json").read_text())
    del about["trained"]["settings"]
    (copy / "run.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=r"run.json is damaged"):
        uf.load(copy)
