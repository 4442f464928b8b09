"""The learning curve: on features drawn with a known difficulty, with too few groups, and without any signal."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unfreeze.analysis.learning_curve import LEAST_GROUPS, learning_curve
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.data.splits import stratified_group_kfold
from unfreeze.features.derived_matrix import COLUMNS, SampledFeatureMatrix, sample_groups, subsample_columns

RECIPE = Recipe().replace(**{"folds.n_splits": 3, "probe.Cs": [1.0, 30.0]})


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
    """Classes of so many groups of `each` rows: features around class centers and, half as far, group centers."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(np.arange(len(groups)), groups), each)
    units = np.repeat(np.arange(sum(groups)), each)
    x = draw.normal(size=(len(groups), width))[labels] * apart
    x = x + draw.normal(size=(sum(groups), width))[units] * 0.7 + draw.normal(size=(len(labels), width))
    return SampledFeatureMatrix(x.astype(np.float32), (("all", width),), ["drawn"]), labels, units


def curve_of(data, tmp_path, reporter=None, classes=None, recipe=RECIPE, folds=None):
    features, labels, units = data
    names = classes or tuple(f"c{c}" for c in range(labels.max() + 1))
    if folds is None:
        folds, _ = stratified_group_kfold(labels, units, 3, 0, names)
    return learning_curve(features, labels, units, folds, names, recipe, tmp_path / "scratch", reporter)


@pytest.fixture(autouse=True)
def _cache(fresh_cache):
    """Rotations are kept: each test starts without any."""


def test_a_hard_task_gains_and_its_json_is_whole(tmp_path):
    says = Says()
    curve = curve_of(drawn(apart=0.25), tmp_path, says)
    assert [point.share for point in curve.points] == pytest.approx(np.geomspace(1 / 16, 1, 8))
    assert [len(point.draws) for point in curve.points] == [4, 4, 4, 3, 3, 2, 2, 1]
    assert says.steps == 23
    scores = [point.macro_f1.value for point in curve.points]
    assert scores[-1] > scores[4] > scores[0]
    groups = [point.groups for point in curve.points]
    assert groups == sorted(groups) and groups[-1] == 120  # two of three folds
    level, gain, growth = curve.doubled.macro_f1, curve.doubled.gain, curve.doubled.growth
    assert curve.doubled.groups == 240 and curve.fourfold.groups == 480
    assert 0.01 < growth.value < curve.fourfold.growth.value and 0 <= growth.low < growth.value < growth.high
    # One number: the level is the measured score and the gain over it, and the law that is plotted.
    assert level.value == pytest.approx(scores[-1] + gain.value)
    a, b, c = curve.law
    assert level.value == pytest.approx(1 - a - b * 240**-c)
    for end in ("low", "high"):
        assert getattr(level, end) == pytest.approx(scores[-1] + getattr(gain, end))
    # The interval takes in the sampling of the judged groups: it is at least as wide as that of the measured score.
    own = curve.points[-1].macro_f1
    assert level.high - level.low > own.high - own.low > 0
    assert 0 <= curve.position.low <= curve.position.value <= curve.position.high <= 1
    more = f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] over the measured score"
    assert f"about {level.value:.2f} is predicted with 240, {more}" in curve.sentence
    assert json.loads(json.dumps(curve.to_json(), allow_nan=False))["points"][7]["photos"] == 360


def test_an_easy_task_has_enough(tmp_path):
    hard = curve_of(drawn(apart=0.25), tmp_path)
    easy = curve_of(drawn(apart=2.0), tmp_path)
    assert easy.points[-1].macro_f1.value > 0.99
    assert easy.position.value > 0.9 > hard.position.value
    assert easy.sentence.startswith("Enough photos for this probe") and easy.short == ""


def test_the_last_point_is_the_probes_own_score(tmp_path):
    from unfreeze.metrics.classification import confusion_matrix, macro_f1
    from unfreeze.training.linear_probe.heads import fit_folds, predict_folds

    features, labels, units = drawn(apart=0.4)
    folds, _ = stratified_group_kfold(labels, units, 3, 0, ("a", "b", "c"))
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
    assert curve.short == "yew" and "'yew' has too few groups (5 groups" in curve.sentence
    assert any("'yew' (5)" in note for note in curve.notes)
    by_name = {one.name: one for one in curve.classes}
    assert by_name["yew"].gain is None and by_name["oak"].gain is not None
    assert len(curve.points) == 8  # the two others have groups enough


def test_the_class_that_gains_most_is_short(tmp_path):
    curve = curve_of(drawn(groups=(60, 60, 8), apart=0.5), tmp_path, classes=("oak", "ash", "yew"))
    assert curve.points[0].share == 0.25 and any("smallest share is 25% of the groups" in n for n in curve.notes)
    assert curve.short == "yew" and "'yew' needs more photos most (8 groups" in curve.sentence


def test_six_groups_a_class_make_five_sizes_and_no_interval(tmp_path):
    curve = curve_of(drawn(groups=(6, 6, 6), apart=1.0), tmp_path)
    assert [point.share for point in curve.points] == pytest.approx(np.geomspace(1 / 3, 1, 5))
    for figure in (curve.doubled.macro_f1, curve.doubled.gain, curve.doubled.growth, curve.classes[0].gain):
        assert figure.low is None and figure.high is None
    assert any("No interval for more groups: 5 sizes of 6" in note for note in curve.notes)
    assert (curve.position.low, curve.position.high) == (0, 1)
    assert "over the measured score" in curve.sentence and "95%" not in curve.sentence
    json.dumps(curve.to_json(), allow_nan=False)


def test_every_draw_has_every_class_in_every_training_part(tmp_path):
    """A class of six groups keeps two in the smallest share, in two folds, so that no size is lost."""
    data = drawn(groups=(60, 40, 6), apart=0.6)
    for seed in range(3):
        folds, _ = stratified_group_kfold(data[1], data[2], 3, seed, ("a", "b", "c"))
        curve = curve_of(data, tmp_path, folds=folds, recipe=RECIPE.replace(seed=seed))
        assert len(curve.points) == 5 and not any("lack a class" in note for note in curve.notes)


def test_single_photos_are_called_photos(tmp_path):
    curve = curve_of(drawn(groups=(40, 40, 40), each=1), tmp_path)
    assert "80 photos to learn from" in curve.sentence and "groups" not in curve.sentence.split(";")[0]


def test_no_class_has_groups_enough(tmp_path):
    curve = curve_of(drawn(groups=(5, 5, 5)), tmp_path)
    assert curve.points == () and curve.doubled is None and curve.law is None
    assert (curve.position.value, curve.position.low, curve.position.high) == (0, 0, 1)
    assert curve.sentence.startswith("Too few groups")
    json.dumps(curve.to_json(), allow_nan=False)


def test_it_is_the_same_again_and_follows_the_contents(tmp_path):
    data = drawn(groups=(20, 20, 20), apart=0.3)
    first, again = curve_of(data, tmp_path), curve_of(data, tmp_path)
    assert first.points == again.points and first.doubled == again.doubled
    other = drawn(groups=(20, 20, 20), apart=0.3, seed=5)  # the same identity and folds, other contents
    assert curve_of(other, tmp_path).points != first.points


def test_rows_in_no_fold_take_no_part(tmp_path):
    features, labels, units = drawn(groups=(20, 20, 20))
    folds, _ = stratified_group_kfold(labels, units, 3, 0, ("a", "b", "c"))
    folds[units % 4 == 0] = -1
    curve = curve_of((features, labels, units), tmp_path, folds=folds)
    assert sum(one.photos for one in curve.classes) == (folds >= 0).sum() == 135
    assert curve.points[-1].photos == 90


def test_large_sets_are_sampled_and_thinned():
    units = np.arange(5000) // 5
    rows = sample_groups(units, np.arange(5000), 600, 0)
    assert 590 <= len(rows) <= 600 and len(np.unique(units[rows])) * 5 == len(rows)  # whole groups
    assert (sample_groups(units, np.arange(5000), 600, 0) == rows).all()
    assert (sample_groups(units, np.arange(100), 600, 0) == np.arange(100)).all()

    draw = np.random.default_rng(0)
    wide = SampledFeatureMatrix(
        np.resize(draw.random(9973, np.float32), (2600, 20_000)), (("a", 15_000), ("b", 5_000)), ["x"]
    )
    found, thin = subsample_columns(wide, np.arange(0, 2600, 2), 0)
    assert thin and found.blocks == (("a", 1500), ("b", 500)) and found.width == COLUMNS
    assert (found.rooted(np.array([1])) == 0).all()
    assert set(found.rooted(np.array([4]))[0].tolist()) <= set(wide.rooted(np.array([4]))[0].tolist())
    small = SampledFeatureMatrix(wide.kept[:10, :50], (("a", 50),), ["x"])
    assert subsample_columns(small, np.arange(10), 0) == (small, False)
