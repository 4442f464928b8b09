"""Cut a network at a stage: a frozen front that runs once, and the rest that trains from its kept output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unfreeze.core.errors import BackboneError
from unfreeze.model.stages import Anatomy, Stage, main_tensor
from unfreeze.model.taps import Taps, pooled

if TYPE_CHECKING:
    from collections.abc import Iterable

# Two ways through a network are the same if they differ by this share of what two photos differ by.
_SAME = 1e-2


def boundary(anatomy: Anatomy, first: int) -> str:
    """The module whose output the stages from `first` on start from: the outermost one around the front's output."""
    last = anatomy.stages[first - 1]
    return _outermost(last.output, {name for stage in anatomy.stages[:first] for name in stage.modules})


def _outermost(module: str, own: Iterable[str]) -> str:
    parts, known = module.split("."), set(own)
    for end in range(1, len(parts) + 1):
        if (name := ".".join(parts[:end])) in known:
            return name
    return module


class Front(nn.Module):
    """The stages before `first` as one graph: (B, 3, S, S) -> (B, P + A).

    First the P pooled features of those tapped stages that lie before the last one of the front, then the A values of
    its output, flattened. Nothing behind the front is needed, so that an engine leaves it out.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, first: int, taps: Taps) -> None:
        super().__init__()
        self.network = network
        self.grid = taps.grid
        self.seen: dict[str, Any] = {}
        self.beside = beside(anatomy, first, taps)
        self.end = boundary(anatomy, first)
        for module in {stage.output for stage in self.beside} | {self.end}:
            network.get_submodule(module).register_forward_hook(lambda _m, _i, out, name=module: self.keep(name, out))

    def keep(self, name: str, output: Any) -> None:
        self.seen[name] = output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.clear()
        self.network(images)
        parts = [pooled(self.seen[stage.output], stage, self.grid) for stage in self.beside]
        parts.append(main_tensor(self.seen[self.end]).flatten(1))
        self.seen.clear()
        return torch.cat(parts, 1)


def beside(anatomy: Anatomy, first: int, taps: Taps) -> tuple[Stage, ...]:
    """The tapped stages whose pooled features must be kept beside the activation: those before the front's last."""
    stages = anatomy.stages
    return stages[max(len(stages) - taps.last, 0) : max(first - 1, 0)]


class _Stub(nn.Module):
    """Stands where a module of the front stood: answers blank maps of the same shape, or what was put into it.

    What else the network asks of the module (a grid's size, a stride) it answers as before; its weights are let go.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.given: torch.Tensor | None = None
        self.__dict__["stood_here"] = module.to("meta")  # not registered: it is no part of the network any more

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["stood_here"], name)

    def forward(self, first: Any, *_: Any, **__: Any) -> torch.Tensor:
        if self.given is not None:
            return self.given
        tensor = main_tensor(first)
        return tensor.new_zeros(1).expand(tensor.shape[0], *self.shape)


class Rest(nn.Module):
    """The stages from `first` on: takes the front's output and answers what the whole network would.

    network: is changed: the front's modules are replaced by stubs, so that its forward runs on as its authors wrote it.
    shape: of the front's output for one photo. Raises BackboneError where the rest needs more of the front than
    its last output.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, first: int, size: int) -> None:
        super().__init__()
        own = {name for stage in anatomy.stages[:first] for name in stage.modules}
        self.end = boundary(anatomy, first)
        units = sorted({_outermost(name, own) for name in own})
        probe = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) - 0.5
        shapes, activation, expected = _outputs(network, units, self.end, probe)
        # What the forward never calls needs no stub; what it calls after the cut, such as pooling, has to run on.
        for name in list(shapes)[: list(shapes).index(self.end) + 1]:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, _Stub(network.get_submodule(name), shapes[name]))
        self.network, self.size = network, size
        self.shape = tuple(activation.shape[1:])
        self._check(activation, expected)

    def forward(self, activation: torch.Tensor) -> Any:
        stub = self.network.get_submodule(self.end)
        stub.given = activation
        try:
            blank = activation.new_zeros(1).expand(activation.shape[0], 3, self.size, self.size)
            return self.network(blank)
        finally:
            stub.given = None

    def _check(self, activation: torch.Tensor, expected: torch.Tensor) -> None:
        was = self.network.training
        try:
            with torch.no_grad():
                found = main_tensor(self.eval()(activation))
        except Exception as error:  # whatever the network says when its front is missing
            raise BackboneError(f"cannot be cut after {self.end} ({error}); use strategy full.") from None
        finally:
            self.network.train(was)
        # Held against how far two photos are apart: an untrained network says nearly the same of everything.
        apart = float((expected[0] - expected[1]).abs().max())
        if float((found - expected).abs().max()) > _SAME * apart + 1e-6 * float(expected.abs().max()):
            raise BackboneError(
                f"cannot be cut after {self.end}: what follows needs more than its output; use strategy full, or "
                "another train.unfreeze."
            )


def _outputs(
    network: nn.Module, units: list[str], end: str, images: torch.Tensor
) -> tuple[dict[str, tuple[int, ...]], torch.Tensor, torch.Tensor]:
    """Shape of each unit's output for one photo, in the order of their calls, the output of `end`, the network's."""
    shapes: dict[str, tuple[int, ...]] = {}
    kept: dict[str, torch.Tensor] = {}
    hooks = []
    for name in units:

        def hook(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            tensor = main_tensor(output)
            if tensor is not None:
                shapes[name] = tuple(tensor.shape[1:])
                if name == end:
                    kept[name] = tensor.detach()

        hooks.append(network.get_submodule(name).register_forward_hook(hook))
    was = network.training
    try:
        with torch.no_grad():
            expected = main_tensor(network.eval()(images))
    finally:
        network.train(was)
        for handle in hooks:
            handle.remove()
    if end not in kept:
        raise BackboneError(f"cannot be cut after {end}: it hands on no single map; use strategy full.")
    return shapes, kept[end], expected


def activation_shape(network: nn.Module, anatomy: Anatomy, first: int, size: int) -> tuple[int, ...]:
    """Shape of the front's output for one photo of `size` px; on a network of torch's meta device in a moment.

    Raises BackboneError where the front's last stage hands on no single map.
    """
    end = boundary(anatomy, first)
    device = next(network.parameters()).device
    return _outputs(network, [end], end, torch.zeros(1, 3, size, size, device=device))[0][end]
