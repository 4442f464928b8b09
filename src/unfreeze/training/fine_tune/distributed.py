"""Data-parallel training of one network by several processes.

Every process draws the same effective batches in the same order and processes its part of each. Sampling, mixing, the
number of steps and the pairing of images therefore do not depend on the number of processes, and no image is padded or
counted twice. Gradients are summed explicitly instead of with the hooks of DistributedDataParallel, because a backward
pass without communication can be repeated by a single process that ran out of memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from unfreeze.core.errors import EngineError

# Timeout for collective operations: the first process may be timing its plan while the others wait.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class ProcessGroup:
    """Group of processes that train one network; by default a single process.

    Attributes:
        rank: Rank of this process. Rank 0 writes files and reports rows.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of `count` rows. The parts are even, in order, and cover each row once."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each parameter's gradient over the processes, in place; None if no process has one."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        device = trained[0].device
        there = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=device)
        dist.all_reduce(there, op=dist.ReduceOp.MAX)
        some = [p for p, any_has in zip(trained, there.tolist(), strict=True) if any_has]
        for parameter in some:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in dict.fromkeys(p.grad.dtype for p in some if p.grad is not None):
            grads = [p.grad for p in some if p.grad is not None and p.grad.dtype == dtype]
            flat = torch.cat([g.reshape(-1) for g in grads])  # one message instead of hundreds
            dist.all_reduce(flat)
            start = 0
            for grad in grads:
                grad.copy_(flat[start : start + grad.numel()].view_as(grad))
                start += grad.numel()

    def total(self, value: float) -> float:
        """Return the sum of a number over the processes, identical on each."""
        if self.size == 1:
            return value
        one = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.all_reduce(one)
        return float(one.item())

    def agreed(self, value: float) -> float:
        """Return the value of rank 0, for decisions that depend on clocks or free memory."""
        if self.size == 1:
            return value
        one = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.broadcast(one, 0)
        return float(one.item())

    def wait(self) -> None:
        """Block until every process has reached this call."""
        if self.size > 1:
            dist.barrier()

    def gathered(self, own: torch.Tensor, count: int) -> torch.Tensor:
        """Gather rows from all processes.

        Args:
            own: This process's rows, the part `share(count)`.
            count: Total number of rows.

        Returns:
            (count, ...) rows in order, exact, on every process.
        """
        if self.size == 1:
            return own
        parts = [ProcessGroup(rank, self.size).share(count) for rank in range(self.size)]
        most = max(part.stop - part.start for part in parts)
        padded = torch.zeros((most, *own.shape[1:]), dtype=own.dtype, device=_device())
        padded[: len(own)] = own.to(padded.device)
        found = [torch.empty_like(padded) for _ in parts]
        dist.all_gather(found, padded)
        rows = [one[: part.stop - part.start] for one, part in zip(found, parts, strict=True)]
        return torch.cat(rows).to(own.device)

    def average_buffers(self, model: nn.Module) -> None:
        """Average the BatchNorm statistics over the processes, each of which has seen its part of the batches."""
        if self.size == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        dist.all_reduce(buffer)
                        buffer /= self.size


@contextlib.contextmanager
def init_process_group(rank: int, size: int, meeting: Path | None = None) -> Iterator[ProcessGroup]:
    """Join the process group for the duration of the block: gloo on CPUs, NCCL if each process has its own GPU.

    The processes meet through a file, because a TCP store would listen on every address of the machine without
    authentication. They communicate over the loopback interface.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        meeting: Rendezvous file, which must not exist yet, in a folder that only this user can access; None for one
            process.

    Yields:
        The process group.

    Raises:
        EngineError: If the other processes do not join.
    """
    if size == 1 or meeting is None:
        yield ProcessGroup()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if interface := _loopback():
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
    try:
        store = dist.FileStore(str(meeting), size)
        store.set_timeout(_PATIENCE)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"process {rank + 1} of {size} cannot join the others ({reason}).") from None
    try:
        yield ProcessGroup(rank, size)
    finally:
        dist.destroy_process_group()


def _loopback() -> str:
    """Return the name of the interface with address 127.0.0.1, or ''."""
    import psutil  # type: ignore[import-untyped]

    addresses = psutil.net_if_addrs()
    return next((name for name, found in addresses.items() if any(a.address == "127.0.0.1" for a in found)), "")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
