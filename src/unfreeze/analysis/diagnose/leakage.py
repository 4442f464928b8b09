"""Diagnosis of leakage: evaluated images that were seen in training, as duplicates or as members of the same group.

`hidden_groups` infers groups that the table does not define from folders, file names and file order, and keeps those
supported by the similarity of the features.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from unfreeze.analysis.diagnose.cause import Cause, Severity, max_severity, not_measured, severity_of, zero
from unfreeze.analysis.diagnose.context import DiagnosisContext
from unfreeze.analysis.diagnose.refit import Refit
from unfreeze.core.arrays import F32, F64, Rows
from unfreeze.core.errors import join_names
from unfreeze.core.format import format_difference, format_estimate, format_score
from unfreeze.core.messages import option
from unfreeze.core.names import nfc
from unfreeze.data.duplicates import connected_groups
from unfreeze.metrics.bootstrap import group_weights, interval, weighted_confusion
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.differences import paired_difference
from unfreeze.metrics.two_sample_test import roc_auc

# Inferred groups are considered if at least _LEAST groups tie a share _TIED of the images, none above a share _LARGEST.
_LEAST, _TIED, _LARGEST = 8, 0.3, 0.25
# Minimum probability that a pair within a group is more similar than a pair of one class across groups; 0.5 is chance.
ALIKE = 0.75
_PAIRS, _SURE = 30, 2.0
_DRAWN = 2000
_NUMBER = re.compile(r"[\s_.()-]*\d+[\s_.()-]*$")
_PATTERNS = {
    "folders": r"(?P<group>.+)/[^/]+$",
    "file names without their last number": r"(?P<group>[^/]*?)[\s_.()-]*\d+[\s_.()-]*\.[^./]+$",
    "file names up to the first _ or -": r"(?P<group>[^/_-]+)[_-][^/]*$",
}
_FIRST = re.compile(r"^([^_-]+)[_-].")


@dataclass(frozen=True)
class InferredGroups:
    """Groups inferred from paths.

    Attributes:
        how: What they were inferred from.
        pattern: Regular expression on the path with (?P<group>...) that yields the groups; empty if none matches all
            paths.
        units: int64 (n,), the groups of the run joined by the inferred ones.
        alike: Probability that a pair within a group is more similar than a pair of one class across groups.
        groups: Number of groups of several images.
    """

    how: str
    pattern: str
    units: Rows
    alike: float
    groups: int


def hidden_groups(
    paths: Sequence[str], labels: Rows, units: Rows, features: F32, seed: int = 0
) -> list[InferredGroups]:
    """Infer groups from paths, and keep those that the features support.

    Within each class the mean feature vector is subtracted, and images are compared by cosine similarity. A grouping is
    kept if its pairs are more similar than random pairs of one class: their AUC is at least `ALIKE` and exceeds 0.5 by
    two standard errors.

    Args:
        paths: n paths with / as separator.
        labels: int64 (n,), class indices.
        units: int64 (n,), known groups; only pairs across them are considered.
        features: float32 (n, D).
        seed: Seed of the random pairs.

    Returns:
        The groupings, most certain first.

    References:
        Hanley & McNeil 1982, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
        Radiology 143.
    """
    x = features.astype(np.float32).copy()
    for c in np.unique(labels):
        x[labels == c] -= x[labels == c].mean(0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    draws = np.random.default_rng(seed)
    apart = _random_pairs(labels, units, draws)
    if len(apart) < _PAIRS:
        return []
    far = (x[apart[:, 0]] * x[apart[:, 1]]).sum(1)
    found = []
    for how, pairs in _guesses(paths, labels).items():
        pairs = pairs[units[pairs[:, 0]] != units[pairs[:, 1]]]
        near = (x[pairs[:, 0]] * x[pairs[:, 1]]).sum(1)
        if how == "the order of the files":  # file order has no groups: consecutive images are tied if they are similar
            judged = near
            pairs = pairs[near > np.quantile(far, 0.99)]
        else:
            same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
            judged = near[same]
        if len(pairs) < _PAIRS or len(judged) < _PAIRS:
            continue
        joined = connected_groups(units, pairs)
        sizes = np.bincount(joined)
        tied = float((sizes[joined] > 1).mean())
        if (sizes > 1).sum() < _LEAST or tied < _TIED or sizes.max() > _LARGEST * len(units):
            continue
        alike, error = _auc(judged, far)
        if alike >= ALIKE and alike - _SURE * error > 0.5:
            found.append(InferredGroups(how, _pattern(how, paths), joined, alike, int((sizes > 1).sum())))
    return sorted(found, key=lambda h: -h.alike)


def _pattern(how: str, paths: Sequence[str]) -> str:
    """Regular expression of this grouping; empty if some path does not match it."""
    pattern = _PATTERNS.get(how, "")
    found = (re.search(pattern, path) for path in paths)
    return pattern if pattern and all(match and match["group"] for match in found) else ""


def _guesses(paths: Sequence[str], labels: Rows) -> dict[str, Rows]:
    """Pairs (m, 2) that each heuristic ties: each image with the previous one of its group."""
    whole = [PurePosixPath(path) for path in paths]
    names = {
        "folders": [str(path.parent) for path in whole],
        "file names without their last number": [_NUMBER.sub("", path.stem) for path in whole],
        "file names up to the first _ or -": [m[1] if (m := _FIRST.match(path.stem)) else "" for path in whole],
    }
    found = {}
    for how, keys in names.items():
        if how == "folders" and len(set(keys)) <= 2 * len(np.unique(labels)):
            continue  # folders of the classes
        found[how] = _neighbours(np.array(keys), np.zeros(len(keys), np.int64), _natural(paths))
        found[how] = np.array([p for p in found[how].tolist() if keys[p[0]]], np.int64).reshape(-1, 2)
    order = _natural(paths)
    parents = np.array([str(path.parent) for path in whole])
    found["the order of the files"] = _neighbours(parents, labels, order)
    return found


def _neighbours(keys: NDArray[np.str_], also: Rows, order: Rows) -> Rows:
    """Pairs (m, 2) of consecutive images in `order` with equal keys."""
    last: dict[tuple[str, int], int] = {}
    pairs = []
    for i in order.tolist():
        key = (str(keys[i]), int(also[i]))
        if key in last:
            pairs.append((last[key], i))
        last[key] = i
    return np.array(pairs, np.int64).reshape(-1, 2)


def _natural(paths: Sequence[str]) -> Rows:
    """Natural sort order of the paths: `a10` comes after `a9`."""
    cut = [[(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split(r"(\d+)", p)] for p in paths]
    return np.array(sorted(range(len(paths)), key=lambda i: cut[i]), np.int64)


def _random_pairs(labels: Rows, units: Rows, draws: np.random.Generator) -> Rows:
    """Random pairs (m, 2) of images of one class and different groups."""
    one = draws.integers(0, len(labels), 8 * _DRAWN)
    other = draws.integers(0, len(labels), 8 * _DRAWN)
    good = (labels[one] == labels[other]) & (units[one] != units[other])
    return np.stack([one[good], other[good]], 1)[:_DRAWN]


def _auc(near: F32, far: F32) -> tuple[float, float]:
    """AUC of `near` over `far`, and its standard error."""
    auc = roc_auc(near, far)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    n, m = len(near), len(far)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    return auc, float(np.sqrt(max(variance, 0)))


GROUPS, COPIES, HIDDEN, TESTED = (
    "leakage: groups across folds",
    "leakage: copies across folds",
    "leakage: groups that the table does not name",
    "leakage: training photos in the test set",
)


def leakage(case: DiagnosisContext, refit: Refit | str) -> list[Cause]:
    """Measure leakage by groups and duplicates across folds, unknown groups, and training images in the test set."""
    rows = case.inside
    given = connected_groups(case.photos.table["group"].to_numpy())
    return [
        *_across(case, refit, given, rows),
        _hidden(case, refit),
        _in_test(case),
    ]


def _across(case: DiagnosisContext, refit: Refit | str, given: Rows, rows: Rows) -> list[Cause]:
    """Groups, and further duplicates, that are split across folds, compared with folds that keep them together."""
    torn = _torn(given[rows], case.folds[rows])
    copied = _torn(case.units[rows], case.folds[rows]) & ~torn
    fit = f"{case.again} {case.run_option('safe')}"
    if not torn.any():
        found = [_whole(case, refit, rows)]
        safe = [refit.proba] if isinstance(refit, Refit) else None
    elif isinstance(refit, str):
        why = f"{int(torn.sum()):,} of {len(rows):,} photos have others of their group in another fold; {refit}"
        found = [not_measured(GROUPS, why, "fit again with groups kept together", f"{fit} --set folds.use_groups=true")]
        safe = None
    else:
        safe = refit.dealt(given)
        cost = _flattered(case, refit, [refit.proba], safe, _among(case, rows[torn]))
        found = [
            Cause(
                GROUPS,
                max_severity(severity_of(cost), "warning"),
                f"{int(torn.sum()):,} of {len(rows):,} images were predicted by a model trained on their group; "
                f"with groups kept together macro F1 is {format_estimate(cost, signed=True)} lower{refit.said}.",
                cost,
                "Use the score with groups kept together, and fit with folds.use_groups=true.",
                f"{fit} --set folds.use_groups=true",
                details={"photos": int(torn.sum())},
            )
        ]
    if not copied.any():
        found.append(Cause(COPIES, "none", "No photo has an exact or near copy in another fold."))
    elif safe is None or isinstance(refit, str):
        why = f"{int(copied.sum()):,} photos have a copy in another fold; {refit}"
        found.append(not_measured(COPIES, why, "fit again", f"{fit} --set folds.group_duplicates=true"))
    else:
        together = refit.dealt(case.units)
        cost = _flattered(case, refit, safe, together, _among(case, rows[copied]))
        found.append(
            Cause(
                COPIES,
                max_severity(severity_of(cost), "warning" if copied.mean() >= 0.01 else "info"),
                f"{int(copied.sum()):,} of {len(rows):,} photos have an exact or near copy in another fold; with "
                f"copies together macro F1 is {format_estimate(cost, signed=True)} lower{refit.said}.",
                cost,
                "Remove the copies, or keep them in one fold with folds.group_duplicates=true.",
                f"{fit} --set folds.use_groups=true --set folds.group_duplicates=true",
                details={"photos": int(copied.sum())},
            )
        )
    return found


def _whole(case: DiagnosisContext, refit: Refit | str, rows: Rows) -> Cause:
    """Row for a run with intact groups: the score that a random split ignoring groups would have reported."""
    if not len(set(case.units[rows].tolist())) < len(rows):
        return Cause(GROUPS, "none", "Every image is its own group in the table, so no group can be split.")
    details = {}
    promised = ""
    known = case.run.scores().get("random_split")
    if known:
        more = known["macro_f1"]["value"] - case.score
        gain = format_difference(more)
        promised = f"; an image-level split would have reported {gain} of macro F1 more, which is optimistic"
        details["random_split"] = {"value": more}
    elif isinstance(refit, Refit):
        alone = np.arange(len(case.labels), dtype=np.int64)
        every = np.ones(len(case.labels), bool)
        figure = _flattered(case, refit, refit.dealt(alone), refit.dealt(case.units), every)
        how = f"{format_estimate(figure, signed=True)} of macro F1 more, which is optimistic"
        how = how if figure["low"] > 0 else f"about the same ({format_estimate(figure, signed=True)})"
        promised = f"; an image-level split would have reported {how}{refit.said}"
        details["random_split"] = figure
    return Cause(GROUPS, "none", f"No group or duplicate is split across folds{promised}.", zero(), details=details)


def _hidden(case: DiagnosisContext, refit: Refit | str) -> Cause:
    """Groups inferred from folders, file names or file order that the features support."""
    if isinstance(refit, str):
        return not_measured(HIDDEN, refit)
    rows = refit.rows
    paths = case.photos.table["path"].to_numpy()[rows].tolist()
    units = case.units
    features = _last_block(refit, rows)
    found = hidden_groups(list(map(nfc, paths)), case.labels[rows], units[rows], features, case.run.recipe.seed)
    if not found:
        return Cause(HIDDEN, "none", "Folders, file names and file order show no further groups.")
    first = found[0]
    wider = units.copy()
    wider[rows] = first.units + int(units.max()) + 1
    base, folds = [refit.proba], case.folds
    if _torn(units[rows], folds[rows]).any():  # the rows above already account for these
        base, folds = refit.dealt(units), refit.folds_for(units, case.run.recipe.seed)
    torn = _among(case, rows[_torn(wider[rows], folds[rows])])
    cost = _flattered(case, refit, base, refit.dealt(wider), torn, wider)
    example = _example(paths, first.units)
    return Cause(
        HIDDEN,
        max_severity(severity_of(cost), "info"),
        f"By {first.how} {first.groups:,} groups of photos belong together ({example}), and their features agree "
        f"(more alike than others of the class in {first.alike:.0%} of pairs); with them whole macro F1 is "
        f"{format_estimate(cost, signed=True)} lower{refit.said}.",
        cost,
        f"If they are one person, plant or thing each, name the groups ({option('group_regex')}, or a column) and fit "
        "again.",
        # A group column and a pattern are mutually exclusive: with a column, it must hold the wider groups itself.
        f"{case.again} --group-regex {shlex.quote(first.pattern)} {case.run_option('groups')}"
        if first.pattern and not case.run.recipe.source.group
        else "",
        details={"how": first.how, "groups": first.groups, "alike": first.alike},
    )


def _in_test(case: DiagnosisContext) -> Cause:
    """Test images that are exact or near duplicates of training images."""
    if case.test is None:
        return not_measured(TESTED, f"no test photos; give them with {option('test')}")
    if case.gone:
        return not_measured(TESTED, case.gone)
    train = np.flatnonzero(case.folds >= 0)
    n, both = len(case.labels), case.looks.concat(case.test.looks)
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
    flattered = f"the test score can be optimistic by up to {format_score(share * (1 - case.score))}"
    if case.test.labelled and not isinstance(case.answers, str) and len(np.unique(case.test.labels[~seen])) > 1:
        called = case.answers.mean.argmax(1)
        cost = _copies_cost(case.test.labels, called, seen, case.test.groups, case.classes)
        flattered = f"they raise the test score by {format_estimate(cost, signed=True)}"
    least: Severity = "warning" if share >= 0.01 else "info"
    return Cause(
        TESTED,
        max_severity(severity_of(cost), least),
        f"{int(seen.sum()):,} of {len(seen):,} test photos are copies of training photos ({join_names(named, 2)}); "
        f"{flattered}.",
        cost,
        "Take them out of the test set, or out of training.",
        details={"photos": int(seen.sum()), "pairs": named[:20]},
    )


def _copies_cost(labels: Rows, called: Rows, seen: NDArray[np.bool_], groups: Rows, classes: int) -> dict[str, float]:
    """Macro F1 on all test images minus that without the duplicates, with its interval over groups."""
    value = macro_f1(confusion_matrix(labels, called, classes)) - macro_f1(
        confusion_matrix(labels[~seen], called[~seen], classes)
    )
    drawn = [
        macro_f1(weighted_confusion(labels, called, classes, w))
        - macro_f1(weighted_confusion(labels, called, classes, w * ~seen))
        for w in group_weights(groups, 300, 0)
    ]
    return interval(float(value), np.array(drawn))


def _among(case: DiagnosisContext, rows: Rows) -> NDArray[np.bool_]:
    """bool (n,), membership mask of `rows`."""
    found = np.zeros(len(case.labels), bool)
    found[rows] = True
    return found


def _torn(units: Rows, folds: Rows) -> NDArray[np.bool_]:
    """bool (n,), rows whose group is in more than one fold."""
    pairs = np.unique(np.stack([units, folds], 1), axis=0)
    which, counts = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(units, which[counts > 1])


def _flattered(
    case: DiagnosisContext,
    refit: Refit,
    leaky: list[F64],
    safe: list[F64],
    torn: NDArray[np.bool_],
    units: Rows | None = None,
) -> dict[str, float]:
    """Macro F1 of `leaky` minus that of `safe` over several fold assignments, paired over groups.

    Args:
        case: Context.
        refit: Probe of the context.
        leaky: Out-of-fold probabilities float64 (n, C), one per fold assignment that splits groups.
        safe: The same for fold assignments that keep groups together.
        torn: bool (n,), images affected by leakage. For all others, the predictions of `leaky` are used on both sides:
            they differ only by the fold assignment, which is no leakage and would mask a small effect.
        units: int64 (n,), groups for pairing; by default those of the run.
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
    """Signed square roots of the deepest feature block, float32 (len(rows), width)."""
    features, width = refit.probe.features, refit.probe.features.blocks[-1][1]
    parts = [features.rooted(piece)[:, -width:] for piece in np.array_split(rows, len(rows) // 512 + 1)]
    features.forget_pages()
    return np.concatenate(parts)


def _example(paths: list[str], units: Rows) -> str:
    """Two images of the first group of several images."""
    sizes = np.bincount(units)
    first = int(np.flatnonzero(sizes > 1)[0])
    return join_names([paths[i] for i in np.flatnonzero(units == first)], 2)
