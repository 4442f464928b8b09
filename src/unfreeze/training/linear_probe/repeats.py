"""Repeated cross-validation: further fold assignments of the same images, and heads averaged over all of them.

With few images, a score depends on which of them share a fold. Repeated cross-validation averages this out (Kohavi
1995; Kim 2009), both in the scores and in the delivered model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.cache import stable_hash
from unfreeze.data.splits import assign_folds
from unfreeze.metrics.classification import Tally, Values, score_values
from unfreeze.training.context import FitContext
from unfreeze.training.linear_probe.heads import LinearHead, kept_heads, predict_folds
from unfreeze.training.linear_probe.strategy import Probe, fit_heads

# Maximum number of images for automatic repeats, and maximum number of assignments: fitting the heads takes only a
# second or two then.
_MOST_IMAGES, _MOST = 1000, 4
# Maximum standard deviation due to the fold assignment, as a fraction of the standard error of macro F1.
_SHARE = 0.25


@dataclass(frozen=True)
class Repeats:
    """Result of repeated cross-validation.

    Attributes:
        values: Scores of each assignment, the run's own folds first.
        heads: The heads to deliver, in fold order.
    """

    values: list[Values]
    heads: list[LinearHead]


def wanted(work: FitContext, fitted: Probe, standard_error: float) -> int:
    """Return the number of fold assignments of a run, including its own.

    The automatic number is such that the standard deviation between assignments is at most a quarter of the standard
    error of macro F1. It is estimated from the inner models: models with different left-out folds differ about as much
    as models of other assignments.

    Args:
        work: The images and their folds.
        fitted: The probe.
        standard_error: Standard error of macro F1.

    Returns:
        1 if the heads cannot be averaged into one linear map, the recipe's number if it has one, else the automatic
        one.
    """
    asked, heads = work.recipe.folds.repeats, list(fitted.heads.values())
    if fitted.parts or any(head.inputs != heads[0].inputs or head.strengths for head in heads):
        return 1  # such heads cannot be averaged into one linear map
    if asked:
        return asked
    tallies = [head.inner for head in heads if head.inner]
    if int((work.folds >= 0).sum()) > _MOST_IMAGES or len(tallies) < len(heads) or standard_error <= 0:
        return 1
    deviation = _between(tallies)
    return min(_MOST, max(1, math.ceil((deviation / (_SHARE * standard_error)) ** 2)))


def _between(tallies: Sequence[Tally]) -> float:
    """Return the standard deviation of macro F1 over the inner models, each evaluated over all folds."""
    counts: NDArray[np.float64] = np.sum([tally.counts for tally in tallies], axis=0)
    bottom = counts[1:, 1] + counts[1:, 2]
    f1 = np.divide(2 * counts[1:, 0], bottom, out=np.zeros_like(bottom), where=bottom > 0)
    values = f1.sum(1) / np.maximum((bottom > 0).sum(1), 1)
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def repeat(work: FitContext, fitted: Probe, groups: Rows, count: int, own: Values) -> Repeats:
    """Cross-validate with `count` - 1 further fold assignments and average the heads of each fold number.

    Heads of an interrupted run are loaded from their files.

    Args:
        work: The images and their own folds.
        fitted: The probe for these folds.
        groups: int (n,), groups that folds do not split.
        count: Number of assignments, including the run's own.
        own: Scores with the run's own folds.

    Returns:
        The scores of each assignment, and the heads to deliver: the mean of the linear maps of all assignments, which
        is equivalent to averaging their logits.
    """
    inside = np.flatnonzero(work.folds >= 0)
    values = [own]
    by_fold = {k: [head] for k, head in fitted.heads.items()}
    for number in range(1, count):
        folds = np.full(len(work.folds), -1, np.int64)
        seed = work.recipe.seed + 1_000_003 * number
        folds[inside] = assign_folds(
            work.labels[inside], groups[inside], work.recipe.folds.n_splits, seed, work.classes
        )
        proba = np.empty((len(inside), work.classes))
        for k, head in _heads(work, fitted, folds, number).items():
            rows = folds[inside] == k
            proba[rows] = predict_folds(fitted.features, [head], inside[rows])
            by_fold[k].append(head)
        values.append(score_values(work.labels[inside], proba))
    return Repeats(values, [_mean(heads) for _, heads in sorted(by_fold.items())])


def _heads(work: FitContext, fitted: Probe, folds: Rows, number: int) -> dict[int, LinearHead]:
    """Return the heads for further folds, from the files of an interrupted run or newly fitted."""
    identity = stable_hash([fitted.identity, number, folds.tolist()])
    mark = stable_hash([identity, fitted.features.identity, work.labels.tolist(), work.recipe.model_dump(mode="json")])
    place = work.folder / "scratch" / f"repeat-{number}"
    files = {k: place / f"{k}.safetensors" for k in range(work.recipe.folds.n_splits)}

    def fit(todo: list[int]) -> Iterator[tuple[int, LinearHead]]:
        return fit_heads(work, fitted, work.units, folds, identity, todo, work.reporter)

    return kept_heads(files, mark, work.photos.classes, fit)


def _mean(heads: Sequence[LinearHead]) -> LinearHead:
    """Return the mean of the heads' linear maps."""
    weight = np.stack([head.weight for head in heads]).mean(0, dtype=np.float64).astype(np.float32)
    bias = np.stack([head.bias for head in heads]).mean(0, dtype=np.float64).astype(np.float32)
    strength = float(np.exp(np.mean(np.log([head.strength for head in heads]))))
    return replace(heads[0], weight=weight, bias=bias, strength=strength, inner=None)
