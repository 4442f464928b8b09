"""Batched L-BFGS solver for multinomial logistic regressions that share their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F32

# Function that iterates over (slice of rows, inputs float32 (m, r)), called once per data pass, so that rows can be on
# disk.
Pieces = Callable[[], Iterator[tuple[slice, F32]]]

_MEMORY = 8
_ARMIJO = 1e-4


@dataclass(frozen=True)
class Solution:
    """Solution of P problems.

    Attributes:
        weight: float32 (P, r, C).
        bias: float32 (P, C).
        loss: float64 (P,).
        iterations: Number of data passes.
    """

    weight: F32
    bias: F32
    loss: NDArray[np.float64]
    iterations: int


def fit_softmax(
    pieces: Pieces,
    labels: NDArray[np.int64],
    weights: F32,
    penalty: NDArray[np.floating],
    scale: F32,
    classes: int,
    *,
    tolerance: float = 1e-3,
    max_passes: int = 200,
    start: tuple[F32, F32] | None = None,
    focus: float = 0.0,
) -> Solution:
    """Fit P regularized multinomial logistic regressions.

    Minimizes, for each problem p, sum_i weights[p, i] * CE(labels[i], x_i W_p + b_p) + penalty[p] / 2 * |W_p|^2 by
    L-BFGS with Armijo backtracking. Each problem has its own step size, and converged problems leave the batch.
    Deterministic.

    Args:
        pieces: Function that iterates over the inputs.
        labels: int64 (n,).
        weights: float32 (P, n) sample weights; each row sums to 1. Samples with weight 0 are ignored.
        penalty: (P,) L2 penalties. Biases are not penalized.
        scale: (r,) mean square of each input column over the training rows, used as preconditioner: the inputs are
            projected such that the Hessian is nearly diagonal. Does not change the solution.
        classes: Number of classes C.
        tolerance: A problem has converged when the norm of its gradient, in preconditioned coordinates, is `tolerance`
            times that at zero.
        max_passes: Maximum number of data passes.
        start: Initial (weight, bias); None means zero.
        focus: Gamma of the focal loss, -(1 - p)^gamma log p in place of CE. It is not convex, so the result is a
            stationary point.

    Returns:
        The solution.

    References:
        Nocedal & Wright 2006, "Numerical Optimization", algorithm 7.4 (L-BFGS).
        Lin et al. 2017, arXiv 1708.02002 (focal loss).
    """
    problems, r, c = len(penalty), len(scale), classes
    penalty = np.asarray(penalty, np.float32)
    scale = np.asarray(scale, np.float32)
    curve = 0.5 * (1 - 1 / c) / max(c / 2, 1)  # typical p (1 - p) of a softmax output
    shrink = 1 / np.sqrt(curve * scale[None, :] + penalty[:, None])  # (P, r): W = shrink * V
    shrink_bias = np.float32(1 / np.sqrt(curve))
    v = np.zeros((problems, r * c + c), np.float32)
    if start is not None:
        v[:, : r * c] = (start[0] / shrink[:, :, None]).reshape(problems, -1)
        v[:, r * c :] = start[1] / shrink_bias

    def evaluate(point: F32, which: NDArray[np.int64]) -> tuple[NDArray[np.float64], F32]:
        k = len(which)
        matrix = point[:, : r * c].reshape(k, r, c) * shrink[which][:, :, None]
        bias = point[:, r * c :] * shrink_bias
        side_by_side = np.ascontiguousarray(matrix.transpose(1, 0, 2)).reshape(r, k * c)
        loss, slope = np.zeros(k), np.zeros((r, k * c), np.float32)
        slope_bias = np.zeros((k, c), np.float32)
        for rows, inputs in pieces():
            w = weights[which, rows].T  # (m, k)
            logits = (inputs @ side_by_side).reshape(-1, k, c) + bias
            logits -= logits.max(2, keepdims=True)
            own = np.take_along_axis(logits, labels[rows][:, None, None], 2)[:, :, 0]
            np.exp(logits, out=logits)
            total = logits.sum(2)
            losses_of_rows = np.log(total) - own
            if focus:
                losses_of_rows, w = _focal(losses_of_rows, w, focus)
                loss += losses_of_rows.sum(0, dtype=np.float64)
            else:
                loss += (losses_of_rows * w).sum(0, dtype=np.float64)
            logits *= (w / total)[:, :, None]
            m = np.arange(len(inputs))
            logits[m, :, labels[rows]] -= w
            slope += inputs.T @ logits.reshape(len(m), k * c)
            slope_bias += logits.sum(0)
        loss += 0.5 * penalty[which] * np.einsum("prc,prc->p", matrix, matrix, dtype=np.float64)
        grad = slope.reshape(r, k, c).transpose(1, 0, 2) + penalty[which][:, None, None] * matrix
        flat = np.concatenate([(grad * shrink[which][:, :, None]).reshape(k, -1), slope_bias * shrink_bias], 1)
        return loss, flat.astype(np.float32, copy=False)

    active = np.arange(problems)
    losses, slopes = evaluate(v, active)
    goal = tolerance * np.maximum(np.linalg.norm(slopes, axis=1), 1e-8)
    if start is not None:
        zero_slopes = evaluate(np.zeros_like(v), active)[1]
        goal = tolerance * np.maximum(np.linalg.norm(zero_slopes, axis=1), 1e-8)
    memory = _Memory(problems, v.shape[1])
    step = np.ones(problems, np.float32)
    direction = memory.direction(slopes, active)
    passes = 1
    active = active[np.linalg.norm(slopes, axis=1) > goal]
    while len(active) and passes < max_passes:
        trial = v[active] + step[active, None] * direction[active]
        loss, slope = evaluate(trial, active)
        passes += 1
        descent = np.einsum("pd,pd->p", slopes[active], direction[active], dtype=np.float64)
        slack = 1e-6 * np.abs(losses[active])  # float32 resolution
        good = loss <= losses[active] + _ARMIJO * step[active] * descent + slack
        step[active[~good]] *= 0.4
        moved = active[good]
        memory.add(moved, trial[good] - v[moved], slope[good] - slopes[moved])
        v[moved], losses[moved], slopes[moved] = trial[good], loss[good], slope[good]
        direction[moved] = memory.direction(slopes[moved], moved)
        step[moved] = 1.0
        stuck = step[active] < 1e-4
        active = active[(np.linalg.norm(slopes[active], axis=1) > goal[active]) & ~stuck]
    weight = (v[:, : r * c].reshape(problems, r, c) * shrink[:, :, None]).astype(np.float32, copy=False)
    bias = (v[:, r * c :] * shrink_bias).astype(np.float32, copy=False)
    return Solution(weight, bias, losses, passes)


def softmax(logits: F32) -> NDArray[np.float64]:
    """Return probabilities, float64 (n, C), for logits (n, C)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    np.exp(shifted, out=shifted)
    return shifted / shifted.sum(1, keepdims=True)


def _focal(losses: F32, weights: F32, gamma: float) -> tuple[F32, F32]:
    """Return the weighted focal losses and the weights to apply to the cross-entropy gradient.

    With p the probability of the target, d/dz of (1 - p)^g (-log p) is that of -log p, times (1 - p)^g - g p (1 -
    p)^(g-1) log p.

    Args:
        losses: (m, k) log losses.
        weights: (m, k) sample weights.
        gamma: Focusing parameter.

    Returns:
        Two (m, k) arrays.
    """
    p = np.exp(-losses)
    rest = np.maximum(1 - p, 0)
    steer = rest**gamma + gamma * p * rest ** (gamma - 1) * losses
    return rest**gamma * losses * weights, steer * weights


class _Memory:
    """L-BFGS history: the last pairs (step, change of gradient) of each problem."""

    def __init__(self, problems: int, size: int) -> None:
        self.steps = np.zeros((_MEMORY, problems, size), np.float32)
        self.changes = np.zeros((_MEMORY, problems, size), np.float32)
        self.rho = np.zeros((_MEMORY, problems), np.float64)  # 0: empty slot
        self.next = np.zeros(problems, np.int64)

    def add(self, which: NDArray[np.int64], steps: F32, changes: F32) -> None:
        curvature = np.einsum("pd,pd->p", steps, changes, dtype=np.float64)
        keep = curvature > 1e-10
        which, slot = which[keep], self.next[which[keep]] % _MEMORY
        self.steps[slot, which], self.changes[slot, which] = steps[keep], changes[keep]
        self.rho[slot, which] = 1 / curvature[keep]
        self.next[which] += 1

    def direction(self, slopes: F32, which: NDArray[np.int64]) -> F32:
        """Return minus the inverse Hessian approximation times the gradient (two-loop recursion)."""
        q = slopes.copy()
        alphas = np.zeros((_MEMORY, len(which)))
        order = [(self.next[which] - 1 - back) % _MEMORY for back in range(_MEMORY)]
        valid = [(self.next[which] > back) for back in range(_MEMORY)]
        for back in range(_MEMORY):
            slot = order[back]
            alpha = (
                valid[back]
                * self.rho[slot, which]
                * np.einsum("pd,pd->p", self.steps[slot, which], q, dtype=np.float64)
            )
            q -= alpha[:, None].astype(np.float32) * self.changes[slot, which]
            alphas[back] = alpha
        newest = order[0]
        y = self.changes[newest, which]
        gamma = valid[0] / np.maximum(self.rho[newest, which] * np.einsum("pd,pd->p", y, y, dtype=np.float64), 1e-30)
        q *= np.where(valid[0], gamma, 1.0)[:, None].astype(np.float32)
        for back in reversed(range(_MEMORY)):
            slot = order[back]
            beta = (
                valid[back]
                * self.rho[slot, which]
                * np.einsum("pd,pd->p", self.changes[slot, which], q, dtype=np.float64)
            )
            q += (valid[back] * (alphas[back] - beta))[:, None].astype(np.float32) * self.steps[slot, which]
        return -q
