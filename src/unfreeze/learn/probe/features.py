"""Features of photos are computed, here or in shards on a cluster, and put into the cache by content."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore, content_key
from unfreeze.core.cluster import Cluster, cluster
from unfreeze.core.errors import PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.work import in_threads
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import Box, Pixels, load_square, read_bytes
from unfreeze.learn.probe.feature_table import HALF_MAX, Features, cached_features, stores_of
from unfreeze.model.backbones import Preprocessing
from unfreeze.model.engines import BATCH, Engine, open_engine
from unfreeze.model.graphs import Graph

_FLUSH, _FLUSH_BYTES = 1024, 64 << 20
_SAMPLE = 4 * BATCH
# Photos of a task on a cluster: some seconds of work, so that a lost one costs little.
_SHARD = 16 * BATCH


def compute_features(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    graph: Graph,
    views: tuple[str, ...],
    wish: str = "auto",
    max_pixels: int = 178_000_000,
    reporter: Reporter | None = None,
    squares: NDArray[np.float64] | None = None,
) -> Features:
    """Features of every readable photo, from the cache where its content was seen before.

    files, keys, readable: (n,), from the first look. views: 'plain' and 'flip' (mirrored left to right). squares:
    float64 (n, 4), what is seen of each photo if the graph's preprocessing asks for faces; a row of NaN is the centre.
    Interrupted, it keeps what is computed, and the next call goes on from there.
    """
    reporter = reporter or Reporter()
    if (known := cached_features(keys, readable, graph, views, wish, reporter)) is not None:
        return known
    if graph.preprocessing.face and squares is None:
        raise ValueError("a network that sees faces needs the squares to cut")
    squares = squares if graph.preprocessing.face else None
    engine, failed = _open(files, keys, readable, graph, wish, max_pixels, reporter, squares)
    stores = stores_of(graph, views, engine.precision, engine.blocks, reporter)
    lacking = readable & np.any([store.find(keys)[:, 0] < 0 for store in stores], axis=0)
    # Two photos of one content are computed once.
    _, first = np.unique(keys[lacking], axis=0, return_index=True)
    todo = np.sort(np.flatnonzero(lacking)[first])
    started = time.perf_counter()
    if (where := cluster()) and len(todo) > _SHARD:
        failed |= _in_shards(where, files, keys, todo, graph, views, engine.name, max_pixels, reporter, squares)
        for store in stores:
            store.refresh()
    else:
        _run(files, keys, todo, graph.preprocessing, engine, stores, views, failed, max_pixels, reporter, squares)
    places = tuple(store.find(keys) for store in stores)
    for i in np.flatnonzero(readable & (places[0][:, 0] < 0)):
        failed.setdefault(int(i), "its content changed while it was read")
    return Features(stores, places, engine.blocks, failed, engine.name, seconds=time.perf_counter() - started)


def _in_shards(
    where: Cluster,
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: NDArray[np.int64],
    graph: Graph,
    views: tuple[str, ...],
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None,
) -> dict[int, str]:
    """Photos in shards, each a task of the cluster that puts its rows into the cache; which photos failed, and why.

    A shard is a whole number of batches, so that each photo passes the network in the company that it has here.
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
    """Some photos whose features another process is to put into the cache; arguments as of `compute_features`."""

    files: list[Path]
    keys: NDArray[np.uint64]
    graph: Graph
    views: tuple[str, ...]
    wish: str
    max_pixels: int
    squares: NDArray[np.float64] | None


def compute_shard(shard: Shard) -> dict[int, str]:
    """Computes what the cache lacks of these photos; {place in the shard: why it has no features}."""
    readable = np.ones(len(shard.files), bool)
    own = (shard.files, shard.keys, readable, shard.graph, shard.views, shard.wish, shard.max_pixels)
    return compute_features(*own, squares=shard.squares).failed


def _open(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    graph: Graph,
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None,
) -> tuple[Engine, dict[int, str]]:
    """The engine, chosen on the user's first photos; and those of them that failed to decode."""
    sample: list[Pixels] = []
    failed: dict[int, str] = {}
    for i in np.flatnonzero(readable).tolist():
        pixels = _load(files[i], keys[i], graph.preprocessing, max_pixels, box_of(squares, i))
        if isinstance(pixels, str):
            failed[int(i)] = pixels
        else:
            sample.append(pixels)
        if len(sample) == _SAMPLE:
            break
    if not sample:
        sample = [np.zeros((graph.preprocessing.size, graph.preprocessing.size, 3), np.uint8)]
    return open_engine(graph, np.stack(sample), wish, reporter), failed


def _load(
    file: Path, key: NDArray[np.uint64], preprocessing: Preprocessing, max_pixels: int, box: Box | None
) -> Pixels | str:
    """Pixels, or the reason why there are none: one bad photo must not end a run of thousands."""
    try:
        data = read_bytes(file)
        if content_key(data) != (int(key[0]), int(key[1])):
            return "its content changed while it was read"
        p = preprocessing
        return load_square(data, p.size, p.crop, max_pixels, file, p.resample, p.squash, box, p.gray)
    except PhotoError as error:
        return error.reason


def _run(
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: NDArray[np.int64],
    preprocessing: Preprocessing,
    engine: Engine,
    stores: tuple[RowStore, ...],
    views: tuple[str, ...],
    failed: dict[int, str],
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None,
) -> None:
    """Decoding threads feed the engine's requests; rows are written every _FLUSH photos and on interruption."""
    sent: list[list[int]] = []  # photos of the batches on their way, in order

    def batches(advance: Any) -> Iterator[Pixels]:
        waiting: list[tuple[int, Pixels]] = []

        def send() -> Iterator[Pixels]:
            pixels = np.stack([p for _, p in waiting])
            sent.append([i for i, _ in waiting])
            waiting.clear()
            for view in views:
                yield pixels if view == "plain" else pixels[:, :, ::-1]

        def load(i: int) -> Pixels | str:
            return _load(files[i], keys[i], preprocessing, max_pixels, box_of(squares, i))

        loaded = in_threads(load, todo.tolist())
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
        # Lists are emptied only after all is written: a flush that was cut off can be done again.
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
                rows[view].append(np.clip(features, -HALF_MAX, HALF_MAX).astype(np.float16))
                if view == len(views) - 1:
                    done.extend(sent.pop(0))
                    if len(done) >= min(_FLUSH, _FLUSH_BYTES // (2 * len(features[0]))):
                        flush()
        finally:
            flush()
