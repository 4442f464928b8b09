"""Label corrections in training, and their effect on the scores.

`apply_corrections` applies the corrections of a corrections file (`source.corrections`): labels are changed and
images are
excluded, while folds stay the same. `ranked_issues` searches for label issues with class probabilities.
`correction_effect` measures what the corrections did to the scores, both by the original and by the corrected labels,
without leakage: the gain is measured by repeating the search without the scored fold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import Proba, Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.corrections import Correction, read_corrections
from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import FoldError, UnfreezeError, join_names
from unfreeze.core.names import on_disk, positions
from unfreeze.data.scan import ImageScan
from unfreeze.data.splits import assign_folds
from unfreeze.metrics import label_issues as judging
from unfreeze.metrics.classification import score_predictions
from unfreeze.metrics.differences import paired_difference
from unfreeze.metrics.label_issues import LabelAxis
from unfreeze.metrics.nested import Corrections, NestedPredictions, judged_images, nested_predictions, widened
from unfreeze.training.context import FitContext
from unfreeze.training.linear_probe.heads import MODELS, predict_folds
from unfreeze.training.linear_probe.strategy import Probe, fit_heads, fit_probe

_SHOWN = 3


def apply_corrections(work: FitContext) -> FitContext:
    """Apply the corrections of the recipe's corrections file. Folds stay those of the original labels.

    A relabeled image gets its new label (and attributes). An excluded image is neither used for training nor scored.
    The table gets the columns `correction` (empty without a correction), `label_given` and `fold_given` (the original
    values). A correction about an image that is absent, or whose content has changed, is ignored with a finding.

    Args:
        work: The context with the original labels.

    Returns:
        The context with corrected labels and folds.

    Raises:
        CorrectionsError: If the corrections file is invalid.
        FoldError: If the corrections exclude a whole fold, or leave fewer than two classes to train on.
    """
    file = Path(work.recipe.source.corrections)
    photos, table = work.photos, work.photos.table
    corrections, findings = read_corrections(on_disk(file), photos.classes)
    rows = positions((v.path for v in corrections), table["path"].tolist())
    last = {row: v for row, v in zip(rows, corrections, strict=True) if row >= 0}  # the last correction per image wins
    hashes = table["hash"].to_numpy(object)
    words, labels, folds = np.full(len(table), "", object), work.labels.copy(), work.folds.copy()
    absent, changed = list[Correction](), list[Correction]()
    for row, v in zip(rows, corrections, strict=True):
        if row < 0:
            absent.append(v)
        elif v is not last[row]:
            continue
        elif v.hash and v.hash != hashes[row]:
            changed.append(v)
        else:
            words[row] = v.action
            if v.action == "relabel":
                labels[row] = photos.classes.index(v.label)
            elif v.action == "exclude":
                folds[row] = -1
    findings += [
        *_not_applied("corrections-changed", changed, "the image has changed since it was reviewed", "review it again"),
        *_not_applied("corrections-absent", absent, "no such image in this dataset", "none needed if it was removed"),
    ]
    counts = Counter(words[words != ""].tolist())
    said = f"{counts['keep']:,} kept, {counts['relabel']:,} relabeled, {counts['exclude']:,} excluded"
    findings.append(Finding("corrections", "info", f"corrections of {file.name} applied: {said}", "none needed"))
    _refuse_empty(work, labels, folds)
    for finding in findings:
        work.reporter.say(f"Found ({finding.severity}): {finding.path and finding.path + ': '}{finding.message}.")
    new = relabeled(photos, labels).assign(action=words, label_given=table["label"], fold_given=work.folds, fold=folds)
    excluded = {int(i): "excluded by a correction" for i in np.flatnonzero(words == "exclude")}
    return replace(
        work, photos=photos.with_table(new, *findings), labels=labels, folds=folds, failed={**work.failed, **excluded}
    )


def relabeled(photos: ImageDataset, labels: NDArray[np.int64]) -> pd.DataFrame:
    """Return the table with new labels.

    If labels are composed of attributes, the attributes of relabeled images change accordingly.

    Args:
        photos: The dataset.
        labels: int64 (n,), new class of each image.

    Returns:
        The new table.
    """
    table = photos.table
    new = np.array(photos.classes, object)[labels]
    changed = np.flatnonzero(new != table["label"].to_numpy(object))
    columns = [name for name in photos.attributes if name != "label"]
    values = table.drop_duplicates("label").set_index("label")[columns]
    table = table.assign(label=new)
    for name in columns:
        column = table[name].to_numpy(object).copy()
        found = values[name].reindex(new[changed]).to_numpy(object)
        column[changed] = np.where(pd.isna(found), column[changed], found)  # class without images
        table[name] = column
    return table


def _refuse_empty(work: FitContext, labels: NDArray[np.int64], folds: NDArray[np.int64]) -> None:
    gone = sorted(set(work.folds[work.folds >= 0].tolist()) - set(folds.tolist()))
    if gone:
        raise FoldError(
            f"the corrections exclude every photo of fold {join_names(gone)}; use fewer folds or exclude less."
        )
    for fold in np.unique(folds[folds >= 0]):
        left = np.unique(labels[(folds >= 0) & (folds != fold)])
        if len(left) < 2:
            raise FoldError("the corrections leave only one class to train on; keep images of another class.")


def _not_applied(check: str, corrections: list[Correction], why: str, fix: str) -> list[Finding]:
    found = [Finding(check, "warning", f"correction '{v.action}' not applied: {why}", fix, v.path) for v in corrections]
    if len(found) <= _SHOWN:
        return found
    paths = join_names(v.path for v in corrections[_SHOWN:])
    more = f"{len(found) - _SHOWN:,} more corrections not applied: {why}: {paths}"
    return [*found[:_SHOWN], Finding(check, "warning", more, fix)]


def pairs_among(looks: ImageScan, rows: Rows) -> dict[str, Rows]:
    """Return duplicate pairs among `rows`, by kind.

    Args:
        looks: The scan of the images.
        rows: Rows of the dataset.

    Returns:
        Kind -> int64 (m, 2) pairs of indices into `rows`.
    """
    place = np.full(len(looks.problem), -1)
    place[rows] = np.arange(len(rows))
    found = {}
    for kind, pairs in zip((judging.EXACT, "nearly the same"), looks.duplicates, strict=True):
        mapped = place[pairs].reshape(-1, 2)
        found[kind] = mapped[(mapped >= 0).all(1)]
    return found


def ranked_issues(photos: ImageDataset, looks: ImageScan, labels: Rows, units: Rows, proba: Proba, rows: Rows) -> Rows:
    """Rank label issues as `unfreeze label-issues` does.

    The probabilities of each label attribute are sums over the classes, so a search needs no additional fit.

    Args:
        photos: The dataset.
        looks: The scan of the images.
        labels: int64 (n,), classes.
        units: int64 (n,), groups.
        proba: float64 (n, C) out-of-fold probabilities; only `rows` are read.
        rows: Rows to search.

    Returns:
        int64 (m,), rows with a potential label issue, most suspicious first.
    """
    table = photos.table.iloc[rows]
    names = photos.attributes if len(photos.attributes) > 1 else ("label",)
    doubts, class_values = [], []
    for name in names:
        values = tuple(sorted(photos.table[name].unique())) if len(names) > 1 else photos.classes
        of_class = judging.of_classes(photos.table[name], photos.table["label"], photos.classes, values)
        given = table[name].map({v: i for i, v in enumerate(values)}).to_numpy(np.int64)
        attribute = LabelAxis(name, values, given, judging.marginalize(proba[rows], of_class, len(values)))
        doubts.append(judging.score_labels(attribute, units[rows]))
        class_values.append(of_class)
    found = judging.rank_label_issues(
        [str(i) for i in rows.tolist()],
        labels[rows],
        photos.classes,
        doubts,
        np.stack(class_values, 1),
        units[rows],
        pairs_among(looks, rows),
    )
    return found["path"].to_numpy(np.int64)


_HEADLINES = ("accuracy", "macro_f1", "log_loss")
# Above this number of images only two folds are scored: the confidence interval is narrow enough, and each scored fold
# costs one fit per other fold.
_MANY, _FEW_FOLDS = 50_000, 2


def correction_effect(work: FitContext, proba: Proba) -> dict[str, Any]:
    """Measure the effect of the corrections, for scores.json.

    Args:
        work: The context after `apply_corrections`.
        proba: float64 (n, C) out-of-fold probabilities of the run, whose models were trained with all corrections.

    Returns:
        A dictionary with these keys:

        - `file`, `keep`, `relabel`, `exclude`, `moves`: the applied corrections.
        - `given`, `corrected`: headline scores by the original labels, on all images, and by the corrected labels,
          without the excluded images.
        - `nested`: whether `given` and `corrected` are computed from the predictions of `metrics.nested`, which is so
          for a probe; otherwise they are computed from the predictions of the run.
        - `before`, `after`, `gain` (paired, macro F1): scores by the original labels without corrections, and with
          those corrections that are found without the scored fold.
        - `gain_corrected`: the gain by the corrected labels.
        - `optimism` (paired): by how much models trained with all corrections score higher than the nested ones, by the
          original labels.
        - `model`: the model that these were measured with, always `probe`.
        - `applied`, `corrections`: average number of relabeled and excluded images that the nested models used, and
          their total number.
        - `photos`, `groups`: numbers of scored images and groups.
        - `not_measured`: why there is no gain, if it could not be measured.
    """
    words = work.photos.table["action"].to_numpy(object)
    counts = Counter(words[words != ""].tolist())
    said: dict[str, Any] = {
        "file": work.recipe.source.corrections,
        "keep": counts["keep"],
        "relabel": counts["relabel"],
        "exclude": counts["exclude"],
        "moves": _moves(work.photos),
    }
    own = work.recipe.strategy == "probe"
    try:
        measured, nested = _measured(work, proba if own else None)
    except UnfreezeError as error:
        return said | {"nested": False, **_headlines(work, proba), "not_measured": str(error).rstrip(".")}
    return said | measured | {"nested": own, **_headlines(work, nested.proba if own else proba)}


def _measured(work: FitContext, proba: Proba | None) -> tuple[dict[str, Any], NestedPredictions]:
    """Measure gain and optimism with linear probes.

    Args:
        work: The context after `apply_corrections`.
        proba: Out-of-fold probabilities with all corrections, if the run itself is a probe.

    Returns:
        Part of the result of `correction_effect`, and the nested predictions.
    """
    without, words = _without(work), work.photos.table["action"].to_numpy(object)
    fitted = fit_probe(without)
    before, rows = fitted.out_of_fold(without), np.flatnonzero(without.folds >= 0)

    def fit_predict(labels: Rows, train: NDArray[np.bool_], some: Rows, fold: int) -> Proba:
        return _fit_predict(without, fitted, labels, train, some, fold)

    def rank(some: Rows, inner: Proba) -> Rows:
        return ranked_issues(without.photos, without.looks, without.labels, without.units, inner, some)

    seen = judged_images(rank(rows, before), words != "")
    corrections = Corrections(without.labels, work.labels, words == "exclude", seen)
    scored = without.todo if len(rows) <= _MANY else without.todo[:_FEW_FOLDS]
    nested = nested_predictions(fit_predict, rank, corrections, without.folds, scored, _halves(without))
    if proba is None:
        proba = np.full_like(before, np.nan)
        for fold in scored:
            train = (without.folds >= 0) & (without.folds != fold) & ~corrections.excluded
            held = np.flatnonzero(without.folds == fold)
            proba[held] = fit_predict(work.labels, train, held, fold)
    rows = np.flatnonzero(np.isfinite(nested.proba).all(1))
    both = rows[np.isfinite(proba[rows]).all(1)]
    left, given, seed = rows[~corrections.excluded[rows]], without.labels, work.recipe.seed

    def difference(labels: Rows, first: Proba, second: Proba, some: Rows) -> dict[str, float]:
        return paired_difference(labels[some], first[some], second[some], work.units[some], seed=seed)

    return {
        "model": "probe",
        "before": _scores(work, given, before, rows),
        "after": _scores(work, given, nested.proba, rows),
        "gain": widened(difference(given, before, nested.proba, rows), without.recipe.folds.n_splits),
        "gain_corrected": widened(difference(work.labels, before, nested.proba, left), without.recipe.folds.n_splits),
        "optimism": difference(given, nested.proba, proba, both),
        "applied": round(nested.share * int(corrections.changed.sum()), 1),
        "corrections": int(corrections.changed.sum()),
    }, nested


def _halves(work: FitContext) -> Rows | None:
    """Return halves of each fold for the inner search when there are only two folds, int64 (n,); otherwise None.

    Groups are not split. With more than two folds, the folds themselves are used.

    Raises:
        FoldError: If a fold cannot be split into two halves with two classes each.
    """
    if work.recipe.folds.n_splits > 2:
        return None
    parts = np.full(len(work.labels), -1, np.int64)
    for fold in work.todo:
        rows = np.flatnonzero(work.folds == fold)
        halves = assign_folds(work.labels[rows], work.units[rows], 2, work.recipe.seed, work.classes)
        if len(np.unique(halves)) < 2 or min(len(np.unique(work.labels[rows[halves == h]])) for h in (0, 1)) < 2:
            raise FoldError("too few groups to search for issues with two folds; use folds.n_splits = 3 or more")
        parts[rows] = 2 * fold + halves
    return parts


def _headlines(work: FitContext, proba: Proba) -> dict[str, Any]:
    """Score the predictions by the original and by the corrected labels."""
    table = work.photos.table
    number = {name: i for i, name in enumerate(work.photos.classes)}
    given = np.array([number[name] for name in table["label_given"]], np.int64)
    rows = np.flatnonzero(np.isfinite(proba).all(1))
    left = rows[(table["action"] != "exclude").to_numpy()[rows]]
    return {
        "given": _scores(work, given, proba, rows),
        "corrected": _scores(work, work.labels, proba, left),
        "photos": len(rows),
        "groups": len(np.unique(work.units[rows])),
    }


def _scores(work: FitContext, labels: Rows, proba: Proba, rows: Rows) -> dict[str, Any]:
    classes, seed = work.photos.classes, work.recipe.seed
    found = score_predictions(labels[rows], proba[rows], work.units[rows], classes, seed=seed)
    return {key: found[key] for key in _HEADLINES}


def _without(work: FitContext) -> FitContext:
    """Return a context for a linear probe on the same images and folds with the original labels."""
    table = work.photos.table
    number = {name: i for i, name in enumerate(work.photos.classes)}
    given = np.array([number[name] for name in table["label_given"]], np.int64)
    read_since = {i: why for i, why in work.failed.items() if table["action"].iloc[i] != "exclude"}
    folds = table["fold_given"].to_numpy(np.int64).copy()
    folds[list(read_since)] = -1
    original = work.photos.with_table(relabeled(work.photos, given).assign(fold=folds))
    return replace(
        work,
        recipe=work.recipe.replace(strategy="probe"),
        photos=original,
        labels=given,
        folds=folds,
        folder=work.folder / "scratch" / "without-corrections",
        spent={},
        failed=read_since,
        which=None,
        trial=True,
    )


def _fit_predict(
    without: FitContext, fitted: Probe, labels: Rows, train: NDArray[np.bool_], rows: Rows, fold: int
) -> Proba:
    """Fit heads on the rows of `train` with these labels and predict `rows`. Return float64 (len(rows), C)."""
    folds = np.where(train, without.folds, fold)
    folds[without.folds < 0] = -1
    # Projections are cached by their training rows: with unchanged folds they are reused.
    same = np.array_equal(folds, without.folds)
    identity = fitted.identity if same else stable_hash([fitted.identity, folds.tolist()])
    part = replace(without, labels=labels, folds=folds)
    heads = [
        head
        for model in MODELS[without.recipe.labels.model]
        for _, head in fit_heads(part, fitted, part.units, folds, identity, [fold], model=model)
    ]
    return predict_folds(fitted.features, heads, rows)


def _moves(photos: ImageDataset) -> list[dict[str, Any]]:
    """Count the relabeled images by (original, new) class, most frequent first."""
    table = photos.table[photos.table["action"] == "relabel"]
    pairs = Counter(zip(table["label_given"], table["label"], strict=True))
    return [{"given": a, "label": b, "photos": n} for (a, b), n in pairs.most_common()]
