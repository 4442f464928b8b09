"""Activations at the boundary of the frozen layers, cached by image content.

Strategy partial trains from the activations of several augmented views. They are written to the cache as float16 rows;
the computation can be interrupted and resumed. `load_activations` reads them back without loading a network.
A file of its own, so that a probe does not import torch.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.cache import ArrayStore, cache_root
from unfreeze.core.errors import CacheError, StorageError
from unfreeze.core.parallel import map_threads
from unfreeze.core.progress import Reporter
from unfreeze.data.pixel_cache import CropSpec, PixelCache, cache_pixels
from unfreeze.features.augment import AUGMENTS, make_draws
from unfreeze.features.extract import compute_features
from unfreeze.features.matrix import HALF_MAX, FeatureMatrix, stores_of
from unfreeze.features.views import apply_view
from unfreeze.models.engines import BATCH, Engine, open_engine, recorded_engine
from unfreeze.models.feature_extractor import FeatureExtractor

Keys = NDArray[np.uint64]
Readable = NDArray[np.bool_]
# The views without augmentation, which `compute_features` supports.
_PLAIN = ("plain", "flip")
# Number of images augmented together, and number of bytes written together.
_PIECE, _FLUSH_BYTES = 4 * BATCH, 64 << 20


def training_views(augment: str, count: int, seed: int) -> tuple[str, ...]:
    """Return the names of the views that the strategy 'partial' trains from: plain, flipped, then augmented ones.

    The name of an augmented view, such as `standard-2@0`, consists of the preset, the index and the seed: everything it
    depends on besides the image.

    Args:
        augment: A key of AUGMENTS. 'off' yields the plain view only, 'flip' yields two views.
        count: Number of views for other presets.
        seed: Random seed.

    Returns:
        The names of the views.
    """
    most = {"off": 1, "flip": 2}.get(augment, count)
    return (*_PLAIN, *(f"{augment}-{k}@{seed}" for k in range(2, most)))[: min(most, count)]


def check_disk(
    graph: FeatureExtractor,
    views: tuple[str, ...],
    keys: Keys,
    readable: Readable,
    frame: CropSpec,
    wish: str,
) -> None:
    """Check that the activations of all views fit on the disk, together with the pixels of augmented views.

    The number of views is never reduced, because the result of training must not depend on free disk space. Data that
    is already in the cache counts as free space, so that a resumed run makes the same decision.

    Args:
        graph: The frozen layers.
        views: Names of the views.
        keys: uint64 (n, 2) content keys.
        readable: bool (n,), images to process.
        frame: Specification of the cached pixels.
        wish: Requested inference engine.

    Raises:
        StorageError: If there is not enough free space.
    """
    count, row = int(readable.sum()), 2 * graph.width()
    augmented = [view for view in views if view not in _PLAIN]
    stores = _stores_of(graph, views, wish)[0]
    there = row * sum(int((store.find(keys)[readable, 0] >= 0).sum()) for store in stores)
    if augmented:
        stored = cache_pixels([], keys, np.zeros_like(readable), frame)
        there += frame.row_bytes * int((stored.places[readable, 0] >= 0).sum())
    free = shutil.disk_usage(cache_root()).free + there
    pixels = frame.row_bytes * count
    needed = row * count * len(views) + (pixels if augmented else 0)
    if needed <= free:
        return
    fit = max(0, int((free - pixels) // max(1, row * count)))
    fewer = f"train from fewer views (train.cached_views={max(2, fit)}), " if len(views) > 2 else ""
    raise StorageError(
        f"{cache_root()}: activations of {count:,} photos in {len(views)} views take {needed / 1e9:.1f} GB and "
        f"{free / 1e9:.1f} GB are free; free some space, {fewer}train fewer stages (train.trainable), or point "
        "UNFREEZE_CACHE to a larger disk."
    )


def compute_activations(
    files: list[Path],
    keys: Keys,
    readable: Readable,
    graph: FeatureExtractor,
    views: tuple[str, ...],
    frame: CropSpec,
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> dict[int, str]:
    """Compute the activations of all views and write them to the cache.

    Can be interrupted: computed activations are kept, and the next call resumes. An augmented view is cut from the
    cached pixels (`frame`), rounded to uint8 and processed by the same engine.

    Args:
        files: n image files.
        keys: uint64 (n, 2) content keys from the scan.
        readable: bool (n,), from the scan.
        graph: The frozen layers.
        views: Names of the views.
        frame: Specification of the cached pixels.
        wish: Requested inference engine.
        max_pixels: Maximum number of pixels of an image.
        reporter: Progress reporter.
        squares: Crop boxes, as in `compute_features`.

    Returns:
        Images that failed: row -> reason.
    """
    plain = tuple(view for view in views if view in _PLAIN)
    found = compute_features(files, keys, readable, graph, plain, wish, max_pixels, reporter, squares)
    augmented = [view for view in views if view not in _PLAIN]
    failed = dict(found.failed)
    if not augmented:
        return failed
    good = readable.copy()
    good[list(failed)] = False
    known = recorded_engine(graph, wish) or open_engine(graph, wish, reporter)
    stores = stores_of(graph, tuple(augmented), known.precision, found.blocks, reporter)
    if all((store.find(keys)[good, 0] >= 0).all() for store in stores):
        return failed
    pixels = cache_pixels(files, keys, good, frame, max_pixels, reporter, squares)
    failed |= pixels.failed
    good[list(pixels.failed)] = False
    engine = open_engine(graph, wish, reporter)
    for view, store in zip(augmented, stores, strict=True):
        lacking = good & (store.find(keys)[:, 0] < 0)
        _, first = np.unique(keys[lacking], axis=0, return_index=True)
        _fill(store, pixels, np.sort(np.flatnonzero(lacking)[first]), view, engine, reporter)
    return failed


def load_activations(
    keys: Keys, readable: Readable, graph: FeatureExtractor, views: tuple[str, ...], wish: str
) -> FeatureMatrix:
    """Load the activations of all views from the cache, without loading a network.

    Raises:
        CacheError: If activations of a readable image are missing.
    """
    stores, blocks = _stores_of(graph, views, wish)
    places = tuple(store.find(keys) for store in stores)
    if all((p[readable, 0] >= 0).all() for p in places):
        return FeatureMatrix(stores, places, blocks, {}, "cache")
    raise CacheError("cached activations are missing; was the cache cleared? Run the same command again.")


def _stores_of(
    graph: FeatureExtractor, views: tuple[str, ...], wish: str
) -> tuple[tuple[ArrayStore, ...], tuple[tuple[str, int], ...]]:
    """Return the stores of the views, and the blocks of a row."""
    recorded = recorded_engine(graph, wish)
    precision, blocks = (recorded.precision, recorded.blocks) if recorded else ("f32", graph.blocks())
    return stores_of(graph, views, precision, blocks, Reporter()), blocks


def augmented_pixels(pixels: PixelCache, rows: NDArray[np.int64], view: str) -> NDArray[np.uint8]:
    """Return the pixels of an augmented or fixed view.

    Args:
        pixels: The cached pixels.
        rows: int64 (n,), rows of the images.
        view: Name of the view.

    Returns:
        uint8 (n, size, size, 3).
    """
    stored = torch.from_numpy(pixels.read(rows)).permute(0, 3, 1, 2)
    if "@" not in view:  # a fixed view of `views`, not an augmented one
        middle = slice(pixels.frame.margin, pixels.frame.margin + pixels.frame.size)
        shown: NDArray[np.uint8] = (
            apply_view(stored, view)[..., middle, middle].permute(0, 2, 3, 1).contiguous().numpy()
        )
        return shown
    word, number, seed = _parsed(view)
    draws = make_draws(seed, number, pixels.keys[rows, 0])
    floats = AUGMENTS[word](stored, pixels.frame.size, pixels.frame.margin, draws)
    found: NDArray[np.uint8] = (floats * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return found


def _parsed(view: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"([a-z]+)-(\d+)@(\d+)", view)
    if not found or found[1] not in AUGMENTS:
        raise ValueError(f"'{view}' is not an augmented view")
    return found[1], int(found[2]), int(found[3])


def _fill(
    store: ArrayStore, pixels: PixelCache, todo: NDArray[np.int64], view: str, engine: Engine, reporter: Reporter
) -> None:
    """Augment `todo` in a thread while the engine runs. Rows are written in segments and on interruption."""
    pieces = np.array_split(todo, -(-len(todo) // _PIECE)) if len(todo) else []
    done: list[NDArray[np.float16]] = []
    start = 0

    def batches() -> Iterator[NDArray[np.uint8]]:
        for images in map_threads(lambda rows: augmented_pixels(pixels, rows, view), pieces, workers=1, ahead=2):
            pixels.forget_pages()
            for first in range(0, len(images), BATCH):
                yield images[first : first + BATCH]

    def flush() -> None:
        nonlocal start
        if done:
            rows = np.concatenate(done)
            store.append(pixels.keys[todo[start : start + len(rows)]], rows)
            start += len(rows)
        done.clear()

    with reporter.bar(f"Activations of view {view.partition('@')[0]}", len(todo)) as advance:
        try:
            for found in engine.run(batches()):
                done.append(np.clip(found, -HALF_MAX, HALF_MAX).astype(np.float16))
                advance(len(found))
                if sum(part.nbytes for part in done) >= _FLUSH_BYTES:
                    flush()
        finally:
            flush()
