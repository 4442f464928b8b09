"""Advice in one HTML file: what `unfreeze advise --report` writes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from unfreeze.core.files import write_whole
from unfreeze.deliver.advice_section import advice as section
from unfreeze.deliver.pages import stylesheet, templates
from unfreeze.deliver.report import glued

if TYPE_CHECKING:
    from unfreeze.study.advice import Advice


def write_advice(advice: Advice, path: str | Path, source: str) -> Path:
    """Writes the page and returns its path; it loads nothing, and appears whole or not at all.

    source: what the photos were read from, as it was typed. Raises StorageError where it cannot be written.
    """
    data = render(advice, source).encode("utf-8", "replace")
    return write_whole(Path(path), lambda temporary: temporary.write_bytes(data))


def render(advice: Advice, source: str) -> str:
    """The page's HTML."""
    options = [f"--{key} {shlex.quote(str(advice.changes[key]))}" for key in _OPTIONS if key in advice.changes]
    return (
        templates(glued=glued)
        .get_template("advice.html")
        .render(
            name=Path(source).name or source,
            advice=section(advice.to_json()),
            command=" ".join(["unfreeze fit", shlex.quote(source), *options]),
            css=stylesheet(),
        )
    )


# Changes that `unfreeze fit` has an option for; a race makes no others.
_OPTIONS = ("strategy", "backbone")
