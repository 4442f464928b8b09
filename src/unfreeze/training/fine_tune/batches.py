"""Batches for training and evaluation, from cached pixels or from activations of frozen layers.

What epoch `number` draws depends only on (seed, number, batch size), so a resumed run draws the same. A second thread
prepares the next batch while the current step runs; at most two batches are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch

from unfreeze.core.arrays import Rows
from unfreeze.core.errors import RecipeError, did_you_mean
from unfreeze.core.parallel import map_threads
from unfreeze.data.pixel_cache import CropSpec, PixelCache
from unfreeze.features.augment import AUGMENTS, cutmix, make_draws, mixup
from unfreeze.features.stored_activations import Activations
from unfreeze.models.model_info import Preprocessing
from unfreeze.training.class_balance import Sampling

Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
# Number of images augmented together on a CPU: avoids large intermediate tensors for large effective batches, and is
# cache-friendly.
_CHUNK = 16
_OFF = AUGMENTS["off"]


@dataclass(frozen=True)
class Batch:
    """Examples of one step.

    Attributes:
        inputs: float32, normalized, on the device, or the tuple of tensors that a network of strategy 'partial' takes.
        targets: int64 (n,), or float32 (n, C) if examples are mixed.
        rows: int64 (n,), positions in the set.
    """

    inputs: Inputs
    targets: torch.Tensor
    rows: Rows


class Batches(Protocol):
    """Protocol of a set of `count` images that the training loop reads."""

    count: int

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        """Yield the effective batches of one epoch, shuffled and augmented. `size`: image side; 0 means full size."""
        ...

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        """Yield every row once, in order, as in prediction. `flip`: whether to flip horizontally."""
        ...


def sample_epoch(labels: Rows, sampler: Sampling, seed: int, epoch: int) -> Rows:
    """Return the positions that an epoch draws, in order.

    Args:
        labels: int (n,), class of each row.
        sampler: 'none': every row once. 'over': every class as often as the largest (each row the same whole number of
            times, the remainder drawn without replacement). 'under': every class reduced to the size of the smallest,
            with a new random subset each epoch. 'sqrt': about n draws, distributed in proportion to the square roots of
            the class counts (Mahajan et al. 2018, arXiv 1805.00932).
        seed: Random seed.
        epoch: Number of the epoch.

    Returns:
        int64 positions.
    """
    draw = np.random.default_rng([seed, epoch, 0])
    if sampler == "none":
        return draw.permutation(len(labels))
    _, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    roots = np.sqrt(counts)
    shares = np.maximum(np.round(len(labels) * roots / roots.sum()), 1)
    every = {"over": np.full(len(counts), counts.max()), "under": np.full(len(counts), counts.min()), "sqrt": shares}
    drawn = []
    for position, (count, wanted) in enumerate(zip(counts.tolist(), every[sampler].astype(int).tolist(), strict=True)):
        rows = np.flatnonzero(members == position)
        drawn += [np.tile(rows, wanted // count), draw.permutation(rows)[: wanted % count]]
    return draw.permutation(np.concatenate(drawn))


def batch_bounds(count: int, batch: int) -> list[tuple[int, int]]:
    """Return start and end of each batch.

    A last batch with a single example is merged with the previous one, because BatchNorm needs two.
    """
    starts = list(range(0, count, batch))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


class _Set:
    """Base class for pixels and activations: sampling, targets and mixing."""

    def __init__(
        self,
        rows: Rows,
        labels: Rows,
        classes: int,
        mixup_alpha: float,
        cutmix_alpha: float,
        sampler: Sampling,
        seed: int,
        device: str | torch.device,
    ) -> None:
        if len(rows) != len(labels) or not len(rows):
            raise ValueError(f"{len(rows)} rows and {len(labels)} labels: a set needs one label a row, and a row")
        self.rows, self.labels, self.classes = np.asarray(rows, np.int64), np.asarray(labels, np.int64), classes
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.sampler, self.seed, self.device = sampler, seed, torch.device(device)
        self.count = len(rows)

    @property
    def drawn(self) -> int:
        """Number of examples that an epoch draws: `count`, unless classes are over- or undersampled."""
        return len(sample_epoch(self.labels, self.sampler, self.seed, 0))

    def steps(self, batch: int) -> int:
        """Return the number of effective batches per epoch."""
        return len(batch_bounds(self.drawn, batch))

    def _ahead(self, make: Callable[[int], Batch], count: int) -> Iterator[Batch]:
        # ahead=2: one batch is being used while the next is prepared.
        return map_threads(make, range(count), workers=1, ahead=2)

    def _batch(self, inputs: Inputs, rows: Rows) -> Batch:
        return Batch(inputs, torch.from_numpy(self.labels[rows]).to(self.device), rows)

    def _mixed(self, batch: Batch, epoch: int, number: int) -> Batch:
        """Apply mixup or CutMix. If both are enabled, one is chosen at random for each batch, as in timm."""
        draw = np.random.default_rng([self.seed, epoch, 1 + number])
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or draw.random() < 0.5)
        if not cut and self.mixup_alpha == 0:
            return batch
        targets = torch.nn.functional.one_hot(batch.targets, self.classes).float()
        if cut:
            assert isinstance(batch.inputs, torch.Tensor)  # ActivationBatches does not support CutMix
            images, targets = cutmix(batch.inputs, targets, self.cutmix_alpha, draw)
            return Batch(images, targets, batch.rows)
        single = isinstance(batch.inputs, torch.Tensor)
        tensors: tuple[torch.Tensor, ...] = (batch.inputs,) if single else batch.inputs
        tensors, targets = mixup(tensors, targets, self.mixup_alpha, draw)
        return Batch(tensors[0] if single else tensors, targets, batch.rows)


class PixelBatches(_Set):
    """Batches of images from cached pixels.

    Args:
        pixels: Pixels of all images of a run.
        rows: int64 (n,), rows of this set in `pixels`.
        labels: int64 (n,), class of each of `rows`.
        classes: Number of classes.
        preprocessing: Mean and standard deviation for normalization. Its other values must match `pixels`.
        augment: A key of AUGMENTS.
        mixup: Alpha of mixup; 0 disables it.
        cutmix: Alpha of CutMix; 0 disables it.
        sampler: Resampling method.
        seed: Random seed.
        device: Device for augmentation and batches.

    Raises:
        RecipeError: If the augmentation is unknown.
        ValueError: If arrays do not match, rows have no pixels, or preprocessing and pixels differ.
    """

    def __init__(
        self,
        pixels: PixelCache,
        rows: Rows,
        labels: Rows,
        classes: int,
        preprocessing: Preprocessing,
        augment: str = "standard",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        sampler: Sampling = "none",
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(rows, labels, classes, mixup, cutmix, sampler, seed, device)
        if augment not in AUGMENTS:
            raise RecipeError(f"train.augment = '{augment}': no such augmentation.{did_you_mean(augment, AUGMENTS)}")
        p = preprocessing
        if pixels.frame != CropSpec(p.size, p.crop, p.resample, p.squash, p.face, p.gray):
            raise ValueError(f"pixels cached for {pixels.frame} do not match {preprocessing}")
        if (pixels.places[self.rows, 0] < 0).any():
            raise ValueError("some rows have no pixels; leave out those in `failed` and unreadable ones")
        self.pixels, self.size = pixels, preprocessing.size
        self.augment = AUGMENTS[augment]
        self._mean = torch.tensor(preprocessing.mean, device=self.device).view(3, 1, 1)
        self._scale = 1 / torch.tensor(preprocessing.std, device=self.device).view(3, 1, 1)

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        """Yield the effective batches of one epoch: shuffled, augmented, and mixed if enabled.

        The augmentation of an image depends only on the seed, the epoch, its content and how often it occurred before
        in this epoch.

        Args:
            number: Number of the epoch.
            batch: Effective batch size.
            size: Image side in pixels; 0 means full size.

        Yields:
            Batches.
        """
        order = sample_epoch(self.labels, self.sampler, self.seed, number)
        repeats = _occurrences(order)
        bounds = batch_bounds(len(order), batch)

        def make(step: int) -> Batch:
            part = slice(*bounds[step])
            images = self._images(order[part], size or self.size, number, repeats[part])
            return self._mixed(self._batch(images, order[part]), number, step)

        return self._ahead(make, len(bounds))

    def view(self, number: int, batch: int) -> Iterator[Batch]:
        """Yield every row once, in order, augmented as in epoch `number` and not mixed, to compute activations."""
        return self._in_order(batch, lambda rows: self._images(rows, self.size, number, np.zeros(len(rows), np.int64)))

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        """Yield every row once, in order, as in prediction: center view, normalized, flipped horizontally if `flip`."""

        def images(rows: Rows) -> torch.Tensor:
            found = self._images(rows, self.size)
            return found.flip(-1) if flip else found

        return self._in_order(batch, images)

    def _in_order(self, batch: int, images: Callable[[Rows], torch.Tensor]) -> Iterator[Batch]:
        def make(step: int) -> Batch:
            rows = np.arange(step * batch, min(self.count, (step + 1) * batch))
            return self._batch(images(rows), rows)

        return self._ahead(make, math.ceil(self.count / batch))

    def _images(self, rows: Rows, size: int, epoch: int = 0, repeats: Rows | None = None) -> torch.Tensor:
        """Return float32 (n, 3, size, size), normalized; not augmented if `repeats` is None."""
        augment, draws = _OFF, np.zeros((len(rows), 0))
        places = self.rows[rows]
        if repeats is not None:
            # Keyed by content, so that the augmentation does not depend on row order or file names.
            augment, draws = self.augment, make_draws(self.seed, epoch, self.pixels.keys[places, 0], repeats)
        out = torch.empty((len(rows), 3, size, size), device=self.device)
        step = _CHUNK if self.device.type == "cpu" else max(len(rows), 1)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            stored = torch.from_numpy(self.pixels.read(places[part])).to(self.device).permute(0, 3, 1, 2)
            floats = augment(stored, size, self.pixels.frame.margin, draws[part])
            torch.mul(floats.sub_(self._mean), self._scale, out=out[part])
        # Mapped pages count as memory of this process, which the memory plan measures; reading them again is cheap.
        self.pixels.forget_pages()
        return out


def _occurrences(order: Rows) -> Rows:
    """Return the number of earlier occurrences of each entry in `order`, int64 (n,)."""
    by_value = np.argsort(order, kind="stable")
    _, starts, counts = np.unique(order[by_value], return_index=True, return_counts=True)
    out = np.empty(len(order), np.int64)
    out[by_value] = np.arange(len(order)) - np.repeat(starts, counts)
    return out


class ActivationBatches(_Set):
    """Batches for strategy 'partial': inputs are (activation float32 (n, *shape), pooled float32 (n, P)).

    Each epoch draws one view per image. mixup blends both tensors. CutMix is not supported, because it needs pixels.

    Args:
        activations: Activations of all images of a run.
        rows: int64 (n,), rows of this set in `activations`.
        labels: int64 (n,), class of each of `rows`.
        classes: Number of classes.
        mixup: Alpha of mixup; 0 disables it.
        sampler: Resampling method.
        seed: Random seed.
        device: Device of the batches.

    Raises:
        ValueError: If arrays do not match or rows have no activations.
    """

    def __init__(
        self,
        activations: Activations,
        rows: Rows,
        labels: Rows,
        classes: int,
        mixup: float = 0.0,
        sampler: Sampling = "none",
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(rows, labels, classes, mixup, 0.0, sampler, seed, device)
        if any((places[self.rows, 0] < 0).any() for places in activations.places):
            raise ValueError("some rows have no activations in some view")
        self.activations = activations

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        """Yield the effective batches of one epoch. Views are drawn by (seed, epoch).

        Raises:
            ValueError: If `size` is not 0: activations have a fixed size.
        """
        if size:
            raise ValueError("activations have one size; progressive resizing needs pixels")
        order = sample_epoch(self.labels, self.sampler, self.seed, number)
        views = np.random.default_rng([self.seed, number, 0, 1]).integers(len(self.activations.stores), size=len(order))
        bounds = batch_bounds(len(order), batch)

        def make(step: int) -> Batch:
            part = slice(*bounds[step])
            inputs = self._inputs(order[part], views[part])
            return self._mixed(self._batch(inputs, order[part]), number, step)

        return self._ahead(make, len(bounds))

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        """Yield every row once, in order, in the plain view, or in the flipped view if `flip`.

        Raises:
            ValueError: If the flipped view is not available.
        """
        view = self.activations.mirrored if flip else 0
        if view < 0:
            raise ValueError("no view of mirrored photos is kept")

        def make(step: int) -> Batch:
            rows = np.arange(step * batch, min(self.count, (step + 1) * batch))
            return self._batch(self._inputs(rows, np.full(len(rows), view)), rows)

        return self._ahead(make, math.ceil(self.count / batch))

    def _inputs(self, rows: Rows, views: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        flat = torch.from_numpy(self.activations.read(self.rows[rows], views)).to(self.device)
        pooled = self.activations.pooled
        activation = flat[:, pooled:].float().unflatten(1, self.activations.shape)
        return activation, flat[:, :pooled].float()
