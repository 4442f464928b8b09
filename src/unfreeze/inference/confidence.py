"""Empirical accuracy of predictions by confidence, from out-of-fold predictions.

Images are binned by their top probability, and each bin records the share of correct predictions with its interval.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.dataset import probability_columns
from unfreeze.core.format import format_percent
from unfreeze.inference.ensemble import Ensemble
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.bootstrap import bootstrap_group_sums, group_ids, interval
from unfreeze.metrics.ensembling import weighted_mean

# Minimum images per bin and maximum number of bins: fewer images are not informative, more bins add nothing.
_LEAST, _STEPS, _RESAMPLES = 50, 10, 500
# Share of correct predictions for each word. The lower end of the interval decides, so that a few images do not make a
# prediction "very sure".
_WORDS = ((0.95, "very sure"), (0.85, "sure"), (0.7, "fairly sure"), (0.5, "unsure"), (0.0, "a guess"))
UNKNOWN = "unknown"
"""Word for a probability below all out-of-fold predictions, where nothing was measured."""


@dataclass(frozen=True)
class ConfidenceBin:
    """Out-of-fold images whose top probability lies in an interval.

    Below all out-of-fold probabilities, `of` is 0, and `right`, `least` and `most` are None.

    Attributes:
        low: Lowest top probability of the bin.
        high: Highest top probability of the bin.
        right: Share of correct predictions.
        least: Lower end of its 95% interval over groups.
        most: Upper end of its 95% interval over groups.
        of: Number of images.
        word: Verbal rating of the lower end of the interval.
        text: Description of the share, as part of a sentence.
    """

    low: float
    high: float
    right: float | None
    least: float | None
    most: float | None
    of: int
    word: str
    text: str

    def describe(self) -> str:
        """Description, for example `of 412 images with a similar probability, 87% were correct`."""
        return self.text


@dataclass(frozen=True)
class ConfidenceTable:
    """Bins of top probability in ascending order."""

    steps: tuple[ConfidenceBin, ...]

    @classmethod
    def of(cls, source: Classifier | Ensemble) -> ConfidenceTable:
        """Build the table from the out-of-fold predictions of a run, or of a weighted ensemble."""
        if isinstance(source, Ensemble):
            own = source.out_of_fold
            return cls.learnt(weighted_mean(own.probas, source.weights), own.truth, own.groups)
        run = source.run
        oof = run.predictions()
        # Groups with near duplicates joined.
        groups = run.photos().set_index("path")["unit"].reindex(oof["path"]).to_numpy()
        number = {name: i for i, name in enumerate(run.classes)}
        truth = np.array([number[label] for label in oof["label"]], np.int64)
        return cls.learnt(oof[probability_columns(run.classes)].to_numpy(np.float64), truth, groups)

    @classmethod
    def learnt(cls, proba: NDArray[np.float64], truth: NDArray[np.int64], groups: NDArray[Any]) -> ConfidenceTable:
        """Build the table from predictions. Bins have about equal size, with at least 50 images if possible.

        Args:
            proba: float64 (n, C), out-of-fold probabilities.
            truth: int64 (n,), class indices.
            groups: (n,), groups for resampling.
        """
        best = proba.max(1)
        right = (proba.argmax(1) == truth).astype(np.float64)
        order = np.argsort(best, kind="stable")
        cuts = np.linspace(0, len(order), min(_STEPS, max(1, len(order) // _LEAST)) + 1).astype(int)
        step = np.empty(len(order), np.int64)
        for number, (start, end) in enumerate(pairwise(cuts)):
            step[order[start:end]] = number
        count = len(cuts) - 1
        member, _ = group_ids(groups)
        hits, photos = bootstrap_group_sums(member, [(step, right, count), (step, None, count)], _RESAMPLES, 0)
        steps = []
        for number, (start, end) in enumerate(pairwise(cuts)):
            rows = order[start:end]
            with np.errstate(invalid="ignore"):
                samples = hits[:, number] / photos[:, number]
            share = interval(float(right[rows].mean()), samples)
            ends = float(best[rows[0]]), float(best[rows[-1]])
            which = (
                f"of {len(rows):,} images with a similar probability" if count > 1 else f"of all {len(rows):,} images"
            )
            text = f"{which}, {format_percent(share['value'])} were correct"
            right_share, least, most = share["value"], share["low"], share["high"]
            if right_share == 1:  # the bootstrap has no variance here: Clopper-Pearson bound with one trial per group
                least = float(0.025 ** (1 / len(np.unique(member[rows]))))
            steps.append(ConfidenceBin(*ends, right_share, least, most, len(rows), _word(least), text))
        return cls(tuple(steps))

    def meaning(self, probability: float) -> ConfidenceBin:
        """Look up the bin of a top probability.

        Above all out-of-fold probabilities, the last bin is returned with an adapted text. Below all of them, nothing
        was measured and the word is `UNKNOWN`. A single bin averages over all probabilities, so that its word is
        limited by the probability itself.
        """
        first, last = self.steps[0], self.steps[-1]
        if probability < first.low:
            text = f"no out-of-fold prediction had a probability this low; the lowest was {first.low:.3f}"
            return ConfidenceBin(0.0, first.low, None, None, None, 0, UNKNOWN, text)
        found = next((step for step in self.steps if probability <= step.high), last)
        assert found.right is not None
        if probability > last.high:
            text = (
                f"of the {found.of:,} images with the highest probability, {format_percent(found.right)} were correct"
            )
            found = replace(found, text=f"no out-of-fold prediction had a probability this high; {text}")
        if len(self.steps) == 1:
            found = replace(found, word=_word(min(found.least or 0.0, probability)))
        return found


def _word(share: float) -> str:
    return next(word for least, word in _WORDS if share >= least)
