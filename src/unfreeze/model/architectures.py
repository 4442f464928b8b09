"""Networks of timm and torchvision by one name space: `timm/convnext_tiny`, `torchvision/densenet161`."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError, listed, nearest, printable
from unfreeze.model.families import WITH_AUXILIARY, refusal

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARIES = ("timm", "torchvision")
# Of a name that is repeated in a message: it comes from a file or a command line.
_LONGEST = 80


@cache
def architectures(library: str) -> tuple[str, ...]:
    """All classifiers of a library, sorted, without the library's prefix. Imports it."""
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    from torchvision import models

    return tuple(sorted(models.list_models(module=models)))


def resolve(name: str) -> str:
    """The full name, `library/architecture` or `timm/architecture.tag`, of a full or bare name.

    Raises BackboneError if there is none (with the nearest), if both libraries have the bare name, or if the family
    cannot be supported (with the reason).
    """
    shown = printable(name if len(name) <= _LONGEST else name[:_LONGEST] + "...")
    library, slash, bare = name.rpartition("/")
    if slash and library not in LIBRARIES:
        raise BackboneError(f"backbone '{shown}': the name spaces are {' and '.join(f'{lib}/' for lib in LIBRARIES)}.")
    homes = [lib for lib in ([library] if slash else LIBRARIES) if _plain(lib, bare) in architectures(lib)]
    if not homes:
        known = [f"{lib}/{n}" for lib in LIBRARIES for n in architectures(lib)] + list(architectures("timm"))
        hint = nearest(name[:_LONGEST].lower(), known)
        raise BackboneError(f"no backbone '{shown}'.{hint} `unfreeze models --all` lists them.")
    if len(homes) > 1:
        both = " and ".join(f"{lib}/{bare}" for lib in homes)
        raise BackboneError(f"backbone '{name}' is in both libraries: choose between {both}.")
    full = f"{homes[0]}/{bare}"
    if homes[0] == "timm":
        if why := refusal(bare):
            raise BackboneError(f"{full}: cannot be used here: {why}.")
        _check_tag(bare)
    return full


def _check_tag(name: str) -> None:
    """Raises BackboneError, which lists those there are, if timm knows no weights of that tag."""
    import timm

    architecture, dot, tag = name.partition(".")
    if not dot:
        return
    try:
        if tag and timm.get_pretrained_cfg(name) is not None:
            return
    except RuntimeError:  # timm's word for an unknown tag
        pass
    tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
    there = f"its tags are {listed(tags, 12)}" if tags else "it has no pretrained weights"
    shown, hint = printable(tag[:_LONGEST]), nearest(tag[:_LONGEST], tags)
    raise BackboneError(f"timm/{architecture}: no weights are tagged '{shown}'; {there}.{hint}")


def _plain(library: str, name: str) -> str:
    """The architecture without timm's weights tag (`resnet50.a1_in1k`)."""
    return name.partition(".")[0] if library == "timm" else name


def build(full: str, classes: int = 1000, *, auxiliary: bool = False, size: int = 0, meta: bool = False) -> nn.Module:
    """An untrained network for `classes` classes, on the CPU, in training mode.

    full: from `resolve`. auxiliary: with its auxiliary heads, where it has any. size: side of the input, pixels, for
    networks that are built for one size; 0: the library's default. meta: only shapes, no memory (torch's meta device).
    Random weights come from torch's global generator. Raises BackboneError for a size that it cannot be built for.
    """
    import torch

    library, _, name = full.partition("/")
    keywords: dict[str, Any] = {"num_classes": classes}
    if full.partition(".")[0] in WITH_AUXILIARY:
        keywords["aux_logits"] = auxiliary
    if meta:
        # Some look at their own random weights while they are built: those are built in memory.
        with contextlib.suppress(NotImplementedError), torch.device("meta"):
            return _build(full, library, name, keywords, size)
    return _build(full, library, name, keywords, size)


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts all of a network's tensors into it, by name, from a file that keeps names and values only.

    A few networks (MNASNet) also ask for the version that torch's own state dicts carry beside: it is this network's.
    Raises RuntimeError as `load_state_dict` does.
    """
    named = OrderedDict(tensors)
    named._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(named)


def _build(full: str, library: str, name: str, keywords: dict[str, Any], size: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow initialisation, and of names that will change
        if library == "timm":
            return _timm(name, keywords, size)
        from torchvision import models

        if "aux_logits" in keywords:
            keywords["init_weights"] = True  # torchvision warns that it is slow; said once it is no surprise
        if re.match("(vit|maxvit)_", name) and size:
            if name.startswith("maxvit"):
                keywords["input_size"] = (size, size)
            else:
                keywords["image_size"] = size
        try:
            network = models.get_model(name, weights=None, **keywords)
            if hasattr(network, "transform_input"):
                network.transform_input = (
                    True  # their pretrained weights were trained on other means (Inception, GoogLeNet)
                )
            return network
        except (ValueError, AssertionError) as error:
            raise BackboneError(f"{full}: cannot be built for photos of {size} px ({error}).") from None


def _timm(name: str, keywords: dict[str, Any], size: int) -> nn.Module:
    import timm

    config = timm.get_pretrained_cfg(name.partition(".")[0])
    if size and config is not None and config.fixed_input_size and size != config.input_size[-1]:
        keywords["img_size"] = size
    try:
        return timm.create_model(name, pretrained=False, **keywords)
    except (TypeError, AssertionError) as error:
        if "img_size" not in keywords:
            raise
        native = config.input_size[-1]
        raise BackboneError(
            f"timm/{name}: takes photos of {native} px only, not {size} ({error}); leave image.size out."
        ) from None
