"""Enough photos? The probe's learning curve over groups, and what twice as many would bring."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import listed
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.judge.powerlaw import PowerLaw, foretell
from unfreeze.judge.transfer import separability
from unfreeze.learn.probe.inputs import AnyFeatures
from unfreeze.learn.probe.thinned import sampled_rows, thinned
from unfreeze.study.shares import Sheet, Trial, f1_of, fit_shares

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]

# A class takes part in the curve from so many groups on: two for a share, and three shares.
LEAST_GROUPS = 6
# Rows that take part at all.
_MOST_ROWS = 15_000
# macro F1 that doubling brings: at NOT_ENOUGH or more the place is 0, at ENOUGH or less it is 1, by the log between.
NOT_ENOUGH, ENOUGH = 0.05, 0.002


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """The probe on a share of the groups: macro F1 of each draw, and their mean with its interval.

    groups, photos: that a head has learnt from, on the average.
    """

    share: float
    groups: int
    photos: int
    draws: tuple[float, ...]
    macro_f1: Estimate


@dataclass(frozen=True)
class ClassCurve:
    """A class: its groups and photos, F1 with all of them, and what twice the photos of all classes would add to it.

    f1: None where nothing was measured. gain: None where it has too few groups to tell.
    """

    name: str
    groups: int
    photos: int
    f1: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True)
class Curve:
    """What more photos would bring.

    position: 0 (too few) to 1 (enough), with low and high. gain, gain_fourfold: macro F1 that two and four times the
    groups would add; None where no class has groups enough for a curve. points: the smallest share first. classes: in
    class order. law: a, b, c of macro F1's error a + b * groups ** -c. short: the class that lacks photos most, '' if
    none stands out. sentence: the finding in plain words. notes: what was left out, and why. macro F1 is that of the
    classes with at least LEAST_GROUPS groups.
    """

    position: Estimate
    gain: Estimate | None
    gain_fourfold: Estimate | None
    points: tuple[Point, ...]
    classes: tuple[ClassCurve, ...]
    law: tuple[float, float, float] | None
    short: str
    sentence: str
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def learning_curve(
    features: AnyFeatures,
    labels: Rows,
    units: Rows,
    folds: Rows,
    classes: tuple[str, ...],
    recipe: Recipe,
    scratch: Path,
    reporter: Reporter | None = None,
) -> Curve:
    """The recipe's probe, fitted again on shares of the groups and judged on groups it has not seen.

    features: of one input, in memory where they fit (`held`). labels, units, folds: int64 (n,), class, group and fold
    of every row; -1 in folds for rows that take no part. The groups are dealt once into at most 16 parts, class by
    class; a share is some of these parts, and other parts are another draw. Each share is judged by the folds in turn,
    so that the last point is the probe's own out-of-fold score. Large sets: features are thinned and groups sampled, by
    the seed (`learn.probe.thinned`), and only some folds are judged.
    """
    started = time.perf_counter()
    reporter = reporter or Reporter()
    notes: list[str] = []
    rows = sampled_rows(units, np.flatnonzero(folds >= 0), _MOST_ROWS, recipe.seed)
    if len(rows) < (folds >= 0).sum():
        notes.append(f"Measured on {len(rows):,} of {int((folds >= 0).sum()):,} photos, drawn by groups.")
        folds = np.where(np.isin(np.arange(len(folds)), rows), folds, -1)
    features, thin = thinned(features, rows, recipe.seed)
    if thin:
        notes.append(f"On {features.width:,} of the features, drawn by the seed: a little worse than the probe itself.")
    units = np.unique(units, return_inverse=True)[1]
    own = np.array([len(np.unique(units[rows][labels[rows] == c])) for c in range(len(classes))])
    judged = own >= LEAST_GROUPS
    few = np.flatnonzero((own > 0) & ~judged)
    if len(few):
        told = listed(f"'{classes[c]}' ({own[c]})" for c in few)
        notes.append(f"Fewer than {LEAST_GROUPS} groups, so that the curve leaves them out: {told}.")
    sheet = Sheet(labels, units, folds, judged, len(classes), int(folds.max()) + 1)
    trials = fit_shares(features, sheet, recipe, scratch, reporter, notes) if judged.sum() >= 2 else []
    if not trials:
        return _unknown(classes, own, labels[rows], notes, time.perf_counter() - started)
    return _curve(trials, sheet, classes, own, recipe, notes, started)


def _curve(
    trials: list[Trial],
    sheet: Sheet,
    classes: tuple[str, ...],
    own: Rows,
    recipe: Recipe,
    notes: list[str],
    started: float,
) -> Curve:
    shares = sorted({trial.share for trial in trials})
    by_share = [[trial for trial in trials if trial.share == share] for share in shares]
    n = np.array([np.mean([t.groups for t in some]) for some in by_share])
    scored = [[f1_of(trial, sheet, recipe.seed) for trial in some] for some in by_share]  # (1 + resamples, C) each
    present = sheet.judged & (scored[-1][0][0] >= 0)
    whole = [[np.nanmean(f1[:, present], axis=1) for f1 in some] for some in scored]
    law, gains = _gains(n, whole, recipe.seed)
    points = tuple(
        Point(share, round(groups), round(np.mean([t.photos for t in some])), tuple(float(w[0]) for w in f1), _mean(f1))
        for share, groups, some, f1 in zip(shares, n.tolist(), by_share, whole, strict=True)
    )
    per_class = []
    counts = np.bincount(sheet.labels[sheet.folds >= 0], minlength=len(classes))
    for c, name in enumerate(classes):
        known = bool(sheet.judged[c]) and len(shares) > 1
        f1 = [[np.nan_to_num(one[:, c]) for one in some] for some in scored]
        gain = _gains(n, f1, recipe.seed)[1][0] if known else None
        per_class.append(ClassCurve(name, int(own[c]), int(counts[c]), _mean(f1[-1]) if counts[c] else None, gain))
    gain, fourfold = gains if len(shares) > 1 else (None, None)
    last = by_share[-1][0]
    beyond = separability(
        sheet.labels[last.rows], last.predicted, sheet.units[last.rows], len(classes), resamples=200, seed=recipe.seed
    )
    blind = beyond["low"] <= 0
    position = _position(gain) if gain else Estimate(0.0, 0.0, 1.0)
    if blind:
        position = Estimate(position.value, 0.0, 1.0)
        notes.append("The probe is no better than chance with all photos: its flat curve says nothing of other models.")
    short = _short(per_class)
    sentence = _sentence(points[-1], gain, per_class, short, blind)
    seconds = round(time.perf_counter() - started, 2)
    told = (law.a, law.b, law.c) if gain else None
    return Curve(position, gain, fourfold, points, tuple(per_class), told, short, sentence, tuple(notes), seconds)


def _gains(n: F64, scores: list[list[F64]], seed: int) -> tuple[PowerLaw, tuple[Estimate, Estimate]]:
    """The law of 1 - score, and what twice and four times as much adds."""
    found = foretell(
        n,
        [np.array([1 - draw[0] for draw in some]) for some in scores],
        [np.stack([1 - draw[1:] for draw in some]) for some in scores],
        (2.0, 4.0),
        seed=seed,
    )
    return found.law, (Estimate(*found.gains[2.0]), Estimate(*found.gains[4.0]))


def _mean(draws: list[F64]) -> Estimate:
    mean = np.mean(draws, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5])
    return Estimate(float(mean[0]), float(low), float(high))


def _position(gain: Estimate) -> Estimate:
    """0 at a gain of NOT_ENOUGH or more, 1 at ENOUGH or less, by the logarithm between."""

    def place(value: float) -> float:
        span = np.log(NOT_ENOUGH / ENOUGH)
        return float(np.clip(np.log(NOT_ENOUGH / max(value, 1e-9)) / span, 0, 1))

    return Estimate(place(gain.value), place(gain.high), place(gain.low))


def _short(classes: list[ClassCurve]) -> str:
    """The class that lacks photos most: too few groups for a curve, else the largest gain of at least .01."""
    there = [c for c in classes if c.photos]
    few = [c for c in there if c.gain is None]
    if few:
        return min(few, key=lambda c: (c.groups, c.f1.value if c.f1 else 0.0)).name
    gaining = [c for c in there if c.gain and c.gain.value >= 0.01]
    return max(gaining, key=lambda c: (c.gain.value if c.gain else 0, -c.groups)).name if gaining else ""


def _sentence(last: Point, gain: Estimate | None, classes: list[ClassCurve], short: str, blind: bool) -> str:
    whole = f"{last.macro_f1.value:.3f} with {last.groups:,} groups ({last.photos:,} photos)"
    named = next((c for c in classes if c.name == short), None)
    tail = ""
    if named and named.f1:
        f1 = f"{named.groups} groups, F1 {named.f1.value:.2f}"
        tail = f"; '{short}' is the shortest of them ({f1})" if named.gain else f"; '{short}' has too few ({f1})"
    if gain is None:
        return f"Macro F1 is {whole}; too few groups to tell what more would bring{tail}."
    if blind:
        return f"Macro F1 is {whole}, no better than chance: more photos of the same kind would not help this probe."
    span = f"{gain.value:+.3f} (95 %: {gain.low:+.3f} to {gain.high:+.3f})"
    worth = "Enough photos for this probe" if gain.value <= 0.01 else "More photos would help"
    return f"{worth}: macro F1 is {whole}, and twice as many groups would bring {span}{tail}."


def _unknown(classes: tuple[str, ...], own: Rows, labels: Rows, notes: list[str], seconds: float) -> Curve:
    """What is said where no curve can be measured."""
    counts = np.bincount(labels, minlength=len(classes))
    per_class = [ClassCurve(name, int(own[c]), int(counts[c]), None, None) for c, name in enumerate(classes)]
    short = min((c for c in per_class if c.photos), key=lambda c: c.groups).name
    sentence = (
        f"Too few groups to measure a learning curve: fewer than two classes have {LEAST_GROUPS}, which is too few to "
        "learn from, too."
    )
    return Curve(
        Estimate(0.0, 0.0, 1.0),
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
