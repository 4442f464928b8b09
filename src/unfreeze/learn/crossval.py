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
from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import FoldError, RunError, listed
from unfreeze.core.files import write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, default_folder
from unfreeze.core.tables import Finding, Photos, probability_columns
from unfreeze.data.checks import run_checks
from unfreeze.data.folds import make_folds
from unfreeze.data.looks import Looks
from unfreeze.judge.metrics import confusion_matrix, macro_f1, out_of_fold_scores
from unfreeze.learn.environment import environment
from unfreeze.learn.heads import LinearHead, fit_folds, predict_folds
from unfreeze.learn.inputs import JoinedFeatures, compute_inputs, graphs_of

Labels = NDArray[np.int64]


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
    spent = dict(timings or {})
    graphs_of(recipe)  # what the recipe asks for must exist before any work is done for it
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
        with _clock(spent, "features"):
            features, graphs = compute_inputs(photos.files(), looks.keys, looks.readable, recipe, reporter)
            photos, folds = _without_failed(photos, features, folds)
        identity = _identity(photos, folds)
        with _clock(spent, "heads"):
            features = features.held()
            heads = _heads(folder, features, labels, units, folds, photos, recipe, identity, reporter)
        with _clock(spent, "judge"):
            inside = np.flatnonzero(folds >= 0)
            proba = np.full((len(photos), len(photos.classes)), np.nan)
            for k, head in enumerate(heads):
                rows = np.flatnonzero(folds == k)
                proba[rows] = predict_folds(features, [head], rows)
            predictions = _predictions(photos, folds, proba, inside)
            oof = out_of_fold_scores(labels[inside], proba[inside], units[inside], photos.classes, seed=recipe.seed)
            scores: dict[str, Any] = {k: oof[k] for k in ("accuracy", "macro_f1", "log_loss")}
            scores |= {"out_of_fold": oof, "folds": _fold_rows(labels, units, folds, proba, heads)}
            held = np.flatnonzero((photos.table["split"] == "test").to_numpy() & _usable(looks, features))
            if len(held):
                blended = predict_folds(features, heads, held)
                test = np.full_like(proba, np.nan)
                test[held] = blended
                runs.save_table(folder / "test.parquet", _predictions(photos, folds, test, held))
                scores["test"] = out_of_fold_scores(
                    labels[held], blended, units[held], photos.classes, seed=recipe.seed
                )
        if compare_random:
            with _clock(spent, "random split"):
                scores["random_split"] = _random_split(photos, looks, features, labels, recipe, folder, folds)
        runs.save_table(folder / "photos.parquet", photos.table)
        runs.save_findings(folder, photos.findings)
        runs.save_table(folder / "oof.parquet", predictions)
        write_json(folder / "scores.json", scores)
        write_json(folder / "environment.json", environment(recipe.seed, spent))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return runs.finish(
            folder,
            backbone_info=graphs[0].backbone.describe(),
            inputs=[
                {**graph.described(), "features": part.width}
                for graph, part in zip(graphs, features.parts, strict=True)
            ],
            views=list(recipe.probe.views),
            engine=features.engine,
            identity=identity,
        )


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


def _usable(looks: Looks, features: JoinedFeatures) -> NDArray[np.bool_]:
    usable = looks.readable.copy()
    usable[list(features.failed)] = False
    return usable


def _without_failed(photos: Photos, features: JoinedFeatures, folds: Labels) -> tuple[Photos, Labels]:
    """Photos that failed after their first look leave their fold, with a finding."""
    if not features.failed:
        return photos, folds
    before, folds = folds, folds.copy()
    folds[list(features.failed)] = -1
    if len(np.unique(folds[folds >= 0])) < len(np.unique(before[before >= 0])):
        why = next(iter(features.failed.values()))
        raise FoldError(f"a whole fold of photos cannot be read any more ({why}); run the same command again.")
    paths = photos.table["path"]
    findings = [
        Finding("unreadable", "warning", why, "mend or remove the file; it is left out of training", str(paths[i]))
        for i, why in features.failed.items()
    ]
    return photos.with_table(photos.table.assign(fold=folds), *findings), folds


def _identity(photos: Photos, folds: Labels) -> str:
    """Names the photos' contents, their order and folds: what a rotation was made of, beside the features."""
    return fingerprint([[h, int(f)] for h, f in zip(photos.table["hash"], folds, strict=True)])


def _heads(
    folder: Path,
    features: JoinedFeatures,
    labels: Labels,
    units: Labels,
    folds: Labels,
    photos: Photos,
    recipe: Recipe,
    identity: str,
    reporter: Reporter,
) -> list[LinearHead]:
    """A head for each fold; those that an interrupted run has left are taken, the others fitted and kept at once."""
    fitted_on = [labels.tolist(), units.tolist(), photos.classes, recipe.probe.model_dump(mode="json"), recipe.seed]
    mark = fingerprint([features.identity, identity, *fitted_on])
    heads: dict[int, LinearHead] = {}
    for k in range(recipe.folds.count):
        try:
            head, about = LinearHead.load(folder / f"fold-{k}" / "head.safetensors")
        except RunError:
            continue
        if about["identity"] == mark:
            heads[k] = head
    todo = [k for k in range(recipe.folds.count) if k not in heads]
    classes = len(photos.classes)
    fitted = fit_folds(
        features,
        labels,
        units,
        folds,
        classes,
        recipe.probe,
        recipe.seed,
        identity,
        folder / "scratch",
        todo,
        reporter,
    )
    for k, head in fitted:
        head.save(folder / f"fold-{k}" / "head.safetensors", mark, photos.classes)
        heads[k] = head
    return [heads[k] for k in range(recipe.folds.count)]


def _predictions(photos: Photos, folds: Labels, proba: NDArray[np.float64], rows: Labels) -> pd.DataFrame:
    table = photos.table.loc[rows, ["path", "label"]].assign(fold=folds[rows])[["path", "fold", "label"]]
    columns = pd.DataFrame(proba[rows], columns=probability_columns(photos.classes), index=table.index)
    return pd.concat([table, columns], axis=1).reset_index(drop=True)


def _fold_rows(
    labels: Labels, units: Labels, folds: Labels, proba: NDArray[np.float64], heads: list[LinearHead]
) -> list[dict[str, Any]]:
    out = []
    for k, head in enumerate(heads):
        rows = np.flatnonzero(folds == k)
        confusion = confusion_matrix(labels[rows], proba[rows].argmax(1), proba.shape[1])
        out.append(
            {
                "fold": k,
                "photos": len(rows),
                "groups": len(np.unique(units[rows])),
                "accuracy": float(np.trace(confusion) / len(rows)),
                "macro_f1": float(macro_f1(confusion)),
                "strength": head.strength,
                "inputs": list(head.inputs),
            }
        )
    return out


def _random_split(
    photos: Photos,
    looks: Looks,
    features: JoinedFeatures,
    labels: Labels,
    recipe: Recipe,
    folder: Path,
    safe: Labels,
) -> dict[str, Any]:
    """What a split photo by photo would have told, from the same features: for comparison only."""
    alone = np.arange(len(photos), dtype=np.int64)
    folds, _ = _folds(photos, looks, labels, alone, recipe, by_group=False)
    folds[safe < 0] = -1
    identity = _identity(photos, folds)
    proba = np.zeros((len(photos), len(photos.classes)))
    fitted = fit_folds(
        features,
        labels,
        alone,
        folds,
        len(photos.classes),
        recipe.probe,
        recipe.seed,
        identity,
        folder / "scratch",
    )
    for k, head in fitted:
        rows = np.flatnonzero(folds == k)
        proba[rows] = predict_folds(features, [head], rows)
    rows = np.flatnonzero(folds >= 0)
    scores = out_of_fold_scores(labels[rows], proba[rows], alone[rows], photos.classes, seed=recipe.seed)
    return {name: scores[name] for name in ("accuracy", "macro_f1", "log_loss")}


@contextmanager
def _clock(spent: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[what] = round(time.perf_counter() - started, 3)
