"""Model inspection: modules with output shapes and parameter counts, stages, classifier and checkpoint comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.messages import Brief
from unfreeze.models.architectures import build, resolve
from unfreeze.models.checkpoints import LoadReport, compare_with_model
from unfreeze.models.freezing import freeze_before, parse_trainable
from unfreeze.models.model_info import anatomy_of, model_info, trains_auxiliary
from unfreeze.models.stages import NetworkLayout
from unfreeze.models.tracing import main_tensor

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Module:
    """A row of the module tree.

    Attributes:
        path: Dotted name, '' for the network itself.
        kind: Class name.
        depth: 0 for the network.
        output: Output shape for one image; () if the module has no tensor output.
        parameters: Number of parameters in the module.
        frozen: How many of them are frozen.
        stage: Name of the stage, 'classifier' or 'auxiliary'; '' if the module contains several.
        gmacs: Multiply-adds, in billions.
    """

    path: str
    kind: str
    depth: int
    output: tuple[int, ...]
    parameters: int
    frozen: int
    stage: str
    gmacs: float


@dataclass(frozen=True, repr=False)
class Inspection(Brief):
    """Result of `inspect`. Parameter counts are numbers of scalars, not of tensors.

    Attributes:
        name: Full name of the network.
        size: Side of the square input in pixels.
        classes: Number of classes of the classifier.
        gmacs: Multiply-adds per image, in billions.
        unfreeze: The value of `train.trainable` that `trained` refers to.
        stages: Names of the stages, stem first.
        trained_stages: Those that train.
        classifier: Names of the parameters whose shape depends on the number of classes.
        auxiliary: Heads that are used only in training, with the weight of their loss.
        parameters: Parameters without those of auxiliary heads.
        trained: Parameters that train.
        auxiliary_parameters: Parameters of auxiliary heads.
        buffers: Scalars in buffers, such as BatchNorm statistics.
        tree: Module tree in depth-first order.
        entries: Each name in `state_dict()` -> 'parameter' or 'buffer'.
        fit: Comparison with a checkpoint, if one was given.
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
    fit: LoadReport | None = None

    def _brief(self) -> str:
        return f"{self.name} at {self.size} px: {len(self.stages)} stages, {self.parameters:,} parameters"


def inspect(name: str, *, unfreeze: str = "all", size: int = 0, weights: str | Path = "") -> Inspection:
    """Inspect a network of timm or torchvision on shapes alone, without weights and with little memory.

    Args:
        name: Full or bare name.
        unfreeze: What would train, as in `train.trainable`.
        size: Side of the square input in pixels; 0 for the network's own.
        weights: Checkpoint to compare with the network. Its number of classes is used; without one the classifier has
            1,000 classes.

    Raises:
        BackboneError: If the name is unknown, the network does not support the size, or the file cannot be read.
        RecipeError: If `unfreeze` is invalid.
    """
    full = resolve(name)
    size = size or model_info(full).preprocessing.size
    fit = compare_with_model(Path(weights).expanduser(), full, size, auxiliary=True) if weights else None
    classes = (fit.classes if fit else 0) or 1000
    auxiliary = trains_auxiliary(full, size)
    network = build(full, classes, auxiliary=auxiliary, size=size, meta=True)
    found = anatomy_of(full, size, auxiliary)
    names = tuple(stage.name for stage in found.stages)
    first = parse_trainable(unfreeze, names)
    shapes, macs = _run(network, size)
    freeze_before(network, found, first)
    rows = tuple(_rows(network, found, shapes, macs))
    auxiliary_count = sum(row.parameters for row in rows if row.path in found.auxiliary)
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
        parameters=rows[0].parameters - auxiliary_count,
        trained=rows[0].parameters - rows[0].frozen,
        auxiliary_parameters=auxiliary_count,
        buffers=sum(t.numel() for n, t in state.items() if n not in parameters),
        tree=rows,
        entries={n: "parameter" if n in parameters else "buffer" for n in state},
        fit=fit,
    )


def _run(network: nn.Module, size: int) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """Output shape and multiply-adds (in billions) of each module for one image; leaves the network in eval mode."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = main_tensor(output)
            if tensor is not None:
                shapes[name] = tuple(tensor.shape[1:])

        return hook

    # Gradients off: the counter hooks tensors that require them and fails on parameters passed as inputs of a module.
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
    network: nn.Module, found: NetworkLayout, shapes: dict[str, tuple[int, ...]], macs: dict[str, float]
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
