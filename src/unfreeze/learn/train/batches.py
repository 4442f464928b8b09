"""Batches for training and evaluation: stored pixels, or a frozen front's activations, to tensors.

What epoch `number` draws depends on nothing but (seed, number, batch): a run that is taken up again draws the same.
The next batch is made by a second thread while the step runs; two are in memory at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore
from unfreeze.core.errors import RecipeError, nearest
from unfreeze.core.work import in_threads
from unfreeze.data.pixels import Frame, StoredPixels
from unfreeze.learn.balance import Sampling
from unfreeze.learn.train.augment import AUGMENTS, cutmix, make_draws, mixup
from unfreeze.model.backbones import Preprocessing

Rows = NDArray[np.int64]
Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
# Photos augmented at once on a CPU: a large effective batch needs no large intermediate tensors, and caches like it.
_CHUNK = 16
_OFF = AUGMENTS["off"]


@dataclass(frozen=True)
class Batch:
    """Examples of one step.

    inputs: float32 on the device, normalised, or the tuple of tensors that a `late` network takes.
    targets: int64 (n,), or float32 (n, C) where examples are mixed. rows: int64 (n,), positions in the set.
    """

    inputs: Inputs
    targets: torch.Tensor
    rows: Rows


class Batches(Protocol):
    """What the training loop reads: a set of `count` photos."""

    count: int

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        """Effective batches of one epoch, shuffled and augmented. size: side of the photos; 0 is full."""
        ...

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        """Every row once, in order, as prediction sees it; flip: mirrored."""
        ...


def drawn_rows(labels: Rows, sampler: Sampling, seed: int, epoch: int) -> Rows:
    """Positions in the set that an epoch draws, in its order, int64.

    none: every row once. over: every class as often as the largest (each row as often as it goes in whole, the rest
    drawn without repetition). under: every class cut to the smallest, drawn anew each epoch. sqrt: about as many draws
    as rows, shared by the square roots of the counts (Mahajan et al. 2018, arXiv 1805.00932).
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
    """Where batches start and end. A last one of a single example joins the one before: BatchNorm needs two."""
    starts = list(range(0, count, batch))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


class _Set:
    """Order, targets and mixing, which pixels and activations share."""

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
        """Examples that an epoch draws: `count`, unless classes are over- or under-sampled."""
        return len(drawn_rows(self.labels, self.sampler, self.seed, 0))

    def steps(self, batch: int) -> int:
        """Effective batches of an epoch."""
        return len(batch_bounds(self.drawn, batch))

    def _ahead(self, make: Callable[[int], Batch], count: int) -> Iterator[Batch]:
        # ahead=2: one is handed out while the next is being made.
        return in_threads(make, range(count), workers=1, ahead=2)

    def _batch(self, inputs: Inputs, rows: Rows) -> Batch:
        return Batch(inputs, torch.from_numpy(self.labels[rows]).to(self.device), rows)

    def _mixed(self, batch: Batch, epoch: int, number: int) -> Batch:
        """The batch with mixup or CutMix; where both are on, a coin is thrown for each batch, as timm does."""
        draw = np.random.default_rng([self.seed, epoch, 1 + number])
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or draw.random() < 0.5)
        if not cut and self.mixup_alpha == 0:
            return batch
        targets = torch.nn.functional.one_hot(batch.targets, self.classes).float()
        if cut:
            assert isinstance(batch.inputs, torch.Tensor)  # ActivationBatches has no CutMix
            images, targets = cutmix(batch.inputs, targets, self.cutmix_alpha, draw)
            return Batch(images, targets, batch.rows)
        single = isinstance(batch.inputs, torch.Tensor)
        tensors: tuple[torch.Tensor, ...] = (batch.inputs,) if single else batch.inputs
        tensors, targets = mixup(tensors, targets, self.mixup_alpha, draw)
        return Batch(tensors[0] if single else tensors, targets, batch.rows)


class PixelBatches(_Set):
    """Batches of photos from stored pixels.

    pixels: of all photos of a run. rows: int64 (n,), those of this set, positions in `pixels`. labels: int64 (n,),
    class of each of `rows`. preprocessing: mean and deviation for normalising; its other values must be those of
    `pixels`. augment: a word of AUGMENTS. device: where augmentation runs and tensors lie.
    Raises RecipeError for an unknown word, ValueError where the arrays do not fit, have no pixels, or sizes differ.
    """

    def __init__(
        self,
        pixels: StoredPixels,
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
            raise RecipeError(f"train.augment = '{augment}': no such augmentation.{nearest(augment, AUGMENTS)}")
        p = preprocessing
        if pixels.frame != Frame(p.size, p.crop, p.resample, p.squash, p.face, p.gray):
            raise ValueError(f"pixels stored for {pixels.frame} do not serve {preprocessing}")
        if (pixels.places[self.rows, 0] < 0).any():
            raise ValueError("some rows have no pixels; leave out those in `failed` and unreadable ones")
        self.pixels, self.size = pixels, preprocessing.size
        self.augment = AUGMENTS[augment]
        self._mean = torch.tensor(preprocessing.mean, device=self.device).view(3, 1, 1)
        self._scale = 1 / torch.tensor(preprocessing.std, device=self.device).view(3, 1, 1)

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        """Effective batches of one epoch: shuffled, augmented, mixed if asked. size: side in pixels; 0 is full.

        A photo's augmentation depends on (seed, epoch, the photo's content, how often it came before) alone.
        """
        order = drawn_rows(self.labels, self.sampler, self.seed, number)
        repeats = _occurrences(order)
        bounds = batch_bounds(len(order), batch)

        def make(step: int) -> Batch:
            part = slice(*bounds[step])
            images = self._images(order[part], size or self.size, number, repeats[part])
            return self._mixed(self._batch(images, order[part]), number, step)

        return self._ahead(make, len(bounds))

    def view(self, number: int, batch: int) -> Iterator[Batch]:
        """Every row once, in order, augmented as in epoch `number` and not mixed: for activations that are kept."""
        return self._in_order(batch, lambda rows: self._images(rows, self.size, number, np.zeros(len(rows), np.int64)))

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        """Every row once, in order, as prediction sees it: the centre, normalised; flip: mirrored left to right."""

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
        """float32 (n, 3, size, size), normalised; not augmented where `repeats` is None."""
        augment, draws = _OFF, np.zeros((len(rows), 0))
        places = self.rows[rows]
        if repeats is not None:
            # By content, so that neither the table's order nor a photo's name has a part in it.
            augment, draws = self.augment, make_draws(self.seed, epoch, self.pixels.keys[places, 0], repeats)
        out = torch.empty((len(rows), 3, size, size), device=self.device)
        step = _CHUNK if self.device.type == "cpu" else max(len(rows), 1)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            stored = torch.from_numpy(self.pixels.read(places[part])).to(self.device).permute(0, 3, 1, 2)
            floats = augment(stored, size, self.pixels.frame.margin, draws[part])
            torch.mul(floats.sub_(self._mean), self._scale, out=out[part])
        # Mapped pages count as this process's memory, which the memory plan measures; read again they cost little.
        self.pixels.forget_pages()
        return out


def _occurrences(order: Rows) -> Rows:
    """How often each entry came before in `order`, int64 (n,)."""
    by_value = np.argsort(order, kind="stable")
    _, starts, counts = np.unique(order[by_value], return_index=True, return_counts=True)
    out = np.empty(len(order), np.int64)
    out[by_value] = np.arange(len(order)) - np.repeat(starts, counts)
    return out


@dataclass(frozen=True)
class Activations:
    """What the frozen front puts out for several views of each photo, on disk as float16.

    stores, places: one a view; places int64 (N, 2), -1 where absent. View 0 is the plain one. A row is flat: `pooled`
    features of the frozen blocks, then the activation at the boundary, of `shape` (C, H, W). mirrored: the view that
    is the plain photo mirrored, or -1. kept: all rows (views, N, width) where `held` keeps them in memory.
    """

    stores: tuple[RowStore, ...]
    places: tuple[NDArray[np.int64], ...]
    shape: tuple[int, ...]
    pooled: int
    mirrored: int = -1
    kept: NDArray[np.float16] | None = None

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.pooled + math.prod(self.shape)

    def held(self, memory: float) -> Activations:
        """The same in memory if all views of all photos take at most `memory` bytes, else itself."""
        count = len(self.places[0])
        if 2 * len(self.stores) * count * self.width > memory:
            return self
        kept = np.zeros((len(self.stores), count, self.width), np.float16)
        there = np.flatnonzero(np.all([places[:, 0] >= 0 for places in self.places], axis=0))
        for start in range(0, len(there), 256):
            rows = there[start : start + 256]
            for view in range(len(self.stores)):
                kept[view, rows] = self.stores[view].take(self.places[view][rows])
        for store in self.stores:
            store.forget_pages()
        return Activations(self.stores, self.places, self.shape, self.pooled, self.mirrored, kept)

    def read(self, rows: Rows, views: Rows) -> NDArray[np.float16]:
        """float16 (n, width): of each photo of `rows` (n,), its view (n,)."""
        if self.kept is not None:
            return self.kept[views, rows]
        out = np.empty((len(rows), self.width), np.float16)
        for view in np.unique(views).tolist():
            here = views == view
            out[here] = self.stores[view].take(self.places[view][rows[here]])
            self.stores[view].forget_pages()
        return out


class ActivationBatches(_Set):
    """Batches for strategy `late`: inputs are (activation float32 (n, *shape), pooled float32 (n, P)).

    activations: of all photos of a run. rows, labels: as of PixelBatches. Each epoch draws one view for each
    photo. mixup blends both tensors; CutMix, which needs pixels, does not exist here.
    Raises ValueError where arrays do not fit or rows have no activations.
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
        """Effective batches of one epoch; views are drawn by (seed, epoch). `size` has no meaning here: 0."""
        if size:
            raise ValueError("activations have one size; progressive resizing needs pixels")
        order = drawn_rows(self.labels, self.sampler, self.seed, number)
        views = np.random.default_rng([self.seed, number, 0, 1]).integers(len(self.activations.stores), size=len(order))
        bounds = batch_bounds(len(order), batch)

        def make(step: int) -> Batch:
            part = slice(*bounds[step])
            inputs = self._inputs(order[part], views[part])
            return self._mixed(self._batch(inputs, order[part]), number, step)

        return self._ahead(make, len(bounds))

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        """Every row once, in order, plain view; flip: the view of mirrored photos. ValueError if it was not kept."""
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
