"""The stages of a network in order, and the blocks that a probe reads from them, pooled inside the graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import BackboneError, RecipeError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Taps:
    """Which stages are read, counted from the end, and the pooling grid laid over each."""

    last: int = 1
    grid: int = 1

    @classmethod
    def parse(cls, stages: str, grid: int) -> Taps:
        """From a recipe's `probe.stages` ('last' or 'last:N') and `probe.grid`. RecipeError if it is neither."""
        match = re.fullmatch(r"last(?::0*([1-9]\d{0,3}))?", stages)
        if not match:
            raise RecipeError(f"probe.stages = '{stages}': write 'last' or 'last:N' with N of at least 1.")
        return cls(int(match[1] or 1), grid)


def stage_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of each stage, stem first; a stage's output is its module's output.

    Raises BackboneError for a family that is not known here.
    """
    parts = dict(model.named_children())
    if {"conv_stem", "bn1", "blocks", "conv_head", "bn2"} <= parts.keys():  # timm's EfficientNet family
        blocks = [(f"blocks.{i}", block) for i, block in enumerate(parts["blocks"].children())]
        return [("stem", parts["bn1"]), *blocks, ("head", parts["bn2"])]
    raise BackboneError(f"{type(model).__name__}: its stages are not known to this version.")


def pooled_blocks(model: nn.Module, taps: Taps) -> nn.Module:
    """A module (B, 3, S, S) float32 -> (B, D) float32: each tapped stage averaged over grid x grid cells, side by side.

    Within a block the order is channel, then row, then column of the grid. The model itself is its `network`.
    """
    import torch
    from torch import nn

    stages = stage_modules(model)
    if taps.last > len(stages):
        raise RecipeError(f"probe.stages = 'last:{taps.last}': this backbone has {len(stages)} stages.")

    class PooledBlocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model
            self.seen: list[Any] = []
            for _, module in stages[-taps.last :]:
                module.register_forward_hook(lambda _m, _i, output: self.seen.append(output))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen.clear()
            self.network.forward_features(images)
            pooled = [nn.functional.adaptive_avg_pool2d(block, taps.grid).flatten(1) for block in self.seen]
            self.seen.clear()
            return torch.cat(pooled, 1)

    return PooledBlocks().eval()


def block_widths(model: nn.Module, taps: Taps, size: int) -> list[tuple[str, int]]:
    """Name and number of features of each tapped block, in the order of `pooled_blocks`' columns."""
    import torch

    widths: list[tuple[str, int]] = []
    hooks = []
    for name, module in stage_modules(model)[-taps.last :]:
        hooks.append(
            module.register_forward_hook(lambda _m, _i, o, n=name: widths.append((n, o.shape[1] * taps.grid**2)))
        )
    with torch.inference_mode():
        model.forward_features(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return widths
