"""Plots as inline SVG: they take the page's fonts and colours, and no plotting library has to load.

Positions across are per cent and sizes are pixels, so that text keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

Interval = dict[str, float]
TICKS = (0, 0.25, 0.5, 0.75, 1)


def score(value: float, digits: int = 3) -> str:
    """A number between 0 and 1 as people write scores: `.782`."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def span(interval: Interval, digits: int = 3) -> str:
    """`.741–.820`."""
    return f"{score(interval['low'], digits)}–{score(interval['high'], digits)}"


def number(count: int, one: str, many: str = "") -> str:
    """`1 photo`, `1,377 photos`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def seconds(value: float) -> str:
    """`9.8 s`, `2 min 5 s`, `1 h 12 min`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clipped(text: str, limit: int = 28) -> str:
    """`text`, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def wilson(hits: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927); (0, 1) where nothing was counted."""
    if total <= 0:
        return 0.0, 1.0
    share, z2 = hits / total, z * z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class ScoreRow:
    """One line of the headline plot. `chance` is drawn as a tick; `quiet` rows are context, not the claim."""

    label: str
    interval: Interval
    chance: float | None = None
    chance_label: str = ""
    quiet: bool = False


def score_rows(key: str, rows: Sequence[ScoreRow]) -> Markup:
    """Scores from 0 to 1, one below the other, each with its interval and what chance would score."""
    body, y = [], 0
    for row in rows:
        value, tone, ink = row.interval, *(("quiet", "muted") if row.quiet else ("accent", "ink"))
        body += [
            _text("0", y + 16, row.label, ink),
            f'<text x="100%" y="{y + 16}" text-anchor="end">'
            f'<tspan class="strong {ink}">{score(value["value"])}</tspan>'
            f'<tspan class="muted small" dx="8">{span(value)}</tspan></text>',
            _line("0", "100%", y + 36, "rule"),
            _line(_pc(value["low"]), _pc(value["high"]), y + 36, f"range {tone}"),
            _upright(_pc(value["value"]), y + 26, y + 46, f"value {tone}"),
        ]
        if row.chance is not None:
            at, told = _pc(row.chance), f"{row.chance_label} {score(row.chance)}"
            body.append(_upright(at, y + 30, y + 42, "tick"))
            body.append(_text(at, y + 58, told, "muted small", "start" if row.chance < 0.5 else "end"))
        y += 80 if row.chance is not None else 60
    for tick, anchor in zip(TICKS, ("start", "middle", "middle", "middle", "end"), strict=True):
        body.append(_text(_pc(tick), y + 8, _tick(tick), "muted small", anchor))
    said = "; ".join(f"{row.label}: {score(row.interval['value'])} ({span(row.interval)})" for row in rows)
    return svg(key, "Scores with their 95 % intervals, on a scale from 0 to 1", said, y + 16, body)


def fold_dots(key: str, folds: Sequence[dict[str, Any]], overall: Interval) -> Markup:
    """Macro F1 of every fold beside that of all folds together; the scale is cut to where they lie."""
    values = [fold["macro_f1"] for fold in folds] + [overall["low"], overall["high"]]
    low = max(0.0, math.floor(min(values) * 20 - 0.3) / 20)
    high = min(1.0, math.ceil(max(values) * 20 + 0.3) / 20)
    left, wide, step = 18.0, 80.0, 32 if len(folds) <= 12 else 20
    bottom = 28 + step * len(folds)

    def at(value: float) -> str:
        return f"{left + wide * (value - low) / (high - low):.2f}%"

    band = f"{wide * (overall['high'] - overall['low']) / (high - low):.2f}%"
    body = [
        _rect(at(overall["low"]), 28, band, bottom - 28, "band"),
        _upright(at(overall["value"]), 24, bottom, "mean"),
        _text(at(overall["value"]), 16, f"all folds {score(overall['value'])}", "muted small", "middle"),
    ]
    for i, fold in enumerate(folds):
        y = 28 + step * i + step // 2
        body.append(_text("0", y + 5, f"Fold {int(fold['fold'])}", "ink"))
        body.append(_line(at(low), at(high), y, "rule"))
        body.append(_dot(at(fold["macro_f1"]), y, 6, "accent"))
    gap = next(g for g in (0.05, 0.1, 0.25) if (high - low) / g <= 6 or g == 0.25)
    inner = [g * gap for g in range(1, 21) if low + gap / 2 < g * gap < high - gap / 2]
    body += [_text(at(v), bottom + 20, _tick(v), "muted small", "middle") for v in (low, *inner, high)]
    said = "; ".join(f"fold {int(f['fold'])}: {score(f['macro_f1'])}" for f in folds)
    title = "Macro F1 of each fold; the band is the 95 % interval of all folds"
    return svg(key, title, said, bottom + 28, body)


def bars(key: str, title: str, rows: Sequence[tuple[str, float, str]], *, left: int = 28) -> Markup:
    """Horizontal bars with direct labels: rows of (label, value, value as text)."""
    most = max((value for _, value, _ in rows), default=0) or 1
    right = 84 if max((len(text) for _, _, text in rows), default=0) < 6 else 68
    body = []
    for i, (label, value, text) in enumerate(rows):
        wide = max((right - left) * value / most, 0.4)
        body.append(_text("0", i * 28 + 18, clipped(label), "ink"))
        body.append(_rect(f"{left}%", i * 28 + 6, f"{wide:.2f}%", 16, "bar"))
        body.append(_text(f"{left + wide:.2f}%", i * 28 + 18, text, "muted", shift=8))
    said = "; ".join(f"{label}: {text}" for label, _, text in rows)
    return svg(key, title, said, 28 * len(rows), body)


def gain_bars(key: str, rows: Sequence[tuple[str, Interval]]) -> Markup:
    """Macro F1 that each thing would add, as bars from 0 with their intervals: rows of (label, gain)."""
    left, right = 24, 66  # per cent
    most = max([0.01, *(gain["high"] for _, gain in rows)])

    def at(value: float) -> str:
        return f"{left + (right - left) * max(value, 0.0) / most:.2f}%"

    body, said = [], []
    for i, (label, gain) in enumerate(rows):
        told = f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})".replace("-", "−")
        body.append(_text("0", i * 36 + 22, clipped(label, 18), "ink"))
        body.append(_rect(f"{left}%", i * 36 + 8, f"{max((right - left) * gain['value'] / most, 0.4):.2f}%", 20, "bar"))
        body.append(_line(at(gain["low"]), at(gain["high"]), i * 36 + 32, "whisker"))
        body.append(_text("100%", i * 36 + 22, told, "muted small", "end"))
        said.append(f"{label}: {told}")
    return svg(key, "Macro F1 gained if a part were always right", "; ".join(said), 36 * len(rows) + 4, body)


def difference_rows(key: str, base: str, rows: Sequence[tuple[str, Interval]], unit: str = "macro F1") -> Markup:
    """Differences to `base` in points (hundredths), one below the other, each with its interval about a line at 0.

    The scale reaches as far as the intervals do. Rows whose interval holds 0 are drawn as context.
    """
    low = min(0.0, *(100 * found["low"] for _, found in rows))
    high = max(0.0, *(100 * found["high"] for _, found in rows))
    spare = max(0.06 * (high - low), 0.2)
    low, high = low - spare, high + spare
    gap = next(g for g in (0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / g <= 6 or g == 100)

    def at(points: float) -> str:
        return _pc((points - low) / (high - low))

    def points(value: float) -> str:
        return f"{100 * value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")

    # Long names, of which only the ends may differ, have a line of their own above the figures.
    longest = max(len(label) for label, _ in rows)
    under, most = (20, 44) if longest > 22 else (0, 22)
    bottom = 24 + (52 + under) * len(rows)
    edge = "start" if -low < 0.2 * (high - low) else "end" if high < 0.2 * (high - low) else "middle"
    body = [_upright(at(0), 20, bottom, "axis"), _text(at(0), 12, clipped(base), "muted small", edge)]
    said = []
    for i, (label, found) in enumerate(rows):
        above = 24 + (52 + under) * i
        y = above + under
        told = found["low"] > 0 or found["high"] < 0
        tone, ink = ("accent", "ink") if told else ("quiet", "muted")
        value, between = points(found["value"]), f"{points(found['low'])} to {points(found['high'])}"
        body += [
            _text("0", above + 16, clipped(label, most), f"{ink} halo"),
            f'<text x="100%" y="{y + 16}" text-anchor="end" class="halo"><tspan class="strong {ink}">{value}</tspan>'
            f'<tspan class="muted small" dx="8">{between}</tspan></text>',
            _line(at(100 * found["low"]), at(100 * found["high"]), y + 34, f"range {tone}"),
            _upright(at(100 * found["value"]), y + 26, y + 42, f"value {tone}"),
        ]
        said.append(f"{label}: {value} points ({between})")
    body.append(_line("0", "100%", bottom, "rule"))
    for i in range(math.ceil(low / gap), math.floor(high / gap) + 1):
        share = (i * gap - low) / (high - low)
        anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        label = f"{i * gap:+g}".replace("-", "−") if i else "0"
        body.append(_text(at(i * gap), bottom + 18, label, "muted small", anchor))
    title = f"Points of {unit} more or less than {base}, with 95 % intervals"
    return svg(key, title, "; ".join(said), bottom + 24, body)


def bar(share: float) -> Markup:
    """A bar inside a row that prints its number beside it."""
    inside = _rect("0", 0, _pc(share), 8, "bar")
    return Markup(f'<svg class="inline" width="100%" height="8" aria-hidden="true">{inside}</svg>')


def interval_bar(interval: Interval) -> Markup:
    """A score and its interval on 0..1, inside a table cell that prints them too."""
    body = [
        _line("0", "100%", 8, "rule"),
        _upright("50%", 4, 12, "rule"),
        _line(_pc(interval["low"]), _pc(interval["high"]), 8, "range accent"),
        _upright(_pc(interval["value"]), 1, 15, "value accent"),
    ]
    return Markup(f'<svg class="inline ci" height="16" aria-hidden="true">{"".join(body)}</svg>')


def reliability_plot(key: str, curve: Sequence[dict[str, float]]) -> Markup:
    """Probability told against share right: a dot a bin, its Wilson interval, and the photos in the bin."""
    left, top, wide, tall, base = 40, 24, 308, 248, 366
    most = max(point["count"] for point in curve)

    def x(value: float) -> str:
        return f"{left + wide * value:.1f}"

    def y(value: float) -> float:
        return round(top + tall * (1 - value), 1)

    body = [_text(left, 12, "share that is right", "muted small")]
    for tick in TICKS:
        body += [
            _line(left, left + wide, y(tick), "rule"),
            _text(left - 8, y(tick) + 4, _tick(tick), "muted small", "end"),
            _text(x(tick), base + 16, _tick(tick), "muted small", "middle"),
        ]
    body.append(f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" class="mean"/>')
    body.append(_text(x(0.09), y(0.02), "perfect", "muted small halo"))
    path = " ".join(f"{x(p['confidence'])},{y(p['accuracy'])}" for p in curve)
    body.append(f'<polyline points="{path}" class="curve"/>')
    for point in curve:
        low, high = wilson(point["accuracy"] * point["count"], point["count"])
        tip = round(base - 48 * point["count"] / most, 1)
        width = round(wide * (point["high"] - point["low"]) - 4, 1)
        body += [
            _upright(x(point["confidence"]), y(high), y(low), "whisker"),
            _dot(x(point["confidence"]), y(point["accuracy"]), 4.5, "accent"),
            _rect(float(x(point["low"])) + 2, tip, width, round(base - tip, 1), "bar"),
            _text(
                x((point["low"] + point["high"]) / 2),
                tip - 4,
                f"{point['count']:,.0f}",
                "muted tiny",
                "middle",
            ),
        ]
    body.append(_line(left, left + wide, base, "axis"))
    caption = "probability the model gave, and how many photos"
    body.append(_text(left + wide, base + 34, caption, "muted small", "end"))
    said = "; ".join(
        f"told {score(p['confidence'], 2)}, right {score(p['accuracy'], 2)}, {p['count']:.0f} photos" for p in curve
    )
    return svg(key, "Probability told against the share that is right", said, 404, body, box="0 0 360 404")


def _pc(value: float) -> str:
    return f"{100 * value:.2f}%"


def _tick(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".").removeprefix("0") or "0"


def _text(x: object, y: float, text: str, tone: str, anchor: str = "start", shift: int = 0) -> str:
    moved = f' dx="{shift}"' if shift else ""
    return f'<text x="{x}" y="{y:g}"{moved} text-anchor="{anchor}" class="{tone}">{escape(text)}</text>'


def _line(x1: object, x2: object, y: float, tone: str) -> str:
    return f'<line x1="{x1}" x2="{x2}" y1="{y:g}" y2="{y:g}" class="{tone}"/>'


def _upright(x: object, y1: float, y2: float, tone: str) -> str:
    return f'<line x1="{x}" x2="{x}" y1="{y1:g}" y2="{y2:g}" class="{tone}"/>'


def _rect(x: object, y: float, width: object, height: float, tone: str) -> str:
    return f'<rect x="{x}" y="{y:g}" width="{width}" height="{height:g}" class="{tone}"/>'


def _dot(x: object, y: float, radius: float, tone: str) -> str:
    return f'<circle cx="{x}" cy="{y:g}" r="{radius:g}" class="dot {tone}"/>'


def svg(key: str, title: str, said: str, height: int, body: Sequence[str], box: str = "") -> Markup:
    """A plot with its title and a sentence for who cannot see it; `box`: a viewBox, for plots that scale."""
    size = f'viewBox="{box}"' if box else f'width="100%" height="{height}"'
    return Markup(
        f'<svg class="plot" role="img" aria-labelledby="{key}-title {key}-desc" {size}>'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(said)}</desc>{"".join(body)}</svg>'
    )
