"""Trials: only the judged part is predicted, from the learnt part alone; kept, taken up, and tried again if damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetuning import Says, colours
from racing import auto_recipe, colour_blind, trained_here, work_of
from unfreeze.analysis.strategy_race import one_block
from unfreeze.core.cache import cache_root
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import read_log
from unfreeze.training.context import FitContext
from unfreeze.training.fine_tune import launcher
from unfreeze.training.inner_eval import Candidate, evaluate_candidates


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> FitContext:
    """54 photos of 27 groups in three classes."""
    folder = tmp_path_factory.mktemp("tries")
    return work_of(auto_recipe(colours(folder / "photos", groups=9, each=2)), folder / "work")


@pytest.fixture(scope="module")
def folds(work) -> np.ndarray:
    return one_block(work, np.arange(len(work.labels)), 0).folds


def trials_of(work: FitContext, folds: np.ndarray, *strategies: str) -> list[Candidate]:
    return [Candidate(work.recipe.replace(strategy=s), folds) for s in strategies]


def kept() -> list[Path]:
    return sorted((cache_root() / "trials").glob("*.npz"))


def unfinished() -> list[Path]:
    return sorted((cache_root() / "trials").glob("*.work"))


def tried(work: FitContext, *trials: Candidate, stop_after: int | None = None):
    with trained_here(stop_after) as done:
        return evaluate_candidates(work, trials, Reporter()), done


def test_what_is_judged_is_predicted_and_nothing_else(work, folds, fresh_cache):
    found, done = tried(work, *trials_of(work, folds, "probe", "partial", "probe"))
    assert len(found) == 3 and [job.recipe.strategy for job in done] == ["partial"]
    for one in found:
        assert (np.isfinite(one.proba).all(1) == (folds == 0)).all()
        np.testing.assert_allclose(one.proba[folds == 0].sum(1), 1)
        assert one.photos == (folds > 0).sum() and one.seconds > 0
    np.testing.assert_array_equal(found[0].proba, found[2].proba)
    assert set(done[0].train.tolist()) == set(np.flatnonzero(folds > 0).tolist())
    right = found[0].proba[folds == 0].argmax(1) == work.labels[folds == 0]
    assert right.mean() > 0.8


def test_a_try_is_kept_and_its_scratch_is_not(work, folds, fresh_cache):
    trials = trials_of(work, folds, "probe", "partial")
    first, done = tried(work, *trials)
    assert len(done) == 1 and len(kept()) == 2 and not unfinished()
    again, done = tried(work, *reversed(trials))
    assert not done
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one.proba, other.proba)
        assert (one.seconds, one.photos) == (other.seconds, other.photos)


@pytest.mark.parametrize("what", ["labels", "folds", "groups", "recipe", "photos"])
def test_another_try_is_another_answer(what, work, folds, fresh_cache):
    (first,), _ = tried(work, *trials_of(work, folds, "probe"))
    changed, own = work, folds.copy()
    learnt = np.flatnonzero(folds > 0)
    if what == "labels":
        labels = work.labels.copy()
        labels[learnt[::2]] = (labels[learnt[::2]] + 1) % 3
        changed = replace(work, labels=labels)
    elif what == "folds":
        own[learnt[:8]] = -1
    elif what == "groups":
        changed = replace(work, units=work.units + 1)
    elif what == "recipe":
        changed = replace(work, recipe=work.recipe.replace(**{"probe.Cs": [0.01]}))
    else:
        looks = replace(work.looks, keys=np.roll(work.looks.keys, 2, axis=0))
        table = work.photos.table.assign(path=np.roll(work.photos.table["path"].to_numpy(), 2))
        changed = replace(work, looks=looks, photos=work.photos.with_table(table))
    (second,), _ = tried(changed, *trials_of(changed, own, "probe"))
    assert len(kept()) == 2
    if what != "groups":
        assert np.abs(first.proba[folds == 0] - second.proba[folds == 0]).max() > 1e-4


def test_another_file_of_weights_is_another_answer(work, folds, fresh_cache, tmp_path):
    path, found = tmp_path / "weights.safetensors", []
    own = replace(work, recipe=work.recipe.replace(weights=str(path)))
    for seed in (0, 1):
        colour_blind(path, seed)
        found += tried(own, *trials_of(own, folds, "probe"))[0]
    assert len(kept()) == 2 and np.abs(found[0].proba - found[1].proba)[folds == 0].max() > 1e-4


def test_rows_that_take_no_part_change_nothing(work, folds, fresh_cache):
    """Neither their labels nor what they are: the same answer from the cache, and the same when computed anew."""
    own = np.where(work.labels == 2, -1, folds)
    (first,), _ = tried(work, *trials_of(work, own, "probe"))
    labels = np.where(own < 0, 0, work.labels)
    changed = replace(work, labels=labels)
    (second,), _ = tried(changed, *trials_of(changed, own, "probe"))
    assert len(kept()) == 1
    kept()[0].unlink()
    (third,), _ = tried(changed, *trials_of(changed, own, "probe"))
    np.testing.assert_array_equal(first.proba, second.proba)
    np.testing.assert_allclose(first.proba, third.proba, atol=1e-9)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x04 a pickle", None])
def test_a_damaged_answer_is_found_again(content, work, folds, fresh_cache):
    trial = trials_of(work, folds, "probe")
    (first,), _ = tried(work, *trial)
    (place,) = kept()
    place.write_bytes(place.read_bytes()[:-30] if content is None else content)
    (again,), _ = tried(work, *trial)
    np.testing.assert_array_equal(first.proba, again.proba)


def test_an_interrupted_try_goes_on_from_its_last_epoch(work, folds, fresh_cache, tmp_path, monkeypatch):
    longer = replace(work, recipe=work.recipe.replace(**{"train.epochs": 3}))
    trials = trials_of(longer, folds, "probe", "partial")
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "whole"))
    whole, _ = tried(longer, *trials)
    monkeypatch.setenv("UNFREEZE_CACHE", str(fresh_cache))
    with pytest.raises(KeyboardInterrupt):
        tried(longer, *trials, stop_after=2)
    assert len(kept()) == 1  # the probe's is there already
    (place,) = unfinished()
    before, rows = read_log(place), []
    assert [row["epoch"] for row in before] == [1, 2]
    with pytest.MonkeyPatch.context() as patch:
        log = launcher._log
        patch.setattr(launcher, "_log", lambda folder, fold, row: (rows.append(row), log(folder, fold, row)))
        taken_up, done = tried(longer, *trials)
    assert len(done) == 1 and [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["seconds"] == before[0]["seconds"]  # told again, not trained again
    for one, other in zip(whole, taken_up, strict=True):
        np.testing.assert_allclose(one.proba, other.proba, atol=1e-6)
    assert len(kept()) == 2 and not unfinished()


def test_what_is_tried_is_silent_and_the_test_split_is_not_looked_at(work, folds, fresh_cache):
    voice = Says()
    table = work.photos.table.copy()
    table.loc[folds == -1, "split"] = "test"
    aside = np.where(work.labels == 0, -1, folds)
    table.loc[work.labels == 0, "split"] = "test"
    own = replace(work, photos=work.photos.with_table(table), reporter=voice)
    with trained_here() as done:
        evaluate_candidates(own, trials_of(own, aside, "partial"), Reporter())
    assert voice.lines == []
    assert set(done[0].out.tolist()) == set(np.flatnonzero(aside == 0).tolist())
