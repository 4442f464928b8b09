"""Detection of a network's stages, classifier and auxiliary heads.

`find_stages` runs the network once, best on torch's meta device, and assigns its parameters and modules to stages in
the order of execution. For each stage it determines the module whose output can be read, and the layout of that output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from unfreeze.core.errors import BackboneError
from unfreeze.models.architectures import defined_outside
from unfreeze.models.stage_rules import (
    AUXILIARY,
    CUT_AT_POOLING,
    FINAL_RELU,
    NUMBERED,
    TIMM,
    TORCHVISION,
    Listed,
    Pattern,
)
from unfreeze.models.tracing import ModuleCall, main_tensor, trace_modules, wider

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NetworkLayout", "Stage", "classifier_of", "find_stages", "main_tensor"]

# A normalization layer after the last block has at most this fraction of the block's parameters and is merged into it.
_SMALL = 0.02
_LISTS = ("Sequential", "ModuleList")


@dataclass(frozen=True)
class Stage:
    """A part of the trunk.

    Attributes:
        name: Name of the stage.
        parameters: Names of its parameters, as in `named_parameters`.
        modules: Names of its modules, as in `named_modules`.
        output: Name of the module whose output is that of the stage.
        channels: Number of channels of the output.
        layout: 'NCHW', 'NHWC', 'NLC' (tokens) or 'NC' (no spatial map, as in the hidden layers of VGG's classifier).
        side: Side of the square map.
        prefix: Number of tokens before those of the map, in the layout 'NLC'.
        classes: How many of the prefix tokens, at its start, are class tokens.
        relu: Whether a functional ReLU follows.
        order: Index of the token at each place of the map, row by row, if the network stores the tokens in another
            order.
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
        """Number of features when pooled to grid x grid cells, class tokens included."""
        return self.channels * (1 if self.layout == "NC" else grid**2 + self.classes)


@dataclass(frozen=True)
class NetworkLayout:
    """Structure of a network.

    Attributes:
        stages: Stages, stem first.
        classifier: Names of the parameters whose shape depends on the number of classes.
        auxiliary: Module name -> weight of the loss, for the auxiliary heads of the network.
    """

    stages: tuple[Stage, ...]
    classifier: tuple[str, ...]
    auxiliary: dict[str, float]


def find_stages(full: str, network: nn.Module, classifier: Iterable[str], size: int) -> NetworkLayout:
    """Find the stages of a network by a forward pass of blank images.

    The pass runs on the network's own device; on torch's meta device it takes milliseconds.

    Args:
        full: Full name of the network.
        network: The network.
        classifier: Names of the parameters whose shape depends on the number of classes.
        size: Side of the square input in pixels.

    Raises:
        BackboneError: If no sequence of stages is found, or if tokens do not form a square grid.
        Exception: Whatever torch raises if the network does not support this input size.
    """
    heads = tuple(classifier)
    auxiliary = {name: AUXILIARY[name] for name, _ in network.named_children() if name in AUXILIARY}
    trunk = [
        name for name, _ in network.named_parameters() if name not in heads and name.partition(".")[0] not in auxiliary
    ]
    groups = _groups(full, network, trunk)
    traced = trace_modules(network, size)
    stages = _stages(network, groups, traced, full)
    if not stages:
        raise BackboneError(f"{full}: no stages in order were found; it cannot be used as a backbone here.")
    stages = _settled(network, stages, {call.module: call.shape for call in traced}, size)
    return NetworkLayout(tuple(stages), heads, auxiliary)


def resized(found: NetworkLayout, network: nn.Module, size: int) -> NetworkLayout:
    """Adapt the stages to another input size.

    At a small size, a map of a single cell is indistinguishable from pooled features, and layers behind the last map
    seem to belong to it. The stages are therefore detected at a size where every map has several cells, and only the
    sides of the maps are updated here.

    Args:
        found: Stages of the same network at a size where every map has several cells.
        network: The network.
        size: Side of the square input in pixels.

    Raises:
        ValueError: If the output of a stage has another layout at this size.
        Exception: Whatever torch raises if the network does not support this input size.
    """
    shapes = {call.module: call.shape for call in trace_modules(network, size)}
    stages = tuple(_resized(stage, shapes.get(stage.output, ()), network) for stage in found.stages)
    return replace(found, stages=stages)


def _resized(stage: Stage, shape: tuple[int, ...], network: nn.Module) -> Stage:
    if stage.layout == "NC" and prod(shape) == stage.channels:
        return stage
    if stage.layout == "NLC" and len(shape) == 2 and shape[1] == stage.channels:
        side = int(max(shape[0] - stage.prefix, 0) ** 0.5)
        if side and side**2 + stage.prefix == shape[0]:
            return replace(stage, side=side, order=_token_order(network, stage.output, shape[0]))
    if stage.layout in ("NCHW", "NHWC") and len(shape) == 3:
        channels, height, width = shape if stage.layout == "NCHW" else (shape[2], *shape[:2])
        if channels == stage.channels and height == width > 0:
            return replace(stage, side=height)
    raise ValueError(f"its stage '{stage.name}' puts out {shape}")


def classifier_of(one: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Names of the parameters whose shapes differ between two builds for different numbers of classes."""
    shapes = {name: p.shape for name, p in other.named_parameters()}
    return tuple(name for name, p in one.named_parameters() if shapes.get(name) != p.shape)


def _groups(full: str, network: nn.Module, trunk: list[str]) -> list[list[str]]:
    """Parameters of the trunk, grouped by stage, in network order."""
    library, kind = full.partition("/")[0], type(network).__name__
    if library == "torchvision" and kind in CUT_AT_POOLING:
        numbers = _cut_at_pooling(network, trunk)
    elif library == "timm" and kind in TIMM:
        numbers = _by_pattern(full, TIMM[kind], trunk)
    elif library == "timm" and hasattr(network, "group_matcher"):
        if kind == "VGG":  # timm numbers each layer; here stages end at the pooling layers, as for torchvision
            numbers = _cut_at_pooling(network, trunk)
        else:
            numbers = _by_matcher(network) or _by_pattern(full, NUMBERED, trunk)
    elif library == "timm" and defined_outside(full):
        numbers = _by_children(network, trunk)
    else:
        numbers = _by_pattern(full, TORCHVISION.get(kind, NUMBERED), trunk)
    groups: dict[float, list[str]] = {}
    for name in trunk:
        groups.setdefault(numbers[name], []).append(name)
    return [groups[number] for number in sorted(groups)]


def _by_matcher(network: nn.Module) -> dict[str, float] | None:
    """Stage numbers from timm's `group_matcher`, or None if the family does not define one."""
    from timm.models import group_parameters

    try:
        matcher = network.group_matcher(coarse=True)
    except AssertionError:
        return None
    for part, patterns in matcher.items() if isinstance(matcher, dict) else ():
        if isinstance(patterns, tuple | list):
            # timm merges a final convolution into the stage before it. Here it is a stage, because its output can be
            # read; a final group that is only a norm is merged back by `_is_norm`.
            matcher[part] = [(p, (99998,) if suffix == (99999,) else suffix) for p, suffix in patterns]
    found = group_parameters(network, matcher)
    return {name: float(number) for number, names in found.items() for name in names}


def _by_pattern(full: str, pattern: Pattern | Listed, trunk: list[str]) -> dict[str, float]:
    known = {name: pattern.number(name) for name in trunk}
    if all(n is None for n in known.values()):
        raise BackboneError(f"{full}: is not of a family whose stages are known here.")
    return {name: float("inf") if n is None else float(n) for name, n in known.items()}


def _by_children(network: nn.Module, trunk: list[str]) -> dict[str, float]:
    """Stage numbers from the order of the child modules, for networks defined by the user.

    The children of a layer list that holds most of the parameters are numbered one by one. A norm layer belongs to the
    child before it. Parameters outside of all children, such as position encodings, come first.
    """
    count = {name: p.numel() for name, p in network.named_parameters()}
    units: dict[str, float] = {}

    def add(name: str) -> None:
        module = network.get_submodule(name)
        inside = sum(count[n] for n in trunk if n.startswith(f"{name}."))
        if type(module).__name__ in _LISTS and 2 * inside > sum(count[n] for n in trunk):
            for child, _ in module.named_children():
                add(f"{name}.{child}")
        else:
            last = max(units.values(), default=0.0)
            units[name] = last if last and "norm" in type(module).__name__.lower() else last + 1

    for child, _ in network.named_children():
        add(child)
    return {n: next((number for unit, number in units.items() if n.startswith(f"{unit}.")), 0.0) for n in trunk}


def _cut_at_pooling(network: nn.Module, trunk: list[str]) -> dict[str, float]:
    """Stage numbers from the number of preceding pooling layers; hidden layers of the classifier come last."""
    pools = [int(name) for name, m in network.features.named_children() if "Pool" in type(m).__name__]
    numbers = {}
    for name in trunk:
        found = re.match(r"features\.(\d+)\.", name)
        numbers[name] = float(sum(p < int(found[1]) for p in pools)) if found else float("inf")
    return numbers


def _stages(network: nn.Module, groups: list[list[str]], traced: list[ModuleCall], full: str) -> list[Stage]:
    place = {name: number for number, names in enumerate(groups) for name in names}
    inside: dict[str, set[int | None]] = {}  # stages of a module's parameters; None: classifier, auxiliary head
    for name, _ in network.named_parameters():
        parts = name.split(".")
        for end in range(1, len(parts)):
            inside.setdefault(".".join(parts[:end]), set()).add(place.get(name))
    owner: dict[str, int] = {}
    for module, found in inside.items():
        if len(found) == 1 and (only := next(iter(found))) is not None:
            owner[module] = only
    # Layers without parameters (activation, pooling, dropout) belong to the stage before them.
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
        # A group without an output of its own (parameters outside of modules) is merged into the next one.
        names, modules = [*names, *group], (*modules, *(m for m, n in owner.items() if n == number))
        own = set(modules) - no_output
        last = [c for c in traced if c.module in own and len(c.shape) in (1, 2, 3) and not _is_table(network, c.module)]
        # A module that returns after the next stage began (shared by two stages) is not the output of this stage.
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
            whole = before if flat else stage  # a norm after the pooling: read the map before it
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
    network: nn.Module, traced: list[ModuleCall], inside: dict[str, set[int | None]], owner: dict[str, int]
) -> tuple[set[str], set[str]]:
    """Find the modules without parameters behind the last map.

    Returns:
        Modules that cannot be the output of a stage: pooling and flattening before the first hidden layer of the
        classifier, and everything behind the last layer of the trunk except its activation. And those of them that
        belong to no stage, such as dropout before the classifier.
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
    """Side of the map of one image, given its CHW, HWC or (tokens, channels) shape; 1 if there is no map."""
    if len(shape) == 3:
        return shape[1] if shape[1] == shape[2] else shape[0]
    return int(shape[0] ** 0.5) if len(shape) == 2 else 1


def _stage(
    network: nn.Module, name: str, names: list[str], modules: tuple[str, ...], call: ModuleCall, full: str
) -> Stage:
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
    """Position of each token of the map, for networks that reorder tokens into windows (Hiera, arXiv 2306.00989)."""
    reroll = getattr(network, "reroll", None)
    if reroll is None:
        return ()
    import torch

    block = re.match(r"blocks\.(\d+)", output)
    numbers = torch.arange(tokens).view(1, tokens, 1)
    return tuple(int(n) for n in reroll(numbers, int(block[1]) if block else 0).flatten())


def _settled(network: nn.Module, stages: list[Stage], shapes: dict[str, tuple[int, ...]], size: int) -> list[Stage]:
    """Resolve ambiguous output layouts with a second pass on images that are twice as wide as high.

    A map of a single cell may be pooled features, or the map of a small image. In a cube, where channels, height and
    width are equal, the channel axis is ambiguous.
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
    """Whether a module returns rotary position angles instead of a feature map."""
    kind = type(network.get_submodule(module)).__name__.lower()
    return "rotary" in kind or "rope" in kind


def _is_norm(network: nn.Module, stage: Stage, before: Stage) -> bool:
    """Whether a stage only normalizes the output of the stage before it."""
    count = {n: p.numel() for n, p in network.named_parameters()}
    own, earlier = (sum(count[n] for n in s.parameters) for s in (stage, before))
    return stage.channels == before.channels and own <= _SMALL * earlier


def _name(modules: tuple[str, ...], traced: list[ModuleCall]) -> str:
    """Name of the first outermost module of the stage in execution order: ``layer3``, ``blocks.5``, ``conv_head``."""
    own = set(modules)
    outermost = {m for m in own if not any(above in own for above in _ancestors(m))}
    first = min((c for c in traced if c.module in outermost), key=lambda c: c.entered, default=None)
    return first.module if first else modules[0]
