"""A comparison in one HTML file: what `unfreeze compare` writes beside the runs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.files import write_whole
from unfreeze.deliver.pages import stylesheet, templates
from unfreeze.deliver.plots import Interval, clipped, difference_rows, interval_bar, number, score, seconds
from unfreeze.deliver.report import glued

if TYPE_CHECKING:
    from unfreeze.study.compare import Comparison, Contender
    from unfreeze.study.compared import Figure

# Keys of a recipe that are told of a run; of runs that have little in common the rest is in their recipe.toml.
_MOST_CHANGES = 8


def write_comparison(found: Comparison, path: str | Path, command: str = "") -> Path:
    """Writes the page and returns its path; it loads nothing, and appears whole or not at all.

    command: what was typed, to repeat it. Raises StorageError where it cannot be written.
    """
    data = render(found, command).encode("utf-8", "replace")
    return write_whole(Path(path), lambda temporary: temporary.write_bytes(data))


def render(found: Comparison, command: str = "") -> str:
    """The page's HTML."""
    base, others = found.base, found.contenders[1:]
    best = found.named(found.best)
    told = [one for one in found.classes if one.difference.told]
    finding, *further = re.split(r"(?<=\.) (?=Told to be worse:|Not told apart:)", _typeset(found.sentence))
    return (
        templates(glued=glued)
        .get_template("compare.html")
        .render(
            title=" or ".join(clipped(one.name, 40) for one in found.contenders[:3])
            + (f" or {len(others) - 2} more" if len(others) > 2 else ""),
            found=found,
            finding=finding,
            further=further,
            counted=f"{number(found.photos, 'photo')} in {number(found.groups, 'group')}"
            + (f", {number(found.folds, 'fold')}" if found.folds else ""),
            plot=difference_rows("differences", base.name, [(one.name, _interval(one.difference)) for one in others]),
            rows=[_row(one, base, found.folds) for one in found.contenders],
            sentences=[_typeset(one.sentence) for one in others] if len(others) > 1 else [],
            best=best,
            class_finding=_class_finding(best.name, base.name, [one.name for one in told], len(found.classes)),
            class_plot=difference_rows(
                "classes",
                base.name,
                [(one.name, _interval(one.difference)) for one in _ordered(found)],
                f"{best.name}: F1",
            ),
            classes=_ordered(found),
            changes=[_changes(one) for one in others],
            command=command,
            css=stylesheet(),
        )
    )


def _row(one: Contender, base: Contender, folds: int | None) -> dict[str, Any]:
    d = one.difference
    return {
        "name": one.name,
        "run": one.run,
        "first": one is base,
        "macro_f1": _interval(one.macro_f1),
        "bar": interval_bar(_interval(one.macro_f1)),
        "difference": "" if one is base else _points(d.value),
        "between": "" if one is base else f"{_points(d.low)} to {_points(d.high)}",
        "told": d.told,
        "wins": "" if one is base or folds is None else f"{one.wins} of {folds}",
        "accuracy": score(one.accuracy.value),
        "log_loss": f"{one.log_loss:.3f}",
        "seconds": "" if math.isnan(one.seconds) else seconds(one.seconds),
    }


def _ordered(found: Comparison) -> list[Any]:
    """Classes, those that gained most first."""
    return sorted(found.classes, key=lambda one: -one.difference.value)


def _class_finding(best: str, base: str, told: list[str], count: int) -> str:
    if not told:
        return f"In no single class of {count} is {best} told apart from {base}."
    if len(told) == count:
        return f"{best} differs from {base} in every class."
    names = ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")
    return f"{best} is told apart from {base} in {len(told)} of {number(count, 'class', 'classes')}: {names}."


def _changes(one: Contender) -> dict[str, Any]:
    written = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in one.changes.items()]
    more = len(written) - _MOST_CHANGES
    return {"name": one.name, "keys": written[:_MOST_CHANGES], "more": max(more, 0)}


def _points(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _typeset(sentence: str) -> str:
    """A sentence with minus signs before its numbers."""
    return re.sub(r"(?<= )-(?=\d)", "−", sentence)


def _interval(figure: Figure) -> Interval:
    return {"value": figure.value, "low": figure.low, "high": figure.high}
