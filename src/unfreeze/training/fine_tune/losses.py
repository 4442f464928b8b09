"""Classification losses for hard and soft targets, selected by name, with optional auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import log_softmax, one_hot

from unfreeze.core.errors import RecipeError, did_you_mean

# (logits (n, C), soft targets (n, C) whose rows sum to 1, number of images of each class (C,)) -> mean over the n
# images.
ClassLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# (output of the network, targets int64 (n,) or float (n, C)) -> scalar.
Loss = Callable[[Any, torch.Tensor], torch.Tensor]

# Lin et al. 2017 find gamma = 2 best; Menon et al. 2020 show that tau = 1 is consistent for the balanced error.
_FOCUS = 2.0
_ADJUSTMENT = 1.0


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy (log loss)."""
    return -(targets * log_softmax(logits, 1)).sum(1).mean()


def weighted(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy weighted by inverse class frequency, N / (C n_c) (King & Zeng 2001).

    The weights average 1 over the training images, and the sum is divided by the number of images rather than by the
    weights of the batch, so the losses of the pieces of a batch add up to that of the batch.
    """
    weights = counts.sum() / (len(counts) * counts)
    return -(targets * weights * log_softmax(logits, 1)).sum(1).mean()


def focal(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the focal loss, -(1 - p)^2 log p, which down-weights well-classified images.

    References:
        Lin et al. 2017, arXiv 1708.02002.
    """
    logp = log_softmax(logits, 1)
    return -(targets * (1 - logp.exp()) ** _FOCUS * logp).sum(1).mean()


def logit_adjusted(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of logits + log(class frequencies), as if all classes were equally frequent.

    Predictions use the unadjusted logits.

    References:
        Menon et al. 2020, arXiv 2007.07314, equation 10 with tau = 1.
    """
    return cross_entropy(logits + _ADJUSTMENT * (counts / counts.sum()).log(), targets, counts)


def soft_f1(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return 1 - macro F1 computed with probabilities in place of counts, similar to sigmoidF1.

    The mean is over the classes that occur in the batch. It is not a mean over images: the losses of the pieces of a
    batch do not add up to that of the batch exactly, and small batches make it noisy.

    References:
        Benedict et al. 2021, arXiv 2108.10566.
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
# Losses that are not a mean over images, so that micro-batches only approximate the effective batch.
OF_BATCHES = frozenset({"soft-f1"})


def soft_targets(targets: torch.Tensor, classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Return float32 (n, C) targets for int64 (n,) classes or float (n, C) distributions, with label smoothing.

    References:
        Szegedy et al. 2015, arXiv 1512.00567.
    """
    soft = one_hot(targets, classes).float() if targets.ndim == 1 else targets.float()
    return soft * (1 - smoothing) + smoothing / classes if smoothing else soft


def make_loss(name: str, counts: Sequence[float], smoothing: float = 0.0, auxiliary: float = 0.0) -> Loss:
    """Return the loss function for a network's output: logits, or a tuple of logits and auxiliary logits (or None).

    Args:
        name: A key of LOSSES.
        counts: Number of training images of each class.
        smoothing: Label smoothing; ignored by 'soft-f1', since F1 counts whole images.
        auxiliary: Weight of each auxiliary head's loss, which is added (0.3 in Szegedy et al. 2014, arXiv 1409.4842).

    Returns:
        The loss function.

    Raises:
        RecipeError: If the name is unknown.
    """
    if name not in LOSSES:
        raise RecipeError(f"balance.loss = '{name}': choose one of {', '.join(LOSSES)}.{did_you_mean(name, LOSSES)}")
    one, smoothing = LOSSES[name], 0.0 if name in OF_BATCHES else smoothing
    photos = torch.tensor([max(float(n), 1.0) for n in counts])  # avoids division by zero for a class without images

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
    """Return the float32 logits (n, C) of a network's output: the tensor itself, or the first of a tuple."""
    return (outputs[0] if isinstance(outputs, tuple | list) else outputs).float()


def auxiliary_of(outputs: Any) -> list[torch.Tensor]:
    """Return the float32 logits of the auxiliary heads, which Inception-v3 and GoogLeNet have in training mode."""
    return [o.float() for o in outputs[1:] if o is not None] if isinstance(outputs, tuple | list) else []
