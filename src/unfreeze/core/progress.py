"""Progress of long work: rows and bars on stderr, silent under --json and in libraries."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from unfreeze.core.errors import StorageError, printable
from unfreeze.core.files import write_json

Advance = Callable[[int], None]
WATCHED = "UNFREEZE_PROGRESS"  # names a file in which a program that watches this one reads how far its bar is
_OFTEN = 0.3  # seconds between two looks at that file


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


class Reporter:
    """What a stage tells while it works. This one says nothing: the default inside Python programs."""

    def say(self, text: str) -> None:
        """A line for people: a choice that was made, a fallback taken."""

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        """A bar of `total` steps; the value is called with the number of steps done since."""
        yield lambda steps: None


class ConsoleReporter(Reporter):
    """Lines and bars on a Rich console (stderr, so that stdout stays the answer)."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        wrapped = self.console.is_terminal  # a pipe gets whole lines
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=not wrapped)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
        )
        started = time.perf_counter()
        with Progress(
            *columns, console=self.console, transient=True, refresh_per_second=8, disable=not self.console.is_terminal
        ) as progress:
            task = progress.add_task(what, total=total)
            with _watched(what, total) as told:

                def advance(steps: int) -> None:
                    progress.advance(task, steps)
                    told(steps)

                yield advance
        seconds = time.perf_counter() - started
        if seconds > 1:
            self.say(f"{what}: {total:,} in {seconds:.1f} s ({total / seconds:,.0f}/s)")


@contextmanager
def _watched(what: str, total: int) -> Iterator[Advance]:
    """Writes `{"what", "done", "total", "since"}` to the file that WATCHED names, now and then; gone at the end."""
    if not os.environ.get(WATCHED):
        yield lambda steps: None
        return
    file, since, done, last = Path(os.environ[WATCHED]), time.time(), 0, 0.0

    def told(steps: int) -> None:
        nonlocal done, last
        done += steps
        if time.monotonic() - last > _OFTEN:
            last = time.monotonic()
            with contextlib.suppress(OSError, StorageError):  # nobody's work is lost because it cannot be watched
                write_json(file, {"what": printable(what), "done": done, "total": total, "since": since})

    told(0)
    try:
        yield told
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
