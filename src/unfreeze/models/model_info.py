"""Model metadata: preprocessing, size, cost and stages of a network.

The metadata is computed once on torch's meta device and cached on disk, so that later runs need not import torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unfreeze.core.cache import cache_root, stable_hash
from unfreeze.core.errors import BackboneError
from unfreeze.core.files import read_json, write_json
from unfreeze.models.architectures import build, defined_outside, has_auxiliary, resolve
from unfreeze.models.stages import NetworkLayout, classifier_of, find_stages, resized
from unfreeze.models.tracing import check_training, trace_modules

_FORMAT = 2
# Input size in pixels at which the smallest feature map of every network has several cells.
_MAPS = 160
# Minimum input size in pixels: many networks pad their input and would accept a single pixel.
_LEAST = 8
# Input sizes that are tried instead of an unsupported one: (step, limit), multiples of the step up to the limit.
_STEPS = ((_LEAST, 8), (14, 128), (16, 128), (32, 512), (128, 2048))
# Maximum number of characters of a torch error in a message.
_REASON = 120
# Defaults of timm for a network without a pretrained configuration. Sizes are tried in this order.
_SIZES, _CROP = (224, 32, 64, 96, 128, 256, 384, 512), 0.875
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Input preprocessing that the network was trained with; it is part of the weights.

    Attributes:
        size: Side of the square input in pixels.
        crop: Fraction of the resized short side that is kept by the center crop.
        mean: Per-channel mean of pixel values in 0..1.
        std: Per-channel standard deviation of pixel values in 0..1.
        resample: Interpolation, 'bicubic' or 'bilinear', with antialiasing.
        squash: Resize the whole image to the square, without keeping the aspect ratio, instead of cropping.
        face: If set, crop the square around the largest face instead of the center. The value names the face detector
            and the margin around the face, which determine the square. Images without a face are cropped as `crop`
            says.
        gray: Replace all three channels by the luminance of the image (see `data.decode.to_grayscale`).
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
        """Copy with another size or crop, where these are not 0, and with the given options."""
        about = (self.mean, self.std, self.resample, squash, face, gray)
        return Preprocessing(size or self.size, crop or self.crop, *about)


@dataclass(frozen=True)
class StageInfo:
    """Name and output of a stage.

    Attributes:
        name: Name of the stage.
        channels: Number of channels.
        classes: Number of class tokens in addition to the map.
        flat: Whether the output has no spatial map.
    """

    name: str
    channels: int
    classes: int = 0
    flat: bool = False

    def width(self, grid: int) -> int:
        """Number of features when pooled to grid x grid cells."""
        return self.channels * (1 if self.flat else grid**2 + self.classes)


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of a network.

    Attributes:
        name: Full name.
        preprocessing: Input preprocessing of the pretrained weights.
        parameters: Number of parameters.
        gmacs: Multiply-adds per image at the native size, in billions.
        stages: Stages, stem first.
        licence: License of the pretrained weights.
    """

    name: str
    preprocessing: Preprocessing
    parameters: int
    gmacs: float
    stages: tuple[StageInfo, ...]
    licence: str


def model_info(name: str) -> ModelInfo:
    """Metadata of a network, from the cache or computed on torch's meta device.

    Args:
        name: Full or bare name.

    Raises:
        BackboneError: If there is no such network, or if it is not supported.
    """
    if defined_outside(name):  # the user may change it at any time
        return _make(resolve(name))
    file = _file(name)
    try:
        return _from_json(read_json(file))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    made = _make(resolve(name))
    write_json(file, asdict(made))
    return made


def has_card(name: str) -> bool:
    """Check whether the cache holds the metadata of a network for the installed versions of timm and torchvision."""
    try:
        return bool(read_json(_file(name)))
    except (OSError, ValueError):
        return False


def _file(about: Any) -> Path:
    return cache_root() / "cards" / f"{stable_hash([_FORMAT, about, _versions()])}.json"


def anatomy_of(name: str, size: int, auxiliary: bool = False) -> NetworkLayout:
    """Stages, classifier and auxiliary heads of a network at an input size.

    Args:
        name: Full name.
        size: Side of the square input in pixels.
        auxiliary: Include the auxiliary heads.

    Raises:
        BackboneError: If the network, or a requested auxiliary head, does not support this size. The message suggests
            the nearest size that works.
    """
    return _anatomy_of(name, size, auxiliary, _definition(name))


def check_size(name: str, size: int) -> None:
    """Check that a network supports an input size. The result is cached, so that later runs need not import torch.

    Raises:
        BackboneError: As in `anatomy_of`.
    """
    file = None if defined_outside(name) else _file(["size", name, size])
    if file is None or not file.is_file():
        anatomy_of(name, size)
        if file is not None:
            write_json(file, {"backbone": name, "size": size})


def workable_size(name: str, size: int) -> int:
    """Smallest supported input size found that is at least `size`, for a network given by full name."""
    return size if _works(name, size, False) else _nearest(name, size, False)


def trains_auxiliary(name: str, size: int) -> bool:
    """Check whether a network, given by full name, has auxiliary heads that can train at this input size."""
    return has_auxiliary(name) and _works(name, size, True)


def auxiliary_size(name: str, size: int) -> int:
    """Smallest input size found, at least `size`, at which auxiliary heads can train; 0 if there are none.

    Args:
        name: Full name.
        size: Minimum side of the square input in pixels.
    """
    if not has_auxiliary(name):
        return 0
    return size if _works(name, size, True) else _nearest(name, size, True)


def _definition(name: str) -> Any:
    """Factory function of a timm model, None for other networks.

    It is part of the in-memory cache keys, because a model can be registered again under the same name.
    """
    import timm

    library, _, bare = name.partition("/")
    return timm.model_entrypoint(bare) if library == "timm" and timm.is_model(bare) else None


@lru_cache(maxsize=64)  # a search requests the same layout some hundred times
def _anatomy_of(name: str, size: int, auxiliary: bool, definition: Any) -> NetworkLayout:
    found = _structure(name, auxiliary, definition)
    try:
        return _at_size(name, size, auxiliary, found)
    except Exception as error:  # torch raises errors of any type if a map is smaller than a kernel
        why = error.__cause__ if isinstance(error, BackboneError) and error.__cause__ else error
        reason = (str(why).strip().splitlines() or [type(why).__name__])[0].rstrip(". ")
    nearest, native = _nearest(name, size, auxiliary), _native_size(name)
    remedy = f"set image.size to {nearest}"
    if _works(name, nearest + 1, auxiliary):
        remedy += " or more"
    elif nearest != native:
        remedy += f" or {native}"
    if len(reason) > _REASON:
        reason = f"{reason[:_REASON].rstrip()} ..."
    raise BackboneError(f"{name}: cannot take images of {size} px; {remedy} ({reason}).")


@lru_cache(maxsize=64)
def _structure(name: str, auxiliary: bool, definition: Any) -> NetworkLayout:
    """Stages at the native size, or at a multiple of it if feature maps at the native size may have a single cell."""
    native = _native_size(name)
    larger = [native * -(-_MAPS // native)] if native < _MAPS else []
    for size in (*larger, native):
        try:
            one, other = (build(name, classes, auxiliary=auxiliary, size=size, meta=True) for classes in (11, 7))
            classifier = classifier_of(one, other)
            if not classifier:
                raise BackboneError(f"{name}: cannot be used here: no layer of it follows num_classes.")
            return find_stages(name, one, classifier, size)
        except BackboneError as error:
            if size == native or not error.__cause__:  # with a cause: it cannot be built for this size
                raise
        except Exception as error:  # as above
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    raise BackboneError(f"{name}: cannot be used here: it fails for images of {native} px ({reason}).")


def _at_size(name: str, size: int, auxiliary: bool, found: NetworkLayout) -> NetworkLayout:
    if size < _LEAST:
        raise ValueError(f"the minimum is {_LEAST} px")
    network = build(name, 11, auxiliary=auxiliary, size=size, meta=True)
    if found.auxiliary and next(network.parameters()).is_meta:
        check_training(network, size)
    return resized(found, network, size)


def _works(name: str, size: int, auxiliary: bool) -> bool:
    return _tried(name, size, auxiliary, _definition(name))


@lru_cache(maxsize=256)
def _tried(name: str, size: int, auxiliary: bool, definition: Any) -> bool:
    try:
        _at_size(name, size, auxiliary, _structure(name, auxiliary, definition))
    except Exception:  # torch raises errors of any type if a map is smaller than a kernel
        return False
    return True


def _nearest(name: str, size: int, auxiliary: bool) -> int:
    """Smallest supported size above `size` that a coarse search with bisection finds; the native size if there is none.

    Many networks support every size from some minimum on; others only multiples of their patch or window size.
    """
    native, last = _native_size(name), size
    steps = {n for step, end in _STEPS for n in range(step, end + 1, step)}
    for candidate in sorted(n for n in {*steps, native} if size < n <= max(native, size + 64)):
        if _works(name, candidate, auxiliary):
            while candidate - last > 1:
                middle = (candidate + last) // 2
                last, candidate = (last, middle) if _works(name, middle, auxiliary) else (middle, candidate)
            return candidate
        last = candidate
    return native


def _native_size(name: str) -> int:
    return _trained_with(name)[0].size


def _make(full: str) -> ModelInfo:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    preprocessing, licence = _trained_with(full)
    found = anatomy_of(full, preprocessing.size)
    network = build(full, size=preprocessing.size, meta=True).eval().requires_grad_(False)
    count = sum(p.numel() for p in network.parameters())
    device = next(network.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, preprocessing.size, preprocessing.size, device=device))
    stages = tuple(StageInfo(s.name, s.channels, s.classes, s.layout == "NC") for s in found.stages)
    return ModelInfo(full, preprocessing, count, round(counter.get_total_flops() / 2e9, 3), stages, licence)


def _trained_with(full: str) -> tuple[Preprocessing, str]:
    """Preprocessing and license as stated by the library."""
    library, _, name = full.partition("/")
    if library == "timm":
        import timm

        # A network registered by the user may have no configuration, or an incomplete one.
        config = timm.get_pretrained_cfg(name)
        stated = vars(config) if config else {}
        given = stated.get("input_size")
        size = min(given[-2:]) if given else _first_size(full, _definition(full))
        resample = "bilinear" if stated.get("interpolation") == "bilinear" else "bicubic"
        mean, std = tuple(stated.get("mean") or _MEAN), tuple(stated.get("std") or _STD)
        licence = stated.get("license") or "see its model card"
        crop = min(float(stated.get("crop_pct") or _CROP), 1.0)  # a few configurations have a crop above 1
        return Preprocessing(size, crop, mean, std, resample), licence
    from torchvision import models

    transforms = models.get_model_weights(name).DEFAULT.transforms()
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    crop = math.floor(1000 * size / resized) / 1000
    resample = transforms.interpolation.value
    return Preprocessing(size, crop, tuple(transforms.mean), tuple(transforms.std), resample), "BSD-3-Clause (code)"


@lru_cache(maxsize=64)
def _first_size(full: str, definition: Any) -> int:
    """First of the default sizes that a network without a stated input size supports."""
    for size in _SIZES:
        try:
            trace_modules(build(full, 11, meta=True), size)
        except Exception:  # as above
            continue
        return size
    return _SIZES[0]


def _from_json(found: dict[str, Any]) -> ModelInfo:
    p = found["preprocessing"]
    preprocessing = Preprocessing(**{**p, "mean": tuple(p["mean"]), "std": tuple(p["std"])})
    stages = tuple(StageInfo(**stage) for stage in found["stages"])
    return ModelInfo(**{**found, "preprocessing": preprocessing, "stages": stages})


def _versions() -> list[str]:
    found = []
    for package in ("timm", "torchvision"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    return found
