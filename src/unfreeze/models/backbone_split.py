"""Splitting of a backbone into a frozen front and a trainable back.

`FrozenFront` runs the stages before a given one once per image; its output is cached. `TrainableBack` runs the
remaining stages from the cached output and trains. Both are derived from the same network without knowledge of its
source code: the modules of the front are replaced by stubs, so that the network's own ``forward`` still runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unfreeze.core.errors import BackboneError
from unfreeze.models.pooling import FeatureSpec, pool_stage
from unfreeze.models.stages import NetworkLayout, Stage
from unfreeze.models.tracing import main_tensor

# Maximum difference between the outputs of the split and the whole network, relative to the difference between the
# outputs for two random images.
_SAME = 1e-2


def split_module(network: nn.Module, anatomy: NetworkLayout, first: int) -> str:
    """Name of the module whose output is the input of the stages from `first` on.

    It is the outermost module that contains the output module of the front's last stage.
    """
    last = anatomy.stages[first - 1]
    return _outermost(network, last.output, {name for stage in anatomy.stages[:first] for name in stage.modules})


def _outermost(network: nn.Module, module: str, own: set[str]) -> str:
    """Outermost called module around `module` that is in `own`; module lists and dicts are never called."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        if name in own and not isinstance(network.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            return name
    return module


class FrozenFront(nn.Module):
    """The stages before `first` as a single module: (B, 3, S, S) -> (B, P + A), float32.

    The first P columns are the pooled features of the tapped stages that lie before the last stage of the front. The
    last A columns are the flattened output of the front. The output does not depend on the modules behind the front, so
    an engine that compiles the graph drops them.

    Args:
        network: Whole network.
        anatomy: Its stages.
        first: Number of the first stage that is not part of the front, at least 1.
        taps: Stages whose pooled features are read, and the pooling grid.
    """

    def __init__(self, network: nn.Module, anatomy: NetworkLayout, first: int, taps: FeatureSpec) -> None:
        super().__init__()
        self.network = network
        self.grid = taps.grid
        self.seen: dict[str, Any] = {}
        self.side_stages = side_features(anatomy, first, taps)
        self.end = split_module(network, anatomy, first)
        for module in {stage.output for stage in self.side_stages} | {self.end}:
            network.get_submodule(module).register_forward_hook(lambda _m, _i, out, name=module: self.keep(name, out))

    def keep(self, name: str, output: Any) -> None:
        self.seen[name] = output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.clear()
        self.network(images)
        parts = [pool_stage(self.seen[stage.output], stage, self.grid) for stage in self.side_stages]
        parts.append(main_tensor(self.seen[self.end]).flatten(1))
        self.seen.clear()
        return torch.cat(parts, 1)


def side_features(anatomy: NetworkLayout, first: int, taps: FeatureSpec) -> tuple[Stage, ...]:
    """Tapped stages before the last stage of the front, whose pooled features are stored next to the activation."""
    stages = anatomy.stages
    return stages[max(len(stages) - taps.last, 0) : max(first - 1, 0)]


class _Stub(nn.Module):
    """Replacement for a module of the front.

    Returns blank tensors of the same shapes as the module's output, or the activation that is set in `given`. Other
    attributes that the network reads (grid size, stride) are forwarded to the original module, whose weights are
    dropped by moving it to the meta device. Non-tensor parts of the output, such as the height and width of the map,
    are returned unchanged.

    Args:
        module: Module that is replaced.
        output: Output of the module for a batch of images.
    """

    def __init__(self, module: nn.Module, output: Any) -> None:
        super().__init__()
        self.shape = tuple(main_tensor(output).shape[1:])
        self.parts = _parts(output)
        self.given: torch.Tensor | None = None
        self.like: torch.Tensor | None = None
        self.__dict__["stood_here"] = module.to("meta")  # bypasses registration: no submodule of the network

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["stood_here"], name)

    def forward(self, first: Any, *_: Any, **__: Any) -> Any:
        tensor = main_tensor(first)
        if tensor is None:  # called without a tensor, as position encodings may be
            assert self.like is not None
            tensor = self.like

        def blank(shape: tuple[int, ...]) -> torch.Tensor:
            return tensor.new_zeros(1).expand(tensor.shape[0], *shape)

        main = blank(self.shape) if self.given is None else self.given
        if self.parts is None:
            return main
        answers = [blank(part.shape) if isinstance(part, _Blank) else part for part in self.parts]
        return tuple(
            main if isinstance(part, _Main) else answer for part, answer in zip(self.parts, answers, strict=True)
        )


class _Main:
    """Placeholder for the main tensor in a tuple of outputs."""


@dataclass(frozen=True)
class _Blank:
    """Placeholder for any other tensor in a tuple of outputs; `shape` is its shape without the batch axis."""

    shape: tuple[int, ...]


def _parts(output: Any) -> tuple[Any, ...] | None:
    """Parts of a module's output in order, with placeholders for tensors; None if the output is a tensor."""
    if not isinstance(output, tuple | list):
        return None
    main = main_tensor(output)
    return tuple(
        _Main() if part is main else _Blank(tuple(part.shape[1:])) if hasattr(part, "shape") else part
        for part in output
    )


class TrainableBack(nn.Module):
    """The stages from `first` on: maps the front's output to the output of the whole network.

    Args:
        network: Whole network; changed in place. The modules of the front are replaced by stubs, so that the network's
            own forward still runs.
        anatomy: Its stages.
        first: Number of the first stage of the back, at least 1.
        size: Side of the square input in pixels.

    Attributes:
        shape: Shape of the front's output for one image.

    Raises:
        BackboneError: If the back depends on more of the front than its last output.
    """

    def __init__(self, network: nn.Module, anatomy: NetworkLayout, first: int, size: int) -> None:
        super().__init__()
        own = {name for stage in anatomy.stages[:first] for name in stage.modules}
        self.end = split_module(network, anatomy, first)
        units = sorted({_outermost(network, name, own) for name in own})
        probe = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) - 0.5
        outputs, expected = _outputs(network, units, self.end, probe)
        activation = main_tensor(outputs[self.end]).detach()
        # Modules that the forward never calls need no stub. Modules called after the split, such as pooling, must still
        # run.
        stubs = []
        for name in list(outputs)[: list(outputs).index(self.end) + 1]:
            parent, _, child = name.rpartition(".")
            stubs.append(_Stub(network.get_submodule(name), outputs[name]))
            setattr(network.get_submodule(parent), child, stubs[-1])
        self.stubs = tuple(stubs)
        self.network, self.size = network, size
        self.shape = tuple(activation.shape[1:])
        self._check(activation, expected)

    def forward(self, activation: torch.Tensor) -> Any:
        stub = self.network.get_submodule(self.end)
        stub.given = activation
        for one in self.stubs:
            one.like = activation
        try:
            blank = activation.new_zeros(1).expand(activation.shape[0], 3, self.size, self.size)
            return self.network(blank)
        finally:
            stub.given = None
            for one in self.stubs:
                one.like = None

    def _check(self, activation: torch.Tensor, expected: torch.Tensor) -> None:
        was = self.network.training
        try:
            with torch.no_grad():
                found = main_tensor(self.eval()(activation))
        except Exception as error:  # the network may fail in any way without its front
            raise BackboneError(f"cannot be cut after {self.end} ({error}); use strategy full.") from None
        finally:
            self.network.train(was)
        # Compared with the difference between two images: an untrained network gives nearly the same output for all
        # images.
        apart = float((expected[0] - expected[1]).abs().max())
        if float((found - expected).abs().max()) > _SAME * apart + 1e-6 * float(expected.abs().max()):
            raise BackboneError(
                f"cannot be cut after {self.end}: later layers depend on more than its output; use strategy full, or "
                "another train.trainable."
            )


def _outputs(
    network: nn.Module, units: list[str], end: str, images: torch.Tensor
) -> tuple[dict[str, Any], torch.Tensor]:
    """Run the network once in eval mode.

    Args:
        network: Network to run; its training mode is restored.
        units: Names of the modules to record.
        end: Module that must have a tensor output.
        images: (B, 3, S, S).

    Returns:
        The last output of each unit that contains a tensor, in the order of the calls, and the main output of the
        network.

    Raises:
        BackboneError: If `end` has no tensor output.
    """
    outputs: dict[str, Any] = {}
    hooks = []
    for name in units:

        def hook(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            if main_tensor(output) is not None:
                outputs[name] = output

        hooks.append(network.get_submodule(name).register_forward_hook(hook))
    was = network.training
    try:
        with torch.no_grad():
            expected = main_tensor(network.eval()(images))
    finally:
        network.train(was)
        for handle in hooks:
            handle.remove()
    if end not in outputs:
        raise BackboneError(f"cannot be cut after {end}: it does not return a tensor; use strategy full.")
    return outputs, expected


def activation_shape(network: nn.Module, anatomy: NetworkLayout, first: int, size: int) -> tuple[int, ...]:
    """Shape of the front's output for one image of `size` px. Fast on torch's meta device.

    Raises:
        BackboneError: If the last stage of the front has no single output tensor.
    """
    end = split_module(network, anatomy, first)
    device = next(network.parameters()).device
    outputs, _ = _outputs(network, [end], end, torch.zeros(1, 3, size, size, device=device))
    return tuple(main_tensor(outputs[end]).shape[1:])
