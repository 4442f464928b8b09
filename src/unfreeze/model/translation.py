"""Tensors as a weights file's author called and shaped them -> as our network does."""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors = dict[str, "Tensor"]
# What wrappers put before every name: data-parallel training and torch.compile ...
_WRAPPERS = ("module.", "_orig_mod.")
# ... and what people call the attribute that holds the network.
_HOLDERS = ("model.", "net.", "network.", "backbone.", "encoder.", "base_model.")
# torchvision's DenseNets were saved when a module's name could hold a dot (`_load_state_dict` of its densenet.py).
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")
_ONE_AT_A_TIME = threading.Lock()


def translated(full: str, network: nn.Module, tensors: Tensors) -> Tensors:
    """The tensors under the names and in the shapes of `network`, as far as its library knows how.

    full: the network's full name. network: on the CPU or the meta device; asked for names, shapes and settings only.
    Wrappers' prefixes go, the library's own translation of original files is applied, and a position embedding is
    resampled where the library does that. Of the ways to read the names, the one under which most tensors fit is taken.
    """
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    best: Tensors = {}
    most = -1
    for read in _readings(tensors):
        found = _by_library(full, network, read)
        fitting = sum(shapes.get(name) == tensor.shape for name, tensor in found.items())
        if fitting > most:
            best, most = found, fitting
        if fitting == len(shapes):
            break
    return best


def _readings(tensors: Tensors) -> list[Tensors]:
    """The tensors as they are called, and without each prefix that most of them have."""
    for prefix in (*_WRAPPERS, *_WRAPPERS):  # in either order
        tensors = _without(prefix, tensors) or tensors
    found = [tensors]
    for prefix in _HOLDERS:
        inner = _without(prefix, tensors)
        found += [inner] if inner else []
        found += [both for deeper in _HOLDERS if inner and (both := _without(deeper, inner))]
    return found


def _without(prefix: str, tensors: Tensors) -> Tensors | None:
    """Without the prefix, or None where not even half of the names have it. A counter beside stays."""
    if 2 * sum(name.startswith(prefix) for name in tensors) <= len(tensors):
        return None
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _by_library(full: str, network: nn.Module, tensors: Tensors) -> Tensors:
    library, _, name = full.partition("/")
    if library == "torchvision":
        return _torchvision(network, tensors)
    change = _timm_filter(name)
    if change is None:
        return tensors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = change(dict(tensors), network)
        except Exception:  # the family's code meets names that it was not written for: they are taken as they are
            return tensors
    return {name: tensor for name, tensor in found.items() if hasattr(tensor, "shape")}


def _torchvision(network: nn.Module, tensors: Tensors) -> Tensors:
    tensors = {_DENSE_LAYER.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}
    position, size = tensors.get("encoder.pos_embedding"), getattr(network, "image_size", 0)
    patch = getattr(network, "patch_size", 0)
    if position is not None and position.ndim == 3 and patch and position.shape[1] != (size // patch) ** 2 + 1:
        from torchvision.models.vision_transformer import interpolate_embeddings

        with contextlib.suppress(ValueError):  # it lies on no square grid: said later as another shape
            tensors = dict(interpolate_embeddings(size, patch, dict(tensors)))
    return tensors


@cache
def _timm_filter(name: str) -> Callable[[Tensors, Any], Tensors] | None:
    """The translation that a family of timm's applies to original files, or None if it has none.

    timm keeps it in each family's factory and hands it to nobody but its loader: so for one build, of shapes only, a
    loader that loads nothing stands in and keeps what it is handed.
    """
    import timm
    import torch
    from timm.models import _builder

    caught: list[Any] = []

    def stand_in(*_: object, filter_fn: Any = None, **__: object) -> None:
        caught.append(filter_fn)

    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader, _builder.load_pretrained = _builder.load_pretrained, stand_in
        try:
            with contextlib.suppress(NotImplementedError), torch.device("meta"):
                timm.create_model(name, pretrained=True)
            if not caught:  # some look at their own values while they are built
                timm.create_model(name, pretrained=True)
        finally:
            _builder.load_pretrained = loader
    change = caught[0] if caught else None
    if change is None:
        return None

    def apply(tensors: Tensors, network: Any) -> Tensors:
        try:
            return dict(change(tensors, network))
        except TypeError:  # older filters take the tensors alone
            return dict(change(tensors))

    return apply
