"""The stages of a network in order, found by running it once on shapes alone; its classifier and auxiliary heads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from unfreeze.core.errors import BackboneError
from unfreeze.model.families import AUXILIARY, CUT_AT_POOLING, FINAL_RELU, NUMBERED, TIMM, TORCHVISION, Listed, Pattern
from unfreeze.model.traces import Call, calls, check_training, main_tensor, wider

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Anatomy", "Stage", "anatomy", "classifier_of", "main_tensor"]

# A normalisation after the last block has a few parameters: it belongs to that block.
_SMALL = 0.02


@dataclass(frozen=True)
class Stage:
    """A part of the trunk. parameters, modules: names as in `named_parameters` and `named_modules`.

    output: the module whose output is the stage's, of `channels` channels. layout: 'NCHW', 'NHWC', 'NLC' (tokens) or
    'NC' (pooled already, as the hidden layers of VGG's classifier). side: height of the map. prefix: tokens that stand
    before the map's in 'NLC', of which the first `classes` are class tokens. relu: a functional ReLU follows.
    order: of the map's tokens, row by row, where the network keeps them in another one.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    output: str
    channels: int
    layout: str
    side: int
    prefix: int = 0
    classes: int = 0
    relu: bool = False
    order: tuple[int, ...] = field(default=(), repr=False)

    def width(self, grid: int) -> int:
        """Number of features when the map is averaged over grid x grid cells; class tokens stand beside."""
        return self.channels * (1 if self.layout == "NC" else grid**2 + self.classes)


@dataclass(frozen=True)
class Anatomy:
    """Stages, stem first. classifier: names of the parameters that depend on the number of classes.

    auxiliary: module name -> weight of its loss, for the auxiliary heads that the network has.
    """

    stages: tuple[Stage, ...]
    classifier: tuple[str, ...]
    auxiliary: dict[str, float]


def anatomy(full: str, network: nn.Module, classifier: Iterable[str], size: int) -> Anatomy:
    """Finds the stages of a network named `full` by a forward pass of one blank photo of `size` px.

    classifier: names of the parameters whose shape depends on the number of classes. Runs on the network's own device,
    best on torch's meta device, where it costs milliseconds. Raises BackboneError if there are no stages in
    order or the network cannot take photos of that size.
    """
    heads = tuple(classifier)
    auxiliary = {name: AUXILIARY[name] for name, _ in network.named_children() if name in AUXILIARY}
    trunk = [
        name for name, _ in network.named_parameters() if name not in heads and name.partition(".")[0] not in auxiliary
    ]
    groups = _groups(full, network, trunk)
    traced = calls(full, network, size)
    if auxiliary and next(network.parameters()).is_meta:
        check_training(full, network, size)
    stages = _stages(network, groups, traced, full)
    if not stages:
        raise BackboneError(f"{full}: no stages in order were found; it cannot be used as a backbone here.")
    stages = _settled(network, stages, {call.module: call.shape for call in traced}, size)
    return Anatomy(tuple(stages), heads, auxiliary)


def classifier_of(one: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that differ in shape between two builds for different numbers of classes."""
    shapes = {name: p.shape for name, p in other.named_parameters()}
    return tuple(name for name, p in one.named_parameters() if shapes.get(name) != p.shape)


def _groups(full: str, network: nn.Module, trunk: list[str]) -> list[list[str]]:
    """The trunk's parameters, stage by stage, in the order of the network."""
    library, kind = full.partition("/")[0], type(network).__name__
    if library == "torchvision" and kind in CUT_AT_POOLING:
        numbers = _cut_at_pooling(network, trunk)
    elif library == "timm" and kind in TIMM:
        numbers = _by_pattern(full, TIMM[kind], trunk)
    elif library == "timm" and hasattr(network, "group_matcher"):
        if kind == "VGG":  # timm counts each layer; its stages end at the pooling layers like torchvision's
            numbers = _cut_at_pooling(network, trunk)
        else:
            numbers = _by_matcher(network) or _by_pattern(full, NUMBERED, trunk)
    else:
        numbers = _by_pattern(full, TORCHVISION.get(kind, NUMBERED), trunk)
    groups: dict[float, list[str]] = {}
    for name in trunk:
        groups.setdefault(numbers[name], []).append(name)
    return [groups[number] for number in sorted(groups)]


def _by_matcher(network: nn.Module) -> dict[str, float] | None:
    """Numbers by timm's own word, or None where the family has given none."""
    from timm.models import group_parameters

    try:
        matcher = network.group_matcher(coarse=True)
    except AssertionError:
        return None
    for part, patterns in matcher.items() if isinstance(matcher, dict) else ():
        if isinstance(patterns, tuple | list):
            # timm puts a last convolution into the stage before it; here it has an output of its own to read, and
            # what is only a norm goes back by `_is_norm`.
            matcher[part] = [(p, (99998,) if suffix == (99999,) else suffix) for p, suffix in patterns]
    found = group_parameters(network, matcher)
    return {name: float(number) for number, names in found.items() for name in names}


def _by_pattern(full: str, pattern: Pattern | Listed, trunk: list[str]) -> dict[str, float]:
    known = {name: pattern.number(name) for name in trunk}
    if all(n is None for n in known.values()):
        raise BackboneError(f"{full}: is not of a family whose stages are known here.")
    return {name: float("inf") if n is None else float(n) for name, n in known.items()}


def _cut_at_pooling(network: nn.Module, trunk: list[str]) -> dict[str, float]:
    """Numbers by the pooling layers of `features` that come before; hidden layers of the classifier are last."""
    pools = [int(name) for name, m in network.features.named_children() if "Pool" in type(m).__name__]
    numbers = {}
    for name in trunk:
        found = re.match(r"features\.(\d+)\.", name)
        numbers[name] = float(sum(p < int(found[1]) for p in pools)) if found else float("inf")
    return numbers


def _stages(network: nn.Module, groups: list[list[str]], traced: list[Call], full: str) -> list[Stage]:
    place = {name: number for number, names in enumerate(groups) for name in names}
    inside: dict[str, set[int | None]] = {}  # the stages that a module's parameters belong to; None: classifier, aux
    for name, _ in network.named_parameters():
        parts = name.split(".")
        for end in range(1, len(parts)):
            inside.setdefault(".".join(parts[:end]), set()).add(place.get(name))
    owner: dict[str, int] = {}
    for module, found in inside.items():
        if len(found) == 1 and (only := next(iter(found))) is not None:
            owner[module] = only
    # Layers without parameters (activation, pooling, dropout) belong to the stage that they follow.
    no_output, free = _after_the_map(network, traced, inside, owner)
    current: int | None = None
    for call in sorted(traced, key=lambda c: c.entered):
        if call.module in inside:
            current = None if inside[call.module] == {None} else owner.get(call.module, current)
        elif call.module not in owner:
            above = next((a for a in _ancestors(call.module) if a in owner), None)
            if above is not None:
                owner[call.module] = owner[above]
            elif current is not None and call.module not in free:
                owner[call.module] = current
    stages: list[Stage] = []
    names: list[str] = []
    modules: tuple[str, ...] = ()
    for number, group in enumerate(groups):
        # A group without an output of its own (parameters that stand beside) belongs to the one that follows.
        names, modules = [*names, *group], (*modules, *(m for m, n in owner.items() if n == number))
        own = set(modules) - no_output
        last = [c for c in traced if c.module in own and len(c.shape) in (1, 2, 3) and not _is_table(network, c.module)]
        # What answers after the next stage began (a part that two stages share) is not where this one ends.
        until = min((c.first for c in traced if c.module in inside and owner.get(c.module, -1) > number), default=None)
        last = [c for c in last if until is None or c.left < until] or last
        if not last:
            continue
        name = _name(modules, traced) if stages else "stem"
        stage = _stage(network, name, names, modules, last[-1], full)
        names, modules = [], ()
        before = stages[-1] if stages else None
        if before and _is_norm(network, stage, before):
            flat = stage.layout == "NC" or (stage.side == 1 and before.side > 1)
            whole = before if flat else stage  # a norm after the pooling: the map before it is what can be read
            both = before.parameters + stage.parameters, before.modules + stage.modules
            stage = replace(whole, name=before.name, parameters=both[0], modules=both[1])
            stages.pop()
        stages.append(stage)
    if names and stages:
        whole = stages[-1]
        stages[-1] = replace(whole, parameters=(*whole.parameters, *names), modules=(*whole.modules, *modules))
    if full.partition("/")[0] + "/" + type(network).__name__ in FINAL_RELU:
        stages[-1] = replace(stages[-1], relu=True)
    return stages


def _ancestors(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _after_the_map(
    network: nn.Module, traced: list[Call], inside: dict[str, set[int | None]], owner: dict[str, int]
) -> tuple[set[str], set[str]]:
    """Modules without parameters after the last map: those that are no stage's output, and of them the classifier's.

    The first are pooling and flattening, before any hidden layer of the classifier, and what follows the last layer of
    the trunk, but for that layer's activation. The second, such as dropout, belong to no stage.
    """
    trunk = [n for n, c in enumerate(traced) if c.module in owner and len(c.shape) >= 2 and _side(c.shape) > 1]
    if not trunk:
        return set(), set()
    hidden = [n for n, c in enumerate(traced) if c.module in owner and n > trunk[-1]]
    no_output: set[str] = set()
    free: set[str] = set()
    collapsed = False
    for number, call in enumerate(traced[trunk[-1] + 1 :], trunk[-1] + 1):
        pools = "pool" in call.module.lower() or "flatten" in call.module.lower()
        collapsed = collapsed or _side(call.shape) == 1 or pools
        if call.module in inside or not collapsed:
            continue
        if (
            hidden
            and not pools
            and number > hidden[0]
            and (number < hidden[-1] or _is_activation(network, call.module))
        ):
            continue
        no_output.add(call.module)
        if not hidden or number > hidden[-1]:
            free.add(call.module)
    return no_output, free


def _is_activation(network: nn.Module, module: str) -> bool:
    home = type(network.get_submodule(module)).__module__.rpartition(".")[2]
    return home.startswith("activation")


def _side(shape: tuple[int, ...]) -> int:
    """Side of the map of one photo: of CHW or HWC the equal ones, of tokens the root of their number."""
    if len(shape) == 3:
        return shape[1] if shape[1] == shape[2] else shape[0]
    return int(shape[0] ** 0.5) if len(shape) == 2 else 1


def _stage(network: nn.Module, name: str, names: list[str], modules: tuple[str, ...], call: Call, full: str) -> Stage:
    shape = call.shape
    stage = Stage(name, tuple(names), modules, call.module, shape[0], "NC", 1)
    if len(shape) == 1:
        return stage
    if len(shape) == 3:
        last = shape[0] == shape[1] and (shape[1] != shape[2] or getattr(network, "output_fmt", "") == "NHWC")
        channels, side = (shape[2], shape[0]) if last else (shape[0], shape[1])
        return replace(stage, channels=channels, layout="NHWC" if last else "NCHW", side=side)
    tokens, channels = shape
    side = int(tokens**0.5)
    prefix = tokens - side**2
    registers = int(getattr(network, "num_reg_tokens", 0) or 0)
    if prefix > 16:
        raise BackboneError(f"{full}: the {tokens} tokens of its stage '{name}' lie on no square grid.")
    return replace(
        stage,
        channels=channels,
        layout="NLC",
        side=side,
        prefix=prefix,
        classes=max(prefix - registers, 0),
        order=_token_order(network, call.module, tokens),
    )


def _token_order(network: nn.Module, output: str, tokens: int) -> tuple[int, ...]:
    """Where each token of the map lies, for networks that unroll it into windows (Hiera, arXiv 2306.00989)."""
    reroll = getattr(network, "reroll", None)
    if reroll is None:
        return ()
    import torch

    block = re.match(r"blocks\.(\d+)", output)
    numbers = torch.arange(tokens).view(1, tokens, 1)
    return tuple(int(n) for n in reroll(numbers, int(block[1]) if block else 0).flatten())


def _settled(network: nn.Module, stages: list[Stage], shapes: dict[str, tuple[int, ...]], size: int) -> list[Stage]:
    """The stages with what one square photo cannot tell, told by one twice as wide.

    A map of one cell: pooled, or of a small photo? A cube: which of its axes are the map's?
    """
    alone = [s for s in stages if s.layout != "NC" and s.side == 1]
    cubes = [s for s in stages if s.layout in ("NCHW", "NHWC") and s.side == s.channels == max(shapes[s.output])]
    if not alone and not cubes:
        return stages
    wide = wider(network, size)
    settled = []
    for stage in stages:
        shape = wide.get(stage.output, ())
        if stage in alone and shape == shapes[stage.output]:
            stage = replace(stage, channels=prod(shape), layout="NC", prefix=0, classes=0)
        elif stage in cubes and shape:
            stage = replace(stage, layout="NCHW" if shape[1] == shapes[stage.output][1] else "NHWC")
        settled.append(stage)
    return settled


def _is_table(network: nn.Module, module: str) -> bool:
    """Whether this answers angles of positions, not a map."""
    kind = type(network.get_submodule(module)).__name__.lower()
    return "rotary" in kind or "rope" in kind


def _is_norm(network: nn.Module, stage: Stage, before: Stage) -> bool:
    """Whether this is only a normalisation of what the stage before puts out."""
    count = {n: p.numel() for n, p in network.named_parameters()}
    own, earlier = (sum(count[n] for n in s.parameters) for s in (stage, before))
    return stage.channels == before.channels and own <= _SMALL * earlier


def _name(modules: tuple[str, ...], traced: list[Call]) -> str:
    """The first of the stage's outermost modules in the order of the network: `layer3`, `blocks.5`, `conv_head`."""
    own = set(modules)
    outermost = {m for m in own if not any(above in own for above in _ancestors(m))}
    first = min((c for c in traced if c.module in outermost), key=lambda c: c.entered, default=None)
    return first.module if first else modules[0]
