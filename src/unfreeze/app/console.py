"""How the command line speaks: answers on stdout, progress and errors on stderr, one line an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfreeze.core.progress import ConsoleReporter, Reporter

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


def reporter(quiet: bool = False) -> Reporter:
    """Bars and lines on stderr; silent under --json."""
    return Reporter() if quiet else ConsoleReporter(err)


def say(text: str) -> None:
    """A plain line of the answer; nothing in it is markup."""
    out.print(Text(text))


def then(command: str) -> None:
    """The next useful command, the last line of an answer."""
    out.print(Text.assemble(("Next: ", "dim"), (command, "bold")))


def complain(text: str) -> None:
    """An error's one line, never wrapped or coloured away when it is piped."""
    print(f"unfreeze: {text}", file=sys.stderr)


def emit_json(value: Any) -> None:
    """JSON on stdout, and nothing else there."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table; columns named in `right` are right-aligned numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)


def scored(score: dict[str, float]) -> str:
    """`.812 (.790 to .833)`"""
    return f"{number(score['value'])} ({number(score['low'])} to {number(score['high'])})"


def number(value: float) -> str:
    """Three decimals, without the zero before the point where there is one."""
    return f"{value:.3f}".removeprefix("0") if 0 <= value < 1 else f"{value:.3f}"
