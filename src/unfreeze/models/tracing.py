"""Tracing of module calls: output shapes and call order of all modules in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Batch size of the traced pass. It is not 1, so that outputs with one row per window, or one for the whole batch, are
# recognized.
_PHOTOS = 2


@dataclass(frozen=True)
class ModuleCall:
    """Last call of a module.

    Times count the entries and exits of all modules.

    Attributes:
        module: Name of the module.
        shape: Output shape without the batch axis, or () if the first axis is not the batch.
        first: Time of the first entry.
        entered: Time of the last entry.
        left: Time of the last exit.
    """

    module: str
    shape: tuple[int, ...]
    first: int
    entered: int
    left: int


def main_tensor(output: Any) -> Any:
    """Main tensor of a module's output.

    Args:
        output: Output of a module.

    Returns:
        The output itself if it is a tensor, the largest tensor of a tuple or list (some stages pass on more than their
        map), or None if there is none.
    """
    if not isinstance(output, tuple | list):
        return output if hasattr(output, "shape") else None
    return max((item for item in output if hasattr(item, "shape")), key=lambda t: t.numel(), default=None)


def trace_modules(network: nn.Module, size: int) -> list[ModuleCall]:
    """Trace the last call of every module with a tensor output, in order of the exits; the network itself is left out.

    Raises:
        Exception: Whatever torch raises if the network does not support images of `size` px.
    """
    return _traced(network, size, size)


def check_training(network: nn.Module, size: int) -> None:
    """Run a forward pass in training mode, in which auxiliary heads need larger maps than at inference.

    For networks on the meta device only: elsewhere the pass would change BatchNorm statistics.

    Raises:
        Exception: Whatever torch raises if the network cannot be trained on images of `size` px.
    """
    _run(network, size, size, training=True)


def wider(network: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Output shapes by module for images that are twice as wide as high, which identify the spatial axes of a cube.

    Returns:
        Shapes without the batch axis; empty if the network supports only square images.
    """
    try:
        return {call.module: call.shape for call in _traced(network, size, 2 * size)}
    except Exception:  # whatever torch raises
        return {}


def _traced(network: nn.Module, height: int, width: int) -> list[ModuleCall]:
    found: dict[str, ModuleCall] = {}
    first: dict[str, int] = {}
    entered: dict[str, int] = {}
    clock = 0

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            nonlocal clock
            clock += 1
            entered[name] = clock
            first.setdefault(name, clock)

        return hook

    def leave(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal clock
            clock += 1
            found.pop(name, None)
            tensor = main_tensor(output)
            if tensor is not None:
                shape = tuple(tensor.shape)
                of_photo = shape[1:] if shape[:1] == (_PHOTOS,) else ()
                found[name] = ModuleCall(name, of_photo, first[name], entered[name], clock)

        return hook

    hooks = []
    for name, module in network.named_modules():
        if name:
            hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
    try:
        _run(network, height, width)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _run(network: nn.Module, height: int, width: int, training: bool = False) -> None:
    import torch

    parameter = next(network.parameters())
    with _mode(network, training), torch.inference_mode():
        network(torch.zeros(_PHOTOS, 3, height, width, device=parameter.device, dtype=parameter.dtype))


@contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Set the training mode of the whole network; restore that of each module on exit."""
    before = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
