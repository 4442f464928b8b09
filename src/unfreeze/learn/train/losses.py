"""Losses by one word, for hard and soft targets, and the sum over a network's auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import log_softmax, one_hot

from unfreeze.core.errors import RecipeError, nearest

# (logits (n, C), soft targets (n, C) whose rows sum to 1, photos of each class (C,)) -> mean over the n photos.
ClassLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# (what the network gives, targets: int64 (n,) or float (n, C)) -> scalar.
Loss = Callable[[Any, torch.Tensor], torch.Tensor]

# Lin et al. 2017 find 2 best; Menon et al. 2020 show that 1 is consistent for the balanced error.
_FOCUS = 2.0
_ADJUSTMENT = 1.0


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The mean of -log of the probability given to the target (the log loss)."""
    return -(targets * log_softmax(logits, 1)).sum(1).mean()


def weighted(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Cross entropy with each class weighted by its inverse frequency, N / (C n_c) (King & Zeng 2001).

    The weights average 1 over the training photos, and the sum is divided by the number of photos, not by the
    batch's own weights: so pieces of a batch add up to the batch.
    """
    weights = counts.sum() / (len(counts) * counts)
    return -(targets * weights * log_softmax(logits, 1)).sum(1).mean()


def focal(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Focal loss, -(1 - p)^2 log p: photos that are told well count less (Lin et al. 2017, arXiv 1708.02002)."""
    logp = log_softmax(logits, 1)
    return -(targets * (1 - logp.exp()) ** _FOCUS * logp).sum(1).mean()


def logit_adjusted(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits + log(class shares), as if all classes were equally frequent.

    Menon et al. 2020, arXiv 2007.07314, equation 10 with tau = 1. Predictions use the logits as they are.
    """
    return cross_entropy(logits + _ADJUSTMENT * (counts / counts.sum()).log(), targets, counts)


def soft_f1(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """1 - macro F1 with probabilities in place of counts (as sigmoidF1, Benedict et al. 2021, arXiv 2108.10566).

    The mean is over the classes that occur in the batch. It is no mean over photos: pieces of a batch do not add up to
    the batch exactly, and small batches make it noisy.
    """
    p = logits.softmax(1)
    hits, support = (p * targets).sum(0), targets.sum(0)
    f1 = 2 * hits / (p.sum(0) + support).clamp_min(1e-9)
    present = (support > 0).to(f1.dtype)
    return 1 - (f1 * present).sum() / present.sum()


LOSSES: dict[str, ClassLoss] = {
    "ce": cross_entropy,
    "weighted": weighted,
    "focal": focal,
    "logit-adjusted": logit_adjusted,
    "soft-f1": soft_f1,
}
# Losses that are no mean over photos, so that micro-batches only approximate the effective batch.
OF_BATCHES = frozenset({"soft-f1"})


def soft_targets(targets: torch.Tensor, classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """float32 (n, C) of int64 (n,) classes or float (n, C) shares, smoothed (Szegedy et al. 2015, arXiv 1512.00567)."""
    soft = one_hot(targets, classes).float() if targets.ndim == 1 else targets.float()
    return soft * (1 - smoothing) + smoothing / classes if smoothing else soft


def make_loss(name: str, counts: Sequence[float], smoothing: float = 0.0, auxiliary: float = 0.0) -> Loss:
    """The loss of a network's output, which is logits or a tuple of logits and auxiliary logits (any may be None).

    counts: training photos of each class. smoothing: label smoothing; soft-f1 takes none, for F1 counts whole photos.
    auxiliary: weight of each auxiliary head's loss (Szegedy et al. 2014, arXiv 1409.4842: 0.3), added up.
    RecipeError if the name is unknown.
    """
    if name not in LOSSES:
        raise RecipeError(f"balance.loss = '{name}': choose one of {', '.join(LOSSES)}.{nearest(name, LOSSES)}")
    one, smoothing = LOSSES[name], 0.0 if name in OF_BATCHES else smoothing
    photos = torch.tensor([max(float(n), 1.0) for n in counts])  # a class without photos: no division by zero

    def loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        logits = logits_of(outputs)
        soft, own = soft_targets(targets, len(photos), smoothing), photos.to(logits.device)
        total = one(logits, soft, own)
        if auxiliary:
            for extra in auxiliary_of(outputs):
                total = total + auxiliary * one(extra, soft, own)
        return total

    return loss


def logits_of(outputs: Any) -> torch.Tensor:
    """float32 logits (n, C) of a network's output: the tensor itself, or the first of a tuple."""
    return (outputs[0] if isinstance(outputs, tuple | list) else outputs).float()


def auxiliary_of(outputs: Any) -> list[torch.Tensor]:
    """float32 logits of the auxiliary heads that gave any; Inception-v3 and GoogLeNet have some, in training only."""
    return [o.float() for o in outputs[1:] if o is not None] if isinstance(outputs, tuple | list) else []
