"""What a frozen part is: a backbone, how it sees a photo, and the blocks that are read from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.model.backbones import Backbone, Preprocessing
from unfreeze.model.stages import Taps, pooled_blocks

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Graph:
    """What is to run: a backbone's pooled blocks for one preprocessing."""

    backbone: Backbone
    preprocessing: Preprocessing
    taps: Taps

    def module(self) -> nn.Module:
        """The torch module, eval mode, float32."""
        return pooled_blocks(self.backbone.build(), self.taps)

    def width(self) -> int:
        """Number of features of a photo."""
        return sum(self.backbone.channels[-self.taps.last :]) * self.taps.grid**2

    def gmacs(self) -> float:
        """Billions of multiply-adds of a photo at this size."""
        return self.backbone.gmacs * (self.preprocessing.size / self.backbone.preprocessing.size) ** 2

    def title(self) -> str:
        """What a person calls it: `EfficientNet-Lite0 at 320 px, uncropped`."""
        crop = "uncropped" if self.preprocessing.crop == 1 else f"{self.preprocessing.crop:.0%} crop"
        return f"{self.backbone.title} at {self.preprocessing.size} px, {crop}"

    def described(self) -> dict[str, Any]:
        """All that a run must know to make it again, as JSON: `key` with the crop and a title."""
        return {**json.loads(json.dumps(self.key())), "crop": self.preprocessing.crop, "title": self.title()}

    def key(self) -> dict[str, Any]:
        """All that its outputs depend on, as JSON."""
        p = self.preprocessing
        return {
            "backbone": self.backbone.name,
            "weights": self.backbone.weights.sha256,
            "size": p.size,
            "mean": p.mean,
            "std": p.std,
            "stages": f"last:{self.taps.last}",
            "grid": self.taps.grid,
        }
