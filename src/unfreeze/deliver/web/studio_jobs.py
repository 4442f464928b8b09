"""Jobs: commands of this very program that the studio runs as child processes, one at a time, and what they say."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unfreeze.core.errors import RunError, StorageError
from unfreeze.core.files import read_json, storage_errors, write_json
from unfreeze.core.progress import WATCHED
from unfreeze.deliver.web.studio_library import MissingError

COMMAND = (sys.executable, "-m", "unfreeze.app.cli")
INTERRUPTED = 130
WAITING = 20  # jobs that may wait; more is a mistake
_TAIL = 64 * 1024
_PATIENCE = 15.0  # seconds from SIGINT to SIGKILL
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Job:
    """One command. state: waiting, running, stopping, finished, stopped or failed. run: its run folder, or ''.

    pid, born: of the process, so that a later studio knows it again. code: as it ended; None while it runs or where
    nobody saw it end.
    """

    id: str
    kind: str
    arguments: list[str]
    run: str = ""
    source: str = ""
    page: str = ""
    state: str = "waiting"
    code: int | None = None
    pid: int = 0
    born: float = 0.0
    created: str = ""
    started: float = 0.0
    ended: float = 0.0
    times: int = 0  # that it was started
    asked: float = 0.0  # when it was told to stop

    @property
    def command(self) -> str:
        """As a person would type it."""
        return shlex.join(["unfreeze", *self.arguments])

    @property
    def active(self) -> bool:
        """Whether it waits, runs or is being stopped."""
        return self.state in ("waiting", "running", "stopping")

    @property
    def deaf(self) -> bool:
        """Whether it was told to stop and has not listened: told again, it is ended."""
        return self.state == "stopping" and time.time() - self.asked > _PATIENCE

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return max(0.0, (self.ended or time.time()) - self.started) if self.started else 0.0


@dataclass
class Jobs:
    """All jobs of one studio, kept in `folder`, a folder each: job.json and output.txt."""

    folder: Path
    found: dict[str, Job] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _closed: bool = False
    _claimed: FileLock | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.folder.exists():
            with contextlib.suppress(StorageError):  # runs that may only be read can be looked at
                self._claim()
        for file in sorted(self.folder.glob("*/job.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                job = Job(**read_json(file))
                if job.id == file.parent.name and re.fullmatch(r"[0-9a-f]{12}", job.id):
                    self.found[job.id] = job
                    self._take_up(job)

    def all(self) -> list[Job]:
        """Newest first."""
        with self._lock:
            return sorted(self.found.values(), key=lambda job: job.created, reverse=True)

    def job(self, name: str) -> Job:
        """MissingError if there is none of this name."""
        if (found := self.found.get(name)) is None:
            raise MissingError("No such job here.")
        return found

    def writes(self) -> set[str]:
        """The runs of jobs that are not over; some of them may not be there yet."""
        with self._lock:
            return {job.run for job in self.found.values() if job.run and job.active}

    def of_run(self, path: Path) -> Job | None:
        """The newest job that writes a run."""
        return next((job for job in self.all() if job.run == str(path)), None)

    def start(self, kind: str, arguments: list[str], *, run: str = "", source: str = "", page: str = "") -> Job:
        """Queues a command; it starts at once if nothing else runs. RunError: too many wait, or its run is at work."""
        with self._lock:
            self._refuse(run)
            self._claim()
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            job = Job(uuid.uuid4().hex[:12], kind, arguments, run, source, page, created=now)
            self.found[job.id] = job
            self._save(job)
            self._next()
            return job

    def stop(self, name: str) -> Job:
        """Interrupts a job as Ctrl-C does, so that a run stays resumable; one that waits is taken off the queue.

        Told again, one that has not listened for 15 seconds is ended; before that it is left alone: a second Ctrl-C
        would only disturb the first.
        """
        with self._lock:
            job = self.job(name)
            if job.state == "waiting":
                job.state = "stopped"
            elif job.state == "running":
                self._signal(job, signal.SIGINT)
                job.state, job.asked = "stopping", time.time()
            elif job.deaf:
                self._signal(job, _KILL)
            self._save(job)
            return job

    def resume(self, name: str) -> Job:
        """Runs the same command once more: an unfinished run goes on where it was."""
        with self._lock:
            job = self.job(name)
            if job.active:
                raise RunError("This job is not over; stop it first.")
            self._refuse(job.run)
            job.state, job.code, job.ended, job.started = "waiting", None, 0.0, 0.0
            self._save(job)
            self._next()
            return job

    def lines(self, job: Job, limit: int = 120) -> list[str]:
        """The last lines that it printed, without what drives a terminal."""
        try:
            with (self.folder / job.id / "output.txt").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                text = file.read(_TAIL).decode("utf-8", "replace")
        except OSError:
            return []
        return [_ESCAPES.sub("", line).rstrip() for line in text.splitlines()][-limit:]

    def progress(self, job: Job) -> dict[str, Any]:
        """How far its bar is: `what`, `done`, `total`, seconds `left` once that can be told; empty without a bar."""
        try:
            found = read_json(self.folder / job.id / "progress.json")
            what, done, total, since = (
                str(found["what"]),
                int(found["done"]),
                int(found["total"]),
                float(found["since"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        if job.state != "running" or not 0 <= done <= total or not total:
            return {}
        left = (time.time() - since) / done * (total - done) if done else None
        return {"what": what, "done": done, "total": total, "left": left}

    def close(self) -> None:
        """Stops every job as Ctrl-C does, waits for them, and ends those that do not listen. Runs stay resumable."""
        with self._lock:
            self._closed = True
            for job in self.found.values():
                if job.state == "waiting":
                    job.state = "stopped"
                    self._save(job)
                elif job.active:
                    self.stop(job.id)
            processes = dict(self._processes)
        until = time.monotonic() + _PATIENCE
        for name, process in processes.items():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._signal(self.found[name], _KILL)
                process.wait()
            self._ended(name, process.returncode)
        if self._claimed:
            self._claimed.release()
            self._claimed = None

    def _claim(self) -> None:
        """Takes the jobs of this folder for this studio: two would start and stop each other's."""
        if self._claimed:
            return
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder.parent / "lock", timeout=0, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                folder = self.folder.parent.parent
                raise RunError(f"{folder}: another studio is open on these runs; use that one, or end it.") from None
        self._claimed = lock

    def _refuse(self, run: str) -> None:
        if self._closed:
            raise RunError("The studio is closing.")
        active = [job for job in self.found.values() if job.active]
        if len(active) > WAITING:
            raise RunError(f"{len(active)} jobs wait already; stop some of them first.")
        if run and any(job.run == run for job in active):
            raise RunError(f"{Path(run).name}: a job for this run is not over.")

    def _next(self) -> None:
        if self._closed or any(job.state in ("running", "stopping") for job in self.found.values()):
            return
        waiting = [job for job in reversed(self.all()) if job.state == "waiting"]
        if waiting:
            self._begin(waiting[0])

    def _begin(self, job: Job) -> None:
        folder = self.folder / job.id
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "110"}
        environment[WATCHED] = str(folder / "progress.json")
        try:
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "progress.json").unlink(missing_ok=True)
                with (folder / "output.txt").open("ab") as output:
                    if job.times:
                        output.write(b"Started again.\n")
                        output.flush()
                    # A session of its own: Ctrl-C in the studio's terminal reaches it once, by `close`, and not twice.
                    process = subprocess.Popen(
                        [*COMMAND, *job.arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
        except OSError as error:
            job.state, job.ended = "failed", time.time()
            raise RunError(f"The job could not be started: {error.strerror or error}.") from None
        job.state, job.started, job.pid, job.born = "running", time.time(), process.pid, _born(process.pid)
        job.times += 1
        self._processes[job.id] = process
        self._save(job)
        threading.Thread(target=lambda: self._ended(job.id, process.wait()), daemon=True).start()

    def _ended(self, name: str, code: int | None) -> None:
        with self._lock:
            job = self.found[name]
            self._processes.pop(name, None)
            if not job.active:
                return
            job.ended, job.code = time.time(), code
            if code == 0:
                job.state = "finished"
            else:
                told = job.state == "stopping" or code in (INTERRUPTED, -signal.SIGINT)
                job.state = "stopped" if told or code is None else "failed"
            with contextlib.suppress(Exception):  # a full disk must not hold the queue up
                self._save(job)
            with contextlib.suppress(RunError):
                self._next()

    def _take_up(self, job: Job) -> None:
        """A job of an earlier studio that was killed: it may run still, or nobody saw how it ended."""
        if job.state == "waiting":
            job.state = "stopped"
        elif job.active:
            if _born(job.pid) != job.born:
                job.state, job.ended = "stopped", time.time()
                return

            def watch() -> None:
                while _born(job.pid) == job.born:
                    time.sleep(0.5)
                finished = bool(job.run) and _finished(Path(job.run))
                self._ended(job.id, 0 if finished else None)

            threading.Thread(target=watch, daemon=True).start()

    def _signal(self, job: Job, number: int) -> None:
        if _born(job.pid) != job.born:  # another process may have its number by now
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(job.pid, number)
            else:
                os.kill(job.pid, signal.SIGTERM)

    def _save(self, job: Job) -> None:
        write_json(self.folder / job.id / "job.json", asdict(job))


_KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)


def _born(pid: int) -> float:
    """When a process began, 0 if there is none: with its number it names it for good."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid) if pid > 0 else None
        return float(process.create_time()) if process and process.status() != psutil.STATUS_ZOMBIE else 0.0
    except psutil.Error:
        return 0.0


def _finished(run: Path) -> bool:
    try:
        info: Any = read_json(run / "run.json")
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and info.get("status") == "finished"
