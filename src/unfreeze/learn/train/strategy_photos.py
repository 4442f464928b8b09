"""The photos that a strategy trains on, pixels or activations: into the cache, and from there into batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import CacheError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_sections import Train
from unfreeze.data.pixels import cached_pixels
from unfreeze.learn.added import AddedRows
from unfreeze.learn.added_views import ExtendedActivations, ExtendedPixels, kept_views
from unfreeze.learn.balance import Sampling
from unfreeze.learn.train.activations import compute_activations, kept_activations
from unfreeze.learn.train.batches import ActivationBatches, Activations, Batch, Batches, PixelBatches
from unfreeze.learn.train.plan import make_fabric
from unfreeze.learn.train.tuning import Setting

Rows = NDArray[np.int64]
# Activations of all views are held in memory up to this size, for each process.
_HELD = 1 << 30


class MakeBatches(Protocol):
    """Function: rows, their labels, number of classes, settings, seed, sampler -> Batches."""

    def __call__(
        self, rows: Rows, labels: Rows, classes: int, s: Train, seed: int, sampler: Sampling = "none"
    ) -> Batches: ...


def prepare_photos(
    setting: Setting,
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> dict[int, str]:
    """Pixels or activations of every readable photo go into the cache; gives the photos that failed, and why.

    squares: as of `compute_features`.
    """
    count = int(readable.sum())
    if not setting.cut:
        return cached_pixels(files, keys, readable, setting.frame, max_pixels, reporter, squares).failed
    bytes_each, last = 2 * setting.front.width(), setting.backbone.stages[setting.first - 1].name
    reporter.say(
        f"Activations: {len(setting.views)} view(s) of {count:,} photos after {last}, {bytes_each / 1024:.0f} KiB "
        f"each, {bytes_each * count * len(setting.views) / 1e9:.2f} GB on disk, computed once."
    )
    s = setting
    return compute_activations(
        files, keys, readable, s.front, s.views, s.frame, s.engine, max_pixels, reporter, squares
    )


def photos_of(
    setting: Setting, keys: NDArray[np.uint64], readable: NDArray[np.bool_], added: AddedRows | None = None
) -> MakeBatches:
    """Makes batches from what the cache holds.

    added: rows that stand behind the photos' in every table. CacheError where it does not hold them any more.
    Augmentation runs where training does.
    """
    device, added = make_fabric("f32").device, added or AddedRows()
    if setting.cut:
        found = kept_activations(keys, readable, setting.front, setting.views, setting.engine)
        shape = setting.front.activation()
        beside = sum(width for _, width in found.blocks[:-1])
        mirrored = setting.views.index("flip") if "flip" in setting.views else -1
        every = Activations(found.stores, found.places, shape, beside, mirrored).held(_HELD)
        kept = None if every.kept is None else every.kept[: setting.drawn]
        some = replace(
            every, stores=every.stores[: setting.drawn], places=every.places[: setting.drawn], mirrored=-1, kept=kept
        )

        if len(added):
            seen = kept_views(added, keys, setting.front, setting.added_views, setting.engine)
            every = ExtendedActivations.of(every, added, seen, mirrored)
            some = ExtendedActivations.of(some, added, seen, mirrored if mirrored < setting.drawn else -1)

        def late(rows: Rows, labels: Rows, classes: int, s: Train, seed: int, sampler: Sampling = "none") -> Batches:
            whole, drawn = (
                ActivationBatches(a, rows, labels, classes, s.mixup, sampler, seed, device) for a in (every, some)
            )
            return _Drawn(whole, drawn)

        return late
    # No photo is decoded here.
    pixels = cached_pixels([], keys, np.zeros_like(readable), setting.frame)
    if (pixels.places[readable, 0] < 0).any():
        raise CacheError("the pixels that were there are gone; was the cache cleared? Run the same command again.")

    pixels = ExtendedPixels.of(pixels, added)

    def whole(rows: Rows, labels: Rows, classes: int, s: Train, seed: int, sampler: Sampling = "none") -> Batches:
        p = setting.preprocessing
        return PixelBatches(pixels, rows, labels, classes, p, s.augment, s.mixup, s.cutmix, sampler, seed, device)

    return whole


class _Drawn:
    """Photos that training draws from some of their views, and that are looked at as prediction sees them."""

    def __init__(self, whole: ActivationBatches, drawn: ActivationBatches) -> None:
        self.whole, self.drawn, self.count = whole, drawn, whole.count

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        return self.drawn.epoch(number, batch, size)

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        return self.whole.plain(batch, flip)
