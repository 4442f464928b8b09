"""Freeze and unfreeze by stage: which parameters train, which layers stay as they are, and at what rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import RecipeError, listed, nearest
from unfreeze.model.stages import Anatomy

if TYPE_CHECKING:
    from torch import nn


def first_trained(wish: str, names: tuple[str, ...]) -> int:
    """Number of the first stage that trains; len(names) if only the head does.

    wish: 'all'; 'head' or 'none'; 'last:N'; or 'NAME-', from the stage of that name on. names: the stages', stem
    first. Raises RecipeError, which lists the stages.
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
        f"train.unfreeze = '{wish}': write all, head, none, last:N or NAME- with a stage's name."
        f"{nearest(wish.removesuffix('-'), names)} The stages are {listed(names, 30)}."
    )


def train_from(network: nn.Module, anatomy: Anatomy, first: int) -> None:
    """Freezes the stages before `first` and trains the others and the classifier; to be called before each epoch.

    Frozen means frozen: no gradients, and the stage's BatchNorm statistics, dropout and stochastic depth stay as in
    evaluation. What trains is in training mode.
    """
    frozen = {name for stage in anatomy.stages[:first] for name in stage.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    network.train()
    modules = dict(network.named_modules())
    for stage in anatomy.stages[:first]:
        for name in stage.modules:
            if name in modules:  # a network that was cut has lost its front
                modules[name].training = False


@dataclass(frozen=True)
class Rates:
    """Learning rates relative to that of the last stage. layer_decay: each earlier stage's, times the next one's.

    head: of what belongs to no stage; 0: it does not train. relative: each tensor's rate is also times the root mean
    square of its values, so that all change by the same share (Shazeer and Stern 2018, arXiv 1804.04235, section 8).
    """

    layer_decay: float
    head: float
    weight_decay: float
    relative: bool = False

    def scale(self, parameter: nn.Parameter, share: float) -> float:
        """The multiple of the rate that a tensor trains at. share: its stage's."""
        size = max(float(parameter.detach().square().mean().sqrt()), _LEAST_SIZE) if self.relative else 1.0
        return share * size


# Tensors that start at or near zero (biases) must be able to leave it.
_LEAST_SIZE = 1e-3


def last_maps(anatomy: Anatomy) -> int:
    """Number of the first of the stages that work at the smallest map: where `late` starts to train.

    Where all maps are of one size, as in a vision transformer, the last quarter of the stages. At least 1.
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


def parameter_groups(network: nn.Module, anatomy: Anatomy, rates: Rates, first: int = 0) -> list[dict[str, Any]]:
    """Optimiser groups of the stages from `first` on and of what belongs to no stage (the heads).

    Each has `params`, `names`, `stage` (len(stages) for heads), `scale` of the learning rate, and `weight_decay`, which
    is 0 for norms, biases and other vectors. Layer-wise decay: Howard and Ruder 2018 (arXiv 1801.06146).
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
