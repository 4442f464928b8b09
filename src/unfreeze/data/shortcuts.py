"""Detection of shortcuts: file or lighting properties that predict the class.

A model can learn such a property instead of the object. Each property is tested alone with an out-of-fold naive Bayes
classifier and a permutation test over groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import F64
from unfreeze.core.dataset import Finding, ImageDataset, Severity
from unfreeze.data.check_registry import register
from unfreeze.data.scan import ImageScan

# A shortcut is raised if its skill (0: chance, 1: perfect) is at least STRONG and significant after correction for the
# number of properties. File properties are unrelated to the image content, so any raised one is a warning. Brightness
# and color can define the class (apples are red), so a warning requires twice the skill.
STRONG = 0.2
STRONG_IN_THE_PICTURE = 0.4
_OF_THE_FILE = ("size", "aspect", "bytes", "format", "mode", "orientation")
_FOLDS = 5
_BINS = 16
_RESAMPLES = 200
_PERMUTATIONS = 199
_LEAST_GROUPS = 20
_LEVEL = 0.05

I64 = NDArray[np.int64]

# Property -> function that returns its values, float64 (n, k).
PROPERTIES: dict[str, Callable[[ImageScan], F64]] = {
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
    """How well a single property predicts the class out of fold.

    Attributes:
        name: Name of the property.
        accuracy: Balanced accuracy.
        low: Lower end of the simultaneous confidence interval over all properties.
        high: Upper end of the interval.
        chance: 1 / number of classes.
        skill: (accuracy - chance) / (1 - chance).
        p_value: P-value of the permutation test of independence between property and class, adjusted for the number of
            properties.
        raised: Whether the shortcut is strong and significant.
    """

    name: str
    accuracy: float
    low: float
    high: float
    chance: float
    skill: float
    p_value: float
    raised: bool

    @property
    def severity(self) -> Severity:
        """Severity of the finding: "warning" for file properties and strong lighting properties, otherwise "info"."""
        return "warning" if self.name in _OF_THE_FILE or self.skill >= STRONG_IN_THE_PICTURE else "info"

    @property
    def title(self) -> str:
        """Name of the property in words."""
        return _NAMES.get(self.name, self.name)


def shortcuts(photos: ImageDataset, looks: ImageScan, seed: int = 0) -> list[Shortcut]:
    """Test every property that varies as a shortcut.

    For each property alone, a naive Bayes classifier on quantile bins with equal class priors is fitted on four fifths
    of the groups and predicts the remaining fifth. Only readable rows of the training split are used.

    For the test, the labels are permuted over groups 199 times and everything is refitted. The maximum standardized
    accuracy over the properties gives p-values that hold for all properties simultaneously (maxT of Westfall & Young
    1993). The interval is the accuracy plus or minus the 95% quantile of that maximum, times a standard deviation: the
    larger of the one over permutations and the one over 200 bootstrap samples of groups. The bootstrap alone is too
    narrow, because the training parts of all folds share one chance association (Bengio & Grandvalet 2004).

    Args:
        photos: The dataset. If its table has a column `unit`, it is used instead of `group`.
        looks: Scan of the same images.
        seed: Random seed.

    Returns:
        One entry per property in descending order of skill; empty if there are fewer than 20 groups or two classes.

    References:
        Westfall & Young, "Resampling-Based Multiple Testing", Wiley 1993.
        Bengio & Grandvalet, "No Unbiased Estimator of the Variance of K-Fold Cross-Validation", JMLR 5, 2004.
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
    if not values:
        return []
    binned = {name: _binned(v) for name, v in values.items()}
    accuracy, deviation = np.empty(len(values)), np.empty(len(values))
    for i, bins in enumerate(binned.values()):
        hit = _predicted(bins, label, fold, classes) == label
        right = np.bincount(group * classes + label, hit, groups * classes).reshape(groups, classes)
        there = np.bincount(group * classes + label, minlength=groups * classes).reshape(groups, classes)
        accuracy[i] = _balanced(right.sum(0), there.sum(0))
        deviation[i] = _balanced(weights @ right, weights @ there).std()
    null = np.empty((_PERMUTATIONS, len(values)))
    for j, permuted in enumerate(_permuted(label, group, _PERMUTATIONS, draws)):
        there = np.bincount(permuted, minlength=classes)
        for i, bins in enumerate(binned.values()):
            null[j, i] = _balanced(_hits(bins, permuted, fold, classes), there)
    center, spread = null.mean(0), np.maximum(null.std(0, ddof=1), 1e-9)
    largest = ((null - center) / spread).max(1)
    reached = (largest[:, None] >= ((accuracy - center) / spread)[None] - 1e-9).sum(0)
    p_values = (1 + reached) / (1 + _PERMUTATIONS)
    half = float(np.quantile(largest, 1 - _LEVEL)) * np.maximum(spread, deviation)
    chance = 1 / classes
    found = []
    for i, name in enumerate(values):
        skill = float((accuracy[i] - chance) / (1 - chance))
        raised = bool(p_values[i] <= _LEVEL and skill >= STRONG)
        low, high = max(0.0, float(accuracy[i] - half[i])), min(1.0, float(accuracy[i] + half[i]))
        found.append(Shortcut(name, float(accuracy[i]), low, high, chance, skill, float(p_values[i]), raised))
    return sorted(found, key=lambda s: -s.skill)


@register("shortcuts", slow=True)
def _shortcuts(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    return [
        Finding(
            "shortcuts",
            s.severity,
            f"{s.title} alone predicts the class better than chance: balanced accuracy {s.accuracy:.2f} "
            f"[{s.low:.2f}, {s.high:.2f}] out of fold, chance {s.chance:.2f}",
            "check whether new images will differ in it the same way; if not, make it equal between the classes "
            "(same camera, crop, encoder) or augment it away",
        )
        for s in shortcuts(photos, looks)
        if s.raised
    ]


_NAMES = {
    "size": "the size in pixels",
    "aspect": "the aspect ratio",
    "brightness": "brightness",
    "border": "the color of the border",
    "bytes": "the file's size in bytes",
    "format": "the file format",
    "mode": "color or gray, transparent or not,",
    "orientation": "the EXIF orientation",
}


def _columns(looks: ImageScan, name: str) -> F64:
    return looks.measures[name].astype(float)[:, None]


def _binned(values: F64) -> list[tuple[I64, int]]:
    """Unsupervised quantile bins: for each column the bin of each image, int64 (n,), and the number of bins."""
    found = []
    for column in values.T:
        edges = np.unique(np.quantile(column, np.linspace(0, 1, _BINS + 1)[1:-1]))
        # Searching from both sides gives frequent values (one size, one format) that equal an edge a bin of their own.
        bins = np.searchsorted(edges, column, "left") + np.searchsorted(edges, column, "right")
        found.append((bins.astype(np.int64), 2 * len(edges) + 1))
    return found


def _log_shares(bins: I64, width: int, label: I64, fold: I64, classes: int) -> tuple[F64, F64]:
    """Log bin probabilities of one column and bin counts, float64 (folds, classes, bins) each.

    The probabilities of a fold are estimated on the other folds, with add-0.5 smoothing.
    """
    cells = (fold * classes + label) * width + bins
    counts = np.bincount(cells, minlength=_FOLDS * classes * width).reshape(_FOLDS, classes, width).astype(np.float64)
    learned = counts.sum(0) - counts
    logs = np.log((learned + 0.5) / (learned + 0.5).sum(2, keepdims=True))
    logs[learned.sum(2) == 0] = -np.inf  # never predict a class that is absent from the training folds
    return logs, counts


def _predicted(columns: list[tuple[I64, int]], label: I64, fold: I64, classes: int) -> I64:
    """Out-of-fold naive Bayes prediction of each image, int64 (n,)."""
    logits = np.zeros((len(label), classes))
    for bins, width in columns:
        logs, _ = _log_shares(bins, width, label, fold, classes)
        logits += logs.transpose(0, 2, 1).reshape(-1, classes)[fold * width + bins]
    return logits.argmax(1)


def _hits(columns: list[tuple[I64, int]], label: I64, fold: I64, classes: int) -> F64:
    """Number of correct out-of-fold predictions per class, float64 (classes,)."""
    if len(columns) > 1:
        return np.asarray(np.bincount(label, _predicted(columns, label, fold, classes) == label, classes), np.float64)
    # With one column, all images of a bin in a fold get the same prediction, so the counts are sufficient.
    logs, counts = _log_shares(*columns[0], label, fold, classes)
    best = logs.argmax(1)[:, None]
    own = np.take_along_axis(counts, best, 1)[:, 0]
    return np.asarray(np.bincount(best.ravel(), own.ravel(), classes), np.float64)


def _permuted(label: I64, group: I64, times: int, draws: np.random.Generator) -> Iterator[I64]:
    """Yield labels permuted over groups, int64 (n,) each.

    Each group receives the labels of another group in random order: repeated if it is larger than that group, a random
    subset if it is smaller.
    """
    n = len(label)
    by_group = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    start = np.cumsum(sizes) - sizes
    place = np.arange(n) - np.repeat(start, sizes)  # position of each row of `by_group` within its group
    for _ in range(times):
        source = draws.permutation(len(sizes))
        shuffled = by_group[np.lexsort((draws.random(n), group[by_group]))]
        out = np.empty(n, np.int64)
        given = source[np.repeat(np.arange(len(sizes)), sizes)]
        out[by_group] = label[shuffled[start[given] + place % sizes[given]]]
        yield out


def _balanced(right: NDArray[Any], there: NDArray[Any]) -> F64:
    """Mean recall over the classes that occur, along the last axis."""
    recall = np.divide(right, there, out=np.zeros_like(right, float), where=there > 0)
    return recall.sum(-1) / np.maximum((there > 0).sum(-1), 1)
