"""Micro-batching: measuring the memory of a training step, and recovering from out-of-memory errors.

Users set the effective batch size; how many images are processed at once is derived from measurements.
"""

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
from unfreeze.models.eager import is_out_of_memory

Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
T = TypeVar("T")

# On the CPU, the memory that autograd keeps was 12 to 18% below the resident memory of a real step, which adds
# temporary gradients and allocator slack. On a GPU the measured peak is exact, but other programs and fragmentation
# take memory too.
_MARGIN = 1.25
_KEPT = 1 << 30
# Fraction of the total memory that trainings plan with; the rest is for the system and other programs. A GPU is rarely
# shared.
_PLANNED, _PLANNED_GPU = 0.5, 0.8
# Number of processes that train in parallel on this machine; each plans with its share of the free memory.
_sharing = 1
# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


@dataclass(frozen=True)
class StepMemory:
    """Memory of a training step: `fixed + photo * micro-batch`.

    Attributes:
        fixed: Bytes that do not depend on the micro-batch size, including optimizer state and weight copies.
        photo: Bytes per image.
    """

    fixed: int
    photo: int

    def at(self, micro: int) -> int:
        """Return the bytes to keep free for a micro-batch of this size, including a safety margin."""
        return int(_MARGIN * (self.fixed + self.photo * micro))

    def fitting(self, effective: int, free: int) -> int:
        """Return the largest of effective, effective / 2, effective / 4, ... that fits in `free` bytes, at least 1.

        Repeated halving makes the result insensitive to small differences in free memory.
        """
        micro = max(1, effective)
        while micro > 1 and self.at(micro) > free:
            micro = (micro + 1) // 2
        return micro


@dataclass
class MicroBatch:
    """Number of images that are processed at once. Running out of memory halves it permanently.

    Attributes:
        size: Micro-batch size.
        least: Smallest piece that works: 2 if BatchNorm trains, since it needs more than one value per channel.
        reporter: Progress reporter.
        halved: One message per out-of-memory event.
    """

    size: int
    least: int = 1
    reporter: Reporter = field(default_factory=Reporter)
    halved: list[str] = field(default_factory=list)

    def pieces(self, count: int) -> list[slice]:
        """Return slices of 0..count in even pieces of about `size`."""
        number = max(1, min(-(-count // self.size), count // self.least))
        edges = [count * i // number for i in range(number + 1)]
        return [slice(a, b) for a, b in pairwise(edges)]

    def _largest(self, count: int) -> int:
        return max(piece.stop - piece.start for piece in self.pieces(count))

    def shrink(self, count: int, what: str) -> None:
        """Release cached memory and halve `size`.

        Args:
            count: Number of images in the batch that failed.
            what: What was being done, for the message.

        Raises:
            EngineError: If `count` images cannot be divided into smaller pieces.
        """
        largest = self._largest(count)
        self.size = max(self.least, (largest + 1) // 2)
        if self._largest(count) == largest:
            raise EngineError(
                f"{what}: out of memory with {largest} photo(s) at once. Choose a smaller image.size, a smaller "
                "backbone or a strategy that trains less of it (train.trainable, partial, probe), or close "
                "other programs."
            )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.halved.append(f"{what}: out of memory with {largest} images at once; continuing with {self.size}")
        self.reporter.say(f"{self.halved[-1]} (effective batch size unchanged).")


def retry_on_oom(work: Callable[[], T], undo: Callable[[], None], count: int, micro: MicroBatch, what: str) -> T:
    """Call `work`, and repeat it with a smaller micro-batch each time that memory runs out.

    Args:
        work: The function.
        undo: Called before each retry, to revert side effects.
        count: Number of images in the batch.
        micro: Micro-batch size, which is reduced.
        what: What is being done, for messages.

    Returns:
        The result of `work`.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`, because the error's traceback references the tensors of the step.
        undo()
        micro.shrink(count, what)


def map_micro_batches(
    function: Callable[[Any], torch.Tensor], inputs: Inputs, micro: MicroBatch, what: str = "Prediction"
) -> torch.Tensor:
    """Apply a function to pieces of the inputs and concatenate the results along the first axis.

    For evaluation, prediction and feature extraction: rows must not depend on each other. If memory runs out, finished
    pieces are kept and the rest is divided into smaller pieces.

    Args:
        function: The function.
        inputs: Tensor, or tuple of tensors with equal first dimension.
        micro: Micro-batch size.
        what: What is being done, for messages.

    Returns:
        The concatenated results.
    """
    done: list[torch.Tensor] = []

    def rest() -> None:
        start = sum(map(len, done))
        for piece in micro.pieces(count_of(inputs) - start):
            result = function(rows(inputs, slice(start + piece.start, start + piece.stop)))
            done.append(result)

    retry_on_oom(rest, lambda: None, count_of(inputs), micro, what)
    return torch.cat(done)


def count_of(inputs: Inputs) -> int:
    """Return the number of images in a batch."""
    return len(inputs if isinstance(inputs, torch.Tensor) else inputs[0])


def rows(inputs: Inputs, part: slice) -> Inputs:
    """Return a slice of a batch."""
    return inputs[part] if isinstance(inputs, torch.Tensor) else tuple(one[part] for one in inputs)


class TrainingSnapshot:
    """Mutable state of a network before a step: CPU and GPU random states, and buffers of modules in training mode."""

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
        """Restore the state."""
        torch.set_rng_state(self.random)
        if self.random_cuda:
            torch.cuda.set_rng_state_all(self.random_cuda)
        with torch.no_grad():
            for buffer, before in self.buffers:
                buffer.copy_(before)


@contextlib.contextmanager
def trial_steps(model: nn.Module) -> Iterator[None]:
    """Context for trial steps: restores buffers and random states afterwards and clears gradients."""
    before = TrainingSnapshot(model)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        before.restore()


def trains_batchnorm(model: nn.Module) -> bool:
    """Return whether any BatchNorm layer uses batch statistics."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())


def measure_need(
    model: nn.Module, step: Callable[[int], object], sizes: tuple[int, int], device: torch.device, copies: float
) -> StepMemory:
    """Estimate the memory of a training step by a linear fit through two measured sizes.

    Args:
        model: The network.
        step: Runs forward and backward pass on a number of images.
        sizes: The two numbers of images.
        device: The device.
        copies: Number of additional copies of each trainable parameter: optimizer state, averages, best weights.

    Returns:
        The estimate.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    measure = _peak if device.type == "cuda" else _kept_by_autograd
    with trial_steps(model):
        low, high = (measure(model, partial(step, n), device) for n in sizes)
    photo = max(1, (high - low) // (sizes[1] - sizes[0]))
    fixed = max(0, low - photo * sizes[0])
    gradients = 0 if device.type == "cuda" else trained  # the peak on a GPU includes gradients
    return StepMemory(int(fixed + gradients + copies * trained), int(photo))


def _peak(model: nn.Module, step: Callable[[], object], device: torch.device) -> int:
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _kept_by_autograd(model: nn.Module, step: Callable[[], object], device: torch.device) -> int:
    """Return the bytes of all distinct storages that autograd saves for the backward pass.

    Storages of the network's own parameters and buffers do not count.
    """
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
    """Return the bytes that this process may still allocate on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    _give_back_heap()
    return min(int(psutil.virtual_memory().available), cgroup_room()) // _sharing


def memory_budget(device: torch.device, share: int) -> int:
    """Return the bytes that a training plans with: a fraction of the machine's total memory, whatever is free now.

    Args:
        device: The device.
        share: Number of trainings that can run in parallel on the CPU.

    Returns:
        Number of bytes.
    """
    if device.type == "cuda":
        return int(_PLANNED_GPU * torch.cuda.get_device_properties(device).total_memory)
    return int(_PLANNED * min(int(psutil.virtual_memory().total), cgroup_limit()) / max(1, share))


def share_memory(processes: int) -> None:
    """Set the number of processes, including this one, that train in parallel."""
    global _sharing
    _sharing = max(1, processes)


def cgroup_room(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes left below the memory limits of this process's cgroups (v1 or v2) and their parents.

    Containers and job schedulers set such limits, and the kernel kills processes that exceed them. Cached files count
    as free.

    Args:
        root: Mount point of the cgroup file system.
        own: File that lists the cgroups of this process.

    Returns:
        Number of bytes; `sys.maxsize` without a limit.
    """
    return min((_room_of(folder, *names) for folder, names in _cgroups(root, own)), default=sys.maxsize)


def cgroup_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the smallest memory limit, in bytes, of this process's cgroups and their parents, regardless of usage."""
    return min((_limit_of(folder, names[0]) for folder, names in _cgroups(root, own)), default=sys.maxsize)


def _cgroups(root: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield folders of this process's cgroups with the names of their files: limit, usage, cached bytes."""
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
            # Inside a container the path may be that of the host, which does not exist; the process's own cgroup is
            # then `top`.
            for folder in (place, *place.parents):
                yield folder, names
                if folder == top:
                    break


def _room_of(folder: Path, limit: str, usage: str, cached: str) -> int:
    most = _limit_of(folder, limit)
    if most == sys.maxsize:
        return most
    try:
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, most - used + int(stat.get(cached, 0)))
    except (OSError, ValueError):
        return sys.maxsize


def _limit_of(folder: Path, name: str) -> int:
    try:
        most = (folder / name).read_text().strip()
        return sys.maxsize if most == "max" else int(most)
    except (OSError, ValueError):
        return sys.maxsize


def tune_malloc() -> bool:
    """Configure glibc's malloc to keep large freed blocks instead of returning them to the kernel.

    Each step frees and allocates the same hundreds of megabytes. As mmapped blocks they would be fresh pages each time,
    which the kernel has to clear one by one; see mallopt(3).

    Returns:
        True if it succeeded; False on other systems, where nothing is done.
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
    """Return freed heap memory to the system, so that it counts as available."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            return libc
    return None
