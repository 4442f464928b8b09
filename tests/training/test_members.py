"""A run whose folds were learnt in different ways: whole, taken up again, predicting as the mean of its folds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from commandline import run_cli
from finetuning import Says
from photosets import table
from racing import auto_recipe, trained_here
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import RecipeError, RunError
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, list_runs, open_run
from unfreeze.inference.predictor import Classifier
from unfreeze.training import crossval
from unfreeze.training.context import FitContext
from unfreeze.training.fold_strategies import StrategyChoice

P = ["p_blue", "p_green", "p_red"]
MIXED = ("probe", "partial", "partial")


def chosen(*strategies: str) -> Callable[[FitContext], StrategyChoice]:
    return lambda work: StrategyChoice(tuple({"strategy": s} for s in strategies), {"recommendation": None})


def never(work: FitContext) -> StrategyChoice:
    raise AssertionError("raced again")


@dataclass(frozen=True)
class Made:
    """A run with a probe in fold 0 and partial in the others, and runs of each alone, of the same photos and folds."""

    photos: ImageDataset
    recipe: Recipe
    mixed: Run
    probe: Run
    partial: Run


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("members")
    source = table(folder / "photos", groups=8)
    recipe = auto_recipe(source, source__group="plant", source__group_regex="", source__label=["colour"])
    recipe = recipe.replace(**{"source.split": "split"})
    photos = uf.read(source, recipe.source)
    with trained_here():
        mixed = crossval.cross_validate(photos, recipe, folder / "mixed", choose=chosen(*MIXED))
        probe, partial = (uf.fit(photos, recipe.replace(strategy=s), folder / s) for s in ("probe", "partial"))
    return Made(photos, recipe, mixed, probe, partial)


def of_test(run: Run) -> np.ndarray:
    return pd.read_parquet(run.path / "test.parquet")[P].to_numpy()


# --- what a run of both is ----------------------------------------------------------------------------------------


def test_the_run_says_what_learnt_each_fold(made):
    run = open_run(made.mixed.path)
    assert run.recipe.strategy == "auto" and run.strategies == ("probe", "partial")
    assert [(m.folds, m.recipe.strategy) for m in run.members] == [((0,), "probe"), ((1, 2), "partial")]
    assert all(m.recipe == made.recipe.replace(strategy=m.recipe.strategy) for m in run.members)
    assert [fold["strategy"] for fold in run.scores()["folds"]] == list(MIXED)
    assert list_runs(run.path)[0]["strategy"] == "probe and partial"
    assert made.partial.members[0].folds == (0, 1, 2) and made.partial.strategies == ("partial",)


def test_every_photo_is_predicted_by_the_way_of_its_fold(made):
    """Folds do not know of each other: each is, number by number, that of a run of its strategy alone."""
    mixed, probe, partial = (run.predictions() for run in (made.mixed, made.probe, made.partial))
    assert mixed["path"].tolist() == partial["path"].tolist() and np.isfinite(mixed[P]).all(axis=None)
    assert set(mixed["fold"]) == {0, 1, 2}
    first = mixed["fold"] == 0
    np.testing.assert_array_equal(mixed.loc[first, P], probe.loc[first, P])
    np.testing.assert_array_equal(mixed.loc[~first, P], partial.loc[~first, P])
    assert np.abs(probe.loc[~first, P].to_numpy() - partial.loc[~first, P].to_numpy()).max() > 1e-4
    beside = made.mixed.scores()["components"]["probe"]
    assert beside["macro_f1"] == pytest.approx(made.probe.scores()["macro_f1"])


def test_prediction_is_the_mean_over_the_folds(made):
    everything = uf.load(made.mixed.path)
    assert len(everything.heads) == 1 and [len(t.files) for t in everything.tuned] == [2]
    files = [made.photos.root / path for path in pd.read_parquet(made.mixed.path / "test.parquet")["path"]]
    found = everything.predict(files)[P].to_numpy()
    head = Classifier(made.mixed, everything.heads, everything.graphs).predict(files)[P].to_numpy()
    networks = Classifier(made.mixed, (), (), everything.tuned, everything.tuned_weights).predict(files)[P].to_numpy()
    np.testing.assert_allclose(found, (head + 2 * networks) / 3, atol=1e-12)
    np.testing.assert_allclose(
        found, of_test(made.mixed), atol=1e-5
    )  # the score of the test split is of this very mean
    assert np.abs(found - of_test(made.partial)).max() > 1e-4


def test_networks_next_to_their_probes_share_a_fold_with_them(made, tmp_path):
    """train.average_with_probe: a fold of partial is half its network and half its head, one of the probe is its head
    alone.
    """
    recipe = made.recipe.replace(**{"train.average_with_probe": True})
    with trained_here():
        run = crossval.cross_validate(made.photos, recipe, tmp_path / "run", choose=chosen(*MIXED))
    files = [made.photos.root / path for path in pd.read_parquet(run.path / "test.parquet")["path"]]
    np.testing.assert_allclose(uf.load(run).predict(files)[P].to_numpy(), of_test(run), atol=1e-5)


def test_a_choice_of_one_for_all_is_that_strategy(made, tmp_path):
    with trained_here():
        run = crossval.cross_validate(
            made.photos, made.recipe, tmp_path / "run", choose=chosen("probe", "probe", "probe")
        )
    assert run.strategies == ("probe",)
    np.testing.assert_array_equal(run.predictions()[P], made.probe.predictions()[P])
    np.testing.assert_allclose(of_test(run), of_test(made.probe), atol=1e-12)


def test_the_report_is_written(made):
    page = uf.write_report(made.mixed.path).read_text("utf-8")
    assert "partial" in page and "probe" in page


def test_a_mixture_is_explained_in_both_ways(made):
    """The head's exact cells beside the map of the networks; asked for one, it is that one alone."""
    photo = made.photos.files()[0]
    (told,) = uf.explain(made.mixed, photo).photos
    assert [heat.method for heat in told.heat] == ["cells", "grad-cam"]
    assert told.trained_on and len(told.neighbours) == 6
    assert told.heat[1].source.startswith("2 networks (")
    assert told.label == uf.load(made.mixed).predict([photo])["label"][0]
    (one,) = uf.explain(made.mixed, photo, method="grad-cam").photos
    assert [heat.method for heat in one.heat] == ["grad-cam"] and not one.maps
    np.testing.assert_array_equal(one.heat[0].values, told.heat[1].values)


def test_what_a_mixture_has_not_is_said_in_one_line(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = run_cli("explain", str(made.mixed.path), str(made.photos.files()[0]), "--method", "rollout")
    assert answer.code == 2 and "(probe, partial); it has grad-cam or cells or occlusion." in answer.complaint
    assert not list(tmp_path.iterdir())


def test_a_mixture_is_exported_whole(made, tmp_path):
    found = uf.export(made.mixed.path, "torchscript", tmp_path / "mixed.pt")
    assert found.difference < 1e-4 and found.same == found.photos
    assert found.networks == 3  # the pretrained one, whose front the two folds of partial share, and these two


@pytest.mark.parametrize("damage", ["absent", "folds", "strategy"])
def test_a_damaged_run_is_reported(damage, made, tmp_path):
    run = shutil.copytree(made.mixed.path, tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    if damage == "absent":
        del info["members"]
    elif damage == "folds":
        info["members"].pop()
    else:
        info["members"][0]["changes"]["strategies"] = "partial"
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises((RunError, RecipeError), match=r"run\.json is damaged|unknown key"):
        uf.load(run)


# --- taken up again -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(made, tmp_path_factory) -> Path:
    """The same run, interrupted after the epoch of its second network; shared, so never written to."""
    run = tmp_path_factory.mktemp("unfinished") / "run"
    with trained_here(stop_after=2), pytest.raises(KeyboardInterrupt):
        crossval.cross_validate(made.photos, made.recipe, run, choose=chosen(*MIXED))
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    return run


@pytest.fixture
def stopped(unfinished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(unfinished, tmp_path / "run")


def test_resumed_it_keeps_its_choice(stopped, made):
    before = (stopped / "recommendation.json").read_bytes()
    with trained_here() as done:
        run = crossval.cross_validate(made.photos, made.recipe, stopped, choose=never)
    assert len(done) == 1 and (stopped / "recommendation.json").read_bytes() == before
    pd.testing.assert_frame_equal(run.predictions(), made.mixed.predictions())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": 1}', '{"identity": "x", "chosen": []}'])
def test_a_damaged_choice_is_made_again(text, stopped, made):
    (stopped / "recommendation.json").write_text(text)
    asked = []

    def choose(work: FitContext) -> StrategyChoice:
        asked.append(work.recipe.strategy)
        return chosen(*MIXED)(work)

    with trained_here():
        run = crossval.cross_validate(made.photos, made.recipe, stopped, choose=choose)
    assert asked == ["auto"]
    pd.testing.assert_frame_equal(run.predictions(), made.mixed.predictions())


@pytest.mark.parametrize("what", ["labels", "classes"])
def test_a_choice_of_other_labels_is_made_again(what, stopped, made):
    names = {"red": "green", "green": "red", "blue": "blue"} if what == "labels" else {"red": "crimson"}
    own = made.photos.table.assign(label=made.photos.table["label"].replace(names))
    classes = tuple(sorted({names.get(c, c) for c in made.photos.classes}))
    other = ImageDataset(own, made.photos.root, classes, classes, (), made.photos.reader, made.photos.choice)
    with pytest.raises(AssertionError, match="raced again"):
        crossval.cross_validate(other, made.recipe, stopped, choose=never)


def test_without_anyone_to_choose_auto_is_refused(made, tmp_path):
    with pytest.raises(RecipeError, match=r"call unfreeze\.fit, or name a strategy"):
        crossval.cross_validate(made.photos, made.recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_random_split_baseline_is_for_probes_alone(made, tmp_path):
    voice, answers = Says(), {}
    for strategies in (MIXED, ("probe", "probe", "probe")):
        with trained_here():
            run = crossval.cross_validate(
                made.photos,
                made.recipe,
                tmp_path / strategies[-1],
                choose=chosen(*strategies),
                random_split_baseline=True,
                reporter=voice,
            )
        answers[strategies[-1]] = run.scores()
    assert "random_split" in answers["probe"] and "random_split" not in answers["partial"]
    assert any("random_split_baseline=True" in line for line in voice.lines)
