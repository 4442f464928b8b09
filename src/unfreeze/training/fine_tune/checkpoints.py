"""Training checkpoints: the state after the last epoch, to resume from, and the best weights.

Files are written atomically, verified by digest, and loaded without unpickling arbitrary objects.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unfreeze.core.errors import RunError
from unfreeze.core.files import atomic_write, read_json, regular_file, write_json
from unfreeze.core.messages import option
from unfreeze.core.progress import Reporter

_VERSION = 1
_MARK = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Progress of a training after an epoch.

    Attributes:
        identity: Hash of recipe, data and plan; a training with another one does not resume from here.
        epoch: Number of completed epochs.
        seconds: Time spent.
        micro_batch: Micro-batch size, which running out of memory may have reduced.
        rows: Rows that `fit` has yielded.
        best: Number of the epoch (from 1) whose weights are in `best_file`, or 0.
        finished: Whether training is complete.
        digests: File name -> BLAKE2b digest.
    """

    identity: str
    epoch: int
    seconds: float
    micro_batch: int
    rows: list[dict[str, Any]]
    best: int = 0
    finished: bool = False
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def state_file(self) -> str:
        """Name of the file with the state after the last epoch."""
        return f"last-{self.epoch}.pt"

    @property
    def best_file(self) -> str:
        """Name of the file with the best weights, or '' if there are none."""
        return f"best-{self.best}.safetensors" if self.best else ""


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a network's state dict on the CPU, with each tensor contiguous and in its own storage."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def save_best(folder: Path, epoch: int, weights: dict[str, torch.Tensor]) -> str:
    """Write the best weights so far and return their digest. They take effect once `save` refers to them."""
    path = atomic_write(folder / f"best-{epoch}.safetensors", lambda p: save_file(weights, p))
    return _digest(path)


def save(folder: Path, checkpoint: Checkpoint, state: dict[str, Any], best_digest: str = "") -> None:
    """Write the state (tensors, numbers and containers of them) and then the JSON file that makes it valid.

    Files of earlier epochs are deleted afterwards, so there is always one complete checkpoint, even if the process is
    killed.

    Args:
        folder: Folder of the checkpoint.
        checkpoint: The progress.
        state: State of model, optimizer and so on.
        best_digest: Digest from `save_best`.
    """
    path = atomic_write(folder / checkpoint.state_file, lambda p: torch.save(state, p))
    digests = {checkpoint.state_file: _digest(path)}
    if checkpoint.best:
        digests[checkpoint.best_file] = best_digest
    write_json(folder / _MARK, {"version": _VERSION, **asdict(checkpoint), "digests": digests})
    for old in (*folder.glob("last-*.pt"), *folder.glob("best-*.safetensors")):
        if old.name not in digests:
            with contextlib.suppress(OSError):
                old.unlink()


def load(folder: Path, identity: str, reporter: Reporter) -> tuple[Checkpoint, dict[str, Any]] | None:
    """Load a checkpoint and its state onto the CPU.

    A checkpoint that cannot be used is reported.

    Args:
        folder: Folder of the checkpoint.
        identity: Expected identity.
        reporter: Progress reporter.

    Returns:
        The checkpoint and its state, or None if it is missing, of another training, or damaged.
    """
    mark = folder / _MARK
    if not mark.exists():
        return None
    try:
        written = read_json(mark)
        if written.pop("version") != _VERSION:
            reporter.say(f"{mark}: written by another version; training starts over.")
            return None
        checkpoint = Checkpoint(**written)
        if checkpoint.identity != identity:
            reporter.say(f"{mark}: from another recipe, dataset or plan; training starts over.")
            return None
        for name, digest in checkpoint.digests.items():
            if _digest(folder / name) != digest:
                raise ValueError(f"{name} is damaged")
        state = torch.load(regular_file(folder / checkpoint.state_file), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise all kinds of exceptions
        reporter.say(f"{mark}: the checkpoint is damaged ({error}); training starts over.")
        return None
    return checkpoint, state


def load_best(folder: Path, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Load the best weights onto the CPU.

    Raises:
        RunError: If they cannot be read.
    """
    path = folder / checkpoint.best_file
    try:
        return load_file(regular_file(path))
    except Exception as error:  # errors of safetensors and of the operating system
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with {option('force', True)}.") from None


def _digest(path: Path) -> str:
    with regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
