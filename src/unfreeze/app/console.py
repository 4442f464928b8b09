"""How the command line speaks: answers on stdout, progress and errors on stderr, one line an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfreeze.core.errors import printable
from unfreeze.core.progress import ConsoleReporter, Reporter

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)
_WIDE = 200
_NAME = 40  # names in the first column up to this length are never folded
_FOLD = 10  # text columns may be folded down to this
_GAP = 2


def reporter(quiet: bool = False) -> Reporter:
    """Bars and lines on stderr; silent under --json."""
    return Reporter() if quiet else ConsoleReporter(err)


def say(text: str) -> None:
    """A plain line of the answer; nothing in it is markup, and only for a terminal it is wrapped, between words."""
    out.print(Text(_tame(text)), soft_wrap=not out.is_terminal)


def warn(text: str) -> None:
    """A line that is no part of the answer: on stderr, shown under --json as well."""
    err.print(Text(_tame(text)), soft_wrap=not err.is_terminal)


def then(command: str) -> None:
    """The next useful command, the last line of an answer."""
    out.print(Text.assemble(("Next: ", "dim"), (_tame(command), "bold")), soft_wrap=True)


def complain(text: str) -> None:
    """An error's one line, never wrapped or coloured away when it is piped."""
    print(f"unfreeze: {text}", file=sys.stderr)


def emit_json(value: Any) -> None:
    """JSON on stdout, and nothing else there."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=1, ensure_ascii=ascii_only, default=str))


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table under its title; columns named in `right` are right-aligned numbers. They never wrap, nor do short names.

    Where the terminal is too narrow for it, each row becomes a block of lines. A pipe or file is wide.
    """
    cells = [[_tame(str(cell)) for cell in row] for row in rows]
    width = out.width if out.is_terminal or "COLUMNS" in os.environ else _WIDE
    out.print(Text(_tame(title), style="bold"), soft_wrap=True)
    longest = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    whole = {*right, *(columns[:1] if longest[0] <= _NAME else ())}
    needed = sum(n if name in whole else min(n, _FOLD) for name, n in zip(columns, longest, strict=True))
    if needed + _GAP * len(columns) > width:
        for row in cells:
            out.print(Text(f" {row[0]}", style="bold"), soft_wrap=True)
            for name, cell in zip(columns[1:], row[1:], strict=True):
                if cell:
                    out.print(Text(f"   {name}: {cell}"), soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in whole)
    for row in cells:
        table.add_row(*map(Text, row))
    if out.width < width:  # a pipe counts as 80 wide, and rich crops what it prints to that
        Console(file=out.file, width=width, highlight=False, no_color=True).print(table)
    else:
        out.print(table, width=width)


def size(amount: float) -> str:
    """Bytes for people: `374 B`, `2.6 kB`, `13.9 MB`."""
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} GB"


def _tame(text: str) -> str:
    """Names come from files: a control character in one must not drive the terminal or break the line."""
    return "\n".join(printable(line) for line in text.split("\n"))


def scored(score: dict[str, float]) -> str:
    """`.812 (.790–.833)`: the value and its 95 % interval."""
    return f"{number(score['value'])} ({number(score['low'])}–{number(score['high'])})"


def changed(value: float, low: float, high: float) -> str:
    """`+0.021 (-0.003 to +0.045) ?`: a difference and its interval; ? where that holds 0, so that it may be chance."""
    told = low > 0 or high < 0
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f}){'' if told else ' ?'}"


def number(value: float) -> str:
    """Three decimals, without the zero before the point where there is one."""
    return f"{value:.3f}".removeprefix("0") if 0 <= value < 1 else f"{value:.3f}"
