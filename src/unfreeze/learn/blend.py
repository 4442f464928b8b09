"""Several runs that answer together, each by a weight that their out-of-fold predictions have chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import RunError, SourceError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.judge.selection import blended, greedy_weights
from unfreeze.learn.classifier import Classifier

# Weights need photos that every run has predicted out of fold.
LEAST = 20


@dataclass(frozen=True)
class OutOfFold:
    """What several runs predict of the photos that all of them have, out of fold.

    table: path, fold (of the first run), label. truth: int64 (n,). units, groups: (n,), of the first run.
    probas: float64 (n, C) a run, in the first run's class order, `classes`.
    """

    classes: tuple[str, ...]
    table: pd.DataFrame
    truth: NDArray[np.int64]
    units: NDArray[np.int64]
    groups: NDArray[np.object_]
    probas: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> OutOfFold:
        """RunError where the runs have other classes, other labels, or too few photos in common."""
        first = runs[0]
        columns = probability_columns(first.classes)
        tables = []
        for run in runs:
            if set(run.classes) != set(first.classes):
                odd = sorted(set(run.classes) ^ set(first.classes))
                raise RunError(
                    f"{run.path}: its classes are not those of {first.path} (only one of them has {listed(odd)}); "
                    "runs are blended over the same classes."
                )
            about = run.photos().set_index("path")["hash"]
            oof = run.predictions().set_index("path")
            tables.append(oof.assign(hash=about.reindex(oof.index)))
        paths = [p for p in tables[0].index if all(p in t.index for t in tables[1:])]
        if len(paths) < LEAST:
            raise RunError(
                f"{first.path}: has {len(paths):,} photos in common with {listed([str(r.path) for r in runs[1:]])}; "
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
        """The runs' weights, chosen on all of these photos: those a blend predicts new photos with."""
        return greedy_weights(self.truth, self.probas)

    def as_table(self, proba: NDArray[np.float64]) -> pd.DataFrame:
        """The photos with these probabilities: path, fold, label, p_<class>."""
        return pd.concat([self.table, pd.DataFrame(proba, columns=probability_columns(self.classes))], axis=1)


@dataclass(frozen=True)
class Blend:
    """Finished runs that answer together; predicts as a `Classifier` does.

    weights: float64 (m,), sum 1. A run of weight 0 is not asked.
    """

    classifiers: tuple[Classifier, ...]
    weights: NDArray[np.float64]
    out_of_fold: OutOfFold

    @classmethod
    def load(cls, runs: Sequence[str | Path | Run]) -> Blend:
        """From two runs or more. RunError as `Classifier.load` and `OutOfFold.of`."""
        opened = [run if isinstance(run, Run) else open_run(run) for run in runs]
        if len(opened) < 2 or len({run.path.resolve() for run in opened}) < len(opened):
            raise RunError(f"{listed([str(r.path) for r in opened])}: a blend needs two runs or more, each named once.")
        together = OutOfFold.of(opened)
        return cls(tuple(Classifier.load(run) for run in opened), together.weights(), together)

    @property
    def run(self) -> Run:
        """The first run: its classes and answers are the blend's."""
        return self.classifiers[0].run

    def told(self) -> str:
        """`a: .6, b: .4`, by the names of the runs' folders."""
        pairs = zip(self.classifiers, self.weights, strict=True)
        return ", ".join(f"{c.run.path.name} {weight:.2f}" for c, weight in pairs)

    def predict(
        self,
        images: str | Path | Sequence[str | Path] | pd.DataFrame,
        *,
        tta: str | None = None,
        groups: Sequence[Any] | None = None,
        reporter: Reporter | None = None,
    ) -> pd.DataFrame:
        """As `Classifier.predict`; classes in the first run's order. A photo that one run cannot read has an error."""
        columns = probability_columns(self.run.classes)
        found: pd.DataFrame | None = None
        probas, weights = [], []
        for classifier, weight in zip(self.classifiers, self.weights, strict=True):
            if not weight:
                continue
            table = classifier.predict(images, tta=tta, reporter=reporter)
            probas.append(table[columns].to_numpy(np.float64))
            weights.append(weight)
            if found is None:
                found = table
            else:
                found["error"] = found["error"].where(found["error"] != "", table["error"])
        assert found is not None
        proba = blended(probas, np.array(weights))
        good = (found["error"] == "").to_numpy()
        proba[~good] = np.nan
        best = np.nan_to_num(proba, nan=-1).argmax(1)
        labels = [self.run.classes[i] if ok else None for i, ok in zip(best, good, strict=True)]
        head = pd.DataFrame({"path": found["path"], "label": labels})
        told = pd.concat([head, pd.DataFrame(proba, columns=columns), found["error"]], axis=1)
        if groups is None:
            return told
        from unfreeze.learn.voting import Vote

        own = self.out_of_fold
        oof = own.as_table(blended(own.probas, self.weights))
        return Vote.learnt(self.run, oof).apply(told, groups)


def named_runs(text: str | Path) -> list[Path]:
    """`runs/a+runs/b` -> both folders; a folder whose own name has a plus is taken as it is."""
    whole = Path(text)
    if whole.exists() or "+" not in str(text):
        return [whole]
    parts = [part.strip() for part in str(text).split("+")]
    if not all(parts):
        raise SourceError(f"{text}: name runs as RUN+RUN, one or more on each side of the plus.")
    return [Path(part) for part in parts]


def load(run: str | Path | Run | Sequence[str | Path | Run]) -> Classifier | Blend:
    """The classifier that a finished run left behind; of several runs, or `"RUN+RUN"`, their blend."""
    if isinstance(run, Run):
        return Classifier.load(run)
    runs = named_runs(run) if isinstance(run, str | Path) else list(run)
    return Classifier.load(runs[0]) if len(runs) == 1 else Blend.load(runs)
