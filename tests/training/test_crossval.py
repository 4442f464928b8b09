"""fit(): a run folder that is whole, the same every time, and honest about what trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unfreeze.core.cache import cache_root
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import FoldError, RunError
from unfreeze.core.recipe import read_recipe
from unfreeze.core.runs import open_run
from unfreeze.features import inputs
from unfreeze.features.matrix import FeatureMatrix
from unfreeze.training import crossval as module
from unfreeze.training.crossval import cross_validate
from unfreeze.training.linear_probe import strategy
from unfreeze.training.linear_probe.heads import LinearHead


def heads_of(run):
    return [LinearHead.load(file)[0] for file in run.head_files()]


def same_heads(a, b):
    pairs = zip(heads_of(a), heads_of(b), strict=True)
    return all(np.array_equal(x.weight, y.weight) and np.array_equal(x.bias, y.bias) for x, y in pairs)


@pytest.fixture
def photos(ready_cache, photos_in, tmp_path):
    return photos_in(tmp_path / "photos")


def test_a_run_folder_is_whole(photos, recipe, tmp_path):
    run = cross_validate(photos, recipe, tmp_path / "run")
    files = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert files - {".lock"} == {
        *(f"fold-{k}/head.safetensors" for k in range(3)),
        *("run.json", "recipe.toml", "photos.parquet", "oof.parquet", "test.parquet"),
        *("scores.json", "findings.json", "environment.json"),
    }
    assert run == open_run(run.path)
    assert read_recipe(run.path / "recipe.toml") == recipe
    oof, table = run.predictions(), run.photos()
    train = photos.table[photos.table["split"] == "train"]
    assert list(oof["path"]) == list(train["path"])
    assert list(oof.columns) == ["path", "fold", "label", "p_blue", "p_green", "p_red"]
    np.testing.assert_allclose(oof[["p_blue", "p_green", "p_red"]].sum(axis=1), 1)
    # No group in two folds; test rows in none.
    assert (table[table["fold"] >= 0].groupby("unit")["fold"].nunique() == 1).all()
    assert (table.loc[table["split"] == "test", "fold"] == -1).all()
    assert sorted(oof["fold"].unique()) == [0, 1, 2]
    # The scores are those of the predictions.
    right = oof[["p_blue", "p_green", "p_red"]].to_numpy().argmax(1) == oof["label"].map(photos.classes.index)
    scores = run.scores()
    assert scores["out_of_fold"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert scores["accuracy"]["low"] <= right.mean() <= scores["accuracy"]["high"]
    assert scores["accuracy"]["value"] == pytest.approx(
        right.mean() + scores["averaging"]["accuracy"] * (1 - right.mean())
    )
    assert [row["photos"] for row in scores["folds"]] == oof["fold"].value_counts().sort_index().tolist()
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["seed"] == recipe.seed
    assert {"look", "features", "heads", "judge"} <= set(environment["timings"])
    assert right.mean() > 0.8  # colors are easy: chance is a third


def test_twice_gives_the_same_bytes(photos, recipe, tmp_path):
    """With the rotations of the first run, without them, and with features computed anew."""
    first = cross_validate(photos, recipe, tmp_path / "a")
    runs = [cross_validate(photos, recipe, tmp_path / "b")]
    shutil.rmtree(cache_root() / "rotations")
    runs.append(cross_validate(photos, recipe, tmp_path / "c"))
    shutil.rmtree(cache_root() / "features")
    shutil.rmtree(cache_root() / "rotations")
    runs.append(cross_validate(photos, recipe, tmp_path / "d"))
    for run in runs:
        assert same_heads(first, run)
        pd.testing.assert_frame_equal(run.predictions(), first.predictions(), check_exact=True)
        assert (run.path / "scores.json").read_bytes() == (first.path / "scores.json").read_bytes()
        assert (run.path / "oof.parquet").read_bytes() == (first.path / "oof.parquet").read_bytes()


def test_another_seed_is_another_run(photos, recipe, tmp_path):
    a, b = (
        cross_validate(photos, recipe, tmp_path / "a"),
        cross_validate(photos, recipe.replace(seed=1), tmp_path / "b"),
    )
    assert not a.photos()["fold"].equals(b.photos()["fold"])


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_run_that_was_killed_goes_on_where_it_was(photos, recipe, tmp_path, monkeypatch, done):
    whole = cross_validate(photos, recipe, tmp_path / "whole")
    shutil.rmtree(cache_root() / "rotations")
    real = strategy.fit_folds
    asked = []

    def killed(*args):
        asked.append(args[9])
        for number, result in enumerate(real(*args)):
            if number == done:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(strategy, "fit_folds", killed)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(photos, recipe, tmp_path / "run")
    with pytest.raises(RunError, match="not finished; run its command again"):
        open_run(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("fold-*"))) == done
    shutil.rmtree(cache_root() / "rotations")
    monkeypatch.setattr(strategy, "fit_folds", lambda *args: asked.append(args[9]) or real(*args))
    run = cross_validate(photos, recipe, tmp_path / "run")
    assert asked == [[0, 1, 2], list(range(done, 3))]
    assert same_heads(run, whole)
    pd.testing.assert_frame_equal(run.predictions(), whole.predictions(), check_exact=True)
    assert not (run.path / "scratch").exists()


def test_a_head_of_other_labels_or_a_damaged_one_is_not_reused(photos, recipe, tmp_path, monkeypatch):
    """What an unfinished run left counts only for the same photos, labels and folds."""
    real = strategy.fit_folds
    monkeypatch.setattr(strategy, "predict_folds", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cross_validate(photos, recipe, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "cache"))
    head = tmp_path / "run" / "fold-1" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:100])
    asked = []
    monkeypatch.setattr(strategy, "fit_folds", lambda *args: asked.append(args[9]) or real(*args))
    table = photos.table.copy()
    cross_validate(photos, recipe, tmp_path / "run")
    swapped = table["label"].mask(table["group"] == "g0", "red").mask(table["group"] == "g2", "blue")
    (tmp_path / "run" / "run.json").write_text(
        (tmp_path / "run" / "run.json").read_text().replace('"finished",', '"running",', 1)
    )
    assert not swapped.equals(table["label"])
    cross_validate(photos.with_table(table.assign(label=swapped)), recipe, tmp_path / "run")
    assert asked == [[1], [0, 1, 2]]


def test_a_finished_run_is_not_overwritten_without_force(photos, recipe, tmp_path):
    run = cross_validate(photos, recipe, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*.*")}
    with pytest.raises(RunError, match="holds a finished run; force=True"):
        cross_validate(photos, recipe, tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*.*")} == before
    again = cross_validate(photos, recipe.replace(**{"folds.n_splits": 2}), tmp_path / "run", force=True)
    assert len(list(again.path.glob("fold-*"))) == 2
    assert len(again.scores()["folds"]) == 2


def test_test_rows_never_train_and_are_scored(photos, recipe, tmp_path, draw_picture):
    """Other labels and other photos in the test split: every head is bitwise the same, the test score is not."""
    before = cross_validate(photos, recipe, tmp_path / "before")
    table = photos.table.copy()
    test = table["split"] == "test"
    table.loc[test, "label"] = table.loc[test, "label"].map({"blue": "red", "red": "green", "green": "blue"})
    for path in table.loc[test, "path"]:
        draw_picture(photos.root / path, "blue", np.random.default_rng(sum(map(ord, path))))
    after = cross_validate(photos.with_table(table), recipe, tmp_path / "after")
    assert same_heads(before, after)
    pd.testing.assert_frame_equal(before.predictions(), after.predictions(), check_exact=True)
    assert before.scores()["test"]["accuracy"]["value"] > 0.8
    assert after.scores()["test"]["accuracy"]["value"] < 0.6
    held = pd.read_parquet(before.path / "test.parquet")
    assert list(held["path"]) == list(table.loc[test, "path"])
    assert (held["fold"] == -1).all()


def test_a_corrupt_photo_is_a_finding_and_takes_no_part(photos, recipe, tmp_path):
    (photos.root / "train/007.jpg").write_bytes((photos.root / "train/007.jpg").read_bytes()[:300])
    (photos.root / "train/020.jpg").unlink()
    run = cross_validate(photos, recipe, tmp_path / "run")
    assert not {"train/007.jpg", "train/020.jpg"} & set(run.predictions()["path"])
    assert len(run.predictions()) == 34
    found = {f["path"] for f in json.loads((run.path / "findings.json").read_text()) if f["check"] == "unreadable"}
    assert found == {"train/007.jpg", "train/020.jpg"}
    assert (run.photos().set_index("path").loc[["train/007.jpg", "train/020.jpg"], "fold"] == -1).all()


def test_a_photo_that_fails_after_its_first_look_leaves_its_fold(photos, recipe, tmp_path, monkeypatch):
    real = inputs.compute_features

    def failing(*args):
        features = real(*args)
        return FeatureMatrix(
            features.stores, features.places, features.blocks, {5: "damaged (cut off)"}, features.engine
        )

    monkeypatch.setattr(inputs, "compute_features", failing)
    run = cross_validate(photos, recipe, tmp_path / "run")
    assert "train/005.jpg" not in set(run.predictions()["path"])
    assert [f["path"] for f in json.loads((run.path / "findings.json").read_text()) if f["check"] == "unreadable"] == [
        "train/005.jpg"
    ]


def test_photos_that_all_vanish_meanwhile_end_the_run_with_a_line(photos, recipe, tmp_path, monkeypatch):
    real = inputs.compute_features

    def failing(*args):
        features = real(*args)
        lost = dict.fromkeys(range(36), "no such file")
        return FeatureMatrix(features.stores, features.places, features.blocks, lost, features.engine)

    monkeypatch.setattr(inputs, "compute_features", failing)
    with pytest.raises(FoldError, match=r"no image of a fold can be read any longer \(no such file\)"):
        cross_validate(photos, recipe, tmp_path / "run")


def test_one_class_left_is_refused_before_anything_is_written(photos, recipe, tmp_path):
    for path, label in zip(photos.table["path"], photos.table["label"], strict=True):
        if label != "red":
            (photos.root / path).write_bytes(b"no photo")
    with pytest.raises(FoldError, match="only class 'red' has training photos that can be read"):
        cross_validate(photos, recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_duplicates_share_a_fold(photos, recipe, tmp_path):
    """The same bytes under another group's name: joined, unless the recipe says not to."""
    shutil.copy(photos.root / "train/000.jpg", photos.root / "train/006.jpg")
    table = cross_validate(photos, recipe, tmp_path / "run").photos().set_index("path")
    assert table.loc["train/000.jpg", "unit"] == table.loc["train/006.jpg", "unit"]
    assert table.loc["train/000.jpg", "fold"] == table.loc["train/006.jpg", "fold"]


def leaking(photos, draw):
    """Labels that say nothing about the color, only which group a photo is of: what a model must not learn."""
    table = photos.table
    groups = table["group"].unique()
    label = dict(zip(groups, draw.permutation(np.array(photos.classes)[np.arange(len(groups)) % 3]), strict=True))
    return photos.with_table(table.assign(label=table["group"].map(label)))


def test_a_random_split_promises_more_where_groups_leak(photos, recipe, tmp_path, draw_picture):
    """Photos of a group are nearly alike, labels are dealt to groups by lot: by group, chance; by photo, a promise."""
    draw = np.random.default_rng(3)
    for i in range(0, 36, 2):
        for j in (i, i + 1):  # the same picture but for a few pixels' noise
            draw_picture(photos.root / f"train/{j:03d}.jpg", "red", np.random.default_rng(i), (72, 64 + 6 * (j - i)))
    photos = leaking(photos, draw)
    recipe = recipe.replace(**{"folds.group_duplicates": False, "probe.Cs": [1000.0]})
    scores = cross_validate(photos, recipe, tmp_path / "run", random_split_baseline=True).scores()
    assert scores["random_split"]["macro_f1"]["value"] > scores["macro_f1"]["value"] + 0.2
    assert scores["macro_f1"]["low"] < 1 / 3 + 0.05
    alone = cross_validate(photos, recipe.replace(**{"folds.use_groups": False}), tmp_path / "by-photo").scores()
    assert alone["macro_f1"]["value"] > scores["macro_f1"]["value"] + 0.2


def test_the_comparison_changes_nothing_else(photos, recipe, tmp_path):
    a = cross_validate(photos, recipe, tmp_path / "a")
    b = cross_validate(photos, recipe, tmp_path / "b", random_split_baseline=True)
    assert same_heads(a, b)
    pd.testing.assert_frame_equal(a.predictions(), b.predictions(), check_exact=True)


def test_a_second_fit_never_imports_torch(photos, recipe, tmp_path):
    """Everything recorded and cached: seconds of start-up saved; a changed photo needs the engine, still not torch."""
    cross_validate(photos, recipe, tmp_path / "first")
    photos.table.to_parquet(tmp_path / "table.parquet")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    code = (
        "import sys, pandas as pd\n"
        "from pathlib import Path\n"
        "from unfreeze.core.recipe import read_recipe\n"
        "from unfreeze.core.dataset import ImageDataset\n"
        "from unfreeze.training.crossval import cross_validate\n"
        "from unfreeze.inference.ensemble import load\n"
        "here, root = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "c = ('blue', 'green', 'red')\n"
        "photos = ImageDataset(pd.read_parquet(here / 'table.parquet'), root, c, c, (), 't', '')\n"
        "run = cross_validate(photos, read_recipe(here / 'recipe.toml'), here / 'second')\n"
        "assert 'openvino' not in sys.modules, 'an engine was opened'\n"
        "(root / 'train/003.jpg').write_bytes((root / 'train/003.jpg').read_bytes() + b' ')\n"
        "load(run).predict(root / 'train')\n"
        "assert 'openvino' in sys.modules\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'torch was imported'\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(photos.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_labels_are_numbered_by_the_class_order(photos):
    other = replace(photos, classes=("red", "blue", "green"), answers=("red", "blue", "green"))
    expected = [("red", "blue", "green").index(label) for label in photos.table["label"]]
    assert module._labels(other).tolist() == expected
    assert isinstance(other, ImageDataset)
