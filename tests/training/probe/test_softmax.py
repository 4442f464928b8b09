"""Batched L-BFGS against scikit-learn's logistic regression, and what a batch must not change."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.training.linear_probe.solver import fit_softmax


def problem(classes, n=240, r=12, seed=0):
    """Inputs (n, r) float32 of unequal scale, labels that depend on them with noise."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, r)) * np.geomspace(1, 0.05, r)
    logits = x @ draw.normal(size=(r, classes)) * 3 + draw.normal(size=classes)
    labels = (logits + draw.gumbel(size=logits.shape)).argmax(1)
    return x.astype(np.float32), labels.astype(np.int64)


def in_pieces(x, size=None):
    size = size or len(x)

    def pieces():
        for start in range(0, len(x), size):
            yield slice(start, min(start + size, len(x))), x[start : start + size]

    return pieces


def solve(x, y, penalties, weights=None, size=None, **options):
    penalties = np.asarray(penalties)
    if weights is None:
        weights = np.full((len(penalties), len(y)), 1 / len(y), np.float32)
    options = {"tolerance": 1e-5, "max_passes": 2000} | options
    return fit_softmax(in_pieces(x, size), y, weights, penalties, (x**2).mean(0), int(y.max()) + 1, **options)


def by_sklearn(x, y, penalty, weight):
    """Probabilities of scikit-learn's solution of the same problem, in float64, to a much tighter tolerance."""
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=20_000)
    x = x.astype(np.float64)
    if y.max() > 1:
        return model.fit(x, y, sample_weight=weight).predict_proba(x)
    # Two classes: scikit-learn has one weight vector w for the difference; in ours w = w1 - w0 and, at the optimum,
    # w1 = -w0, so that |W|^2 = |w|^2 / 2: its penalty is half of ours.
    model.C = 2 / penalty
    return model.fit(x, y, sample_weight=weight).predict_proba(x)


def probabilities(solution, x, p=0):
    logits = x.astype(np.float64) @ solution.weight[p] + solution.bias[p]
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_solution_is_scikit_learns(classes, penalty):
    x, y = problem(classes)
    found = probabilities(solve(x, y, [penalty]), x)
    assert np.abs(found - by_sklearn(x, y, penalty, np.full(len(y), 1 / len(y)))).max() < 1e-3


@pytest.mark.parametrize("classes", [2, 7])
def test_sample_weights_are_scikit_learns(classes):
    x, y = problem(classes)
    weight = np.random.default_rng(1).uniform(0, 1, len(y)) ** 3
    weight[::5] = 0
    weight /= weight.sum()
    found = probabilities(solve(x, y, [1e-2], weight[None].astype(np.float32)), x)
    assert np.abs(found - by_sklearn(x, y, 1e-2, weight)).max() < 1e-3
    assert np.abs(found - by_sklearn(x, y, 1e-2, np.full(len(y), 1 / len(y)))).max() > 1e-2


def test_rows_of_no_weight_take_no_part():
    x, y = problem(3)
    weight = np.zeros((1, len(y)), np.float32)
    weight[0, :100] = 1 / 100
    noisy = x.copy()
    noisy[100:] = np.random.default_rng(3).normal(size=noisy[100:].shape)
    scale = (x**2).mean(0)
    a, b = (
        fit_softmax(in_pieces(i), j, weight, np.array([1e-2]), scale, 3, tolerance=1e-5)
        for i, j in ((x, y), (noisy, np.concatenate([y[:100], (y[100:] + 1) % 3])))
    )
    assert np.array_equal(a.weight, b.weight)


def test_the_loss_is_the_objective():
    x, y = problem(4)
    solution = solve(x, y, [1e-2])
    p = probabilities(solution, x)
    by_hand = -np.log(p[np.arange(len(y)), y]).mean() + 0.5 * 1e-2 * (solution.weight[0].astype(float) ** 2).sum()
    assert solution.loss[0] == pytest.approx(by_hand, rel=1e-5)


def test_a_warm_start_ends_at_the_same_place_sooner():
    x, y = problem(7)
    cold = solve(x, y, [1e-2])
    near = solve(x, y, [2e-2])
    warm = solve(x, y, [1e-2], start=(near.weight, near.bias))
    assert np.abs(probabilities(warm, x) - probabilities(cold, x)).max() < 1e-3
    again = solve(x, y, [1e-2], start=(cold.weight, cold.bias))
    assert again.iterations <= 3
    assert np.abs(probabilities(again, x) - probabilities(cold, x)).max() < 1e-4


def test_problems_in_a_batch_equal_each_alone():
    """Of different penalty and weights: each has its own step and leaves the batch when it is done."""
    x, y = problem(5)
    penalties = [1.0, 1e-1, 1e-2, 1e-3]
    weights = np.random.default_rng(2).dirichlet(np.ones(len(y)), 4).astype(np.float32)
    together = solve(x, y, penalties, weights)
    for p, penalty in enumerate(penalties):
        alone = solve(x, y, [penalty], weights[p : p + 1])
        assert np.abs(probabilities(together, x, p) - probabilities(alone, x)).max() < 1e-3
        assert together.loss[p] == pytest.approx(alone.loss[0], rel=1e-5)
    norms = np.linalg.norm(together.weight, axis=(1, 2))
    assert (np.diff(norms) > 0).all()


@pytest.mark.parametrize("size", [1, 7, 100, 239])
def test_one_piece_or_many_are_the_same(size):
    x, y = problem(3)
    whole, cut = solve(x, y, [1e-2]), solve(x, y, [1e-2], size=size)
    assert np.abs(probabilities(whole, x) - probabilities(cut, x)).max() < 1e-3


def test_twice_is_bitwise_the_same():
    x, y = problem(6)
    a, b = solve(x, y, [1e-1, 1e-3], size=50), solve(x, y, [1e-1, 1e-3], size=50)
    assert np.array_equal(a.weight, b.weight)
    assert np.array_equal(a.bias, b.bias)
    assert np.array_equal(a.loss, b.loss)


def test_the_usual_tolerance_is_close_enough():
    """What heads use: the objective within a thousandth of the optimum."""
    x, y = problem(7)
    for penalty in (1e-1, 1e-3):
        rough, fine = solve(x, y, [penalty], tolerance=3e-3), solve(x, y, [penalty], tolerance=1e-6)
        assert rough.loss[0] - fine.loss[0] < 1e-3 * fine.loss[0]


def test_a_class_without_rows_gets_no_probability():
    x, y = problem(3)
    kept = y != 1
    solution = solve(x[kept], y[kept], [1e-2])
    assert solution.weight.shape == (1, 12, 3)
    assert probabilities(solution, x)[:, 1].max() < 0.01
    assert np.isfinite(solution.weight).all()


def test_inputs_of_wild_scale():
    """Preconditioning by the columns' mean squares: a column a thousand times larger costs few more passes."""
    x, y = problem(3)
    wild = (x * np.geomspace(1e-2, 1e2, x.shape[1])).astype(np.float32)
    solution = solve(wild, y, [1e-3])
    assert solution.iterations < 300
    assert np.abs(probabilities(solution, wild) - by_sklearn(wild, y, 1e-3, np.full(len(y), 1 / len(y)))).max() < 5e-3
