"""Scores of label columns and of groups.

A label may combine several columns (attributes). `part_scores` evaluates each column by itself and estimates what its
errors cost the combined label. `group_scores` tabulates accuracy and log loss by group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.dataset import LabelColumn
from unfreeze.metrics.classification import score_predictions
from unfreeze.metrics.differences import differences, macro, score_intervals, simultaneous
from unfreeze.metrics.log_loss import log_losses

Proba = NDArray[np.floating]


def marginalize(probabilities: Proba, part: LabelColumn) -> NDArray[np.float64]:
    """Marginal probabilities of a column's values: class probabilities summed over the other columns.

    Args:
        probabilities: (n, C), probabilities of the combined classes.
        part: The column.

    Returns:
        float64 (n, V).
    """
    of_class = np.array(part.of_class)
    return np.stack([probabilities[:, of_class == v].sum(1, dtype=np.float64) for v in range(len(part.values))], 1)


def with_oracle_column(truth: Rows, probabilities: Proba, parts: Sequence[LabelColumn], which: int) -> Rows:
    """Predicted classes after the value of one column is replaced by the true one.

    The values of the other columns remain those of the most probable class. If no class has this combination, the most
    probable class with the true value is predicted.

    Args:
        truth: int (n,), true classes.
        probabilities: (n, C).
        parts: All columns of the label.
        which: Index of the column with true values.

    Returns:
        int64 (n,).
    """
    predicted = probabilities.argmax(1)
    code = np.zeros(len(parts[0].of_class), np.int64)  # column values of each class as a mixed-radix number
    asked = np.zeros(len(truth), np.int64)
    for i, part in enumerate(parts):
        code = code * len(part.values) + np.array(part.of_class)
        asked = asked * len(part.values) + part.of(truth if i == which else predicted)
    order = np.argsort(code, kind="stable")
    place = np.minimum(np.searchsorted(code[order], asked), len(code) - 1)
    found = order[place]
    absent = np.flatnonzero(code[found] != asked)
    own = np.array(parts[which].of_class)
    possible = own[None, :] == own[truth[absent]][:, None]
    found[absent] = np.where(possible, probabilities[absent], -1.0).argmax(1)
    return found


def part_scores(
    truth: Rows,
    probabilities: Proba,
    groups: NDArray[Any],
    parts: Sequence[LabelColumn],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Scores of each column, and scores of the combined label if that column were always right.

    A gain is never negative, so only the comparisons in "more_than" are tests. The intervals of all gains and of all
    differences between gains are simultaneous (`differences.simultaneous`). Gains do not add up to the missing score:
    an image with two wrong columns is corrected by neither of them alone.

    Args:
        truth: int (n,), true classes.
        probabilities: (n, C), out-of-fold probabilities.
        groups: (n,) any hashable.
        parts: All columns of the label.
        resamples: Number of bootstrap or exchange draws.
        level: Confidence level.
        seed: Seed of the draws.

    Returns:
        For each column the dict of `classification.score_predictions` on its marginal probabilities, and the key
        `if_right`: {"macro_f1": macro F1 of the combined label after `with_oracle_column`, "gain": its difference to
        the actual macro F1, "more_than": {other column: difference to the gain of that column}}, each {"value", "low",
        "high"}.
    """
    names = [part.name for part in parts]
    predictions = {name: with_oracle_column(truth, probabilities, parts, i) for i, name in enumerate(names)}
    draws: dict[str, Any] = {"resamples": resamples, "seed": seed}
    metrics, classes = {"macro_f1": macro}, len(parts[0].of_class)
    whole = score_intervals(truth, predictions, groups, classes, metrics, level=level, **draws)
    predictions[""] = probabilities.argmax(1)
    bases = ["", *names]  # each column is compared with the actual predictions and with each other column
    families = [
        differences(truth, predictions, dict.fromkeys(names, base), groups, classes, metrics, **draws) for base in bases
    ]
    more = dict(zip(bases, simultaneous(families, level), strict=True))
    found = {}
    for part in parts:
        scores = score_predictions(
            part.of(truth),
            marginalize(probabilities, part),
            groups,
            part.values,
            resamples=resamples,
            level=level,
            seed=seed,
        )
        place = names.index(part.name)
        gain = more[""].at(place)
        found[part.name] = {
            **scores,
            "if_right": {
                "macro_f1": whole[part.name]["macro_f1"],
                "gain": {**gain, "low": max(0.0, gain["low"])},
                "more_than": {other: more[other].at(place) for other in names if other != part.name},
            },
        }
    return found


def group_scores(
    truth: NDArray[np.integer], probabilities: NDArray[np.floating], groups: NDArray[np.generic], classes: Sequence[str]
) -> pd.DataFrame:
    """Scores of each group, worst first.

    Args:
        truth: int (n,), true classes.
        probabilities: (n, C), out-of-fold probabilities.
        groups: (n,) group of each image.
        classes: Names of the C classes.

    Returns:
        One row for each group with the columns group, photos (number of images), right (number of correct predictions),
        accuracy, log_loss and mistake: the most frequent one, as ``cat for dog: 3`` (predicted for true class), or
        empty. Sorted by accuracy, then by descending number of errors, then by group.
    """
    predicted = probabilities.argmax(1)
    losses = log_losses(truth, probabilities)
    table = pd.DataFrame({"group": groups.astype(str), "right": predicted == truth, "loss": losses})
    found = table.groupby("group", sort=False).agg(
        photos=("right", "size"), right=("right", "sum"), accuracy=("right", "mean"), log_loss=("loss", "mean")
    )
    names = groups.astype(str)
    wrong: dict[str, Counter[tuple[int, int]]] = {}
    for i in np.flatnonzero(predicted != truth).tolist():
        wrong.setdefault(str(names[i]), Counter())[(int(predicted[i]), int(truth[i]))] += 1
    mistakes = []
    for name in found.index:
        common = wrong.get(name, Counter()).most_common(1)
        mistakes.append("".join(f"{classes[p]} for {classes[t]}: {n}" for (p, t), n in common))
    found = found.assign(mistake=mistakes, misses=found["photos"] - found["right"]).reset_index()
    order = found.sort_values(["accuracy", "misses", "group"], ascending=[True, False, True])
    return order.drop(columns="misses").reset_index(drop=True)
