"""HTML page of a hyperparameter search, as written by `unfreeze tune`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from unfreeze.core.files import atomic_write
from unfreeze.core.format import format_percent, format_score, format_seconds, pluralize
from unfreeze.reports.html import stylesheet, templates
from unfreeze.reports.run_report import no_break
from unfreeze.reports.svg import ScoreRow, bars, score_rows
from unfreeze.reports.svg_elements import hline, svg, svg_text

if TYPE_CHECKING:
    from unfreeze.analysis.tuning.search import Row
    from unfreeze.analysis.tuning.tune import Tuning

_MOST = 200  # rows of the table of trials
# History plot: positions of the first and last recipe in % of the width, height and top margin in pixels.
_FIRST, _LAST, _HIGH, _TOP = 12.0, 98.0, 176, 12


def write_tuning(found: Tuning, command: str = "", path: str | Path | None = None) -> Path:
    """Write a search as a self-contained HTML page, atomically.

    Args:
        found: The search.
        command: Command line that repeats the search.
        path: Target path, by default tune.html in the search's folder.

    Returns:
        The path.

    Raises:
        StorageError: The file cannot be written.
    """
    page = render(found, command).encode("utf-8", "replace")
    target = Path(path) if path else Path(found.folder) / "tune.html"
    return atomic_write(target, lambda temporary: temporary.write_bytes(page))


def render(found: Tuning, command: str = "") -> str:
    """Render the page's HTML."""
    search = found.searches[0]
    rows, distinct = search.rows, search.distinct
    ranked = sorted(distinct, key=lambda r: (r.state != "complete", -r.scores[-1] if r.scores else 0.0, r.number))
    keys = list(found.importance)
    return (
        templates(glued=no_break)
        .get_template("tune.html")
        .render(
            found=found,
            finding=found.sentence.replace(" -", " \N{MINUS SIGN}"),
            counted=f"{pluralize(found.photos, 'photo')} in {pluralize(found.groups, 'group')}, "
            f"{pluralize(found.tried, 'recipe')}, {format_seconds(_seconds(found))} of learning",
            scores=score_rows(
                "scores",
                [
                    ScoreRow("The recipe given", asdict(found.base), quiet=True),
                    ScoreRow("What searching gives", asdict(found.nested)),
                    ScoreRow("The best recipe's run", asdict(found.shown), quiet=True),
                ],
            ),
            history=history(rows),
            importance=bars(
                "importance",
                "Share of the score's variance that each key explains",
                [(key, share, format_percent(share)) for key, share in found.importance.items()],
                left=48,
            )
            if found.importance
            else "",
            first=keys[0] if keys else "",
            trials=[_row(r, r.number == search.best.number) for r in ranked[:_MOST]],
            more=max(0, len(ranked) - _MOST),
            pruned=sum(r.state == "pruned" for r in distinct),
            changes=_written(found.changes),
            chosen=[_written(changes) for changes in found.chosen],
            command=command,
            css=stylesheet(),
        )
    )


def history(rows: Sequence[Row]) -> Markup:
    """Macro F1 of each recipe in the order of the trials, with the best so far as a line. Pruned trials are hollow."""
    scored = [r for r in rows if r.scores]
    low, high = min(r.scores[-1] for r in scored), max(r.scores[-1] for r in scored)
    low, high = max(0.0, math.floor(20 * low - 0.2) / 20), min(1.0, math.ceil(20 * high + 0.2) / 20)
    bottom = _TOP + _HIGH

    def x(place: int) -> str:
        return f"{_FIRST + (_LAST - _FIRST) * place / max(rows[-1].number, 1):.2f}%"

    def y(value: float) -> float:
        return round(bottom - _HIGH * (value - low) / (high - low), 1)

    body = []
    for value in (low, (low + high) / 2, high):
        body.append(hline(x(0), f"{_LAST}%", y(value), "rule"))
        body.append(svg_text("0", y(value) + 4, format_score(value), "muted small"))
    best, since = 0.0, 0  # best score so far and its trial; trial 0, the given recipe, is never pruned
    for r in rows:
        if r.state == "complete" and r.value > best:
            if best:
                body.append(_step(x(since), y(best), x(r.number), y(best)))
                body.append(_step(x(r.number), y(best), x(r.number), y(r.value)))
            best, since = r.value, r.number
    body.append(_step(x(since), y(best), x(rows[-1].number), y(best)))
    for r in scored:
        said = f"recipe {r.number}: {format_score(r.scores[-1])}" + (", given up early" if r.state == "pruned" else "")
        tone = "dot accent" if r.state == "complete" else "dot hollow"
        place = f'cx="{x(r.number)}" cy="{y(r.scores[-1])}" r="4"'
        body.append(f'<circle {place} class="{tone}"><title>{escape(said)}</title></circle>')
    body.append(svg_text(f"{_FIRST}%", bottom + 24, "the recipe given", "muted small"))
    body.append(svg_text(f"{_LAST}%", bottom + 24, f"recipe {rows[-1].number}", "muted small", "end"))
    said = f"{len(scored)} recipes, the first {format_score(scored[0].scores[-1])}, the best {format_score(best)}"
    title = "Macro F1 in the search, by the order in which recipes were tried"
    return svg("history", title, said, bottom + 32, body)


def _step(x1: str, y1: float, x2: str, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="curve"/>'


def _row(row: Row, best: bool) -> dict[str, Any]:
    return {
        "number": row.number,
        "best": best,
        "score": format_score(row.scores[-1]) if row.scores else "",
        "state": {"complete": "", "pruned": f"given up after {len(row.scores)}", "failed": "not fitted"}[row.state],
        "changes": _written(row.changes),
        "seconds": format_seconds(row.seconds),
        "note": row.note,
    }


def _written(changes: dict[str, Any]) -> list[str]:
    """Format as in a recipe: `image.size = 320`."""
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def _seconds(found: Tuning) -> float:
    """Total time of all trials, including those of earlier, interrupted processes."""
    return sum(row.seconds for one in found.searches for row in one.rows)
