"""Launcher for fine-tuning folds as cluster tasks.

Jobs and files are the same as for local processes. All paths must be accessible from every worker of the cluster.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unfreeze.core.parallel import RayBackend
from unfreeze.core.progress import Reporter
from unfreeze.training.fine_tune.fold_job import FoldJob

_MESSAGES = "messages.jsonl"


def train_remote(
    where: RayBackend,
    todo: list[tuple[FoldJob, Path, Path]],
    seconds: float,
    threads: int,
    tell: Callable[[int, dict[str, Any]], None],
    ended: Callable[[int], None],
    reporter: Reporter,
) -> None:
    """Run each job as a cluster task. A task whose worker dies resumes from its last checkpoint on another worker.

    Args:
        where: The cluster.
        todo: Job, its folder and the file for its network.
        seconds: Time for all jobs together; 0 means no limit.
        threads: Threads per job; 0 means an equal share of the cluster's cores.
        tell: Called with the index of a job in `todo` and each of its rows.
        ended: Called with the index of a job when it has finished.
        reporter: Progress reporter.

    Raises:
        UnfreezeError: The error of a job.
    """
    side_by_side = min(len(todo), where.gpus or where.cpus)
    threads = threads or max(1, where.cpus // side_by_side)
    followed = []
    for i, (job, place, _) in enumerate(todo):
        if seconds:  # jobs run in waves, each of which gets its share of the time
            waves = math.ceil(len(todo) / side_by_side)
            within = seconds * (i // side_by_side + 1) / waves
            job = replace(job, ends=time.time() + within, within=within)
        job.write(place)
        (place / _MESSAGES).unlink(missing_ok=True)
        followed.append(_Followed(place / _MESSAGES))

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
    """Run a task: job folder, file for the network, number of threads, and number of jobs that run in parallel."""
    import torch

    from unfreeze.training.fine_tune.fold_job import run_fold_job
    from unfreeze.training.fine_tune.memory import share_memory

    place, kept, threads, side_by_side = Path(task[0]), Path(task[1]), task[2], task[3]
    torch.set_num_threads(threads)
    share_memory(side_by_side)
    with (place / _MESSAGES).open("a", encoding="utf-8") as file:

        def write(message: dict[str, Any]) -> None:
            file.write(json.dumps(message) + "\n")
            file.flush()

        class Written(Reporter):
            def say(self, text: str) -> None:
                write({"say": text})

        run_fold_job(FoldJob.read(place), place, kept, lambda row: write({"row": row}), Written())
        write({"done": place.name})


@dataclass
class _Followed:
    """Incremental reader of a file of JSON lines that another process appends to."""

    path: Path
    at: int = 0
    rest: bytes = field(default=b"")

    def fresh(self) -> list[dict[str, Any]]:
        """Return the messages since the last call. A line that a killed worker left incomplete is skipped."""
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
