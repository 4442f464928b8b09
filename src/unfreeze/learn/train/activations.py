"""What a frozen front puts out for several views of each photo: computed once, kept by content, within the disk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore, cache_root
from unfreeze.core.errors import CacheError, StorageError
from unfreeze.core.progress import Reporter
from unfreeze.core.work import in_threads
from unfreeze.data.pixels import Frame, StoredPixels, cached_pixels
from unfreeze.learn.probe.feature_table import HALF_MAX, Features, stores_of
from unfreeze.learn.probe.features import compute_features
from unfreeze.learn.train.augment import AUGMENTS, make_draws
from unfreeze.learn.views import seen
from unfreeze.model.engines import BATCH, Engine, open_engine, recorded_engine
from unfreeze.model.graphs import Graph

Keys = NDArray[np.uint64]
Readable = NDArray[np.bool_]
# The views that need no augmentation; what `compute_features` knows.
_PLAIN = ("plain", "flip")
# Photos augmented at once, and written at once.
_PIECE, _FLUSH_BYTES = 4 * BATCH, 64 << 20


def training_views(augment: str, count: int, seed: int) -> tuple[str, ...]:
    """Names of the views that strategy late trains from: the photo, its mirror image, then augmented ones.

    augment: a word of AUGMENTS; off has the photo alone, flip two views. An augmented view's name, `standard-2@0`,
    holds the word, its number and the seed: all that it depends on beside the photo.
    """
    most = {"off": 1, "flip": 2}.get(augment, count)
    return (*_PLAIN, *(f"{augment}-{k}@{seed}" for k in range(2, most)))[: min(most, count)]


def affordable(
    graph: Graph,
    views: tuple[str, ...],
    drawn: int,
    keys: Keys,
    readable: Readable,
    frame: Frame,
    wish: str,
    reporter: Reporter,
) -> int:
    """How many of the first `drawn` views to train from: all, or as many as take half of the free disk.

    views: all that are kept. What is on the disk already counts as free, so that a run which is taken up again decides
    the same. Raises StorageError where not even the views that prediction needs fit.
    """
    count, row = int(readable.sum()), 2 * graph.width()
    augmented = [view for view in views if view not in _PLAIN]
    stores = _stores_of(graph, views, wish)[0]
    there = row * sum(int((store.find(keys)[readable, 0] >= 0).sum()) for store in stores)
    if augmented:
        stored = cached_pixels([], keys, np.zeros_like(readable), frame)
        there += frame.row_bytes * int((stored.places[readable, 0] >= 0).sum())
    place = cache_root()
    free = shutil.disk_usage(place).free + there
    kept = drawn

    def needed() -> int:
        more = [view for view in augmented if view in views[:kept]]
        plain = sum(view in _PLAIN for view in views)
        return row * count * (plain + len(more)) + (frame.row_bytes * count if more else 0)

    while kept > 1 and views[kept - 1] not in _PLAIN and needed() > free / 2:
        kept -= 1
    if needed() > free:
        raise StorageError(
            f"{place}: activations of {count:,} photos take {needed() / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free some space, train fewer stages (train.unfreeze), or point UNFREEZE_CACHE to a larger disk."
        )
    if kept < drawn:
        reporter.say(
            f"Disk: {drawn} views of {count:,} photos would take more than half of the {free / 1e9:.1f} GB that are "
            f"free; {kept} are kept, {needed() / 1e9:.2f} GB."
        )
    return kept


def compute_activations(
    files: list[Path],
    keys: Keys,
    readable: Readable,
    graph: Graph,
    views: tuple[str, ...],
    frame: Frame,
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> dict[int, str]:
    """Activations of all views go into the cache; gives the photos that failed, and why.

    files, keys, readable: (n,), from the first look. squares: as of `compute_features`. Interrupted, it keeps what is
    computed, and the next call goes on from there. An augmented photo is cut from its stored pixels (`frame`), rounded
    to uint8 and passes the same engine.
    """
    plain = tuple(view for view in views if view in _PLAIN)
    found = compute_features(files, keys, readable, graph, plain, wish, max_pixels, reporter, squares)
    augmented = [view for view in views if view not in _PLAIN]
    failed = dict(found.failed)
    if not augmented:
        return failed
    good = readable.copy()
    good[list(failed)] = False
    precision = next(
        p
        for p in ("bf16", "f32")
        if stores_of(graph, plain[:1], p, found.blocks, reporter)[0].folder.name == found.identity[0]
    )
    stores = stores_of(graph, tuple(augmented), precision, found.blocks, reporter)
    if all((store.find(keys)[good, 0] >= 0).all() for store in stores):
        return failed
    pixels = cached_pixels(files, keys, good, frame, max_pixels, reporter, squares)
    failed |= pixels.failed
    good[list(pixels.failed)] = False
    sample = pixels.read(np.flatnonzero(good)[:_PIECE])[:, *(2 * (slice(frame.margin, frame.margin + frame.size),))]
    engine = open_engine(graph, sample, wish, reporter)
    if engine.precision != precision:
        engine = open_engine(graph, sample, f"openvino-{precision}", reporter)
    for view, store in zip(augmented, stores, strict=True):
        lacking = good & (store.find(keys)[:, 0] < 0)
        _, first = np.unique(keys[lacking], axis=0, return_index=True)
        _fill(store, pixels, np.sort(np.flatnonzero(lacking)[first]), view, engine, reporter)
    return failed


def kept_activations(keys: Keys, readable: Readable, graph: Graph, views: tuple[str, ...], wish: str) -> Features:
    """The activations of all views from the cache; loads no network. CacheError if some are not there."""
    last = None
    for precision in dict.fromkeys((_stores_of(graph, (), wish)[1], "f32")):
        stores, _, blocks = _stores_of(graph, views, wish, precision)
        places = tuple(store.find(keys) for store in stores)
        last = Features(stores, places, blocks, {}, "cache")
        if all((p[readable, 0] >= 0).all() for p in places):
            return last
    raise CacheError("the activations that were there are gone; was the cache cleared? Run the same command again.")


def _stores_of(
    graph: Graph, views: tuple[str, ...], wish: str, precision: str = ""
) -> tuple[tuple[RowStore, ...], str, tuple[tuple[str, int], ...]]:
    """Stores of these views, their precision, and the blocks of a row. torch as an engine leaves no record."""
    recorded = None if wish == "torch" else recorded_engine(graph, wish)
    precision = precision or (recorded.precision if recorded else "f32")
    blocks = recorded.blocks if recorded else graph.blocks()
    return stores_of(graph, views, precision, blocks, Reporter()), precision, blocks


def augmented_pixels(pixels: StoredPixels, rows: NDArray[np.int64], view: str) -> NDArray[np.uint8]:
    """uint8 (n, size, size, 3): the photos `rows` as the augmented or added view of that name shows them."""
    stored = torch.from_numpy(pixels.read(rows)).permute(0, 3, 1, 2)
    if "@" not in view:  # an added one
        middle = slice(pixels.frame.margin, pixels.frame.margin + pixels.frame.size)
        shown: NDArray[np.uint8] = seen(stored, view)[..., middle, middle].permute(0, 2, 3, 1).contiguous().numpy()
        return shown
    word, number, seed = _parsed(view)
    draws = make_draws(seed, number, pixels.keys[rows, 0])
    floats = AUGMENTS[word](stored, pixels.frame.size, pixels.frame.margin, draws)
    found: NDArray[np.uint8] = (floats * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return found


def _parsed(view: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"([a-z]+)-(\d+)@(\d+)", view)
    if not found or found[1] not in AUGMENTS:
        raise ValueError(f"'{view}' is no augmented view")
    return found[1], int(found[2]), int(found[3])


def _fill(
    store: RowStore, pixels: StoredPixels, todo: NDArray[np.int64], view: str, engine: Engine, reporter: Reporter
) -> None:
    """Augments `todo` in a thread while the engine runs; written in segments and on interruption."""
    pieces = np.array_split(todo, -(-len(todo) // _PIECE)) if len(todo) else []
    done: list[NDArray[np.float16]] = []
    start = 0

    def batches() -> Iterator[NDArray[np.uint8]]:
        for images in in_threads(lambda rows: augmented_pixels(pixels, rows, view), pieces, workers=1, ahead=2):
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
