"""Loading of checkpoints: safe reading, key translation and comparison with a network.

State dicts are read from ``.safetensors`` files and from files saved by torch without executing any code
(`read_tensors`). The names and shapes of the tensors are translated to those of the network (`translate_keys`), the
result is compared with the network (`compare_with_model`, `LoadReport`) and loaded if the trunk matches completely
(`load`).
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError, UnfreezeError, join_names
from unfreeze.core.messages import wording
from unfreeze.models.architectures import build
from unfreeze.models.stage_rules import AUXILIARY
from unfreeze.models.stages import classifier_of

if TYPE_CHECKING:
    from torch import Tensor, nn


Tensors = dict[str, "Tensor"]
# Prefixes added to every name by data-parallel training and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# Prefixes from the attribute of a training module that holds the network.
_HOLDERS = ("model.", "net.", "network.", "backbone.", "encoder.", "base_model.")
# torchvision's DenseNet checkpoints date from when module names could contain a dot (`_load_state_dict` in
# densenet.py).
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")
_ONE_AT_A_TIME = threading.Lock()


def translate_keys(full: str, network: nn.Module, tensors: Tensors) -> Tensors:
    """Translate tensors to the names and shapes of a network, as far as its library supports it.

    Prefixes of wrappers are removed, the library's own conversion of original checkpoints is applied, and position
    embeddings are resampled where the library does so. Of the possible prefixes, the one under which most tensors match
    is used.

    Args:
        full: Full name of the network.
        network: The network on the CPU or the meta device; only names, shapes and settings are read.
        tensors: State dict of the file.

    Returns:
        The translated state dict. It may lack tensors of the network, or contain others.
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
    """The tensors under their own names, and without each prefix that most of the names have."""
    for prefix in (*_WRAPPERS, *_WRAPPERS):  # in either order
        tensors = _without(prefix, tensors) or tensors
    found = [tensors]
    for prefix in _HOLDERS:
        inner = _without(prefix, tensors)
        found += [inner] if inner else []
        found += [both for deeper in _HOLDERS if inner and (both := _without(deeper, inner))]
    return found


def _without(prefix: str, tensors: Tensors) -> Tensors | None:
    """Tensors without the prefix, or None if at most half of the names have it. Names without the prefix are kept."""
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
        except Exception:  # the family's conversion fails on names that it does not expect: keep the names as they are
            return tensors
    return {name: tensor for name, tensor in found.items() if hasattr(tensor, "shape")}


def _torchvision(network: nn.Module, tensors: Tensors) -> Tensors:
    tensors = {_DENSE_LAYER.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}
    position, size = tensors.get("encoder.pos_embedding"), getattr(network, "image_size", 0)
    patch = getattr(network, "patch_size", 0)
    if position is not None and position.ndim == 3 and patch and position.shape[1] != (size // patch) ** 2 + 1:
        from torchvision.models.vision_transformer import interpolate_embeddings

        with contextlib.suppress(ValueError):  # not a square grid: reported later as a shape mismatch
            tensors = dict(interpolate_embeddings(size, patch, dict(tensors)))
    return tensors


@cache
def _timm_filter(name: str) -> Callable[[Tensors, Any], Tensors] | None:
    """Checkpoint conversion of a timm family for original checkpoints, or None if it has none.

    timm defines the filter in the factory function of each family and passes it only to its weight loader. The model is
    therefore created once, on the meta device, with the loader replaced by a function that records the filter.
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
            if not caught:  # some read their own weights during construction
                timm.create_model(name, pretrained=True)
        finally:
            _builder.load_pretrained = loader
    change = caught[0] if caught else None
    if change is None:
        return None

    def apply(tensors: Tensors, network: Any) -> Tensors:
        try:
            return dict(change(tensors, network))
        except TypeError:  # older filters take only the tensors
            return dict(change(tensors))

    return apply


LARGEST = 32 << 30  # bytes; the largest public checkpoints have 27 GB
_MOST = 100_000  # tensors
# Keys under which a checkpoint stores its state dict; an exponential moving average of the weights is preferred.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "network", "net", "teacher")
# torchvision's Inception networks were trained on pixels in -1..1; this flag makes them accept the standard
# normalization.
_TRANSFORM_INPUT = ("torchvision/inception_v3", "torchvision/googlenet")


@dataclass(frozen=True)
class LoadReport:
    """Result of comparing a checkpoint with a network.

    All names are those of the network, except in `unexpected`.

    Attributes:
        missing: Tensors of the trunk that the file lacks.
        misshaped: Tensors of the trunk that have another shape in the file, with both shapes.
        unexpected: Tensors of the file that are not used, by their names in the file.
        untrained: Tensors of the classifier and of auxiliary heads that the file lacks, or has for another number of
            classes.
        loaded: Number of tensors that are used.
        classes: Number of classes of the file's classifier, 0 if it has none.
    """

    missing: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    loaded: int = 0
    classes: int = 0

    @property
    def whole(self) -> bool:
        """Whether every tensor of the trunk is present with the right shape."""
        return not self.missing and not self.misshaped

    def __str__(self) -> str:
        """One-sentence summary."""
        parts = [f"{self.loaded:,} tensors fit"]
        parts += [f"missing: {join_names(self.missing, 3)}"] if self.missing else []
        parts += [f"of another shape: {join_names(self.misshaped, 3)}"] if self.misshaped else []
        parts += [f"not used: {join_names(self.unexpected, 3)}"] if self.unexpected else []
        own = f"the file has {self.classes:,} classes" if self.classes else "none in the file"
        parts += [f"new and untrained: {join_names(self.untrained, 3)} (classifier: {own})"] if self.untrained else []
        return "; ".join(parts) + "."


def load(path: Path, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, LoadReport]:
    """Build a network on the CPU and load a checkpoint into it.

    Args:
        path: Checkpoint file.
        full: Full name of the network.
        classes: Number of classes of the classifier; 0 for that of the file. If it differs from the file's, the
            classifier keeps its random initialization (torch's global generator).
        size: Side of the square input in pixels.
        auxiliary: Build the auxiliary heads.

    Returns:
        The network and the report of the comparison.

    Raises:
        BackboneError: If the file cannot be read, contains values that are not finite, or lacks a tensor of the trunk
            or has it in another shape.
    """
    found, own = _translated(path, full, size, auxiliary)
    headless = 0 if full.startswith("timm/") else 1000  # torchvision's models require a classifier
    network = build(full, classes or own or headless, auxiliary=auxiliary, size=size)
    taken, fit = _held(network, found, tuple(_heads(full, size, auxiliary)), own)
    if not fit.whole:
        raise BackboneError(
            f"{path}: does not fit {full}: {str(fit).rstrip('.')}. Name the network that the file is of; "
            f"{wording(f'`unfreeze inspect {full} --weights FILE`', f'uf.inspect({full!r}, weights=FILE)')} lists all."
        )
    check_finite(path, taken)
    whole = network.state_dict()  # includes the version metadata that some modules require
    whole.update(taken)
    network.load_state_dict(whole)
    if full in _TRANSFORM_INPUT:
        network.transform_input = True
    return network, fit


def compare_with_model(path: Path, full: str, size: int, auxiliary: bool = False) -> LoadReport:
    """Compare a checkpoint with a network, built for the file's number of classes, without loading it.

    Raises:
        BackboneError: If the file cannot be read.
    """
    found, own = _translated(path, full, size, auxiliary)
    network = build(full, own or 1000, auxiliary=auxiliary, size=size, meta=True)
    return _held(network, found, tuple(_heads(full, size, auxiliary)), own)[1]


def read_tensors(path: Path) -> Tensors:
    """Read the state dict of a ``.safetensors`` file or of a file saved by torch.

    The state dict may be nested under ``state_dict``, ``model`` and similar keys. No code in the file is executed.

    Args:
        path: Checkpoint file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        BackboneError: If the file does not exist, is empty or damaged, contains a pickled module or no tensors, or if
            its tensors claim more memory than the file can contain.
    """
    length = file_length(path)
    held = _safetensors(path) if path.suffix.lower() == ".safetensors" else _torch(path, length)
    return _honest(path, _innermost(path, held), length)


def file_length(path: Path) -> int:
    """Size of a checkpoint file in bytes.

    Raises:
        BackboneError: If the path does not exist or is not a regular file, or if the file is empty or larger than
            LARGEST.
    """
    if path.is_dir():
        raise BackboneError(f"{path}: is a folder; name the weights file in it.")
    try:
        length = path.stat().st_size
    except OSError:
        raise BackboneError(f"{path}: no such weights file.") from None
    if not path.is_file():
        raise BackboneError(f"{path}: not a regular file; give a weights file.")
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
        raise BackboneError(f"{path}: not a complete safetensors file ({_first_line(error)}); copy it again.") from None


def _torch(path: Path, length: int) -> Any:
    import torch

    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as file:
        # torch does not compress: reject archives that would expand to more than their size.
        if sum(entry.file_size for entry in file.infolist()) > length:
            raise BackboneError(f"{path}: its archive entries are larger than the file; not saved by torch.")
    try:
        # timm's checkpoints contain their training options as a Namespace. Warnings about the pickle are of no use to
        # the user.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if name := re.search(r"\bGLOBAL ([\w.]+)", str(error)):
            raise BackboneError(
                f"{path}: contains objects other than tensors ({name[1]}), which are not loaded because they can "
                "execute code; save only model.state_dict(), or save it as .safetensors."
            ) from None
        raise BackboneError(f"{path}: not a weights file saved by torch, or damaged; copy it again.") from None
    except Exception:  # EOFError, RuntimeError, UnicodeDecodeError, KeyError, ...: damaged data raises anything
        raise BackboneError(f"{path}: not a weights file saved by torch, or damaged; copy it again.") from None


def _innermost(path: Path, held: Any) -> Mapping[str, Any]:
    """Mapping of names to tensors: `held` itself or the mapping nested in it under one of `_NESTED`."""
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
    keys = join_names(map(str, held), 4) if isinstance(held, Mapping) and held else "nothing"
    raise BackboneError(f"{path}: no tensors by name in it (it holds {keys}); save model.state_dict().")


def _honest(path: Path, held: Mapping[str, Any], length: int) -> Tensors:
    """Only the tensors, after checks that they cannot exceed the memory that the file size implies."""
    import torch

    tensors = {str(name): t for name, t in held.items() if isinstance(t, torch.Tensor)}
    plain = all(t.layout == torch.strided and not t.is_quantized and t.device.type == "cpu" for t in tensors.values())
    if not plain:
        raise BackboneError(f"{path}: holds sparse, quantised or empty tensors; save the network's float weights.")
    # Tied weights are stored once under two names, hence the factor.
    if len(tensors) > _MOST or sum(t.numel() * t.element_size() for t in tensors.values()) > 4 * length:
        raise BackboneError(f"{path}: its tensors are larger than the file; not a valid state dict.")
    return {name: t.detach() for name, t in tensors.items()}


def check_finite(path: Path, taken: Tensors, error: type[UnfreezeError] = BackboneError) -> None:
    """Check that tensors contain no NaN or infinity, for which argmax would silently return the first class.

    Args:
        path: File that the tensors were read from, for the message.
        taken: Tensors by name.
        error: Exception type to raise.

    Raises:
        UnfreezeError: Of type `error`, if a tensor is complex or contains a value that is not finite.
    """
    import torch

    for name, tensor in taken.items():  # a sum is finite only if all terms are, and needs no extra memory
        if tensor.is_complex() or (tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite()):
            raise error(f"{path}: {name} holds values that are not finite numbers; the file is damaged.")


@lru_cache(maxsize=32)
def _heads(full: str, size: int, auxiliary: bool) -> dict[str, int]:
    """Parameters whose shape depends on the number of classes, with the axis that has that length."""
    one, other = (build(full, n, auxiliary=auxiliary, size=size, meta=True) for n in (11, 7))
    shapes = {name: tuple(p.shape) for name, p in one.named_parameters()}
    return {name: shapes[name].index(11) if 11 in shapes[name] else 0 for name in classifier_of(one, other)}


def _translated(path: Path, full: str, size: int, auxiliary: bool) -> tuple[Tensors, int]:
    """Tensors of the file under the network's names, and the number of classes of its classifier (0: none)."""
    network = build(full, 11, auxiliary=auxiliary, size=size, meta=True)
    found = translate_keys(full, network, read_tensors(path))
    heads = {name: at for name, at in _heads(full, size, auxiliary).items() if name.partition(".")[0] not in AUXILIARY}
    own = [found[name].shape[at] for name, at in heads.items() if name in found and found[name].ndim > at]
    return found, own[0] if own else 0


def _held(network: nn.Module, found: Tensors, heads: tuple[str, ...], classes: int) -> tuple[Tensors, LoadReport]:
    """Tensors of `found` that the network can load, and the report of the comparison."""
    own = network.state_dict()
    spare = {name for name in own if name in heads or name.partition(".")[0] in AUXILIARY}
    taken = {name: t for name, t in found.items() if name in own and own[name].shape == t.shape}
    # Files older than PyTorch 0.4.1 lack this counter, which only BatchNorm with cumulative averaging uses.
    absent = [n for n in own if n not in taken and not n.endswith(".num_batches_tracked")]
    return taken, LoadReport(
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
    """Numbered blocks that only the file has, in series of blocks that both have: the file is of a deeper network."""
    modules = {name for name, _ in network.named_modules()}
    families = {re.sub(r"\d+$", "#", name) for name in modules if name[-1:].isdigit()}
    families -= {re.sub(r"\d+$", "#", name.rpartition(".")[0]) for name in heads}  # `classifier.6` is generic
    more: dict[str, None] = {}
    for name in found:
        parts = name.split(".")
        for end in range(1, len(parts)):
            module = ".".join(parts[:end])
            if module not in modules:
                if module[-1:].isdigit() and re.sub(r"\d+$", "#", module) in families:
                    more[f"{module} (more blocks than the network has)"] = None
                break
    return list(more)


def _shape(tensor: Any) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
