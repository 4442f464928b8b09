"""What the frozen network, or the disk, holds of added rows: activations and pixels of their views.

Each table here has the photos' rows first and the added rows behind them (see `added`), so that what learns from rows
need not know which of them were added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.progress import Reporter
from unfreeze.data.pixels import Frame, StoredPixels
from unfreeze.learn.added import AddedRows
from unfreeze.learn.probe.feature_table import Features
from unfreeze.learn.probe.inputs import JoinedFeatures
from unfreeze.learn.train.activations import compute_activations, kept_activations
from unfreeze.learn.train.batches import Activations
from unfreeze.learn.views import MIRRORED, seen
from unfreeze.model.backbones import Preprocessing
from unfreeze.model.graphs import Graph

Rows = NDArray[np.int64]
# Added rows are other examples than their photos: their augmentation is drawn under keys of their own.
_APART = 0x9E3779B97F4A7C15


def frame_of(preprocessing: Preprocessing) -> Frame:
    """The square of pixels that is kept of a photo, for a network that sees it so."""
    p = preprocessing
    return Frame(p.size, p.crop, p.resample, p.squash, p.face, p.gray)


def stored_names(view: str, views: tuple[str, ...]) -> tuple[str, ...]:
    """Names under which an added view is kept, one for each of `views` (plain, flip) that a photo is seen in."""
    return tuple(view if word == "plain" else view + MIRRORED for word in views)


def compute_added(
    added: AddedRows,
    files: list[Path],
    keys: NDArray[np.uint64],
    graph: Graph,
    views: tuple[str, ...],
    frame: Frame,
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> dict[int, str]:
    """What the network makes of the added views goes into the cache; gives the photos that failed, and why.

    views: plain, flip, or both: what a photo is seen in. squares: as of `compute_features`.
    """
    failed: dict[int, str] = {}
    alike: dict[bytes, list[int]] = {}  # views of the same photos go together: one engine is opened for them
    for view in range(len(added.views)):
        alike.setdefault(_mask(added, view, len(keys)).tobytes(), []).append(view)
    for some in alike.values():
        chosen = _mask(added, some[0], len(keys))
        names = tuple(name for view in some for name in stored_names(added.views[view], views))
        every = ("plain", *names)
        failed |= compute_activations(files, keys, chosen, graph, every, frame, wish, max_pixels, reporter, squares)
    return failed


def kept_views(
    added: AddedRows, keys: NDArray[np.uint64], graph: Graph, views: tuple[str, ...], wish: str
) -> tuple[Features, ...]:
    """What `compute_added` has left, for each view; rows of photos that are not seen in it are absent."""
    return tuple(
        kept_activations(keys, _mask(added, view, len(keys)), graph, stored_names(name, views), wish)
        for view, name in enumerate(added.views)
    )


def further_features(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    graphs: Sequence[Graph],
    further: tuple[str, ...],
    looks: tuple[str, ...],
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> tuple[list[JoinedFeatures], dict[int, str]]:
    """Features of photos in each view of `further`, as heads read them, from the cache or computed now; and the photos
    that failed, with the reason.

    Arguments as of `compute_features`; looks: plain, or plain and flip, whose features are averaged.
    """
    failed: dict[int, str] = {}
    good, views = readable.copy(), tuple(name for view in further for name in stored_names(view, looks))
    for graph in graphs:
        every, frame = ("plain", *views), frame_of(graph.preprocessing)
        failed |= compute_activations(files, keys, good, graph, every, frame, wish, max_pixels, reporter, squares)
        good[list(failed)] = False
    kept = [
        JoinedFeatures(tuple(kept_activations(keys, good, graph, stored_names(view, looks), wish) for graph in graphs))
        for view in further
    ]
    return kept, failed


def _mask(added: AddedRows, view: int, count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, bool)
    mask[added.of(view)] = True
    return mask


@dataclass(frozen=True)
class ExtendedPixels(StoredPixels):
    """Stored squares of the photos and, behind them, of the added rows, made when they are read."""

    added: AddedRows = field(default_factory=AddedRows)

    @classmethod
    def of(cls, pixels: StoredPixels, added: AddedRows) -> StoredPixels:
        """The pixels themselves where nothing is added."""
        if not len(added):
            return pixels
        places = np.concatenate([pixels.places, pixels.places[added.photo]])
        apart = pixels.keys[added.photo] ^ ((added.view + 1).astype(np.uint64) * np.uint64(_APART))[:, None]
        keys = np.concatenate([pixels.keys, apart])
        return cls(pixels.store, places, keys, pixels.frame, pixels.failed, added)

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """As of StoredPixels."""
        squares, first = super().read(rows), len(self.places) - len(self.added)
        turned = np.flatnonzero(rows >= first)
        for view in np.unique(self.added.view[rows[turned] - first]).tolist():
            here = turned[self.added.view[rows[turned] - first] == view]
            images = torch.from_numpy(squares[here]).permute(0, 3, 1, 2)
            squares[here] = seen(images, self.added.views[view]).permute(0, 2, 3, 1).numpy()
        return squares


@dataclass(frozen=True)
class ExtendedActivations(Activations):
    """Activations of the photos and, behind them, of the added rows.

    Where a photo's mirror image would be drawn, an added row's is; every other draw gives its view as it is.
    """

    added: AddedRows = field(default_factory=AddedRows)
    seen: tuple[Features, ...] = ()
    flipped: int = -1

    @classmethod
    def of(cls, activations: Activations, added: AddedRows, seen: tuple[Features, ...], flipped: int) -> Activations:
        """flipped: number of the mirrored view among those that are drawn, or -1; the activations themselves where
        nothing is added."""
        if not len(added):
            return activations
        behind = np.full((len(added), 2), -1, np.int64)
        for view, features in enumerate(seen):
            here = added.view == view
            behind[here] = features.places[0][added.photo[here]]
        a = activations
        places = tuple(np.concatenate([own, behind]) for own in a.places)
        return cls(a.stores, places, a.shape, a.pooled, a.mirrored, a.kept, added, seen, flipped)

    def read(self, rows: Rows, views: Rows) -> NDArray[np.float16]:
        """As of Activations."""
        first = len(self.places[0]) - len(self.added)
        out = np.empty((len(rows), self.width), np.float16)
        own = rows < first
        out[own] = super().read(rows[own], views[own])
        for view, features in enumerate(self.seen):
            for mirrored in (0, 1):
                here = np.flatnonzero(~own & ((views == self.flipped) == bool(mirrored)))
                here = here[self.added.view[rows[here] - first] == view]
                if len(here):
                    which = min(mirrored, len(features.stores) - 1)
                    photos = self.added.photo[rows[here] - first]
                    out[here] = features.stores[which].take(features.places[which][photos])
        return out
