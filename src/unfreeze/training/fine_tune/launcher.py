"""Launcher for fine-tuning: writes a job per fold, runs the jobs in parallel processes, and collects the results.

Jobs also run as tasks of a cluster (see `ray_launcher`), or in this process if the backbone is defined by the user.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from unfreeze.core import errors
from unfreeze.core.cache import load_array
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.files import regular_file, write_text
from unfreeze.core.messages import from_command_line
from unfreeze.core.parallel import cluster, cores
from unfreeze.core.processes import child_environment, python_command
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import read_log
from unfreeze.models.architectures import defined_outside
from unfreeze.training.fine_tune.fold_job import FoldJob, run_fold_job
from unfreeze.training.fine_tune.ray_launcher import train_remote

# Progress bar steps of a fold in addition to its epochs, for startup and prediction.
_BESIDE = 1
# Minimum time per fold in seconds, whatever the budget.
_LEAST = 2.0


def train_folds(
    jobs: list[FoldJob], folder: Path, reporter: Reporter, seconds: float = 0.0
) -> dict[int, NDArray[np.float64]]:
    """Train the folds of a run. Networks are saved to `folder/fold-K/model.safetensors`.

    On a CPU, folds train in parallel, each with its share of the cores: two threads that synchronize after every layer,
    on shared cores, were measured at a quarter of the speed of one. On GPUs, each fold uses one GPU, or
    `train.processes_per_fold` of them, and the folds are queued. Folds that an earlier, interrupted run has finished
    are not
    repeated, and an unfinished fold resumes from its last checkpoint.

    Args:
        jobs: The jobs.
        folder: The run folder.
        reporter: Progress reporter.
        seconds: Time for all folds together; 0 means no limit.

    Returns:
        Fold -> probabilities float64 (len(out), C).

    Raises:
        UnfreezeError: The error of a fold, after the other folds were stopped.
    """
    found = train_jobs([(job, folder) for job in jobs], reporter, seconds)
    return {job.fold: probabilities for job, probabilities in zip(jobs, found, strict=True)}


def train_jobs(
    jobs: list[tuple[FoldJob, Path]],
    reporter: Reporter,
    seconds: float = 0.0,
    threads: int = 0,
    what: str = "Training {count} fold(s), {workers} at a time",
) -> list[NDArray[np.float64]]:
    """Train jobs of any runs, as `train_folds`.

    Args:
        jobs: Pairs of job and run folder.
        reporter: Progress reporter.
        seconds: Time for all jobs together; 0 means no limit.
        threads: Threads per network; 0 means an equal share of the cores.
        what: Label of the progress bar.

    Returns:
        Probabilities float64 (len(out), C) of each job, in order.

    Raises:
        UnfreezeError: The error of a job, after the other jobs were stopped.
    """
    places = [folder / "scratch" / f"fold-{job.fold}" for job, folder in jobs]
    kept = [model_file(folder, job.fold) for job, folder in jobs]
    todo = [i for i, (job, _) in enumerate(jobs) if not _finished(job, places[i], kept[i])]
    processes = jobs[0][0].settings.processes_per_fold if jobs else 1
    own = any(defined_outside(job.recipe.backbone) for job, _ in jobs)
    workers = 1 if own else max(1, min((gpus() or cores()) // processes, len(jobs)))
    threads = threads or max(1, cores() // (workers * processes))
    ends = time.monotonic() + seconds
    queue, events = deque(todo), Queue[int | BaseException | None]()
    running, stop = list[_Worker](), threading.Event()
    once = _Once(reporter)

    def tell(i: int, row: dict[str, Any]) -> None:
        # From now on the run folder contains a checkpoint, which cleanup after an error must not delete.
        kept[i].parent.mkdir(parents=True, exist_ok=True)
        job, folder = jobs[i]
        _log(folder, job.fold, row)
        events.put(1)

    if own and todo:
        _train_here([(i, jobs[i][0], places[i], kept[i]) for i in todo], threads, ends if seconds else 0.0, tell, once)
        return [load_array(place / "probabilities.npy") for place in places]

    if (where := cluster()) and todo:
        with reporter.bar(
            what.format(count=len(todo), workers=min(len(todo), where.gpus or where.cpus)), _steps(jobs, todo)
        ) as advance:

            def log_row(i: int, row: dict[str, Any]) -> None:
                tell(todo[i], row)
                advance(1)

            some = [(jobs[i][0], places[i], kept[i]) for i in todo]
            train_remote(where, some, seconds, threads, log_row, lambda _: advance(_BESIDE), once)
        return [load_array(place / "probabilities.npy") for place in places]

    def work(number: int) -> None:
        """Start a worker process and feed it jobs until the queue is empty."""
        try:
            with _Worker(threads, workers * processes, processes, number) as worker:
                running.append(worker)
                while queue and not stop.is_set():
                    left = math.ceil(len(queue) / workers)
                    try:
                        i = queue.popleft()
                    except IndexError:  # another worker took the last job
                        break
                    job = jobs[i][0]
                    if seconds:
                        within = max(_LEAST, (ends - time.monotonic()) / left)
                        job = replace(job, ends=time.time() + within, within=within)
                    job.write(places[i])
                    worker.do(places[i], kept[i], partial(tell, i), once)
                    events.put(_BESIDE)
        except BaseException as error:  # re-raised in the main thread
            events.put(error)
        else:
            events.put(None)

    crew = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(min(workers, len(todo)))]
    with reporter.bar(what.format(count=len(todo), workers=workers), _steps(jobs, todo)) as advance:
        try:
            for thread in crew:
                thread.start()
            working = len(crew)
            while working:
                try:
                    event = events.get(timeout=1)  # a timeout keeps Ctrl-C responsive on all systems
                except Empty:
                    continue
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    working -= 1
                else:
                    advance(event)
        finally:
            stop.set()
            for worker in running:  # after an error or Ctrl-C the folds keep their checkpoints
                worker.stop()
            for thread in crew:
                if thread.ident is not None:
                    thread.join(10)
    return [load_array(place / "probabilities.npy") for place in places]


def _train_here(
    jobs: list[tuple[int, FoldJob, Path, Path]],
    threads: int,
    ends: float,
    tell: Callable[[int, dict[str, Any]], None],
    reporter: Reporter,
) -> None:
    """Train the folds sequentially in this process.

    Other processes do not know a backbone that the user has registered with timm.

    Args:
        jobs: Index, job, its folder and the file for its network.
        threads: Number of threads.
        ends: Deadline as from `time.monotonic()`; 0 means no limit.
        tell: Called with the index and each row of the log.
        reporter: Progress reporter.

    Raises:
        BackboneError: If a cluster or several processes are requested.
    """
    import torch

    name = jobs[0][1].recipe.backbone
    if cluster() or jobs[0][1].settings.processes_per_fold > 1:
        raise errors.BackboneError(
            f"{name}: is registered with timm in this process only, and cannot train on a cluster or with "
            "train.processes_per_fold above 1."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with reporter.bar(f"Training {len(jobs)} fold(s)", len(jobs)) as advance:
            for number, (i, job, place, kept) in enumerate(jobs):
                if ends:
                    within = max(_LEAST, (ends - time.monotonic()) / (len(jobs) - number))
                    job = replace(job, ends=time.time() + within, within=within)
                with torch.random.fork_rng():  # leaves the user's random state unchanged
                    run_fold_job(job, place, kept, partial(tell, i), reporter)
                advance(1)
    finally:
        torch.set_num_threads(before)


def _steps(jobs: list[tuple[FoldJob, Path]], todo: list[int]) -> int:
    """Return the number of steps of the progress bar."""
    return sum(jobs[i][0].settings.epochs + _BESIDE for i in todo)


class _Once(Reporter):
    """Reporter that drops repeated lines, since several folds report the same."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.said = reporter, set[str]()

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.reporter.say(text)


class _Worker:
    """Worker process, or group of processes that train each fold together, which runs jobs one after the other.

    Args:
        threads: Threads per process.
        workers: Number of processes that train at the same time.
        processes: Number of processes in this worker.
        number: Index of this worker. Each process uses its own GPU, if there are any.
    """

    def __init__(self, threads: int, workers: int, processes: int = 1, number: int = 0) -> None:
        # OMP_DYNAMIC: otherwise a busy machine may use fewer threads, which changes the order of sums.
        fixed = {"OMP_NUM_THREADS": str(threads), "OMP_DYNAMIC": "FALSE", "PYTHONUNBUFFERED": "1"}
        environment = child_environment(fixed)
        named = str(int(from_command_line()))
        command = python_command("unfreeze.training.fine_tune.worker", str(threads), str(workers), named)
        # Only this user has access to the folder, so nobody else can join the group.
        self._meeting = tempfile.TemporaryDirectory(prefix="unfreeze-train-")
        meeting = str(Path(self._meeting.name) / "meeting")
        self._said = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(processes)]  # noqa: SIM115 - closed in __exit__
        self._told = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(processes - 1)]  # noqa: SIM115
        self.crew: list[subprocess.Popen[str]] = []
        for rank in range(processes):
            if gpus() > 1:
                environment["CUDA_VISIBLE_DEVICES"] = str(_device(number * processes + rank))
            self.crew.append(
                subprocess.Popen(
                    command if processes == 1 else [*command, str(rank), str(processes), meeting],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if rank == 0 else self._told[rank - 1],
                    stderr=self._said[rank],
                    text=True,
                    env=environment,
                )
            )
        self.process = self.crew[0]  # rank 0, which reports

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.crew:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        self.process.wait()
        for process in self.crew[1:]:  # if rank 0 has failed, the others wait for it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10 if self.process.returncode == 0 else 1)
            process.kill()
            process.wait()
        for file in (*self._said, *self._told):
            file.close()
        self._meeting.cleanup()

    def stop(self) -> None:
        """Kill the processes."""
        for process in self.crew:
            if process.poll() is None:
                process.kill()

    def do(self, place: Path, kept: Path, tell: Callable[[dict[str, Any]], None], reporter: Reporter) -> None:
        """Run the job in `place`, forward its rows and messages, and raise its error in this process."""
        for process in self.crew:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{place}\t{kept}\n")
                process.stdin.flush()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = _message(line)
            if "done" in message:
                return
            if "row" in message:
                tell(message["row"])
            elif "say" in message:
                reporter.say(message["say"])
            elif "error" in message:
                if lost := self._lost_peer():  # rank 0 knows only that the connection is gone
                    raise _ended(place, _signal_name(lost), True)
                raise _error(message)
        for file in self._told:  # another process may have reported the cause
            file.seek(0)
            for message in map(_message, file):
                if "error" in message:
                    raise _error(message)
        self.process.wait()
        killed = [process.returncode for process in self.crew if (process.poll() or 0) < 0]
        if killed:
            raise _ended(place, _signal_name(killed[0]), True)
        self._said[0].seek(0)
        tail = self._said[0].read().strip().splitlines()
        raise _ended(place, tail[-1] if tail else f"exit code {self.process.returncode}", False)

    def _lost_peer(self) -> int:
        """Return code of a killed process other than rank 0, or 0. Waits half a second for one that is ending."""
        for process in self.crew[1:]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.wait(0.5) < 0:
                    return process.returncode
        return 0


def _signal_name(code: int) -> str:
    by = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {by}" + (", most often because memory ran out" if by == "SIGKILL" else "")


def _ended(place: Path, reason: str, killed: bool) -> errors.EngineError:
    # Only external causes may be gone when the command is repeated.
    remedy = "; run the same command to continue" if killed else ""
    return errors.EngineError(f"{place.name}: its training process ended ({reason}){remedy}.")


def _error(message: dict[str, Any]) -> UnfreezeError:
    kind = getattr(errors, message["error"], UnfreezeError)
    return UnfreezeError(message["text"]) if kind is errors.PhotoError else kind(message["text"])


def _message(line: str) -> dict[str, Any]:
    """Parse a line from a worker. Lines that libraries print yield an empty dictionary."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


_LOCK = threading.Lock()


def _log(folder: Path, fold: int, row: dict[str, Any]) -> None:
    """Add a row to log.jsonl. A resumed fold reports its earlier rows again, which replaces the old ones."""
    path = folder / "log.jsonl"
    with _LOCK:
        rows = read_log(folder)
        kept = [r for r in rows if r["fold"] != fold or r["epoch"] < row["epoch"]]
        kept.append({"fold": fold, **row})
        kept.sort(key=lambda r: (r["fold"], r["epoch"]))
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))


def model_file(folder: Path, fold: int) -> Path:
    """Return the path of a fold's network in a run folder."""
    return folder / f"fold-{fold}" / "model.safetensors"


def _finished(job: FoldJob, place: Path, kept: Path) -> bool:
    """Return whether network and probabilities of the fold exist and belong to this job."""
    try:
        with safe_open(regular_file(kept), "numpy") as file:
            identity = (file.metadata() or {}).get("identity")
        found = load_array(place / "probabilities.npy", mapped=True)
    except (OSError, ValueError, SafetensorError):
        return False
    return identity == job.identity() and found.shape == (len(job.out), job.classes)


def gpus() -> int:
    """Return the number of GPUs that this process may use."""
    from unfreeze.models.engines import _has_gpu

    if not _has_gpu():
        return 0
    import torch

    return torch.cuda.device_count()


def _device(number: int) -> str:
    """Return the GPU's name for CUDA_VISIBLE_DEVICES, which may already be restricted by a job scheduler."""
    given = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return given[number % len(given)] if given else str(number % gpus())
