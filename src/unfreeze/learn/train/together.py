"""Several processes that train one network: who takes which part of a batch, gradients summed, answers gathered.

Every process draws the same effective batches in the same order and takes its part of each, so that sampling, mixing,
the number of steps and what a photo is paired with are those of one process, whatever the number of processes; no
photo is padded or counted twice. Gradients are summed by hand instead of by DistributedDataParallel's hooks, for a
backward pass without communication can be done again by one process alone where it ran out of memory.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from unfreeze.core.errors import EngineError

# Processes wait for each other so long: the first one may be timing its plan while the others wait.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Crew:
    """The processes that train a network together, and which of them this one is. One alone by default.

    rank: 0 writes files and tells rows; size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and tells."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` rows; the parts of all are even, in order, and cover each row once."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum over the processes; None where no process has one."""
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
        """The sum of a number over the processes; the same on each."""
        if self.size == 1:
            return value
        one = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.all_reduce(one)
        return float(one.item())

    def agreed(self, value: float) -> float:
        """The number of the process that leads, for what clocks or free memory would have each decide otherwise."""
        if self.size == 1:
            return value
        one = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.broadcast(one, 0)
        return float(one.item())

    def wait(self) -> None:
        """Goes on once every process has come here."""
        if self.size > 1:
            dist.barrier()

    def gathered(self, own: torch.Tensor, count: int) -> torch.Tensor:
        """Rows of all processes in order (count, ...), from each one's `share(count)`; exact, and on every process."""
        if self.size == 1:
            return own
        parts = [Crew(rank, self.size).share(count) for rank in range(self.size)]
        most = max(part.stop - part.start for part in parts)
        padded = torch.zeros((most, *own.shape[1:]), dtype=own.dtype, device=_device())
        padded[: len(own)] = own.to(padded.device)
        found = [torch.empty_like(padded) for _ in parts]
        dist.all_gather(found, padded)
        rows = [one[: part.stop - part.start] for one, part in zip(found, parts, strict=True)]
        return torch.cat(rows).to(own.device)

    def average_buffers(self, model: nn.Module) -> None:
        """BatchNorm's statistics become the mean over the processes, each of which has seen its part of batches."""
        if self.size == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        dist.all_reduce(buffer)
                        buffer /= self.size


@contextlib.contextmanager
def joined(rank: int, size: int, port: int, host: str = "127.0.0.1") -> Iterator[Crew]:
    """The crew while its processes are joined: gloo on CPUs, NCCL where each has a GPU of its own.

    Raises EngineError where the others do not come.
    """
    if size == 1:
        yield Crew()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend, init_method=f"tcp://{host}:{port}", rank=rank, world_size=size, timeout=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"process {rank + 1} of {size} cannot join the others ({reason}).") from None
    try:
        yield Crew(rank, size)
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
