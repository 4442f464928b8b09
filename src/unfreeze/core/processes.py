"""Child processes that load nothing from the working directory, and file locks between processes.

`python -m` and `python -c`, which `multiprocessing` uses as well, put the working directory in front of the standard
library on `sys.path`: a `random.py` next to downloaded images would be executed. A search path with an empty or
relative entry finds programs there in the same way, and Windows looks there even without one.

Locks are held on files. The operating system releases them when a process ends, whatever the reason.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from multiprocessing.context import SpawnContext
from pathlib import Path

from filelock import FileLock, Timeout

from unfreeze.core.errors import StorageError

_SAFE_PATH = "PYTHONSAFEPATH"
# Windows: CreateProcess and `cmd` do not search the working directory if this is set.
_NO_CURRENT = "NoDefaultCurrentDirectoryInExePath"
SECRETS = ("UNFREEZE_TOKEN",)


def python_command(module: str, *arguments: str) -> list[str]:
    """Build the command that runs a module of this package, or any installed one, in a new Python process.

    Args:
        module: Dotted name, run as by `python -m`.
        arguments: Command-line arguments of the module.

    Returns:
        An argument list for `subprocess`. Start it with `child_environment()`, so that its own child processes are safe
        too.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Build the environment of a child process that runs Python.

    Args:
        more: Variables to set in addition.

    Returns:
        The variables of this process without secrets, with a safe module path (`PYTHONSAFEPATH`, and no empty entry in
        `PYTHONPATH`, which would be the working directory) and a safe program path.
    """
    found = {**os.environ, **_safe_variables(), **(more or {})}
    for name in SECRETS:
        found.pop(name, None)
    return found


@contextlib.contextmanager
def spawn_context() -> Iterator[SpawnContext]:
    """Spawn context of `multiprocessing` whose workers and resource tracker run with a safe module path.

    Start all workers inside the block: `multiprocessing` passes them this process's environment, which has the safe
    path only until the block ends.
    """
    with safe_python():
        yield multiprocessing.get_context("spawn")


@contextlib.contextmanager
def safe_python() -> Iterator[None]:
    """Give Python processes that libraries start a safe module and program path while the block runs."""
    with variables(_safe_variables()):
        yield


@contextlib.contextmanager
def safe_programs() -> Iterator[None]:
    """Keep programs that libraries start by name from being found in the working directory while the block runs."""
    with variables({"PATH": search_path(), _NO_CURRENT: "1"}):
        yield


def program(name: str) -> str | None:
    """Find a program on the search path.

    Args:
        name: Name as typed in a terminal, for example `git`.

    Returns:
        The absolute path, or None if there is none outside of the working directory.
    """
    endings = os.environ.get("PATHEXT", ".COM;.EXE;.BAT;.CMD").split(os.pathsep) if os.name == "nt" else [""]
    for folder in search_path().split(os.pathsep):
        for ending in endings:
            file = Path(folder) / f"{name}{ending}"
            if folder and file.is_file() and os.access(file, os.X_OK):
                return str(file)
    return None


def search_path() -> str:
    """`PATH` without entries that are empty, relative, or the working directory."""
    with contextlib.suppress(OSError):  # the working directory was deleted
        here = Path.cwd().resolve()
        return os.pathsep.join(e for e in _entries("PATH") if Path(e).is_absolute() and Path(e).resolve() != here)
    return os.pathsep.join(e for e in _entries("PATH") if Path(e).is_absolute())


def _safe_variables() -> dict[str, str]:
    found = {_SAFE_PATH: "1", _NO_CURRENT: "1", "PATH": search_path()}
    if "PYTHONPATH" in os.environ:
        found["PYTHONPATH"] = os.pathsep.join(_entries("PYTHONPATH"))
    return found


def _entries(name: str) -> list[str]:
    return [entry for entry in os.environ.get(name, os.defpath if name == "PATH" else "").split(os.pathsep) if entry]


@contextlib.contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs, then restore them."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def file_lock(path: Path, timeout: float = -1, thread_local: bool = True) -> FileLock:
    """Create a lock that is not acquired yet. Its file is created on acquisition and stays.

    A run folder may come from anywhere, so a link or special file in place of the lock file is neither followed nor
    written.

    Args:
        path: Lock file, in a folder that exists.
        timeout: Seconds that `acquire` waits before it raises `filelock.Timeout`; negative waits forever.
        thread_local: Whether only the thread that acquired the lock may release it.

    Raises:
        StorageError: Something other than a regular file is in its place.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "not a file"
            raise StorageError(f"{path}: is {kind}, where a lock file belongs; remove it.")
    return FileLock(path, timeout=timeout, thread_local=thread_local)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock. A file that is missing or is not a lock file counts as not locked."""
    try:
        if not path.exists():
            return False
        with file_lock(path, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, StorageError):
        return False
