"""What a network is, found once on shapes alone and kept in the cache: a later run needs no torch to know it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from unfreeze.core.cache import cache_root, fingerprint
from unfreeze.core.files import write_json
from unfreeze.model.architectures import build, resolve
from unfreeze.model.stages import Anatomy, anatomy, classifier_of

_FORMAT = 1


@dataclass(frozen=True)
class Preprocessing:
    """What the network was trained to see: it travels with the weights.

    size: side of the square input, pixels. crop: share of the resized short side that is kept.
    mean, std: per channel, of pixel values in 0..1. resample: 'bicubic' or 'bilinear', with antialiasing.
    squash: the whole photo is pressed into the square instead of cropped.
    face: the square around the largest face is seen instead of the centre; names the detector and the margin around
    the face, which is all that the square depends on. A photo without a face is seen as `crop` says.
    gray: all three channels are the photo's luminance (see `images.grayed`).
    """

    size: int
    crop: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str = "bicubic"
    squash: bool = False
    face: str = ""
    gray: bool = False

    def resolved(
        self, size: int, crop: float, squash: bool = False, face: str = "", gray: bool = False
    ) -> Preprocessing:
        """The same with another size or crop where these are not 0."""
        about = (self.mean, self.std, self.resample, squash, face, gray)
        return Preprocessing(size or self.size, crop or self.crop, *about)


@dataclass(frozen=True)
class StageCard:
    """A stage's name and output: `channels` wide, with `classes` class tokens beside; flat: no map left."""

    name: str
    channels: int
    classes: int = 0
    flat: bool = False

    def width(self, grid: int) -> int:
        """Number of features on a grid x grid pooling grid."""
        return self.channels * (1 if self.flat else grid**2 + self.classes)


@dataclass(frozen=True)
class Card:
    """name: full. parameters: how many. gmacs: billions of multiply-adds of a photo at its own size."""

    name: str
    preprocessing: Preprocessing
    parameters: int
    gmacs: float
    stages: tuple[StageCard, ...]
    licence: str


def card(name: str) -> Card:
    """The card of a network by full or bare name, from the cache or made in a moment on torch's meta device.

    Raises BackboneError where there is no such network or it cannot be used here.
    """
    file = cache_root() / "cards" / f"{fingerprint([_FORMAT, name, _versions()])}.json"
    try:
        return _from_json(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    made = _make(resolve(name))
    write_json(file, asdict(made))
    return made


@lru_cache(maxsize=64)  # a search asks for the same one some hundred times
def anatomy_of(name: str, size: int, auxiliary: bool = False) -> Anatomy:
    """Stages, classifier and auxiliary heads of a network by full name, for photos of `size` px."""
    one, other = (build(name, classes, auxiliary=auxiliary, size=size, meta=True) for classes in (11, 7))
    return anatomy(name, one, classifier_of(one, other), size)


def _make(full: str) -> Card:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    preprocessing, licence = _trained_with(full)
    found = anatomy_of(full, preprocessing.size)
    network = build(full, size=preprocessing.size, meta=True).eval().requires_grad_(False)
    count = sum(p.numel() for p in network.parameters())
    device = next(network.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, preprocessing.size, preprocessing.size, device=device))
    stages = tuple(StageCard(s.name, s.channels, s.classes, s.layout == "NC") for s in found.stages)
    return Card(full, preprocessing, count, round(counter.get_total_flops() / 2e9, 3), stages, licence)


def _trained_with(full: str) -> tuple[Preprocessing, str]:
    """Preprocessing and licence as the library states them."""
    library, _, name = full.partition("/")
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        size = min(config.input_size[-2:])
        resample = "bilinear" if config.interpolation == "bilinear" else "bicubic"
        mean, std = tuple(config.mean), tuple(config.std)
        licence = config.license or "see its model card"
        crop = min(float(config.crop_pct), 1.0)  # a few are cut from photos that are smaller than the square
        return Preprocessing(size, crop, mean, std, resample), licence
    from torchvision import models

    told = models.get_model_weights(name).DEFAULT.transforms()
    size, resized = told.crop_size[0], told.resize_size[0]
    crop = math.floor(1000 * size / resized) / 1000
    resample = told.interpolation.value
    return Preprocessing(size, crop, tuple(told.mean), tuple(told.std), resample), "BSD-3-Clause (code)"


def _from_json(found: dict[str, Any]) -> Card:
    p = found["preprocessing"]
    preprocessing = Preprocessing(**{**p, "mean": tuple(p["mean"]), "std": tuple(p["std"])})
    stages = tuple(StageCard(**stage) for stage in found["stages"])
    return Card(**{**found, "preprocessing": preprocessing, "stages": stages})


def _versions() -> list[str]:
    found = []
    for package in ("timm", "torchvision"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    return found
