"""Leakage: what was validated on had been learnt from, as another photo of its group or as a copy."""

from __future__ import annotations

import shlex

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import listed
from unfreeze.data.duplicates import joined_groups
from unfreeze.judge.metrics import confusion_matrix, macro_f1
from unfreeze.judge.paired import paired_difference
from unfreeze.judge.resampling import group_weights, interval, weighted_confusion
from unfreeze.study.diagnosis.case import Case
from unfreeze.study.diagnosis.cause import Cause, Severity, graver, not_measured, plain, severity_of, told, zero
from unfreeze.study.diagnosis.hidden import hidden_groups
from unfreeze.study.diagnosis.refit import Refit

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]
GROUPS, COPIES, HIDDEN, TESTED = (
    "leakage: groups across folds",
    "leakage: copies across folds",
    "leakage: groups that the table does not name",
    "leakage: training photos in the test set",
)


def leakage(case: Case, refit: Refit | str) -> list[Cause]:
    """A row for each way in which a photo that is judged can have been seen."""
    rows = case.inside
    given = joined_groups(case.photos.table["group"].to_numpy())
    return [
        *_across(case, refit, given, rows),
        _hidden(case, refit),
        _in_test(case),
    ]


def _across(case: Case, refit: Refit | str, given: Rows, rows: Rows) -> list[Cause]:
    """Groups, and copies beyond them, that lie in two folds; each judged by folds that keep them whole."""
    torn = _torn(given[rows], case.folds[rows])
    copied = _torn(case.units[rows], case.folds[rows]) & ~torn
    fit = f"{case.again} {case.beside('safe')}"
    if not torn.any():
        found = [_whole(case, refit, rows)]
        safe = [refit.proba] if isinstance(refit, Refit) else None
    elif isinstance(refit, str):
        why = f"{int(torn.sum()):,} of {len(rows):,} photos have others of their group in another fold; {refit}"
        found = [not_measured(GROUPS, why, "fit again with groups whole", f"{fit} --set folds.by_group=true")]
        safe = None
    else:
        safe = refit.dealt(given)
        cost = _flattered(case, refit, [refit.proba], safe, _among(case, rows[torn]))
        found = [
            Cause(
                GROUPS,
                graver(severity_of(cost), "warning"),
                f"{int(torn.sum()):,} of {len(rows):,} photos were judged by a model that had learnt from their group; "
                f"with groups kept whole macro F1 is {told(cost, True)} lower{refit.said}.",
                cost,
                "Believe the score with groups whole, and fit with folds.by_group=true.",
                f"{fit} --set folds.by_group=true",
                details={"photos": int(torn.sum())},
            )
        ]
    if not copied.any():
        found.append(Cause(COPIES, "none", "No photo has an exact or near copy in another fold."))
    elif safe is None or isinstance(refit, str):
        why = f"{int(copied.sum()):,} photos have a copy in another fold; {refit}"
        found.append(not_measured(COPIES, why, "fit again", f"{fit} --set folds.join_duplicates=true"))
    else:
        together = refit.dealt(case.units)
        cost = _flattered(case, refit, safe, together, _among(case, rows[copied]))
        found.append(
            Cause(
                COPIES,
                graver(severity_of(cost), "warning" if copied.mean() >= 0.01 else "info"),
                f"{int(copied.sum()):,} of {len(rows):,} photos have an exact or near copy in another fold; with "
                f"copies together macro F1 is {told(cost, True)} lower{refit.said}.",
                cost,
                "Remove the copies, or keep them in one fold with folds.join_duplicates=true.",
                f"{fit} --set folds.by_group=true --set folds.join_duplicates=true",
                details={"photos": int(copied.sum())},
            )
        )
    return found


def _whole(case: Case, refit: Refit | str, rows: Rows) -> Cause:
    """The row of a run that keeps its groups whole: what a split photo by photo would have promised."""
    if not len(set(case.units[rows].tolist())) < len(rows):
        return Cause(GROUPS, "none", "Every photo is its own group in the table, so that no fold can tear one apart.")
    details = {}
    promised = ""
    known = case.run.scores().get("random_split")
    if known:
        more = known["macro_f1"]["value"] - case.score
        promised = f"; a split photo by photo would have promised {more:+.3f} of macro F1 more, which is not there"
        details["random_split"] = {"value": more}
    elif isinstance(refit, Refit):
        alone = np.arange(len(case.labels), dtype=np.int64)
        every = np.ones(len(case.labels), bool)
        figure = _flattered(case, refit, refit.dealt(alone), refit.dealt(case.units), every)
        how = f"{told(figure, True)} of macro F1 more, which is not there"
        how = how if figure["low"] > 0 else f"about the same ({told(figure, True)})"
        promised = f"; a split photo by photo would have promised {how}{refit.said}"
        details["random_split"] = figure
    return Cause(GROUPS, "none", f"No group and no copy lies in two folds{promised}.", zero(), details=details)


def _hidden(case: Case, refit: Refit | str) -> Cause:
    """Groups in names, folders or file order that features agree with."""
    if isinstance(refit, str):
        return not_measured(HIDDEN, refit)
    rows = refit.rows
    paths = case.photos.table["path"].to_numpy()[rows].tolist()
    units = case.units
    features = _last_block(refit, rows)
    found = hidden_groups(paths, case.labels[rows], units[rows], features, case.run.recipe.seed)
    if not found:
        return Cause(
            HIDDEN, "none", "Neither folders, nor file names, nor the order of the files speak for more groups."
        )
    first = found[0]
    wider = units.copy()
    wider[rows] = first.units + int(units.max()) + 1
    base, folds = [refit.proba], case.folds
    if _torn(units[rows], folds[rows]).any():  # their share is told by the rows above
        base, folds = refit.dealt(units), refit.folds_for(units, case.run.recipe.seed)
    torn = _among(case, rows[_torn(wider[rows], folds[rows])])
    cost = _flattered(case, refit, base, refit.dealt(wider), torn, wider)
    example = _example(paths, first.units)
    return Cause(
        HIDDEN,
        graver(severity_of(cost), "info"),
        f"By {first.how} {first.groups:,} groups of photos belong together ({example}), and their features agree "
        f"(more alike than others of the class in {first.alike:.0%} of pairs); with them whole macro F1 is "
        f"{told(cost, True)} lower{refit.said}.",
        cost,
        "If they are one person, plant or thing each, name the groups (--group-regex, or a column) and fit again.",
        # A column of groups and a pattern cannot both be given: then the column must hold the wider groups.
        f"{case.again} --group-regex {shlex.quote(first.pattern)} {case.beside('groups')}"
        if first.pattern and not case.run.recipe.source.group
        else "",
        details={"how": first.how, "groups": first.groups, "alike": first.alike},
    )


def _in_test(case: Case) -> Cause:
    """Test photos that were learnt from, exactly or nearly."""
    if case.test is None:
        return not_measured(TESTED, "no test photos; give them with --test")
    if case.gone:
        return not_measured(TESTED, case.gone)
    train = np.flatnonzero(case.folds >= 0)
    n, both = len(case.labels), case.looks.beside(case.test.looks)
    seen = np.zeros(len(case.test.labels), bool)
    named = []
    for pairs in both.duplicates:
        across = pairs[(pairs[:, 0] < n) & (pairs[:, 1] >= n)]
        across = across[np.isin(across[:, 0], train)]
        seen[across[:, 1] - n] = True
        tables = case.photos.table["path"].to_numpy(), case.test.photos.table["path"].to_numpy()
        named += [f"{tables[0][a]} = {tables[1][b - n]}" for a, b in across.tolist()]
    if not seen.any():
        return Cause(TESTED, "none", f"None of {len(seen):,} test photos is a copy of a training photo.", zero())
    share = float(seen.mean())
    cost = None
    flattered = f"the test score can be flattered by up to {plain(share * (1 - case.score))}"
    if case.test.labelled and not isinstance(case.answers, str) and len(np.unique(case.test.labels[~seen])) > 1:
        called = case.answers.mean.argmax(1)
        cost = _copies_cost(case.test.labels, called, seen, case.test.groups, case.classes)
        flattered = f"they flatter the test score by {told(cost, True)}"
    least: Severity = "warning" if share >= 0.01 else "info"
    return Cause(
        TESTED,
        graver(severity_of(cost), least),
        f"{int(seen.sum()):,} of {len(seen):,} test photos are copies of training photos ({listed(named, 2)}); "
        f"{flattered}.",
        cost,
        "Take them out of the test set, or out of training.",
        details={"photos": int(seen.sum()), "pairs": named[:20]},
    )


def _copies_cost(
    labels: Rows, called: Rows, seen: NDArray[np.bool_], groups: NDArray[np.str_], classes: int
) -> dict[str, float]:
    """Macro F1 of all test photos less that of those not seen before, with its interval over groups."""
    value = macro_f1(confusion_matrix(labels, called, classes)) - macro_f1(
        confusion_matrix(labels[~seen], called[~seen], classes)
    )
    drawn = [
        macro_f1(weighted_confusion(labels, called, classes, w))
        - macro_f1(weighted_confusion(labels, called, classes, w * ~seen))
        for w in group_weights(groups, 300, 0)
    ]
    return interval(float(value), np.array(drawn))


def _among(case: Case, rows: Rows) -> NDArray[np.bool_]:
    """bool (n,): which photos `rows` names."""
    found = np.zeros(len(case.labels), bool)
    found[rows] = True
    return found


def _torn(units: Rows, folds: Rows) -> NDArray[np.bool_]:
    """bool (n,): rows whose group lies in more than one fold."""
    pairs = np.unique(np.stack([units, folds], 1), axis=0)
    which, counts = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(units, which[counts > 1])


def _flattered(
    case: Case, refit: Refit, leaky: list[F64], safe: list[F64], torn: NDArray[np.bool_], units: Rows | None = None
) -> dict[str, float]:
    """Macro F1 of `leaky` less that of `safe`, all deals of the folds together, paired over groups.

    torn: bool (n,), the photos that were seen. Of the others both say what `leaky` says: their answers differ only by
    the deal of the folds, which is no leakage and would drown a small one.
    """
    rows, deals = refit.rows, max(len(leaky), len(safe))
    groups = (case.units if units is None else units)[rows]
    one = _filled(leaky, deals)
    other = [np.where(torn[:, None] & np.isfinite(p), p, q) for p, q in zip(_filled(safe, deals), one, strict=True)]
    return paired_difference(
        np.tile(case.labels[rows], deals),
        np.concatenate([p[rows] for p in other]),
        np.concatenate([p[rows] for p in one]),
        np.tile(groups, deals),
        resamples=500,
    )


def _filled(deals: list[F64], count: int) -> list[F64]:
    return [deals[i % len(deals)] for i in range(count)]


def _last_block(refit: Refit, rows: Rows) -> NDArray[np.float32]:
    """Signed roots of the deepest block alone, float32 (len(rows), width)."""
    features, width = refit.probe.features, refit.probe.features.blocks[-1][1]
    parts = [features.rooted(piece)[:, -width:] for piece in np.array_split(rows, len(rows) // 512 + 1)]
    features.forget_pages()
    return np.concatenate(parts)


def _example(paths: list[str], units: Rows) -> str:
    """Two photos of the first group of several."""
    sizes = np.bincount(units)
    first = int(np.flatnonzero(sizes > 1)[0])
    return listed([paths[i] for i in np.flatnonzero(units == first)], 2)
