"""Groups that the table does not name: guessed from folders, file names and file order, believed if features agree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from unfreeze.data.duplicates import joined_groups
from unfreeze.judge.shift import chance_larger

Rows = NDArray[np.int64]
F32 = NDArray[np.float32]

# A guess is looked at if so many groups tie this share of the photos, and none of them holds more than _LARGEST.
_LEAST, _TIED, _LARGEST = 8, 0.3, 0.25
# Chance that two photos of a guessed group are more alike than two of one class and different groups; .5 says nothing.
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
class Hidden:
    """Groups guessed. how: what they were guessed from. pattern: the same as a regular expression of the path with
    (?P<group>...), '' where none says it of all paths. units: int64 (n,), the run's own groups joined by them.
    alike: chance that two photos of a group are more alike than two of one class that are not.
    """

    how: str
    pattern: str
    units: Rows
    alike: float
    groups: int


def hidden_groups(paths: Sequence[str], labels: Rows, units: Rows, features: F32, seed: int = 0) -> list[Hidden]:
    """Guesses that the features agree with, the surest first; only what ties photos of different `units` counts.

    paths: (n,) with /. labels, units: int64 (n,). features: float32 (n, D); within a class their mean is taken off and
    photos are compared by the cosine. A guess is believed if pairs that it ties are alike (`ALIKE`) more often than
    pairs of one class drawn at random, and by two standard errors (Hanley & McNeil 1982, of one pair a group).
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
        if how == "the order of the files":  # a chain of neighbours holds where they are alike
            judged = near
            pairs = pairs[near > np.quantile(far, 0.99)]
        else:
            same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
            judged = near[same]
        if len(pairs) < _PAIRS or len(judged) < _PAIRS:
            continue
        joined = joined_groups(units, pairs)
        sizes = np.bincount(joined)
        tied = float((sizes[joined] > 1).mean())
        if (sizes > 1).sum() < _LEAST or tied < _TIED or sizes.max() > _LARGEST * len(units):
            continue
        alike, error = _auc(judged, far)
        if alike >= ALIKE and alike - _SURE * error > 0.5:
            found.append(Hidden(how, _pattern(how, paths), joined, alike, int((sizes > 1).sum())))
    return sorted(found, key=lambda h: -h.alike)


def _pattern(how: str, paths: Sequence[str]) -> str:
    """The regular expression that makes these groups, '' where it finds none in some path."""
    pattern = _PATTERNS.get(how, "")
    found = (re.search(pattern, path) for path in paths)
    return pattern if pattern and all(match and match["group"] for match in found) else ""


def _guesses(paths: Sequence[str], labels: Rows) -> dict[str, Rows]:
    """For each way to guess, pairs (m, 2) of photos that it ties: each with the one before it in its group."""
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
    """Pairs (m, 2) that follow each other in `order` and have the same key."""
    last: dict[tuple[str, int], int] = {}
    pairs = []
    for i in order.tolist():
        key = (str(keys[i]), int(also[i]))
        if key in last:
            pairs.append((last[key], i))
        last[key] = i
    return np.array(pairs, np.int64).reshape(-1, 2)


def _natural(paths: Sequence[str]) -> Rows:
    """Order of the paths in which `a10` comes after `a9`."""
    cut = [[(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split(r"(\d+)", p)] for p in paths]
    return np.array(sorted(range(len(paths)), key=lambda i: cut[i]), np.int64)


def _random_pairs(labels: Rows, units: Rows, draws: np.random.Generator) -> Rows:
    """Pairs (m, 2) of photos of one class and two groups, drawn at random."""
    one = draws.integers(0, len(labels), 8 * _DRAWN)
    other = draws.integers(0, len(labels), 8 * _DRAWN)
    good = (labels[one] == labels[other]) & (units[one] != units[other])
    return np.stack([one[good], other[good]], 1)[:_DRAWN]


def _auc(near: F32, far: F32) -> tuple[float, float]:
    """`chance_larger` of near over far, and its standard error."""
    auc = chance_larger(near, far)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    n, m = len(near), len(far)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    return auc, float(np.sqrt(max(variance, 0)))
