"""Plots of the strategy recommendation: rule-of-thumb table, race and learning curve."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from unfreeze.core.format import Interval, format_difference, format_estimate, format_interval, format_score, pluralize
from unfreeze.reports.svg_elements import circle, hline, polyline, rect, svg, svg_text, tick_label, vline

Row = dict[str, Any]

# Table: width of the row headings, size of a cell, top margin in pixels, and characters per line of a cell.
_HEAD, _CELL_W, _CELL_H, _TOP, _LETTERS = 56, 152, 136, 8, 20
# Learning curve, in pixels.
_LEFT, _WIDE, _HIGH, _ABOVE = 40, 312, 200, 28
# Minimum extent of a difference axis on each side of 0.
_LEAST = 0.02


def quadrant_plot(
    key: str,
    cells: Mapping[tuple[bool, bool], str],
    similar: Interval,
    enough: Interval,
    cell: tuple[bool, bool],
) -> Markup:
    """The rule-of-thumb table with the position of the data set and its uncertainty.

    Args:
        key: Prefix of the element ids.
        cells: (enough, similar) -> text of the cell.
        similar: Similarity to the pretraining with its interval, between 0 and 1.
        enough: Sufficiency of the images with its interval, between 0 and 1.
        cell: (enough, similar) of the cell that contains the position.
    """
    x = {name: _HEAD + 2 * _CELL_W * _unit(similar[name]) for name in ("value", "low", "high")}
    y = {name: _TOP + 2 * _CELL_H * (1 - _unit(enough[name])) for name in ("value", "low", "high")}
    right, bottom, middle = _HEAD + 2 * _CELL_W, _TOP + 2 * _CELL_H, _TOP + _CELL_H
    body, words = [], []
    for (is_enough, is_similar), text in cells.items():
        left, top = _HEAD + _CELL_W * is_similar, _TOP + _CELL_H * (not is_enough)
        own = (is_enough, is_similar) == cell
        tone = "band" if own else "ground"
        body.append(rect(left, top, _CELL_W, _CELL_H, tone))
        lines = textwrap.wrap(text, _LETTERS)
        # Keep text away from the marker: at the outer edge, or in the other half of the marker's cell.
        low = y["value"] < top + _CELL_H / 2 if own else not is_enough
        start = top + _CELL_H - 12 - 18 * (len(lines) - 1) if low else top + 24
        ink = "small ink" if own else "small muted"
        words += [svg_text(left + 12, start + 18 * i, line, ink) for i, line in enumerate(lines)]
    wide, tall = x["high"] - x["low"], y["low"] - y["high"]
    body.append(rect(x["low"], y["high"], wide, tall, "doubt"))
    body += [
        rect(_HEAD, _TOP, 2 * _CELL_W, 2 * _CELL_H, "edge"),
        vline(_HEAD + _CELL_W, _TOP, bottom, "axis"),
        hline(_HEAD, right, middle, "axis"),
        *words,
        hline(x["low"], x["high"], y["value"], "whisker"),
        vline(x["value"], y["high"], y["low"], "whisker"),
        circle(x["value"], y["value"], 6, "dot accent"),
    ]
    beyond = x["value"] > right - 96
    label_x = x["value"] + (-12 if beyond else 12)
    over = y["value"] - 10 if y["value"] > _TOP + 24 else y["value"] + 20
    body.append(svg_text(label_x, over, "your photos", "small strong-ink", "end" if beyond else "start"))
    for said, at in (("enough", _TOP + _CELL_H / 2), ("little", _TOP + 1.5 * _CELL_H)):
        body.append(svg_text(_HEAD - 8, at + 4, said, "muted small", "end"))
    for tick, at in ((0.0, bottom), (0.5, middle), (1.0, _TOP + 8)):
        body.append(svg_text(_HEAD - 8, at + (4 if tick == 0.5 else 0), tick_label(tick), "muted tiny", "end"))
    for said, place in (("different", _HEAD + _CELL_W / 2), ("similar", _HEAD + 1.5 * _CELL_W)):
        body.append(svg_text(place, bottom + 20, said, "muted small", "middle"))
    for tick, place, anchor in ((0.0, _HEAD, "start"), (0.5, _HEAD + _CELL_W, "middle"), (1.0, right, "end")):
        body.append(svg_text(place, bottom + 16, tick_label(tick), "muted tiny", anchor))
    said = (
        f"similar {format_estimate(similar, 2)}, enough {format_estimate(enough, 2)}, "
        f"which the table answers with: {cells[cell]}"
    )
    title = "Enough photos or not, similar to the pretraining or not: where these photos are"
    return svg(key, title, said, 0, body, box=f"0 0 {right + 4} {bottom + 28}")


def race_plot(key: str, rows: Sequence[Row], base: str) -> Markup:
    """Difference of each candidate to the baseline with its interval, and a tick at the value expected on all images.

    Args:
        key: Prefix of the element ids.
        rows: Name, difference (value, low, high), expected and photos. The scale fits the candidates that are not
            clearly worse than the baseline; candidates far below it are drawn as an arrow.
        base: Name of the baseline.
    """
    running = [row for row in rows if row["difference"]["high"] >= 0] or list(rows)
    ends = [abs(row["difference"][end]) for row in running for end in ("low", "high")]
    reach = max(_LEAST, *ends, *(abs(row["expected"]) for row in running))
    low = -1.05 * min(reach, max([_LEAST, *(-row["difference"]["low"] for row in running)]))
    high = 1.05 * max([_LEAST, *(row["difference"]["high"] for row in running), *(r["expected"] for r in running)])
    # Candidates that are clearly worse but close still fit on the scale.
    low = min([low, *(1.05 * r["difference"]["low"] for r in rows if -2 * reach < r["difference"]["low"] < 0)])

    def at(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    body, y = [], 24
    bottom = 24 + 56 * len(rows)
    body.append(vline(at(0), 16, bottom, "mean"))
    body.append(svg_text(at(0), 12, base, "muted small", "start" if -low < 0.1 * (high - low) else "middle"))
    for row in rows:
        found, line = row["difference"], y + 36
        body += [
            svg_text("0", y + 16, row["name"], "ink"),
            f'<text x="100%" y="{y + 16}" text-anchor="end">'
            f'<tspan class="strong ink">{format_difference(found["value"])}</tspan>'
            f'<tspan class="muted small" dx="8">{format_interval(found, signed=True)}</tspan></text>',
            hline("0", "100%", line, "rule"),
        ]
        if found["high"] < low:
            body.append(f'<svg x="0" y="{line - 6}" width="12" height="12"><path d="M0 6 10 0V12z" class="bar"/></svg>')
            body.append(svg_text("16", line + 5, "far to the left", "muted small halo"))
        else:
            body.append(hline(at(found["low"]), at(found["high"]), line, "range accent"))
            body.append(circle(at(found["value"]), line, 5, "dot accent"))
            body.append(vline(at(row["expected"]), line - 10, line + 10, "tick"))
        y += 56
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / s <= 7 or s == 1.0)
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        share = (i * step - low) / (high - low)
        anchor = "start" if share < 0.05 else "end" if share > 0.95 else "middle"
        body.append(
            svg_text(at(i * step), bottom + 16, format_difference(i * step, 2) if i else "0", "muted small", anchor)
        )
    said = "; ".join(
        f"{row['name']}: {format_estimate(row['difference'], signed=True)}, "
        f"expected {format_difference(row['expected'])}"
        for row in rows
    )
    return svg(key, f"Macro F1 less that of the {base}, with 95% intervals", said, bottom + 24, body)


def curve_plot(key: str, curve: Row) -> Markup:
    """Learning curve: macro F1 by the number of training groups, with the fitted power law and its predictions.

    Each point shows the single draws and their mean with its interval. Groups are on a logarithmic scale. The band is
    the interval of the predicted score.

    Args:
        key: Prefix of the element ids.
        curve: `enough` of the recommendation.
    """
    points = curve["points"]
    law, top = curve["law"], points[-1]["groups"]
    ahead = [(2, curve["doubled"]), (4, curve["fourfold"])] if law and curve["doubled"] else []
    banded = [(k, more["macro_f1"]) for k, more in ahead if more["macro_f1"]["low"] is not None]
    first, last = math.log(points[0]["groups"]), math.log(top * (4 if ahead else 1))
    values = [p["macro_f1"][name] for p in points for name in ("low", "high")] + [d for p in points for d in p["draws"]]
    values += [level[name] for _, level in banded for name in ("low", "high")]
    values += [more["macro_f1"]["value"] for _, more in ahead]
    low = max(0.0, math.floor(min(values) * 20 - 0.2) / 20)
    high = min(1.0, math.ceil(max(values) * 20 + 0.2) / 20)

    def x(groups: float) -> float:
        return round(_LEFT + 8 + (_WIDE - 24) * (math.log(groups) - first) / max(last - first, 1e-9), 1)

    def y(value: float) -> float:
        return round(_ABOVE + _HIGH * (high - min(max(value, low), high)) / (high - low), 1)

    bottom = _ABOVE + _HIGH
    body = [svg_text(0, 14, "macro F1", "muted small")]
    gap = next(g for g in (0.05, 0.1, 0.2, 0.25) if (high - low) / g <= 6 or g == 0.25)
    for i in range(math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9) + 1):
        body.append(hline(_LEFT, _LEFT + _WIDE, y(i * gap), "rule"))
        body.append(svg_text(_LEFT - 8, y(i * gap) + 4, tick_label(i * gap), "muted small", "end"))
    if banded:
        own = points[-1]["macro_f1"]
        above = [(top, own["high"]), *((top * k, level["high"]) for k, level in banded)]
        below = [*((top * k, level["low"]) for k, level in reversed(banded)), (top, own["low"])]
        outline = " ".join(f"{x(n)},{y(v)}" for n, v in [*above, *below])
        body.append(f'<polygon points="{outline}" class="band"/>')
    if ahead:
        body.append(_path(law, points[0]["groups"], top, x, y, "fit"))
        body.append(_path(law, top, 4 * top, x, y, "fit ahead"))
    for point in points:
        at, f1 = x(point["groups"]), point["macro_f1"]
        body.append(vline(at, y(f1["high"]), y(f1["low"]), "whisker"))
        if len(point["draws"]) > 1:
            body += [circle(at, y(d), 2.5, "draw") for d in point["draws"]]
        body.append(circle(at, y(f1["value"]), 5, "dot accent"))
    shown = [(p["groups"], f"{p['groups']:,}") for p in points] + [(k * top, f"{k * top:,}") for k, _ in ahead]
    edge = -100.0
    for groups, count in shown:
        if x(groups) - edge >= 34:
            body.append(svg_text(x(groups), bottom + 20, count, "muted small", "middle"))
            edge = x(groups)
    for k, more in ahead:
        level = more["macro_f1"]
        end = level["value"] if level["high"] is None else level["high"]
        anchor, at = ("end", x(k * top) + 8) if k == 4 else ("middle", x(k * top))
        body.append(svg_text(at, y(end) - 8, f"{k}×: {format_score(level['value'], 2)}", "small ink", anchor))
    body.append(hline(_LEFT, _LEFT + _WIDE, bottom, "axis"))
    body.append(svg_text(_LEFT + _WIDE, bottom + 40, "groups learned from", "muted small", "end"))
    said = "; ".join(
        [f"{pluralize(p['groups'], 'group')}: {format_estimate(p['macro_f1'])}" for p in points]
        + [f"{k} times as many: {predicted(more)}" for k, more in ahead]
    )
    return svg(
        key,
        "The probe's macro F1 over groups learned from",
        said,
        0,
        body,
        box=f"0 0 {_LEFT + _WIDE + 8} {bottom + 48}",
    )


def predicted(more: Row) -> str:
    """Format a prediction of the learning curve as `0.81 [0.78, 0.84] predicted, +0.02 over the measured score`."""
    level = more["macro_f1"]
    text = format_score(level["value"], 2) if level["low"] is None else format_estimate(level, 2)
    return f"{text} predicted, {format_difference(more['gain']['value'], 2)} over the measured score"


def _law(law: Sequence[float], n: float) -> float:
    a, b, c = law
    return 1 - (a + b * float(n) ** -c)


def _path(law: Sequence[float], start: float, stop: float, x: Any, y: Any, tone: str) -> str:
    steps = [start * (stop / start) ** (i / 24) for i in range(25)]
    return polyline(((x(n), y(_law(law, n))) for n in steps), tone)


def _unit(value: float) -> float:
    return min(max(float(value), 0.0), 1.0)
