"""Suspect labels: where out-of-fold probabilities, the group or a duplicate speak against a label.

The idea is confident learning (Northcutt, Jiang & Chuang 2021, "Confident learning: estimating uncertainty in dataset
labels", JAIR 70; cleanlab's code): probabilities from models that never saw the photo, held against its label. Added
here is what groups know: an attribute that is the same in nearly all photos of a group (the gender of a person) is
judged for the whole group at once, and a photo that contradicts the rest of its group stands out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SUSPECT_COLUMNS = ("path", "label", "suggested", "score", "reason")
CONSTANT = 0.9  # share of groups that must agree, for an attribute to belong to the group
_GROUPS = 5  # of two photos or more; with fewer nothing can be said about groups
_FLOOR = 1e-6
NOISE = 0.033  # share of wrong labels to begin with: the mean of ten much used test sets (Northcutt et al. 2021b)
_VOTES = 2  # more photos of a group than this do not count further: their labels often have one source
_WORTH = 0.05  # photos under this score are no suspects

Proba = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Attribute:
    """One thing that a label says, and what models that never saw the photo say of it.

    name: as people call it. values: its V values, in column order. given: int64 (n,), what the labels say.
    proba: float64 (n, V), out of fold, rows sum to 1.
    """

    name: str
    values: tuple[str, ...]
    given: Rows
    proba: Proba


@dataclass(frozen=True)
class Doubt:
    """What speaks against one attribute of each photo.

    score: float64 (n,), about how likely the given value is wrong. suggested: int64 (n,), the best other value.
    by_group: whether the whole group was judged at once. dissent: bool (n,), photos whose group says otherwise.
    own, other: float64 (n,), calibrated probabilities of the given and the suggested value.
    """

    attribute: Attribute
    score: NDArray[np.float64]
    suggested: Rows
    by_group: bool
    dissent: NDArray[np.bool_]
    own: NDArray[np.float64]
    other: NDArray[np.float64]


def likely_wrong(given: Rows, proba: Proba) -> NDArray[np.bool_]:
    """bool (n,): labels that confident learning would prune by noise rate (cleanlab `find_label_issues`)."""
    from cleanlab.filter import find_label_issues

    present = np.unique(given)
    if len(present) < 2:
        return np.zeros(len(given), bool)
    place = np.searchsorted(present, given)
    inside = np.maximum(proba[:, present], _FLOOR)
    inside = inside / inside.sum(1, keepdims=True)
    return np.asarray(find_label_issues(place, inside, filter_by="prune_by_noise_rate", n_jobs=1), bool)


def belongs_to_groups(given: NDArray[np.generic], groups: NDArray[np.generic]) -> bool:
    """Whether an attribute is the same within nearly all groups, and not only because one value is so common.

    given: (n,). groups: (n,). Only groups of two photos or more speak.
    """
    table = pd.DataFrame({"given": given, "group": groups})
    sizes = table.groupby("group")["given"].agg(["size", "nunique"])
    several = sizes[sizes["size"] > 1]
    if len(several) < _GROUPS:
        return False
    shares = table["given"].value_counts(normalize=True).to_numpy()
    many, often = np.unique(several["size"].to_numpy(np.int64), return_counts=True)
    by_chance = float((often * [(shares**size).sum() for size in many.tolist()]).sum() / len(several))
    agreeing = float((several["nunique"] == 1).mean())
    # One photo of many that dissents makes a group disagree: judged by photos as well.
    most = table["group"].map(table.groupby(["group", "given"]).size().groupby("group").max())
    inside = table["group"].map(sizes["size"]) > 1
    agreeing = max(agreeing, float((most[inside] / table.loc[inside, "group"].map(sizes["size"])).mean()) - 0.05)
    return bool(agreeing >= CONSTANT and 1 - agreeing < 0.5 * (1 - by_chance))


def doubt(attribute: Attribute, groups: NDArray[np.generic]) -> Doubt:
    """What the probabilities, and the group where the attribute belongs to it, say against each photo's value.

    groups: (n,). Log-probabilities of a group are averaged where the attribute belongs to groups, then calibrated with
    one temperature on the given values (Guo et al. 2017), so that attributes that models read badly raise no false
    alarms. The odds against a label start from NOISE, and from confident learning's threshold of its value.
    """
    n = np.arange(len(attribute.given))
    logs = np.log(np.maximum(attribute.proba, _FLOOR))
    by_group = belongs_to_groups(attribute.given, groups)
    weights = np.ones(len(n))
    if by_group:
        logs = pd.DataFrame(logs).groupby(groups).transform("mean").to_numpy(np.float64)
        weights = 1 / pd.Series(groups).groupby(groups).transform("size").to_numpy(np.float64)
    logs = _calibrated(logs, attribute.given, weights)
    trust = np.log((1 - NOISE) / NOISE)  # how much one label is believed
    votes, others = np.zeros(len(n)), np.full(len(n), -1)
    if by_group:
        votes, others = _votes(attribute.given, groups)
    against = logs + trust * np.eye(logs.shape[1])[np.maximum(others, 0)] * votes[:, None]
    own = against[n, attribute.given]
    against[n, attribute.given] = -np.inf
    suggested = against.argmax(1)
    odds = against[n, suggested] - own - trust + _thresholds(logs, attribute.given, weights)[attribute.given]
    return Doubt(
        attribute,
        _sigmoid(odds),
        suggested.astype(np.int64),
        by_group,
        votes > 0,
        np.exp(logs[n, attribute.given]),
        np.exp(logs[n, suggested]),
    )


def suspects(
    paths: Sequence[str],
    labels: Rows,
    classes: Sequence[str],
    doubts: Sequence[Doubt],
    class_values: NDArray[np.int64],
    groups: NDArray[np.generic],
    duplicates: Mapping[str, Rows] | None = None,
) -> pd.DataFrame:
    """The ranked table of SUSPECT_COLUMNS, most suspicious first: only photos that something speaks against.

    labels: int64 (n,), class indices. doubts: one for each attribute of the label. class_values: int64 (C, A), the
    value of each attribute in each class. duplicates: kind ("same", "nearly the same") -> pairs (m, 2) of rows.
    """
    scores = np.stack([d.score for d in doubts], 1)
    strongest = scores.argmax(1)
    score = scores.max(1)
    suggested = _composed(labels, doubts, class_values, scores)
    mates = _Mates.of(groups)
    reasons: dict[int, str] = {}

    def reason(i: int) -> str:
        """Made for those alone that are told: sentences for a million photos take minutes."""
        return reasons.get(i) or _reason(doubts[strongest[i]], i, mates)

    for kind, pairs in (duplicates or {}).items():
        for i, j in _both_ways(pairs):
            if labels[i] == labels[j]:
                continue
            odds = sum(_log_ratio(d, i, j) for d in doubts)
            contradicted = float(_sigmoid(np.array(odds)))
            if contradicted >= score[i]:
                score[i], suggested[i] = contradicted, labels[j]
                reasons[i] = f"{kind} photo as {paths[j]}, which is labelled {classes[labels[j]]}"
            else:
                reasons[i] = f"{reason(i)}; {kind} photo as {paths[j]}, labelled {classes[labels[j]]}"
    ranked = [i for i in np.argsort(-score, kind="stable") if score[i] >= _WORTH and suggested[i] != labels[i]]
    return pd.DataFrame(
        {
            "path": [paths[i] for i in ranked],
            "label": [classes[labels[i]] for i in ranked],
            "suggested": [classes[suggested[i]] for i in ranked],
            "score": score[ranked],
            "reason": [reason(i) for i in ranked],
        },
        columns=list(SUSPECT_COLUMNS),
    )


def found_at(wrong: NDArray[np.bool_], planted: int) -> dict[str, Any]:
    """How well a ranking finds labels known to be wrong: precision and recall at k = `planted` and at 2k.

    wrong: bool (m,), whether each ranked photo is one of them, best first.
    """
    first, twice = int(wrong[:planted].sum()), int(wrong[: 2 * planted].sum())
    return {
        "planted": planted,
        "found_at_k": first,
        "precision_at_k": first / planted if planted else 0.0,
        "recall_at_2k": twice / planted if planted else 0.0,
        "found_at_2k": twice,
        "listed": len(wrong),
    }


def _thresholds(logs: Proba, given: Rows, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of confident learning's threshold of each value, (V,): how sure models are on average of photos that are
    said to have it. A value that models read badly contradicts its labels more readily, and that is taken off.
    """
    told = np.bincount(given, weights * np.exp(logs[np.arange(len(given)), given]), minlength=logs.shape[1])
    count = np.bincount(given, weights, minlength=logs.shape[1])
    return np.log(np.maximum(told / np.maximum(count, _FLOOR), _FLOOR))


def _votes(given: Rows, groups: NDArray[np.generic]) -> tuple[NDArray[np.float64], Rows]:
    """How many more of the other photos of its group hold another value than hold its own, up to _VOTES; that value."""
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, int(given.max()) + 1))
    np.add.at(counts, (group, given), 1)
    others, n = counts[group], np.arange(len(given))
    own = others[n, given] - 1
    others[n, given] = -1
    most = others.argmax(1)
    lead = np.clip(others[n, most] - own, 0, _VOTES)
    return lead, np.where(lead > 0, most, -1).astype(np.int64)


def _calibrated(logs: Proba, given: Rows, weights: NDArray[np.float64]) -> Proba:
    """Log-probabilities with the temperature that makes the given values likeliest."""
    n = np.arange(len(given))

    def tempered(temperature: float) -> Proba:
        scaled = logs / temperature
        scaled = scaled - scaled.max(1, keepdims=True)
        return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))

    grid = np.geomspace(0.25, 16, 49)
    losses = [-float(weights @ tempered(t)[n, given]) for t in grid]
    return tempered(float(grid[int(np.argmin(losses))]))


def _composed(labels: Rows, doubts: Sequence[Doubt], class_values: NDArray[np.int64], scores: Proba) -> Rows:
    """The class with the suggested value of the most doubtful attribute, and of every other that is likely wrong."""
    wanted = class_values[labels].copy()
    strongest = scores.argmax(1)
    for a, d in enumerate(doubts):
        change = (strongest == a) | (scores[:, a] > 0.5)
        wanted[change, a] = d.suggested[change]
    known = {tuple(values): c for c, values in enumerate(class_values.tolist())}
    found = np.array([known.get(tuple(values), -1) for values in wanted.tolist()], np.int64)
    for i in np.flatnonzero(found < 0):  # no class has these values together: the nearest that has the strongest one
        a = strongest[i]
        fits = np.flatnonzero(class_values[:, a] == wanted[i, a])
        same = (class_values[fits] == class_values[labels[i]]).sum(1)
        found[i] = fits[int(same.argmax())] if len(fits) else labels[i]
    return found


@dataclass(frozen=True)
class _Mates:
    """The photos of each group: `order` (n,) holds them side by side, those of group g from `starts[g]` on."""

    group: Rows
    order: Rows
    starts: Rows

    @classmethod
    def of(cls, groups: NDArray[np.generic]) -> _Mates:
        group, _ = pd.factorize(groups)
        sizes = np.bincount(group)
        return cls(group, np.argsort(group, kind="stable"), np.r_[0, np.cumsum(sizes)])

    def __getitem__(self, i: int) -> Rows:
        """All photos of photo i's group, itself among them."""
        g = self.group[i]
        return self.order[self.starts[g] : self.starts[g + 1]]


def _reason(d: Doubt, i: int, groups: _Mates) -> str:
    """One plain sentence part for a photo."""
    a = d.attribute
    named, other = a.values[a.given[i]], a.values[d.suggested[i]]
    what = "" if a.name == "label" else f"{a.name}: "
    mates = groups[i]
    if d.dissent[i]:
        say = int((a.given[mates] == d.suggested[i]).sum())
        return f"{what}{say} of the {len(mates) - 1} other photos of its group say {other}, this one {named}"
    told = f"{other} at {_percent(d.other[i])}, {named} at {_percent(d.own[i])}"
    if d.by_group and len(mates) > 1:
        return f"{what}all {len(mates)} photos of its group together look like {told}"
    return f"{what}models that never saw it say {told}"


def _log_ratio(d: Doubt, i: int, j: int) -> float:
    """Log odds of photo j's value against photo i's, over both photos: the two show the same."""
    a = d.attribute
    logs = np.log(np.maximum(a.proba[[i, j]], _FLOOR)).mean(0)
    return float(np.clip(logs[a.given[j]] - logs[a.given[i]], -4, 4))


def _both_ways(pairs: Rows) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for x, y in pairs for a, b in ((x, y), (y, x))]


def _sigmoid(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(odds, -40, 40)))


def _percent(value: float) -> str:
    return "over 99 %" if value >= 0.995 else "under 1 %" if value < 0.005 else f"{100 * value:.0f} %"
