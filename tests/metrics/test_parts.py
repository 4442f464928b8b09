"""Parts of a combined label: marginals, the whole with one part made right, and what each costs."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.core.dataset import LabelColumn
from unfreeze.metrics.classification import confusion_matrix, macro_f1, score_predictions
from unfreeze.metrics.label_columns import marginalize, part_scores, with_oracle_column

# Classes: (a, x), (a, y), (b, x); there is no (b, y).
FIRST, SECOND = LabelColumn("first", ("a", "b"), (0, 0, 1)), LabelColumn("second", ("x", "y"), (0, 1, 0))
PARTS = (FIRST, SECOND)
# Four classes, all combinations.
GRID = (LabelColumn("row", ("0", "1"), (0, 0, 1, 1)), LabelColumn("column", ("0", "1"), (0, 1, 0, 1)))


def told(classes, count, sure=0.7):
    """Probabilities whose most probable class is the given one."""
    out = np.full((len(classes), count), (1 - sure) / (count - 1))
    out[np.arange(len(classes)), classes] = sure
    return out


def test_marginals_are_sums_over_combinations():
    proba = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(marginalize(proba, FIRST), [[0.7, 0.3], [0.2, 0.8]])
    np.testing.assert_allclose(marginalize(proba, SECOND), [[0.8, 0.2], [0.9, 0.1]])


def test_a_part_made_right_leaves_the_others_as_they_were():
    truth, said = np.array([0, 1, 2, 3, 0]), np.array([0, 2, 3, 1, 3])
    proba = told(said, 4)
    # rows become 0, 0, 1, 1, 0 and columns stay 0, 0, 1, 1, 1
    assert with_oracle_column(truth, proba, GRID, 0).tolist() == [0, 0, 3, 3, 1]
    assert with_oracle_column(truth, proba, GRID, 1).tolist() == [0, 3, 2, 1, 2]


def test_where_no_such_combination_exists_the_most_probable_one_with_the_true_value_is_taken():
    truth, proba = np.array([2, 1]), np.array([[0.3, 0.5, 0.2], [0.4, 0.1, 0.5]])
    # (a, y) with first = b is nothing: the only class with b
    assert with_oracle_column(truth[:1], proba[:1], PARTS, 0).tolist() == [2]
    # (b, x) with second = y is nothing: the only class with y
    assert with_oracle_column(truth[1:], proba[1:], PARTS, 1).tolist() == [1]
    assert with_oracle_column(truth, told(truth, 3), PARTS, 0).tolist() == truth.tolist()


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
    own = score_predictions(GRID[1].of(truth), marginalize(proba, GRID[1]), units, ("0", "1"), resamples=200, seed=3)
    assert {k: v for k, v in found["column"].items() if k != "if_right"} == own
    assert found["row"]["accuracy"]["value"] == 1.0 and found["column"]["accuracy"]["value"] < 0.85


def test_the_part_that_errs_is_the_one_that_costs(judged):
    truth, proba, _, found = judged
    whole = float(macro_f1(confusion_matrix(truth, proba.argmax(1), 4)))
    row, column = found["row"]["if_right"], found["column"]["if_right"]
    assert (
        row["gain"]["value"] == row["gain"]["low"] == 0.0
        and row["gain"]["high"] < 0.02
        and row["macro_f1"]["value"] == pytest.approx(whole)
    )
    assert column["macro_f1"]["value"] == 1.0 and column["gain"]["value"] == pytest.approx(1 - whole)
    assert 0 < column["gain"]["low"] < column["gain"]["value"] < column["gain"]["high"]
    assert column["more_than"]["row"]["low"] > 0 and row["more_than"]["column"]["high"] < 0


def test_parts_with_equally_many_errors_do_not_differ_significantly():
    """Forty sets in which row and column err alike: at 5% two are called different."""
    wrong = 0
    for seed in range(40):
        draws = np.random.default_rng(seed)
        units = np.repeat(np.arange(50), 4)
        truth = draws.integers(0, 4, 200)
        said = truth ^ (draws.random(200) < 0.15) ^ (2 * (draws.random(200) < 0.15))
        found = part_scores(truth, told(said, 4), units, GRID, resamples=200, seed=seed)
        more = found["row"]["if_right"]["more_than"]["column"]
        wrong += more["low"] > 0 or more["high"] < 0
    assert wrong <= 6


def test_the_same_seed_gives_the_same_intervals(judged):
    truth, proba, units, found = judged
    assert part_scores(truth, proba, units, GRID, resamples=200, seed=3) == found
    assert part_scores(truth, proba, units, GRID, resamples=200, seed=4) != found
