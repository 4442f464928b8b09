"""Jinja environment and stylesheet shared by all pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.format import number, score, span

if TYPE_CHECKING:
    from jinja2 import Environment

WEB = Path(__file__).parent


def templates(**filters: Any) -> Environment:
    """Create the Jinja environment: autoescaping, and an error for undefined variables.

    Args:
        **filters: Filters in addition to `score`, `span` and `number`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(WEB / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(score=score, span=span, number=number, **filters)
    return found


def stylesheet() -> str:
    """CSS to embed in self-contained pages."""
    return (WEB / "static" / "unfreeze.css").read_text(encoding="utf-8")
