"""Model names of timm and torchvision, and construction of untrained networks.

Every network has a full name, ``library/architecture``, for example ``timm/convnext_tiny`` or
``torchvision/densenet161``. `resolve` turns a full or bare name into a full one, and `build` constructs the network.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError, did_you_mean, join_names, sanitize
from unfreeze.core.messages import wording
from unfreeze.models.stage_rules import WITH_AUXILIARY, unsupported_reason

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARIES = ("timm", "torchvision")
# Maximum number of characters of a name in an error message: names come from files and command lines.
_LONGEST = 80


def architectures(library: str) -> tuple[str, ...]:
    """List the classifiers of a library.

    Imports the library. For timm, the list includes the models that the user registered with
    `timm.models.register_model` in this process.

    Args:
        library: 'timm' or 'torchvision'.

    Returns:
        Names without the library prefix. The names of torchvision are sorted; those of timm are in timm's natural
        order.
    """
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    return _torchvision()


@cache
def _torchvision() -> tuple[str, ...]:
    from torchvision import models

    return tuple(sorted(models.list_models(module=models)))


def defined_outside(name: str) -> bool:
    """Check whether a network was registered with timm by the user in this process.

    Nothing about such a network may be cached on disk by its name, and no other process knows the name.

    Args:
        name: Full or bare name.
    """
    timm = sys.modules.get("timm")  # not imported yet: nothing can be registered
    library, _, bare = name.rpartition("/")
    if timm is None or library not in ("", "timm") or not timm.is_model(bare):
        return False
    return not timm.model_entrypoint(bare).__module__.startswith("timm.")


def registered() -> tuple[str, ...]:
    """Names of timm (without the library prefix) for which `defined_outside` is true."""
    return tuple(name for name in architectures("timm") if defined_outside(name)) if "timm" in sys.modules else ()


def has_auxiliary(full: str) -> bool:
    """Check whether a network, given by full name, can be built with auxiliary heads."""
    return full.partition(".")[0] in WITH_AUXILIARY


def resolve(name: str) -> str:
    """Resolve a full or bare name to a full name.

    Args:
        name: Full or bare name; for timm optionally with a weights tag (``resnet50.a1_in1k``).

    Returns:
        ``library/architecture`` or ``timm/architecture.tag``.

    Raises:
        BackboneError: If no network has this name (the message suggests the nearest one), if both libraries have the
            bare name, if the weights tag is unknown, or if the family is not supported (the message gives the reason).
    """
    shown = sanitize(name if len(name) <= _LONGEST else name[:_LONGEST] + "...")
    library, slash, bare = name.rpartition("/")
    if slash and library not in LIBRARIES:
        raise BackboneError(f"backbone '{shown}': the name spaces are {' and '.join(f'{lib}/' for lib in LIBRARIES)}.")
    homes = [lib for lib in ([library] if slash else LIBRARIES) if _plain(lib, bare) in architectures(lib)]
    if not homes:
        known = [f"{lib}/{n}" for lib in LIBRARIES for n in architectures(lib)] + list(architectures("timm"))
        hint = did_you_mean(name[:_LONGEST].lower(), known)
        listing = wording("`unfreeze models --all`", "The command `unfreeze models`")
        raise BackboneError(f"no backbone '{shown}'.{hint} {listing} lists them.")
    if len(homes) > 1:
        both = " and ".join(f"{lib}/{bare}" for lib in homes)
        raise BackboneError(f"backbone '{name}' is in both libraries: choose between {both}.")
    full = f"{homes[0]}/{bare}"
    if homes[0] == "timm":
        if why := unsupported_reason(bare):
            raise BackboneError(f"{full}: cannot be used here: {why}.")
        _check_tag(bare)
    return full


def _check_tag(name: str) -> None:
    """Raise BackboneError, with the list of known tags, if timm has no pretrained weights with this tag."""
    import timm

    architecture, dot, tag = name.partition(".")
    if not dot:
        return
    try:
        if tag and timm.get_pretrained_cfg(name) is not None:
            return
    except RuntimeError:  # raised by timm for an unknown tag
        pass
    tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
    there = f"its tags are {join_names(tags, 12)}" if tags else "it has no pretrained weights"
    shown, hint = sanitize(tag[:_LONGEST]), did_you_mean(tag[:_LONGEST], tags)
    raise BackboneError(f"timm/{architecture}: no weights are tagged '{shown}'; {there}.{hint}")


def _plain(library: str, name: str) -> str:
    """Architecture name without the weights tag of timm (``resnet50.a1_in1k`` -> ``resnet50``)."""
    return name.partition(".")[0] if library == "timm" else name


def build(full: str, classes: int = 1000, *, auxiliary: bool = False, size: int = 0, meta: bool = False) -> nn.Module:
    """Build an untrained network on the CPU, in training mode.

    Random weights are drawn from torch's global generator.

    Args:
        full: Full name from `resolve`.
        classes: Number of output classes.
        auxiliary: Build the auxiliary heads, if the network has any.
        size: Side of the square input in pixels, for networks that are built for a fixed size; 0 for the library's
            default.
        meta: Build on torch's meta device: shapes only, no memory. A network that reads its own random weights during
            construction is built on the CPU instead.

    Raises:
        BackboneError: If the network cannot be built for this input size.
    """
    import torch

    library, _, name = full.partition("/")
    keywords: dict[str, Any] = {"num_classes": classes}
    if has_auxiliary(full):
        keywords["aux_logits"] = auxiliary
    if meta:
        # Some networks read their own random weights during construction, which the meta device does not support.
        with contextlib.suppress(NotImplementedError), torch.device("meta"):
            return _build(full, library, name, keywords, size)
    return _build(full, library, name, keywords, size)


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Load tensors from a file that stores only names and values into a network.

    Some modules (MNASNet) also require the version metadata of torch's state dicts; it is taken from the network
    itself.

    Args:
        network: Network to load into, in place.
        tensors: State dict: parameter and buffer names to tensors.
        strict: Require exactly the tensors of the network.

    Raises:
        RuntimeError: As raised by `load_state_dict`.
    """
    named = OrderedDict(tensors)
    named._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(named, strict=strict)


def _build(full: str, library: str, name: str, keywords: dict[str, Any], size: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about slow initialization and deprecated names
        if library == "timm":
            return _timm(name, keywords, size)
        from torchvision import models

        if "aux_logits" in keywords:
            keywords["init_weights"] = True  # torchvision warns about slow initialization unless this is set explicitly
        if re.match("(vit|maxvit)_", name) and size:
            if name.startswith("maxvit"):
                keywords["input_size"] = (size, size)
            else:
                keywords["image_size"] = size
        try:
            network = models.get_model(name, weights=None, **keywords)
            if hasattr(network, "transform_input"):
                network.transform_input = True  # the pretrained weights expect other means (Inception, GoogLeNet)
            return network
        except (ValueError, AssertionError) as error:
            raise BackboneError(f"{full}: cannot be built for images of {size} px ({error}).") from error


def _timm(name: str, keywords: dict[str, Any], size: int) -> nn.Module:
    import timm

    config = timm.get_pretrained_cfg(name.partition(".")[0])
    native = config.input_size[-1] if config is not None and config.fixed_input_size and config.input_size else 0
    if size and native and size != native:
        keywords["img_size"] = size
    log = logging.getLogger("timm.models._builder")  # warns about every network without a pretrained configuration
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=False, **keywords)
    except NotImplementedError:  # handled in `build`
        raise
    except Exception as error:  # size checks of the families raise exceptions of any type
        if "img_size" in keywords:
            raise BackboneError(f"timm/{name}: cannot be built for images of {size} px ({error}).") from error
        if defined_outside(name):
            raise BackboneError(
                f"timm/{name}: the function that you have registered fails ({error}); it is called with pretrained "
                f"and {', '.join(keywords)}."
            ) from error
        raise
    finally:
        log.setLevel(level)
