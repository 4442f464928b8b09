"""A head for each attribute: what they amount to, what they win, and what the recipe refuses."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unfreeze.core.dataset import ImageDataset, LabelColumn, label_columns
from unfreeze.core.errors import RecipeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Balance
from unfreeze.features.matrix import JoinedFeatureMatrix
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.training.class_balance import resolve_balance
from unfreeze.training.context import FitContext
from unfreeze.training.linear_probe.heads import (
    LinearHead,
    check_labels,
    combine_heads,
    fit_folds,
    predict_folds,
    unseen_combinations,
    unseen_findings,
)
from unfreeze.training.linear_probe.solver import softmax
from unfreeze.training.linear_probe.strategy import Probe, fit_heads, score_random_split

FOLDS, SIZES = 4, (4, 4)


def photos_of(values, names=("first", "second")):
    """Photos with these attribute values (n, 2)."""
    table = pd.DataFrame(np.asarray(values).astype(str), columns=list(names))
    table["label"] = [", ".join(row) for row in table.to_numpy()]
    table = table.assign(path=[f"{i}.jpg" for i in range(len(table))], group="g", split="train", hash="0")
    classes = tuple(sorted(set(table["label"])))
    return ImageDataset(table, Path(), classes, classes, names, "test", "")


def work_of(folder, values, each=1, **changes):
    """Work on photos with these values; groups of `each` photos, dealt to the folds in turn."""
    photos = photos_of(values)
    labels = np.array([photos.classes.index(name) for name in photos.table["label"]], np.int64)
    units = np.arange(len(labels), dtype=np.int64) // each
    dotted = {"strategy": "probe", "probe.Cs": [1.0, 30.0], "folds.n_splits": FOLDS, "labels.model": "parts"}
    recipe = Recipe().replace(**dotted, **{key.replace("__", "."): value for key, value in changes.items()})
    return FitContext(photos, None, labels, units, units % FOLDS, recipe, folder, Reporter())


def fitted_on(work, features):
    """Probabilities out of fold by `labels.model`, and the heads."""
    probe = Probe(JoinedFeatureMatrix((features,)), [], {}, "x")
    found = {}
    for model in ("joint", "parts"):
        heads = dict(fit_heads(work, probe, work.units, work.folds, "x", model=model))
        proba = np.full((len(work.labels), work.classes), np.nan)
        for k, head in heads.items():
            rows = np.flatnonzero(work.folds == k)
            proba[rows] = predict_folds(probe.features, [head], rows)
        found[model] = proba, heads
    return probe, found


def score(work, proba):
    return float(macro_f1(confusion_matrix(work.labels, proba.argmax(1), work.classes)))


def grid_of(folder, noise):
    """Work on 96 photos of 4 x 4 independent values, and features that are the sum of both values' directions."""
    draws = np.random.default_rng(1)
    values = np.array([*product(range(4), range(4))] * 6)
    directions = [draws.normal(size=(size, 40)) for size in SIZES]
    x = sum(d[values[:, i]] for i, d in enumerate(directions)) + noise * draws.normal(size=(len(values), 40))
    order = draws.permutation(len(values))
    return work_of(folder, values[order]), x[order].astype(np.float32)


@pytest.fixture
def grid(tmp_path):
    """Photos that are hard to tell."""
    return grid_of(tmp_path, 1.8)


def test_one_head_is_the_product_of_the_parts_over_the_combinations_that_exist():
    draws = np.random.default_rng(0)
    parts = (LabelColumn("a", ("0", "1"), (0, 0, 1)), LabelColumn("b", ("0", "1", "2"), (0, 2, 1)))
    widths = (5, 3, 4)
    heads = [
        LinearHead(draws.normal(size=(9, 2)).astype(np.float32), draws.normal(size=2).astype(np.float32), 1.0, (0, 2)),
        LinearHead(draws.normal(size=(7, 3)).astype(np.float32), draws.normal(size=3).astype(np.float32), 9.0, (2, 1)),
    ]
    inputs = [draws.normal(size=(6, width)).astype(np.float32) for width in widths]
    told = [softmax(h.rooted_logits(np.hstack([inputs[i] for i in h.inputs]))) for h in heads]
    products = told[0][:, [0, 0, 1]] * told[1][:, [0, 2, 1]]
    one = combine_heads(heads, parts, widths)
    found = softmax(one.rooted_logits(np.hstack([inputs[i] for i in one.inputs])))
    np.testing.assert_allclose(found, products / products.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1)
    assert one.inputs == (0, 2, 1) and one.strength == pytest.approx(3.0) and one.strengths == (1.0, 9.0)


def test_parts_beat_one_head_where_attributes_are_independent_and_photos_few(store_features, fresh_cache, grid):
    work, x = grid
    _, found = fitted_on(work, store_features(x))
    joint, parts = (score(work, found[model][0]) for model in ("joint", "parts"))
    assert parts > joint + 0.1, (parts, joint)
    np.testing.assert_allclose(found["parts"][0].sum(1), 1)


def test_each_part_has_its_own_labels_weights_and_penalty(store_features, fresh_cache, grid, tmp_path):
    work, x = grid
    work.recipe = work.recipe.replace(**{"balance.sampling": "over"})
    features = store_features(x)
    probe, found = fitted_on(work, features)
    words = resolve_balance(Balance(sampling="over"))
    own = []
    for part in label_columns(work.photos):
        labels = part.of(work.labels)
        rest = (work.recipe.probe, 0, "x", tmp_path / "own")
        own.append(dict(fit_folds(probe.features, labels, work.units, work.folds, 4, *rest, words=words)))
    for k, head in found["parts"][1].items():
        one = combine_heads([heads[k] for heads in own], label_columns(work.photos), [40])
        assert np.array_equal(one.weight, head.weight) and one.strengths == head.strengths


def test_a_combination_that_is_not_there_to_learn_from_is_reported_by_its_parts(store_features, fresh_cache, tmp_path):
    work, x = grid_of(tmp_path, 0.5)
    hidden = work.labels == 5
    work.folds = np.where(hidden, 0, work.folds)  # all its photos in one fold
    assert unseen_combinations(work.labels, work.folds, FOLDS, work.photos.classes) == [work.photos.classes[5]]
    (finding,) = unseen_findings(work.recipe, work.labels, work.folds, work.photos)
    assert finding.severity == "info" and "1 of 16 combinations" in finding.message
    assert not unseen_findings(work.recipe.replace(**{"labels.model": "joint"}), work.labels, work.folds, work.photos)
    _, found = fitted_on(work, store_features(x))
    right = {model: (proba[hidden].argmax(1) == 5).mean() for model, (proba, _) in found.items()}
    assert right["joint"] == 0 and right["parts"] >= 0.5, right
    assert found["parts"][0][hidden, 5].mean() > 5 * found["joint"][0][hidden, 5].mean()


def test_a_fold_has_no_part_in_its_own_head_and_the_same_photos_give_the_same_heads(store_features, fresh_cache, grid):
    work, x = grid
    features = store_features(x)
    first, again = (fitted_on(work, features)[1]["parts"][1] for _ in range(2))
    assert all(np.array_equal(first[k].weight, again[k].weight) for k in range(FOLDS))
    work.labels = np.where(work.folds == 1, (work.labels + 1) % 16, work.labels)
    other = fitted_on(work, features)[1]["parts"][1]
    assert np.array_equal(first[1].weight, other[1].weight) and np.array_equal(first[1].bias, other[1].bias)
    assert not np.array_equal(first[2].weight, other[2].weight)


def test_labels_at_random_score_at_chance(store_features, fresh_cache, tmp_path):
    draws = np.random.default_rng(5)
    work = work_of(tmp_path, draws.integers(0, 3, (240, 2)), each=2)
    _, found = fitted_on(work, store_features(draws.normal(size=(240, 30)).astype(np.float32)))
    right = float((found["parts"][0].argmax(1) == work.labels).mean())
    assert right < 1 / 9 + 3 * (1 / 9 * 8 / 9 / 120) ** 0.5
    logs = -np.log(found["parts"][0][np.arange(240), work.labels]).mean()
    assert logs > 0.97 * np.log(9)


def test_both_is_the_mean_of_the_two_also_under_other_folds(store_features, fresh_cache, grid):
    work, x = grid
    features = store_features(x)
    probe, _ = fitted_on(work, features)
    other = np.roll(work.folds, 7)
    each = []
    for model in ("joint", "parts", "both"):
        work.recipe = work.recipe.replace(**{"labels.model": model})
        each.append(score_random_split(work, probe, other))
    np.testing.assert_array_equal(each[2], (each[0] + each[1]) / 2)


@pytest.mark.parametrize("model", ["parts", "both"])
def test_labels_of_one_column_have_no_parts(model):
    recipe = Recipe().replace(**{"labels.model": model})
    single = photos_of([["a", "x"], ["b", "x"]])
    with pytest.raises(RecipeError, match=r"labels\.model = '(parts|both)': needs two or more label columns") as told:
        check_labels(recipe, single)
    assert "\n" not in str(told.value) and "label=" in str(told.value)
    check_labels(Recipe(), single)
    check_labels(recipe, photos_of([["a", "x"], ["b", "y"]]))
