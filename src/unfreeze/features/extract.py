"""Feature extraction with frozen networks, cached by image content.

Computes the pooled features of the views 'plain' and 'flip', in this process or in shards on a cluster, and writes
float16 rows to the cache. Can be interrupted and resumed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import ArrayStore, content_hash
from unfreeze.core.errors import EngineError, PhotoError
from unfreeze.core.messages import setting
from unfreeze.core.parallel import RayBackend, cluster, map_threads
from unfreeze.core.progress import Reporter
from unfreeze.data.decode import Box, Pixels, load_crop, read_bytes
from unfreeze.data.face_boxes import crop_of
from unfreeze.data.in_memory import any_held
from unfreeze.features.matrix import HALF_MAX, FeatureMatrix, cached_features, stores_of
from unfreeze.models.engines import BATCH, Engine, open_engine
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.model_info import Preprocessing

_FLUSH, _FLUSH_BYTES = 1024, 64 << 20
# Images per cluster task: a few seconds of work, so that a lost task is cheap to repeat.
_SHARD = 16 * BATCH


def compute_features(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    graph: FeatureExtractor,
    views: tuple[str, ...],
    wish: str = "auto",
    max_pixels: int = 178_000_000,
    reporter: Reporter | None = None,
    squares: NDArray[np.float64] | None = None,
) -> FeatureMatrix:
    """Compute the features of every readable image, or load them from the cache.

    Can be interrupted: computed features are kept, and the next call resumes.

    Args:
        files: n image files.
        keys: uint64 (n, 2) content keys from the scan.
        readable: bool (n,), from the scan.
        graph: The feature extractor.
        views: 'plain', 'flip' (flipped horizontally), or both.
        wish: Requested inference engine.
        max_pixels: Maximum number of pixels of an image.
        reporter: Progress reporter.
        squares: float64 (n, 4) crop boxes, required if the preprocessing uses face crops. A row of NaN means the center
            crop.

    Returns:
        The features. Images that failed are listed in its `failed`.

    Raises:
        ValueError: If the preprocessing uses face crops and `squares` is None.
        EngineError: If features are not finite.
    """
    reporter = reporter or Reporter()
    if (known := cached_features(keys, readable, graph, views, wish, reporter)) is not None:
        return known
    if graph.preprocessing.face and squares is None:
        raise ValueError("preprocessing with face crops needs `squares`")
    squares = squares if graph.preprocessing.face else None
    engine, failed = open_engine(graph, wish, reporter), dict[int, str]()
    stores = stores_of(graph, views, engine.precision, engine.blocks, reporter)
    lacking = readable & np.any([store.find(keys)[:, 0] < 0 for store in stores], axis=0)
    # Images with identical content are computed once.
    _, first = np.unique(keys[lacking], axis=0, return_index=True)
    todo = np.sort(np.flatnonzero(lacking)[first])
    started = time.perf_counter()
    if (where := cluster()) and len(todo) > _SHARD and not any_held():
        failed |= _in_shards(where, files, keys, todo, graph, views, engine.name, max_pixels, reporter, squares)
        for store in stores:
            store.refresh()
    else:
        _run(files, keys, todo, graph.preprocessing, engine, stores, views, failed, max_pixels, reporter, squares)
    places = tuple(store.find(keys) for store in stores)
    for i in np.flatnonzero(readable & (places[0][:, 0] < 0)):
        failed.setdefault(int(i), "its content changed while it was read")
    return FeatureMatrix(stores, places, engine.blocks, failed, engine.name, seconds=time.perf_counter() - started)


def _in_shards(
    where: RayBackend,
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: NDArray[np.int64],
    graph: FeatureExtractor,
    views: tuple[str, ...],
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None,
) -> dict[int, str]:
    """Compute features in cluster tasks that write to the cache. Return the failed images: row -> reason.

    A shard is a whole number of batches, so the composition of batches is the same as in a single process.
    """
    shards = [todo[start : start + _SHARD] for start in range(0, len(todo), _SHARD)]
    tasks = [
        Shard(
            [files[i].absolute() for i in rows],
            keys[rows],
            graph,
            views,
            wish,
            max_pixels,
            None if squares is None else squares[rows],
        )
        for rows in shards
    ]
    failed: dict[int, str] = {}
    with reporter.bar("Computing features", len(todo)) as advance:
        for rows, lost in zip(shards, where.run(compute_shard, tasks), strict=True):
            failed |= {int(rows[i]): why for i, why in lost.items()}
            advance(len(rows))
    return failed


@dataclass(frozen=True)
class Shard:
    """Images whose features another process computes. Arguments as in `compute_features`."""

    files: list[Path]
    keys: NDArray[np.uint64]
    graph: FeatureExtractor
    views: tuple[str, ...]
    wish: str
    max_pixels: int
    squares: NDArray[np.float64] | None


def compute_shard(shard: Shard) -> dict[int, str]:
    """Compute the missing features of a shard. Return the failed images: index in the shard -> reason."""
    readable = np.ones(len(shard.files), bool)
    own = (shard.files, shard.keys, readable, shard.graph, shard.views, shard.wish, shard.max_pixels)
    return compute_features(*own, squares=shard.squares).failed


def _load(
    file: Path, key: NDArray[np.uint64], preprocessing: Preprocessing, max_pixels: int, box: Box | None
) -> Pixels | str:
    """Return the pixels, or the reason for failure: one bad image must not abort a run over thousands."""
    try:
        data = read_bytes(file)
        if content_hash(data) != (int(key[0]), int(key[1])):
            return "its content changed while it was read"
        p = preprocessing
        return load_crop(data, p.size, p.crop, max_pixels, file, p.resample, p.squash, box, p.gray)
    except PhotoError as error:
        return error.reason


def _run(
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: NDArray[np.int64],
    preprocessing: Preprocessing,
    engine: Engine,
    stores: tuple[ArrayStore, ...],
    views: tuple[str, ...],
    failed: dict[int, str],
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None,
) -> None:
    """Decode in threads that feed the engine. Rows are written every `_FLUSH` images and on interruption."""
    sent: list[list[int]] = []  # images of the batches in flight, in order

    def batches(advance: Any) -> Iterator[Pixels]:
        waiting: list[tuple[int, Pixels]] = []

        def send() -> Iterator[Pixels]:
            pixels = np.stack([p for _, p in waiting])
            sent.append([i for i, _ in waiting])
            waiting.clear()
            for view in views:
                yield pixels if view == "plain" else pixels[:, :, ::-1]

        def load(i: int) -> Pixels | str:
            return _load(files[i], keys[i], preprocessing, max_pixels, crop_of(squares, i))

        loaded = map_threads(load, todo.tolist())
        for i, pixels in zip(todo.tolist(), loaded, strict=True):
            advance(1)
            if isinstance(pixels, str):
                failed[i] = pixels
                continue
            waiting.append((i, pixels))
            if len(waiting) == BATCH:
                yield from send()
        if waiting:
            yield from send()

    done: list[int] = []
    rows: list[list[NDArray[np.float16]]] = [[] for _ in views]

    def flush() -> None:
        # Clear the lists only after everything is written, so that an interrupted flush can be repeated.
        for store, parts in zip(stores, rows, strict=True):
            if done:
                store.append(keys[done], np.concatenate(parts)[: len(done)])
        for parts in rows:
            parts.clear()
        done.clear()

    with reporter.bar("Computing features", len(todo)) as advance:
        try:
            for number, features in enumerate(engine.run(batches(advance))):
                view = number % len(views)
                if not np.isfinite(features).all():
                    raise EngineError(
                        f"engine = '{engine.name}': features that are not finite numbers. The weights are damaged, or "
                        f"this precision is too low for the backbone; try {setting('engine', 'torch')}."
                    )
                rows[view].append(np.clip(features, -HALF_MAX, HALF_MAX).astype(np.float16))
                if view == len(views) - 1:
                    done.extend(sent.pop(0))
                    if len(done) >= min(_FLUSH, _FLUSH_BYTES // (2 * len(features[0]))):
                        flush()
        finally:
            flush()
