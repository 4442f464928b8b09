"""Page that compares runs, as `unfreeze compare` does, and training curves.

`curves` plots the rows of log.jsonl: training loss and validation score by epoch, one line per fold.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from markupsafe import Markup

from unfreeze.analysis.compare import Comparison, compare
from unfreeze.core.errors import RunError
from unfreeze.core.format import format_score, pluralize
from unfreeze.core.messages import selection_sentence
from unfreeze.core.runs import selection_of
from unfreeze.reports import svg, svg_elements
from unfreeze.reports.svg_elements import circle, polyline, svg_text, value_axis
from unfreeze.server.studio.layout import Studio
from unfreeze.server.studio.library import run_url

MOST = 8  # runs at once


def compare_pages(studio: Studio) -> APIRouter:
    """Create the routes of the comparison."""
    router = APIRouter()

    @lru_cache(maxsize=8)
    def found(paths: tuple[Path, ...], stamps: tuple[int, ...]) -> Comparison:
        return compare(paths)

    @router.get("/compare")
    def show(run: Annotated[list[str] | None, Query()] = None) -> Response:
        names = list(dict.fromkeys(run or []))
        if not 2 <= len(names) <= MOST:
            raise RunError(f"Choose 2 to {MOST} finished runs in the list to compare them.")
        paths = tuple(studio.library.run(name) for name in names)
        comparison = found(paths, tuple((path / "run.json").stat().st_mtime_ns for path in paths))
        command = shlex.join(["unfreeze", "compare", *map(str, paths)])
        urls = {str(path): run_url(name) for name, path in zip(names, paths, strict=True)}
        context = described(comparison, urls)
        selected = [(name, selection_of(path)) for name, path in zip(names, paths, strict=True)]
        context["notes"] = [*context["notes"], *(f"{name}: {selection_sentence(by)}" for name, by in selected if by)]
        return studio.page("studio_compare.html", here="runs", command_text=command, **context)

    return router


def described(comparison: Comparison, urls: dict[str, str]) -> dict[str, Any]:
    """Template context of a comparison. `urls` maps the path of each run to its page."""
    rows = [
        {
            "name": one.name,
            "url": urls[str(one.run)],
            "base": one is comparison.base,
            "changes": "; ".join(f"{key} {_word(value)}" for key, value in one.changes.items()),
            "macro_f1": vars(one.macro_f1),
            "accuracy": vars(one.accuracy),
            "more": one.difference,
            "more_accurate": one.accuracy_difference,
            "folds": "" if one.wins is None or one is comparison.base else f"{one.wins} to {one.losses}",
        }
        for one in comparison.contenders
    ]
    return {
        "finding": comparison.sentence,
        "rows": rows,
        "base": comparison.base.name,
        "best": comparison.best,
        "classes": sorted(comparison.classes, key=lambda row: -abs(row.difference.value)),
        "photos": comparison.photos,
        "groups": comparison.groups,
        "folds": comparison.folds,
        "notes": comparison.notes,
        "chance": comparison.chance,
        "bar": svg.interval_bar,
    }


def _word(value: object) -> str:
    """Format a recipe value for display."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or "none"
    return str(value) if value != "" else "none"


_LEFT, _WIDE, _HIGH, _TOP = 44, 300, 140, 12
Row = dict[str, Any]


def curves(rows: Sequence[Row], over: bool = False) -> list[dict[str, Any]]:
    """Plots of the training loss and the validation score, each with a sentence; none for a run without fine-tuning.

    Args:
        rows: Rows of log.jsonl.
        over: Whether training has finished.
    """
    found = []
    for key, title, unit in (("train_loss", "Training loss", 0.0), ("valid_macro_f1", "Macro F1 on held groups", 1.0)):
        folds: dict[int, list[tuple[int, float]]] = {}
        for row in rows:
            value = row.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                folds.setdefault(int(row.get("fold", 0)), []).append((int(row.get("epoch", 1)), float(value)))
        if folds:
            found.append({"title": title, "said": _said(folds, over), "plot": _plot(key, title, folds, unit)})
    return found


def _said(folds: dict[int, list[tuple[int, float]]], over: bool) -> str:
    fold = max(folds)
    epoch, value = folds[fold][-1]
    reached = format_score(value) if value < 1 else f"{value:.3f}"
    if not over:
        return f"{pluralize(len(folds), 'fold')} so far; fold {fold} is at {reached} after epoch {epoch}."
    last = sorted(points[-1][1] for points in folds.values())
    low, high = (format_score(v) if v < 1 else f"{v:.3f}" for v in (last[0], last[-1]))
    return (
        f"At the end {reached}."
        if len(folds) == 1
        else f"At the end {low} to {high} over {pluralize(len(folds), 'fold')}."
    )


def _ceiling(most: float) -> float:
    """The next 1, 2 or 5 times a power of ten, for round axis labels."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= most)


def _plot(key: str, title: str, folds: dict[int, list[tuple[int, float]]], unit: float) -> Markup:
    most = unit or _ceiling(max(0.0, *(v for points in folds.values() for _, v in points)) or 1.0)
    epochs = max(e for points in folds.values() for e, _ in points)
    bottom = _TOP + _HIGH

    def x(epoch: int) -> float:
        return _LEFT + _WIDE * (epoch - 1) / max(epochs - 1, 1)

    def y(value: float) -> float:
        return bottom - _HIGH * min(value / most, 1.0)

    body = value_axis(_LEFT, _LEFT + _WIDE, bottom, _HIGH, most)
    for points in folds.values():
        line = [(x(e), y(v)) for e, v in points]
        body += [polyline(line, "curve"), circle(*line[-1], 4, "dot accent")]
    body += [svg_text(x(e), bottom + 20, str(e), "muted small", "middle") for e in sorted({1, epochs})]
    body.append(svg_text(_LEFT + _WIDE / 2, bottom + 20, "epoch", "muted small", "middle"))
    said = "; ".join(f"fold {fold}: {points[-1][1]:.3f} after epoch {points[-1][0]}" for fold, points in folds.items())
    box = f"0 0 {_LEFT + _WIDE + 12} {bottom + 28}"
    return svg_elements.svg(key, f"{title} by epoch, a line for each fold", said, 0, body, box=box)
