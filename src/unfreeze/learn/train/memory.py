"""Nobody names a batch size: how many photos fit at once is measured, and running out of memory is survived."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

from unfreeze.core.errors import EngineError
from unfreeze.core.progress import Reporter
from unfreeze.model.eager import is_out_of_memory

Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
T = TypeVar("T")

# What autograd keeps was 12 to 18 % below the resident size of a real step on the CPU (gradients on their way and
# the allocator's slack come on top); on a GPU the peak is exact, but other programs and fragments take their share.
_MARGIN = 1.25
_KEPT = 1 << 30
# Processes that train side by side on this machine's memory: each plans with its share of what is free.
_sharing = 1
# mallopt's parameters in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


@dataclass(frozen=True)
class Need:
    """Memory of a training step in bytes: `fixed + photo * micro-batch`, with what training allocates besides."""

    fixed: int
    photo: int

    def at(self, micro: int) -> int:
        """Bytes to keep free for a micro-batch of this size, margin included."""
        return int(_MARGIN * (self.fixed + self.photo * micro))

    def fitting(self, effective: int, free: int) -> int:
        """The largest of effective, effective / 2, effective / 4 ... that needs at most `free` bytes; 1 at least.

        Halves, so that a little more or less free memory gives the same numbers.
        """
        micro = max(1, effective)
        while micro > 1 and self.at(micro) > free:
            micro = (micro + 1) // 2
        return micro


@dataclass
class MicroBatch:
    """How many photos pass through the network at once. Running out of memory halves `size`, for good.

    least: the smallest piece that works; 2 where BatchNorm trains, for it needs more than one value a channel.
    halved: one line for each time that memory ran out.
    """

    size: int
    least: int = 1
    reporter: Reporter = field(default_factory=Reporter)
    halved: list[str] = field(default_factory=list)

    def pieces(self, count: int) -> list[slice]:
        """Slices of 0..count in even pieces of about `size`."""
        number = max(1, min(-(-count // self.size), count // self.least))
        edges = [count * i // number for i in range(number + 1)]
        return [slice(a, b) for a, b in pairwise(edges)]

    def _largest(self, count: int) -> int:
        return max(piece.stop - piece.start for piece in self.pieces(count))

    def shrink(self, count: int, what: str) -> None:
        """Frees what it can and halves `size`. EngineError where `count` photos cannot be cut smaller.

        count: photos in the batch that failed. what: what was going on, for the error's line.
        """
        largest = self._largest(count)
        self.size = max(self.least, (largest + 1) // 2)
        if self._largest(count) == largest:
            raise EngineError(
                f"{what}: out of memory with {largest} photo(s) at once. Choose a smaller image.size, a smaller "
                "backbone or a strategy that trains less of it (train.unfreeze, late, probe), or close other programs."
            )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.halved.append(f"{what}: out of memory with {largest} photos at once; goes on with {self.size}")
        self.reporter.say(f"{self.halved[-1]} (the effective batch stays).")


def retried(work: Callable[[], T], undo: Callable[[], None], count: int, micro: MicroBatch, what: str) -> T:
    """`work()`, done again with a smaller micro-batch each time that memory runs out; `undo` takes back its traces."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`: the error's traceback holds the step's tensors.
        undo()
        micro.shrink(count, what)


def in_pieces(
    function: Callable[[Any], torch.Tensor], inputs: Inputs, micro: MicroBatch, what: str = "Prediction"
) -> torch.Tensor:
    """`function` of pieces of the inputs, joined along the first axis: evaluation, prediction, feature passes.

    Rows must not depend on each other. Where memory runs out, the pieces done are kept and the rest is cut smaller.
    """
    done: list[torch.Tensor] = []

    def rest() -> None:
        start = sum(map(len, done))
        for piece in micro.pieces(count_of(inputs) - start):
            result = function(rows(inputs, slice(start + piece.start, start + piece.stop)))
            done.append(result)

    retried(rest, lambda: None, count_of(inputs), micro, what)
    return torch.cat(done)


def count_of(inputs: Inputs) -> int:
    """Photos in a batch."""
    return len(inputs if isinstance(inputs, torch.Tensor) else inputs[0])


def rows(inputs: Inputs, part: slice) -> Inputs:
    """Some photos of a batch."""
    return inputs[part] if isinstance(inputs, torch.Tensor) else tuple(one[part] for one in inputs)


class Moment:
    """A network's moving parts before a step: random states of CPU and GPU, buffers of modules in training mode."""

    def __init__(self, model: nn.Module) -> None:
        self.random = torch.get_rng_state()
        self.random_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.buffers = [
            (buffer, buffer.detach().clone())
            for module in model.modules()
            if module.training
            for buffer in module.buffers(recurse=False)
        ]

    def restore(self) -> None:
        """Puts them back."""
        torch.set_rng_state(self.random)
        if self.random_cuda:
            torch.cuda.set_rng_state_all(self.random_cuda)
        with torch.no_grad():
            for buffer, before in self.buffers:
                buffer.copy_(before)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Runs trial steps: afterwards buffers and random states are as before, and gradients are gone."""
    before = Moment(model)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        before.restore()


def trains_batchnorm(model: nn.Module) -> bool:
    """Whether a BatchNorm layer takes its statistics from the batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())


def measure_need(
    model: nn.Module, step: Callable[[int], object], sizes: tuple[int, int], device: torch.device, copies: float
) -> Need:
    """Memory of a step by a line through two measured sizes.

    step: runs forward and backward of that many photos. copies: what is kept besides for each trained parameter, in
    multiples of it: optimiser state, averages, best weights.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    measure = _peak if device.type == "cuda" else _kept_by_autograd
    with undisturbed(model):
        low, high = (measure(model, partial(step, n), device) for n in sizes)
    photo = max(1, (high - low) // (sizes[1] - sizes[0]))
    fixed = max(0, low - photo * sizes[0])
    gradients = 0 if device.type == "cuda" else trained  # a GPU's peak has them in it
    return Need(int(fixed + gradients + copies * trained), int(photo))


def _peak(model: nn.Module, step: Callable[[], object], device: torch.device) -> int:
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _kept_by_autograd(model: nn.Module, step: Callable[[], object], device: torch.device) -> int:
    """Bytes of all storages that autograd saves for the backward pass, each once, without the network's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    _give_back_heap()
    return min(int(psutil.virtual_memory().available), cgroup_room()) // _sharing


def share_memory(processes: int) -> None:
    """Says that so many processes, this one among them, train side by side."""
    global _sharing
    _sharing = max(1, processes)


def cgroup_room(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes left below the memory limits of this process's control groups (v1 or v2) and their parents.

    Containers and job queues set them, and the kernel kills what goes beyond. Cached files count as free. Without a
    limit: a number larger than any memory.
    """
    room = sys.maxsize
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, names = root, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            place = top / path.lstrip("/")
            # Inside a container the path may be the host's, which is not there: its own group is then the top.
            for folder in (place, *place.parents):
                room = min(room, _room_of(folder, *names))
                if folder == top:
                    break
    return room


def _room_of(folder: Path, limit: str, usage: str, cached: str) -> int:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sys.maxsize if most == "max" else max(0, int(most) - used + int(stat.get(cached, 0)))
    except (OSError, ValueError):
        return sys.maxsize


def keep_big_blocks() -> bool:
    """Tells glibc's malloc to keep large freed blocks instead of giving them back to the kernel; True where it did.

    Each step frees and asks again for the same hundreds of megabytes; as mmap'ed blocks they come back as fresh pages
    that the kernel has to clear one by one. See docs of mallopt(3). No-op on other systems.
    """
    libc = _glibc()
    if libc is None:
        return False
    done = [
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT),
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT * 2 - 1),
        libc.mallopt(_M_TOP_PAD, 64 << 20),
    ]
    return all(done)


def _give_back_heap() -> None:
    """Hands freed heap back to the system, so that it counts as available."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            return libc
    return None
