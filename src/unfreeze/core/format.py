"""Formatting of numbers, confidence intervals and durations for terminal, report and studio."""

from __future__ import annotations

Interval = dict[str, float]


def score(value: float, digits: int = 3) -> str:
    """Format a score between 0 and 1 without its leading zero: `.782`."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def span(interval: Interval, digits: int = 3) -> str:
    """Format a confidence interval: `.741–.820`."""
    return f"{score(interval['low'], digits)}–{score(interval['high'], digits)}"


def number(count: int, one: str, many: str = "") -> str:
    """Format a count with its noun: `1 photo`, `1,377 photos`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def seconds(value: float) -> str:
    """Format a duration in seconds: `9.8 s`, `2 min 5 s`, `1 h 12 min`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clipped(text: str, limit: int = 28) -> str:
    """Truncate text to `limit` characters, with an ellipsis if it is longer."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
