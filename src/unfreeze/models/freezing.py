"""Freezing by stage, learning rates by layer, and optimizer parameter groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import RecipeError, did_you_mean, join_names
from unfreeze.models.stages import NetworkLayout

if TYPE_CHECKING:
    from torch import nn


def parse_trainable(wish: str, names: tuple[str, ...]) -> int:
    """Parse `train.trainable`.

    Args:
        wish: 'all'; 'head' or 'none'; 'last:N'; or 'NAME-', which means from the stage of that name on.
        names: Names of the stages, stem first.

    Returns:
        Number of the first stage that trains; len(names) if only the head trains.

    Raises:
        RecipeError: If the value is invalid; the message lists the stages.
    """
    if wish == "all":
        return 0
    if wish in ("head", "none"):
        return len(names)
    kind, _, number = wish.partition(":")
    if kind == "last" and number.isascii() and number.isdigit() and 1 <= int(number) <= len(names):
        return len(names) - int(number)
    if wish.endswith("-") and wish[:-1] in names:
        return names.index(wish[:-1])
    raise RecipeError(
        f"train.trainable = '{wish}': write all, head, none, last:N or NAME- with a stage's name."
        f"{did_you_mean(wish.removesuffix('-'), names)} The stages are {join_names(names, 30)}."
    )


def freeze_before(network: nn.Module, anatomy: NetworkLayout, first: int) -> None:
    """Freeze the stages before `first`; train the other stages and the classifier. Call before each epoch.

    Frozen stages have no gradients, and their modules are in eval mode: BatchNorm statistics are fixed, dropout and
    stochastic depth are off. Everything else is in training mode.
    """
    frozen = {name for stage in anatomy.stages[:first] for name in stage.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    network.train()
    modules = dict(network.named_modules())
    for stage in anatomy.stages[:first]:
        for name in stage.modules:
            if name in modules:  # a split network has no front
                modules[name].training = False


@dataclass(frozen=True)
class LrScaling:
    """Learning rates relative to that of the last stage.

    Attributes:
        layer_decay: Ratio of the learning rate of a stage to that of the next stage.
        head: Relative learning rate of parameters outside of the stages (heads); 0 if they do not train.
        weight_decay: Weight decay of matrices and kernels.
        relative: Multiply the learning rate of each tensor by the root mean square of its values, so that all tensors
            change by the same fraction (Shazeer and Stern 2018, arXiv 1804.04235, section 8).
    """

    layer_decay: float
    head: float
    weight_decay: float
    relative: bool = False

    def scale(self, parameter: nn.Parameter, share: float) -> float:
        """Relative learning rate of a tensor, where `share` is the relative learning rate of its stage."""
        size = max(float(parameter.detach().square().mean().sqrt()), _LEAST_SIZE) if self.relative else 1.0
        return share * size


# Lower bound, so that tensors initialized near zero, such as biases, can change.
_LEAST_SIZE = 1e-3


def first_stage_at_last_resolution(anatomy: NetworkLayout) -> int:
    """Number of the first stage at the smallest feature map, where the strategy `partial` starts to train.

    If that stage lies in the first half, as in a vision transformer, where all maps have the same size, the first stage
    of the last quarter is returned instead. The result is at least 1.
    """
    stages = anatomy.stages
    sides = [stage.side for stage in stages if stage.layout != "NC"]
    first = (
        next((i for i, stage in enumerate(stages) if stage.layout != "NC" and stage.side == sides[-1]), 0)
        if sides
        else 0
    )
    if first <= len(stages) // 2:
        first = max(first, len(stages) - max(1, len(stages) // 4))
    return max(1, min(first, len(stages) - 1))


def parameter_groups(
    network: nn.Module, anatomy: NetworkLayout, rates: LrScaling, first: int = 0
) -> list[dict[str, Any]]:
    """Optimizer parameter groups of the stages from `first` on and of the parameters outside of the stages (heads).

    Layer-wise learning rate decay follows Howard and Ruder 2018 (arXiv 1801.06146).

    Returns:
        Groups with `params`, `names`, `stage` (len(stages) for heads), `scale` of the learning rate, and
        `weight_decay`, which is 0 for norms, biases and other vectors. Tensors whose scale is 0 are left out.
    """
    last = len(anatomy.stages)
    place = {name: number for number, stage in enumerate(anatomy.stages) for name in stage.parameters}
    groups: dict[tuple[int, bool, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        stage = place.get(name, last)
        if stage < first:
            continue
        decays = parameter.ndim > 1
        scale = rates.scale(parameter, rates.head if stage == last else rates.layer_decay ** (last - 1 - stage))
        if not scale:
            continue
        group = groups.setdefault(
            (stage, decays, scale),
            {
                "params": [],
                "names": [],
                "stage": stage,
                "scale": scale,
                "weight_decay": rates.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
