"""Linear heads on frozen features: one per fold, with the L2 penalty selected inside each training fold.

For a label with several attributes, one head per attribute can be fitted and combined into a single linear head over
the classes (attribute combinations). The probability of a combination is the product over its attributes, normalized
over the existing combinations. Each attribute's softmax normalizer is the same for all combinations and cancels, so the
result is a softmax over the sums of the attributes' logits. Hence the heads of all attributes are exactly equivalent to
one linear head whose column for a combination is the sum of the corresponding columns, and prediction, explanation and
export treat it as any other head.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from threadpoolctl import threadpool_limits

from unfreeze.core.arrays import F32
from unfreeze.core.dataset import Finding, ImageDataset, LabelColumn, label_columns
from unfreeze.core.errors import RecipeError, RunError, join_names
from unfreeze.core.files import atomic_write, regular_file
from unfreeze.core.messages import option, wording
from unfreeze.core.parallel import cores, map_threads
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Probe
from unfreeze.features.matrix import AnyFeatureMatrix, signed_root
from unfreeze.metrics.classification import MEMBERS, Tally
from unfreeze.training.class_balance import ResolvedBalance, log_prior
from unfreeze.training.linear_probe.projection import Moments, Projection, fit_projection, moments, pieces_of
from unfreeze.training.linear_probe.regularization import (
    Head,
    HeadData,
    PenaltyChoice,
    choose_penalty,
    fit_penalties,
    inner_splits,
)
from unfreeze.training.linear_probe.solver import softmax

# Gradient tolerance of `fit_softmax`, for heads that are kept and for models that are only compared.
_FINE, _ROUGH = 1e-3, 3e-3
# Above this number of training rows, averaging fold models gains too little to be worth measuring.
_MOST_INNER = 30_000


@dataclass(frozen=True)
class LinearHead:
    """Fitted head: a linear map of the signed square roots of the features.

    Attributes:
        weight: float32 (D, C).
        bias: float32 (C,).
        strength: Selected inverse penalty.
        inputs: Indices of the inputs whose features are concatenated, in this order.
        strengths: Inverse penalties of the attributes' heads, if it is combined from several.
        inner: How models that leave out one more fold predict the images of the head's fold, individually and averaged.
    """

    weight: F32
    bias: F32
    strength: float
    inputs: tuple[int, ...] = (0,)
    strengths: tuple[float, ...] = ()
    inner: Tally | None = None

    def logits(self, features: F32) -> F32:
        """Return float32 (n, C) logits for float32 (n, D) features from `FeatureMatrix.read`."""
        return self.rooted_logits(signed_root(features.copy()))

    def rooted_logits(self, rooted: F32) -> F32:
        """Return float32 (n, C) logits for signed square roots from `FeatureMatrix.rooted`."""
        return rooted @ self.weight + self.bias

    def save(self, path: Path, identity: str, classes: Sequence[str] = ()) -> None:
        """Write the head as safetensors, atomically.

        Args:
            path: The file.
            identity: Hash of what the head was fitted on.
            classes: Class names of the columns.
        """
        tensors: dict[str, NDArray[Any]] = {"weight": self.weight, "bias": self.bias}
        if self.inner:
            tensors |= {"inner_counts": self.inner.counts, "inner_losses": self.inner.losses}
        about = {"identity": identity, "classes": list(classes), "strength": self.strength, "inputs": self.inputs}
        if self.strengths:
            about["strengths"] = self.strengths
        # A single metadata key: safetensors writes several in any order, and equal heads should give identical files.
        content = save(tensors, {"head": json.dumps(about)})
        atomic_write(path, lambda p: p.write_bytes(content))

    @classmethod
    def load(cls, path: Path) -> tuple[LinearHead, dict[str, Any]]:
        """Load a head.

        Returns:
            The head, and a dictionary with its `identity` and `classes`.

        Raises:
            RunError: If the file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            tensors = load_file(regular_file(path))
            with safe_open(path, "numpy") as file:
                written = json.loads((file.metadata() or {})["head"])
            inputs = tuple(int(i) for i in written["inputs"])
            strengths = tuple(float(s) for s in written.get("strengths", ()))
            inner = Tally(tensors["inner_counts"], tensors["inner_losses"]) if "inner_counts" in tensors else None
            head = cls(tensors["weight"], tensors["bias"], float(written["strength"]), inputs, strengths, inner)
            if not all(np.isfinite(values).all() for values in tensors.values()):
                raise ValueError("its values are not all finite numbers")
            about = {"identity": written["identity"], "classes": tuple(written["classes"])}
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise RunError(
                f"{path}: cannot be read as a head ({error}); fit the run again with {option('force', True)}."
            ) from None
        return head, about


def fit_folds(
    features: AnyFeatureMatrix,
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    probe: Probe,
    seed: int,
    identity: str,
    scratch: Path,
    only: list[int] | None = None,
    reporter: Reporter | None = None,
    words: ResolvedBalance | None = None,
    photos: int | None = None,
    inner: bool = False,
) -> Iterator[tuple[int, LinearHead]]:
    """Fit a head for each fold, trained on all other folds.

    The penalty of each head is the one with the lowest log loss on group-safe inner splits of its training rows. The
    held-out fold is not used for the selection.

    Args:
        features: The features.
        labels: int (n,), class of each row.
        units: int (n,), group of each row; groups are not split.
        folds: int (n,), fold of each row; -1 for rows that are not used.
        classes: Number of classes.
        probe: Probe section of the recipe.
        seed: Random seed.
        identity: Hash of the rows and folds, part of the cache key of the projections.
        scratch: Folder for temporary files.
        only: Folds to fit; None means all.
        reporter: Progress reporter.
        words: Resolved class balancing.
        photos: Number of images. Rows from this one on are extra samples, which are used for training and never held
            out. None means that there are none.
        inner: Whether to also fit the models of `LinearHead.inner`.

    Yields:
        (fold, head), in order.
    """
    data = HeadData(labels, units, classes, words or ResolvedBalance(), seed, len(labels) if photos is None else photos)
    count = int(folds.max()) + 1
    todo = list(range(count)) if only is None else only
    if not todo:
        return
    statistics = [moments(features.select((i,)), folds, count) for i in range(features.inputs)]
    # Depends on the number of all folds, not of those left to fit: a different number of BLAS threads would change the
    # last bits, and a resumed run must equal an uninterrupted one.
    workers = min(cores(), count)

    def one(fold: int) -> tuple[int, LinearHead]:
        return fold, _fit_fold(features, data, folds, fold, probe, identity, scratch, statistics, inner)

    # Folds run in parallel with few BLAS threads each: an eigendecomposition gains little from multithreading and
    # becomes very slow when another program occupies a core.
    with (
        threadpool_limits(max(1, cores() // workers), user_api="blas"),
        (reporter or Reporter()).bar("Fitting heads", len(todo)) as advance,
    ):
        for result in map_threads(one, todo, workers, ahead=workers):
            advance(1)
            yield result


def _fit_fold(
    features: AnyFeatureMatrix,
    data: HeadData,
    folds: NDArray[np.int64],
    fold: int,
    probe: Probe,
    identity: str,
    scratch: Path,
    statistics: list[Moments],
    inner: bool,
) -> LinearHead:
    """Fit the head of one fold.

    With several inputs, each is evaluated alone, and then the best one in combination with each other one.
    """
    splits = inner_splits(np.flatnonzero((folds >= 0) & (folds != fold)), data.units, folds, data.seed)
    splits = [(train, valid[valid < data.photos]) for train, valid in splits]

    def attempt(inputs: tuple[int, ...]) -> _Attempt:
        part, known = features.select(inputs), Moments.joined([statistics[i] for i in inputs])
        place = scratch / f"fold-{fold}-{'-'.join(map(str, inputs))}.npy"
        rotation = fit_projection(part, known, folds, fold, data.seed, identity, place)
        return _Attempt(inputs, rotation, choose_penalty(rotation, splits, data, probe), place)

    winner = attempt((0,))
    try:
        alone = [(i,) for i in range(1, features.inputs)]
        for candidate in alone:
            winner = winner.against(attempt(candidate))
        best_alone = winner.inputs[0]
        for other in range(features.inputs):
            if other != best_alone:
                winner = winner.against(attempt((best_alone, other)))
        train = winner.rotation.train
        found = fit_penalties(winner.rotation, data, train, (winner.choice.strength,), _FINE, winner.choice.start)
        tally = _inner_tally(winner, data, folds, fold, found) if inner and len(train) <= _MOST_INNER else None
        weight, bias = _without_prior(data, train, found)
        unfolded = winner.rotation.unfold(features.select(winner.inputs), weight[0], bias[0])
        return LinearHead(*unfolded, strength=winner.choice.strength, inputs=winner.inputs, inner=tally)
    finally:
        winner.clean()


def kept_heads(
    files: Mapping[int, Path],
    mark: str,
    classes: Sequence[str],
    fit: Callable[[list[int]], Iterable[tuple[int, LinearHead]]],
) -> dict[int, LinearHead]:
    """Return the head of each fold, from the file of an interrupted run or newly fitted and saved at once.

    Args:
        files: Fold -> file.
        mark: Hash of what a head is fitted on.
        classes: Class names.
        fit: Function that yields the heads of the given folds.

    Returns:
        Fold -> head.
    """
    heads: dict[int, LinearHead] = {}
    for k, file in files.items():
        with contextlib.suppress(RunError):
            head, about = LinearHead.load(file)
            if about["identity"] == mark:
                heads[k] = head
    for k, head in fit([k for k in files if k not in heads]):
        head.save(files[k], mark, classes)
        heads[k] = head
    return {k: heads[k] for k in files}


def _without_prior(data: HeadData, train: NDArray[np.int64], head: Head) -> Head:
    """Remove the log prior from the biases of a head fitted with logit adjustment.

    Biases are not penalized, so this is exact.
    """
    weight, bias = head
    return weight, bias - log_prior(data.weights(train)[2]) if data.words.loss == "logit-adjusted" else bias


def _inner_tally(winner: _Attempt, data: HeadData, folds: NDArray[np.int64], fold: int, start: Head) -> Tally | None:
    """Predict the fold with models that leave out one more fold each, at the same penalty."""
    rotation, strengths = winner.rotation, (winner.choice.strength,)
    rows = np.flatnonzero(folds == fold)
    rows = rows[rows < data.photos]
    count, members = int(folds.max()) + 1, []
    if count < 3:  # leaving out two of two folds leaves no training data
        return None
    for step in range(1, min(MEMBERS, count - 1) + 1):
        train = rotation.train[folds[rotation.train] != (fold + step) % count]
        weight, bias = _without_prior(data, train, fit_penalties(rotation, data, train, strengths, _ROUGH, start))
        members.append(softmax(rotation.of(rows) @ weight[0] + bias[0]))
    return Tally.of(data.labels[rows], members)


@dataclass(frozen=True)
class _Attempt:
    """Combination of inputs, evaluated inside a training fold."""

    inputs: tuple[int, ...]
    rotation: Projection
    choice: PenaltyChoice
    place: Path

    def against(self, other: _Attempt) -> _Attempt:
        """Return the one with the lower loss (ties go to `self`) and delete the file of the other."""
        winner, loser = (other, self) if other.choice.loss < self.choice.loss else (self, other)
        loser.clean()
        return winner

    def clean(self) -> None:
        """Delete the file of a large projection."""
        with contextlib.suppress(OSError):
            self.place.unlink()


def predict_folds(features: AnyFeatureMatrix, heads: list[LinearHead], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of the heads' probabilities, float64 (len(rows), C)."""
    parts = []
    for piece in pieces_of(rows):
        read = {inputs: features.select(inputs).rooted(piece) for inputs in dict.fromkeys(h.inputs for h in heads)}
        parts.append(np.mean([softmax(head.rooted_logits(read[head.inputs])) for head in heads], axis=0))
    features.forget_pages()
    return np.concatenate(parts) if parts else np.zeros((0, len(heads[0].bias)))


# `labels.model` -> what is fitted: the first is saved as head.safetensors, the second as parts.safetensors.
MODELS = {"joint": ("joint",), "parts": ("parts",), "both": ("joint", "parts")}


def check_labels(recipe: Recipe, photos: ImageDataset) -> None:
    """Check that a dataset has the label columns that `labels.model` needs, before any work is done.

    Raises:
        RecipeError: If separate heads are requested for a label without several attributes.
    """
    if recipe.labels.model != "joint" and not label_columns(photos):
        raise RecipeError(
            f"labels.model = '{recipe.labels.model}': needs two or more label columns with two or more values each, as "
            f"{wording('--label mask --label gender', 'label=[...]')}; the label here is "
            f"{join_names(photos.attributes or ('label',))}."
        )


def unseen_combinations(
    labels: NDArray[np.int64], folds: NDArray[np.int64], count: int, classes: tuple[str, ...]
) -> list[str]:
    """Return the classes that are missing from the training images of some fold.

    Args:
        labels: int64 (n,), class of each image.
        folds: int64 (n,), fold of each image; -1 for images that are not used.
        count: Number of folds.
        classes: Class names.

    Returns:
        Names of the classes.
    """
    held = np.zeros((len(classes), count), bool)
    inside = folds >= 0
    held[labels[inside], folds[inside]] = True
    return [classes[c] for c in np.flatnonzero(held.sum(1) < 2)]


def unseen_findings(
    recipe: Recipe, labels: NDArray[np.int64], folds: NDArray[np.int64], photos: ImageDataset
) -> list[Finding]:
    """Return the result of `unseen_combinations` as findings, if the recipe fits heads per attribute."""
    unseen = unseen_combinations(labels, folds, recipe.folds.n_splits, photos.classes)
    if recipe.labels.model == "joint" or not unseen:
        return []
    return [
        Finding(
            "unseen-combinations",
            "info",
            f"{len(unseen)} of {len(photos.classes)} combinations lack training photos in some fold: "
            f"{join_names(unseen)}",
            "none needed: their attribute values occur in other combinations, so they still get a probability",
        )
    ]


def combine_heads(heads: Sequence[LinearHead], parts: Sequence[LabelColumn], widths: Sequence[int]) -> LinearHead:
    """Combine the heads of the label attributes into one head over the classes.

    Args:
        heads: One head per attribute. They can read different inputs.
        parts: The label attributes.
        widths: Number of features of each input.

    Returns:
        The combined head. Its strength is the geometric mean of those of `heads`, which `strengths` holds.
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
