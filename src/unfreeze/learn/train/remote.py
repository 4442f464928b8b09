"""Folds trained as tasks of a cluster: the same job, the same files, a worker anywhere that reaches them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unfreeze.core.cluster import Cluster
from unfreeze.core.progress import Reporter
from unfreeze.learn.train.jobs import Job

_TOLD = "told.jsonl"


def train_remote(
    where: Cluster,
    todo: list[tuple[Job, Path, Path]],
    seconds: float,
    threads: int,
    tell: Callable[[int, dict[str, Any]], None],
    ended: Callable[[int], None],
    reporter: Reporter,
) -> None:
    """Does each job (job, its folder, the file that its network goes to) as a task; all lie where every worker reaches.

    threads: of each; 0: the cluster's cores, shared. tell, ended: told of each row of a job, and of its end, by its
    place in `todo`. A task whose worker dies goes on from its last checkpoint on another one. Raises what a job raises.
    """
    side_by_side = min(len(todo), where.gpus or where.cpus)
    threads = threads or max(1, where.cpus // side_by_side)
    followed = []
    for i, (job, place, _) in enumerate(todo):
        if seconds:  # of waves of jobs that run side by side, each has its share of the time
            waves = math.ceil(len(todo) / side_by_side)
            within = seconds * (i // side_by_side + 1) / waves
            job = replace(job, ends=time.time() + within, within=within)
        job.write(place)
        (place / _TOLD).unlink(missing_ok=True)
        followed.append(_Followed(place / _TOLD))

    def look() -> None:
        for i, one in enumerate(followed):
            for message in one.fresh():
                if "row" in message:
                    tell(i, message["row"])
                elif "say" in message:
                    reporter.say(message["say"])
                elif "done" in message:
                    ended(i)

    tasks = [(str(place.absolute()), str(kept.absolute()), threads, side_by_side) for _, place, kept in todo]
    where.run(train_here, tasks, cpus=min(threads, where.cpus), look=look)
    look()


def train_here(task: tuple[str, str, int, int]) -> None:
    """The task: a job's folder, the file that its network goes to, threads, and how many train side by side."""
    import torch

    from unfreeze.learn.train.jobs import do
    from unfreeze.learn.train.memory import share_memory

    place, kept, threads, side_by_side = Path(task[0]), Path(task[1]), task[2], task[3]
    torch.set_num_threads(threads)
    share_memory(side_by_side)
    with (place / _TOLD).open("a", encoding="utf-8") as file:

        def write(message: dict[str, Any]) -> None:
            file.write(json.dumps(message) + "\n")
            file.flush()

        class Written(Reporter):
            def say(self, text: str) -> None:
                write({"say": text})

        do(Job.read(place), place, kept, lambda row: write({"row": row}), Written())
        write({"done": place.name})


@dataclass
class _Followed:
    """A file of lines that another process appends to; whole lines are read once."""

    path: Path
    at: int = 0
    rest: bytes = field(default=b"")

    def fresh(self) -> list[dict[str, Any]]:
        """What has come since; a line that a killed worker left half-written is passed over."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.at)
                found = file.read()
        except OSError:
            return []
        self.at += len(found)
        *lines, self.rest = (self.rest + found).split(b"\n")
        messages = []
        for line in lines:
            try:
                messages.append(json.loads(line))
            except ValueError:
                continue
        return messages
