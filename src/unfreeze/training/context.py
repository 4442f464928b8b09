"""Input and output types shared by all training strategies.

`FitContext` is what a strategy receives, `StrategyResult` is what it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import FoldError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.data.scan import ImageScan
from unfreeze.features.extra_samples import ExtraSamples, select_extra_samples
from unfreeze.metrics.classification import Tally


@dataclass
class FitContext:
    """Data set with folds, ready for training.

    Attributes:
        photos: The dataset.
        looks: The scan of the images.
        labels: int64 (n,), class of each image.
        units: int64 (n,), group of each image.
        folds: int64 (n,), fold of each image; -1 for rows that are not used.
        recipe: The recipe.
        folder: Folder of the run.
        reporter: Progress reporter.
        spent: Seconds per stage, filled during the run.
        failed: Images that could not be read after the scan: row -> reason.
        squares: float64 (n, 4), crop box around each image's face if the recipe uses face crops.
        which: Folds to train and predict; None means all.
        trial: Whether this is an evaluation within the training data, which does not use the test split.
    """

    photos: ImageDataset
    looks: ImageScan
    labels: Rows
    units: Rows
    folds: Rows
    recipe: Recipe
    folder: Path
    reporter: Reporter
    spent: dict[str, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    squares: NDArray[np.float64] | None = None
    which: tuple[int, ...] | None = None
    trial: bool = False

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.photos.classes)

    @property
    def todo(self) -> tuple[int, ...]:
        """Folds to train and predict."""
        return tuple(range(self.recipe.folds.n_splits)) if self.which is None else self.which

    @property
    def involved(self) -> NDArray[np.bool_]:
        """bool (n,): readable images that are used for training, out-of-fold predictions or testing."""
        involved = self.usable & (self.folds >= 0)
        involved[self.tested()] = True
        return involved

    @property
    def usable(self) -> NDArray[np.bool_]:
        """bool (n,): images that can be read."""
        usable = self.looks.readable.copy()
        usable[list(self.failed)] = False
        return usable

    def tested(self) -> Rows:
        """Return the readable rows of a predefined test split; empty for a trial."""
        if self.trial:
            return np.zeros(0, np.int64)
        return np.flatnonzero((self.photos.table["split"] == "test").to_numpy() & self.usable)

    def identity(self) -> str:
        """Return a hash of the images' contents, order and folds."""
        return stable_hash([[h, int(f)] for h, f in zip(self.photos.table["hash"], self.folds, strict=True)])

    def leave_out(self, failed: dict[int, str]) -> None:
        """Remove images that failed after the scan from their folds and add a finding for each.

        Args:
            failed: Row -> reason.

        Raises:
            FoldError: If a fold becomes empty.
        """
        new = {i: why for i, why in failed.items() if i not in self.failed}
        if not new:
            return
        self.failed |= new
        before, self.folds = self.folds, self.folds.copy()
        self.folds[list(new)] = -1
        if len(np.unique(self.folds[self.folds >= 0])) < len(np.unique(before[before >= 0])):
            why = next(iter(new.values()))
            raise FoldError(f"no image of a fold can be read any longer ({why}); run the same command again.")
        paths, todo = self.photos.table["path"], "repair or remove the file; it is left out of training"
        findings = [Finding("unreadable", "warning", why, todo, str(paths[i])) for i, why in new.items()]
        for finding in findings[:3]:
            self.reporter.say(f"Found (warning): {finding.path}: {finding.message}; it is left out.")
        self.photos = self.photos.with_table(self.photos.table.assign(fold=self.folds), *findings)

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the duration of the block, in seconds, to the time of the stage `what`."""
        started = perf_counter()
        yield
        self.spent[what] = round(self.spent.get(what, 0.0) + perf_counter() - started, 3)


def added_rows(work: FitContext) -> ExtraSamples:
    """Return the extra samples that the recipe adds to these images."""
    keys = work.looks.keys
    return select_extra_samples(work.recipe, work.photos.classes, work.labels, work.units, work.folds, keys)


@dataclass(frozen=True)
class StrategyResult:
    """Result of a training strategy.

    Attributes:
        proba: float64 (n, C) out-of-fold probabilities; NaN for rows without a fold.
        test: float64 (n_test, C) probabilities for `FitContext.tested()`, averaged over the trained folds.
        folds: Fold -> extra columns of scores.json.
        info: What run.json must contain for prediction.
        components: Name -> other out-of-fold probabilities to be scored, such as those of the probe.
        inner: Fold -> how the inner models of the probe predict it, individually and averaged.
    """

    proba: NDArray[np.float64]
    test: NDArray[np.float64]
    folds: dict[int, dict[str, Any]]
    info: dict[str, Any]
    components: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    inner: dict[int, Tally] = field(default_factory=dict)
