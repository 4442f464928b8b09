"""Weighted ensembles of several runs, with weights selected on their out-of-fold predictions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import RunError, SourceError, join_names, wrong_type
from unfreeze.core.messages import Brief
from unfreeze.core.names import positions
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, as_run
from unfreeze.data.list_images import Images, Listing, collected
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.ensembling import greedy_ensemble_weights, weighted_mean

# Minimum number of images that all runs must have predicted out of fold.
LEAST = 20


@dataclass(frozen=True)
class AlignedPredictions:
    """Out-of-fold predictions of several runs for their common images.

    Attributes:
        classes: Class names in the order of the first run.
        table: Columns path, fold (of the first run) and label.
        truth: int64 (n,), class indices.
        units: int64 (n,), groups with near duplicates joined, of the first run.
        groups: object (n,), group names, of the first run.
        probas: For each run float64 (n, C), in the class order of the first run.
    """

    classes: tuple[str, ...]
    table: pd.DataFrame
    truth: NDArray[np.int64]
    units: NDArray[np.int64]
    groups: NDArray[np.object_]
    probas: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> AlignedPredictions:
        """Align the out-of-fold predictions of runs.

        Raises:
            RunError: If classes or labels differ, or there are too few common images.
        """
        first = runs[0]
        columns = probability_columns(first.classes)
        tables = list[pd.DataFrame]()
        for run in runs:
            if set(run.classes) != set(first.classes):
                odd = sorted(set(run.classes) ^ set(first.classes))
                raise RunError(
                    f"{run.path}: its classes are not those of {first.path} (only one of them has {join_names(odd)}); "
                    "runs are blended over the same classes."
                )
            about = run.photos().set_index("path")["hash"]
            oof = run.predictions().set_index("path")
            oof = oof.assign(hash=about.reindex(oof.index))
            if tables:  # align to the paths of the first run, which may use another Unicode form
                known = tables[0].index.tolist()
                at = positions(oof.index, known, one_to_one=True)
                oof.index = pd.Index([known[i] if i >= 0 else path for i, path in zip(at, oof.index, strict=True)])
            tables.append(oof)
        paths = [p for p in tables[0].index if all(p in t.index for t in tables[1:])]
        if len(paths) < LEAST:
            raise RunError(
                f"{first.path}: has {len(paths):,} photos in common with "
                f"{join_names([str(r.path) for r in runs[1:]])}; "
                f"weights are chosen on the photos that all runs have predicted out of fold, at least {LEAST}."
            )
        base = tables[0].loc[paths]
        for run, table in zip(runs[1:], tables[1:], strict=True):
            other = table.loc[paths]
            wrong = (other["hash"] != base["hash"]) | (other["label"] != base["label"])
            if wrong.any():
                raise RunError(
                    f"{run.path}: {int(wrong.sum()):,} of its photos have another label or content than in "
                    f"{first.path} (first: {paths[int(np.argmax(wrong))]}); fit both on the same photos."
                )
        photos = first.photos().set_index("path").loc[paths]
        number = {name: i for i, name in enumerate(first.classes)}
        truth = np.array([number[label] for label in base["label"]], np.int64)
        return cls(
            first.classes,
            base[["fold", "label"]].reset_index(),
            truth,
            photos["unit"].to_numpy(np.int64),
            photos["group"].to_numpy(object),
            tuple(t.loc[paths, columns].to_numpy(np.float64) for t in tables),
        )

    def weights(self) -> NDArray[np.float64]:
        """Ensemble weights selected on all of these images, for the prediction of new images."""
        return greedy_ensemble_weights(self.truth, self.probas)

    def as_table(self, proba: NDArray[np.float64]) -> pd.DataFrame:
        """Table of the images with these probabilities: path, fold, label, p_<class>."""
        return pd.concat([self.table, pd.DataFrame(proba, columns=probability_columns(self.classes))], axis=1)


@dataclass(frozen=True, repr=False)
class Ensemble(Brief):
    """Weighted ensemble of finished runs, with the interface of `Classifier`.

    Attributes:
        classifiers: The runs' classifiers.
        weights: float64 (m,), sum 1. Runs of weight 0 are skipped.
        out_of_fold: Out-of-fold predictions that the weights were selected on.
    """

    classifiers: tuple[Classifier, ...]
    weights: NDArray[np.float64]
    out_of_fold: AlignedPredictions

    def _brief(self) -> str:
        return self.describe()

    @classmethod
    def load(cls, runs: Sequence[str | Path | Run]) -> Ensemble:
        """Load an ensemble of at least two runs.

        Raises:
            RunError: As raised by `Classifier.load` and `AlignedPredictions.of`, or for repeated runs.
        """
        opened = [as_run(run) for run in runs]
        if len(opened) < 2 or len({run.path.resolve() for run in opened}) < len(opened):
            raise RunError(
                f"{join_names([str(r.path) for r in opened])}: a blend needs two runs or more, each named once."
            )
        together = AlignedPredictions.of(opened)
        return cls(tuple(Classifier.load(run) for run in opened), together.weights(), together)

    @property
    def run(self) -> Run:
        """The first run, which defines the classes and answers of the ensemble."""
        return self.classifiers[0].run

    def describe(self) -> str:
        """Names of the run folders with their weights, for example `a 0.60, b 0.40`."""
        pairs = zip(self.classifiers, self.weights, strict=True)
        return ", ".join(f"{c.run.path.name} {weight:.2f}" for c, weight in pairs)

    def predict(
        self,
        images: Images | Listing,
        *,
        tta: str | None = None,
        groups: Sequence[Any] | None = None,
        reporter: Reporter | None = None,
    ) -> pd.DataFrame:
        """Predict images like `Classifier.predict`, with the classes in the order of the first run.

        An image that one of the runs cannot read has an error.
        """
        with collected(images) as listing:  # collected once: generators and file objects can be consumed only once
            table = self._predict(listing, tta, reporter)
        if groups is None:
            return table
        from unfreeze.inference.group_voting import Vote

        own = self.out_of_fold
        oof = own.as_table(weighted_mean(own.probas, self.weights))
        return Vote.learnt(self.run, oof).apply(table, groups)

    def _predict(self, listing: Listing, tta: str | None, reporter: Reporter | None) -> pd.DataFrame:
        columns = probability_columns(self.run.classes)
        found: pd.DataFrame | None = None
        probas, weights = [], []
        for classifier, weight in zip(self.classifiers, self.weights, strict=True):
            if not weight:
                continue
            table = classifier.predict(listing, tta=tta, reporter=reporter)
            probas.append(table[columns].to_numpy(np.float64))
            weights.append(weight)
            if found is None:
                found = table
            else:
                found["error"] = found["error"].where(found["error"] != "", table["error"])
        assert found is not None
        proba = weighted_mean(probas, np.array(weights))
        good = (found["error"] == "").to_numpy()
        proba[~good] = np.nan
        best = np.nan_to_num(proba, nan=-1).argmax(1)
        labels = [self.run.classes[i] if ok else None for i, ok in zip(best, good, strict=True)]
        head = pd.DataFrame({"path": found["path"], "label": pd.Series(labels, dtype=object)})
        return pd.concat([head, pd.DataFrame(proba, columns=columns), found["error"]], axis=1)


def parse_run_spec(text: str | Path) -> list[Path]:
    """Split `runs/a+runs/b` into paths. An existing folder whose name contains a plus sign is not split.

    Raises:
        SourceError: If a part is empty.
    """
    whole = Path(text)
    if whole.exists() or "+" not in str(text):
        return [whole]
    parts = [part.strip() for part in str(text).split("+")]
    if not all(parts):
        raise SourceError(f"{text}: name runs as RUN+RUN, one or more on each side of the plus.")
    return [Path(part) for part in parts]


def every_run(run: str | Path | Run | Sequence[str | Path | Run]) -> list[str | Path | Run]:
    """List the runs given as one run, "RUN+RUN" or a list.

    Raises:
        ArgumentTypeError: For any other type.
    """
    if isinstance(run, Run):
        return [run]
    if isinstance(run, str | os.PathLike):
        return [*parse_run_spec(run)]
    if not isinstance(run, list | tuple) or not run:
        raise wrong_type("run", run, "a finished Run, the path of its folder, or a list of several")
    return [*run]


def load(run: str | Path | Run | Sequence[str | Path | Run]) -> Classifier | Ensemble:
    """Load the classifier of a finished run; for several runs, or "RUN+RUN", their ensemble."""
    runs = every_run(run)
    return Classifier.load(runs[0]) if len(runs) == 1 else Ensemble.load(runs)
