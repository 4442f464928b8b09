"""Scores of each group: on which people, plants or products a classifier goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def group_scores(
    truth: NDArray[np.integer], probabilities: NDArray[np.floating], groups: NDArray[np.generic], classes: Sequence[str]
) -> pd.DataFrame:
    """A row a group, the worst first: group, photos, right, accuracy, log_loss, mistake.

    truth: int (n,), class indices. probabilities: (n, C), out of fold. mistake: the commonest, as `cat for dog: 3`;
    empty where there is none. Worst is the lowest accuracy; of equals the one with more wrong photos.
    """
    told = probabilities.argmax(1)
    losses = -np.log(np.clip(probabilities[np.arange(len(truth)), truth].astype(np.float64), 1e-15, 1.0))
    table = pd.DataFrame({"group": groups.astype(str), "right": told == truth, "loss": losses})
    found = table.groupby("group", sort=False).agg(
        photos=("right", "size"), right=("right", "sum"), accuracy=("right", "mean"), log_loss=("loss", "mean")
    )
    names = groups.astype(str)
    wrong: dict[str, Counter[tuple[int, int]]] = {}
    for i in np.flatnonzero(told != truth).tolist():
        wrong.setdefault(str(names[i]), Counter())[(int(told[i]), int(truth[i]))] += 1
    mistakes = []
    for name in found.index:
        common = wrong.get(name, Counter()).most_common(1)
        mistakes.append("".join(f"{classes[p]} for {classes[t]}: {n}" for (p, t), n in common))
    found = found.assign(mistake=mistakes, misses=found["photos"] - found["right"]).reset_index()
    order = found.sort_values(["accuracy", "misses", "group"], ascending=[True, False, True])
    return order.drop(columns="misses").reset_index(drop=True)
