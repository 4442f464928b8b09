"""Jinja environment and stylesheet shared by all pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.format import format_difference, format_interval, format_percent, format_score, pluralize

if TYPE_CHECKING:
    from jinja2 import Environment

WEB = Path(__file__).parent


def templates(**filters: Any) -> Environment:
    """Create the Jinja environment: autoescaping, and an error for undefined variables.

    Args:
        **filters: Filters in addition to those of `core.format`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(WEB / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        score=format_score,
        interval=format_interval,
        difference=format_difference,
        percent=format_percent,
        pluralize=pluralize,
    )
    found.filters.update(filters)
    return found


def stylesheet() -> str:
    """CSS to embed in self-contained pages."""
    return (WEB / "static" / "unfreeze.css").read_text(encoding="utf-8")
