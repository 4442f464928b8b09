"""Label issues: a ranking of images by how strongly their labels are contradicted.

The method follows confident learning (Northcutt, Jiang & Chuang 2021, "Confident learning: estimating uncertainty in
dataset labels", JAIR 70, and the cleanlab package): out-of-fold probabilities are compared with the labels. Group
information is added: an attribute that is constant in nearly all groups (the gender of a person) is evaluated for the
whole group at once, and an image that disagrees with the rest of its group is reported. So are duplicates with
different labels.

The score only ranks images. It is not a probability, since its prior rate of wrong labels is the same for all data
sets. The number of wrong labels is estimated in `metrics.label_noise`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import Proba, Rows
from unfreeze.core.format import format_probability

SUSPECT_COLUMNS = ("path", "label", "suggested", "score", "reason")
CONSTANT = 0.9  # minimum fraction of consistent groups for an attribute to be constant within groups
_GROUPS = 5  # minimum number of groups with at least two images for that decision
_FLOOR = 1e-6
NOISE = 0.033  # prior rate of wrong labels: the mean of ten test sets (Northcutt et al. 2021b)
_VOTES = 2  # maximum lead in votes within a group that counts: its labels often have a common source
EXACT = "the same"  # kind of duplicates with identical bytes
_WORTH = 0.05  # minimum score of listed images


@dataclass(frozen=True)
class LabelAxis:
    """One attribute of the label with its out-of-fold probabilities.

    Attributes:
        name: Display name.
        values: Names of the V values, in column order.
        given: int64 (n,), value of each label.
        proba: float64 (n, V), out-of-fold probabilities, rows sum to 1.
    """

    name: str
    values: tuple[str, ...]
    given: Rows
    proba: Proba


@dataclass(frozen=True)
class LabelEvidence:
    """Evidence against one attribute of each label.

    Attributes:
        attribute: The attribute.
        score: float64 (n,), 0 to 1, higher is more suspicious.
        suggested: int64 (n,), best alternative value.
        by_group: Whether groups were evaluated as a whole.
        dissent: bool (n,), images whose group has another value.
        own: float64 (n,), calibrated probability of the given value.
        other: float64 (n,), calibrated probability of the suggested value.
    """

    attribute: LabelAxis
    score: NDArray[np.float64]
    suggested: Rows
    by_group: bool
    dissent: NDArray[np.bool_]
    own: NDArray[np.float64]
    other: NDArray[np.float64]


def find_label_issues(given: Rows, proba: Proba) -> NDArray[np.bool_]:
    """Label issues by confident learning (cleanlab's `find_label_issues`, pruned by noise rate).

    Args:
        given: int64 (n,), labels.
        proba: float64 (n, C), out-of-fold probabilities.

    Returns:
        bool (n,).
    """
    from cleanlab.filter import find_label_issues

    present = np.unique(given)
    if len(present) < 2:
        return np.zeros(len(given), bool)
    place = np.searchsorted(present, given)
    inside = np.maximum(proba[:, present], _FLOOR)
    inside = inside / inside.sum(1, keepdims=True)
    return np.asarray(find_label_issues(place, inside, filter_by="prune_by_noise_rate", n_jobs=1), bool)


def is_constant_within_groups(given: NDArray[np.generic], groups: NDArray[np.generic]) -> bool:
    """Check whether an attribute is constant within nearly all groups, beyond what a single frequent value explains.

    Only groups with at least two images are used.

    Args:
        given: (n,), values.
        groups: (n,).
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
    # A single dissenting image makes a large group inconsistent, so agreement is also measured by image.
    most = table["group"].map(table.groupby(["group", "given"]).size().groupby("group").max())
    inside = table["group"].map(sizes["size"]) > 1
    agreeing = max(agreeing, float((most[inside] / table.loc[inside, "group"].map(sizes["size"])).mean()) - 0.05)
    return bool(agreeing >= CONSTANT and 1 - agreeing < 0.5 * (1 - by_chance))


def score_labels(attribute: LabelAxis, groups: NDArray[np.generic]) -> LabelEvidence:
    """Score the evidence against each label, from the probabilities and, for group attributes, the group.

    If the attribute is constant within groups, log-probabilities are averaged over each group. They are then calibrated
    with one temperature on the given values (Guo et al. 2017), so that attributes with poor models cause no false
    alarms. The prior odds against a label combine NOISE and confident learning's threshold of its value: on the
    benchmark this ranks labels at least as well as the posterior of `metrics.label_noise`.

    Args:
        attribute: The attribute.
        groups: (n,).
    """
    n = np.arange(len(attribute.given))
    logs = np.log(np.maximum(attribute.proba, _FLOOR))
    by_group = is_constant_within_groups(attribute.given, groups)
    weights = np.ones(len(n))
    if by_group:
        logs = pd.DataFrame(logs).groupby(groups).transform("mean").to_numpy(np.float64)
        weights = 1 / pd.Series(groups).groupby(groups).transform("size").to_numpy(np.float64)
    logs = _calibrated(logs, attribute.given, weights)
    trust = np.log((1 - NOISE) / NOISE)  # prior log odds in favor of a label
    votes, others = np.zeros(len(n)), np.full(len(n), -1)
    if by_group:
        votes, others = _votes(attribute.given, groups)
    against = logs + trust * np.eye(logs.shape[1])[np.maximum(others, 0)] * votes[:, None]
    own = against[n, attribute.given]
    against[n, attribute.given] = -np.inf
    suggested = against.argmax(1)
    odds = against[n, suggested] - own - trust + _thresholds(logs, attribute.given, weights)[attribute.given]
    return LabelEvidence(
        attribute,
        _sigmoid(odds),
        suggested.astype(np.int64),
        by_group,
        votes > 0,
        np.exp(logs[n, attribute.given]),
        np.exp(logs[n, suggested]),
    )


def rank_label_issues(
    paths: Sequence[str],
    labels: Rows,
    classes: Sequence[str],
    doubts: Sequence[LabelEvidence],
    class_values: NDArray[np.int64],
    groups: NDArray[np.generic],
    duplicates: Mapping[str, Rows] | None = None,
) -> pd.DataFrame:
    """Ranked table of label issues, most suspicious first; only images with contradicting evidence.

    Args:
        paths: Path of each image.
        labels: int64 (n,), class indices.
        classes: Class names.
        doubts: Evidence for each attribute of the label.
        class_values: int64 (C, A), value of each attribute for each class.
        groups: (n,).
        duplicates: Kind (EXACT, "nearly the same") -> pairs of rows (m, 2). Of two duplicates with different labels,
            the one that the models contradict is listed. Near duplicates are weighted by the overlap of their predicted
            probabilities.

    Returns:
        DataFrame with SUSPECT_COLUMNS.
    """
    scores = np.stack([d.score for d in doubts], 1)
    strongest = scores.argmax(1)
    score = scores.max(1)
    suggested = _composed(labels, doubts, class_values, scores)
    mates = _Mates.of(groups)
    reasons: dict[int, str] = {}

    def reason(i: int) -> str:
        """Reason for listing an image.

        Built only for listed images: sentences for a million images would take minutes.
        """
        return reasons.get(i) or _reason(doubts[strongest[i]], i, mates)

    for kind, pairs in (duplicates or {}).items():
        for i, j in _both_ways(pairs):
            if labels[i] == labels[j]:
                continue
            odds = sum(_log_ratio(d, i, j) for d in doubts)
            contradicted = float(_sigmoid(np.array(odds)))
            if kind != EXACT:  # images with different predictions are probably not duplicates
                contradicted *= min(_overlap(d, i, j) for d in doubts)
            if contradicted >= score[i]:
                score[i], suggested[i] = contradicted, labels[j]
                reasons[i] = f"{kind} photo as {paths[j]}, which is labeled {classes[labels[j]]}"
            else:
                reasons[i] = f"{reason(i)}; {kind} photo as {paths[j]}, labeled {classes[labels[j]]}"
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


def of_classes(column: Iterable[str], labels: Iterable[str], classes: Sequence[str], values: Sequence[str]) -> Rows:
    """Value of the attribute for each class.

    Args:
        column: (n,), value of each image.
        labels: (n,), label of each image.
        classes: Class names.
        values: Names of the values.

    Returns:
        int64 (C,), -1 for classes without images.
    """
    value_of = dict(zip(labels, column, strict=True))
    return np.array([values.index(value_of[c]) if c in value_of else -1 for c in classes], np.int64)


def marginalize(proba: Proba, of_class: Rows, values: int) -> Proba:
    """Marginal probabilities of an attribute's values.

    Args:
        proba: float64 (n, C), class probabilities.
        of_class: int64 (C,), value for each class.
        values: Number of values V.

    Returns:
        float64 (n, V).
    """
    return np.stack([proba[:, of_class == v].sum(1) for v in range(values)], 1)


def precision_recall_at_k(wrong: NDArray[np.bool_], planted: int) -> dict[str, Any]:
    """Precision and recall of a ranking of label issues, at k = `planted` and at 2k, if the wrong labels are known.

    Args:
        wrong: bool (m,), whether each ranked image has a wrong label, best first.
        planted: Number of wrong labels.
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
    """Log of confident learning's threshold of each value, (V,).

    The threshold is the mean probability of the value over the images that are labeled with it. Values with poor models
    contradict their labels more often, and the threshold compensates for this.
    """
    sums = np.bincount(given, weights * np.exp(logs[np.arange(len(given)), given]), minlength=logs.shape[1])
    count = np.bincount(given, weights, minlength=logs.shape[1])
    return np.log(np.maximum(sums / np.maximum(count, _FLOOR), _FLOOR))


def _votes(given: Rows, groups: NDArray[np.generic]) -> tuple[NDArray[np.float64], Rows]:
    """Votes of the other images of a group against the label of each image.

    Returns:
        The lead of the most frequent other value over the image's own, at most _VOTES, and that value, -1 without a
        lead.
    """
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
    """Log-probabilities with the temperature that maximizes the likelihood of the given values."""
    n = np.arange(len(given))

    def tempered(temperature: float) -> Proba:
        scaled = logs / temperature
        scaled = scaled - scaled.max(1, keepdims=True)
        return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))

    grid = np.geomspace(0.25, 16, 49)
    losses = [-float(weights @ tempered(t)[n, given]) for t in grid]
    return tempered(float(grid[int(np.argmin(losses))]))


def _composed(labels: Rows, doubts: Sequence[LabelEvidence], class_values: NDArray[np.int64], scores: Proba) -> Rows:
    """Class suggested for each image, int64 (n,).

    It has the suggested value of the most doubtful attribute and of every other attribute that is probably wrong.
    """
    wanted = class_values[labels].copy()
    strongest = scores.argmax(1)
    for a, d in enumerate(doubts):
        change = (strongest == a) | (scores[:, a] > 0.5)
        wanted[change, a] = d.suggested[change]
    known = {tuple(values): c for c, values in enumerate(class_values.tolist())}
    found = np.array([known.get(tuple(values), -1) for values in wanted.tolist()], np.int64)
    for i in np.flatnonzero(found < 0):  # no such class: the nearest one
        a = strongest[i]
        fits = np.flatnonzero(class_values[:, a] == wanted[i, a])
        same = (class_values[fits] == class_values[labels[i]]).sum(1)
        found[i] = fits[int(same.argmax())] if len(fits) else labels[i]
    return found


@dataclass(frozen=True)
class _Mates:
    """Images of each group.

    Attributes:
        group: int64 (n,), group number of each image.
        order: int64 (n,), images sorted by group; those of group g start at `starts[g]`.
        starts: int64 (G + 1,).
    """

    group: Rows
    order: Rows
    starts: Rows

    @classmethod
    def of(cls, groups: NDArray[np.generic]) -> _Mates:
        group, _ = pd.factorize(groups)
        sizes = np.bincount(group)
        return cls(group, np.argsort(group, kind="stable"), np.r_[0, np.cumsum(sizes)])

    def __getitem__(self, i: int) -> Rows:
        """All images in the group of image i, including itself."""
        g = self.group[i]
        return self.order[self.starts[g] : self.starts[g + 1]]


def _reason(d: LabelEvidence, i: int, groups: _Mates) -> str:
    """Clause that states the evidence against the label of image i."""
    a = d.attribute
    named, other = a.values[a.given[i]], a.values[d.suggested[i]]
    what = "" if a.name == "label" else f"{a.name}: "
    mates = groups[i]
    if d.dissent[i]:
        say = int((a.given[mates] == d.suggested[i]).sum())
        return f"{what}{say} of the {len(mates) - 1} other photos of its group say {other}, this one {named}"
    prediction = f"{other} at {format_probability(d.other[i])}, {named} at {format_probability(d.own[i])}"
    if d.by_group and len(mates) > 1:
        return f"{what}all {len(mates)} photos of its group together look like {prediction}"
    return f"{what}out-of-fold models predict {prediction}"


def _log_ratio(d: LabelEvidence, i: int, j: int) -> float:
    """Log odds of image j's value against that of image i, from the mean log-probabilities of these duplicates."""
    a = d.attribute
    logs = np.log(np.maximum(a.proba[[i, j]], _FLOOR)).mean(0)
    return float(np.clip(logs[a.given[j]] - logs[a.given[i]], -4, 4))


def _overlap(d: LabelEvidence, i: int, j: int) -> float:
    """Overlap of the predicted probabilities of images i and j, 0 to 1."""
    return float(np.minimum(d.attribute.proba[i], d.attribute.proba[j]).sum())


def _both_ways(pairs: Rows) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for x, y in pairs for a, b in ((x, y), (y, x))]


def _sigmoid(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(odds, -40, 40)))
