"""Fine-tuning over folds: jobs are written, done side by side in processes of their own, and gathered."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
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
from unfreeze.core.cluster import cluster
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.files import write_text
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import read_log
from unfreeze.core.work import cores
from unfreeze.learn.train.jobs import Job
from unfreeze.learn.train.remote import train_remote
from unfreeze.learn.train.together import free_port

# Epochs that a fold counts beside its own: start-up and prediction.
_BESIDE = 1
# Seconds that a fold has at least, whatever the budget: less than an epoch teaches nothing.
_LEAST = 2.0


def train_folds(
    jobs: list[Job], folder: Path, reporter: Reporter, seconds: float = 0.0
) -> dict[int, NDArray[np.float64]]:
    """Probabilities float64 (len(out), C) of each job's fold; networks go to `folder/fold-K/model.safetensors`.

    On a CPU folds train side by side, each with its share of the cores: two threads that wait for each other in every
    layer, on cores that are shared, were measured at a quarter of the speed of one. On GPUs they take turns, one a GPU,
    or one on `train.processes` GPUs. What
    an earlier, interrupted run has finished is taken as it is; an unfinished fold goes on from its last epoch.
    seconds: for all folds together; 0: no limit. Raises what a fold raises, after the others were stopped.
    """
    found = train_jobs([(job, folder) for job in jobs], reporter, seconds)
    return {job.fold: probabilities for job, probabilities in zip(jobs, found, strict=True)}


def train_jobs(
    jobs: list[tuple[Job, Path]],
    reporter: Reporter,
    seconds: float = 0.0,
    threads: int = 0,
    what: str = "Training {count} fold(s), {workers} at a time",
) -> list[NDArray[np.float64]]:
    """The same for folds of any runs, each with its run folder; probabilities in their order.

    threads: of each network; 0: the cores, shared. what: the bar's text.
    """
    places = [folder / "scratch" / f"fold-{job.fold}" for job, folder in jobs]
    kept = [model_file(folder, job.fold) for job, folder in jobs]
    todo = [i for i, (job, _) in enumerate(jobs) if not _finished(job, places[i], kept[i])]
    processes = jobs[0][0].settings.processes if jobs else 1
    workers = max(1, min((gpus() or cores()) // processes, len(jobs)))
    threads = threads or max(1, cores() // (workers * processes))
    ends = time.monotonic() + seconds
    queue, events = deque(todo), Queue[int | BaseException | None]()
    running, stop = list[_Worker](), threading.Event()
    voice = _Once(reporter)

    def tell(i: int, row: dict[str, Any]) -> None:
        # From here on the run folder holds something that an error must not take away: a checkpoint.
        kept[i].parent.mkdir(parents=True, exist_ok=True)
        job, folder = jobs[i]
        _log(folder, job.fold, row)
        events.put(1)

    if (where := cluster()) and todo:
        with reporter.bar(
            what.format(count=len(todo), workers=min(len(todo), where.gpus or where.cpus)), _steps(jobs, todo)
        ) as advance:

            def told(i: int, row: dict[str, Any]) -> None:
                tell(todo[i], row)
                advance(1)

            some = [(jobs[i][0], places[i], kept[i]) for i in todo]
            train_remote(where, some, seconds, threads, told, lambda _: advance(_BESIDE), voice)
        return [load_array(place / "probabilities.npy") for place in places]

    def work(number: int) -> None:
        """One worker: starts its process, and gives it jobs while there are any."""
        try:
            with _Worker(threads, workers * processes, processes, number) as worker:
                running.append(worker)
                while queue and not stop.is_set():
                    left = math.ceil(len(queue) / workers)
                    try:
                        i = queue.popleft()
                    except IndexError:  # another worker was faster
                        break
                    job = jobs[i][0]
                    if seconds:
                        within = max(_LEAST, (ends - time.monotonic()) / left)
                        job = replace(job, ends=time.time() + within, within=within)
                    job.write(places[i])
                    worker.do(places[i], kept[i], partial(tell, i), voice)
                    events.put(_BESIDE)
        except BaseException as error:  # raised where it can be caught: in the main thread
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
                    event = events.get(timeout=1)  # not for ever: on some systems Ctrl-C waits as long
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
            for worker in running:  # an error or Ctrl-C: the folds keep their checkpoints
                worker.stop()
            for thread in crew:
                if thread.ident is not None:
                    thread.join(10)
    return [load_array(place / "probabilities.npy") for place in places]


def _steps(jobs: list[tuple[Job, Path]], todo: list[int]) -> int:
    """Steps of the bar: epochs, and what stands beside them."""
    return sum(jobs[i][0].settings.epochs + _BESIDE for i in todo)


class _Once(Reporter):
    """Lines that several folds say are said once."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.said = reporter, set[str]()

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.reporter.say(text)


class _Worker:
    """A process, or several that train each fold together, which do the folds that they are given one after the other.

    number: which of the workers it is; on GPUs each process has its own one. workers: processes that train at once.
    """

    def __init__(self, threads: int, workers: int, processes: int = 1, number: int = 0) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "unfreeze.learn.train.worker", str(threads), str(workers)]
        port = str(free_port()) if processes > 1 else "0"
        self._said = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(processes)]  # noqa: SIM115 - closed in __exit__
        self._told = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(processes - 1)]  # noqa: SIM115
        self.crew: list[subprocess.Popen[str]] = []
        for rank in range(processes):
            if gpus() > 1:
                environment["CUDA_VISIBLE_DEVICES"] = str(_device(number * processes + rank))
            self.crew.append(
                subprocess.Popen(
                    command if processes == 1 else [*command, str(rank), str(processes), port],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if rank == 0 else self._told[rank - 1],
                    stderr=self._said[rank],
                    text=True,
                    env=environment,
                )
            )
        self.process = self.crew[0]  # the one that tells

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.crew:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        self.process.wait()
        for process in self.crew[1:]:  # where the first one has failed, the others wait for it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10 if self.process.returncode == 0 else 1)
            process.kill()
            process.wait()
        for file in (*self._said, *self._told):
            file.close()

    def stop(self) -> None:
        """Ends it, whatever it does."""
        for process in self.crew:
            if process.poll() is None:
                process.kill()

    def do(self, place: Path, kept: Path, tell: Callable[[dict[str, Any]], None], reporter: Reporter) -> None:
        """Does the job in `place`, forwards rows and lines, and raises its error as our own."""
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
                raise _error(message)
        for file in self._told:  # one of the others may know better why
            file.seek(0)
            for message in map(_message, file):
                if "error" in message:
                    raise _error(message)
        raise errors.EngineError(
            f"{place.name}: its training process ended ({self._reason()}); run the same command to go on."
        )

    def _reason(self) -> str:
        """Why the process ended: the signal, or the last line of what it said."""
        self.process.wait()
        killed = [process for process in self.crew if (process.poll() or 0) < 0]
        if killed:
            code = killed[0].returncode
            by = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"killed by {by}" + (", most often for want of memory" if by == "SIGKILL" else "")
        self._said[0].seek(0)
        tail = self._said[0].read().strip().splitlines()
        return tail[-1] if tail else f"exit code {self.process.returncode}"


def _error(message: dict[str, Any]) -> UnfreezeError:
    kind = getattr(errors, message["error"], UnfreezeError)
    return UnfreezeError(message["text"]) if kind is errors.PhotoError else kind(message["text"])


def _message(line: str) -> dict[str, Any]:
    """A line of the worker's; a library's own print is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


_LOCK = threading.Lock()


def _log(folder: Path, fold: int, row: dict[str, Any]) -> None:
    """Puts a row into log.jsonl. A fold that is taken up tells its earlier rows anew: they replace the old ones."""
    path = folder / "log.jsonl"
    with _LOCK:
        rows = read_log(folder)
        kept = [r for r in rows if r["fold"] != fold or r["epoch"] < row["epoch"]]
        kept.append({"fold": fold, **row})
        kept.sort(key=lambda r: (r["fold"], r["epoch"]))
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))


def model_file(folder: Path, fold: int) -> Path:
    """Where a run keeps a fold's network."""
    return folder / f"fold-{fold}" / "model.safetensors"


def _finished(job: Job, place: Path, kept: Path) -> bool:
    """Whether the fold's network and probabilities are there and of this very job."""
    try:
        with safe_open(kept, "numpy") as file:
            identity = (file.metadata() or {}).get("identity")
        found = load_array(place / "probabilities.npy", mapped=True)
    except (OSError, ValueError, SafetensorError):
        return False
    return identity == job.identity() and found.shape == (len(job.out), job.classes)


def gpus() -> int:
    """How many GPUs this process may use."""
    from unfreeze.model.engines import _has_gpu

    if not _has_gpu():
        return 0
    import torch

    return torch.cuda.device_count()


def _device(number: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls the GPU of that number, which may be one of a few that a queue has given."""
    given = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return given[number % len(given)] if given else str(number % gpus())
