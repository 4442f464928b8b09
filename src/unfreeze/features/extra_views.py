"""Features, activations and pixels of extra samples and test-time augmentation views.

Each table has the rows of the images first and those of the extra samples after them (see `extra_samples`), so training
code does not have to distinguish the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.progress import Reporter
from unfreeze.data.pixel_cache import CropSpec, PixelCache
from unfreeze.features.activations import compute_activations, load_activations
from unfreeze.features.extra_samples import ExtraSamples
from unfreeze.features.matrix import FeatureMatrix, JoinedFeatureMatrix
from unfreeze.features.stored_activations import Activations
from unfreeze.features.views import MIRRORED, apply_view
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.model_info import Preprocessing

# Extra samples are augmented independently of their images, so their draws use different keys.
_APART = 0x9E3779B97F4A7C15


def crop_spec(preprocessing: Preprocessing) -> CropSpec:
    """Return the specification of the cached pixels for a network with this preprocessing."""
    p = preprocessing
    return CropSpec(p.size, p.crop, p.resample, p.squash, p.face, p.gray)


def view_keys(view: str, views: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names under which a view is cached, one for each of `views` ('plain', 'flip')."""
    return tuple(view if word == "plain" else view + MIRRORED for word in views)


def compute_added(
    added: ExtraSamples,
    files: list[Path],
    keys: NDArray[np.uint64],
    graph: FeatureExtractor,
    views: tuple[str, ...],
    frame: CropSpec,
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> dict[int, str]:
    """Compute the outputs of the network for the extra samples and write them to the cache.

    Args:
        added: The extra samples.
        files: n image files.
        keys: uint64 (n, 2) content keys.
        graph: The network.
        views: 'plain', 'flip', or both: variants of each view to compute.
        frame: Specification of the cached pixels.
        wish: Requested inference engine.
        max_pixels: Maximum number of pixels of an image.
        reporter: Progress reporter.
        squares: Crop boxes, as in `compute_features`.

    Returns:
        Images that failed: row -> reason.
    """
    failed: dict[int, str] = {}
    alike: dict[bytes, list[int]] = {}  # views of the same images are processed together, with one engine
    for view in range(len(added.views)):
        alike.setdefault(_mask(added, view, len(keys)).tobytes(), []).append(view)
    for some in alike.values():
        chosen = _mask(added, some[0], len(keys))
        names = tuple(name for view in some for name in view_keys(added.views[view], views))
        every = ("plain", *names)
        failed |= compute_activations(files, keys, chosen, graph, every, frame, wish, max_pixels, reporter, squares)
    return failed


def load_views(
    added: ExtraSamples, keys: NDArray[np.uint64], graph: FeatureExtractor, views: tuple[str, ...], wish: str
) -> tuple[FeatureMatrix, ...]:
    """Load the results of `compute_added` from the cache, one table per view.

    Rows of images that have no extra sample in a view are absent from its table.
    """
    return tuple(
        load_activations(keys, _mask(added, view, len(keys)), graph, view_keys(name, views), wish)
        for view, name in enumerate(added.views)
    )


def tta_features(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    graphs: Sequence[FeatureExtractor],
    further: tuple[str, ...],
    looks: tuple[str, ...],
    wish: str,
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> tuple[list[JoinedFeatureMatrix], dict[int, str]]:
    """Return features for test-time augmentation, from the cache or newly computed.

    Args:
        files: n image files.
        keys: uint64 (n, 2) content keys.
        readable: bool (n,), images to process.
        graphs: Feature extractors, one per input.
        further: Names of the additional views.
        looks: 'plain', or 'plain' and 'flip', whose features are averaged.
        wish: Requested inference engine.
        max_pixels: Maximum number of pixels of an image.
        reporter: Progress reporter.
        squares: Crop boxes, as in `compute_features`.

    Returns:
        One feature matrix per additional view, and the images that failed: row -> reason.
    """
    failed: dict[int, str] = {}
    good, views = readable.copy(), tuple(name for view in further for name in view_keys(view, looks))
    for graph in graphs:
        every, frame = ("plain", *views), crop_spec(graph.preprocessing)
        failed |= compute_activations(files, keys, good, graph, every, frame, wish, max_pixels, reporter, squares)
        good[list(failed)] = False
    kept = [
        JoinedFeatureMatrix(
            tuple(load_activations(keys, good, graph, view_keys(view, looks), wish) for graph in graphs)
        )
        for view in further
    ]
    return kept, failed


def _mask(added: ExtraSamples, view: int, count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, bool)
    mask[added.of(view)] = True
    return mask


@dataclass(frozen=True)
class ExtendedPixels(PixelCache):
    """Cached pixels of the images, followed by those of the extra samples, which are transformed when they are read."""

    added: ExtraSamples = field(default_factory=ExtraSamples)

    @classmethod
    def of(cls, pixels: PixelCache, added: ExtraSamples) -> PixelCache:
        """Return the extended pixels, or `pixels` itself if there are no extra samples."""
        if not len(added):
            return pixels
        places = np.concatenate([pixels.places, pixels.places[added.photo]])
        apart = pixels.keys[added.photo] ^ ((added.view + 1).astype(np.uint64) * np.uint64(_APART))[:, None]
        keys = np.concatenate([pixels.keys, apart])
        return cls(pixels.store, places, keys, pixels.frame, pixels.failed, added)

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """Return uint8 (len(rows), side, side, 3), as `PixelCache.read`."""
        squares, first = super().read(rows), len(self.places) - len(self.added)
        turned = np.flatnonzero(rows >= first)
        for view in np.unique(self.added.view[rows[turned] - first]).tolist():
            here = turned[self.added.view[rows[turned] - first] == view]
            images = torch.from_numpy(squares[here]).permute(0, 3, 1, 2)
            squares[here] = apply_view(images, self.added.views[view]).permute(0, 2, 3, 1).numpy()
        return squares


@dataclass(frozen=True)
class ExtendedActivations(Activations):
    """Activations of the images, followed by those of the extra samples.

    Where the flipped view of an image would be drawn, the flipped view of an extra sample is returned. Every other draw
    returns its plain view.

    Attributes:
        added: The extra samples.
        seen: One feature matrix per view of `added`.
        flipped: Index of the flipped view among the views that are drawn, or -1.
    """

    added: ExtraSamples = field(default_factory=ExtraSamples)
    seen: tuple[FeatureMatrix, ...] = ()
    flipped: int = -1

    @classmethod
    def of(
        cls, activations: Activations, added: ExtraSamples, seen: tuple[FeatureMatrix, ...], flipped: int
    ) -> Activations:
        """Return the extended activations, or `activations` itself if there are no extra samples."""
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
        """Return float16 (n, width), as `Activations.read`."""
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
