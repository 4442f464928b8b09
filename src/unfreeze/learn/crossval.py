"""fit(): photos and a recipe -> out-of-fold predictions, scores and heads in a run folder. Reads top to bottom."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core import runs
from unfreeze.core.errors import FoldError, listed
from unfreeze.core.files import write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, default_folder
from unfreeze.core.tables import Finding, Photos, probability_columns
from unfreeze.data.checks import run_checks
from unfreeze.data.folds import make_folds
from unfreeze.data.looks import Looks
from unfreeze.judge.metrics import confusion_matrix, macro_f1, out_of_fold_scores
from unfreeze.judge.paired import paired_difference
from unfreeze.learn.environment import environment
from unfreeze.learn.fitting import Work
from unfreeze.learn.probe.inputs import graphs_of
from unfreeze.learn.probe.probing import probe, split_at_random

Labels = NDArray[np.int64]
_HEADLINES = ("accuracy", "macro_f1", "log_loss")


def fit(
    photos: Photos,
    recipe: Recipe | None = None,
    run: str | Path | None = None,
    *,
    force: bool = False,
    compare_random: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    timings: dict[str, float] | None = None,
) -> Run:
    """Cross-validates the recipe on the photos and leaves a finished run folder.

    run: the folder; by default runs/<source>-<strategy>-<mark of the recipe>. An unfinished run of the same recipe
        is taken up where it was left.
    compare_random: also score a split photo by photo, to show what it would have promised.
    Raises RunError, FoldError, SourceError, BackboneError, EngineError or StorageError; each says what to do.
    """
    recipe, reporter = recipe or Recipe(), reporter or Reporter()
    started = time.perf_counter()
    spent = dict(timings or {})
    # What the recipe asks for must exist before any work is done for it.
    graphs_of(recipe)
    if recipe.strategy != "probe":
        from unfreeze.learn.train.tuned_folds import check_training

        check_training(recipe)
    folder = Path(run) if run else default_folder(recipe)
    source = recipe.source.path
    command = command or (f"unfreeze fit {source} --run {folder}" if source else f"uf.fit(photos, recipe, '{folder}')")
    runs.refuse(folder, recipe, force)
    with _clock(spent, "look"):
        photos, looks = run_checks(photos, int(recipe.image.max_megapixels * 1e6), reporter)
    with _clock(spent, "folds"):
        labels = _labels(photos)
        units = photos.table["unit"].to_numpy(np.int64)
        folds, findings = _folds(photos, looks, labels, units, recipe, by_group=recipe.folds.by_group)
        photos = photos.with_table(photos.table.assign(fold=folds), *findings)
        _tell(photos, reporter)
    with runs.begin(folder, recipe, photos, command, force):
        work = Work(photos, looks, labels, units, folds, recipe, folder, reporter, spent)
        if recipe.strategy == "probe":
            outcome, fitted = probe(work)
        else:
            from unfreeze.learn.train.tuned_folds import tune

            outcome, fitted = tune(work, started), None
        photos, folds, proba = work.photos, work.folds, outcome.proba
        inside = np.flatnonzero(folds >= 0)

        def judged(rows: Labels, probabilities: NDArray[np.float64], by: Labels = units) -> dict[str, Any]:
            return out_of_fold_scores(labels[rows], probabilities, by[rows], photos.classes, seed=recipe.seed)

        with work.clock("judge"):
            oof = judged(inside, proba[inside])
            scores: dict[str, Any] = {name: oof[name] for name in _HEADLINES}
            scores |= {"out_of_fold": oof, "folds": _fold_rows(work, proba, outcome.folds)}
            for name, other in outcome.beside.items():
                found = judged(inside, other[inside])
                scores.setdefault("beside", {})[name] = {key: found[key] for key in _HEADLINES}
            if "probe" in outcome.beside:
                before = outcome.beside["probe"][inside]
                scores["gain"] = paired_difference(
                    labels[inside], before, proba[inside], units[inside], seed=recipe.seed
                )
            held = work.tested()
            if len(held):
                test = np.full_like(proba, np.nan)
                test[held] = outcome.test
                runs.save_table(folder / "test.parquet", _predictions(photos, folds, test, held))
                scores["test"] = judged(held, outcome.test)
        if compare_random and fitted is None:
            reporter.say("--compare-random: the split photo by photo is shown for strategy probe only.")
        elif compare_random and fitted is not None:
            with work.clock("random split"):
                alone = np.arange(len(photos), dtype=np.int64)
                apart, _ = _folds(photos, looks, labels, alone, recipe, by_group=False)
                apart[folds < 0] = -1
                rows = np.flatnonzero(apart >= 0)
                found = judged(rows, split_at_random(work, fitted, apart)[rows], alone)
                scores["random_split"] = {key: found[key] for key in _HEADLINES}
        runs.save_table(folder / "photos.parquet", photos.table)
        runs.save_findings(folder, photos.findings)
        runs.save_table(folder / "oof.parquet", _predictions(photos, folds, proba, inside))
        write_json(folder / "scores.json", scores)
        write_json(folder / "environment.json", environment(recipe.seed, spent))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return runs.finish(folder, **outcome.info)


def _tell(photos: Photos, reporter: Reporter) -> None:
    """Says the findings above info, a few of each kind: all of them stand in findings.json and the report."""
    kinds: dict[str, list[Finding]] = {}
    for finding in photos.findings:
        if finding.severity != "info":
            kinds.setdefault(finding.check, []).append(finding)
    for some in kinds.values():
        for finding in some[:3]:
            where = f"{finding.path}: " if finding.path else ""
            reporter.say(f"Found ({finding.severity}): {where}{finding.message}.")
        if len(some) > 3:
            reporter.say(f"... and {len(some) - 3:,} more of this kind ({some[0].check}); `unfreeze check` lists them.")


def _labels(photos: Photos) -> Labels:
    number = {name: i for i, name in enumerate(photos.classes)}
    return np.array([number[name] for name in photos.table["label"]], np.int64)


def _folds(
    photos: Photos, looks: Looks, labels: Labels, units: Labels, recipe: Recipe, by_group: bool
) -> tuple[Labels, list[Finding]]:
    """Fold of each photo, -1 for test rows and photos that cannot be read."""
    inside = np.flatnonzero((photos.table["split"] == "train").to_numpy() & looks.readable)
    if not len(inside):
        raise FoldError("no training photo can be read; `unfreeze check` names the reasons.")
    present = np.unique(labels[inside])
    if len(present) < 2:
        raise FoldError(
            f"only class '{photos.classes[present[0]]}' has training photos that can be read; two are needed."
        )
    given = photos.table["group"].to_numpy()[inside]
    groups = (units[inside] if recipe.folds.join_duplicates else given) if by_group else inside
    found, findings = make_folds(labels[inside], groups, recipe.folds.count, recipe.seed, photos.classes)
    folds = np.full(len(photos), -1, np.int64)
    folds[inside] = found
    absent = [photos.classes[c] for c in sorted(set(range(len(photos.classes))) - set(present.tolist()))]
    if absent:
        findings.append(
            Finding(
                "class-without-photos",
                "warning",
                f"no training photo of {listed(absent)}: never predicted",
                "add some",
            )
        )
    return folds, findings


def _predictions(photos: Photos, folds: Labels, proba: NDArray[np.float64], rows: Labels) -> pd.DataFrame:
    table = photos.table.loc[rows, ["path", "label"]].assign(fold=folds[rows])[["path", "fold", "label"]]
    columns = pd.DataFrame(proba[rows], columns=probability_columns(photos.classes), index=table.index)
    return pd.concat([table, columns], axis=1).reset_index(drop=True)


def _fold_rows(work: Work, proba: NDArray[np.float64], beside: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for k, extra in enumerate(beside):
        rows = np.flatnonzero(work.folds == k)
        confusion = confusion_matrix(work.labels[rows], proba[rows].argmax(1), work.classes)
        out.append(
            {
                "fold": k,
                "photos": len(rows),
                "groups": len(np.unique(work.units[rows])),
                "accuracy": float(np.trace(confusion) / len(rows)),
                "macro_f1": float(macro_f1(confusion)),
                **extra,
            }
        )
    return out


@contextmanager
def _clock(spent: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[what] = round(time.perf_counter() - started, 3)
