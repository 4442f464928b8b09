"""Confidence intervals of accuracy, F1, precision, recall and log loss for images that come in groups.

Variances are delete-one-group jackknife estimates (Efron & Tibshirani 1993, ch. 11; as a cluster-robust estimator: Bell
& McCaffrey 2002), computed in closed form from sums by group. Intervals are Student's t intervals on the logit scale,
or on the log scale for log loss, so that they stay inside the range of the score. Their degrees of freedom are based on
the effective number of groups, (sum s)^2 / sum s^2 for group sizes s (Carter, Schnepel & Steigerwald 2017).

`quantile` gives the corresponding critical value for bootstrap standard deviations over few groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from unfreeze.core.arrays import F64
from unfreeze.core.format import Interval
from unfreeze.metrics.bootstrap import effective_number

# Both an out-of-fold score and the score of the delivered model depend on the training images, which adds to their
# difference. In draws of training sets from four real and three generated data sets this adds about 0.56 times the
# variance that the score would have if every image were its own group (docs/method.md, benchmarks/coverage.py).
TRAINING_VARIANCE = 0.56
# Intervals are reported as approximate with fewer groups of a class, or a smaller effective number of groups, than
# this.
FEW_GROUPS = 10
# Minimum degrees of freedom: with one or two, t intervals would be too wide to be useful; they are reported as
# approximate.
_LEAST_FREEDOM = 3.0
RATES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Estimate:
    """Point estimate with its 95% confidence interval, computed by the functions of `metrics`."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """For a difference: whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Cells:
    """Sums of predictions by group and class, one entry for each combination that occurs.

    Attributes:
        group: int64 (m,), group of each entry.
        label: int64 (m,), class of each entry.
        hits: float64 (m,), rows of the group with this class as both truth and prediction.
        support: float64 (m,), rows of the group with this class as truth.
        called: float64 (m,), rows of the group with this class as prediction.
        rows: float64 (G,), rows of each group.
        right: float64 (G,), correct rows of each group.
        loss: float64 (G,), sum of log losses of each group.
        classes: Number of classes.
    """

    group: NDArray[np.int64]
    label: NDArray[np.int64]
    hits: F64
    support: F64
    called: F64
    rows: F64
    right: F64
    loss: F64
    classes: int

    @classmethod
    def of(
        cls,
        truth: NDArray[np.integer],
        predicted: NDArray[np.integer],
        losses: F64,
        member: NDArray[np.int64],
        classes: int,
    ) -> Cells:
        """Compute the sums.

        Args:
            truth: int (n,), true classes.
            predicted: int (n,), predicted classes.
            losses: float64 (n,), log losses.
            member: int64 (n,), group numbers from 0.
            classes: Number of classes.
        """
        true, called = member * classes + truth, member * classes + predicted
        keys, place = np.unique(np.concatenate([true, called]), return_inverse=True)
        n, m = len(truth), len(keys)
        right = truth == predicted
        count = int(member.max()) + 1 if n else 0
        return cls(
            keys // classes,
            keys % classes,
            np.bincount(place[:n][right], minlength=m).astype(np.float64),
            np.bincount(place[:n], minlength=m).astype(np.float64),
            np.bincount(place[n:], minlength=m).astype(np.float64),
            np.bincount(member, minlength=count).astype(np.float64),
            np.bincount(member[right], minlength=count).astype(np.float64),
            np.bincount(member, losses, minlength=count).astype(np.float64),
            classes,
        )

    def ratio(self, rate: str) -> tuple[F64, F64]:
        """Numerator and denominator, float64 (m,) each, of precision, recall or f1."""
        if rate == "f1":
            return 2 * self.hits, self.support + self.called
        return self.hits, self.called if rate == "precision" else self.support


@dataclass(frozen=True)
class Spread:
    """Jackknife variances and effective numbers of groups.

    Attributes:
        accuracy: Variance of the accuracy.
        log_loss: Variance of the mean log loss.
        macro_f1: Variance of macro F1.
        bias: Jackknife estimate of the bias of macro F1.
        rates: Rate (precision, recall, f1) -> variance for each class, float64 (C,).
        effective: Rate -> effective number of groups for each class, float64 (C,).
        groups: int64 (C,), number of groups with images of each class.
        overall: Effective number of all groups.
    """

    accuracy: float
    log_loss: float
    macro_f1: float
    bias: float
    rates: dict[str, F64]
    effective: dict[str, F64]
    groups: NDArray[np.int64]
    overall: float


def spread(cells: Cells) -> Spread:
    """Exact delete-one-group jackknife of every score, in time linear in the entries of `cells`."""
    count, c = len(cells.rows), cells.classes
    total = float(cells.rows.sum())
    rates: dict[str, F64] = {}
    effective: dict[str, F64] = {}
    changes, gone, values = np.zeros(0), np.zeros(0, np.bool_), np.zeros(0)
    for rate in RATES:
        top, bottom = cells.ratio(rate)
        whole_top = np.bincount(cells.label, top, minlength=c)
        whole = np.bincount(cells.label, bottom, minlength=c)
        values = np.divide(whole_top, whole, out=np.zeros(c), where=whole > 0)
        left = whole[cells.label] - bottom
        changed = np.divide(whole_top[cells.label] - top, left, out=values[cells.label].copy(), where=left > 0)
        changes, gone = changed - values[cells.label], (left <= 0) & (bottom > 0)
        inside = np.bincount(cells.label[bottom > 0], minlength=c).astype(np.float64)
        first = np.bincount(cells.label, changes, minlength=c)
        second = np.bincount(cells.label, changes**2, minlength=c)
        inside_or_one = np.maximum(inside, 1)
        rates[rate] = (inside_or_one - 1) / inside_or_one * np.maximum(second - first**2 / inside_or_one, 0)
        squares = np.bincount(cells.label, bottom**2, minlength=c)
        effective[rate] = np.divide(whole**2, squares, out=np.zeros(c), where=squares > 0)
    # The loop ends with F1, whose mean over the remaining classes is macro F1 without a group.
    occurs = np.bincount(cells.label, minlength=c) > 0
    present = max(int(occurs.sum()), 1)
    lost = np.bincount(cells.group, gone, minlength=count)
    summed = values.sum() + np.bincount(cells.group, changes - gone * values[cells.label], minlength=count)
    macro = summed / np.maximum(present - lost, 1) - values.sum() / present
    rest = np.maximum(total - cells.rows, 1e-300)
    accuracy = (cells.right.sum() - cells.right) / rest - cells.right.sum() / max(total, 1)
    loss = (cells.loss.sum() - cells.loss) / rest - cells.loss.sum() / max(total, 1)
    with_class = np.bincount(cells.label[cells.support > 0], minlength=c)
    return Spread(
        _variance(accuracy),
        _variance(loss),
        _variance(macro),
        float((count - 1) * macro.mean()) if count > 1 else 0.0,
        rates,
        effective,
        with_class,
        effective_number(cells.rows),
    )


def _variance(changes: F64) -> float:
    """Jackknife variance of a statistic from its changes (G,) when each group is left out."""
    count = len(changes)
    return float((count - 1) / count * ((changes - changes.mean()) ** 2).sum()) if count > 1 else 0.0


def share_interval(
    value: float, variance: float, freedom: float, effective: float, level: float, center: float | None = None
) -> Interval:
    """Interval of a score between 0 and 1.

    Args:
        value: The score.
        variance: Variance of the score. If it is 0, that of a binomial proportion of `effective` trials is used.
        freedom: Degrees of freedom of the variance.
        effective: Effective number of groups. If the score is 0 or 1, the interval is that of a binomial proportion of
            this many trials (Clopper & Pearson 1934).
        level: Confidence level.
        center: Center of the interval if it is not `value`: a bias-corrected score.

    Returns:
        {"value", "low", "high"}; 0 to 1 if the effective number of groups is below 1.
    """
    from scipy.special import stdtrit  # importing scipy.stats takes half a second

    tail = (1 - level) / 2
    middle = value if center is None else center
    if effective < 1:
        return _interval(value, 0.0, 1.0)
    if middle >= 1:
        return _interval(value, min(value, tail ** (1 / effective)), 1.0)
    if middle <= 0:
        return _interval(value, 0.0, max(value, 1 - tail ** (1 / effective)))
    share = middle * (1 - middle)
    deviation = np.sqrt(variance if variance > 0 else share / effective)
    odds, half = middle / (1 - middle), float(stdtrit(max(freedom, _LEAST_FREEDOM), 1 - tail)) * deviation / share
    low, high = odds / (odds + np.exp(min(half, 700.0))), odds / (odds + np.exp(-half))
    return _interval(value, min(value, low), max(value, high))


def positive_interval(value: float, variance: float, freedom: float, level: float) -> Interval:
    """Interval of a positive score without an upper bound, such as log loss. Arguments as in `share_interval`."""
    from scipy.special import stdtrit  # importing scipy.stats takes half a second

    if value <= 0 or variance <= 0:
        return _interval(value, value, value)
    ratio = float(np.exp(stdtrit(max(freedom, _LEAST_FREEDOM), 0.5 + level / 2) * np.sqrt(variance) / value))
    return _interval(value, value / ratio, value * ratio)


def _interval(value: float, low: float, high: float) -> Interval:
    return {"value": float(value), "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class Estimates:
    """Intervals of the scores of a set of predictions: jackknife by group plus the variance due to training.

    Attributes:
        groups: Jackknife over groups.
        images: Jackknife over single images.
        training: Multiple of the variance over images that is added (`TRAINING_VARIANCE`, or 0 for a fixed model).
        level: Confidence level.
    """

    groups: Spread
    images: Spread
    training: float
    level: float

    @classmethod
    def of(
        cls,
        truth: NDArray[np.integer],
        predicted: NDArray[np.integer],
        losses: F64,
        member: NDArray[np.int64],
        classes: int,
        level: float,
        training: float,
    ) -> Estimates:
        """Compute the jackknife estimates.

        Args:
            truth: int (n,), true classes.
            predicted: int (n,), predicted classes.
            losses: float64 (n,), log losses.
            member: int64 (n,), group numbers from 0.
            classes: Number of classes.
            level: Confidence level.
            training: Multiple of the variance over images that is added.
        """
        by_group = spread(Cells.of(truth, predicted, losses, member, classes))
        alone = np.arange(len(truth), dtype=np.int64)
        by_image = spread(Cells.of(truth, predicted, losses, alone, classes)) if training else by_group
        return cls(by_group, by_image, training, level)

    def accuracy(self, value: float) -> Interval:
        """Interval of the accuracy, around `value`, which may be that of another model of similar accuracy."""
        variance = self.groups.accuracy + self.training * self.images.accuracy
        effective = self.groups.overall / (1 + self.training)
        return share_interval(value, variance, self.groups.overall - 1, effective, self.level)

    def log_loss(self, value: float) -> Interval:
        """Interval of the mean log loss, around `value`."""
        variance = self.groups.log_loss + self.training * self.images.log_loss
        return positive_interval(value, variance, self.groups.overall - 1, self.level)

    def macro_f1(self, value: float, by_class: F64, corrected: bool = False) -> Interval:
        """Interval of macro F1, centered on the value minus its jackknife bias.

        A class without errors has no jackknife variance; that of a binomial proportion of its groups is used instead.

        Args:
            value: Macro F1.
            by_class: float64 (C,), F1 of each class.
            corrected: Whether the value is already corrected for bias.
        """
        of, count = self.groups, max(int((self.groups.effective["f1"] > 0).sum()), 1)
        effective = np.maximum(of.effective["f1"], 1.0)
        extreme = (of.effective["f1"] > 0) & ((by_class >= 1) | (by_class <= 0))
        shift = np.where(extreme, 0.5 / (effective + 1), 0.0)  # of a proportion with Jeffreys' half observations
        unseen = np.where(extreme, shift * (1 - shift) / (effective + 2), 0.0)
        within = of.rates["f1"] + unseen
        variance = of.macro_f1 + float(unseen.sum()) / count**2
        variance += self.training * (self.images.macro_f1 + float(unseen.sum()) / count**2)
        # Welch (1947) and Satterthwaite (1946): classes with few groups have few degrees of freedom.
        squares = float((within**2 / np.maximum(effective - 1, 1.0)).sum())
        freedom = min(float(within.sum()) ** 2 / squares if squares else np.inf, of.overall - 1)
        center = value if corrected else value - of.bias
        center = min(max(center, float(shift.sum()) / count), 1 - float(shift.sum()) / count)
        return share_interval(value, variance, freedom, of.overall / (1 + self.training), self.level, center)

    def of_class(self, rate: str, label: int, value: float) -> Interval:
        """Interval of precision, recall or f1 of a class."""
        variance = float(self.groups.rates[rate][label] + self.training * self.images.rates[rate][label])
        effective = float(self.groups.effective[rate][label])
        if not effective:  # no image of the class, or none predicted as it
            return _interval(value, 0.0, 1.0)
        return share_interval(value, variance, effective - 1, effective / (1 + self.training), self.level)

    def why_approximate(self, classes: tuple[str, ...] | list[str]) -> str:
        """Reason why the intervals are approximate, as a clause; empty if every class has images of enough groups."""
        few = [(int(n), classes[i]) for i, n in enumerate(self.groups.groups) if 0 < n < FEW_GROUPS]
        if few:
            least, name = min(few)
            more = f" (and {len(few) - 1} more)" if len(few) > 1 else ""
            return f"class '{name}'{more} has images of only {least} group{'s' if least > 1 else ''}"
        if self.groups.overall < FEW_GROUPS:
            return f"a few large groups dominate: they count as {self.groups.overall:.0f} groups of equal size"
        return ""


def quantile(level: float, groups: int) -> float:
    """Critical value for the standard deviation of a cluster bootstrap over this number of groups.

    It is the quantile of Student's t with groups - 1 degrees of freedom, times a correction of the bootstrap's downward
    bias, sqrt(groups / (groups - 1)). For many groups it approaches 1.96 at level .95.

    References:
        Cameron, Gelbach & Miller 2008, Review of Economics and Statistics 90.
    """
    freedom = max(groups - 1, 1)
    return float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt((freedom + 1) / freedom))
