"""The learning curve: on features drawn with a known difficulty, with too few groups, and without any signal."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.data.folds import make_folds
from unfreeze.learn.probe.thinned import COLUMNS, ThinnedFeatures, sampled_rows, thinned
from unfreeze.study.curve import LEAST_GROUPS, learning_curve

RECIPE = Recipe().replace(**{"folds.count": 3, "probe.strengths": [1.0, 30.0]})


class Says(Reporter):
    """Counts the steps of its bars."""

    def __init__(self):
        self.steps = 0

    def bar(self, what, total):
        from contextlib import contextmanager

        @contextmanager
        def counting():
            yield self.count

        return counting()

    def count(self, steps):
        self.steps += steps


def drawn(groups=(60, 60, 60), each=3, width=40, apart=0.6, seed=0):
    """Classes of so many groups of `each` rows: features around class centres and, half as far, group centres."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(np.arange(len(groups)), groups), each)
    units = np.repeat(np.arange(sum(groups)), each)
    x = draw.normal(size=(len(groups), width))[labels] * apart
    x = x + draw.normal(size=(sum(groups), width))[units] * 0.7 + draw.normal(size=(len(labels), width))
    return ThinnedFeatures(x.astype(np.float32), (("all", width),), ["drawn"]), labels, units


def curve_of(data, tmp_path, reporter=None, classes=None, recipe=RECIPE, folds=None):
    features, labels, units = data
    names = classes or tuple(f"c{c}" for c in range(labels.max() + 1))
    if folds is None:
        folds, _ = make_folds(labels, units, 3, 0, names)
    return learning_curve(features, labels, units, folds, names, recipe, tmp_path / "scratch", reporter)


@pytest.fixture(autouse=True)
def _cache(fresh_cache):
    """Rotations are kept: each test starts without any."""


def test_a_hard_task_gains_and_its_json_is_whole(tmp_path):
    says = Says()
    curve = curve_of(drawn(apart=0.25), tmp_path, says)
    assert [point.share for point in curve.points] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert [len(point.draws) for point in curve.points] == [4, 4, 3, 2, 1]
    assert says.steps == 14
    scores = [point.macro_f1.value for point in curve.points]
    assert scores[-1] > scores[2] > scores[0]
    groups = [point.groups for point in curve.points]
    assert groups == sorted(groups) and groups[-1] == 120  # two of three folds
    assert curve.gain.value > 0.01 and curve.gain.low <= curve.gain.value <= curve.gain.high
    assert curve.gain_fourfold.value > curve.gain.value
    assert 0 <= curve.position.low <= curve.position.value <= curve.position.high <= 1
    assert "twice as many groups would bring +" in curve.sentence
    assert json.loads(json.dumps(curve.to_json(), allow_nan=False))["points"][4]["photos"] == 360


def test_an_easy_task_has_enough(tmp_path):
    hard = curve_of(drawn(apart=0.25), tmp_path)
    easy = curve_of(drawn(apart=2.0), tmp_path)
    assert easy.points[-1].macro_f1.value > 0.99
    assert easy.position.value > 0.9 > hard.position.value
    assert easy.sentence.startswith("Enough photos for this probe") and easy.short == ""


def test_the_last_point_is_the_probes_own_score(tmp_path):
    from unfreeze.judge.metrics import confusion_matrix, macro_f1
    from unfreeze.learn.probe.heads import fit_folds, predict_folds

    features, labels, units = drawn(apart=0.4)
    folds, _ = make_folds(labels, units, 3, 0, ("a", "b", "c"))
    predicted = np.zeros(len(labels), np.int64)
    for k, head in fit_folds(features, labels, units, folds, 3, RECIPE.probe, 0, "x", tmp_path):
        predicted[folds == k] = predict_folds(features, [head], np.flatnonzero(folds == k)).argmax(1)
    curve = curve_of((features, labels, units), tmp_path, folds=folds)
    assert curve.points[-1].macro_f1.value == pytest.approx(float(macro_f1(confusion_matrix(labels, predicted, 3))))


def test_labels_at_random_say_nothing(tmp_path):
    features, _, units = drawn(apart=0.0)
    shuffled = np.random.default_rng(1).integers(0, 3, 180)[units]
    curve = curve_of((features, shuffled, units), tmp_path)
    assert curve.points[-1].macro_f1.value < 0.5
    assert (curve.position.low, curve.position.high) == (0, 1)
    assert "no better than chance" in curve.sentence


def test_a_class_with_few_groups_is_left_out_and_named(tmp_path):
    curve = curve_of(drawn(groups=(40, 40, LEAST_GROUPS - 1), apart=0.5), tmp_path, classes=("oak", "ash", "yew"))
    assert curve.short == "yew" and "'yew' has too few (5 groups" in curve.sentence
    assert any("'yew' (5)" in note for note in curve.notes)
    by_name = {one.name: one for one in curve.classes}
    assert by_name["yew"].gain is None and by_name["oak"].gain is not None
    assert len(curve.points) == 5  # the two others have groups enough


def test_the_class_that_gains_most_is_short(tmp_path):
    curve = curve_of(drawn(groups=(60, 60, 8), apart=0.5), tmp_path, classes=("oak", "ash", "yew"))
    assert curve.points[0].share == 0.25 and any("1/4" in note for note in curve.notes)
    assert curve.short == "yew" and "'yew' is the shortest of them (8 groups" in curve.sentence


def test_six_groups_a_class_make_three_shares(tmp_path):
    curve = curve_of(drawn(groups=(6, 6, 6), apart=1.0), tmp_path)
    assert [point.share for point in curve.points] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [len(point.draws) for point in curve.points][1:] == [2, 1]
    assert curve.gain is not None


def test_no_class_has_groups_enough(tmp_path):
    curve = curve_of(drawn(groups=(5, 5, 5)), tmp_path)
    assert curve.points == () and curve.gain is None and curve.law is None
    assert (curve.position.value, curve.position.low, curve.position.high) == (0, 0, 1)
    assert curve.sentence.startswith("Too few groups")
    json.dumps(curve.to_json(), allow_nan=False)


def test_it_is_the_same_again_and_follows_the_contents(tmp_path):
    data = drawn(groups=(20, 20, 20), apart=0.3)
    first, again = curve_of(data, tmp_path), curve_of(data, tmp_path)
    assert first.points == again.points and first.gain == again.gain
    other = drawn(groups=(20, 20, 20), apart=0.3, seed=5)  # the same identity and folds, other contents
    assert curve_of(other, tmp_path).points != first.points


def test_rows_in_no_fold_take_no_part(tmp_path):
    features, labels, units = drawn(groups=(20, 20, 20))
    folds, _ = make_folds(labels, units, 3, 0, ("a", "b", "c"))
    folds[units % 4 == 0] = -1
    curve = curve_of((features, labels, units), tmp_path, folds=folds)
    assert sum(one.photos for one in curve.classes) == (folds >= 0).sum() == 135
    assert curve.points[-1].photos == 90


def test_large_sets_are_sampled_and_thinned():
    units = np.arange(5000) // 5
    rows = sampled_rows(units, np.arange(5000), 600, 0)
    assert 590 <= len(rows) <= 600 and len(np.unique(units[rows])) * 5 == len(rows)  # whole groups
    assert (sampled_rows(units, np.arange(5000), 600, 0) == rows).all()
    assert (sampled_rows(units, np.arange(100), 600, 0) == np.arange(100)).all()

    draw = np.random.default_rng(0)
    wide = ThinnedFeatures(
        np.resize(draw.random(9973, np.float32), (2600, 20_000)), (("a", 15_000), ("b", 5_000)), ["x"]
    )
    found, thin = thinned(wide, np.arange(0, 2600, 2), 0)
    assert thin and found.blocks == (("a", 1500), ("b", 500)) and found.width == COLUMNS
    assert (found.rooted(np.array([1])) == 0).all()
    assert set(found.rooted(np.array([4]))[0].tolist()) <= set(wide.rooted(np.array([4]))[0].tolist())
    small = ThinnedFeatures(wide.kept[:10, :50], (("a", 50),), ["x"])
    assert thinned(small, np.arange(10), 0) == (small, False)
