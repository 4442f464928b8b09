"""Learning curve of the probe over the number of groups, with extrapolation to more data.

The probe is fitted on random shares of the groups (`analysis.subset_fits`). A power law is fitted to the error and
predicts macro F1 for two and four times as many groups.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.analysis.subset_fits import CurveData, CurvePoint, bootstrap_f1, fit_shares
from unfreeze.core.arrays import F64, Rows
from unfreeze.core.errors import join_names
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.features.derived_matrix import sample_groups, subsample_columns
from unfreeze.features.matrix import AnyFeatureMatrix
from unfreeze.metrics.bootstrap import interval
from unfreeze.metrics.chance_corrected import chance_corrected_f1
from unfreeze.metrics.learning_curve import LEAST_SIZES, Extrapolation, extrapolate

# Minimum number of groups for a class to be part of the curve: two groups per share, and three shares.
LEAST_GROUPS = 6
# Maximum number of rows used.
_MOST_ROWS = 15_000
# Gain in macro F1 from doubling the data: position 0 at NOT_ENOUGH or more, 1 at ENOUGH or less, log-linear in between.
NOT_ENOUGH, ENOUGH = 0.05, 0.002


@dataclass(frozen=True)
class CurveEstimate:
    """Point estimate with its 95% interval; `low` and `high` are None if there are too few sizes for an interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Prediction:
    """Macro F1 predicted for more groups of the same kind.

    Attributes:
        groups: Number of training groups.
        macro_f1: Predicted macro F1. The interval covers the sampling of the evaluated groups, the choice of the
            training groups and the misfit of the power law.
        gain: `macro_f1` minus the score measured with all groups.
        growth: Gain according to the power law alone, independent of the difficulty of the evaluated groups.
    """

    groups: int
    macro_f1: CurveEstimate
    gain: CurveEstimate
    growth: CurveEstimate


@dataclass(frozen=True)
class Point:
    """Score of the probe when trained on a share of the groups.

    Attributes:
        share: Share of the groups.
        groups: Mean number of training groups of a head.
        photos: Mean number of training images of a head.
        draws: Macro F1 of each random draw of the share.
        macro_f1: Mean over the draws, with its interval.
    """

    share: float
    groups: int
    photos: int
    draws: tuple[float, ...]
    macro_f1: CurveEstimate


@dataclass(frozen=True)
class ClassCurve:
    """Learning curve of one class.

    Attributes:
        name: Class name.
        groups: Number of groups of the class.
        photos: Number of images of the class.
        f1: F1 with all groups; None if it was not measured.
        gain: Gain in F1 that the power law of the class predicts for twice as many groups; None if it has too few
            groups.
    """

    name: str
    groups: int
    photos: int
    f1: CurveEstimate | None
    gain: CurveEstimate | None


@dataclass(frozen=True)
class Curve:
    """Result of `learning_curve`. Macro F1 is that of the classes with at least `LEAST_GROUPS` groups.

    Attributes:
        position: 0 (more data would help a lot) to 1 (enough data), with its interval.
        doubled: Prediction for twice as many groups; None if no class has enough groups for a curve.
        fourfold: Prediction for four times as many groups; None likewise.
        points: Measured points, smallest share first.
        classes: Per-class results, in class order.
        law: Parameters a, b, c of the error a + b * groups ** -c; None without a prediction.
        short: The class that needs more images most; empty if none stands out.
        sentence: The result in words.
        notes: What was left out, and why.
        seconds: Duration.
    """

    position: CurveEstimate
    doubled: Prediction | None
    fourfold: Prediction | None
    points: tuple[Point, ...]
    classes: tuple[ClassCurve, ...]
    law: tuple[float, float, float] | None
    short: str
    sentence: str
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


def learning_curve(
    features: AnyFeatureMatrix,
    labels: Rows,
    units: Rows,
    folds: Rows,
    classes: tuple[str, ...],
    recipe: Recipe,
    scratch: Path,
    reporter: Reporter | None = None,
) -> Curve:
    """Measure the learning curve of the recipe's probe over shares of the groups.

    A share is a random subset of the groups, stratified by class; each share is drawn several times. Each draw is
    evaluated on held-out folds, so that the last point equals the out-of-fold score of the probe. On large data sets,
    features are subsampled, groups are sampled (both with the seed), and only some folds are evaluated.

    Args:
        features: Features of one input, in memory if they fit (`held`).
        labels: int64 (n,), class index of each row.
        units: int64 (n,), group of each row.
        folds: int64 (n,), fold of each row; -1 for rows to ignore.
        classes: Class names.
        recipe: Recipe of the probe.
        scratch: Folder for large temporary files.
        reporter: Receives progress messages.

    Returns:
        The curve.
    """
    started = time.perf_counter()
    reporter = reporter or Reporter()
    notes: list[str] = []
    rows = sample_groups(units, np.flatnonzero(folds >= 0), _MOST_ROWS, recipe.seed)
    if len(rows) < (folds >= 0).sum():
        notes.append(f"Measured on {len(rows):,} of {int((folds >= 0).sum()):,} photos, drawn by groups.")
        folds = np.where(np.isin(np.arange(len(folds)), rows), folds, -1)
    features, thin = subsample_columns(features, rows, recipe.seed)
    if thin:
        notes.append(f"On {features.width:,} of the features, drawn by the seed: a little worse than the probe itself.")
    units = np.unique(units, return_inverse=True)[1]
    own = np.array([len(np.unique(units[rows][labels[rows] == c])) for c in range(len(classes))])
    judged = own >= LEAST_GROUPS
    few = np.flatnonzero((own > 0) & ~judged)
    if len(few):
        classes_text = join_names(f"'{classes[c]}' ({own[c]})" for c in few)
        notes.append(f"Fewer than {LEAST_GROUPS} groups, so that the curve leaves them out: {classes_text}.")
    sheet = CurveData(labels, units, folds, judged, len(classes), int(folds.max()) + 1)
    trials = fit_shares(features, sheet, recipe, scratch, reporter, notes) if judged.sum() >= 2 else []
    if not trials:
        return _unknown(classes, own, labels[rows], notes, time.perf_counter() - started)
    return _curve(trials, sheet, classes, own, recipe, notes, started)


def _curve(
    trials: list[CurvePoint],
    sheet: CurveData,
    classes: tuple[str, ...],
    own: Rows,
    recipe: Recipe,
    notes: list[str],
    started: float,
) -> Curve:
    shares = sorted({trial.share for trial in trials})
    by_share = [[trial for trial in trials if trial.share == share] for share in shares]
    n = np.array([np.mean([t.groups for t in some]) for some in by_share])
    scored = [
        [bootstrap_f1(trial, sheet, recipe.seed) for trial in some] for some in by_share
    ]  # (1 + resamples, C) each
    present = sheet.judged & (scored[-1][0][0] >= 0)
    whole = [[np.nanmean(f1[:, present], axis=1) for f1 in some] for some in scored]
    groups = len(np.unique(sheet.units[by_share[-1][0].rows]))
    taken = np.array(shares)
    found = _extrapolated(n, taken, whole, groups, recipe.seed)
    points = tuple(
        Point(share, round(groups), round(np.mean([t.photos for t in some])), tuple(float(w[0]) for w in f1), _mean(f1))
        for share, groups, some, f1 in zip(shares, n.tolist(), by_share, whole, strict=True)
    )
    per_class = []
    counts = np.bincount(sheet.labels[sheet.folds >= 0], minlength=len(classes))
    for c, name in enumerate(classes):
        known = bool(sheet.judged[c]) and len(shares) > 1
        f1 = [[np.nan_to_num(one[:, c]) for one in some] for some in scored]
        gain = CurveEstimate(*_extrapolated(n, taken, f1, groups, recipe.seed).saved[2.0]) if known else None
        per_class.append(ClassCurve(name, int(own[c]), int(counts[c]), _mean(f1[-1]) if counts[c] else None, gain))
    doubled, fourfold = (
        (_prediction(found, points[-1], factor) for factor in (2.0, 4.0)) if len(shares) > 1 else (None, None)
    )
    if doubled and len(shares) < LEAST_SIZES:
        notes.append(
            f"No interval for more groups: {len(shares)} sizes of {LEAST_SIZES}, because a class has few groups."
        )
    last = by_share[-1][0]
    beyond = chance_corrected_f1(
        sheet.labels[last.rows], last.predicted, sheet.units[last.rows], len(classes), resamples=200, seed=recipe.seed
    )
    blind = beyond["low"] <= 0
    position = _position(doubled.growth) if doubled else CurveEstimate(0.0, 0.0, 1.0)
    if blind:
        position = CurveEstimate(position.value, 0.0, 1.0)
        notes.append(
            "The probe is no better than chance with all photos: its flat curve says nothing about other models."
        )
    short = _short(per_class)
    sentence = _sentence(points[-1], doubled, per_class, short, blind)
    seconds = round(time.perf_counter() - started, 2)
    law = (found.law.a, found.law.b, found.law.c) if doubled else None
    return Curve(position, doubled, fourfold, points, tuple(per_class), law, short, sentence, tuple(notes), seconds)


def _extrapolated(n: F64, shares: F64, scores: list[list[F64]], groups: int, seed: int) -> Extrapolation:
    """Fit and extrapolate the power law of 1 - score.

    Args:
        n: float64 (points,), number of training groups of each point.
        shares: float64 (points,), share of each point.
        scores: For each point and draw float64 (1 + resamples,): the score, then its bootstrap samples.
        groups: Number of evaluated groups.
        seed: Seed of the bootstrap.
    """
    return extrapolate(
        n,
        shares,
        [np.array([1 - draw[0] for draw in some]) for some in scores],
        [np.stack([1 - draw[1:] for draw in some]) for some in scores],
        groups,
        (2.0, 4.0),
        seed=seed,
    )


def _prediction(found: Extrapolation, last: Point, factor: float) -> Prediction:
    value, low, high = found.error[factor]
    level = CurveEstimate(1 - value, None if high is None else 1 - high, None if low is None else 1 - low)
    return Prediction(
        round(factor * last.groups),
        level,
        _shifted(level, -last.macro_f1.value),
        CurveEstimate(*found.saved[factor]),
    )


def _shifted(figure: CurveEstimate, by: float) -> CurveEstimate:
    low, high = (None if end is None else end + by for end in (figure.low, figure.high))
    return CurveEstimate(figure.value + by, low, high)


def _mean(draws: list[F64]) -> CurveEstimate:
    mean = np.mean(draws, axis=0)
    return CurveEstimate(**interval(mean[0], mean[1:]))


def _position(growth: CurveEstimate) -> CurveEstimate:
    """Map the growth to 0..1: 0 at `NOT_ENOUGH` or more, 1 at `ENOUGH` or less, log-linear in between."""

    def place(value: float) -> float:
        span = np.log(NOT_ENOUGH / ENOUGH)
        return float(np.clip(np.log(NOT_ENOUGH / max(value, 1e-9)) / span, 0, 1))

    if growth.low is None or growth.high is None:
        return CurveEstimate(place(growth.value), 0.0, 1.0)
    return CurveEstimate(place(growth.value), place(growth.high), place(growth.low))


def _short(classes: list[ClassCurve]) -> str:
    """The class that needs images most: one with too few groups for a curve, else the largest gain of at least 0.01."""
    there = [c for c in classes if c.photos]
    few = [c for c in there if c.gain is None]
    if few:
        return min(few, key=lambda c: (c.groups, c.f1.value if c.f1 else 0.0)).name
    gaining = [c for c in there if c.gain and c.gain.value >= 0.01]
    return max(gaining, key=lambda c: (c.gain.value if c.gain else 0, -c.groups)).name if gaining else ""


def _sentence(last: Point, doubled: Prediction | None, classes: list[ClassCurve], short: str, blind: bool) -> str:
    noun = "photos" if last.groups == last.photos else "groups"
    of = "" if noun == "photos" else f" ({last.photos:,} photos)"
    measured = f"{last.macro_f1.value:.2f} with {last.groups:,} {noun}{of} to learn from"
    named = next((c for c in classes if c.name == short), None)
    tail = ""
    if named and named.f1:
        f1 = f"{named.groups} groups, F1 {named.f1.value:.2f}"
        tail = f"; '{short}' needs more photos most ({f1})" if named.gain else f"; '{short}' has too few groups ({f1})"
    if doubled is None:
        return f"Macro F1 is {measured}; too few groups to predict what more would bring{tail}."
    if blind:
        return f"Macro F1 is {measured}, no better than chance: more photos of the same kind would not help this probe."
    growth, level, gain = doubled.growth, doubled.macro_f1, doubled.gain
    if growth.value <= 0.01:
        worth = "Enough photos for this probe"
    else:
        worth = "More photos would help" if growth.low else "More photos may help"
    ahead = f"about {level.value:.2f} is predicted with {doubled.groups:,}, {gain.value:+.2f}"
    if gain.low is not None:
        ahead += f" [{gain.low:+.2f}, {gain.high:+.2f}]"
    ahead += " over the measured score"
    return f"{worth}: macro F1 is {measured}; {ahead}{tail}."


def _unknown(classes: tuple[str, ...], own: Rows, labels: Rows, notes: list[str], seconds: float) -> Curve:
    """Result if no curve can be measured."""
    counts = np.bincount(labels, minlength=len(classes))
    per_class = [ClassCurve(name, int(own[c]), int(counts[c]), None, None) for c, name in enumerate(classes)]
    short = min((c for c in per_class if c.photos), key=lambda c: c.groups).name
    sentence = (
        f"Too few groups to measure a learning curve: fewer than two classes have {LEAST_GROUPS}, which is too "
        "few to learn from as well."
    )
    return Curve(
        CurveEstimate(0.0, 0.0, 1.0),
        None,
        None,
        (),
        tuple(per_class),
        None,
        short,
        sentence,
        tuple(notes),
        round(seconds, 2),
    )
