"""Elements of the inline SVG plots.

Positions are numbers in pixels or texts in percent. Numbers are written with one decimal, which is finer than a pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

Position = float | str


def svg(key: str, title: str, said: str, height: float, body: Sequence[str], box: str = "", kind: str = "") -> Markup:
    """Wrap elements in an SVG plot.

    Args:
        key: Prefix of the element ids.
        title: Title for screen readers.
        said: Description for screen readers.
        height: Height in pixels.
        body: SVG elements.
        box: viewBox of plots that scale with the page; replaces `height`.
        kind: Additional CSS class.
    """
    size = f'viewBox="{box}"' if box else f'width="100%" height="{height}"'
    return Markup(
        f'<svg class="{f"plot {kind}".strip()}" role="img" aria-labelledby="{key}-title {key}-desc" {size}>'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(said)}</desc>{"".join(body)}</svg>'
    )


def svg_text(x: Position, y: float, text: str, tone: str, anchor: str = "start", shift: int = 0) -> str:
    """Text at a position; `shift` moves it to the right by pixels."""
    moved = f' dx="{shift}"' if shift else ""
    return f'<text x="{_at(x)}" y="{_at(y)}"{moved} text-anchor="{anchor}" class="{tone}">{escape(text)}</text>'


def hline(x1: Position, x2: Position, y: Position, tone: str) -> str:
    """Horizontal line."""
    return f'<line x1="{_at(x1)}" x2="{_at(x2)}" y1="{_at(y)}" y2="{_at(y)}" class="{tone}"/>'


def vline(x: Position, y1: Position, y2: Position, tone: str) -> str:
    """Vertical line."""
    return f'<line x1="{_at(x)}" x2="{_at(x)}" y1="{_at(y1)}" y2="{_at(y2)}" class="{tone}"/>'


def rect(x: Position, y: float, width: Position, height: float, tone: str) -> str:
    """Rectangle."""
    return f'<rect x="{_at(x)}" y="{_at(y)}" width="{_at(width)}" height="{_at(height)}" class="{tone}"/>'


def circle(x: Position, y: float, radius: float, tone: str) -> str:
    """Circle."""
    return f'<circle cx="{_at(x)}" cy="{_at(y)}" r="{_at(radius)}" class="{tone}"/>'


def polyline(points: Iterable[tuple[float, float]], tone: str) -> str:
    """Line through points in pixels."""
    return f'<polyline points="{" ".join(f"{_at(x)},{_at(y)}" for x, y in points)}" class="{tone}"/>'


def tick_label(value: float) -> str:
    """Label of an axis without trailing zeros: `0.25`, `0.5`, `1`."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def value_axis(left: float, right: float, bottom: float, height: float, most: float) -> list[str]:
    """Horizontal rules with labels at 0, half and the whole of an axis that ends at `most`."""
    body = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - height * share
        body += [hline(left, right, y, "rule"), svg_text(left - 8, y + 4, f"{most * share:.3g}", "muted small", "end")]
    return body


def _at(value: Position) -> str:
    return value if isinstance(value, str) else f"{round(float(value), 1):g}"
