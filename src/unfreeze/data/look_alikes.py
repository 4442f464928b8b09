"""Statistical screening of near-duplicate pairs.

In a data set where all images look alike (one scene, one plain background), the absolute near-duplicate test also
joins images that are not copies. `screened` estimates how close two images of the same group are by chance and keeps
only the pairs that are closer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.data.crop_duplicates import aligned_mask, find_cropped_duplicates, residuals
from unfreeze.data.duplicates import Pairs, components, near_mask

# A connected group is screened if it has more than this share of all images, and at least `LARGE` images.
LARGE_SHARE = 0.05
LARGE = 12
# Expected number of chance pairs per image within the threshold, for each of the three distances.
BY_CHANCE = 0.2
# Labels of near pairs are consistent with copies or a burst up to this fraction of the chance disagreement rate.
AGREE = 0.25
# From this fraction of the chance rate on, the labels of near pairs are treated as independent.
INDEPENDENT = 0.5
_SURE = 0.01
_SAMPLE = 20_000
_FEWEST_SAMPLED = 10_000
_COPIES_AN_IMAGE = 2  # maximum number of true copies per image among the random pairs; see `_tail`
_FEWEST_REFERENCES = 8
# Minimum share of near pairs among random pairs of a group for it to be a burst instead of a chain.
_COMPACT = 0.5
_RICH = 64  # of 256 difference-hash bits set in either image; a plain background sets none
_COMPARED = 2_000_000  # maximum number of image-leader comparisons per group
_AT_ONCE = 4096
_RIDGE = 20.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LookAlikes:
    """A group of images that the absolute near-duplicate test cannot distinguish.

    Attributes:
        images: Row indices of the images, int64 (k,).
        pairs: Number of near pairs among them by the absolute test alone.
        kept: Number of near pairs that are closer than expected by chance.
        disagree: Share of `pairs` whose labels differ; NaN without labels.
        chance: Share of all image pairs of the data set whose labels differ; NaN without labels.
        example: Row indices of a rejected pair.
    """

    images: Rows
    pairs: int
    kept: int
    disagree: float
    chance: float
    example: tuple[int, int]


@dataclass(frozen=True)
class _Pictures:
    """Descriptors of all images used to compare pairs; see `ImageScan`."""

    dhash: NDArray[np.uint64]
    thumb: NDArray[np.uint8]
    grey: NDArray[np.uint8]

    def near(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Whether each pair passes one of the two absolute tests, bool (m,)."""
        near = near_mask(pairs, self.dhash, self.thumb)
        others = np.flatnonzero(~near)
        near[others] = aligned_mask(pairs[others], self.grey, self.thumb)
        return near

    def rich(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Whether each pair has structure everywhere, not only an object on a plain background, bool (m,)."""
        bits = np.bitwise_count(self.dhash[pairs[:, 0]] | self.dhash[pairs[:, 1]]).sum(1)
        return np.asarray(bits >= _RICH)

    def distances(self, pairs: Pairs) -> Floats:
        """Distances of aligned pairs, float64 (m, 3).

        The columns are the gray-level residual over 16 x 16 cells, the same combined with the color residual, and the
        gray-level residual over 32 x 32 cells combined with the color residual.
        """
        coarse, fine = residuals(pairs, self.grey).astype(np.float64).T
        color = _color_residuals(pairs, self.thumb)
        return np.stack([coarse, np.hypot(coarse, color), np.hypot(fine, color)], 1)


@dataclass(frozen=True)
class _Labels:
    """Labels as evidence for or against copies.

    Attributes:
        label: Class indices, int64 (n,); None if unknown or constant.
        chance: See `LookAlikes`.
    """

    label: Rows | None
    chance: float

    @classmethod
    def of(cls, label: Rows | None) -> _Labels:
        shares = np.bincount(label) / len(label) if label is not None else np.ones(1)
        chance = float(1 - (shares**2).sum())
        return cls(label if chance > 0 else None, chance if chance > 0 else float("nan"))

    def disagreement(self, pairs: Pairs) -> float:
        """Share of pairs whose labels differ; NaN without labels or pairs."""
        if self.label is None or not len(pairs):
            return float("nan")
        return float((self.label[pairs[:, 0]] != self.label[pairs[:, 1]]).mean())

    def allow(self, pairs: Pairs) -> bool:
        """Whether the labels are consistent with copies; True without labels."""
        return self.label is None or bool(self.disagreement(pairs) <= AGREE * self.chance)

    def independent(self, pairs: Pairs) -> bool:
        """Whether the label disagreement is consistent with independent labels and too high for copies.

        Both are binomial tests at the 1% level. A disagreement above the chance rate is not independence: it occurs if
        the same image was placed in several class folders.
        """
        from scipy.special import bdtrc

        rate, count = self.disagreement(pairs), len(pairs)
        if not rate >= INDEPENDENT * self.chance:
            return False
        often = round(rate * count) - 1
        return bool(bdtrc(often, count, AGREE * self.chance) < _SURE <= bdtrc(often, count, self.chance))


def screened(
    pairs: Pairs,
    dhash: NDArray[np.uint64],
    thumb: NDArray[np.uint8],
    grey: NDArray[np.uint8],
    usable: NDArray[np.bool_],
    labels: Rows | None = None,
) -> tuple[Pairs, list[LookAlikes]]:
    """Keep the near-duplicate pairs that are closer than two images of the data set are by chance.

    A connected group is screened if it has more than 5% of the usable images and at least 12 images. The pairs outside
    of these groups are screened together if their labels disagree as often as by chance. All other pairs are kept.

    Large groups are extended by random pairs that pass the absolute test. Up to 20,000 random pairs within the group
    are the reference: how many pass the absolute test, and at which distance. The threshold is the distance within
    which 0.2 such pairs per image are expected. It lies below most random pairs and is extrapolated from the closest
    ones by the local intrinsic dimensionality of distances (Amsaleg et al. 2015): the number of pairs within distance d
    grows as d to that power. True copies among the random pairs would lower the threshold, so up to two of the closest
    pairs per image are excluded where the power law fits better without them. A pair is kept if it is within any of
    three thresholds, each with its own reference: the gray-level residual after alignment (16 x 16 cells), this
    residual combined with color, and the gray-level residual over 32 x 32 cells combined with color. The last one is
    needed for small objects on a plain background.

    A group is a burst of one scene, and is kept unchanged, if it has at most half of the images, at least half of its
    random pairs are near and not only because of a plain background, and the label disagreement of its near pairs is at
    most a quarter of the chance rate. If labels still disagree as often as by chance after the test, no pair of the
    group is kept. Without labels, the distance test is the same.

    Groups that still exceed 5% are cut where they are only chained together (Everitt et al. 2011, on single linkage):
    images are compared with a leader, the image with the most near pairs, and each new group consists of the images
    near one leader.

    Measured with benchmarks/look_alikes.py on nine synthetic sets of 300 images with 200 copies: the absolute test
    alone joined 13 to 100% of the images to one group. With screening, the largest group has 4% (4.7% in the sets
    without copies), and 359 of the 360 resized and re-encoded copies are found.

    Args:
        pairs: Pairs by the absolute tests of `near_duplicates` and `find_cropped_duplicates`, int64 (m, 2).
        dhash: Difference hashes, uint64 (n, 4).
        thumb: Thumbnails, uint8 (n, 8, 8, 3).
        grey: Gray thumbnails, uint8 (n, 32, 32).
        usable: Images that take part in the comparison, bool (n,).
        labels: Class index of each image, int64 (n,); None if unknown.

    Returns:
        Kept pairs, int64 (k, 2), with first < second, sorted; and one entry per group from which pairs were rejected.

    References:
        Amsaleg et al., "Estimating Local Intrinsic Dimensionality", KDD 2015.
        Everitt et al., "Cluster Analysis", 5th edition, 2011.
    """
    n, rows = len(dhash), np.flatnonzero(usable)
    limit = max(LARGE_SHARE * len(rows), LARGE - 1)
    evidence = _Labels.of(labels)
    large = _in_large_groups(n, limit, pairs)
    doubtful = evidence.independent(pairs[~large[pairs[:, 0]]])
    if not large.any() and not doubtful:
        return pairs, []
    pictures = _Pictures(dhash, thumb, grey)
    sample = _random_pairs(rows, 0)
    sample_near = pictures.near(sample)
    random = sample[sample_near]
    large = _in_large_groups(n, limit, pairs, random)
    # The aligned test compared only one image of each group with other images.
    pairs = np.unique(np.concatenate([pairs, find_cropped_duplicates(grey, thumb, usable & large)]), axis=0)
    group = components(n, pairs, random)
    size = np.bincount(group)
    members = [np.flatnonzero(group == one) for one in np.flatnonzero(size > limit)]
    others = pairs[size[group[pairs[:, 0]]] <= limit]
    if evidence.independent(others):
        members.append(np.unique(others))
        others = others[:0]
    kept, examined = [others], []
    for some in members:
        inside = np.zeros(n, bool)
        inside[some] = True
        own = pairs[inside[pairs[:, 0]] & inside[pairs[:, 1]]]
        within = inside[sample].all(1)
        tried, near = sample[within], sample_near[within]
        if len(tried) < _FEWEST_SAMPLED:
            tried = some[_random_pairs(np.arange(len(some)), 1)]
            near = pictures.near(tried)
        compact = (near & pictures.rich(tried)).mean() >= _COMPACT
        burst = compact and len(some) <= len(rows) / 2
        if burst and evidence.allow(own):
            left = own
        else:
            test = _Test(pictures, _thresholds(pictures.distances(tried[near]), len(tried), len(some)))
            left = own[test.closer(own)]
            if np.isfinite(test.most).any() and evidence.independent(left):
                left = left[:0]
            left = _cut(left, limit, n, test)
        kept.append(left)
        refused = np.setdiff1d(_numbered(own, n), _numbered(left, n))
        if len(refused):
            first, second = divmod(int(refused[0]), n)
            rate = evidence.disagreement(own)
            examined.append(LookAlikes(some, len(own), len(left), rate, evidence.chance, (first, second)))
    return np.unique(np.concatenate(kept), axis=0), examined


def _in_large_groups(count: int, limit: float, *pairs: Pairs) -> NDArray[np.bool_]:
    """Whether each image is in a connected group larger than the limit, bool (count,)."""
    if not any(map(len, pairs)):
        return np.zeros(count, bool)
    group = components(count, *pairs)
    return np.asarray(np.bincount(group)[group] > limit)


def _numbered(pairs: Pairs, count: int) -> Rows:
    return np.asarray(pairs[:, 0] * count + pairs[:, 1])


@dataclass(frozen=True)
class _Test:
    """Distance test for the pairs of one group.

    Attributes:
        pictures: Image descriptors.
        most: Maximum distances of a copy, float64 (3,).
    """

    pictures: _Pictures
    most: Floats

    def closer(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Whether each near pair is closer than expected by chance, bool (m,)."""
        if np.isinf(self.most).all():
            return np.ones(len(pairs), bool)
        return np.asarray((self.pictures.distances(pairs) <= self.most).any(1))

    def copies(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Whether each pair is near and closer than expected by chance, bool (m,)."""
        near = self.pictures.near(pairs)
        some = np.flatnonzero(near)
        near[some] = self.closer(pairs[some])
        return near


def _thresholds(reference: Floats, sampled: int, images: int) -> Floats:
    """Distances within which `BY_CHANCE` chance pairs per image are expected, float64 (3,).

    Args:
        reference: Distances of the random pairs that are near, float64 (k, 3).
        sampled: Number of random pairs.
        images: Number of images in the group.

    Returns:
        The thresholds; infinity if too few random pairs are near.
    """
    copies = int(np.ceil(_COPIES_AN_IMAGE * sampled / images))  # maximum number of true copies among the random pairs
    most = min(max(4 * copies, 100), len(reference))
    if len(reference) < 4 * copies or most - copies < _FEWEST_REFERENCES:
        return np.full(reference.shape[1], np.inf)
    wanted = BY_CHANCE / images * sampled
    return np.array([_tail(np.sort(one)[:most], copies, wanted) for one in reference.T])


def _tail(closest: Floats, copies: int, wanted: float) -> float:
    """Extrapolate the distance within which `wanted` random pairs are expected, by a power-law fit.

    The number of excluded pairs minimizes the Kolmogorov-Smirnov distance, like the choice of the power-law cutoff in
    Clauset, Shalizi and Newman (2009).

    Args:
        closest: Smallest distances in ascending order, float64 (k,).
        copies: Maximum number of the closest pairs to exclude as true copies.
        wanted: Expected number of pairs.

    Returns:
        The distance.
    """
    logs = np.log(np.maximum(closest[-1], 1e-3) / np.maximum(closest[:-1], 1e-3))
    best, distance = np.inf, np.inf
    for left_out in np.unique(np.linspace(0, copies, 32).astype(int)).tolist():
        some = logs[left_out:]
        power = len(some) / max(float(some.sum()), 1e-6)
        fitted = np.exp(-power * some)
        apart = float(np.abs(fitted - (np.arange(len(some)) + 0.5) / len(some)).max())
        if apart < best:
            best = apart
            distance = float(closest[-1] * min(1.0, wanted / len(some)) ** (1 / power))
    return distance


def _cut(pairs: Pairs, limit: float, count: int, test: _Test) -> Pairs:
    """Split the groups above the limit around leaders, to break chains, and return the pairs within each part."""
    if not len(pairs):
        return pairs
    group = components(count, pairs)
    size = np.bincount(group)
    kept = [pairs[size[group[pairs[:, 0]]] <= limit]]
    degree = np.bincount(pairs.ravel(), minlength=count)
    for one in np.flatnonzero(size > limit):
        left = np.flatnonzero(group == one)
        own = pairs[group[pairs[:, 0]] == one]
        part, compared = np.full(count, -1), 0
        while len(left) > 1 and compared < _COMPARED:
            leader = left[degree[left].argmax()]
            others = left[left != leader]
            tried = np.stack([np.minimum(leader, others), np.maximum(leader, others)], 1)
            near, compared = test.copies(tried), compared + len(tried)
            part[[leader, *others[near]]] = leader
            kept.append(tried[near])
            left = others[~near]
        same = (part[own[:, 0]] == part[own[:, 1]]) & (part[own[:, 0]] >= 0)
        kept.append(own[same])
    return np.unique(np.concatenate(kept), axis=0)


def _random_pairs(rows: Rows, seed: int) -> Pairs:
    """Up to `_SAMPLE` random pairs of different rows, first < second; all pairs if there are no more."""
    if len(rows) * (len(rows) - 1) // 2 <= _SAMPLE:
        return rows[np.stack(np.triu_indices(len(rows), 1), 1)]
    drawn = np.random.default_rng(seed).integers(0, len(rows), (_SAMPLE, 2))
    return np.asarray(np.sort(rows[drawn[drawn[:, 0] != drawn[:, 1]]], 1), np.int64)


def _color_residuals(pairs: Pairs, thumb: NDArray[np.uint8]) -> Floats:
    """Root-mean-square color residual over 8 x 8 cells, summed over channels, float64 (m,).

    Colors are relative to their mean over channels. The colors of one image are fitted to those of the other with a
    gain and a small shift and scaling shared by all channels, and one offset per channel. This is a single
    least-squares step, as in `crop_duplicates`; small crops require it.
    """
    side = thumb.shape[1]
    across = np.linspace(1 / side - 1, 1 - 1 / side, side, dtype=np.float32)
    out = np.empty(len(pairs))
    penalty = np.diag([1.0, _RIDGE, _RIDGE, _RIDGE, _RIDGE]).astype(np.float32)
    for start in range(0, len(pairs), _AT_ONCE):
        a, b = (thumb[rows].astype(np.float32) for rows in pairs[start : start + _AT_ONCE].T)
        a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
        down, right = np.gradient(a, axis=1), np.gradient(a, axis=2)
        parts = np.stack([a, right, right * across[:, None], down, down * across[:, None, None]], 1).reshape(
            len(a), 5, -1, 3
        )
        aim = b.reshape(len(a), -1, 3)
        parts = (parts - parts.mean(2, keepdims=True)).reshape(len(a), 5, -1)
        aim = (aim - aim.mean(1, keepdims=True)).reshape(len(a), -1)
        against = parts @ aim[..., None]
        against[:, 0] += 1  # without color, the gain is 1
        fit = np.linalg.solve(parts @ parts.transpose(0, 2, 1) + penalty, against)
        left = aim - (fit.transpose(0, 2, 1) @ parts)[:, 0]
        out[start : start + len(a)] = np.sqrt((left**2).sum(1) / (side * side))
    return out
