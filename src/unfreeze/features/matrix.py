"""Feature matrices on disk: float16 rows, found by content key and read in chunks.

- `FeatureMatrix`: the features of one input; `JoinedFeatureMatrix`: those of several inputs side by side.
- `ExtendedFeatureMatrix`: features of the images, followed by those of extra samples (`balance.extra_views`).
- `SampledFeatureMatrix`: a random subset of the columns in memory, for datasets that are too large to be read many
  times; `sample_groups` draws a subset of the groups.
- `Activations`: outputs of frozen layers for several views of each image.

`AnyFeatureMatrix` is the protocol that heads are fitted on. Heads work on the signed square roots of the features
(`rooted`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import ArrayStore, cache_root, stable_hash
from unfreeze.core.progress import Reporter
from unfreeze.data.decode import DECODER
from unfreeze.models.engines import recorded_engine
from unfreeze.models.feature_extractor import FeatureExtractor

# Increment to invalidate all cached features, when decoding or pooling changes.
_VERSION = 4
_PIECE = 1024
# Features of datasets up to these limits are held in memory, since they are read many times. Larger ones stay on disk.
HELD_ROWS, HELD_BYTES = 4096, 192 << 20
HALF_MAX = float(np.finfo(np.float16).max)


def signed_root(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute sign(x) * sqrt(|x|) in place, which reduces the heavy tails of pooled activations.

    References:
        Perronnin et al. 2010, "Improving the Fisher kernel for large-scale image classification".
    """
    root = np.sqrt(np.abs(features))
    return np.copysign(root, features, out=features)


@dataclass(frozen=True)
class FeatureMatrix:
    """Features on disk, read in chunks.

    Attributes:
        stores: One array store per view.
        places: One int64 (n, 2) array per view: location of each image in the store, -1 if absent.
        blocks: Names and widths of the feature blocks, in column order.
        failed: Row of an image -> why it has no features although the scan could read it.
        engine: Name of the engine that served this table ('cache' if nothing had to be computed).
        kept: float32 signed square roots of all rows, if `held` keeps them in memory.
        seconds: Computation time without conversion of the network; 0 if everything was cached.
    """

    stores: tuple[ArrayStore, ...]
    places: tuple[NDArray[np.int64], ...]
    blocks: tuple[tuple[str, int], ...]
    failed: dict[int, str]
    engine: str
    kept: NDArray[np.float32] | None = None
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        """Number of inputs (backbone, size, crop): always 1; `JoinedFeatureMatrix` has several."""
        return 1

    @property
    def width(self) -> int:
        """Number of features per image, over all blocks."""
        return sum(width for _, width in self.blocks)

    @property
    def identity(self) -> list[str]:
        """Cache key of each view: covers network, preprocessing, precision and version."""
        return [store.folder.name for store in self.stores]

    def select(self, inputs: tuple[int, ...]) -> FeatureMatrix:
        """Return the features of the given inputs: `self`, since (0,) is the only choice."""
        return self

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features of `rows`, float32 (len(rows), width), averaged over the views."""
        total = np.zeros((len(rows), self.width), np.float32)
        for store, places in zip(self.stores, self.places, strict=True):
            total += store.take(places[rows])
        total /= len(self.stores)
        return total

    def rooted(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the signed square roots of the features of `rows`, float32 (len(rows), width)."""
        return signed_root(self.read(rows)) if self.kept is None else self.kept[rows]

    def held(self) -> FeatureMatrix:
        """Return a copy with all rows in memory, for small datasets that are read many times."""
        there = np.flatnonzero(np.all([places[:, 0] >= 0 for places in self.places], axis=0))
        kept = np.zeros((len(self.places[0]), self.width), np.float32)
        for start in range(0, len(there), _PIECE):
            rows = there[start : start + _PIECE]
            kept[rows] = signed_root(self.read(rows))
        return replace(self, kept=kept)

    def forget_pages(self) -> None:
        """Release the memory of pages read so far; see `ArrayStore`."""
        for store in self.stores:
            store.forget_pages()


@dataclass(frozen=True)
class JoinedFeatureMatrix:
    """Features of several inputs, concatenated along the columns.

    Has the interface of `FeatureMatrix`; `select` returns the features of some inputs.

    Attributes:
        parts: One feature matrix per input.
    """

    parts: tuple[FeatureMatrix, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return len(self.parts)

    @property
    def blocks(self) -> tuple[tuple[str, int], ...]:
        """Name (prefixed with the index of the input) and width of every block, in column order."""
        if len(self.parts) == 1:
            return self.parts[0].blocks
        return tuple((f"{i}.{name}", width) for i, part in enumerate(self.parts) for name, width in part.blocks)

    @property
    def width(self) -> int:
        """Number of features per image, over all inputs."""
        return sum(part.width for part in self.parts)

    @property
    def failed(self) -> dict[int, str]:
        """Images that lack the features of any input: row -> reason."""
        return {i: why for part in self.parts for i, why in part.failed.items()}

    @property
    def identity(self) -> list[str]:
        """Cache keys of all inputs; for a single input, those of that input."""
        return [name for part in self.parts for name in part.identity]

    @property
    def engine(self) -> str:
        """Names of the engines that served the inputs."""
        return ", ".join(dict.fromkeys(part.engine for part in self.parts))

    def select(self, inputs: tuple[int, ...]) -> JoinedFeatureMatrix:
        """Return the features of the given inputs, in this order."""
        return JoinedFeatureMatrix(tuple(self.parts[i] for i in inputs))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features of `rows`, float32 (len(rows), width)."""
        return np.concatenate([part.read(rows) for part in self.parts], 1)

    def rooted(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the signed square roots of the features of `rows`, float32 (len(rows), width)."""
        return np.concatenate([part.rooted(rows) for part in self.parts], 1)

    def held(self) -> JoinedFeatureMatrix:
        """Return a copy in memory if there are at most HELD_ROWS rows and HELD_BYTES bytes, else `self`."""
        rows = len(self.parts[0].places[0])
        large = rows > HELD_ROWS or 4 * rows * self.width > HELD_BYTES
        return self if large else JoinedFeatureMatrix(tuple(p.held() for p in self.parts))

    def forget_pages(self) -> None:
        """Release the memory of pages read so far."""
        for part in self.parts:
            part.forget_pages()


class AnyFeatureMatrix(Protocol):
    """Protocol of the matrices that heads are fitted on: one row per image, `width` columns in `blocks`."""

    @property
    def inputs(self) -> int: ...
    @property
    def blocks(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def width(self) -> int: ...
    @property
    def identity(self) -> list[str]: ...
    def select(self, inputs: tuple[int, ...]) -> AnyFeatureMatrix: ...
    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def rooted(self, rows: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def forget_pages(self) -> None: ...


def cached_features(
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    graph: FeatureExtractor,
    views: tuple[str, ...],
    wish: str = "auto",
    reporter: Reporter | None = None,
) -> FeatureMatrix | None:
    """Return the features if the cache holds those of every readable image, else None. Loads no network.

    Args:
        keys: uint64 (n, 2) content keys.
        readable: bool (n,), images that need features.
        graph: The feature extractor.
        views: Names of the views.
        wish: Requested inference engine.
        reporter: Progress reporter.

    Returns:
        The features, or None if any are missing or the engine for this network is not known yet.
    """
    recorded = recorded_engine(graph, wish)
    if recorded is None:
        return None
    # Only the precision that would be computed is accepted: cache contents must not change a result.
    stores = stores_of(graph, views, recorded.precision, recorded.blocks, reporter or Reporter())
    places = tuple(store.find(keys) for store in stores)
    there = all((p[readable, 0] >= 0).all() for p in places)
    return FeatureMatrix(stores, places, recorded.blocks, {}, "cache") if there else None


def stores_of(
    graph: FeatureExtractor,
    views: tuple[str, ...],
    precision: str,
    blocks: tuple[tuple[str, int], ...],
    reporter: Reporter,
) -> tuple[ArrayStore, ...]:
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
            "decoder": DECODER,
        }
        kind = "activations" if graph.first else "features"
        folder = cache_root() / kind / stable_hash(about)
        stores.append(
            ArrayStore(
                folder,
                np.float16,
                (width,),
                {**about, "blocks": blocks, "bytes_a_photo": 2 * width},
                reporter,
            )
        )
    return tuple(stores)
