"""What a network's modules put out, seen in one pass of blank photos, best on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from unfreeze.core.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

# Two photos: what works window by window, or once for all photos, puts out another number of them.
_PHOTOS = 2


@dataclass(frozen=True)
class Call:
    """A module's last call: when it was first entered, and when and with what shape it last answered.

    shape: of the output for one photo, or () where the first axis does not count photos.
    """

    module: str
    shape: tuple[int, ...]
    first: int
    entered: int
    left: int


def main_tensor(output: Any) -> Any:
    """The output itself, the largest of several (some stages hand on more than their map), or None: no tensor."""
    if not isinstance(output, tuple | list):
        return output if hasattr(output, "shape") else None
    return max((item for item in output if hasattr(item, "shape")), key=lambda t: t.numel(), default=None)


def calls(full: str, network: nn.Module, size: int) -> list[Call]:
    """Every module's last call with a tensor as output, by the end of the calls; the network itself is left out.

    Raises BackboneError, with the nearest size that works, if the network cannot take photos of `size` px.
    """
    try:
        return _traced(network, size, size)
    except Exception as error:  # torch says nearly anything when a map becomes smaller than a kernel
        _refuse(full, size, error, lambda s: _traced(network, s, s))


def check_training(full: str, network: nn.Module, size: int) -> None:
    """Raises BackboneError if the network cannot be trained on photos of `size` px: auxiliary heads want larger maps.

    For networks on the meta device: a pass in training mode would change the statistics of another.
    """
    try:
        _run(network, size, size, training=True)
    except Exception as error:
        _refuse(full, size, error, lambda s: _run(network, s, s, training=True))


def wider(network: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes, as `calls`, for photos twice as wide as high: they tell which axes of a cube are those of the map.

    Empty where the network takes square photos only.
    """
    try:
        return {call.module: call.shape for call in _traced(network, size, 2 * size)}
    except Exception:  # as above
        return {}


def _refuse(full: str, size: int, error: Exception, attempt: Callable[[int], object]) -> NoReturn:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    larger = _larger(size, attempt)
    remedy = f"set image.size to {larger} or more" if larger else "set another image.size"
    raise BackboneError(f"{full}: cannot take photos of {size} px; {remedy} ({reason.rstrip('. ')}).") from None


def _larger(size: int, attempt: Callable[[int], object]) -> int:
    """The smallest larger size that works, by bisection below a doubling of it; 0 if none was found."""

    def works(candidate: int) -> bool:
        try:
            attempt(candidate)
        except Exception:  # as above
            return False
        return True

    enough = next((s for s in (2 * size, 4 * size, 8 * size) if s <= 1024 and works(s)), 0)
    least = size if enough == 2 * size else enough // 2
    while enough - least > 1:
        middle = (enough + least) // 2
        least, enough = (least, middle) if works(middle) else (middle, enough)
    return enough


def _traced(network: nn.Module, height: int, width: int) -> list[Call]:
    found: dict[str, Call] = {}
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
                found[name] = Call(name, of_photo, first[name], entered[name], clock)

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
    """The whole network in one mode; each module in its own again afterwards."""
    before = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
