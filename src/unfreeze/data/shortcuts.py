"""Shortcuts: a property of the file or of the light that tells the class, so that a model need not look closer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.tables import Finding, Photos, Severity
from unfreeze.data.looks import Looks
from unfreeze.data.registry import register

# Raised only if skill (0 is chance, 1 is all right) is at least this, and the interval that is corrected for the
# number of properties lies above chance. How a photo is stored says nothing of what it shows, so that even a little
# is a warning; its light and colours may be what the class is (apples are red), so that it takes twice as much.
STRONG = 0.2
STRONG_IN_THE_PICTURE = 0.4
_OF_THE_FILE = ("size", "aspect", "bytes", "format", "mode", "orientation")
_FOLDS = 5
_BINS = 16
_RESAMPLES = 200
_LEAST_GROUPS = 20
_LEVEL = 0.05

# Property -> columns of a photo's measures, float64 (n, k).
PROPERTIES: dict[str, Callable[[Looks], NDArray[np.float64]]] = {
    "size": lambda looks: np.stack([looks.width, looks.height], 1).astype(float),
    "aspect": lambda looks: (looks.width / np.maximum(looks.height, 1)).astype(float)[:, None],
    "brightness": lambda looks: _columns(looks, "brightness"),
    "contrast": lambda looks: _columns(looks, "contrast"),
    "sharpness": lambda looks: _columns(looks, "sharpness"),
    "colourfulness": lambda looks: _columns(looks, "colourfulness"),
    "border": lambda looks: np.column_stack([looks.measures["border"], looks.measures["border_spread"]]).astype(float),
    "bytes": lambda looks: _columns(looks, "bytes"),
    "format": lambda looks: np.unique(looks.measures["format"], return_inverse=True)[1].reshape(-1, 1).astype(float),
    "mode": lambda looks: np.unique(looks.measures["mode"], return_inverse=True)[1].reshape(-1, 1).astype(float),
    "orientation": lambda looks: _columns(looks, "orientation"),
}


@dataclass(frozen=True)
class Shortcut:
    """How far one property tells the class out of fold.

    accuracy: balanced accuracy, with `low` and `high`, an interval that holds for all properties at once.
    chance: 1 / classes. skill: (accuracy - chance) / (1 - chance). raised: strong and surely above chance. severity:
    of the finding, if raised.
    """

    name: str
    accuracy: float
    low: float
    high: float
    chance: float
    skill: float
    raised: bool

    @property
    def severity(self) -> Severity:
        """A warning where the file tells the class, or the picture's light does so strongly; else info."""
        return "warning" if self.name in _OF_THE_FILE or self.skill >= STRONG_IN_THE_PICTURE else "info"

    @property
    def title(self) -> str:
        """What people call the property."""
        return _NAMES.get(self.name, self.name)


def shortcuts(photos: Photos, looks: Looks, seed: int = 0) -> list[Shortcut]:
    """Every property that varies, the strongest first; empty where groups are too few to tell.

    For each property alone, a naive Bayes over quantile bins with equal class priors is fitted on four fifths of the
    groups and asked about the last. Interval: normal, its deviation from 200 bootstrap draws of groups, at the level
    .05 divided by the number of properties (Bonferroni). Rows of the training split that could be read count.
    """
    inside = np.flatnonzero((photos.table["split"] == "train").to_numpy() & looks.readable)
    label = pd.Categorical(photos.table["label"].iloc[inside]).codes.astype(np.int64)
    units = (
        photos.table["unit"].to_numpy()[inside]
        if "unit" in photos.table
        else pd.factorize(photos.table["group"])[0][inside]
    )
    group = np.unique(units, return_inverse=True)[1]
    groups, classes = int(group.max(initial=-1)) + 1, int(label.max(initial=-1)) + 1
    if groups < _LEAST_GROUPS or classes < 2:
        return []
    draws = np.random.default_rng(seed)
    fold = draws.permutation(np.arange(groups) % _FOLDS)[group]
    weights = draws.multinomial(groups, np.full(groups, 1 / groups), _RESAMPLES)
    values = {name: read(looks)[inside] for name, read in PROPERTIES.items()}
    values = {name: v for name, v in values.items() if (v != v[:1]).any()}
    z = NormalDist().inv_cdf(1 - _LEVEL / (2 * max(len(values), 1)))
    chance, found = 1 / classes, []
    for name, v in values.items():
        hit = _out_of_fold(v, label, fold, classes) == label
        right, there = np.zeros((groups, classes)), np.zeros((groups, classes))
        np.add.at(right, (group, label), hit)
        np.add.at(there, (group, label), 1)
        accuracy = float(_balanced(right.sum(0), there.sum(0)))
        deviation = float(_balanced(weights @ right, weights @ there).std())
        low, high = max(0.0, accuracy - z * deviation), min(1.0, accuracy + z * deviation)
        skill = (accuracy - chance) / (1 - chance)
        found.append(Shortcut(name, float(accuracy), low, high, chance, float(skill), low > chance and skill >= STRONG))
    return sorted(found, key=lambda s: -s.skill)


@register("shortcuts", slow=True)
def _shortcuts(photos: Photos, looks: Looks) -> list[Finding]:
    return [
        Finding(
            "shortcuts",
            s.severity,
            f"{s.title} alone tells the class: balanced accuracy {s.accuracy:.2f} "
            f"({s.low:.2f} to {s.high:.2f}) out of fold, where chance has {s.chance:.2f}",
            "look whether new photos will differ in it the same way; if not, make it equal between the classes "
            "(same camera, crop, encoder) or augment it away",
        )
        for s in shortcuts(photos, looks)
        if s.raised
    ]


_NAMES = {
    "size": "the size in pixels",
    "aspect": "the aspect ratio",
    "brightness": "brightness",
    "border": "the colour of the border",
    "bytes": "the file's size in bytes",
    "format": "the file format",
    "mode": "colour or grey, transparent or not,",
    "orientation": "the EXIF orientation",
}


def _columns(looks: Looks, name: str) -> NDArray[np.float64]:
    return looks.measures[name].astype(float)[:, None]


def _out_of_fold(
    values: NDArray[np.float64], label: NDArray[np.int64], fold: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """The class that naive Bayes of the other folds gives each photo, int64 (n,)."""
    said = np.zeros(len(label), np.int64)
    for f in range(_FOLDS):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        logits = np.zeros((len(test), classes))
        for column in values.T:
            edges = np.unique(np.quantile(column[train], np.linspace(0, 1, _BINS + 1)[1:-1]))
            # Values that many photos share (one size, one format) get a bin of their own, up to the edge and above it.
            bins = np.searchsorted(edges, column, "left") + np.searchsorted(edges, column, "right")
            counts = np.zeros((classes, 2 * len(edges) + 1))
            np.add.at(counts, (label[train], bins[train]), 1)
            share = (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)
            logits += np.log(share[:, bins[test]]).T
        seen = np.bincount(label[train], minlength=classes) > 0
        said[test] = np.where(seen, logits, -np.inf).argmax(1)
    return said


def _balanced(right: NDArray[np.float64], there: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean recall over the classes that are there, along the last axis."""
    recall = np.divide(right, there, out=np.zeros_like(right, float), where=there > 0)
    return recall.sum(-1) / np.maximum((there > 0).sum(-1), 1)
