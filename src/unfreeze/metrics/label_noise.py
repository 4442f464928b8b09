"""Label noise: estimated number of wrong labels, and the probability that each label is wrong.

Model: given out-of-fold probabilities p, the true value has the calibrated probabilities q = softmax(log p / T). The
label equals the true value with probability 1 - r and is each of the other V - 1 values with equal probability
otherwise (uniform noise). T and r are estimated jointly by their likelihood, so that r covers only those contradictions
between labels and predictions that the calibrated uncertainty of the models does not explain. This replaces the fixed
rate and the thresholds of confident learning (Northcutt, Jiang & Chuang 2021, "Confident learning: estimating
uncertainty in dataset labels", JAIR 70) by an estimate that is zero for a model that is merely uncertain.

If an attribute is constant within groups (the gender of a person), a group has one true value. With probability r the
labels of the whole group are wrong together, and single labels differ from the others of the group with probability d.

The estimate cannot be negative, so its mean is above zero even if no label is wrong. This null distribution is
simulated: labels are drawn from the calibrated probabilities, which makes all of them correct, and processed by the
same code. The reported number is the observed one minus the mean of the null (a parametric bootstrap: Efron &
Tibshirani 1993, ch. 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64, Rows
from unfreeze.metrics.bootstrap import group_ids, group_weights, interval
from unfreeze.metrics.classification import macro_f1

FLOOR = 1e-12  # minimum probability; low, because overconfident models are evaluated at temperatures above 1
MOST = 4000  # maximum number of images for the estimation; of larger sets, whole groups are sampled
_RESAMPLES, _NULL = 200, 100
_MAX_RATE = 0.5
# Points of the grids of T and r: the first spans the whole range, each further one the region of high likelihood.
_GRIDS = ((13, 17), (7, 9), (7, 15))
_NEAR = 5
_TEMPERATURES = (0.25, 16.0)


@dataclass(frozen=True)
class Evidence:
    """Labels and log-probabilities of one attribute.

    A unit is an image, or a group if the attribute is constant within groups.

    Attributes:
        logs: float64 (U, V), log-probabilities of each unit; the maximum of each row is 0.
        unit: int64 (n,), unit of each image.
        given: int64 (n,), value of each label.
        by_group: Whether units are groups.
    """

    logs: F64
    unit: Rows
    given: Rows
    by_group: bool = False

    @classmethod
    def of(cls, proba: F64, given: Rows, groups: NDArray[Any] | None = None) -> Evidence:
        """Create from probabilities.

        Args:
            proba: float64 (n, V), out-of-fold probabilities.
            given: int64 (n,), value of each label.
            groups: (n,), if the attribute is constant within groups: log-probabilities are then averaged over each
                group.
        """
        logs = np.log(np.maximum(proba, FLOOR))
        unit, count = (np.arange(len(given)), len(given)) if groups is None else group_ids(groups)
        if groups is not None:
            total = np.zeros((count, logs.shape[1]))
            np.add.at(total, unit, logs)
            logs = total / np.bincount(unit, minlength=count)[:, None]
        return cls(logs - logs.max(1, keepdims=True), unit, given, groups is not None)

    @property
    def values(self) -> int:
        """Number of values V."""
        return self.logs.shape[1]

    def calibrated(self, temperature: float) -> F64:
        """Probabilities of the true value at a temperature, float64 (U, V)."""
        scaled = np.exp(self.logs / temperature)
        return scaled / scaled.sum(1, keepdims=True)

    def agreement(self, dissent: float) -> F64:
        """Likelihood of the labels of each unit for each value that the unit is labeled as, float64 (U, V)."""
        counts = np.zeros(self.logs.shape)
        np.add.at(counts, (self.unit, self.given), 1.0)
        if not self.by_group:
            return counts
        size, other = counts.sum(1, keepdims=True), dissent / (self.values - 1)
        logs = counts * np.log(1 - dissent) + (size - counts) * np.log(other)
        likelihood: F64 = np.exp(logs - logs.max(1, keepdims=True))  # a constant factor per unit cancels
        return likelihood

    def dissent(self) -> float:
        """Smoothed fraction of labels that differ from the most frequent one of their group; 0 if units are images."""
        if not self.by_group:
            return 0.0
        counts = np.zeros(self.logs.shape)
        np.add.at(counts, (self.unit, self.given), 1.0)
        return float((len(self.given) - counts.max(1).sum() + 0.5) / (len(self.given) + 1))


@dataclass(frozen=True)
class NoiseModel:
    """Parameters of the noise model.

    Attributes:
        temperature: T.
        rate: r, probability that a label (for groups: all labels of the group) is wrong.
        dissent: d, probability that a single label differs from the others of its group.
    """

    temperature: float
    rate: float
    dissent: float = 0.0

    def posterior(self, evidence: Evidence) -> F64:
        """Posterior probability of each true value, given probabilities and labels: float64 (n, V)."""
        if evidence.values < 2:
            return np.ones((len(evidence.given), evidence.values))
        q, likelihood = evidence.calibrated(self.temperature), evidence.agreement(self.dissent)
        other = self.rate / (evidence.values - 1)
        # A unit with true value v is labeled v with probability 1 - r, and each other value with r / (V - 1).
        joint = q * ((1 - self.rate - other) * likelihood + other * likelihood.sum(1, keepdims=True))
        joint = joint / np.maximum(joint.sum(1, keepdims=True), 1e-300)
        posterior: F64 = joint[evidence.unit]
        return posterior


def fit_noise(evidence: Evidence, weights: F64 | None = None, near: float | None = None) -> list[NoiseModel]:
    """Posterior means of T and r under flat priors, one model for each row of weights.

    The priors are flat in log T, for T from 1/4 to 16 or around `near`, and in r up to 0.5.

    Args:
        evidence: Labels and log-probabilities.
        weights: float64 (B, U), weight of each unit; by default one row of ones.
        near: If given, T is within a factor of two of it.
    """
    if evidence.values < 2 or not len(evidence.logs):
        return [NoiseModel(1.0, 0.0)] * (1 if weights is None else len(weights))
    weights = np.ones((1, len(evidence.logs))) if weights is None else weights
    dissent = evidence.dissent()
    likelihood = evidence.agreement(dissent)
    low, high = np.log(_TEMPERATURES if near is None else (near / 2, near * 2))
    logs = np.linspace(low, high, _GRIDS[0][0] if near is None else _NEAR)
    rates = _MAX_RATE * np.linspace(0, 1, _GRIDS[0][1]) ** 2
    for points in (*_GRIDS[1:], None):
        density = _density(evidence, likelihood, weights, logs, rates)
        by_log, by_rate = density.sum(2), density.sum(1)
        at_log, at_rate = by_log @ logs, by_rate @ rates
        if points is not None:
            logs, rates = _around(logs, by_log, points[0]), _around(rates, by_rate, points[1])
    return [NoiseModel(float(np.exp(t)), float(r), dissent) for t, r in zip(at_log, at_rate, strict=True)]


def _density(evidence: Evidence, likelihood: F64, weights: F64, logs: F64, rates: F64) -> F64:
    """Posterior probabilities on a grid of log T and r, cells weighted by their width: float64 (B, T, R)."""
    total, values = likelihood.sum(1), evidence.values
    out = np.empty((len(weights), len(logs), len(rates)))
    for t, log in enumerate(logs):
        explained = (evidence.calibrated(float(np.exp(log))) * likelihood).sum(1)
        mixed = np.outer(1 - rates * values / (values - 1), explained) + np.outer(rates / (values - 1), total)
        out[:, t] = weights @ np.log(np.maximum(mixed, 1e-300)).T
    out += np.log(np.gradient(rates))[None, None] if len(rates) > 1 else 0.0
    out = np.exp(out - out.max((1, 2), keepdims=True))
    density: F64 = out / out.sum((1, 2), keepdims=True)
    return density


def _around(grid: F64, density: F64, points: int) -> F64:
    """Finer grid over the region where any of the densities (B, P) has mass, with a margin of one cell."""
    inside = np.flatnonzero((density > 1e-4).any(0))
    first, last = max(int(inside[0]) - 1, 0), min(int(inside[-1]) + 1, len(grid) - 1)
    return np.linspace(grid[first], grid[last], points)


@dataclass(frozen=True)
class LabelNoise:
    """Estimated label noise of a data set.

    Attributes:
        images: Number of images.
        wrong: {"value", "low", "high"}: number of wrong labels, minus the null, at least 0.
        cost: {"value", "low", "high"}: macro F1 of the same predictions by the true labels minus that by the given
            ones, minus the null, with its interval over groups.
        on_errors: Expected fraction of the apparent prediction errors whose label is wrong; the null is not subtracted.
        models: Noise model of each attribute.
    """

    images: int
    wrong: dict[str, float]
    cost: dict[str, float]
    on_errors: float
    models: tuple[NoiseModel, ...]

    @property
    def detected(self) -> bool:
        """Whether the interval of the number of wrong labels excludes 0."""
        return self.wrong["low"] > 0


def class_posterior(posteriors: Sequence[F64], class_values: Rows) -> F64:
    """Posterior class probabilities from those of the attributes.

    Attributes are treated as independent over the existing classes.

    Args:
        posteriors: float64 (n, V) for each attribute.
        class_values: int64 (C, A), value of each attribute for each class, -1 for classes without images.

    Returns:
        float64 (n, C).
    """
    joint = np.ones((len(posteriors[0]), len(class_values)))
    for posterior, values in zip(posteriors, class_values.T, strict=True):
        joint *= np.where(values >= 0, posterior[:, values], 0.0)
    total = joint.sum(1, keepdims=True)
    found: F64 = np.where(total > 0, joint / np.maximum(total, 1e-300), 1 / len(class_values))
    return found


def estimate_noise(
    axes: Sequence[Evidence],
    class_values: Rows,
    labels: Rows,
    predicted: Rows,
    groups: NDArray[Any],
    seed: int = 0,
) -> LabelNoise:
    """Estimate the number of wrong labels and their cost, with the null subtracted.

    Args:
        axes: Evidence for each attribute of the label, from out-of-fold probabilities whose models did not select their
            training images by these labels.
        class_values: int64 (C, A), as in `class_posterior`.
        labels: int64 (n,), given class indices.
        predicted: int64 (n,), predictions whose score is corrected.
        groups: (n,) any hashable; images of a group are resampled together. If there are more than 4,000 images, whole
            groups are sampled up to that number, and the count is scaled up.
        seed: Seed of the draws.
    """
    images, draw = len(labels), np.random.default_rng(seed)
    if images > MOST:
        axes, labels, predicted, groups = _sampled(axes, labels, predicted, groups, draw)
    scale = images / len(labels)
    weights = np.stack([np.ones(len(labels)), *group_weights(groups, _RESAMPLES, seed)])
    first = [np.unique(axis.unit, return_index=True)[1] for axis in axes]
    # The range of T matters if r is weakly identified: use the same range for observed labels and null.
    near = [fit_noise(axis)[0].temperature for axis in axes]
    fitted = [fit_noise(axis, weights[:, rows], t) for axis, rows, t in zip(axes, first, near, strict=True)]
    models = tuple(some[0] for some in fitted)
    calibrated = [axis.calibrated(model.temperature) for axis, model in zip(axes, models, strict=True)]
    null = []
    for _ in range(_NULL):
        drawn = [replace(a, given=_draw(q, draw)[a.unit]) for a, q in zip(axes, calibrated, strict=True)]
        again = [fit_noise(axis, near=t)[0] for axis, t in zip(drawn, near, strict=True)]
        null.append((drawn, again, _composed([a.given for a in drawn], class_values, calibrated, axes)))
    if len(axes) > 1:
        quiet = [not _detected(i, axes[i], fitted[i], weights, null, draw) for i in range(len(axes))]
        if not all(quiet):
            # An attribute with poor models has a wide interval, which would mask noise in the other attributes.
            fitted = [[replace(m, rate=0.0) for m in f] if q else f for f, q in zip(fitted, quiet, strict=True)]
            null = [
                (d, [replace(m, rate=0.0) if q else m for m, q in zip(again, quiet, strict=True)], true)
                for d, again, true in null
            ]
    counts, costs, on_errors = [], [], 0.0
    by_groups = scale > 1 or any(a.by_group and some[0].rate > 0 for a, some in zip(axes, fitted, strict=True))
    for b, (some, weight) in enumerate(zip(zip(*fitted, strict=True), weights, strict=True)):
        wrong, cost = _wrong_and_cost(axes, some, class_values, labels, predicted, weight)
        # The count refers to these labels: T and r vary with the bootstrap draw, and each label is wrong with its
        # probability. If whole groups are wrong, or if the groups are a sample, few groups may dominate the count, so
        # it is also resampled by group. The cost is the cost of a score, which varies with the groups in any case.
        drawn_wrong = wrong if b == 0 else draw.random(len(wrong)) < wrong
        counts.append(float((weight if by_groups else weights[0]) @ drawn_wrong))
        costs.append(cost)
        if b == 0 and (predicted != labels).any():
            on_errors = float(wrong[predicted != labels].sum() / (predicted != labels).sum())
    without = [_wrong_and_cost(d, m, class_values, true, predicted, weights[0]) for d, m, true in null]
    count = _less(counts, [float(wrong.sum()) for wrong, _ in without])
    return LabelNoise(
        images,
        {end: max(0.0, v * scale) for end, v in count.items()},
        _less(costs, [cost for _, cost in without]),
        on_errors,
        models,
    )


def _less(observed: Sequence[float], null: Sequence[float]) -> dict[str, float]:
    """First observed value minus the mean of the null; the interval reflects the independent variation of both."""
    spread = np.array(observed[1:])[:, None] - np.array(null)[None]
    return interval(observed[0] - float(np.mean(null)), spread.ravel())


def _detected(
    i: int,
    axis: Evidence,
    models: Sequence[NoiseModel],
    weights: F64,
    null: Sequence[tuple[Sequence[Evidence], Sequence[NoiseModel], Rows]],
    draw: np.random.Generator,
) -> bool:
    """Whether the number of wrong values of attribute i alone exceeds its null."""

    def wrong(evidence: Evidence, model: NoiseModel) -> F64:
        found: F64 = 1 - model.posterior(evidence)[np.arange(len(evidence.given)), evidence.given]
        return found

    counted = weights if axis.by_group else np.ones_like(weights)
    observed = [float(w @ (draw.random(len(w)) < wrong(axis, m))) for w, m in zip(counted, models, strict=True)]
    return _less(observed, [float(wrong(drawn[i], again[i]).sum()) for drawn, again, _ in null])["low"] > 0


def _wrong_and_cost(
    axes: Sequence[Evidence],
    models: Sequence[NoiseModel],
    class_values: Rows,
    labels: Rows,
    predicted: Rows,
    weight: F64,
) -> tuple[F64, float]:
    """Probability that each label is wrong, (n,), and macro F1 by expected true labels minus that by given labels."""
    posterior = class_posterior([m.posterior(a) for a, m in zip(axes, models, strict=True)], class_values)
    classes = posterior.shape[1]
    called = np.eye(classes)[predicted] * weight[:, None]
    by_true, by_given = posterior.T @ called, np.eye(classes)[labels].T @ called
    return 1 - posterior[np.arange(len(labels)), labels], float(macro_f1(by_true) - macro_f1(by_given))


def _draw(proba: F64, draw: np.random.Generator) -> Rows:
    """Draw a value for each row from its probabilities: int64 (U,)."""
    drawn: Rows = (proba.cumsum(1) < draw.random((len(proba), 1))).sum(1).clip(0, proba.shape[1] - 1)
    return drawn


def _composed(given: Sequence[Rows], class_values: Rows, calibrated: Sequence[F64], axes: Sequence[Evidence]) -> Rows:
    """Class with these attribute values, int64 (n,).

    If no class has all of them, the most likely of those that share the most values.
    """
    same = np.zeros((len(given[0]), len(class_values)))
    for values, of_class in zip(given, class_values.T, strict=True):
        same += values[:, None] == of_class[None]
    likely = class_posterior([q[a.unit] for q, a in zip(calibrated, axes, strict=True)], class_values)
    found: Rows = (same + 0.5 * likely).argmax(1)
    return found


def _sampled(
    axes: Sequence[Evidence], labels: Rows, predicted: Rows, groups: NDArray[Any], draw: np.random.Generator
) -> tuple[list[Evidence], Rows, Rows, NDArray[Any]]:
    """Sample whole groups with at most MOST images in all, but at least one group."""
    member, count = group_ids(groups)
    order = draw.permutation(count)
    sizes = np.bincount(member, minlength=count)[order].cumsum()
    rows = np.flatnonzero(np.isin(member, order[: max(1, int(np.searchsorted(sizes, MOST)))]))
    some = []
    for axis in axes:
        units, place = np.unique(axis.unit[rows], return_inverse=True)
        some.append(Evidence(axis.logs[units], place, axis.given[rows], axis.by_group))
    return some, labels[rows], predicted[rows], np.asarray(groups)[rows]
