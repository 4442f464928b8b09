"""Where pages come from: one set of templates, one stylesheet, everything escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.deliver.plots import number, score, span

if TYPE_CHECKING:
    from jinja2 import Environment

WEB = Path(__file__).parent / "web"


def templates(**filters: Any) -> Environment:
    """The pages' templates: names from files and tables are escaped, an unknown variable is an error.

    filters: beside `score`, `span` and `number`.
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
    """The one stylesheet, to stand inside a page that loads nothing."""
    return (WEB / "static" / "unfreeze.css").read_text(encoding="utf-8")
