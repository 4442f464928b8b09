"""Job queue: `unfreeze` commands that the studio runs as child processes, one at a time."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unfreeze.core.errors import RunError, StorageError
from unfreeze.core.files import read_json, read_record, regular_file, translate_os_errors, write_json
from unfreeze.core.processes import child_environment, file_lock, python_command
from unfreeze.core.progress import PROGRESS_FILE_ENV
from unfreeze.core.signing import is_signed, sign
from unfreeze.server.studio.library import MissingError

COMMAND = tuple(python_command("unfreeze.cli.main"))
INTERRUPTED = 130
WAITING = 20  # maximum number of queued jobs
_TAIL = 64 * 1024
_PATIENCE = 15.0  # seconds after SIGINT until the user can kill a job
_CLOSING = 3.0  # seconds from SIGINT to SIGKILL when the studio ends
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Job:
    """A command and its state.

    Attributes:
        id: 12 hex digits.
        kind: Name of the command.
        arguments: Arguments of `unfreeze`, starting with the command.
        run: Run folder that the job writes, or ''.
        source: Key of the data set.
        page: HTML page that the job writes, or ''.
        state: waiting, running, stopping, finished, stopped or failed.
        code: Exit code; None while the job runs, or if the exit was not observed.
        pid: Process id.
        born: Start time of the process; with `pid`, it identifies the process after a restart of the studio.
        created: Creation time, ISO 8601 in UTC.
        started: Start time, Unix seconds.
        ended: End time, Unix seconds.
        times: Number of starts.
        asked: Time of the request to stop, Unix seconds.
        signature: Signature of the fields that define the job.
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
    times: int = 0
    asked: float = 0.0
    signature: str = ""

    @property
    def command(self) -> str:
        """The command line."""
        return shlex.join(["unfreeze", *self.arguments])

    @property
    def active(self) -> bool:
        """Whether the job is waiting, running or stopping."""
        return self.state in ("waiting", "running", "stopping")

    @property
    def deaf(self) -> bool:
        """Whether the job has not reacted to SIGINT; a second stop then kills it."""
        return self.state == "stopping" and time.time() - self.asked > _PATIENCE

    @property
    def seconds(self) -> float:
        """Run time so far, or in total."""
        return max(0.0, (self.ended or time.time()) - self.started) if self.started else 0.0


@dataclass
class Jobs:
    """All jobs of a studio, each stored in a subfolder of `folder` as job.json and output.txt."""

    folder: Path
    found: dict[str, Job] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _closed: bool = False
    _claimed: FileLock | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.folder.exists():
            with contextlib.suppress(StorageError):  # a read-only folder can still be viewed
                self._claim()
        for file in sorted(self.folder.glob("*/job.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                job = Job(**read_json(file))
                if job.id != file.parent.name or not re.fullmatch(r"[0-9a-f]{12}", job.id):
                    continue
                self.found[job.id] = job
                if self.is_own(job):
                    self._take_up(job)
                elif job.active:
                    job.state = "stopped"

    def all(self) -> list[Job]:
        """All jobs, newest first."""
        with self._lock:
            return sorted(self.found.values(), key=lambda job: job.created, reverse=True)

    def job(self, name: str) -> Job:
        """Look up a job.

        Raises:
            MissingError: There is no such job.
        """
        if (found := self.found.get(name)) is None:
            raise MissingError("No such job here.")
        return found

    def writes(self) -> set[str]:
        """Run folders of active jobs; some do not exist yet."""
        with self._lock:
            return {job.run for job in self.found.values() if job.run and job.active}

    def of_run(self, path: Path) -> Job | None:
        """The newest job that writes a run."""
        return next((job for job in self.all() if job.run == str(path)), None)

    def start(self, kind: str, arguments: list[str], *, run: str = "", source: str = "", page: str = "") -> Job:
        """Queue a command; it starts at once if no other job runs.

        Raises:
            RunError: The queue is full, or a job for the run is active.
        """
        with self._lock:
            self._refuse(run)
            self._claim()
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            job = Job(uuid.uuid4().hex[:12], kind, arguments, run, source, page, created=now)
            job.signature = sign(self._signed_part(job))
            self.found[job.id] = job
            self._save(job)
            self._next()
            return job

    def stop(self, name: str) -> Job:
        """Interrupt a job with SIGINT, as Ctrl-C does, so that its run can be resumed; or remove it from the queue.

        If the job has not reacted after 15 seconds, a second call kills it. An earlier second call does nothing, since
        another SIGINT would disturb the shutdown.
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

    def is_own(self, job: Job) -> bool:
        """Whether this user created the job on this machine and in this folder. Other jobs are shown, but never run."""
        return is_signed(self._signed_part(job), job.signature)

    def _signed_part(self, job: Job) -> list[object]:
        folder = str(self.folder.resolve())
        return ["job", folder, job.id, job.kind, job.arguments, job.run, job.source, job.page, job.created]

    def resume(self, name: str) -> Job:
        """Run the command of a job again; an unfinished run is resumed.

        Raises:
            RunError: The job is active or was created by somebody else.
        """
        with self._lock:
            job = self.job(name)
            if not self.is_own(job):
                raise RunError("This job was not started by a studio of yours on this machine; start a new one.")
            if job.active:
                raise RunError("This job is not over; stop it first.")
            self._refuse(job.run)
            job.state, job.code, job.ended, job.started = "waiting", None, 0.0, 0.0
            self._save(job)
            self._next()
            return job

    def lines(self, job: Job, limit: int = 120) -> list[str]:
        """Last lines of the job's output, without terminal escape sequences."""
        try:
            with regular_file(self.folder / job.id / "output.txt").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                text = file.read(_TAIL).decode("utf-8", "replace")
        except OSError:
            return []
        return [_ESCAPES.sub("", line).rstrip() for line in text.splitlines()][-limit:]

    def progress(self, job: Job) -> dict[str, Any]:
        """State of the progress bar: `what`, `done`, `total`, seconds `left` (None if unknown); empty without one."""
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
        """Stop all jobs with SIGINT, wait up to 3 s and kill the remaining ones. Runs can be resumed."""
        if not self._lock.acquire(timeout=_CLOSING / 2):  # another thread holds the lock and hangs in file I/O
            for process in list(self._processes.values()):
                _kill(process)
            return
        try:
            self._closed = True
            for job in self.found.values():
                if job.state == "waiting":
                    job.state = "stopped"
                    self._save(job)
                elif job.active:
                    self.stop(job.id)
            processes = dict(self._processes)
        finally:
            self._lock.release()
        until = time.monotonic() + _CLOSING
        for name, process in processes.items():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(process)
                process.wait()
            self._ended(name, process.returncode)
        claimed, self._claimed = self._claimed, None  # `close` may run in several threads
        if claimed:
            claimed.release()

    def _claim(self) -> None:
        """Lock the folder for this studio; two studios would start and stop each other's jobs."""
        if self._claimed:
            return
        with translate_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = file_lock(self.folder.parent / "lock", timeout=0, thread_local=False)
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
        environment = child_environment({"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "110"})
        environment[PROGRESS_FILE_ENV] = str(folder / "progress.json")
        try:
            with translate_os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "progress.json").unlink(missing_ok=True)
                with (folder / "output.txt").open("ab") as output:
                    if job.times:
                        output.write(b"Started again.\n")
                        output.flush()
                    # In a new session, Ctrl-C in the terminal does not reach the job directly; `close` sends SIGINT.
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
                interrupted = job.state == "stopping" or code in (INTERRUPTED, -signal.SIGINT)
                job.state = "stopped" if interrupted or code is None else "failed"
            with contextlib.suppress(Exception):  # a full disk must not block the queue
                self._save(job)
            with contextlib.suppress(RunError):
                self._next()

    def _take_up(self, job: Job) -> None:
        """Restore a job of an earlier studio that was killed: it may still run, or its exit was not observed."""
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
        if _born(job.pid) != job.born:  # the process id may have been reused
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(job.pid, number)
            else:
                os.kill(job.pid, signal.SIGTERM)

    def _save(self, job: Job) -> None:
        write_json(self.folder / job.id / "job.json", asdict(job))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a job and its child processes."""
    with contextlib.suppress(OSError):
        if process.poll() is None and hasattr(os, "killpg"):
            os.killpg(process.pid, _KILL)
        elif process.poll() is None:
            process.kill()


_KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)


def _born(pid: int) -> float:
    """Start time of a process, 0 if it does not exist. Together with the process id it identifies the process."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid) if pid > 0 else None
        return float(process.create_time()) if process and process.status() != psutil.STATUS_ZOMBIE else 0.0
    except psutil.Error:
        return 0.0


def _finished(run: Path) -> bool:
    return bool(read_record(run / "run.json", lambda info: info.get("status") == "finished"))
