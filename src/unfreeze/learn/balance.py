"""What the words of `recipe.balance` mean: how often a row is learnt from, and how much it weighs in the loss.

In this order: rows are added, then drawn (sampling), then weighed. Weights and priors are those of the rows as drawn,
so that two words never correct the same imbalance twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Balance
from unfreeze.learn.views import check_view

Rows = NDArray[np.int64]
Sampling = Literal["none", "over", "under", "sqrt"]
# What a probe does if nobody says: a class weighs as the square root of its count, between none and all the same.
_USUAL_POWER = 0.5


@dataclass(frozen=True)
class Settled:
    """`recipe.balance` with nothing left to choose. power: of the inverse class frequency, where loss is weighted."""

    sampling: Sampling = "none"
    loss: str = "weighted"
    power: float = _USUAL_POWER


def settled(balance: Balance, from_probe: bool = True) -> Settled:
    """What the words stand for. from_probe: for a probe's head, or a network that starts from one."""
    loss, power = balance.loss, balance.power
    if loss == "":
        # Sampling in place of the usual weights, not on top of them.
        usual = _USUAL_POWER if from_probe and balance.sampling == "none" else 0.0
        loss, power = "weighted", usual if power < 0 else power
    elif loss == "weighted":
        power = 1.0 if power < 0 else power
    if loss != "weighted" or power == 0:
        return Settled(balance.sampling, "ce" if loss == "weighted" else loss, 0.0)
    return Settled(balance.sampling, loss, power)


def for_probe(balance: Balance) -> Settled:
    """The same for a probe's head that a network starts from: soft-f1 is of batches, so the head is the usual one."""
    return settled(balance.model_copy(update={"loss": ""}) if balance.loss == "soft-f1" else balance)


def check_balance(recipe: Recipe) -> None:
    """Raises RecipeError for words that contradict each other, before any work is done."""
    balance = recipe.balance
    if balance.power >= 0 and balance.loss not in ("", "weighted"):
        raise RecipeError(
            f"balance.power = {balance.power:g}: balance.loss = '{balance.loss}' has no class weights; set "
            "balance.loss=weighted or leave balance.power out."
        )
    if balance.loss == "soft-f1" and recipe.strategy == "probe":
        raise RecipeError(
            "balance.loss = 'soft-f1' is computed on batches, and a probe is fitted on all rows at once; use it with "
            "strategy late, full or scratch."
        )
    for entry in balance.add:
        for view in entry.views:
            check_view(view)


def times_drawn(labels: Rows, units: Rows, sampling: Sampling, seed: int) -> NDArray[np.float64]:
    """How often a row is drawn in an epoch, on the average, float64 (n,); a head on features weighs rows by it.

    labels, units: int (n,), class and group of the training rows. none: 1. over: each class as often as the largest.
    sqrt: n draws, shared by the square roots of the counts (Mahajan et al. 2018, arXiv 1805.00932). under: 1 for as
    many rows of each class as the smallest has, else 0; by the seed, every group's first before any group's second,
    so that few groups are lost.
    """
    if sampling == "none":
        return np.ones(len(labels))
    _, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if sampling == "over":
        return np.asarray((counts.max() / counts)[members], np.float64)
    if sampling == "sqrt":
        roots = np.sqrt(counts)
        return np.asarray((len(labels) * roots / roots.sum() / counts)[members], np.float64)
    times = np.zeros(len(labels))
    for position in range(len(counts)):
        draw = np.random.default_rng([seed, position])
        rows = draw.permutation(np.flatnonzero(members == position))
        turn = _occurrences(units[rows])
        times[rows[np.argsort(turn, kind="stable")[: counts.min()]]] = 1
    return times


def row_weights(
    labels: Rows, units: Rows, classes: int, words: Settled, seed: int
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Weights of training rows, how many rows they stand for, and the rows of each class as drawn.

    Weights are float64 (n,) and sum to 1; 0 for rows that are not drawn. With `none` and `ce` all are 1 / n.
    Counts are float64 (classes,), 1 for a class without rows.
    """
    times = times_drawn(labels, units, words.sampling, seed)
    drawn = np.bincount(labels, weights=times, minlength=classes).astype(np.float64)
    counts = np.where(drawn > 0, drawn, 1.0)
    weights: NDArray[np.float64] = times * counts[labels] ** -(words.power if words.loss == "weighted" else 0.0)
    return weights / weights.sum(), float(times.sum()), counts


def log_prior(counts: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log of the class shares, float32 (classes,): what logit adjustment adds in training."""
    return np.log(counts / counts.sum()).astype(np.float32)


def _occurrences(values: Rows) -> Rows:
    """How often each value came before, int64 (n,)."""
    order = np.argsort(values, kind="stable")
    _, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    out = np.empty(len(values), np.int64)
    out[order] = np.arange(len(values)) - np.repeat(starts, counts)
    return out
