"""A person's verdicts obeyed by a fit, and what that did: before and after on the same folds and unchanged photos."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import FoldError, RunError, listed
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import Finding, Photos, probability_columns
from unfreeze.core.verdicts import Verdict, read_verdicts
from unfreeze.judge.metrics import out_of_fold_scores
from unfreeze.judge.paired import paired_difference
from unfreeze.learn.fitting import Work
from unfreeze.learn.probe.probing import fit_probe

_HEADLINES = ("accuracy", "macro_f1", "log_loss")
_SHOWN = 3


def obey(work: Work) -> Work:
    """The work under the recipe's verdicts; folds stay those of the labels as they were given.

    A relabelled photo has its new label (and attributes), an excluded one is neither learnt from nor scored. The
    table gets `verdict` (empty where there is none), `label_given` and `fold_given`, as they were. A verdict about a
    photo that is not there, or whose content has changed since, is not obeyed, with a finding.
    Raises VerdictsError for the file, FoldError if too little is left.
    """
    file = Path(work.recipe.source.verdicts)
    photos, table = work.photos, work.photos.table
    verdicts, findings = read_verdicts(file, photos.classes)
    row_of = {path: i for i, path in enumerate(table["path"])}
    hashes = table["hash"].to_numpy(object)
    words, labels, folds = np.full(len(table), "", object), work.labels.copy(), work.folds.copy()
    absent, changed = list[Verdict](), list[Verdict]()
    for v in verdicts:
        row = row_of.get(v.path, -1)
        if row < 0:
            absent.append(v)
        elif v.hash and v.hash != hashes[row]:
            changed.append(v)
        else:
            words[row] = v.verdict
            if v.verdict == "relabel":
                labels[row] = photos.classes.index(v.label)
            elif v.verdict == "exclude":
                folds[row] = -1
    findings += [
        *_not_obeyed("verdicts-changed", changed, "the photo has changed since it was judged", "judge it again"),
        *_not_obeyed("verdicts-absent", absent, "there is no such photo among these", "none needed if it was removed"),
    ]
    counts = Counter(words[words != ""].tolist())
    said = f"{counts['keep']:,} kept, {counts['relabel']:,} relabelled, {counts['exclude']:,} excluded"
    findings.append(Finding("verdicts", "info", f"verdicts of {file.name} obeyed: {said}", "none needed"))
    _refuse_empty(work, labels, folds)
    for finding in findings:
        work.reporter.say(f"Found ({finding.severity}): {finding.path and finding.path + ': '}{finding.message}.")
    new = _relabelled(photos, labels).assign(
        verdict=words, label_given=table["label"], fold_given=work.folds, fold=folds
    )
    excluded = {int(i): "excluded by a verdict" for i in np.flatnonzero(words == "exclude")}
    return replace(
        work, photos=photos.with_table(new, *findings), labels=labels, folds=folds, failed={**work.failed, **excluded}
    )


def effect(work: Work, proba: NDArray[np.float64]) -> dict[str, Any]:
    """What the verdicts did, for scores.json: counts, and scores of the unchanged photos without and with them.

    proba: float64 (n, C), out of fold, under the verdicts. A probe is fitted once more without them, from the same
    features; other strategies are held against the earlier run that the file lies in, where its folds are the same.
    `before`, `after` and `gain` (paired, macro F1) are absent where there is nothing to compare with.
    """
    table = work.photos.table
    words = table["verdict"].to_numpy(object)
    counts = Counter(words[words != ""].tolist())
    said: dict[str, Any] = {
        "file": work.recipe.source.verdicts,
        "keep": counts["keep"],
        "relabel": counts["relabel"],
        "exclude": counts["exclude"],
        "moves": _moves(work.photos),
    }
    before = _before(work)
    if before is None:
        return said
    rows = np.flatnonzero((work.folds >= 0) & (words != "relabel") & np.isfinite(before).all(1))
    labels, units, seed = work.labels[rows], work.units[rows], work.recipe.seed
    scored = {
        name: out_of_fold_scores(labels, p[rows], units, work.photos.classes, seed=seed)
        for name, p in (("before", before), ("after", proba))
    }
    said |= {name: {key: found[key] for key in _HEADLINES} for name, found in scored.items()}
    said["gain"] = paired_difference(labels, before[rows], proba[rows], units, seed=seed)
    return {**said, "photos": len(rows), "groups": len(np.unique(units))}


def _before(work: Work) -> NDArray[np.float64] | None:
    """Out-of-fold probabilities float64 (n, C) without the verdicts, NaN outside the folds; None: nothing fits."""
    table = work.photos.table
    if work.recipe.strategy != "probe":
        return _earlier(work)
    number = {name: i for i, name in enumerate(work.photos.classes)}
    given = np.array([number[name] for name in table["label_given"]], np.int64)
    read_since = {i: why for i, why in work.failed.items() if table["verdict"].iloc[i] != "exclude"}
    folds = table["fold_given"].to_numpy(np.int64).copy()
    folds[list(read_since)] = -1
    original = work.photos.with_table(table.assign(label=table["label_given"], fold=folds))
    without = replace(
        work,
        photos=original,
        labels=given,
        folds=folds,
        folder=work.folder / "scratch" / "without-verdicts",
        spent={},
        failed=read_since,
        trial=True,
    )
    with work.clock("without verdicts"):
        return fit_probe(without).out_of_fold(without)


def _earlier(work: Work) -> NDArray[np.float64] | None:
    """The predictions of the run that the verdicts lie in, if it is the same recipe on the same folds."""
    try:
        run: Run = open_run(Path(work.recipe.source.verdicts).parent)
        photos, oof = run.photos().set_index("path"), run.predictions().set_index("path")
    except RunError:
        return None
    table = work.photos.table
    same = run.recipe.replace(source=work.recipe.source.model_dump()) == work.recipe
    folds = photos["fold"].reindex(table["path"]).to_numpy()
    if not same or run.classes != work.photos.classes or (folds != table["fold_given"].to_numpy()).any():
        work.reporter.say(f"{run.path}: is of another recipe or other folds, so the verdicts' effect is not measured.")
        return None
    return oof[probability_columns(run.classes)].reindex(table["path"]).to_numpy(np.float64)


def _relabelled(photos: Photos, labels: NDArray[np.int64]) -> Any:
    """The table with new labels, and where a label is made of attributes, the new ones of those."""
    table = photos.table
    new = np.array(photos.classes, object)[labels]
    changed = np.flatnonzero(new != table["label"].to_numpy(object))
    columns = [name for name in photos.attributes if name != "label"]
    values = table.drop_duplicates("label").set_index("label")[columns]
    table = table.assign(label=new)
    for name in columns:
        column = table[name].to_numpy(object).copy()
        column[changed] = values[name].reindex(new[changed]).to_numpy(object)
        table[name] = column
    return table


def _refuse_empty(work: Work, labels: NDArray[np.int64], folds: NDArray[np.int64]) -> None:
    gone = sorted(set(work.folds[work.folds >= 0].tolist()) - set(folds.tolist()))
    if gone:
        raise FoldError(f"the verdicts exclude every photo of fold {listed(gone)}; use fewer folds or exclude less.")
    for fold in np.unique(folds[folds >= 0]):
        left = np.unique(labels[(folds >= 0) & (folds != fold)])
        if len(left) < 2:
            raise FoldError("the verdicts leave photos of one class only to learn from; keep some of another.")


def _not_obeyed(check: str, verdicts: list[Verdict], why: str, fix: str) -> list[Finding]:
    found = [Finding(check, "warning", f"verdict '{v.verdict}' not obeyed: {why}", fix, v.path) for v in verdicts]
    if len(found) <= _SHOWN:
        return found
    more = f"{len(found) - _SHOWN:,} more verdicts not obeyed: {why}: {listed(v.path for v in verdicts[_SHOWN:])}"
    return [*found[:_SHOWN], Finding(check, "warning", more, fix)]


def _moves(photos: Photos) -> list[dict[str, Any]]:
    """Relabelled photos counted by (given, new) class, the most first."""
    table = photos.table[photos.table["verdict"] == "relabel"]
    pairs = Counter(zip(table["label_given"], table["label"], strict=True))
    return [{"given": a, "label": b, "photos": n} for (a, b), n in pairs.most_common()]
