"""Progress of long computations: messages and progress bars on stderr.

`Reporter` discards everything and is the default in Python programs and with `--json`. `ConsoleReporter` prints.
"""

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

from unfreeze.core.errors import StorageError, sanitize
from unfreeze.core.files import write_json

Advance = Callable[[int], None]
PROGRESS_FILE_ENV = "UNFREEZE_PROGRESS"  # names a file from which another program reads the progress of this one
_OFTEN = 0.3  # minimum seconds between two writes of that file


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


class Reporter:
    """Receiver of messages and progress of a stage. The base class discards them."""

    def say(self, text: str) -> None:
        """Report a message for the user, for example a choice that was made or a fallback."""

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        """Show a progress bar while the block runs.

        Args:
            what: Label of the bar.
            total: Number of steps.

        Yields:
            A function to call with the number of steps completed since its last call.
        """
        yield lambda steps: None


class ConsoleReporter(Reporter):
    """Prints messages and progress bars to a Rich console (stderr, since stdout is reserved for the answer)."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        wrapped = self.console.is_terminal  # lines in a pipe are not wrapped
        self.console.print(sanitize(text), markup=False, highlight=False, soft_wrap=not wrapped)

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
            with _watched(what, total) as advance_by:

                def advance(steps: int) -> None:
                    progress.advance(task, steps)
                    advance_by(steps)

                yield advance
        seconds = time.perf_counter() - started
        if seconds > 1:
            self.say(f"{what}: {total:,} in {seconds:.1f} s ({total / seconds:,.0f}/s)")


@contextmanager
def _watched(what: str, total: int) -> Iterator[Advance]:
    """Write `{"what", "done", "total", "since"}` to the file named by `PROGRESS_FILE_ENV`, and delete it at the end."""
    if not os.environ.get(PROGRESS_FILE_ENV):
        yield lambda steps: None
        return
    file, since, done, last = Path(os.environ[PROGRESS_FILE_ENV]), time.time(), 0, 0.0

    def advance_by(steps: int) -> None:
        nonlocal done, last
        done += steps
        if time.monotonic() - last > _OFTEN:
            last = time.monotonic()
            with contextlib.suppress(OSError, StorageError):  # failing to report must not end the work
                write_json(file, {"what": sanitize(what), "done": done, "total": total, "since": since})

    advance_by(0)
    try:
        yield advance_by
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
