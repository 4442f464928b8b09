"""Shift: test photos that look otherwise, in other class shares, and the score that is to be expected of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import UnfreezeError
from unfreeze.judge.metrics import macro_f1, out_of_fold_scores
from unfreeze.judge.priors import Expected, expected_score
from unfreeze.judge.resampling import group_weights, interval, weighted_confusion
from unfreeze.study.against import PLAIN, SLIGHT, Against, against
from unfreeze.study.diagnosis.case import Case, TestSet
from unfreeze.study.diagnosis.cause import (
    WARNING,
    Cause,
    Figure,
    Severity,
    graver,
    not_measured,
    plain,
    severity_of,
    told,
)
from unfreeze.study.diagnosis.stored import STORED, stored

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]
LOOK, SHARES, LEFT = (
    "shift: the test photos look different",
    "shift: other class shares in the test photos",
    "unexplained: the rest of the gap to the test score",
)

# Weights of the training photos are believed if they leave as many photos' worth, and this share.
_WORTH, _SHARE = 50, 0.1
# Total variation distance of class shares from which a sure difference is worth a word.
_DISTANCE = 0.05


@dataclass(frozen=True)
class Foreseen:
    """expected: by the run's own calibrated probabilities. real: scores of the test photos where labels are known."""

    expected: Expected | str
    real: dict[str, Any] | None


def foresee(case: Case) -> Foreseen:
    """The test score to expect, and the real one where labels are known."""
    answers = case.answers
    if case.test is None or isinstance(answers, str):
        return Foreseen(str(answers), None)
    good = np.isfinite(answers.mean).all(1) & np.isfinite(answers.voices).all(1)
    if good.sum() < 10:
        return Foreseen(f"{int(good.sum())} test photos are too few", None)
    rows = case.inside
    expected = expected_score(
        case.proba[rows],
        case.labels[rows],
        case.units[rows],
        case.folds[rows],
        answers.voices[good],
        case.test.groups[good],
        seed=case.run.recipe.seed,
    )
    real = None
    if case.test.labelled:
        real = out_of_fold_scores(
            case.test.labels[good],
            answers.mean[good],
            case.test.groups[good],
            case.run.classes,
            seed=case.run.recipe.seed,
        )
    return Foreseen(expected, real)


def shift(case: Case, foreseen: Foreseen) -> list[Cause]:
    """Rows of look, shares and storage; and what is left unexplained where the real test score is known."""
    if case.test is None:
        return [not_measured(name, str(case.answers)) for name in (LOOK, SHARES, STORED)]
    look = _look(case, case.test, foreseen)
    found = [look, _shares(case, foreseen), stored(case, case.test)]
    if foreseen.real and not isinstance(foreseen.expected, str) and "real" not in look.details:
        found.append(_left(foreseen.expected, foreseen.real))
    return found


def _shares(case: Case, foreseen: Foreseen) -> Cause:
    """Shares by EM, and by the labels where they are known: then these give the cost."""
    expected, test = foreseen.expected, case.test
    if isinstance(expected, str) or test is None:
        return not_measured(SHARES, str(expected))
    told_classes = np.flatnonzero(expected.told)
    details: dict[str, Any] = {
        "shares": expected.shares,
        "training": expected.training.tolist(),
        "told": expected.told.tolist(),
        "distance": expected.distance,
    }
    true, cost, distance = None, expected.by_shares, expected.distance
    if test.labelled:
        true = np.bincount(test.labels, minlength=case.classes) / len(test.labels)
        distance = float(np.abs(true - expected.training).sum() / 2)
        details |= {"real_shares": true.tolist(), "real_distance": distance}
    if not len(told_classes) or expected.distance < _DISTANCE:
        return Cause(
            SHARES,
            "none",
            f"The estimated class shares of the test photos do not surely differ from those of training (total "
            f"variation {expected.distance:.2f}{'' if true is None else f'; by their labels {distance:.2f}'}).",
            None,
            details=details,
        )
    most = int(max(told_classes, key=lambda c: abs(expected.shares[c]["value"] - expected.training[c])))
    share = expected.shares[most]
    by_labels = ""
    if true is not None:
        cost = _cost_of_shares(case, test)
        by_labels = f", by their labels {true[most]:.0%},"
    return Cause(
        SHARES,
        graver(severity_of(cost), "info"),
        f"The class shares of the test photos differ: '{case.run.classes[most]}' is estimated as {share['value']:.0%} "
        f"({share['low']:.0%} to {share['high']:.0%}) of them{by_labels} and is {expected.training[most]:.0%} of "
        f"training; under {'these' if true is None else 'their real'} shares macro F1 is {told(cost, True)} lower.",
        cost,
        "Judge with the shares that you will meet; if the test shares are real, weigh the probabilities by them "
        "(unfreeze.judge.priors.adjusted).",
        details={**details, "class": most},
    )


def _look(case: Case, test: TestSet, foreseen: Foreseen) -> Cause:
    """Told apart by a classifier, once the class shares are alike; its cost is what the model doubts more."""
    if case.gone:
        return not_measured(LOOK, case.gone)
    try:
        found = against(_alike(case, foreseen), test.photos, case.run.recipe, case.reporter)
    except UnfreezeError as error:
        return not_measured(LOOK, str(error).rstrip("."))
    expected = foreseen.expected
    cost = None if isinstance(expected, str) else expected.by_doubt
    weighed = _weighed(case, found)
    details: dict[str, Any] = {"auc": found.json(10)["auc"], "halves": list(found.halves), "weighted": weighed}
    details["least_alike"] = found.test.head(10).to_dict("records")
    sentence = found.sentence.rstrip(".")
    if not found.apart or found.result.auc < SLIGHT:
        if cost and severity_of(cost) == "error":  # the model is less sure, though features are not told apart
            text = f"{sentence}; yet the model is less sure of them, which would cost {told(cost, True)} of macro F1"
            return Cause(LOOK, "warning", f"{text}.", cost, _REMEDY, _command(case, test), details=details)
        return Cause(LOOK, "none", f"{sentence}.", None, details=details)
    plain: Severity = "warning" if found.result.auc >= PLAIN else "info"
    tail = f"; by its own doubt the model scores {told(cost, True)} less on them, at the least" if cost else ""
    if foreseen.real:
        cost = details["real"] = _real_cost(case, test)
        tail = f"{tail}; by their labels, class shares made alike, it scores {told(cost, True)} less"
        if cost["high"] < WARNING:  # they look different, and it surely matters little
            plain = "info"
    if weighed:
        tail += f" (training photos weighed to look like them: {told(weighed['cost'], True)} less)"
    return Cause(
        LOOK,
        graver(severity_of(cost), plain),
        f"{sentence}{tail}.",
        cost,
        _REMEDY,
        _command(case, test),
        details=details,
    )


def _cost_of_shares(case: Case, test: TestSet) -> Figure:
    """Macro F1 out of fold, less the same brought to the true class shares of the test photos."""
    rows, classes = case.inside, case.classes
    labels, called = case.labels[rows], case.proba[rows].argmax(1)

    def lost(w: F64, v: F64) -> float:
        judged = weighted_confusion(labels, called, classes, w)
        real = np.bincount(test.labels, weights=v, minlength=classes).astype(np.float64)
        return float(macro_f1(judged) - macro_f1(_brought(judged, real)))

    return _over_both(case, test.groups, lost)


def _real_cost(case: Case, test: TestSet) -> Figure:
    """Macro F1 out of fold, brought to the true class shares of the test photos, less what these photos get."""
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
    """Confusion counts (C, C) whose true classes are as frequent as in `wanted` (C,)."""
    share = judged.sum(1)
    return np.asarray(judged * np.divide(wanted, share, out=np.zeros_like(share), where=share > 0)[:, None])


def _over_both(case: Case, groups: NDArray[np.str_], lost: Callable[[F64, F64], float]) -> Figure:
    """`lost` of weights of the training and the test photos, with its interval over groups of both."""
    rows, seed = case.inside, case.run.recipe.seed
    pairs = zip(group_weights(case.units[rows], 300, seed), group_weights(groups, 300, seed + 1), strict=True)
    return interval(lost(np.ones(len(rows)), np.ones(len(groups))), np.array([lost(w, v) for w, v in pairs]))


_REMEDY = (
    "Look at the photos least like the other set: another camera, light, crop or kind; gather training photos like "
    "them, or augment towards them."
)


def _command(case: Case, test: TestSet) -> str:
    there = Path(test.name)
    if not there.is_dir() and test.photos.root != there.parent.resolve():
        return ""  # the run's own test split, or a table that says where its photos are by an option
    return f"unfreeze check {case.source} --against {shlex.quote(test.name)} --report shift.html"


def _alike(case: Case, foreseen: Foreseen) -> Any:
    """The training photos; drawn to the test photos' class shares where these differ, so that look is told alone."""
    rows = case.inside
    expected = foreseen.expected
    if not isinstance(expected, str) and expected.told.any() and expected.distance >= _DISTANCE:
        wanted = np.array([s["value"] for s in expected.shares])
        counts = np.bincount(case.labels[rows], minlength=case.classes)
        common = wanted > 0.02  # a class that the test set hardly has would leave nothing of the others
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


def _weighed(case: Case, found: Against) -> dict[str, Any] | None:
    """Macro F1 out of fold with photos weighed by how much they look like test photos (Shimodaira 2000), where the
    weights leave enough photos to say anything."""
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


def _left(expected: Expected, real: dict[str, Any]) -> Cause:
    """What the real score lies under the expected one by."""
    value = expected.macro_f1["value"] - real["macro_f1"]["value"]
    # The two are independent of each other: their deviations add as squares.
    one, other = expected.macro_f1, real["macro_f1"]
    down = np.hypot(one["value"] - one["low"], other["high"] - other["value"])
    up = np.hypot(one["high"] - one["value"], other["value"] - other["low"])
    gap: Figure = {"value": value, "low": float(value - down), "high": float(value + up)}
    beside = f"expected {told(expected.macro_f1)}, real {told(real['macro_f1'])}, out of fold {plain(expected.judged)}"
    severity = severity_of(gap, "warning")
    if gap["low"] <= 0:
        near = "lies under what was expected, which may be chance" if value >= WARNING else "is what was expected"
        return Cause(LEFT, severity, f"The test score {near}: {beside}.", gap)
    return Cause(
        LEFT,
        severity,
        f"The test score lies under what shares and doubt explain: {beside}; the model is surely wrong, or labels are.",
        gap,
        "Look at the rows above with a cost; check the test labels, and that a class means the same in both sets.",
    )
