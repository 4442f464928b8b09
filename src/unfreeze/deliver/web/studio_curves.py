"""How training goes, from the rows of log.jsonl: loss and validation score by epoch, a line a fold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from unfreeze.deliver.plots import number, score

_LEFT, _WIDE, _HIGH, _TOP = 44, 300, 140, 12
Row = dict[str, Any]


def curves(rows: Sequence[Row], over: bool = False) -> list[dict[str, Any]]:
    """The plots that the rows can fill, each with a sentence; none for a run that trains no network.

    over: no more rows will come.
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
    told = score(value) if value < 1 else f"{value:.3f}"
    if not over:
        return f"{number(len(folds), 'fold')} so far; fold {fold} is at {told} after epoch {epoch}."
    last = sorted(points[-1][1] for points in folds.values())
    low, high = (score(v) if v < 1 else f"{v:.3f}" for v in (last[0], last[-1]))
    return (
        f"At the end {told}." if len(folds) == 1 else f"At the end {low} to {high} over {number(len(folds), 'fold')}."
    )


def _ceiling(most: float) -> float:
    """The next 1, 2 or 5 times a power of ten, so that the axis has round numbers."""
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

    body = []
    for share in (0.0, 0.5, 1.0):
        at = bottom - _HIGH * share
        body.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDE}" y1="{at:g}" y2="{at:g}" class="rule"/>')
        body.append(
            f'<text x="{_LEFT - 8}" y="{at + 4:g}" text-anchor="end" class="muted small">{most * share:.3g}</text>'
        )
    for points in folds.values():
        line = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in points)
        body.append(f'<polyline points="{line}" class="curve"/>')
        body.append(f'<circle cx="{x(points[-1][0]):.1f}" cy="{y(points[-1][1]):.1f}" r="4" class="dot accent"/>')
    body += [
        f'<text x="{x(epoch):.1f}" y="{bottom + 20}" text-anchor="middle" class="muted small">{epoch}</text>'
        for epoch in sorted({1, epochs})
    ]
    body.append(
        f'<text x="{_LEFT + _WIDE / 2:g}" y="{bottom + 20}" text-anchor="middle" class="muted small">epoch</text>'
    )
    said = "; ".join(f"fold {fold}: {points[-1][1]:.3f} after epoch {points[-1][0]}" for fold, points in folds.items())
    return Markup(
        f'<svg class="plot" role="img" aria-labelledby="{key}-title {key}-desc" '
        f'viewBox="0 0 {_LEFT + _WIDE + 12} {bottom + 28}"><title id="{key}-title">{escape(title)} by epoch, a line '
        f'for each fold</title><desc id="{key}-desc">{escape(said)}</desc>{"".join(body)}</svg>'
    )
