"""Photos as a named view shows them, for prediction over several views: from stored pixels or kept activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.recipe_sections import Train
from unfreeze.data.pixels import StoredPixels, cached_pixels
from unfreeze.learn.added_views import stored_names
from unfreeze.learn.train.activations import kept_activations
from unfreeze.learn.train.batches import ActivationBatches, Activations, Batches, PixelBatches
from unfreeze.learn.train.plan import make_fabric
from unfreeze.learn.train.tuning import Setting
from unfreeze.learn.views import seen

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ShownPixels(StoredPixels):
    """Stored squares as one view shows them, made when they are read."""

    view: str = ""

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """As of StoredPixels."""
        images = torch.from_numpy(super().read(rows)).permute(0, 3, 1, 2)
        return seen(images, self.view).permute(0, 2, 3, 1).contiguous().numpy()


def views_to_keep(setting: Setting, further: tuple[str, ...], looks: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the views whose activations are needed, those of training left out."""
    return tuple(name for view in further for name in stored_names(view, looks)) if setting.cut else ()


def shown(
    setting: Setting, keys: NDArray[np.uint64], rows: Rows, view: str, looks: tuple[str, ...], classes: int, s: Train
) -> Batches:
    """The photos `rows` in that view, for prediction; in the cache is what `prepare_photos` left.

    setting: seeing the views of `views_to_keep`. looks: plain, or plain and flip.
    """
    none, device = np.zeros(len(rows), np.int64), make_fabric("f32").device
    wanted = np.zeros(len(keys), bool)
    wanted[rows] = True
    if setting.cut:
        found = kept_activations(keys, wanted, setting.front, stored_names(view, looks), setting.engine)
        beside = sum(width for _, width in found.blocks[:-1])
        mirrored = looks.index("flip") if "flip" in looks else -1
        every = Activations(found.stores, found.places, setting.front.activation(), beside, mirrored)
        return ActivationBatches(every, rows, none, classes, 0.0, "none", 0, device)
    p = cached_pixels([], keys, np.zeros_like(wanted), setting.frame)
    turned = ShownPixels(p.store, p.places, p.keys, p.frame, p.failed, view)
    return PixelBatches(turned, rows, none, classes, setting.preprocessing, "off", 0.0, 0.0, "none", 0, device)
