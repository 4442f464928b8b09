"""Commands killed again and again until they finish: at random times, and right before a random change on the disk."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

# All kills of the suite, shared out by the weights of its parts; `make soak` asks for 200.
SLICE = 4
KILLS = int(os.environ.get("UNFREEZE_SOAK", SLICE))
SEED = int(os.environ.get("UNFREEZE_SOAK_SEED", "0"))
TOLD: dict[str, int] = {}  # how many each part has made
_SECONDS = 300

# Read by every Python process of a command, those that train among them: counts what they open for writing, rename,
# delete and make below some folders, and ends the whole process group right before the nth of these.
_COUNTER = """
import os, signal, sys
def install():
    under, limit = os.environ["SOAK_UNDER"].split(os.pathsep), int(os.environ["SOAK_AT"])
    count = os.open(os.environ["SOAK_COUNT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    kinds = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
    def seen(event, args):
        if event == "open":
            # A call of os.open has flags and no mode.
            if not (set(str(args[1] or "")) & set("wax+") or args[1] is None and args[2] & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event not in kinds:
            return
        if not isinstance(args[0], (str, bytes, os.PathLike)) or not os.fsdecode(args[0]).startswith(tuple(under)):
            return
        os.write(count, b".")
        if os.lseek(count, 0, os.SEEK_CUR) == limit:
            os.killpg(0, signal.SIGKILL)
    sys.addaudithook(seen)
if "SOAK_AT" in os.environ:
    install()
"""


@dataclass
class Kills:
    """What was done to one command. length: seconds undisturbed. changes: on the disk, undisturbed."""

    length: float
    changes: int
    draw: random.Random
    killed: int = 0
    finished: int = 0


def unfreeze(*words: object) -> list[str]:
    """The command line of `unfreeze WORDS`."""
    return [sys.executable, "-m", "unfreeze.cli.main", *map(str, words)]


class Command:
    """One command that is run in a folder with a cache, counted and killed there."""

    def __init__(self, words: Sequence[str], cwd: Path, cache: Path, watched: Sequence[Path]) -> None:
        self.words, self.cwd, self.cache, self.watched = list(words), cwd, cache, list(watched)
        self._hook = cwd / "hook"
        self._hook.mkdir(exist_ok=True)
        (self._hook / "sitecustomize.py").write_text(_COUNTER)

    def run(self, at: int = 0, after: float = 0.0) -> tuple[int, float, int, str]:
        """Exit code, seconds, changes on the disk and stderr. at: killed before that change; after: these seconds."""
        count, err = self._hook / "count", self._hook / "stderr"
        count.unlink(missing_ok=True)
        path = os.pathsep.join(filter(None, [str(self._hook), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "UNFREEZE_CACHE": str(self.cache), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        environment |= {"SOAK_UNDER": os.pathsep.join(map(str, [self.cache, *self.watched]))}
        environment |= {"SOAK_AT": str(at), "SOAK_COUNT": str(count)}
        began = time.perf_counter()
        with err.open("w") as said:
            process = subprocess.Popen(
                self.words,
                cwd=self.cwd,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=environment,
                start_new_session=True,
            )
        try:
            code = process.wait(after or _SECONDS)
        except subprocess.TimeoutExpired:
            assert after, f"{self.words} does not end"
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        seconds = time.perf_counter() - began
        _wait_for_the_group(process.pid)
        return code, seconds, count.stat().st_size if count.exists() else 0, err.read_text()


def killed_until_finished(
    command: Command, kills: Kills, most: int, after_each: Callable[[], object] = lambda: None
) -> None:
    """Runs the command until it finishes, and kills it on the way, at most `most` times.

    Half of the kills come at a time between nothing and the undisturbed length, half before one of the changes on the
    disk. after_each: called when it has been killed.
    """
    for number in range(most):
        # Sooner rather than later: one that is taken up has less to do.
        if kills.draw.random() < 0.5:
            code, took, *_, said = command.run(after=kills.draw.triangular(0.0, kills.length, 0.0))
        else:
            code, took, *_, said = command.run(at=1 + int(kills.draw.triangular(0, kills.changes, 0)))
        if code == 0 and not number:  # the machine is less busy than it was
            kills.length = min(kills.length, took)
        # Killed after the last file was written, on its way out, a fit says that all is done.
        over = kills.killed and code == 2 and "holds a finished run" in said
        if code == 0 or over:
            kills.finished += 1
            return
        assert code == -signal.SIGKILL, said
        kills.killed += 1
        after_each()
    code, *_, said = command.run()
    assert code == 0 or (code == 2 and "holds a finished run" in said), said
    kills.finished += 1


def undisturbed(command: Command, name: str) -> Kills:
    """Runs it once to the end."""
    code, seconds, changes, said = command.run()
    assert code == 0 and changes > 0, said
    return Kills(seconds, changes, random.Random(f"{name}{SEED}"))


def _wait_for_the_group(group: int) -> None:
    """Until no process of the group is left: one that is being killed may hold a lock for a moment."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.01)
    raise AssertionError("a process of the command outlived it")


def opened_whole(folder: Path) -> int:
    """Opens every file below a folder that has a final name; how many there were. Fails at one that is not whole."""
    count = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and ".tmp" not in str(p.relative_to(folder))):
        if opener := _OPENERS.get(path.suffix):
            try:
                opener(path)
            except Exception as error:
                raise AssertionError(f"{path} is not whole: {type(error).__name__}: {error}") from error
            count += 1
    return count


def _safetensors(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            file.get_tensor(name)


def _npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            file[name]


def _html(path: Path) -> None:
    assert path.read_text("utf-8").rstrip().endswith("</html>")


def _database(path: Path) -> None:
    # Read-only, and never the journal: playing that back is for the next command to do.
    if not path.with_name(path.name + "-journal").exists() and path.stat().st_size:
        with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as open_:
            assert open_.execute("pragma integrity_check").fetchone() == ("ok",)


_OPENERS: Mapping[str, Callable[[Path], object]] = {
    ".json": lambda p: json.loads(p.read_text("utf-8")),
    ".jsonl": lambda p: [json.loads(line) for line in p.read_text("utf-8").splitlines()],
    ".toml": lambda p: tomllib.loads(p.read_text("utf-8")),
    ".parquet": pd.read_parquet,
    ".safetensors": _safetensors,
    ".npy": lambda p: np.load(p, allow_pickle=False),
    ".npz": _npz,
    ".html": _html,
    ".db": _database,
}


def times_of(run: Path) -> dict[Path, int]:
    """When each finished fold's files were written."""
    return {p: p.stat().st_mtime_ns for p in run.glob("fold-*/*.safetensors") if not p.name.startswith(".")}
