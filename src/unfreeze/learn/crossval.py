"""fit(): photos and a recipe -> out-of-fold predictions, scores and heads in a run folder. Reads top to bottom."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core import runs
from unfreeze.core.attributes import parts_of
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
from unfreeze.judge.parts import part_scores
from unfreeze.learn.balance import check_balance
from unfreeze.learn.environment import environment
from unfreeze.learn.fitting import Work, added_rows
from unfreeze.learn.members import Choose, check_strategy, learn
from unfreeze.learn.probe.inputs import graphs_of
from unfreeze.learn.probe.parts import check_labels, unseen_findings
from unfreeze.learn.probe.probing import split_at_random
from unfreeze.learn.sight import check_detector, squares_of, wants_faces
from unfreeze.learn.verdicts import effect, obey

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
    choose: Choose | None = None,
    begun: Work | None = None,
) -> Run:
    """Cross-validates the recipe on the photos and leaves a finished run folder.

    run: the folder; by default runs/<source>-<strategy>-<mark of the recipe>. An unfinished run of the same recipe
        is taken up where it was left.
    choose: what strategy auto asks for each fold's recipe; `unfreeze.fit` gives it (study.auto).
    compare_random: also score a split photo by photo, to show what it would have promised.
    begun: as of `prepare`.
    Raises RunError, FoldError, SourceError, BackboneError, EngineError or StorageError; each says what to do.
    """
    recipe, reporter = recipe or Recipe(), reporter or Reporter()
    started = time.perf_counter()
    spent = dict(timings or {})
    check_recipe(recipe, photos, choose)
    folder = Path(run) if run else default_folder(recipe)
    source = recipe.source.path
    command = command or (f"unfreeze fit {source} --run {folder}" if source else f"uf.fit(photos, recipe, '{folder}')")
    runs.refuse(folder, recipe, force)
    work = prepare(photos, recipe, folder, reporter, spent, begun)
    photos, looks, labels, units, folds = work.photos, work.looks, work.labels, work.units, work.folds
    with runs.begin(folder, recipe, photos, command, force):
        look_for_faces(work)
        outcome, fitted = learn(work, started, choose)
        photos, folds, proba = work.photos, work.folds, outcome.proba
        inside = np.flatnonzero(folds >= 0)

        def judged(rows: Labels, probabilities: NDArray[np.float64], by: Labels = units) -> dict[str, Any]:
            return out_of_fold_scores(labels[rows], probabilities, by[rows], photos.classes, seed=recipe.seed)

        with work.clock("judge"):
            oof = judged(inside, proba[inside])
            scores: dict[str, Any] = {name: oof[name] for name in _HEADLINES}
            scores |= {"out_of_fold": oof, "folds": _fold_rows(work, proba, outcome.folds)}
            if parts := parts_of(photos):
                scores["parts"] = part_scores(labels[inside], proba[inside], units[inside], parts, seed=recipe.seed)
            for name, other in outcome.beside.items():
                found = judged(inside, other[inside])
                scores.setdefault("beside", {})[name] = {key: found[key] for key in _HEADLINES}
            if "probe" in outcome.beside:
                before = outcome.beside["probe"][inside]
                scores["gain"] = paired_difference(
                    labels[inside], before, proba[inside], units[inside], seed=recipe.seed
                )
            if recipe.source.verdicts:
                scores["verdicts"] = effect(work, proba)
            held = work.tested()
            if len(held):
                test = np.full_like(proba, np.nan)
                test[held] = outcome.test
                runs.save_table(folder / "test.parquet", _predictions(photos, folds, test, held))
                scores["test"] = judged(held, outcome.test)
        if compare_random and fitted is None:
            reporter.say("--compare-random: the split photo by photo is shown where all folds are probes.")
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


def check_recipe(recipe: Recipe, photos: Photos, choose: Choose | None = None) -> None:
    """What the recipe asks for must exist before any work is done for it: raises what `fit` would raise for it."""
    graphs_of(recipe)
    check_detector(recipe)
    check_strategy(recipe, choose)
    check_balance(recipe)
    check_labels(recipe, photos)


def prepare(
    photos: Photos,
    recipe: Recipe,
    folder: Path,
    reporter: Reporter,
    spent: dict[str, float] | None = None,
    begun: Work | None = None,
) -> Work:
    """A first look at the photos, and their folds: all that comes before learning, faces left out.

    folder: of the run; nothing is written there. begun: what this gave for another recipe on the same photos: its look
    and folds are taken, if this recipe would come to the same. Raises FoldError, RecipeError or SourceError.
    """
    check_labels(recipe, photos)
    spent = {} if spent is None else spent
    if begun is not None and begins_alike(begun.recipe, recipe):
        work = replace(begun, recipe=recipe, folder=folder, reporter=reporter, spent=spent, squares=None)
        added_rows(work)
        return work
    with _clock(spent, "look"):
        photos, looks = run_checks(photos, int(recipe.image.max_megapixels * 1e6), reporter)
    with _clock(spent, "folds"):
        labels = _labels(photos)
        units = photos.table["unit"].to_numpy(np.int64)
        folds, findings = _folds(photos, looks, labels, units, recipe, by_group=recipe.folds.by_group)
        findings += unseen_findings(recipe, labels, folds, photos)
        photos = photos.with_table(photos.table.assign(fold=folds), *findings)
        _tell(photos, reporter)
    work = Work(photos, looks, labels, units, folds, recipe, folder, reporter, spent)
    if recipe.source.verdicts:  # after the folds, so that they are those of the labels as given
        work = obey(work)
    added_rows(work)  # a class that is not there is told before any work is done
    return work


def begins_alike(one: Recipe, other: Recipe) -> bool:
    """Whether both recipes look at photos and cut them into folds in the same way; those with verdicts never do."""
    if one.source.verdicts or other.source.verdicts:
        return False
    mine, theirs = ((r.seed, r.folds, r.image.max_megapixels, r.labels) for r in (one, other))
    return mine == theirs


def look_for_faces(work: Work) -> None:
    """Finds the square around each photo's face, if the recipe asks for it, and says in how many there is none."""
    if not wants_faces(work.recipe):
        return
    with work.clock("faces"):
        found = squares_of(work.recipe, work.photos.files(), work.looks.keys, work.looks.readable, work.reporter)
    if found is None:
        return
    work.squares = found.cut
    if finding := found.finding():
        work.photos = work.photos.with_table(work.photos.table, finding)
        work.reporter.say(f"Faces: {finding.message}.")


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
                f"no training photo of {listed(absent)}"
                + (": never predicted" if recipe.labels.model == "joint" else ": told by its parts alone"),
                "add some",
            )
        )
    return folds, findings


def _predictions(photos: Photos, folds: Labels, proba: NDArray[np.float64], rows: Labels) -> pd.DataFrame:
    table = photos.table.loc[rows, ["path", "label"]].assign(fold=folds[rows])[["path", "fold", "label"]]
    columns = pd.DataFrame(proba[rows], columns=probability_columns(photos.classes), index=table.index)
    return pd.concat([table, columns], axis=1).reset_index(drop=True)


def _fold_rows(work: Work, proba: NDArray[np.float64], beside: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for k, extra in sorted(beside.items()):
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
