"""Plots as inline SVG, without a plotting library.

Plots use the page's fonts and colors. Most of them have horizontal positions in percent and sizes in pixels, so that
text keeps its size on narrow screens.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from unfreeze.core.format import Interval, clipped, format_difference, format_estimate, format_interval, format_score
from unfreeze.reports.svg_elements import circle, hline, polyline, rect, svg, svg_text, tick_label, vline

TICKS = (0, 0.25, 0.5, 0.75, 1)


def wilson(hits: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """95% Wilson score interval of a proportion (Wilson 1927); (0, 1) if `total` is 0."""
    if total <= 0:
        return 0.0, 1.0
    share, z2 = hits / total, z * z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class ScoreRow:
    """One line of the score plot.

    Attributes:
        label: Text of the line.
        interval: Score with its interval.
        chance: Score of chance, drawn as a tick.
        chance_label: Text of the tick.
        quiet: Draw the line in a muted color, as context.
    """

    label: str
    interval: Interval
    chance: float | None = None
    chance_label: str = ""
    quiet: bool = False


def score_rows(key: str, rows: Sequence[ScoreRow]) -> Markup:
    """Scores from 0 to 1, one per row, with their intervals and the score of chance."""
    body, y = [], 0
    for row in rows:
        value, tone, ink = row.interval, *(("quiet", "muted") if row.quiet else ("accent", "ink"))
        body += [
            svg_text("0", y + 16, row.label, ink),
            f'<text x="100%" y="{y + 16}" text-anchor="end">'
            f'<tspan class="strong {ink}">{format_score(value["value"])}</tspan>'
            f'<tspan class="muted small" dx="8">{format_interval(value)}</tspan></text>',
            hline("0", "100%", y + 36, "rule"),
            hline(_pc(value["low"]), _pc(value["high"]), y + 36, f"range {tone}"),
            vline(_pc(value["value"]), y + 26, y + 46, f"value {tone}"),
        ]
        if row.chance is not None:
            at, shown = _pc(row.chance), f"{row.chance_label} {format_score(row.chance)}"
            body.append(vline(at, y + 30, y + 42, "tick"))
            body.append(svg_text(at, y + 58, shown, "muted small", "start" if row.chance < 0.5 else "end"))
        y += 80 if row.chance is not None else 60
    for tick, anchor in zip(TICKS, ("start", "middle", "middle", "middle", "end"), strict=True):
        body.append(svg_text(_pc(tick), y + 8, tick_label(tick), "muted small", anchor))
    said = "; ".join(f"{row.label}: {format_estimate(row.interval)}" for row in rows)
    return svg(key, "Scores with their 95% intervals, on a scale from 0 to 1", said, y + 16, body)


def fold_dots(key: str, folds: Sequence[dict[str, Any]], overall: Interval) -> Markup:
    """Macro F1 of each fold and of all folds together; the scale covers only their range."""
    values = [fold["macro_f1"] for fold in folds] + [overall["low"], overall["high"]]
    low = max(0.0, math.floor(min(values) * 20 - 0.3) / 20)
    high = min(1.0, math.ceil(max(values) * 20 + 0.3) / 20)
    left, wide, step = 18.0, 80.0, 32 if len(folds) <= 12 else 20
    bottom = 28 + step * len(folds)

    def at(value: float) -> str:
        return f"{left + wide * (value - low) / (high - low):.2f}%"

    band = f"{wide * (overall['high'] - overall['low']) / (high - low):.2f}%"
    body = [
        rect(at(overall["low"]), 28, band, bottom - 28, "band"),
        vline(at(overall["value"]), 24, bottom, "mean"),
        svg_text(at(overall["value"]), 16, f"all folds {format_score(overall['value'])}", "muted small", "middle"),
    ]
    for i, fold in enumerate(folds):
        y = 28 + step * i + step // 2
        body.append(svg_text("0", y + 5, f"Fold {int(fold['fold'])}", "ink"))
        body.append(hline(at(low), at(high), y, "rule"))
        body.append(circle(at(fold["macro_f1"]), y, 6, "dot accent"))
    gap = next(g for g in (0.05, 0.1, 0.25) if (high - low) / g <= 6 or g == 0.25)
    inner = [g * gap for g in range(1, 21) if low + gap / 2 < g * gap < high - gap / 2]
    body += [svg_text(at(v), bottom + 20, tick_label(v), "muted small", "middle") for v in (low, *inner, high)]
    said = "; ".join(f"fold {int(f['fold'])}: {format_score(f['macro_f1'])}" for f in folds)
    title = "Macro F1 of each fold; the band is the 95% interval of all folds"
    return svg(key, title, said, bottom + 28, body)


def bars(key: str, title: str, rows: Sequence[tuple[str, float, str]], *, left: int = 28) -> Markup:
    """Horizontal bars with labels; rows of (label, value, value as text)."""
    most = max((value for _, value, _ in rows), default=0) or 1
    right = 84 if max((len(text) for _, _, text in rows), default=0) < 6 else 68
    body = []
    for i, (label, value, text) in enumerate(rows):
        wide = max((right - left) * value / most, 0.4)
        body.append(svg_text("0", i * 28 + 18, clipped(label), "ink"))
        body.append(rect(f"{left}%", i * 28 + 6, f"{wide:.2f}%", 16, "bar"))
        body.append(svg_text(f"{left + wide:.2f}%", i * 28 + 18, text, "muted", shift=8))
    said = "; ".join(f"{label}: {text}" for label, _, text in rows)
    return svg(key, title, said, 28 * len(rows), body)


def gain_bars(key: str, rows: Sequence[tuple[str, Interval]]) -> Markup:
    """Gains in macro F1 as bars from 0 with their intervals; rows of (label, gain)."""
    left, right = 24, 66  # percent
    most = max([0.01, *(gain["high"] for _, gain in rows)])

    def at(value: float) -> str:
        return f"{left + (right - left) * max(value, 0.0) / most:.2f}%"

    body, said = [], []
    for i, (label, gain) in enumerate(rows):
        shown = format_estimate(gain, signed=True)
        body.append(svg_text("0", i * 36 + 22, clipped(label, 18), "ink"))
        body.append(rect(f"{left}%", i * 36 + 8, f"{max((right - left) * gain['value'] / most, 0.4):.2f}%", 20, "bar"))
        body.append(hline(at(gain["low"]), at(gain["high"]), i * 36 + 32, "whisker"))
        body.append(svg_text("100%", i * 36 + 22, shown, "muted small", "end"))
        said.append(f"{label}: {shown}")
    return svg(key, "Macro F1 gained if a part were always right", "; ".join(said), 36 * len(rows) + 4, body)


def difference_rows(key: str, base: str, rows: Sequence[tuple[str, Interval]], unit: str = "macro F1") -> Markup:
    """Differences to a baseline in points (hundredths) with their intervals, one per row, about a line at 0.

    The scale covers the intervals. Rows whose interval contains 0 are drawn in a muted color.
    """
    low = min(0.0, *(100 * found["low"] for _, found in rows))
    high = max(0.0, *(100 * found["high"] for _, found in rows))
    spare = max(0.06 * (high - low), 0.2)
    low, high = low - spare, high + spare
    gap = next(g for g in (0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / g <= 6 or g == 100)

    def at(points: float) -> str:
        return _pc((points - low) / (high - low))

    def points(value: float) -> str:
        return format_difference(100 * value, 1)

    # Long names may differ only at the end, so they get a separate line instead of being clipped.
    longest = max(len(label) for label, _ in rows)
    under, most = (20, 44) if longest > 22 else (0, 22)
    bottom = 24 + (52 + under) * len(rows)
    edge = "start" if -low < 0.2 * (high - low) else "end" if high < 0.2 * (high - low) else "middle"
    body = [vline(at(0), 20, bottom, "axis"), svg_text(at(0), 12, clipped(base), "muted small", edge)]
    said = []
    for i, (label, found) in enumerate(rows):
        above = 24 + (52 + under) * i
        y = above + under
        shown = found["low"] > 0 or found["high"] < 0
        tone, ink = ("accent", "ink") if shown else ("quiet", "muted")
        value, between = points(found["value"]), f"[{points(found['low'])}, {points(found['high'])}]"
        body += [
            svg_text("0", above + 16, clipped(label, most), f"{ink} halo"),
            f'<text x="100%" y="{y + 16}" text-anchor="end" class="halo"><tspan class="strong {ink}">{value}</tspan>'
            f'<tspan class="muted small" dx="8">{between}</tspan></text>',
            hline(at(100 * found["low"]), at(100 * found["high"]), y + 34, f"range {tone}"),
            vline(at(100 * found["value"]), y + 26, y + 42, f"value {tone}"),
        ]
        said.append(f"{label}: {value} points {between}")
    body.append(hline("0", "100%", bottom, "rule"))
    for i in range(math.ceil(low / gap), math.floor(high / gap) + 1):
        share = (i * gap - low) / (high - low)
        anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        label = f"{i * gap:+g}" if i else "0"
        body.append(svg_text(at(i * gap), bottom + 18, label, "muted small", anchor))
    title = f"Points of {unit} more or less than {base}, with 95% intervals"
    return svg(key, title, "; ".join(said), bottom + 24, body)


def bar(share: float) -> Markup:
    """A bar for a table row that also prints the number."""
    inside = rect("0", 0, _pc(share), 8, "bar")
    return Markup(f'<svg class="inline" width="100%" height="8" aria-hidden="true">{inside}</svg>')


def interval_bar(interval: Interval) -> Markup:
    """A score with its interval on the scale 0 to 1, for a table cell."""
    body = [
        hline("0", "100%", 8, "rule"),
        vline("50%", 4, 12, "rule"),
        hline(_pc(interval["low"]), _pc(interval["high"]), 8, "range accent"),
        vline(_pc(interval["value"]), 1, 15, "value accent"),
    ]
    return Markup(f'<svg class="inline ci" height="16" aria-hidden="true">{"".join(body)}</svg>')


def reliability_plot(key: str, curve: Sequence[dict[str, float]]) -> Markup:
    """Reliability diagram: accuracy by predicted probability, with Wilson intervals and image counts per bin."""
    left, top, wide, tall, base = 40, 24, 308, 248, 366
    most = max(point["count"] for point in curve)

    def x(value: float) -> float:
        return round(left + wide * value, 1)

    def y(value: float) -> float:
        return round(top + tall * (1 - value), 1)

    body = [svg_text(left, 12, "share that is right", "muted small")]
    for tick in TICKS:
        body += [
            hline(left, left + wide, y(tick), "rule"),
            svg_text(left - 8, y(tick) + 4, tick_label(tick), "muted small", "end"),
            svg_text(x(tick), base + 16, tick_label(tick), "muted small", "middle"),
        ]
    body.append(f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" class="mean"/>')
    body.append(svg_text(x(0.09), y(0.02), "perfect", "muted small halo"))
    body.append(polyline(((x(p["confidence"]), y(p["accuracy"])) for p in curve), "curve"))
    for point in curve:
        low, high = wilson(point["accuracy"] * point["count"], point["count"])
        tip = round(base - 48 * point["count"] / most, 1)
        width = round(wide * (point["high"] - point["low"]) - 4, 1)
        body += [
            vline(x(point["confidence"]), y(high), y(low), "whisker"),
            circle(x(point["confidence"]), y(point["accuracy"]), 4.5, "dot accent"),
            rect(x(point["low"]) + 2, tip, width, round(base - tip, 1), "bar"),
            svg_text(
                x((point["low"] + point["high"]) / 2),
                tip - 4,
                f"{point['count']:,.0f}",
                "muted tiny",
                "middle",
            ),
        ]
    body.append(hline(left, left + wide, base, "axis"))
    caption = "probability the model gave, and how many photos"
    body.append(svg_text(left + wide, base + 34, caption, "muted small", "end"))
    said = "; ".join(
        f"confidence {format_score(p['confidence'], 2)}, accuracy {format_score(p['accuracy'], 2)}, "
        f"{p['count']:.0f} photos"
        for p in curve
    )
    return svg(key, "Reliability diagram: accuracy by confidence", said, 404, body, box="0 0 360 404")


def _pc(value: float) -> str:
    return f"{100 * value:.2f}%"


_BINS = 32
_TALL = 72
_MEAN_SIDE = 112


def histogram(
    key: str, title: str, values: NDArray[np.float64], logarithmic: bool, shown: Callable[[float], str]
) -> Markup:
    """Histogram of a measure between its minimum and maximum, with the median marked.

    Args:
        key: Prefix of the element ids.
        title: Title for screen readers.
        values: Values; those that are not finite are dropped.
        logarithmic: Use a log1p scale.
        shown: Formats a value.

    Returns:
        Empty if there are no finite values.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Markup("")
    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    x, ends = (
        (np.log1p(values), np.log1p([low, middle, high])) if logarithmic else (values, np.array([low, middle, high]))
    )
    span = ends[2] - ends[0]
    counts = np.histogram(x, _BINS, (ends[0], ends[2]) if span > 0 else (ends[0] - 0.5, ends[0] + 0.5))[0]
    wide = 100 / _BINS
    body = [
        rect(f"{i * wide:.2f}%", _TALL - tall, f"{wide * 0.9:.2f}%", tall, "bar")
        for i, tall in enumerate(np.maximum(1.5, _TALL * counts / max(counts.max(), 1)))
        if counts[i]
    ]
    at = 100 * (ends[1] - ends[0]) / span if span > 0 else 50.0
    anchor = "start" if at < 25 else "end" if at > 75 else "middle"
    place = f"{at:.2f}%"
    body += [
        hline("0", "100%", _TALL, "axis"),
        vline(place, 0, _TALL, "mean"),
        svg_text(place, -6, f"median {shown(middle)}", "small muted", anchor),
        svg_text("0", _TALL + 18, shown(low), "small muted"),
        svg_text("100%", _TALL + 18, shown(high), "small muted", "end"),
    ]
    said = f"from {shown(low)} over the median {shown(middle)} to {shown(high)}, {len(values):,} photos"
    return svg(key, title, said, _TALL + 24, body, kind="spread")


def mean_photo(grey: NDArray[np.uint8], thumb: NDArray[np.uint8], aspect: float) -> tuple[str, int, int]:
    """Mean image as a JPEG data URI, with full luma and coarse chroma resolution.

    Args:
        grey: uint8 (n, 32, 32), luma.
        thumb: uint8 (n, 8, 8, 3), RGB.
        aspect: Width / height of the result.

    Returns:
        Data URI, width and height.
    """
    light, colour = grey.mean(0, dtype=np.float64), thumb.mean(0, dtype=np.float64)
    wide = round(_MEAN_SIDE * min(1.0, aspect))
    tall = round(_MEAN_SIDE * min(1.0, 1 / aspect))
    wide, tall = max(wide, 24), max(tall, 24)

    def grown(plane: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((wide, tall), Image.Resampling.BICUBIC))

    luma = colour @ np.array([0.299, 0.587, 0.114])
    bright = grown(light)
    pixels = np.stack([bright + grown(colour[..., c] - luma) for c in range(3)], -1)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), wide, tall


def heat_map(key: str, title: str, cells: NDArray[np.float64]) -> Markup:
    """Square grid of cells, darker for larger values, scaled from 0 to the maximum."""
    side, most = len(cells), float(cells.max()) or 1.0
    body = [
        f'<rect x="{column}" y="{row}" width="1.02" height="1.02" class="heat" fill-opacity="{value / most:.2f}"/>'
        for (row, column), value in np.ndenumerate(cells)
        if value / most >= 0.01
    ]
    said = f"{side} by {side} cells; the fullest holds {most:.0%}"
    ground = f'<rect width="{side}" height="{side}" class="ground"/>'
    return svg(key, title, said, 0, [ground, *body], box=f"0 0 {side} {side}", kind="heats")
