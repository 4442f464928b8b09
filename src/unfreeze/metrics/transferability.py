"""Transferability estimates of features before any training, and distances between activation statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64
from unfreeze.metrics.bootstrap import bootstrap_confusions
from unfreeze.metrics.classification import macro_f1

# Maximum number of fixed-point iterations of LogME; it converges in a few.
_ROUNDS = 50


def logme(features: NDArray[Any], labels: NDArray[np.integer], classes: int) -> float:
    """LogME: log maximum evidence of the labels given the features, per image and class. Higher is better.

    Each class's indicator is regressed on the features by a Bayesian linear model with prior precision alpha and noise
    precision beta. Both are maximized by the fixed-point iteration of MacKay 1992, in the basis of the features'
    singular vectors. Values are comparable only between features of the same images and labels. Classes without images
    are ignored.

    Args:
        features: (n, D), any scale.
        labels: int (n,).
        classes: Number of classes.

    References:
        You et al. 2021, arXiv 2102.11005.
        You et al. 2022, arXiv 2110.10545 (singular value decomposition).
    """
    x = np.asarray(features, np.float64)
    n, width = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    keep = s > s.max(initial=0.0) * max(x.shape) * np.finfo(np.float64).eps
    u, square = u[:, keep], s[keep] ** 2
    evidences = [
        _evidence((labels == c).astype(np.float64), u, square, n, width) for c in range(classes) if (labels == c).any()
    ]
    return float(np.mean(evidences))


def _evidence(y: F64, u: F64, square: F64, n: int, width: int) -> float:
    """Maximum log evidence of one target, divided by n.

    Args:
        y: float64 (n,), target.
        u: float64 (n, r), left singular vectors of the features.
        square: float64 (r,), squared singular values.
        n: Number of images.
        width: Number of features D.
    """
    along = (u.T @ y) ** 2
    outside = max(float(y @ y - along.sum()), 0.0)  # part of the target outside of the column space
    alpha, beta = 1.0, 1.0
    for _ in range(_ROUNDS):
        bend = alpha + beta * square
        gamma = float((beta * square / bend).sum())
        weights = float((beta**2 * square * along / bend**2).sum())
        residual = float((alpha**2 * along / bend**2).sum()) + outside
        before = alpha / beta
        # If nothing or everything is explained, the maximum is at infinity; the precisions are bounded.
        alpha = min(gamma / max(weights, 1e-12), 1e12)
        beta = min((n - gamma) / max(residual, 1e-12), 1e12)
        if abs(alpha / beta - before) <= 1e-5 * before:
            break
    bend = alpha + beta * square
    weights = float((beta**2 * square * along / bend**2).sum())
    residual = float((alpha**2 * along / bend**2).sum()) + outside
    determinant = float(np.log(bend).sum()) + (width - len(square)) * np.log(alpha)
    evidence = width * np.log(alpha) + n * np.log(beta) - n * np.log(2 * np.pi) - determinant
    return float((evidence - beta * residual - alpha * weights) / (2 * n))


def h_score(features: NDArray[Any], labels: NDArray[np.integer], shrink: bool = True) -> float:
    """H-score, tr(cov(f)^-1 cov(E[f | y])): between-class variance of whitened features, from 0 to classes - 1.

    With `shrink`, the covariance is shrunk towards a multiple of the identity by the amount of Ledoit & Wolf 2004, and
    the covariance of the class means by the same factor (Ibrahim et al. 2021). Without it, D near or above n gives
    classes - 1 for any labels. The score is still optimistic, since it is computed on the images that the covariance is
    estimated from; `h_scores` of permuted labels give the chance level. The D x D matrix is never formed.

    Args:
        features: (n, D).
        labels: int (n,).
        shrink: Use shrinkage.

    References:
        Bao et al. 2019, ICIP.
        Ibrahim et al. 2021, arXiv 2110.06893.
    """
    return float(h_scores(features, [labels], shrink)[0])


def h_scores(features: NDArray[Any], many: Sequence[NDArray[np.integer]], shrink: bool = True) -> F64:
    """`h_score` of the same features for several label vectors, float64 (len(many),).

    The cost is little more than that of a single one.
    """
    x = np.asarray(features, np.float64)
    x = x - x.mean(0)
    n, width = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    values = s**2 / n
    amount = _shrinkage(u, values, n, width) if shrink else 0.0
    floor = amount * float(values.sum()) / width
    keep = values > values.max(initial=0.0) * 1e-10
    # The class means lie in the span of the images, so directions outside of it contribute nothing.
    along, share = u[:, keep] * s[keep], 1 / ((1 - amount) * values[keep] + floor)
    found = []
    for labels in many:
        classes, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.zeros((len(classes), along.shape[1]))
        np.add.at(sums, member, along)
        between = (sums**2 / counts[:, None]).sum(0) / n  # diagonal of the covariance of the class means
        found.append((1 - amount) * float(between @ share))
    return np.array(found)


def _shrinkage(u: F64, values: F64, n: int, width: int) -> float:
    """Optimal shrinkage intensity of Ledoit & Wolf (2004), 0..1.

    Args:
        u: float64 (n, r), left singular vectors of the centered features.
        values: float64 (r,), eigenvalues of the covariance.
        n: Number of images.
        width: Number of features D.
    """
    trace = float(values.sum())
    apart = float((values**2).sum()) - trace**2 / width  # |S - mI|^2
    norms = n * (u**2 @ values)  # |x_i|^2
    noise = (float((norms**2).sum()) / n - float((values**2).sum())) / n
    return float(np.clip(noise / apart, 0, 1)) if apart > 0 else 1.0


def beyond_chance(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[Any],
    classes: int,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[F64, float, float]:
    """Chance-corrected macro F1, (F1 - chance) / (1 - chance), with bootstrap samples over groups.

    Chance is the expected macro F1 of the same predictions assigned to the images at random, as in Cohen's kappa (1960)
    for accuracy. The result is 0 if the predictions are independent of the labels, whatever the class priors, and 1
    without errors. Calls with the same groups and seed use the same draws, so that they can be compared in pairs.

    Args:
        truth: int (n,), true classes.
        predicted: int (n,), out-of-fold predicted classes.
        groups: (n,) any hashable.
        classes: Number of classes.
        resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        float64 (1 + resamples,), the observed value followed by those of the draws; the observed macro F1; and its
        chance level.
    """
    found, chance = np.empty(resamples + 1), np.empty(resamples + 1)
    drawn = bootstrap_confusions(truth, [predicted], groups, classes, resamples, seed)
    for i, table in enumerate(table for tables in drawn for table in tables[0]):
        found[i], chance[i] = macro_f1(table), macro_f1(np.outer(table.sum(1), table.sum(0)) / table.sum())
    return (found - chance) / np.maximum(1 - chance, 1e-9), float(found[0]), float(chance[0])


def chance_corrected_f1(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[Any],
    classes: int,
    *,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Chance-corrected macro F1 (see `beyond_chance`) with a percentile interval of the cluster bootstrap.

    Returns:
        {"value", "low", "high", "macro_f1", "chance"}.
    """
    draws, found, chance = beyond_chance(truth, predicted, groups, classes, resamples=resamples, seed=seed)
    low, high = np.percentile(draws[1:], 100 * np.array([(1 - level) / 2, (1 + level) / 2]))
    return {"value": float(draws[0]), "low": float(low), "high": float(high), "macro_f1": found, "chance": chance}


def gaussian_divergence(mean: F64, variance: F64, other_mean: F64, other_variance: F64) -> F64:
    """Kullback-Leibler divergence of univariate normal distributions by channel, in nats: float64 (channels,).

    KL(N(mean, variance) || N(other_mean, other_variance)) responds to shifts and to changes of scale, is independent of
    units, and is 0 only for equal distributions. Variances are at least 1e-8 times the other's.

    Args:
        mean: float64 (channels,).
        variance: float64 (channels,).
        other_mean: float64 (channels,).
        other_variance: float64 (channels,).
    """
    own = np.maximum(other_variance, 1e-12)
    ratio = np.maximum(variance / own, 1e-8)
    return np.asarray(0.5 * (ratio + (mean - other_mean) ** 2 / own - 1 - np.log(ratio)))


def frechet_distance(mean: F64, variance: F64, other_mean: F64, other_variance: F64) -> float:
    """Squared Frechet (2-Wasserstein) distance of two normal distributions with diagonal covariances.

    |m - m'|^2 + sum (sd - sd')^2; the FID (Heusel et al. 2017, arXiv 1706.08500) uses full covariances. All arguments
    are float64 (channels,).
    """
    return float(((mean - other_mean) ** 2).sum() + ((np.sqrt(variance) - np.sqrt(other_variance)) ** 2).sum())


def mahalanobis_distance(mean: F64, other_mean: F64, other_variance: F64) -> float:
    """Root mean square over channels of the difference of means, in units of the other's standard deviations.

    All arguments are float64 (channels,).
    """
    return float(np.sqrt(((mean - other_mean) ** 2 / np.maximum(other_variance, 1e-12)).mean()))
