"""The blocks that a probe reads from a network's stages, pooled inside the graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import RecipeError
from unfreeze.model.stages import Stage, main_tensor

if TYPE_CHECKING:
    import torch
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


def pooled(output: Any, stage: Stage, grid: int) -> torch.Tensor:
    """A stage's output as features (B, stage.width(grid)): channel, then row, then column; class tokens last.

    Maps are averaged over grid x grid cells, whatever their layout; tokens are laid back on their grid first.
    """
    import torch
    from torch.nn import functional

    block: torch.Tensor = main_tensor(output)
    if stage.relu:
        block = functional.relu(block)
    if stage.layout == "NC":
        return block.flatten(1)
    if stage.layout == "NCHW":
        return functional.adaptive_avg_pool2d(block, grid).flatten(1)
    if stage.layout == "NHWC":
        return functional.adaptive_avg_pool2d(block.permute(0, 3, 1, 2), grid).flatten(1)
    tokens = block[:, stage.prefix :].transpose(1, 2)
    if stage.order:
        tokens = tokens[:, :, list(stage.order)]
    cells = functional.adaptive_avg_pool2d(tokens.unflatten(2, (stage.side, stage.side)), grid).flatten(1)
    return torch.cat([cells, block[:, : stage.classes].flatten(1)], 1) if stage.classes else cells


def pooled_blocks(network: nn.Module, stages: tuple[Stage, ...], taps: Taps) -> nn.Module:
    """A module (B, 3, S, S) float32 -> (B, D) float32: each tapped stage's pooled output, side by side.

    stages: all of the network's; the last `taps.last` are read. The network itself is the module's `network`.
    Raises RecipeError if there are fewer.
    """
    import torch
    from torch import nn

    if taps.last > len(stages):
        raise RecipeError(f"probe.stages = 'last:{taps.last}': this backbone has {len(stages)} stages.")
    read = stages[-taps.last :]

    class PooledBlocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.seen: dict[str, Any] = {}
            for stage in read:
                module = network.get_submodule(stage.output)
                module.register_forward_hook(lambda _m, _i, output, name=stage.name: self.keep(name, output))

        def keep(self, name: str, output: Any) -> None:
            self.seen[name] = output

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen.clear()
            self.network(images)
            blocks = [pooled(self.seen[stage.name], stage, taps.grid) for stage in read]
            self.seen.clear()
            return torch.cat(blocks, 1)

    return PooledBlocks().eval()
