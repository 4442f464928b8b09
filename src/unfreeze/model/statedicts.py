"""State dicts from files: read without executing anything, held against a network, loaded where they fit."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError, listed
from unfreeze.model.architectures import build
from unfreeze.model.families import AUXILIARY
from unfreeze.model.stages import classifier_of
from unfreeze.model.translation import Tensors, translated

if TYPE_CHECKING:
    from torch import nn

LARGEST = 32 << 30  # bytes of a weights file: the largest public networks have 27 GB
_MOST = 100_000  # tensors
# Under which key a checkpoint keeps its state dict, an average of the weights first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "network", "net", "teacher")
# torchvision's Inception networks were trained on pixels in -1..1; with this they take them normalised like the others.
_TRANSFORM_INPUT = ("torchvision/inception_v3", "torchvision/googlenet")


@dataclass(frozen=True)
class Fit:
    """How a weights file fits a network; names are the network's, of `unexpected` the file's.

    missing, misshaped: of the trunk, which must be none. untrained: tensors of the classifier and of auxiliary heads
    that the file has not, or has for another number of classes. unexpected: of the file, not used. loaded: how many
    tensors are used. classes: of the file's classifier, 0 if it has none.
    """

    missing: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    loaded: int = 0
    classes: int = 0

    @property
    def whole(self) -> bool:
        """Whether every tensor of the trunk is there in its shape."""
        return not self.missing and not self.misshaped

    def __str__(self) -> str:
        """One sentence for people."""
        parts = [f"{self.loaded:,} tensors fit"]
        parts += [f"missing: {listed(self.missing, 3)}"] if self.missing else []
        parts += [f"of another shape: {listed(self.misshaped, 3)}"] if self.misshaped else []
        parts += [f"not used: {listed(self.unexpected, 3)}"] if self.unexpected else []
        own = f"its own is for {self.classes:,} classes" if self.classes else "it has none"
        parts += [f"new and untrained: {listed(self.untrained, 3)} (classifier: {own})"] if self.untrained else []
        return "; ".join(parts) + "."


def load(path: Path, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, Fit]:
    """The network `full` with the file's tensors, on the CPU, and how they fit.

    classes: of the classifier; 0: as many as the file's; it is new and untrained (torch's global generator) if the file
    has another number. size: side of the input, pixels. auxiliary: with auxiliary heads.
    Raises BackboneError if the file cannot be read, or lacks a tensor of the trunk or has it in another shape.
    """
    found, own = _translated(path, full, size, auxiliary)
    headless = 0 if full.startswith("timm/") else 1000  # torchvision's need a classifier to be built
    network = build(full, classes or own or headless, auxiliary=auxiliary, size=size)
    taken, fit = _held(network, found, tuple(_heads(full, size, auxiliary)), own)
    if not fit.whole:
        raise BackboneError(
            f"{path}: does not fit {full}: {str(fit).rstrip('.')}. Name the network that the file is of; "
            f"`unfreeze inspect {full} --weights FILE` lists all."
        )
    _check_values(path, taken)
    whole = network.state_dict()  # with the versions of its modules, which some ask for
    whole.update(taken)
    network.load_state_dict(whole)
    if full in _TRANSFORM_INPUT:
        network.transform_input = True
    return network, fit


def held_against(path: Path, full: str, size: int, auxiliary: bool = False) -> Fit:
    """How the file fits the network, for as many classes as the file has; loads nothing. BackboneError: unreadable."""
    found, own = _translated(path, full, size, auxiliary)
    network = build(full, own or 1000, auxiliary=auxiliary, size=size, meta=True)
    return _held(network, found, tuple(_heads(full, size, auxiliary)), own)[1]


def read_tensors(path: Path) -> Tensors:
    """The state dict of a .safetensors file or of one that torch has saved, by name, on the CPU.

    Found also under `state_dict`, `model` and their like. Nothing in the file is executed. BackboneError says what is
    wrong: no file, empty, damaged, a whole pickled network, no tensors, more than it can honestly hold.
    """
    length = file_length(path)
    held = _safetensors(path) if path.suffix.lower() == ".safetensors" else _torch(path, length)
    return _honest(path, _innermost(path, held), length)


def file_length(path: Path) -> int:
    """Bytes of a weights file. BackboneError: none there, a folder, empty, or larger than LARGEST."""
    if path.is_dir():
        raise BackboneError(f"{path}: is a folder; name the weights file in it.")
    try:
        length = path.stat().st_size
    except OSError:
        raise BackboneError(f"{path}: no such weights file.") from None
    if not path.is_file():
        raise BackboneError(f"{path}: is no ordinary file; name a weights file.")
    if not length:
        raise BackboneError(f"{path}: is empty; copy the weights file again.")
    if length > LARGEST:
        raise BackboneError(f"{path}: has {length >> 30} GiB, and weights files up to {LARGEST >> 30} GiB are read.")
    return length


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{path}: no whole safetensors file ({_first_line(error)}); copy it again.") from None


def _torch(path: Path, length: int) -> Any:
    import torch

    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as file:
        # torch stores and does not compress: a small file must not become a large one.
        if sum(entry.file_size for entry in file.infolist()) > length:
            raise BackboneError(f"{path}: its parts claim more bytes than the file has; not saved by torch.")
    try:
        # The options that timm's checkpoints carry may be there; what torch thinks of the pickle is not for the user.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if name := re.search(r"\bGLOBAL ([\w.]+)", str(error)):
            raise BackboneError(
                f"{path}: holds more than tensors ({name[1]}), which is not loaded, for it could run code; "
                "save model.state_dict() alone, or as .safetensors."
            ) from None
        raise BackboneError(f"{path}: is no weights file saved by torch, or damaged; copy it again.") from None
    except Exception:  # EOFError, RuntimeError, UnicodeDecodeError, KeyError ...: bytes can be wrong in any way
        raise BackboneError(f"{path}: is no weights file saved by torch, or damaged; copy it again.") from None


def _innermost(path: Path, held: Any) -> Mapping[str, Any]:
    """The mapping of names to tensors: `held` itself or what lies in it under a usual key."""
    import torch

    for _ in range(3):
        if not isinstance(held, Mapping):
            raise BackboneError(f"{path}: holds a {type(held).__name__}, not tensors by name; save model.state_dict().")
        if any(isinstance(value, torch.Tensor) for value in held.values()):
            return held
        inner = next((held[key] for key in _NESTED if isinstance(held.get(key), Mapping)), None)
        if inner is None:
            break
        held = inner
    keys = listed(map(str, held), 4) if isinstance(held, Mapping) and held else "nothing"
    raise BackboneError(f"{path}: no tensors by name in it (it holds {keys}); save model.state_dict().")


def _honest(path: Path, held: Mapping[str, Any], length: int) -> Tensors:
    """Only the tensors. A tensor that claims more than the file holds would fill the memory once it is touched."""
    import torch

    tensors = {str(name): t for name, t in held.items() if isinstance(t, torch.Tensor)}
    plain = all(t.layout == torch.strided and not t.is_quantized and t.device.type == "cpu" for t in tensors.values())
    if not plain:
        raise BackboneError(f"{path}: holds sparse, quantised or empty tensors; save the network's float weights.")
    # Tied weights are stored once and named twice.
    if len(tensors) > _MOST or sum(t.numel() * t.element_size() for t in tensors.values()) > 4 * length:
        raise BackboneError(f"{path}: its tensors claim more than the file holds; not a state dict to be trusted.")
    return {name: t.detach() for name, t in tensors.items()}


def _check_values(path: Path, taken: Tensors) -> None:
    import torch

    for name, tensor in taken.items():  # a sum is finite only if all are, and takes no memory
        if tensor.is_complex() or (tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite()):
            raise BackboneError(f"{path}: {name} holds values that are no finite numbers; the file is damaged.")


@lru_cache(maxsize=32)
def _heads(full: str, size: int, auxiliary: bool) -> dict[str, int]:
    """Tensors whose shape depends on the number of classes -> the dimension that is that number."""
    one, other = (build(full, n, auxiliary=auxiliary, size=size, meta=True) for n in (11, 7))
    shapes = {name: tuple(p.shape) for name, p in one.named_parameters()}
    return {name: shapes[name].index(11) if 11 in shapes[name] else 0 for name in classifier_of(one, other)}


def _translated(path: Path, full: str, size: int, auxiliary: bool) -> tuple[Tensors, int]:
    """The file's tensors under the network's names, and for how many classes they are (0: no classifier)."""
    network = build(full, 11, auxiliary=auxiliary, size=size, meta=True)
    found = translated(full, network, read_tensors(path))
    heads = {name: at for name, at in _heads(full, size, auxiliary).items() if name.partition(".")[0] not in AUXILIARY}
    own = [found[name].shape[at] for name, at in heads.items() if name in found and found[name].ndim > at]
    return found, own[0] if own else 0


def _held(network: nn.Module, found: Tensors, heads: tuple[str, ...], classes: int) -> tuple[Tensors, Fit]:
    """What of `found` the network takes, and the account of it."""
    own = network.state_dict()
    spare = {name for name in own if name in heads or name.partition(".")[0] in AUXILIARY}
    taken = {name: t for name, t in found.items() if name in own and own[name].shape == t.shape}
    # Files older than PyTorch 0.4.1 have no count of batches, which nothing but an averaging BatchNorm reads.
    absent = [n for n in own if n not in taken and not n.endswith(".num_batches_tracked")]
    return taken, Fit(
        missing=tuple(n for n in absent if n not in found and n not in spare),
        misshaped=tuple(
            f"{n} ({_shape(found[n])} for {_shape(own[n])})" for n in absent if n in found and n not in spare
        )
        + tuple(_deeper(network, found, heads)),
        unexpected=tuple(n for n in found if n not in own and n not in heads and n.partition(".")[0] not in AUXILIARY),
        untrained=tuple(n for n in absent if n in spare),
        loaded=len(taken),
        classes=classes,
    )


def _deeper(network: nn.Module, found: Tensors, heads: tuple[str, ...]) -> list[str]:
    """Blocks that the file has and the network has not, beside numbered ones that both have: of a deeper network."""
    modules = {name for name, _ in network.named_modules()}
    families = {re.sub(r"\d+$", "#", name) for name in modules if name[-1:].isdigit()}
    families -= {re.sub(r"\d+$", "#", name.rpartition(".")[0]) for name in heads}  # `classifier.6` may be anyone's
    more: dict[str, None] = {}
    for name in found:
        parts = name.split(".")
        for end in range(1, len(parts)):
            module = ".".join(parts[:end])
            if module not in modules:
                if module[-1:].isdigit() and re.sub(r"\d+$", "#", module) in families:
                    more[f"{module} (a block more than the network has)"] = None
                break
    return list(more)


def _shape(tensor: Any) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
