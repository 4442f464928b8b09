"""Feature extractors: a backbone with its preprocessing and the stages that are read from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.models.model_info import Preprocessing
from unfreeze.models.pooling import FeatureSpec, feature_module
from unfreeze.models.registry import Backbone

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FeatureExtractor:
    """Specification of a frozen network: the pooled stages of a backbone for one preprocessing.

    Attributes:
        backbone: Network and weights.
        preprocessing: Input size, crop and normalization.
        taps: Stages that are read and the pooling grid.
        first: If positive, only the stages before this one run. The output is then their activation, preceded by the
            pooled features of those tapped stages that lie before the last of them (see
            `models.backbone_split.FrozenFront`).
    """

    backbone: Backbone
    preprocessing: Preprocessing
    taps: FeatureSpec
    first: int = 0

    def module(self) -> nn.Module:
        """Build the float32 torch module in eval mode."""
        size = self.preprocessing.size
        network = self.backbone.build(size=size).requires_grad_(False)
        anatomy = self.backbone.anatomy(size)
        if self.first:
            from unfreeze.models.backbone_split import FrozenFront

            return FrozenFront(network, anatomy, self.first, self.taps).eval()
        return feature_module(network, anatomy.stages, self.taps)

    def blocks(self) -> tuple[tuple[str, int], ...]:
        """Name and width of each block of features, in column order."""
        if self.first:
            read = self.backbone.stages[-self.taps.last :]
            kept = [s for s in self.backbone.stages[: self.first - 1] if s in read]
            pooled = tuple((stage.name, stage.width(self.taps.grid)) for stage in kept)
            return (*pooled, ("activation", math.prod(self.activation())))
        return tuple((stage.name, stage.width(self.taps.grid)) for stage in self.backbone.stages[-self.taps.last :])

    def activation(self) -> tuple[int, ...]:
        """Shape of the front's output for one image. Imports torch.

        Raises:
            BackboneError: If the network cannot be split at this stage.
        """
        from unfreeze.models.architectures import build
        from unfreeze.models.backbone_split import activation_shape

        size = self.preprocessing.size
        network = build(self.backbone.name, size=size, meta=True)
        return activation_shape(network, self.backbone.anatomy(size), self.first, size)

    def width(self) -> int:
        """Number of features per image."""
        return sum(width for _, width in self.blocks())

    def gmacs(self) -> float:
        """Multiply-adds per image at this input size, in billions."""
        return self.backbone.card.gmacs * (self.preprocessing.size / self.backbone.preprocessing.size) ** 2

    def title(self) -> str:
        """Readable name, for example ``EfficientNet-Lite0 at 320 px, uncropped``."""
        crop = "uncropped" if self.preprocessing.crop == 1 else f"{self.preprocessing.crop:.0%} crop"
        crop = "squashed" if self.preprocessing.squash else crop
        crop = "around the face" if self.preprocessing.face else crop
        gray = ", gray" if self.preprocessing.gray else ""
        return f"{self.backbone.title} at {self.preprocessing.size} px, {crop}{gray}"

    def described(self) -> dict[str, Any]:
        """JSON-serializable description with which a run can rebuild the extractor: `key`, `photos` and a title."""
        return {**json.loads(json.dumps({**self.key(), **self.photos()})), "title": self.title()}

    def photos(self) -> dict[str, Any]:
        """Settings, besides the size, of how an image is turned into the network's input.

        Features depend on them; the converted network does not.
        """
        p = self.preprocessing
        # Listed only if set, so that cache keys from before these options existed remain valid.
        face, gray = {"face": p.face} if p.face else {}, {"gray": True} if p.gray else {}
        return {"crop": p.crop, "resample": p.resample, "squash": p.squash, **face, **gray}

    def key(self) -> dict[str, Any]:
        """JSON-serializable cache key: everything that the network's outputs depend on."""
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
