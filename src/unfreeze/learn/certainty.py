"""What a probability means: how often predictions that were about as sure turned out right, out of fold."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.tables import probability_columns
from unfreeze.judge.resampling import interval, numbered, resampled_sums
from unfreeze.judge.selection import blended
from unfreeze.learn.blend import Blend
from unfreeze.learn.classifier import Classifier

# Photos in a step of the staircase, and steps at most: fewer photos would say nothing, more steps no more.
_LEAST, _STEPS, _RESAMPLES = 50, 10, 500
# Share of right predictions from which a prediction is called so.
_WORDS = ((0.95, "very sure"), (0.85, "sure"), (0.7, "fairly sure"), (0.5, "unsure"), (0.0, "a guess"))


@dataclass(frozen=True)
class Meaning:
    """Of `of` out-of-fold photos whose best probability lay in low..high, the share `right` was right.

    least, most: its 95 % interval over groups. word: the same for people.
    """

    low: float
    high: float
    right: float
    least: float
    most: float
    of: int
    word: str

    def told(self) -> str:
        """`of 412 photos it was this sure of, 87 % were right`."""
        return f"of {self.of:,} photos it was this sure of, {100 * self.right:.0f} % were right"


@dataclass(frozen=True)
class Certainty:
    """A staircase from the best class's probability to how often such predictions are right."""

    steps: tuple[Meaning, ...]

    @classmethod
    def of(cls, source: Classifier | Blend) -> Certainty:
        """From the out-of-fold predictions of a run, or of several blended by their weights."""
        if isinstance(source, Blend):
            own = source.out_of_fold
            return cls.learnt(blended(own.probas, source.weights), own.truth, own.groups)
        run = source.run
        oof = run.predictions()
        groups = run.photos().set_index("path")["group"].reindex(oof["path"]).to_numpy(object)
        number = {name: i for i, name in enumerate(run.classes)}
        truth = np.array([number[label] for label in oof["label"]], np.int64)
        return cls.learnt(oof[probability_columns(run.classes)].to_numpy(np.float64), truth, groups)

    @classmethod
    def learnt(cls, proba: NDArray[np.float64], truth: NDArray[np.int64], groups: NDArray[Any]) -> Certainty:
        """proba: (n, C), out of fold. truth: (n,), class indices. groups: (n,), what is resampled together.

        Steps hold about equally many photos, at least 50 where there are so many.
        """
        best = proba.max(1)
        right = (proba.argmax(1) == truth).astype(np.float64)
        order = np.argsort(best, kind="stable")
        cuts = np.linspace(0, len(order), min(_STEPS, max(1, len(order) // _LEAST)) + 1).astype(int)
        step = np.empty(len(order), np.int64)
        for number, (start, end) in enumerate(pairwise(cuts)):
            step[order[start:end]] = number
        count = len(cuts) - 1
        member, _ = numbered(groups)
        hits, photos = resampled_sums(member, [(step, right, count), (step, None, count)], _RESAMPLES, 0)
        steps = []
        for number, (start, end) in enumerate(pairwise(cuts)):
            rows = order[start:end]
            with np.errstate(invalid="ignore"):
                samples = hits[:, number] / photos[:, number]
            share = interval(float(right[rows].mean()), samples)
            word = next(w for least, w in _WORDS if share["value"] >= least)
            ends = float(best[rows[0]]), float(best[rows[-1]])
            steps.append(Meaning(*ends, share["value"], share["low"], share["high"], len(rows), word))
        return cls(tuple(steps))

    def meaning(self, probability: float) -> Meaning:
        """The step that a best class's probability falls on; above all of them the last, below the first."""
        return next((step for step in self.steps if probability <= step.high), self.steps[-1])
