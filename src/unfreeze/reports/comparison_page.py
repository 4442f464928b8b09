"""HTML page of a comparison of runs, as written by `unfreeze compare`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.analysis.aligned_runs import counted_groups
from unfreeze.core.files import atomic_write
from unfreeze.core.format import clipped, format_difference, format_score, format_seconds, pluralize
from unfreeze.reports.html import stylesheet, templates
from unfreeze.reports.run_report import no_break
from unfreeze.reports.svg import difference_rows, interval_bar

if TYPE_CHECKING:
    from unfreeze.analysis.compare import ComparedRun, Comparison

# Maximum number of recipe changes listed per run; all of them are in the run's recipe.toml.
_MOST_CHANGES = 8


def write_comparison(found: Comparison, path: str | Path, command: str = "") -> Path:
    """Write a comparison as a self-contained HTML page, atomically.

    Args:
        found: The comparison.
        path: Target path.
        command: Command line that repeats the comparison.

    Returns:
        The path.

    Raises:
        StorageError: The file cannot be written.
    """
    data = render(found, command).encode("utf-8", "replace")
    return atomic_write(Path(path), lambda temporary: temporary.write_bytes(data))


def render(found: Comparison, command: str = "") -> str:
    """Render the page's HTML."""
    base, others = found.base, found.contenders[1:]
    best = found.named(found.best)
    significant = [one.name for one in found.classes if one.difference.significant]
    # The count of significant differences is the headline; the rest is a separate paragraph.
    finding, *further = re.split(r"(?<=\.) (?=\d+ of|All differences|Highest macro F1)", found.sentence)
    return (
        templates(glued=no_break)
        .get_template("compare.html")
        .render(
            title=" or ".join(clipped(one.name, 40) for one in found.contenders[:3])
            + (f" or {len(others) - 2} more" if len(others) > 2 else ""),
            found=found,
            groups=counted_groups(found.groups, found.effective_groups),
            finding=finding,
            further=further,
            counted=f"{pluralize(found.photos, 'photo')} in {counted_groups(found.groups, found.effective_groups)}"
            + (f", {pluralize(found.folds, 'fold')}" if found.folds else ""),
            plot=difference_rows("differences", base.name, [(one.name, asdict(one.difference)) for one in others]),
            rows=[_row(one, base, found.folds) for one in found.contenders],
            sentences=[one.sentence for one in others] if len(others) > 1 else [],
            best=best,
            class_finding=_class_finding(best.name, base.name, significant, len(found.classes)),
            class_plot=difference_rows(
                "classes",
                base.name,
                [(one.name, asdict(one.difference)) for one in _ordered(found)],
                f"{best.name}: F1",
            ),
            classes=_ordered(found),
            changes=[_changes(one) for one in others],
            command=command,
            css=stylesheet(),
        )
    )


def _row(one: ComparedRun, base: ComparedRun, folds: int | None) -> dict[str, Any]:
    d = one.difference
    return {
        "name": one.name,
        "run": one.run,
        "first": one is base,
        "macro_f1": asdict(one.macro_f1),
        "bar": interval_bar(asdict(one.macro_f1)),
        "difference": "" if one is base else _points(d.value),
        "between": "" if one is base else f"[{_points(d.low)}, {_points(d.high)}]",
        "significant": d.significant,
        "wins": "" if one is base or folds is None else f"{one.wins} of {folds}",
        "accuracy": format_score(one.accuracy.value),
        "log_loss": format_score(one.log_loss),
        "seconds": "" if math.isnan(one.seconds) else format_seconds(one.seconds),
    }


def _ordered(found: Comparison) -> list[Any]:
    """Classes sorted by gain in F1, largest first."""
    return sorted(found.classes, key=lambda one: -one.difference.value)


def _class_finding(best: str, base: str, significant: list[str], count: int) -> str:
    if not significant:
        return f"{best} differs significantly from {base} in none of {pluralize(count, 'class', 'classes')}."
    names = ", ".join(significant[:4]) + (f" and {len(significant) - 4} more" if len(significant) > 4 else "")
    of = f"{len(significant)} of {pluralize(count, 'class', 'classes')}"
    return f"{best} differs significantly from {base} in {of}: {names}."


def _changes(one: ComparedRun) -> dict[str, Any]:
    written = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in one.changes.items()]
    more = len(written) - _MOST_CHANGES
    return {"name": one.name, "keys": written[:_MOST_CHANGES], "more": max(more, 0)}


def _points(value: float) -> str:
    return format_difference(100 * value, 1)
