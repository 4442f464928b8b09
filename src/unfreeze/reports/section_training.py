"""Report section on fine-tuning: gain over the linear probe it started from, and loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from unfreeze.core.format import format_estimate, format_interval, format_score, format_seconds, pluralize
from unfreeze.reports.svg_elements import circle, polyline, svg, svg_text, value_axis

Row = dict[str, Any]
_LEFT, _WIDE, _HIGH, _TOP = 52, 300, 150, 12


def training(info: Row, scores: Row, rows: Sequence[Row]) -> Row | None:
    """Template context of the section; None for a run without fine-tuning. `rows` are those of log.jsonl."""
    written = info.get("trained")
    if not written or not rows:
        return None
    settings = written.get("settings", {})
    folds: dict[int, list[Row]] = {}
    for row in rows:
        folds.setdefault(int(row["fold"]), []).append(row)
    table = [
        {
            "fold": fold,
            "epochs": len(own),
            "first": f"{own[0]['train_loss']:.3f}",
            "last": f"{own[-1]['train_loss']:.3f}",
            "valid": _valid(own),
            "speed": f"{sum(r['photos'] for r in own) / max(sum(r['seconds'] for r in own), 1e-9):,.0f}",
            "micro": own[-1]["micro_batch"],
            "memory": sum(r["out_of_memory"] for r in own),
        }
        for fold, own in sorted(folds.items())
    ]
    return {
        "finding": _finding(info, scores, rows),
        "against": _against(scores),
        "plot": _losses(folds),
        "folds": table,
        "checked": any(row["valid"] for row in table),
        "kept": _kept(settings),
    }


def _finding(info: Row, scores: Row, rows: Sequence[Row]) -> str:
    strategy = {"partial": "its last stages", "full": "the whole network", "scratch": "the network from nothing"}
    what = strategy.get(str(info.get("strategy")), "the network")
    spent = format_seconds(sum(float(row["seconds"]) for row in rows))
    gain = scores.get("gain")
    if not gain:
        return f"Training {what} took {spent} of steps over all folds."
    value, low, high = gain["value"], gain["low"], gain["high"]
    verb = "won" if value >= 0 else "lost"
    sure = "" if low > 0 or high < 0 else ", which may be chance"
    return (
        f"Training {what} {verb} {format_score(abs(value))} of macro F1 against the probe it started from "
        f"(95% interval {format_interval(gain, signed=True)}{sure}), for {spent} of steps over all folds."
    )


def _against(scores: Row) -> list[Row]:
    """Scores of the run and of its components."""
    rows = [{"name": "this run", **scores["out_of_fold"]}]
    names = {"probe": "the probe alone", "network alone": "the trained network alone"}
    components = scores.get("components", {})
    if "network alone" in components and components["network alone"]["macro_f1"] == scores["out_of_fold"]["macro_f1"]:
        components = {name: found for name, found in components.items() if name != "network alone"}
    rows += [{"name": names.get(name, name), **found} for name, found in components.items()]
    return [
        {"name": row["name"], **{k: format_estimate(row[k]) for k in ("macro_f1", "accuracy", "log_loss")}}
        for row in rows
    ]


def _valid(rows: Sequence[Row]) -> str:
    best = [row for row in rows if row["best"] and row["valid_macro_f1"] is not None]
    return f"{format_score(best[-1]['valid_macro_f1'])} after epoch {best[-1]['epoch']}" if best else ""


def _kept(settings: Row) -> str:
    share = float(settings.get("keep", 1))
    if share == 1:
        return ""
    return (
        f"The weights that are kept lie {share:.0%} of the way from where training began to where it ended "
        "(WiSE-FT, arXiv 2109.01903): nearer to the start they hold better on groups that were not seen."
    )


def _losses(folds: dict[int, list[Row]]) -> Markup:
    """Plot of the training loss by epoch, one line per fold, from 0 to the maximum."""
    most = max(row["train_loss"] for rows in folds.values() for row in rows) or 1.0
    epochs = max(len(rows) for rows in folds.values())
    bottom = _TOP + _HIGH

    def x(epoch: int) -> float:
        return _LEFT + _WIDE * (epoch - 1) / max(epochs - 1, 1)

    body = value_axis(_LEFT, _LEFT + _WIDE, bottom, _HIGH, most)
    for rows in folds.values():
        points = [(x(row["epoch"]), bottom - _HIGH * row["train_loss"] / most) for row in rows]
        body.append(polyline(points, "curve accent"))
        if len(rows) == 1:
            body.append(circle(*points[0], 4, "dot accent"))
    for epoch in sorted({1, (epochs + 1) // 2, epochs}):
        body.append(svg_text(x(epoch), bottom + 20, str(epoch), "muted small", "middle"))
    body.append(svg_text(_LEFT + _WIDE, bottom + 38, "epoch", "muted small", "end"))
    said = "; ".join(
        f"fold {fold}: {rows[0]['train_loss']:.3f} to {rows[-1]['train_loss']:.3f} in {pluralize(len(rows), 'epoch')}"
        for fold, rows in sorted(folds.items())
    )
    box = f"0 0 {_LEFT + _WIDE + 8} {bottom + 44}"
    return svg("training", "Training loss by epoch, a line for each fold", said, 0, body, box=box)
