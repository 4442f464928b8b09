"""Diagnosis of distribution shift between training and test images.

Covers appearance (covariate shift), class shares (label shift) and file properties, and forecasts the test score
without labels. If labels are known, the remaining gap is reported as unexplained.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.analysis.dataset_shift import PLAIN, SLIGHT, DatasetComparison, compare_datasets
from unfreeze.analysis.diagnose.cause import WARNING, Cause, Severity, max_severity, not_measured, severity_of
from unfreeze.analysis.diagnose.context import DiagnosisContext, TestSet
from unfreeze.core.arrays import F64
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.format import Interval, format_estimate, format_score
from unfreeze.data.scan import ImageScan
from unfreeze.metrics.bootstrap import group_weights, interval, weighted_confusion
from unfreeze.metrics.classification import macro_f1, score_predictions
from unfreeze.metrics.label_shift import ExpectedScore, expected_score
from unfreeze.metrics.two_sample_test import roc_auc

STORED = "shift: the test files are stored otherwise"
# Minimum total variation distance of a file property.
_FORMAT_SHARE = 0.2


def stored(case: DiagnosisContext, test: TestSet) -> Cause:
    """Compare EXIF orientation, mode, format and size of the training and test files."""
    if case.gone:
        return not_measured(STORED, case.gone)
    rows = case.inside
    differences: dict[str, tuple[float, str]] = {}
    for name, read in _PROPERTIES.items():
        first, second = read(case.looks)[rows], read(test.looks)
        values = sorted(set(first.tolist()) | set(second.tolist()))
        shares = [(float((first == v).mean()), float((second == v).mean()), v) for v in values]
        distance = sum(abs(a - b) for a, b, _ in shares) / 2
        noise = np.sqrt(len(values) / len(first) + len(values) / len(second))
        if distance >= _FORMAT_SHARE and distance > noise:
            a, b, value = max(shares, key=lambda s: s[1] - s[0])  # the value that is more frequent in the test images
            differences[name] = distance, f"{name} {value}: {a:.0%} of the training and {b:.0%} of the test photos"
    sizes = [np.sqrt(look.width.astype(float) * look.height) for look in (case.looks, test.looks)]
    one, other = float(np.median(sizes[0][rows])), float(np.median(sizes[1]))
    if max(one, other) > 1.5 * min(one, other) and abs(roc_auc(sizes[0][rows], sizes[1]) - 0.5) > 0.3:
        differences["size"] = 1.0, f"size: {one:.0f} px in training and {other:.0f} px in the test photos (median side)"
    details = {name: text for name, (_, text) in differences.items()}
    if not differences:
        return Cause(STORED, "none", "Orientation, mode, format and size of the files are those of training.")
    severity: Severity = "warning" if set(differences) & {"EXIF orientation", "mode"} else "info"
    return Cause(
        STORED,
        severity,
        f"The test files differ: {'; '.join(details.values())}.",
        None,
        "unfreeze corrects orientation and mode when it decodes; make sure that your own program does so too, and that "
        "the images were not resized or recompressed.",
        details=details,
    )


def _text(looks: ImageScan, name: str) -> NDArray[np.str_]:
    return np.char.decode(looks.measures[name], "ascii")


_PROPERTIES: dict[str, Callable[[ImageScan], NDArray[Any]]] = {
    "EXIF orientation": lambda looks: looks.measures["orientation"].astype(str),
    "mode": lambda looks: _text(looks, "mode"),
    "format": lambda looks: _text(looks, "format"),
    "shape": lambda looks: np.where(
        looks.width > 1.05 * looks.height, "wide", np.where(looks.height > 1.05 * looks.width, "tall", "square")
    ),
}


LOOK, SHARES, LEFT = (
    "shift: the test photos look different",
    "shift: other class shares in the test photos",
    "unexplained: the rest of the gap to the test score",
)

# Importance weights are used if the effective sample size is at least _WORTH and this share of the images.
_WORTH, _SHARE = 50, 0.1
# Total variation distance of class shares from which a significant difference is reported.
_DISTANCE = 0.05


@dataclass(frozen=True)
class ScoreForecast:
    """Forecast of the test score.

    Attributes:
        expected: Expected macro F1 from the calibrated probabilities of the run, or the reason why there is none.
        real: Scores on the test images if their labels are known.
    """

    expected: ExpectedScore | str
    real: dict[str, Any] | None


def forecast_score(case: DiagnosisContext) -> ScoreForecast:
    """Forecast the test score, and compute the real one if labels are known."""
    answers = case.answers
    if case.test is None or isinstance(answers, str):
        return ScoreForecast(str(answers), None)
    good = np.isfinite(answers.mean).all(1) & np.isfinite(answers.by_fold).all(1)
    if good.sum() < 10:
        return ScoreForecast(f"{int(good.sum())} test photos are too few", None)
    rows = case.inside
    expected = expected_score(
        case.proba[rows],
        case.labels[rows],
        case.units[rows],
        case.folds[rows],
        answers.by_fold[good],
        case.test.groups[good],
        seed=case.run.recipe.seed,
    )
    real = None
    if case.test.labelled:
        real = score_predictions(
            case.test.labels[good],
            answers.mean[good],
            case.test.groups[good],
            case.run.classes,
            held_out=True,
            seed=case.run.recipe.seed,
        )
    return ScoreForecast(expected, real)


def shift(case: DiagnosisContext, foreseen: ScoreForecast) -> list[Cause]:
    """Measure shift in appearance, class shares and file properties; with labels also the unexplained gap."""
    if case.test is None:
        return [not_measured(name, str(case.answers)) for name in (LOOK, SHARES, STORED)]
    look = _look(case, case.test, foreseen)
    found = [look, _shares(case, foreseen), stored(case, case.test)]
    if foreseen.real and not isinstance(foreseen.expected, str) and "real" not in look.details:
        found.append(_left(foreseen.expected, foreseen.real))
    return found


def _shares(case: DiagnosisContext, foreseen: ScoreForecast) -> Cause:
    """Class shares estimated by EM. If test labels are known, the cost is computed from them."""
    expected, test = foreseen.expected, case.test
    if isinstance(expected, str) or test is None:
        return not_measured(SHARES, str(expected))
    significant_classes = np.flatnonzero(expected.significant)
    if expected.spread > 1:
        unknown = "the groups of the test photos are not known"
        case.notes.append(f"The test photos count as {expected.spread:.1f} times fewer, because {unknown}.")
    details: dict[str, Any] = {
        "shares": expected.shares,
        "training": expected.training.tolist(),
        "significant": expected.significant.tolist(),
        "distance": expected.distance,
    }
    true, cost, distance = None, expected.by_shares, expected.distance
    if test.labelled:
        true = np.bincount(test.labels, minlength=case.classes) / len(test.labels)
        distance = float(np.abs(true - expected.training).sum() / 2)
        details |= {"real_shares": true.tolist(), "real_distance": distance}
    if not len(significant_classes) or expected.distance < _DISTANCE:
        return Cause(
            SHARES,
            "none",
            f"The estimated class shares of the test photos do not differ significantly from those of training (total "
            f"variation {expected.distance:.2f}{'' if true is None else f'; by their labels {distance:.2f}'}).",
            None,
            details=details,
        )
    most = int(max(significant_classes, key=lambda c: abs(expected.shares[c]["value"] - expected.training[c])))
    share = expected.shares[most]
    by_labels = ""
    if true is not None:
        cost = _cost_of_shares(case, test)
        by_labels = f", by their labels {true[most]:.0%},"
    return Cause(
        SHARES,
        max_severity(severity_of(cost), "info"),
        f"The class shares of the test photos differ: '{case.run.classes[most]}' is estimated as {share['value']:.0%} "
        f"[{share['low']:.0%}, {share['high']:.0%}] of them{by_labels} and is {expected.training[most]:.0%} of "
        f"training; under {'these' if true is None else 'their real'} shares macro F1 is "
        f"{format_estimate(cost, signed=True)} lower.",
        cost,
        "Evaluate with the class shares of the application; if the test set has them, adjust the probabilities "
        "(unfreeze.metrics.two_sample_test.adjust_to_priors).",
        details={**details, "class": most},
    )


def _look(case: DiagnosisContext, test: TestSet, foreseen: ScoreForecast) -> Cause:
    """Two-sample test after matching the class shares. Its cost is the loss of confidence of the model."""
    if case.gone:
        return not_measured(LOOK, case.gone)
    try:
        found = compare_datasets(_alike(case, foreseen), test.photos, case.run.recipe, case.reporter)
    except UnfreezeError as error:
        return not_measured(LOOK, str(error).rstrip("."))
    expected = foreseen.expected
    cost = None if isinstance(expected, str) else expected.by_doubt
    weighed = _weighed(case, found)
    details: dict[str, Any] = {"auc": found.json(10)["auc"], "halves": list(found.halves), "weighted": weighed}
    details["least_alike"] = found.test.head(10).to_dict("records")
    sentence = found.sentence.rstrip(".")
    if not found.apart or found.result.auc < SLIGHT:
        if cost and severity_of(cost) == "error":  # less confident although the features do not differ
            size = format_estimate(cost, signed=True)
            text = f"{sentence}; but the model is less confident on them, which would cost {size} of macro F1"
            return Cause(LOOK, "warning", f"{text}.", cost, _REMEDY, _command(case, test), details=details)
        return Cause(LOOK, "none", f"{sentence}.", None, details=details)
    plain: Severity = "warning" if found.result.auc >= PLAIN else "info"
    tail = (
        f"; by the model's confidence, its score on them is at least {format_estimate(cost, signed=True)} lower"
        if cost
        else ""
    )
    if foreseen.real:
        cost = details["real"] = _real_cost(case, test)
        tail = f"{tail}; by their labels, at equal class shares, it is {format_estimate(cost, signed=True)} lower"
        if cost["high"] < WARNING:  # different in appearance, but with little effect
            plain = "info"
    if weighed:
        tail += f" (on training images weighted to match them: {format_estimate(weighed['cost'], signed=True)} lower)"
    return Cause(
        LOOK,
        max_severity(severity_of(cost), plain),
        f"{sentence}{tail}.",
        cost,
        _REMEDY,
        _command(case, test),
        details=details,
    )


def _cost_of_shares(case: DiagnosisContext, test: TestSet) -> Interval:
    """Out-of-fold macro F1 minus the same reweighted to the true class shares of the test images."""
    rows, classes = case.inside, case.classes
    labels, called = case.labels[rows], case.proba[rows].argmax(1)

    def lost(w: F64, v: F64) -> float:
        judged = weighted_confusion(labels, called, classes, w)
        real = np.bincount(test.labels, weights=v, minlength=classes).astype(np.float64)
        return float(macro_f1(judged) - macro_f1(_brought(judged, real)))

    return _over_both(case, test.groups, lost)


def _real_cost(case: DiagnosisContext, test: TestSet) -> Interval:
    """Out-of-fold macro F1, reweighted to the true class shares of the test images, minus the macro F1 on them."""
    assert not isinstance(case.answers, str)
    good = np.flatnonzero(np.isfinite(case.answers.mean).all(1))
    rows, classes = case.inside, case.classes
    labels, called = case.labels[rows], case.proba[rows].argmax(1)
    true, said = test.labels[good], case.answers.mean[good].argmax(1)

    def lost(w: F64, v: F64) -> float:
        real = weighted_confusion(true, said, classes, v)
        judged = weighted_confusion(labels, called, classes, w)
        return float(macro_f1(_brought(judged, real.sum(1))) - macro_f1(real))

    return _over_both(case, test.groups[good], lost)


def _brought(judged: F64, wanted: F64) -> F64:
    """Scale the rows of a confusion matrix (C, C) to the class counts `wanted` (C,)."""
    share = judged.sum(1)
    return np.asarray(judged * np.divide(wanted, share, out=np.zeros_like(share), where=share > 0)[:, None])


def _over_both(case: DiagnosisContext, groups: NDArray[np.int64], lost: Callable[[F64, F64], float]) -> Interval:
    """Evaluate `lost` on weights of training and test images, with its bootstrap interval over groups of both."""
    rows, seed = case.inside, case.run.recipe.seed
    pairs = zip(group_weights(case.units[rows], 300, seed), group_weights(groups, 300, seed + 1), strict=True)
    return interval(lost(np.ones(len(rows)), np.ones(len(groups))), np.array([lost(w, v) for w, v in pairs]))


_REMEDY = (
    "Look at the photos least like the other set: another camera, light, crop or kind; gather training photos like "
    "them, or augment towards them."
)


def _command(case: DiagnosisContext, test: TestSet) -> str:
    there = Path(test.name)
    if not there.is_dir() and test.photos.root != there.parent.resolve():
        return ""  # the run's own test split, or a table whose images are located by an option
    return f"unfreeze check {case.source} --compare-to {shlex.quote(test.name)} --report shift.html"


def _alike(case: DiagnosisContext, foreseen: ScoreForecast) -> Any:
    """Training images, subsampled to the test set's class shares if these differ, to isolate appearance."""
    rows = case.inside
    expected = foreseen.expected
    if not isinstance(expected, str) and expected.significant.any() and expected.distance >= _DISTANCE:
        wanted = np.array([s["value"] for s in expected.shares])
        counts = np.bincount(case.labels[rows], minlength=case.classes)
        common = wanted > 0.02  # classes that are rare in the test set would leave too few images of the others
        size = float((counts[common] / wanted[common]).min())
        draws, kept = np.random.default_rng(case.run.recipe.seed), []
        for c in range(case.classes):
            own = rows[case.labels[rows] == c]
            kept.append(draws.permutation(own)[: round(min(len(own), size * wanted[c]))])
        drawn = np.sort(np.concatenate(kept))
        if len(drawn) >= 40:
            rows = drawn
    table = case.photos.table.iloc[rows].reset_index(drop=True)
    return case.photos.with_table(table)


def _weighed(case: DiagnosisContext, found: DatasetComparison) -> dict[str, Any] | None:
    """Out-of-fold macro F1 minus its importance-weighted estimate for the test images.

    Returns:
        `cost` with its interval and the effective sample size `worth_photos`; None if the latter is too small.

    References:
        Shimodaira 2000, "Improving predictive inference under covariate shift by weighting the log-likelihood
        function", Journal of Statistical Planning and Inference 90.
    """
    known = found.training.set_index("path")["probability"]
    paths = case.photos.table["path"].to_numpy()
    rows = case.inside[np.isin(paths[case.inside], known.index)]
    p = np.clip(known.loc[paths[rows]].to_numpy(np.float64), 1e-3, 1 - 1e-3)
    weight = p / (1 - p)
    worth = float(weight.sum() ** 2 / (weight**2).sum())
    if worth < max(_WORTH, _SHARE * len(rows)):
        return None
    labels, called = case.labels[rows], case.proba[rows].argmax(1)

    def lost(draw: F64) -> float:
        plain = macro_f1(weighted_confusion(labels, called, case.classes, draw))
        return float(plain - macro_f1(weighted_confusion(labels, called, case.classes, draw * weight)))

    drawn = np.array([lost(w) for w in group_weights(case.units[rows], 300, case.run.recipe.seed)])
    return {"cost": interval(lost(np.ones(len(rows))), drawn), "worth_photos": worth}


def _left(expected: ExpectedScore, real: dict[str, Any]) -> Cause:
    """Row for the gap between the expected and the real test score."""
    # The expected score has a prediction interval for this test set: its sampling error must not be added again.
    one, other = expected.macro_f1, float(real["macro_f1"]["value"])
    value = one["value"] - other
    gap: Interval = {"value": value, "low": one["low"] - other, "high": one["high"] - other}
    numbers = (
        f"expected {format_estimate(expected.macro_f1)}, real {format_estimate(real['macro_f1'])}, "
        f"out of fold {format_score(expected.judged)}"
    )
    severity = severity_of(gap, "warning")
    if gap["low"] <= 0:
        near = "is below the expected score, which may be chance" if value >= WARNING else "is as expected"
        return Cause(LEFT, severity, f"The test score {near}: {numbers}.", gap)
    return Cause(
        LEFT,
        severity,
        f"The test score is lower than class shares and confidence explain: {numbers}; predictions or labels "
        "are wrong.",
        gap,
        "Look at the rows above with a cost; check the test labels, and that a class means the same in both sets.",
    )
