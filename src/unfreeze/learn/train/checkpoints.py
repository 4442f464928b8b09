"""Checkpoints of a training: the last epoch, to go on from, and the best weights. Whole, checked, never unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unfreeze.core.errors import RunError
from unfreeze.core.files import write_json, write_whole
from unfreeze.core.progress import Reporter

_VERSION = 1
_MARK = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands after an epoch.

    identity: names recipe, data and plan; another one does not go on from here. epoch: epochs done. seconds: time
    spent. micro_batch: photos at once, which running out of memory may have lowered. rows: what `fit` yielded.
    best: number of the epoch (from 1) whose weights are kept in `best_file`, 0 if none.
    finished: nothing is left to train. digests: BLAKE2b of each file by its name.
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
        """Name of the file of the last epoch's state."""
        return f"last-{self.epoch}.pt"

    @property
    def best_file(self) -> str:
        """Name of the file of the best weights, '' if there are none."""
        return f"best-{self.best}.safetensors" if self.best else ""


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's state dict on the CPU, each tensor contiguous and on its own."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def save_best(folder: Path, epoch: int, weights: dict[str, torch.Tensor]) -> str:
    """Writes the best weights so far; gives their digest. They count once `save` has named them."""
    path = write_whole(folder / f"best-{epoch}.safetensors", lambda p: save_file(weights, p))
    return _digest(path)


def save(folder: Path, checkpoint: Checkpoint, state: dict[str, Any], best_digest: str = "") -> None:
    """Writes the state (tensors, numbers and their containers), then the mark that makes it count.

    Files of earlier epochs go only after that, so that a kill at any moment leaves one whole checkpoint.
    """
    path = write_whole(folder / checkpoint.state_file, lambda p: torch.save(state, p))
    digests = {checkpoint.state_file: _digest(path)}
    if checkpoint.best:
        digests[checkpoint.best_file] = best_digest
    write_json(folder / _MARK, {"version": _VERSION, **asdict(checkpoint), "digests": digests})
    for old in (*folder.glob("last-*.pt"), *folder.glob("best-*.safetensors")):
        if old.name not in digests:
            with contextlib.suppress(OSError):
                old.unlink()


def load(folder: Path, identity: str, reporter: Reporter) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The checkpoint and its state, on the CPU; None where there is none, it is of other work, or it is damaged.

    What is of no use is said.
    """
    mark = folder / _MARK
    if not mark.exists():
        return None
    try:
        written = json.loads(mark.read_text("utf-8"))
        if written.pop("version") != _VERSION:
            reporter.say(f"{mark}: of another version; this training starts anew.")
            return None
        checkpoint = Checkpoint(**written)
        if checkpoint.identity != identity:
            reporter.say(f"{mark}: of another recipe, other photos or another plan; this training starts anew.")
            return None
        for name, digest in checkpoint.digests.items():
            if _digest(folder / name) != digest:
                raise ValueError(f"{name} is damaged")
        state = torch.load(folder / checkpoint.state_file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything
        reporter.say(f"{mark}: the checkpoint is damaged ({error}); this training starts anew.")
        return None
    return checkpoint, state


def load_best(folder: Path, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The best weights, on the CPU. RunError if they cannot be read."""
    path = folder / checkpoint.best_file
    try:
        return load_file(path)
    except Exception as error:  # safetensors' own errors, and the system's
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with --force.") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
