"""Runs a command and says what it took: wall seconds, CPU seconds, peak memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNFREEZE = Path(sys.executable).with_name("unfreeze")
_INTERVAL = 0.02


@dataclass(frozen=True)
class Taken:
    """What a command took. peak_mb: highest resident size; anon_mb: of which memory that no file backs.

    load: mean number of processes that wanted a core in the last minute, read before the start.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    anon_mb: float
    load: float
    stdout: str

    def json(self) -> Any:
        """Its answer, if it printed JSON."""
        return json.loads(self.stdout)


def run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> Taken:
    """Runs the command to its end. Raises RuntimeError with its last lines on stderr if it fails."""
    load = os.getloadavg()[0]
    peak = anon = 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=err, env={**os.environ, **(environment or {})}
        )
        while True:
            # VmHWM is the kernel's own high-water mark. ru_maxrss would also count the parent before exec.
            peak = max(peak, _status(child.pid, "VmHWM"))
            anon = max(anon, _status(child.pid, "RssAnon"))
            ended, code, usage = os.wait4(child.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(_INTERVAL)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(code)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: exit {child.returncode}\n{err.read()[-3000:]}")
        return Taken(
            round(seconds, 2),
            round(usage.ru_utime + usage.ru_stime, 2),
            round(peak / 1024, 1),
            round(anon / 1024, 1),
            round(load, 2),
            out.read(),
        )


def fit(source: Path, run_folder: Path, cache: Path, *options: str) -> Taken:
    """`unfreeze fit SOURCE --json`, with a cache of its own: the whole command, start-up included.

    Strategy probe, unless the options name another.
    """
    command = [UNFREEZE, "fit", source, "--run", run_folder, "--json", "--strategy", "probe", *options]
    return run(command, {"UNFREEZE_CACHE": str(cache)})


def stages(run_folder: Path) -> dict[str, float]:
    """Seconds of each stage of a finished run, from its environment.json."""
    timings = json.loads((run_folder / "environment.json").read_text("utf-8"))["timings"]
    return {name.replace(" ", "_"): float(seconds) for name, seconds in timings.items()}


def _status(pid: int, field: str) -> int:
    """A field of /proc/PID/status in KiB; 0 where there is none (the process has ended, or no Linux)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0
