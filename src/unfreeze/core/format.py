"""Formatting of numbers, estimates with their intervals, counts and durations.

Terminal, pages, messages and prose use the same forms: `0.544`, `0.544 [0.423, 0.637]`, `+0.054`, `95%`.
"""

from __future__ import annotations

# A value and the ends of its 95% confidence interval: {"value", "low", "high"}, as in JSON.
Interval = dict[str, float]


def format_score(value: float, digits: int = 3) -> str:
    """Format a number with a fixed number of decimals: `0.782`."""
    return f"{value:.{digits}f}"


def format_difference(value: float, digits: int = 3) -> str:
    """Format a difference with its sign: `+0.054`, `-0.021`; one that rounds to zero has none: `0.000`."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def format_interval(estimate: Interval, digits: int = 3, signed: bool = False) -> str:
    """Format the ends of an interval: `[0.741, 0.820]`; of a difference: `[-0.010, +0.035]`."""
    form = format_difference if signed else format_score
    return f"[{form(estimate['low'], digits)}, {form(estimate['high'], digits)}]"


def format_estimate(estimate: Interval, digits: int = 3, signed: bool = False) -> str:
    """Format a value with its interval: `0.782 [0.741, 0.820]`; a difference: `+0.012 [-0.010, +0.035]`."""
    form = format_difference if signed else format_score
    return f"{form(estimate['value'], digits)} {format_interval(estimate, digits, signed)}"


def format_percent(share: float, digits: int = 0) -> str:
    """Format a proportion: `87%`."""
    return f"{100 * share:.{digits}f}%"


def format_probability(value: float) -> str:
    """Format an estimated probability: `87%`. It is never rounded to certainty: `>99%`, `<1%`."""
    return ">99%" if value >= 0.995 else "<1%" if value < 0.005 else format_percent(value)


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun: `1 photo`, `1,500 photos`, `2 classes`."""
    plural = plural or (f"{noun}es" if noun.endswith("s") else f"{noun}s")
    return f"{count:,} {noun if count == 1 else plural}"


def format_seconds(value: float) -> str:
    """Format a duration in seconds: `9.8 s`, `2 min 5 s`, `1 h 12 min`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clipped(text: str, limit: int = 28) -> str:
    """Truncate text to `limit` characters, with an ellipsis if it is longer."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
