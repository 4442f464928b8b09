"""What is in a network: modules with output shapes and parameters, stages, classifier; what a file has of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.model.architectures import build, resolve
from unfreeze.model.cards import card
from unfreeze.model.freezing import first_trained, train_from
from unfreeze.model.stages import Anatomy, anatomy, classifier_of, main_tensor
from unfreeze.model.statedicts import Fit, held_against

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Module:
    """A row of the tree. path: dotted name, '' for the network itself. kind: its class. depth: 0 for the network.

    output: shape for one photo, () where it puts out none. parameters, frozen: how many numbers in it, and how many of
    them stay as they are. stage: name, 'classifier' or 'auxiliary', '' where it holds several. gmacs: billions of
    multiply-adds.
    """

    path: str
    kind: str
    depth: int
    output: tuple[int, ...]
    parameters: int
    frozen: int
    stage: str
    gmacs: float


@dataclass(frozen=True)
class Inspection:
    """A network as `inspect` found it on shapes alone; counts are of numbers, not of tensors.

    classifier: names of the parameters that depend on the number of classes. auxiliary: heads that only training uses,
    with the weight of their loss, and `auxiliary_parameters` of them. entries: every name of `state_dict()` ->
    'parameter' (what gradients change; `parameters()`) or 'buffer' (what is kept beside, as BatchNorm's statistics).
    fit: how a weights file fits, if one was given.
    """

    name: str
    size: int
    classes: int
    gmacs: float
    unfreeze: str
    stages: tuple[str, ...]
    trained_stages: tuple[str, ...]
    classifier: tuple[str, ...]
    auxiliary: dict[str, float]
    parameters: int
    trained: int
    auxiliary_parameters: int
    buffers: int
    tree: tuple[Module, ...]
    entries: dict[str, str] = field(repr=False)
    fit: Fit | None = None


def inspect(name: str, *, unfreeze: str = "all", size: int = 0, weights: str | Path = "") -> Inspection:
    """Looks into a network of timm or torchvision by full or bare name; needs no weights and hardly any memory.

    unfreeze: what would train, as `train.unfreeze` says it. size: side of the input, pixels; 0: the network's own.
    weights: a file to hold against it; without one the classifier is for 1,000 classes.
    Raises BackboneError for an unknown name, a size that it cannot take or an unreadable file, and RecipeError for
    stages that it has not.
    """
    full = resolve(name)
    size = size or card(full).preprocessing.size
    fit = held_against(Path(weights).expanduser(), full, size, auxiliary=True) if weights else None
    classes = (fit.classes if fit else 0) or 1000
    network, other = (build(full, n, auxiliary=True, size=size, meta=True) for n in (classes, classes + 1))
    found = anatomy(full, network, classifier_of(network, other), size)
    names = tuple(stage.name for stage in found.stages)
    first = first_trained(unfreeze, names)
    shapes, macs = _run(network, size)
    train_from(network, found, first)
    rows = tuple(_rows(network, found, shapes, macs))
    beside = sum(row.parameters for row in rows if row.path in found.auxiliary)
    parameters = {n for n, _ in network.named_parameters(remove_duplicate=False)}
    state = network.state_dict()
    return Inspection(
        name=full,
        size=size,
        classes=classes,
        gmacs=rows[0].gmacs,
        unfreeze=unfreeze,
        stages=names,
        trained_stages=names[first:],
        classifier=found.classifier,
        auxiliary=found.auxiliary,
        parameters=rows[0].parameters - beside,
        trained=rows[0].parameters - rows[0].frozen,
        auxiliary_parameters=beside,
        buffers=sum(t.numel() for n, t in state.items() if n not in parameters),
        tree=rows,
        entries={n: "parameter" if n in parameters else "buffer" for n in state},
        fit=fit,
    )


def _run(network: nn.Module, size: int) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """Output shape of each module, and billions of multiply-adds, for one photo; leaves it in eval mode."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = main_tensor(output)
            if tensor is not None:
                shapes[name] = tuple(tensor.shape[1:])

        return hook

    # The counter follows what needs gradients, and stumbles over parameters that are a module's input.
    network.eval().requires_grad_(False)
    hooks = [module.register_forward_hook(keep(name)) for name, module in network.named_modules()]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    root = type(network).__name__
    counted = {name: sum(flops.values()) / 2e9 for name, flops in counter.get_flop_counts().items()}
    macs = {name.removeprefix(root).removeprefix("."): count for name, count in counted.items() if name != "Global"}
    return shapes, {**macs, "": counted.get("Global", 0.0)}


def _rows(
    network: nn.Module, found: Anatomy, shapes: dict[str, tuple[int, ...]], macs: dict[str, float]
) -> list[Module]:
    place = {name: stage.name for stage in found.stages for name in stage.parameters}
    owner = {module: stage.name for stage in found.stages for module in stage.modules}
    place |= dict.fromkeys(found.classifier, "classifier")
    rows = []
    for path, module in network.named_modules():
        parts = path.split(".") if path else []
        inner = {f"{path}.{name}" if path else name: p for name, p in module.named_parameters()}
        stages = {"auxiliary" if n.partition(".")[0] in found.auxiliary else place.get(n, "") for n in inner}
        stage = owner.get(path, "") if not stages else (stages.pop() if len(stages) == 1 else "")
        rows.append(
            Module(
                path=path,
                kind=type(module).__name__,
                depth=len(parts),
                output=shapes.get(path, ()),
                parameters=sum(p.numel() for p in inner.values()),
                frozen=sum(p.numel() for p in inner.values() if not p.requires_grad),
                stage=stage,
                gmacs=macs.get(path, 0.0),
            )
        )
    return rows
