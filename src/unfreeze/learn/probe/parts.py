"""A head per attribute of a combined label, and the one linear head over the combinations that they amount to.

The probability of a combination is the product over its parts, divided by the sum of these products over the
combinations that exist. Each part is a softmax, and its normaliser is the same for all combinations: it cancels, and
what is left is a softmax over the sums of the parts' logits. So the heads of all parts are one linear head whose
column for a combination is the sum of its parts' columns, exactly, and all that predicts, explains or exports takes it
as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.attributes import Part, parts_of
from unfreeze.core.errors import RecipeError, listed
from unfreeze.core.recipe import Recipe
from unfreeze.core.tables import Finding, Photos
from unfreeze.learn.probe.heads import LinearHead

# Word of `labels.model` -> what is fitted: the first is kept as head.safetensors, the second as parts.safetensors.
MODELS = {"joint": ("joint",), "parts": ("parts",), "both": ("joint", "parts")}


def check_labels(recipe: Recipe, photos: Photos) -> None:
    """Raises RecipeError for parts of labels that have none, before any work is done."""
    if recipe.labels.model != "joint" and not parts_of(photos):
        raise RecipeError(
            f"labels.model = '{recipe.labels.model}': needs two or more label columns with two or more values each, as "
            f"--label mask --label gender; the label here is {listed(photos.attributes or ('label',))}."
        )


def unseen_combinations(
    labels: NDArray[np.int64], folds: NDArray[np.int64], count: int, classes: tuple[str, ...]
) -> list[str]:
    """The classes that some fold's training photos lack.

    labels, folds: int64 (n,), class and fold (-1: no part) of each photo. count: of the folds.
    """
    held = np.zeros((len(classes), count), bool)
    inside = folds >= 0
    held[labels[inside], folds[inside]] = True
    return [classes[c] for c in np.flatnonzero(held.sum(1) < 2)]


def unseen_findings(
    recipe: Recipe, labels: NDArray[np.int64], folds: NDArray[np.int64], photos: Photos
) -> list[Finding]:
    """The same as a finding, where the recipe learns parts and there are any."""
    unseen = unseen_combinations(labels, folds, recipe.folds.count, photos.classes)
    if recipe.labels.model == "joint" or not unseen:
        return []
    return [
        Finding(
            "unseen-combinations",
            "info",
            f"{len(unseen)} of {len(photos.classes)} combinations lack training photos in some fold: {listed(unseen)}",
            "none needed: their parts were seen with others, so parts give them a probability all the same",
        )
    ]


def as_one(heads: Sequence[LinearHead], parts: Sequence[Part], widths: Sequence[int]) -> LinearHead:
    """The head over combinations that the parts' heads amount to.

    heads: one a part; they may read different inputs. widths: features of each input. Its strength is the geometric
    mean of theirs, which `strengths` holds.
    """
    inputs = tuple(dict.fromkeys(i for head in heads for i in head.inputs))
    starts = dict(zip(inputs, np.cumsum([0, *(widths[i] for i in inputs)]).tolist(), strict=False))
    classes = len(parts[0].of_class)
    weight = np.zeros((sum(widths[i] for i in inputs), classes), np.float32)
    bias = np.zeros(classes, np.float32)
    for head, part in zip(heads, parts, strict=True):
        own = np.array(part.of_class, np.int64)
        at = 0
        for i in head.inputs:
            weight[starts[i] : starts[i] + widths[i]] += head.weight[at : at + widths[i]][:, own]
            at += widths[i]
        bias += head.bias[own]
    strengths = tuple(head.strength for head in heads)
    return LinearHead(weight, bias, float(np.exp(np.mean(np.log(strengths)))), inputs, strengths)
