"""What a frozen part is: a backbone, how it sees a photo, and the blocks that are read from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.model.backbones import Backbone, Preprocessing
from unfreeze.model.taps import Taps, pooled_blocks

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Graph:
    """What is to run: a backbone's pooled blocks for one preprocessing.

    first: if positive, only the stages before that one run, and what comes out is their activation, behind the pooled
    blocks of those tapped stages that lie before its own (see `model.cuts.Front`).
    """

    backbone: Backbone
    preprocessing: Preprocessing
    taps: Taps
    first: int = 0

    def module(self) -> nn.Module:
        """The torch module, eval mode, float32."""
        size = self.preprocessing.size
        network = self.backbone.build(size=size).requires_grad_(False)
        anatomy = self.backbone.anatomy(size)
        if self.first:
            from unfreeze.model.cuts import Front

            return Front(network, anatomy, self.first, self.taps).eval()
        return pooled_blocks(network, anatomy.stages, self.taps)

    def blocks(self) -> tuple[tuple[str, int], ...]:
        """Name and number of features of each block, in the order of the module's columns."""
        if self.first:
            read = self.backbone.stages[-self.taps.last :]
            kept = [s for s in self.backbone.stages[: self.first - 1] if s in read]
            pooled = tuple((stage.name, stage.width(self.taps.grid)) for stage in kept)
            return (*pooled, ("activation", math.prod(self.activation())))
        return tuple((stage.name, stage.width(self.taps.grid)) for stage in self.backbone.stages[-self.taps.last :])

    def activation(self) -> tuple[int, ...]:
        """Shape of what the front puts out for one photo. Imports torch. BackboneError where it cannot be cut there."""
        from unfreeze.model.architectures import build
        from unfreeze.model.cuts import activation_shape

        size = self.preprocessing.size
        network = build(self.backbone.name, size=size, meta=True)
        return activation_shape(network, self.backbone.anatomy(size), self.first, size)

    def width(self) -> int:
        """Number of features of a photo."""
        return sum(width for _, width in self.blocks())

    def gmacs(self) -> float:
        """Billions of multiply-adds of a photo at this size."""
        return self.backbone.card.gmacs * (self.preprocessing.size / self.backbone.preprocessing.size) ** 2

    def title(self) -> str:
        """What a person calls it: `EfficientNet-Lite0 at 320 px, uncropped`."""
        crop = "uncropped" if self.preprocessing.crop == 1 else f"{self.preprocessing.crop:.0%} crop"
        crop = "squashed" if self.preprocessing.squash else crop
        crop = "around the face" if self.preprocessing.face else crop
        gray = ", gray" if self.preprocessing.gray else ""
        return f"{self.backbone.title} at {self.preprocessing.size} px, {crop}{gray}"

    def described(self) -> dict[str, Any]:
        """All that a run must know to make it again, as JSON: `key` with the crop and a title."""
        return {**json.loads(json.dumps({**self.key(), **self.photos()})), "title": self.title()}

    def photos(self) -> dict[str, Any]:
        """How a photo becomes its input, beside the size: features depend on it, the converted network does not."""
        p = self.preprocessing
        # Named only where they are asked for, so that what was kept before they existed is found.
        face, gray = {"face": p.face} if p.face else {}, {"gray": True} if p.gray else {}
        return {"crop": p.crop, "resample": p.resample, "squash": p.squash, **face, **gray}

    def key(self) -> dict[str, Any]:
        """All that its outputs depend on, as JSON."""
        p = self.preprocessing
        front = {"first": self.first} if self.first else {}
        return {
            **front,
            "backbone": self.backbone.name,
            "weights": self.backbone.weights.identity(),
            "size": p.size,
            "mean": p.mean,
            "std": p.std,
            "stages": f"last:{self.taps.last}",
            "grid": self.taps.grid,
        }
