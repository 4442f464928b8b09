"""Cross-validation: from images and a recipe to a finished run folder.

`cross_validate` scans the images, assigns folds, trains the strategy of the recipe in each fold and writes out-of-fold
predictions, scores and models to the run folder. `environment` records what the run was executed on: versions, device,
code revision and timings.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core import runs
from unfreeze.core.dataset import Finding, ImageDataset, label_columns, probability_columns
from unfreeze.core.errors import FoldError, join_names
from unfreeze.core.files import write_json
from unfreeze.core.messages import option
from unfreeze.core.parallel import cores
from unfreeze.core.processes import child_environment, program
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe, checked_recipe
from unfreeze.core.runs import Run, default_run_dir
from unfreeze.core.version import versions
from unfreeze.data.checks import run_checks
from unfreeze.data.scan import ImageScan
from unfreeze.data.splits import stratified_group_kfold
from unfreeze.features.crops import check_detector, face_crops, needs_faces
from unfreeze.features.inputs import feature_extractors
from unfreeze.metrics.classification import confusion_matrix, score_predictions
from unfreeze.metrics.differences import macro_of_present, paired_difference
from unfreeze.metrics.label_columns import part_scores
from unfreeze.models.engines import cpu_name
from unfreeze.training.class_balance import check_balance
from unfreeze.training.context import FitContext, added_rows
from unfreeze.training.corrections import apply_corrections, correction_effect
from unfreeze.training.evaluation import HEADLINES, evaluate, fold_groups
from unfreeze.training.fold_strategies import StrategyChooser, check_strategy, run_strategies
from unfreeze.training.linear_probe.heads import check_labels, unseen_findings
from unfreeze.training.linear_probe.strategy import score_random_split

_PACKAGES = (
    "unfreeze",
    "numpy",
    "pandas",
    "pillow",
    "simplejpeg",
    "openvino",
    "torch",
    "torchvision",
    "timm",
)


def environment(seed: int, timings: dict[str, float]) -> dict[str, Any]:
    """Return the contents of environment.json: versions, device, git revision, seed, creation time, timings.

    Args:
        seed: Random seed of the run.
        timings: Seconds per stage.

    Returns:
        A JSON-serializable dictionary.
    """
    return {
        "versions": {"python": platform.python_version(), **versions(*_PACKAGES)},
        "device": f"{cores()} cores, {cpu_name()}",
        "system": platform.platform(),
        "git": _revision(),
        "seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "timings": timings,
    }


def _revision() -> str | None:
    """Return the git revision of the working directory, if any: the user's own code affects the result."""
    if (git := program("git")) is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [git, "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=2,
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
        return done.stdout.strip() or None
    return None


Labels = NDArray[np.int64]


def cross_validate(
    photos: ImageDataset,
    recipe: Recipe | None = None,
    run: str | Path | None = None,
    *,
    force: bool = False,
    random_split_baseline: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    timings: dict[str, float] | None = None,
    choose: StrategyChooser | None = None,
    begun: FitContext | None = None,
) -> Run:
    """Cross-validate a recipe and write a finished run folder.

    An unfinished run of the same recipe in the folder is resumed.

    Args:
        photos: The dataset.
        recipe: The recipe; None means the default recipe.
        run: The run folder; by default `runs/<source>-<strategy>-<hash of the recipe>`.
        force: Whether to overwrite an existing run.
        random_split_baseline: Whether to also score a random split that ignores groups, to show how optimistic it
        would be.
        command: Command line to record; by default, derived from the arguments.
        reporter: Progress reporter.
        timings: Seconds of stages that were completed earlier.
        choose: Function that chooses the recipe changes of each fold for strategy 'auto'; `unfreeze.fit` passes it.
        begun: Result of `prepare` for another recipe on the same images.

    Returns:
        The finished run.

    Raises:
        RunError: If the run folder cannot be used.
        FoldError: If the images cannot be divided into folds.
        SourceError: If the labels of the dataset do not fit the recipe.
        BackboneError: If the backbone is unknown or unsuitable.
        EngineError: If inference fails.
        StorageError: If the disk is full.
    """
    recipe, reporter = checked_recipe(recipe), reporter or Reporter()
    started = time.perf_counter()
    spent = dict(timings or {})
    check_recipe(recipe, photos, choose)
    folder = Path(run) if run else default_run_dir(recipe)
    source = recipe.source.path
    command = command or (f"unfreeze fit {source} --run {folder}" if source else f"uf.fit(photos, recipe, '{folder}')")
    runs.check_writable(folder, recipe, force)
    work = prepare(photos, recipe, folder, reporter, spent, begun)
    photos, looks, labels, units, folds = work.photos, work.looks, work.labels, work.units, work.folds
    with runs.create_run(folder, recipe, photos, command, force):
        detect_faces(work)
        outcome, fitted = run_strategies(work, started, choose)
        photos, folds, proba = work.photos, work.folds, outcome.proba
        inside = np.flatnonzero(folds >= 0)

        def judged(
            rows: Labels, probabilities: NDArray[np.float64], by: Labels = units, held_out: bool = False
        ) -> dict[str, Any]:
            return score_predictions(
                labels[rows], probabilities, by[rows], photos.classes, held_out=held_out, seed=recipe.seed
            )

        outcome, scores = evaluate(work, outcome, fitted)
        with work.clock("judge"):
            scores["folds"] = _fold_rows(work, proba, outcome.folds)
            if parts := label_columns(photos):
                scores["parts"] = part_scores(labels[inside], proba[inside], units[inside], parts, seed=recipe.seed)
            for name, other in outcome.components.items():
                found = judged(inside, other[inside])
                scores.setdefault("components", {})[name] = {key: found[key] for key in HEADLINES}
            if "probe" in outcome.components:
                before = outcome.components["probe"][inside]
                scores["gain"] = paired_difference(
                    labels[inside], before, proba[inside], units[inside], seed=recipe.seed
                )
            if recipe.source.corrections:
                scores["corrections"] = correction_effect(work, proba)
                scores |= scores["corrections"]["given"]  # headline scores use the original labels
            held = work.tested()
            if len(held):
                test = np.full_like(proba, np.nan)
                test[held] = outcome.test
                runs.save_table(folder / "test.parquet", _predictions(photos, folds, test, held))
                scores["test"] = judged(held, outcome.test, held_out=True)
        if random_split_baseline and fitted is None:
            reporter.say(
                f"{option('random_split_baseline', True)}: the image-level split is computed only if all folds are "
                "linear probes."
            )
        elif random_split_baseline and fitted is not None:
            with work.clock("random split"):
                alone = np.arange(len(photos), dtype=np.int64)
                apart, _ = _folds(photos, looks, labels, alone, recipe, by_group=False)
                apart[folds < 0] = -1
                rows = np.flatnonzero(apart >= 0)
                found = judged(rows, score_random_split(work, fitted, apart)[rows], alone)
                scores["random_split"] = {key: found[key] for key in HEADLINES}
        runs.save_table(folder / "photos.parquet", photos.table)
        runs.save_findings(folder, photos.findings)
        runs.save_table(folder / "oof.parquet", _predictions(photos, folds, proba, inside))
        write_json(folder / "scores.json", scores)
        write_json(folder / "environment.json", environment(recipe.seed, spent))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return runs.finalize_run(folder, **outcome.info)


def check_recipe(recipe: Recipe, photos: ImageDataset, choose: StrategyChooser | None = None) -> None:
    """Check that everything that the recipe names exists, before any work is done. Raises the errors of `fit`."""
    feature_extractors(recipe)
    check_detector(recipe)
    check_strategy(recipe, choose)
    check_balance(recipe)
    check_labels(recipe, photos)


def prepare(
    photos: ImageDataset,
    recipe: Recipe,
    folder: Path,
    reporter: Reporter,
    spent: dict[str, float] | None = None,
    begun: FitContext | None = None,
) -> FitContext:
    """Scan the images and assign folds: everything before training except face detection.

    Args:
        photos: The dataset.
        recipe: The recipe.
        folder: Folder of the run. Nothing is written there.
        reporter: Progress reporter.
        spent: Seconds per stage, filled during the run.
        begun: Result for another recipe on the same images. Its scan and folds are reused if this recipe would produce
            the same.

    Returns:
        The context for training.

    Raises:
        FoldError: If the images cannot be divided into folds.
        RecipeError: If the recipe does not fit the dataset.
        SourceError: If the labels of the dataset do not fit the recipe.
    """
    check_labels(recipe, photos)
    spent = {} if spent is None else spent
    if begun is not None and same_preparation(begun.recipe, recipe):
        work = replace(begun, recipe=recipe, folder=folder, reporter=reporter, spent=spent, squares=None)
        added_rows(work)
        return work
    with _clock(spent, "look"):
        photos, looks = run_checks(photos, int(recipe.image.max_megapixels * 1e6), reporter)
    with _clock(spent, "folds"):
        labels = _labels(photos)
        units = photos.table["unit"].to_numpy(np.int64)
        folds, findings = _folds(photos, looks, labels, units, recipe, by_group=recipe.folds.use_groups)
        findings += unseen_findings(recipe, labels, folds, photos)
        photos = photos.with_table(photos.table.assign(fold=folds), *findings)
        _tell(photos, reporter)
    work = FitContext(photos, looks, labels, units, folds, recipe, folder, reporter, spent)
    if recipe.source.corrections:  # after fold assignment, so that the folds are those of the original labels
        work = apply_corrections(work)
    added_rows(work)  # reports an unknown class before any work is done
    return work


def same_preparation(one: Recipe, other: Recipe) -> bool:
    """Return whether both recipes lead to the same scan and folds; always False for recipes with corrections."""
    if one.source.corrections or other.source.corrections:
        return False
    mine, theirs = ((r.seed, r.folds, r.image.max_megapixels, r.labels) for r in (one, other))
    return mine == theirs


def detect_faces(work: FitContext) -> None:
    """Detect the face in each image if the recipe uses face crops, and report how many images have none."""
    if not needs_faces(work.recipe):
        return
    with work.clock("faces"):
        found = face_crops(work.recipe, work.photos.files(), work.looks.keys, work.looks.readable, work.reporter)
    if found is None:
        return
    work.squares = found.cut
    if finding := found.finding():
        work.photos = work.photos.with_table(work.photos.table, finding)
        work.reporter.say(f"Faces: {finding.message}.")


def _tell(photos: ImageDataset, reporter: Reporter) -> None:
    """Report findings above severity 'info', a few per kind: findings.json and the report contain all of them."""
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


def _labels(photos: ImageDataset) -> Labels:
    number = {name: i for i, name in enumerate(photos.classes)}
    return np.array([number[name] for name in photos.table["label"]], np.int64)


def _folds(
    photos: ImageDataset, looks: ImageScan, labels: Labels, units: Labels, recipe: Recipe, by_group: bool
) -> tuple[Labels, list[Finding]]:
    """Return the fold of each image, -1 for test rows and unreadable images, and findings about the split."""
    inside = np.flatnonzero((photos.table["split"] == "train").to_numpy() & looks.readable)
    if not len(inside):
        raise FoldError("no training photo can be read; `unfreeze check` names the reasons.")
    present = np.unique(labels[inside])
    if len(present) < 2:
        raise FoldError(
            f"only class '{photos.classes[present[0]]}' has training photos that can be read; two are needed."
        )
    groups = fold_groups(photos, units, recipe)[inside] if by_group else inside
    given = photos.table["group"].to_numpy()[inside] if by_group and recipe.folds.group_duplicates else None
    found, findings = stratified_group_kfold(
        labels[inside], groups, recipe.folds.n_splits, recipe.seed, photos.classes, given
    )
    folds = np.full(len(photos), -1, np.int64)
    folds[inside] = found
    absent = [photos.classes[c] for c in sorted(set(range(len(photos.classes))) - set(present.tolist()))]
    if absent:
        findings.append(
            Finding(
                "class-without-photos",
                "warning",
                f"no training photo of {join_names(absent)}"
                + (
                    ": never predicted" if recipe.labels.model == "joint" else ": predicted only from its label columns"
                ),
                "add some",
            )
        )
    return folds, findings


def _predictions(photos: ImageDataset, folds: Labels, proba: NDArray[np.float64], rows: Labels) -> pd.DataFrame:
    table = photos.table.loc[rows, ["path", "label"]].assign(fold=folds[rows])[["path", "fold", "label"]]
    columns = pd.DataFrame(proba[rows], columns=probability_columns(photos.classes), index=table.index)
    return pd.concat([table, columns], axis=1).reset_index(drop=True)


def _fold_rows(work: FitContext, proba: NDArray[np.float64], extras: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for k, extra in sorted(extras.items()):
        rows = np.flatnonzero(work.folds == k)
        confusion = confusion_matrix(work.labels[rows], proba[rows].argmax(1), work.classes)
        out.append(
            {
                "fold": k,
                "photos": len(rows),
                "groups": len(np.unique(work.units[rows])),
                "accuracy": float(np.trace(confusion) / len(rows)),
                "macro_f1": float(macro_of_present(confusion)),
                **extra,
            }
        )
    return out


@contextmanager
def _clock(spent: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[what] = round(time.perf_counter() - started, 3)
