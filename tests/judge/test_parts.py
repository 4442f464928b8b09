"""Parts of a combined label: marginals, the whole with one part made right, and what each costs."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.core.attributes import Part
from unfreeze.judge.metrics import confusion_matrix, macro_f1, out_of_fold_scores
from unfreeze.judge.parts import marginal, part_scores, with_part_right

# Classes: (a, x), (a, y), (b, x); there is no (b, y).
FIRST, SECOND = Part("first", ("a", "b"), (0, 0, 1)), Part("second", ("x", "y"), (0, 1, 0))
PARTS = (FIRST, SECOND)
# Four classes, all combinations.
GRID = (Part("row", ("0", "1"), (0, 0, 1, 1)), Part("column", ("0", "1"), (0, 1, 0, 1)))


def told(classes, count, sure=0.7):
    """Probabilities whose most probable class is the given one."""
    out = np.full((len(classes), count), (1 - sure) / (count - 1))
    out[np.arange(len(classes)), classes] = sure
    return out


def test_marginals_are_sums_over_combinations():
    proba = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(marginal(proba, FIRST), [[0.7, 0.3], [0.2, 0.8]])
    np.testing.assert_allclose(marginal(proba, SECOND), [[0.8, 0.2], [0.9, 0.1]])


def test_a_part_made_right_leaves_the_others_as_they_were():
    truth, said = np.array([0, 1, 2, 3, 0]), np.array([0, 2, 3, 1, 3])
    proba = told(said, 4)
    # rows become 0, 0, 1, 1, 0 and columns stay 0, 0, 1, 1, 1
    assert with_part_right(truth, proba, GRID, 0).tolist() == [0, 0, 3, 3, 1]
    assert with_part_right(truth, proba, GRID, 1).tolist() == [0, 3, 2, 1, 2]


def test_where_no_such_combination_exists_the_most_probable_one_with_the_true_value_is_taken():
    truth, proba = np.array([2, 1]), np.array([[0.3, 0.5, 0.2], [0.4, 0.1, 0.5]])
    # (a, y) with first = b is nothing: the only class with b
    assert with_part_right(truth[:1], proba[:1], PARTS, 0).tolist() == [2]
    # (b, x) with second = y is nothing: the only class with y
    assert with_part_right(truth[1:], proba[1:], PARTS, 1).tolist() == [1]
    assert with_part_right(truth, told(truth, 3), PARTS, 0).tolist() == truth.tolist()


@pytest.fixture(scope="module")
def judged():
    """200 photos of 50 groups: the row is always right, the column in three of four photos."""
    draws = np.random.default_rng(0)
    units = np.repeat(np.arange(50), 4)
    truth = draws.integers(0, 4, 50)[units]
    wrong = draws.random(200) < 0.25
    proba = told(np.where(wrong, truth ^ 1, truth), 4)
    return truth, proba, units, part_scores(truth, proba, units, GRID, resamples=200, seed=3)


def test_each_part_is_scored_by_its_marginals(judged):
    truth, proba, units, found = judged
    assert list(found) == ["row", "column"]
    own = out_of_fold_scores(GRID[1].of(truth), marginal(proba, GRID[1]), units, ("0", "1"), resamples=200, seed=3)
    assert {k: v for k, v in found["column"].items() if k != "if_right"} == own
    assert found["row"]["accuracy"]["value"] == 1.0 and found["column"]["accuracy"]["value"] < 0.85


def test_the_part_that_errs_is_the_one_that_costs(judged):
    truth, proba, _, found = judged
    whole = float(macro_f1(confusion_matrix(truth, proba.argmax(1), 4)))
    row, column = found["row"]["if_right"], found["column"]["if_right"]
    assert row["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0} and row["macro_f1"]["value"] == pytest.approx(whole)
    assert column["macro_f1"]["value"] == 1.0 and column["gain"]["value"] == pytest.approx(1 - whole)
    assert 0 < column["gain"]["low"] < column["gain"]["value"] < column["gain"]["high"]


def test_the_same_seed_gives_the_same_intervals(judged):
    truth, proba, units, found = judged
    assert part_scores(truth, proba, units, GRID, resamples=200, seed=3) == found
    assert part_scores(truth, proba, units, GRID, resamples=200, seed=4) != found
