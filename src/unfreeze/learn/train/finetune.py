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
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.files import write_text
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import read_log
from unfreeze.core.work import cores
from unfreeze.learn.train.jobs import Job

# Epochs that a fold counts beside its own: start-up and prediction.
_BESIDE = 1
# Seconds that a fold has at least, whatever the budget: less than an epoch teaches nothing.
_LEAST = 2.0


def train_folds(
    jobs: list[Job], folder: Path, reporter: Reporter, seconds: float = 0.0
) -> dict[int, NDArray[np.float64]]:
    """Probabilities float64 (len(out), C) of each job's fold; networks go to `folder/fold-K/model.safetensors`.

    On a CPU folds train side by side, each with its share of the cores: two threads that wait for each other in every
    layer, on cores that are shared, were measured at a quarter of the speed of one. On a GPU they take turns. What
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
    workers = min(cores(), len(jobs)) if not _gpu() else 1
    threads = threads or max(1, cores() // workers)
    ends = time.time() + seconds
    queue, events = deque(todo), Queue[int | BaseException | None]()
    running, stop = list[_Worker](), threading.Event()
    voice = _Once(reporter)

    def tell(i: int, row: dict[str, Any]) -> None:
        # From here on the run folder holds something that an error must not take away: a checkpoint.
        kept[i].parent.mkdir(parents=True, exist_ok=True)
        job, folder = jobs[i]
        _log(folder, job.fold, row)
        events.put(1)

    def work() -> None:
        """One worker: starts its process, and gives it jobs while there are any."""
        try:
            with _Worker(threads, workers) as worker:
                running.append(worker)
                while queue and not stop.is_set():
                    left = math.ceil(len(queue) / workers)
                    try:
                        i = queue.popleft()
                    except IndexError:  # another worker was faster
                        break
                    job = jobs[i][0]
                    if seconds:
                        now = time.time()
                        job = replace(job, ends=now + max(_LEAST, (ends - now) / left))
                    job.write(places[i])
                    worker.do(places[i], kept[i], partial(tell, i), voice)
                    events.put(_BESIDE)
        except BaseException as error:  # raised where it can be caught: in the main thread
            events.put(error)
        else:
            events.put(None)

    crew = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(todo)))]
    epochs = sum(jobs[i][0].settings.epochs + _BESIDE for i in todo)
    with reporter.bar(what.format(count=len(todo), workers=workers), epochs) as advance:
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
    return [np.load(place / "probabilities.npy", allow_pickle=False) for place in places]


class _Once(Reporter):
    """Lines that several folds say are said once."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.said = reporter, set[str]()

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.reporter.say(text)


class _Worker:
    """A process that trains the folds that it is given, one after the other."""

    def __init__(self, threads: int, workers: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unfreeze.learn.train.worker", str(threads), str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.process.wait()
        self._said.close()

    def stop(self) -> None:
        """Ends it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()

    def do(self, place: Path, kept: Path, tell: Callable[[dict[str, Any]], None], reporter: Reporter) -> None:
        """Does the job in `place`, forwards rows and lines, and raises its error as our own."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{place}\t{kept}\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            message = _message(line)
            if "done" in message:
                return
            if "row" in message:
                tell(message["row"])
            elif "say" in message:
                reporter.say(message["say"])
            elif "error" in message:
                kind = getattr(errors, message["error"], UnfreezeError)
                raise UnfreezeError(message["text"]) if kind is errors.PhotoError else kind(message["text"])
        raise errors.EngineError(
            f"{place.name}: its training process ended ({self._reason()}); run the same command to go on."
        )

    def _reason(self) -> str:
        """Why the process ended: the signal, or the last line of what it said."""
        code = self.process.wait()
        if code < 0:
            by = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"killed by {by}" + (", most often for want of memory" if by == "SIGKILL" else "")
        self._said.seek(0)
        tail = self._said.read().strip().splitlines()
        return tail[-1] if tail else f"exit code {code}"


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
        found = np.load(place / "probabilities.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SafetensorError):
        return False
    return identity == job.identity() and found.shape == (len(job.out), job.classes)


def _gpu() -> bool:
    from unfreeze.model.engines import _has_gpu

    return _has_gpu()
