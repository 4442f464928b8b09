"""Simulations of the statistics of label issues: arrays whose truth is known, the package's own functions, no images.

`effect`: images drawn from a logistic model, ridge logistic heads, five folds; a reviewer looks at the top of the list.
The reported gain of the corrections is compared with the truth: what models trained with all corrections score more
than models trained without them on 4,000 new images with true labels.

`noise`: the estimated number of wrong labels and their cost. Either probabilities are the exact posteriors (a perfect
model, of the accuracy that the classes allow), or those of heads that were fitted to the given labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.metrics import label_issues as judging
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.differences import paired_difference
from unfreeze.metrics.label_issues import LabelAxis
from unfreeze.metrics.label_noise import Evidence, estimate_noise, fit_noise
from unfreeze.metrics.nested import Corrections, judged_images, nested_predictions, widened

SETS = 100
HEADLINE = ("what", "labels", "reviewer", "sets", "reported", "truth", "covered", "positive", "flattered", "wrong")
Rows = NDArray[np.int64]
F64 = NDArray[np.float64]
_CLASSES, _FEATURES, _FOLDS, _NEW = 3, 40, 5, 4000
# share of wrong labels, reviewer, images, share of them that is reviewed
EFFECTS = (
    (0.0, "accepts every suggestion", 600, 0.06),
    (0.0, "excludes every image", 600, 0.06),
    (0.0, "right half of the time", 600, 0.06),
    (0.05, "knows the truth", 600, 0.06),
    (0.05, "accepts every suggestion", 600, 0.06),
    (0.03, "knows the truth", 1000, 0.03),
)
# model, classes, how far logits spread, share of wrong labels, sets
NOISES = (
    ("exact", 10, 8.0, 0.0, 1.0),
    ("exact", 10, 3.0, 0.0, 1.0),
    ("fitted", 3, 2.0, 0.0, 1.0),
    ("exact", 10, 8.0, 0.01, 0.1),
    ("exact", 10, 8.0, 0.033, 0.1),
    ("exact", 10, 3.0, 0.033, 0.1),
    ("exact", 10, 3.0, 0.10, 0.1),
    ("fitted", 3, 2.0, 0.03, 0.1),
    ("fitted", 3, 2.0, 0.10, 0.1),
    ("exact", 4, 7.0, 0.0, 1.0),
    ("exact", 18, 3.5, 0.0, 0.1),
    ("exact", 4, 2.5, 0.0, 0.1),
    ("exact", 10, 8.0, "0.033 to the likeliest other class", 0.1),
    ("heavy tails", 5, 1.0, 0.0, 0.1),
)


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a scenario. Needs no photos."""
    for wrong, reviewer, images, top in EFFECTS:
        yield effect_row(wrong, reviewer, images, top, SETS)
    for model, classes, spread, wrong, share in NOISES:
        yield noise_row(model, classes, spread, wrong, round(share * SETS))


def effect_row(wrong: float, reviewer: str, images: int, top: float, sets: int) -> dict[str, Any]:
    """Means over `sets` data sets; `covered`: in how many the interval of the gain holds the truth."""
    found = [_effect(seed, wrong, reviewer, images, top) for seed in range(sets)]
    mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    return {
        "what": "effect",
        "labels": f"{wrong:.0%} wrong of {images}",
        "reviewer": reviewer,
        "sets": sets,
        "reported": round(mean["gain"], 4),
        "truth": round(mean["truth"], 4),
        "covered": round(mean["covered"] * sets),
        "positive": round(mean["positive"] * sets),
        "flattered": round(mean["flattered"], 4),
        "by_corrected": round(mean["corrected"], 4),
        "applied": round(mean["applied"], 2),
        "score_given": round(mean["score_given"], 3),
        "score_corrected": round(mean["score_corrected"], 3),
        "score_true": round(mean["score_true"], 3),
    }


def noise_row(model: str, classes: int, spread: float, wrong: float | str, sets: int) -> dict[str, Any]:
    """Means over `sets` data sets of 800; `covered`: in how many the interval of the cost holds 0."""
    found = [_noise(seed, model, classes, spread, wrong) for seed in range(sets)]
    mean = {key: float(np.mean([one[key] for one in found])) for key in found[0] if key not in ("p", "is")}
    p, is_wrong = (np.concatenate([one[key] for one in found]) for key in ("p", "is"))
    bins = [(p > low) & (p <= high) for low, high in ((0.05, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0))]
    return {
        "what": "noise",
        "labels": f"{model}, {classes} classes, accuracy {mean['accuracy']:.2f}, wrong {wrong}",
        "sets": sets,
        "wrong": round(mean["wrong"], 1),
        "reported": round(mean["count"], 1),
        "count_covered": round(mean["count_covered"] * sets),
        "detected": round(mean["detected"] * sets),
        "cost": round(mean["cost"], 4),
        "covered": round(mean["cost_zero"] * sets),
        "reliability": "; ".join(f"{p[b].mean():.2f}: {is_wrong[b].mean():.2f} of {b.sum()}" for b in bins if b.any()),
    }


def _effect(seed: int, wrong: float, reviewer: str, images: int, top: float) -> dict[str, float]:
    draw = np.random.default_rng([seed, int(1000 * wrong), len(reviewer)])
    weights = draw.normal(0, 3.2 / np.sqrt(_FEATURES), (_FEATURES, _CLASSES))
    x, true = _drawn(draw, images, weights)
    new, new_true = _drawn(draw, _NEW, weights)
    given, folds, groups = _planted(draw, true, wrong, _CLASSES), draw.permutation(images) % _FOLDS, np.arange(images)

    def fit_predict(labels: Rows, train: NDArray[np.bool_], some: Rows, fold: int) -> F64:
        return _probabilities(_head(x[train], labels[train]), x[some])

    def rank(some: Rows, proba: F64) -> Rows:
        return np.array([i for i, _ in _listed(given, proba, some)], np.int64)

    before = np.zeros((images, _CLASSES))
    for k in range(_FOLDS):
        before[folds == k] = fit_predict(given, folds != k, np.flatnonzero(folds == k), k)
    corrected, excluded, words = given.copy(), np.zeros(images, bool), np.zeros(images, bool)
    for i, suggested in _listed(given, before, groups)[: int(top * images)]:
        words[i] = True
        if reviewer == "excludes every image":
            excluded[i] = True
        else:
            knows = reviewer == "knows the truth" or (reviewer.startswith("right half") and draw.random() < 0.5)
            corrected[i] = true[i] if knows else suggested
    listed = rank(groups, before)
    corrections = Corrections(given, corrected, excluded, judged_images(listed, words))
    nested = nested_predictions(fit_predict, rank, corrections, folds, range(_FOLDS))
    flat, truth = np.zeros_like(before), []
    for k in range(_FOLDS):
        with_all = _head(x[(folds != k) & ~excluded], corrected[(folds != k) & ~excluded])
        flat[folds == k] = _probabilities(with_all, x[folds == k])
        without = _head(x[folds != k], given[folds != k])
        truth.append(_f1(new_true, _probabilities(with_all, new)) - _f1(new_true, _probabilities(without, new)))
    gain = widened(paired_difference(given, before, nested.proba, groups, resamples=300, seed=seed), _FOLDS)
    left = ~excluded
    return {
        "gain": gain["value"],
        "truth": float(np.mean(truth)),
        "covered": float(gain["low"] <= np.mean(truth) <= gain["high"]),
        "positive": float(gain["low"] > 0),
        "flattered": _f1(given, flat) - _f1(given, before),
        "corrected": _f1(corrected[left], nested.proba[left]) - _f1(corrected[left], before[left]),
        "applied": nested.share,
        "score_given": _f1(given, nested.proba),
        "score_corrected": _f1(corrected[left], nested.proba[left]),
        "score_true": _f1(true, nested.proba),
    }


def _noise(seed: int, model: str, classes: int, spread: float, wrong: float | str, images: int = 800) -> dict[str, Any]:
    rate = float(str(wrong).split()[0])
    draw = np.random.default_rng([seed, classes, int(1000 * rate)])
    if model == "exact":
        logits = draw.normal(0, spread, (images, classes))
        proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        true = (proba.cumsum(1) < draw.random((images, 1))).sum(1).clip(0, classes - 1)
    elif model == "fitted":
        x, true = _drawn(draw, images, draw.normal(0, 1.6 * spread / np.sqrt(_FEATURES), (_FEATURES, classes)))
    else:  # three clusters a class, and noise that no temperature describes
        centers = draw.normal(0, 1.2, (classes, 3, 60))
        true = draw.integers(0, classes, images)
        x = centers[true, draw.integers(0, 3, images)] + draw.standard_t(3, (images, 60))
    if isinstance(wrong, str):
        given, flip = true.copy(), draw.random(images) < rate
        other = np.where(np.eye(classes)[true] > 0, -1, proba).argmax(1)
        given[flip] = other[flip]
    else:
        given = _planted(draw, true, rate, classes)
    if model != "exact":
        proba, folds = np.zeros((images, classes)), draw.permutation(images) % _FOLDS
        for k in range(_FOLDS):
            proba[folds == k] = _probabilities(_head(x[folds != k], given[folds != k]), x[folds == k])
    evidence = Evidence.of(proba, given)
    found = estimate_noise([evidence], np.arange(classes)[:, None], given, proba.argmax(1), np.arange(images), seed)
    p = 1 - fit_noise(evidence)[0].posterior(evidence)[np.arange(images), given]
    real = int((given != true).sum())
    return {
        "wrong": real,
        "accuracy": float((proba.argmax(1) == true).mean()),
        "count": found.wrong["value"],
        "count_covered": float(found.wrong["low"] <= real <= found.wrong["high"]),
        "detected": float(found.detected),
        "cost": found.cost["value"],
        "cost_zero": float(found.cost["low"] <= 0 <= found.cost["high"]),
        "p": p,
        "is": given != true,
    }


def _listed(given: Rows, proba: F64, some: Rows) -> list[tuple[int, int]]:
    """(row, suggested class) as `unfreeze label-issues` lists them, most suspicious first."""
    names = tuple(map(str, range(proba.shape[1])))
    doubt = judging.score_labels(LabelAxis("label", names, given[some], proba[some]), some)
    table = judging.rank_label_issues(
        [str(i) for i in some], given[some], names, [doubt], np.arange(len(names))[:, None], np.arange(len(some))
    )
    return [(int(i), int(c)) for i, c in zip(table["path"], table["suggested"], strict=True)]


def _drawn(draw: np.random.Generator, images: int, weights: F64) -> tuple[F64, Rows]:
    x = draw.normal(0, 1, (images, len(weights)))
    logits = x @ weights
    proba = np.exp(logits - logits.max(1, keepdims=True))
    proba /= proba.sum(1, keepdims=True)
    return x, (proba.cumsum(1) < draw.random((images, 1))).sum(1).clip(0, weights.shape[1] - 1)


def _planted(draw: np.random.Generator, true: Rows, rate: float, classes: int) -> Rows:
    given, flip = true.copy(), draw.random(len(true)) < rate
    given[flip] = (true[flip] + draw.integers(1, classes, int(flip.sum()))) % classes
    return given


def _head(x: F64, labels: Rows) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.3, max_iter=200).fit(x, labels)


def _probabilities(head: Any, x: F64) -> F64:
    return np.asarray(head.predict_proba(x))


def _f1(truth: Rows, proba: F64) -> float:
    return float(macro_f1(confusion_matrix(truth, proba.argmax(1), proba.shape[1])))
