"""Console output of the command line.

Answers go to stdout, progress and errors to stderr; an error is one line. The module formats scores, differences and
tables, and prints the tables that several commands share.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfreeze.core.errors import join_names, sanitize
from unfreeze.core.format import format_difference, format_estimate, format_score
from unfreeze.core.messages import HEADLINES, effect_sentence
from unfreeze.core.progress import ConsoleReporter, Reporter

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)
_WIDE = 200
_NAME = 40  # names in the first column up to this length are never wrapped
_FOLD = 10  # minimum width of a wrapped text column
_GAP = 2


def reporter(quiet: bool = False) -> Reporter:
    """Reporter that writes to stderr, or one that discards everything if `quiet` (with `--json`)."""
    return Reporter() if quiet else ConsoleReporter(err)


def say(text: str) -> None:
    """Print a line of the answer, without markup. Lines are wrapped only on a terminal."""
    out.print(Text(_tame(text)), soft_wrap=not out.is_terminal)


def warn(text: str) -> None:
    """Print a line that is not part of the answer to stderr, also with `--json`."""
    err.print(Text(_tame(text)), soft_wrap=not err.is_terminal)


def then(command: str) -> None:
    """Print the suggested next command, the last line of an answer."""
    out.print(Text.assemble(("Next: ", "dim"), (_tame(command), "bold")), soft_wrap=True)


def complain(text: str) -> None:
    """Print the line of an error to stderr, without wrapping or colors."""
    print(f"unfreeze: {text}", file=sys.stderr)


def emit_json(value: Any) -> None:
    """Print a value as JSON to stdout. Nothing else may be printed there."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=1, ensure_ascii=ascii_only, default=str))


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print a table. If the terminal is too narrow, each row becomes a block of lines; pipes and files count as wide.

    Args:
        title: Line above the table.
        columns: Column headers.
        rows: Cells of each row, in column order.
        right: Columns to right-align. They are never wrapped, and neither is a first column of short names.
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
    if out.width < width:  # rich assumes 80 columns for a pipe and truncates the output to that
        Console(file=out.file, width=width, highlight=False, no_color=True).print(table)
    else:
        out.print(table, width=width)


def lines(rows: Sequence[Sequence[str]]) -> None:
    """Print each row on one line with aligned columns. Lines are never wrapped or truncated."""
    cells = [[_tame(cell) for cell in row] for row in rows]
    most = max(map(len, cells), default=0)
    # A shorter row ends in free text, such as a reason, which must not widen a column.
    widths = [max((cell_len(r[k]) for r in cells if len(r) == most or k == 0), default=0) for k in range(most)]
    for row in cells:
        padded = [set_cell_size(cell, max(width, cell_len(cell))) for cell, width in zip(row, widths, strict=False)]
        out.print(Text("  ".join(padded).rstrip()), soft_wrap=True)


def size(amount: float) -> str:
    """Format a number of bytes: `374 B`, `2.6 kB`, `13.9 MB`."""
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} GB"


def _tame(text: str) -> str:
    """Replace control characters within the lines of a text, since names come from files."""
    return "\n".join(sanitize(line) for line in text.split("\n"))


def changed(value: float, low: float, high: float) -> str:
    """Format a difference with its interval: `+0.021 [-0.003, +0.045] ?`. The ? marks an interval that contains 0."""
    text = format_estimate({"value": value, "low": low, "high": high}, signed=True)
    return text if low > 0 or high < 0 else f"{text} ?"


def headline_rows(scores: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names and scores of the first rows of the table that `fit` prints.

    With corrections, these are the scores by the given and by the corrected labels.
    """
    if corrections := scores.get("corrections"):
        return [(name, corrections[key]) for key, name in HEADLINES]
    return [("delivered model, estimated", scores), ("one fold's model, out of fold", scores["out_of_fold"])]


def corrections_said(found: dict[str, Any]) -> str:
    """Summarize the corrections that were applied and their effect on the score."""
    done = f"Corrections: {found['relabel']:,} relabeled, {found['exclude']:,} excluded, {found['keep']:,} kept."
    return f"{done} {effect_sentence(found)}"


def show_parts(parts: dict[str, Any]) -> None:
    """Print the scores of each part of a combined label, most costly part first, and a summary."""
    columns = ["part", "macro F1 (95%)", "accuracy", "macro F1 if correct", "gain"]
    costs = sorted(parts, key=lambda name: -parts[name]["if_right"]["gain"]["value"])
    rows = [
        [
            name,
            format_estimate(parts[name]["macro_f1"]),
            format_score(parts[name]["accuracy"]["value"]),
            format_score(parts[name]["if_right"]["macro_f1"]["value"]),
            changed(**parts[name]["if_right"]["gain"]),
        ]
        for name in costs
    ]
    show("Each part of the label, and macro F1 of the whole if that part were always right", columns, rows, columns[1:])
    first, rest = costs[0], costs[1:]
    right = parts[first]["if_right"]
    if right["gain"]["value"] <= 0:
        say("Correcting a single part would not change the macro F1 of the whole.")
        return
    more = [name for name in rest if right["more_than"][name]["low"] > 0]
    than = f"significantly more than {join_names(more)}" if more else "not significantly more than any other part"
    say(
        f"Errors in '{first}' cost the whole most "
        f"({format_difference(right['gain']['value'])} macro F1 if it were right), {than}."
    )
