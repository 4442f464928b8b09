"""Feature pooling: the stages that a probe reads, averaged over a grid inside the graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import RecipeError, join_names
from unfreeze.models.stages import Stage
from unfreeze.models.tracing import main_tensor

if TYPE_CHECKING:
    import torch
    from torch import nn

# Default of `probe.stages`: the last AUTO_STAGES stages, or all stages if the backbone has fewer.
AUTO, AUTO_STAGES = "auto", 5


@dataclass(frozen=True)
class FeatureSpec:
    """Stages that are read and the pooling grid.

    Attributes:
        last: Number of stages, counted from the end.
        grid: Each map is averaged over grid x grid cells.
    """

    last: int = 1
    grid: int = 1

    @classmethod
    def parse(cls, stages: str, grid: int) -> FeatureSpec:
        """Parse a recipe's `probe.stages` and `probe.pool_size` without knowledge of the backbone; 'auto' gives
        AUTO_STAGES.

        Raises:
            RecipeError: If `stages` is not 'auto', 'last' or 'last:N'.
        """
        if stages == AUTO:
            return cls(AUTO_STAGES, grid)
        match = re.fullmatch(r"last(?::0*([1-9]\d{0,3}))?", stages)
        if not match:
            raise RecipeError(f"probe.stages = '{stages}': write auto, last, or last:N with N of at least 1.")
        return cls(int(match[1] or 1), grid)

    @classmethod
    def of(cls, stages: str, grid: int, backbone: str, names: Sequence[str]) -> FeatureSpec:
        """Parse `probe.stages` and `probe.pool_size` for a backbone; 'auto' gives at most the number of its stages.

        Args:
            stages: 'auto', 'last' or 'last:N'.
            grid: Side of the pooling grid.
            backbone: Name of the backbone, for the message.
            names: Names of its stages.

        Raises:
            RecipeError: If the value is invalid or asks for more stages than there are; the message lists the stages.
        """
        taps = cls.parse(stages, grid)
        if taps.last <= len(names):
            return taps
        if stages == AUTO:
            return cls(len(names), grid)
        raise RecipeError(
            f"probe.stages = '{stages}': {backbone} has {len(names)} stages, {join_names(names, 12)}; write "
            f"last:{len(names)}, or auto for up to {AUTO_STAGES}."
        )


def pool_stage(output: Any, stage: Stage, grid: int) -> torch.Tensor:
    """Pool the output of a stage over a grid.

    Maps of any layout are averaged over grid x grid cells. Tokens are first arranged on their spatial grid.

    Args:
        output: Output of the stage's module for a batch of B images.
        stage: The stage.
        grid: Side of the pooling grid.

    Returns:
        (B, stage.width(grid)), ordered by channel, then row, then column; class tokens last.
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


def feature_module(network: nn.Module, stages: tuple[Stage, ...], taps: FeatureSpec) -> nn.Module:
    """Module (B, 3, S, S) float32 -> (B, D) float32: the pooled outputs of the last stages, concatenated.

    Args:
        network: The network; the attribute `network` of the result.
        stages: All stages of the network; the last `taps.last` of them are read.
        taps: Number of stages and pooling grid.

    Raises:
        RecipeError: If the network has fewer stages.
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
            blocks = [pool_stage(self.seen[stage.name], stage, taps.grid) for stage in read]
            self.seen.clear()
            return torch.cat(blocks, 1)

    return PooledBlocks().eval()
