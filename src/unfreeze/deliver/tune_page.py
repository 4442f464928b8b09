"""A search in one HTML file: what `unfreeze tune` writes beside its runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from unfreeze.core.files import write_whole
from unfreeze.deliver.pages import stylesheet, templates
from unfreeze.deliver.plots import ScoreRow, bars, number, score, score_rows, seconds, svg
from unfreeze.deliver.report import glued

if TYPE_CHECKING:
    from unfreeze.study.compared import Figure
    from unfreeze.study.search import Row
    from unfreeze.study.tune import Tuning

_MOST = 200  # rows of the table of trials
_LEFT, _WIDE, _HIGH, _TOP = 44, 420, 170, 12


def write_tuning(found: Tuning, command: str = "", path: str | Path | None = None) -> Path:
    """Writes the page, by default tune.html in the search's folder, and returns its path; whole or not at all.

    command: what was typed, to repeat it. Raises StorageError where it cannot be written.
    """
    page = render(found, command).encode("utf-8", "replace")
    target = Path(path) if path else Path(found.folder) / "tune.html"
    return write_whole(target, lambda temporary: temporary.write_bytes(page))


def render(found: Tuning, command: str = "") -> str:
    """The page's HTML."""
    search = found.searches[0]
    rows, distinct = search.rows, search.distinct
    ranked = sorted(distinct, key=lambda r: (r.state != "complete", -r.scores[-1] if r.scores else 0.0, r.number))
    keys = list(found.importance)
    return (
        templates(glued=glued)
        .get_template("tune.html")
        .render(
            found=found,
            finding=found.sentence.replace(" -", " \N{MINUS SIGN}"),
            counted=f"{number(found.photos, 'photo')} in {number(found.groups, 'group')}, "
            f"{number(found.tried, 'recipe')}, {seconds(_seconds(found))} of learning",
            scores=score_rows(
                "scores",
                [
                    ScoreRow("The recipe given", _interval(found.base), quiet=True),
                    ScoreRow("Searched, judged on photos without part in it", _interval(found.nested)),
                    ScoreRow("Best recipe over the folds that it was chosen by", _interval(found.shown), quiet=True),
                ],
            ),
            history=history(rows),
            importance=bars(
                "importance",
                "Share of the score's variance that each key explains",
                [(key, share, f"{100 * share:.0f} %") for key, share in found.importance.items()],
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
    """Macro F1 of each recipe in the order tried, with the best so far as a line; those given up early are hollow."""
    told = [r for r in rows if r.scores]
    low, high = min(r.scores[-1] for r in told), max(r.scores[-1] for r in told)
    low, high = max(0.0, math.floor(20 * low - 0.2) / 20), min(1.0, math.ceil(20 * high + 0.2) / 20)
    bottom = _TOP + _HIGH

    def x(place: int) -> float:
        return _LEFT + _WIDE * place / max(len(rows) - 1, 1)

    def y(value: float) -> float:
        return bottom - _HIGH * (value - low) / (high - low)

    body = []
    for value in (low, (low + high) / 2, high):
        body.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDE}" y1="{y(value):g}" y2="{y(value):g}" class="rule"/>')
        body.append(
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:g}" text-anchor="end" class="muted small">{score(value)}</text>'
        )
    best, line = 0.0, []
    for r in rows:
        before, best = best, max(best, r.value if r.state == "complete" else 0.0)
        if before and best > before:
            line.append(f"{x(r.number):.1f},{y(before):.1f}")
        if best:
            line.append(f"{x(r.number):.1f},{y(best):.1f}")
    body.append(f'<polyline points="{" ".join(line)}" class="curve"/>')
    for r in told:
        said = f"recipe {r.number}: {score(r.scores[-1])}" + (", given up early" if r.state == "pruned" else "")
        tone = "dot accent" if r.state == "complete" else "dot hollow"
        body.append(
            f'<circle cx="{x(r.number):.1f}" cy="{y(r.scores[-1]):.1f}" r="4" class="{tone}">'
            f"<title>{escape(said)}</title></circle>"
        )
    ends = (("start", 0), ("end", len(rows) - 1))
    body += [
        f'<text x="{x(at):.1f}" y="{bottom + 20}" text-anchor="{anchor}" class="muted small">'
        f"{'the recipe given' if at == 0 else f'recipe {at}'}</text>"
        for anchor, at in ends
    ]
    box = f"0 0 {_LEFT + _WIDE + 12} {bottom + 28}"
    said = f"{len(told)} recipes, the first {score(told[0].scores[-1])}, the best {score(best)}"
    return svg("history", "Macro F1 in the search, by the order in which recipes were tried", said, 0, body, box)


def _row(row: Row, best: bool) -> dict[str, Any]:
    return {
        "number": row.number,
        "best": best,
        "score": score(row.scores[-1]) if row.scores else "",
        "state": {"complete": "", "pruned": f"given up after {len(row.scores)}", "failed": "not fitted"}[row.state],
        "changes": _written(row.changes),
        "seconds": seconds(row.seconds),
        "note": row.note,
    }


def _written(changes: dict[str, Any]) -> list[str]:
    """As a recipe has them: `image.size = 320`."""
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def _seconds(found: Tuning) -> float:
    """What all trials have cost, in whatever process and however often the search was cut off."""
    return sum(row.seconds for one in found.searches for row in one.rows)


def _interval(figure: Figure) -> dict[str, float]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}
