"""Labels made of several attributes: how well each part is told, and what each costs the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.attributes import Part
from unfreeze.judge.many import macro, many_differences
from unfreeze.judge.metrics import out_of_fold_scores

Rows = NDArray[np.int64]
Proba = NDArray[np.floating]


def marginal(probabilities: Proba, part: Part) -> NDArray[np.float64]:
    """Probabilities of a part's values, float64 (n, V), from those of classes (n, C): sums over its combinations."""
    of_class = np.array(part.of_class)
    return np.stack([probabilities[:, of_class == v].sum(1, dtype=np.float64) for v in range(len(part.values))], 1)


def with_part_right(truth: Rows, probabilities: Proba, parts: Sequence[Part], which: int) -> Rows:
    """The predicted classes, int64 (n,), once the value of part `which` is replaced by the true one.

    truth: int (n,), classes. probabilities: (n, C). The other parts' values stay those of the most probable class.
    Where there is no such combination: the most probable class with the true value.
    """
    predicted = probabilities.argmax(1)
    code = np.zeros(len(parts[0].of_class), np.int64)  # of a class: its values as one number
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
    parts: Sequence[Part],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Scores of each part, and what the whole would score if that part were always right.

    truth: int (n,), classes. probabilities: (n, C), out of fold. groups: (n,) any hashable. For each part the dict of
    `out_of_fold_scores` on its marginal probabilities, and `if_right`: {"macro_f1": of the whole after
    `with_part_right`, "gain": how much more that is}, each {"value", "low", "high"}. The gains are of paired draws of
    groups, with intervals that hold for all parts at once (`many_differences`). The gains of the parts need not sum to
    what is missing: a photo with two wrong parts is mended by neither alone.
    """
    told = {part.name: with_part_right(truth, probabilities, parts, i) for i, part in enumerate(parts)}
    whole = many_differences(
        truth,
        probabilities.argmax(1),
        told,
        groups,
        len(parts[0].of_class),
        {"macro_f1": macro},
        resamples=resamples,
        level=level,
        seed=seed,
    )
    found = {}
    for part in parts:
        scores = out_of_fold_scores(
            part.of(truth),
            marginal(probabilities, part),
            groups,
            part.values,
            resamples=resamples,
            level=level,
            seed=seed,
        )
        both = whole[part.name]["macro_f1"]
        found[part.name] = {**scores, "if_right": {"macro_f1": both["score"], "gain": both["difference"]}}
    return found
