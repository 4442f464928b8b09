"""Training inputs of a strategy, pixels or activations: written to the cache, and read from it in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.errors import CacheError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_schema import Train
from unfreeze.data.pixel_cache import cache_pixels
from unfreeze.features.activations import compute_activations, load_activations
from unfreeze.features.extra_samples import ExtraSamples
from unfreeze.features.extra_views import ExtendedActivations, ExtendedPixels, load_views
from unfreeze.features.stored_activations import Activations
from unfreeze.training.class_balance import Sampling
from unfreeze.training.fine_tune.autotune import make_fabric
from unfreeze.training.fine_tune.batches import ActivationBatches, Batch, Batches, PixelBatches
from unfreeze.training.fine_tune.settings import TrainSetup

# Limit in bytes, per process, up to which the activations of all views are held in memory.
_HELD = 1 << 30


class BatchFactory(Protocol):
    """Function (rows, their labels, number of classes, settings, seed, sampler) -> Batches."""

    def __call__(
        self, rows: Rows, labels: Rows, classes: int, s: Train, seed: int, sampler: Sampling = "none"
    ) -> Batches: ...


def cache_inputs(
    setting: TrainSetup,
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> dict[int, str]:
    """Write pixels or activations of every readable image to the cache.

    Args:
        setting: The training setup.
        files: n image files.
        keys: uint64 (n, 2) content keys.
        readable: bool (n,), images to process.
        max_pixels: Maximum number of pixels of an image.
        reporter: Progress reporter.
        squares: Crop boxes, as in `compute_features`.

    Returns:
        Images that failed: row -> reason.
    """
    count = int(readable.sum())
    if not setting.cut:
        return cache_pixels(files, keys, readable, setting.frame, max_pixels, reporter, squares).failed
    bytes_each, last = 2 * setting.front.width(), setting.backbone.stages[setting.first - 1].name
    reporter.say(
        f"Activations: {len(setting.views)} view(s) of {count:,} photos after {last}, {bytes_each / 1024:.0f} KiB "
        f"each, {bytes_each * count * len(setting.views) / 1e9:.2f} GB on disk, computed once."
    )
    s = setting
    return compute_activations(
        files, keys, readable, s.front, s.views, s.frame, s.engine, max_pixels, reporter, squares
    )


def batch_factory(
    setting: TrainSetup, keys: NDArray[np.uint64], readable: NDArray[np.bool_], added: ExtraSamples | None = None
) -> BatchFactory:
    """Return a function that makes batches from cached data. Augmentation runs on the training device.

    Args:
        setting: The training setup.
        keys: uint64 (n, 2) content keys.
        readable: bool (n,), images that are used.
        added: Extra samples, whose rows follow those of the images.

    Returns:
        The function.

    Raises:
        CacheError: If the cache no longer has the data.
    """
    device, added = make_fabric("f32").device, added or ExtraSamples()
    if setting.cut:
        found = load_activations(keys, readable, setting.front, setting.views, setting.engine)
        shape = setting.front.activation()
        pooled_width = sum(width for _, width in found.blocks[:-1])
        mirrored = setting.views.index("flip") if "flip" in setting.views else -1
        every = Activations(found.stores, found.places, shape, pooled_width, mirrored).held(_HELD)
        kept = None if every.kept is None else every.kept[: setting.drawn]
        some = replace(
            every, stores=every.stores[: setting.drawn], places=every.places[: setting.drawn], mirrored=-1, kept=kept
        )

        if len(added):
            seen = load_views(added, keys, setting.front, setting.added_views, setting.engine)
            every = ExtendedActivations.of(every, added, seen, mirrored)
            some = ExtendedActivations.of(some, added, seen, mirrored if mirrored < setting.drawn else -1)

        def partial(rows: Rows, labels: Rows, classes: int, s: Train, seed: int, sampler: Sampling = "none") -> Batches:
            whole, drawn = (
                ActivationBatches(a, rows, labels, classes, s.mixup_alpha, sampler, seed, device) for a in (every, some)
            )
            return _Drawn(whole, drawn)

        return partial
    # Does not decode any image.
    pixels = cache_pixels([], keys, np.zeros_like(readable), setting.frame)
    if (pixels.places[readable, 0] < 0).any():
        raise CacheError("cached pixels are missing; was the cache cleared? Run the same command again.")

    pixels = ExtendedPixels.of(pixels, added)

    def whole(rows: Rows, labels: Rows, classes: int, s: Train, seed: int, sampler: Sampling = "none") -> Batches:
        p = setting.preprocessing
        return PixelBatches(
            pixels, rows, labels, classes, p, s.augment, s.mixup_alpha, s.cutmix_alpha, sampler, seed, device
        )

    return whole


class _Drawn:
    """Batches that draw from some views in training and use the plain or flipped view in prediction."""

    def __init__(self, whole: ActivationBatches, drawn: ActivationBatches) -> None:
        self.whole, self.drawn, self.count = whole, drawn, whole.count

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        return self.drawn.epoch(number, batch, size)

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        return self.whole.plain(batch, flip)
