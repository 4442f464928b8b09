"""How well features fit labels before anything is trained, and how far two sets of activations lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.metrics import macro_f1
from unfreeze.judge.resampling import drawn_confusions

F64 = NDArray[np.float64]

# Rounds of LogME's fixed point; it settles in a handful.
_ROUNDS = 50


def logme(features: NDArray[Any], labels: NDArray[np.integer], classes: int) -> float:
    """Log of the maximum evidence of the labels given the features, a photo and class (LogME: You et al. 2021, arXiv
    2102.11005). Higher: a Bayesian linear model on these features explains the labels better.

    features: (n, D), any scale. labels: int (n,). Each class's indicator is regressed on the features with prior
    precision alpha and noise precision beta, both set to their maximum by the fixed point of MacKay 1992, in the basis
    of the features' singular vectors (You et al. 2022, arXiv 2110.10545). Comparable between features of the same
    photos and labels only. Classes without photos take no part.
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
    """Largest log evidence of one target, divided by n."""
    along = (u.T @ y) ** 2
    outside = max(float(y @ y - along.sum()), 0.0)  # what no weights can explain
    alpha, beta = 1.0, 1.0
    for _ in range(_ROUNDS):
        bend = alpha + beta * square
        gamma = float((beta * square / bend).sum())
        weights = float((beta**2 * square * along / bend**2).sum())
        residual = float((alpha**2 * along / bend**2).sum()) + outside
        before = alpha / beta
        # Nothing to explain, or all explained: the maximum lies at infinity, and is approached this far.
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
    """tr(cov(f)^-1 cov(E[f | y])): how much of the features' variance lies between classes, direction by direction.

    features: (n, D). labels: int (n,). Between 0 and classes - 1. Bao et al. 2019 (H-score, ICIP); shrink: the
    covariance is drawn towards a multiple of the identity by the amount of Ledoit & Wolf 2004 and the class means'
    covariance by the same factor (Ibrahim et al. 2021, arXiv 2110.06893): without it, D near or above n gives
    classes - 1 whatever the labels. It is of the photos it was fitted on all the same; `h_scores` of labels dealt anew
    say what it gives for nothing. Where D > n it is computed from the n x n matrix, never from D x D.
    """
    return float(h_scores(features, [labels], shrink)[0])


def h_scores(features: NDArray[Any], many: Sequence[NDArray[np.integer]], shrink: bool = True) -> F64:
    """`h_score` of the same features under several labellings, (len(many),), for little more than one."""
    x = np.asarray(features, np.float64)
    x = x - x.mean(0)
    n, width = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    values = s**2 / n
    amount = _shrinkage(u, values, n, width) if shrink else 0.0
    floor = amount * float(values.sum()) / width
    keep = values > values.max(initial=0.0) * 1e-10
    # The class means lie in the span of the photos, so that what is outside of it adds nothing.
    along, share = u[:, keep] * s[keep], 1 / ((1 - amount) * values[keep] + floor)
    found = []
    for labels in many:
        classes, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.zeros((len(classes), along.shape[1]))
        np.add.at(sums, member, along)
        between = (sums**2 / counts[:, None]).sum(0) / n  # diagonal of the class means' covariance
        found.append((1 - amount) * float(between @ share))
    return np.array(found)


def _shrinkage(u: F64, values: F64, n: int, width: int) -> float:
    """Ledoit & Wolf's (2004) best amount, 0..1, from the singular vectors (n, r) and eigenvalues (r,)."""
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
    """Macro F1 beyond chance, (F1 - chance) / (1 - chance), of out-of-fold predictions: as it is, then with groups
    resampled, float64 (1 + resamples,); and macro F1 and chance as they are.

    truth, predicted: int (n,). groups: (n,). chance: macro F1 of the same predictions dealt to the photos at random,
    as Cohen's kappa (1960) takes it for accuracy: 0 for labels that the features know nothing of, whatever the
    classes' shares; 1 for no error. Two calls with the same groups and seed draw the same groups: they can be paired.
    """
    found, chance = np.empty(resamples + 1), np.empty(resamples + 1)
    drawn = drawn_confusions(truth, [predicted], groups, classes, resamples, seed)
    for i, table in enumerate(table for tables in drawn for table in tables[0]):
        found[i], chance[i] = macro_f1(table), macro_f1(np.outer(table.sum(1), table.sum(0)) / table.sum())
    return (found - chance) / np.maximum(1 - chance, 1e-9), float(found[0]), float(chance[0])


def separability(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[Any],
    classes: int,
    *,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """`beyond_chance` with its interval, a percentile bootstrap over groups: value, low, high, macro_f1, chance."""
    draws, found, chance = beyond_chance(truth, predicted, groups, classes, resamples=resamples, seed=seed)
    low, high = np.percentile(draws[1:], 100 * np.array([(1 - level) / 2, (1 + level) / 2]))
    return {"value": float(draws[0]), "low": float(low), "high": float(high), "macro_f1": found, "chance": chance}


def gaussian_divergence(mean: F64, variance: F64, other_mean: F64, other_variance: F64) -> F64:
    """Kullback-Leibler divergence of normal distributions from others, channel by channel, in nats: all (channels,).

    KL(N(mean, variance) || N(other_mean, other_variance)): it sees a shift and a change of scale alike, needs no unit,
    and is 0 only where both agree. Deviations of nothing count as 1e-4 of the other's.
    """
    own = np.maximum(other_variance, 1e-12)
    ratio = np.maximum(variance / own, 1e-8)
    return np.asarray(0.5 * (ratio + (mean - other_mean) ** 2 / own - 1 - np.log(ratio)))


def frechet_distance(mean: F64, variance: F64, other_mean: F64, other_variance: F64) -> float:
    """Squared Frechet (2-Wasserstein) distance of two normal distributions with diagonal covariances: (channels,) each.

    |m - m'|^2 + sum (sd - sd')^2: what the FID (Heusel et al. 2017, arXiv 1706.08500) takes of full covariances.
    """
    return float(((mean - other_mean) ** 2).sum() + ((np.sqrt(variance) - np.sqrt(other_variance)) ** 2).sum())


def mahalanobis_distance(mean: F64, other_mean: F64, other_variance: F64) -> float:
    """Distance of a mean from another in the other's deviations, root mean square over channels: (channels,) each."""
    return float(np.sqrt(((mean - other_mean) ** 2 / np.maximum(other_variance, 1e-12)).mean()))
