"""What changes while training goes on: the learning rate, the photos' size, and the time that is left."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from unfreeze.core.errors import RecipeError

# The first 60 % of a progressive run sees photos of about 0.7 the side, so half the pixels.
_SMALL_UNTIL, _SMALL = 0.6, 0.7
_MULTIPLE = 32


def rate_at(progress: float, warmup: float) -> float:
    """The share of the peak rate at a progress of 0..1: a straight rise, then half a cosine down to 0.

    Goyal et al. 2017, arXiv 1706.02677 (warm-up); Loshchilov & Hutter 2016, arXiv 1608.03983 (cosine).
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def size_at(progress: float, full: int) -> int:
    """Side of the photos, pixels, at a progress of 0..1 of progressive resizing; 0 stands for the full size.

    As in EfficientNetV2 (Tan & Le 2021, arXiv 2104.00298), in one stride of two steps, a multiple of 32.
    """
    small = max(_MULTIPLE, round(full * _SMALL / _MULTIPLE) * _MULTIPLE)
    return small if progress < _SMALL_UNTIL and small < full else 0


@dataclass(frozen=True)
class Budget:
    """The time that one call of `fit` may take, seconds: training, validation and checkpoints."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise RecipeError(f"train.budget = {self.seconds:g} s: give a time above 0, for example 10m.")


class Clock:
    """How far training is, by photos or, with a budget, by time.

    The rate decays to the end of the budget and not beyond it, which is what makes little time worth most (budgeted
    training, Li et al. 2019, arXiv 1905.04753). spent: seconds of a run that this one takes up again. ending: what
    follows an epoch's last step, in steps, for as long as none has been measured.
    """

    def __init__(self, epochs: int, budget: Budget | None, spent: float = 0.0, ending: float = 0.0) -> None:
        self.epochs, self.budget, self._ending = epochs, budget, ending
        self._started = time.perf_counter() - spent
        self._step, self._paused = 0.0, 0.0

    @property
    def spent(self) -> float:
        """Seconds since the start, those before an interruption included."""
        return time.perf_counter() - self._started

    def took(self, step: float = 0.0, pause: float = 0.0) -> None:
        """Notes what a step, or all that follows an epoch's last step, took: the budget leaves room for one more."""
        self._step = max(0.9 * self._step, step)
        self._paused = max(self._paused, pause)

    @property
    def _pause(self) -> float:
        return self._paused or self._ending * self._step

    def progress(self, epochs_done: float) -> float:
        """0..1: the share of the epochs or, where it is greater, of the time."""
        share = epochs_done / self.epochs
        if self.budget is not None:
            share = max(share, self.spent / max(1e-9, self.budget.seconds - self._pause))
        return min(1.0, share)

    def over(self) -> bool:
        """Whether another step, and what follows the last one, would go beyond the budget."""
        return self.budget is not None and self.spent + self._step + self._pause > self.budget.seconds
