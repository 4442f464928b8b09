"""Features of photos as they lie in the cache: found by content, float16, read in pieces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore, cache_root, fingerprint
from unfreeze.core.progress import Reporter
from unfreeze.model.engines import recorded_engine
from unfreeze.model.graphs import Graph

# A new version number makes every feature be computed again: decoding or pooling changed.
_VERSION = 3
_PIECE = 1024
HALF_MAX = float(np.finfo(np.float16).max)


def signed_root(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """sign(x) * sqrt(|x|), in place: tames the long tails of pooled activations (Perronnin et al. 2010)."""
    root = np.sqrt(np.abs(features))
    return np.copysign(root, features, out=features)


@dataclass(frozen=True)
class Features:
    """Features on disk, read in pieces. `width` columns a photo, `blocks` names and widths in their order.

    failed: index of a photo -> why it has no features, although its first look was fine.
    engine: name of the engine that serves this table ('cache' if nothing had to be computed).
    kept: signed roots of all rows, where `held` keeps them in memory. seconds: what computing took, conversion of the
    network not counted; 0 if the cache had all.
    """

    stores: tuple[RowStore, ...]
    places: tuple[NDArray[np.int64], ...]
    blocks: tuple[tuple[str, int], ...]
    failed: dict[int, str]
    engine: str
    kept: NDArray[np.float32] | None = None
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        """How many inputs (backbone, size, crop) there are: one; `JoinedFeatures` has several."""
        return 1

    @property
    def width(self) -> int:
        """Number of features of a photo, all blocks together."""
        return sum(width for _, width in self.blocks)

    @property
    def identity(self) -> list[str]:
        """Names what the columns are: network, preprocessing, precision and version, view by view."""
        return [store.folder.name for store in self.stores]

    def select(self, inputs: tuple[int, ...]) -> Features:
        """The features of these inputs: itself, for (0,) is the only choice."""
        return self

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of the photos `rows`, float32 (len(rows), width), averaged over the views."""
        total = np.zeros((len(rows), self.width), np.float32)
        for store, places in zip(self.stores, self.places, strict=True):
            total += store.take(places[rows])
        total /= len(self.stores)
        return total

    def rooted(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Signed roots of the features of the photos `rows`, float32 (len(rows), width): what heads work on."""
        return signed_root(self.read(rows)) if self.kept is None else self.kept[rows]

    def held(self) -> Features:
        """The same with all rows in memory: for a set that is small enough and read many times."""
        there = np.flatnonzero(np.all([places[:, 0] >= 0 for places in self.places], axis=0))
        kept = np.zeros((len(self.places[0]), self.width), np.float32)
        for start in range(0, len(there), _PIECE):
            rows = there[start : start + _PIECE]
            kept[rows] = signed_root(self.read(rows))
        return replace(self, kept=kept)

    def forget_pages(self) -> None:
        """Gives back the memory of pages read so far; see RowStore."""
        for store in self.stores:
            store.forget_pages()


def cached_features(
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    graph: Graph,
    views: tuple[str, ...],
    wish: str = "auto",
    reporter: Reporter | None = None,
) -> Features | None:
    """The features if the cache holds those of every readable photo, else None. Loads no network."""
    recorded = recorded_engine(graph, wish)
    if recorded:
        for precision in dict.fromkeys((recorded.precision, "f32")):
            stores = stores_of(graph, views, precision, recorded.blocks, reporter or Reporter())
            places = tuple(store.find(keys) for store in stores)
            if all((p[readable, 0] >= 0).all() for p in places):
                return Features(stores, places, recorded.blocks, {}, "cache")
    return None


def stores_of(
    graph: Graph,
    views: tuple[str, ...],
    precision: str,
    blocks: tuple[tuple[str, int], ...],
    reporter: Reporter,
) -> tuple[RowStore, ...]:
    width = sum(w for _, w in blocks)
    stores = []
    for view in views:
        about: dict[str, Any] = {
            "what": "activations" if graph.first else "features",
            **graph.key(),
            **graph.photos(),
            "view": view,
            "precision": precision,
            "version": _VERSION,
        }
        kind = "activations" if graph.first else "features"
        folder = cache_root() / kind / fingerprint(about)
        stores.append(
            RowStore(
                folder,
                np.float16,
                (width,),
                {**about, "blocks": blocks, "bytes_a_photo": 2 * width},
                reporter,
            )
        )
    return tuple(stores)
