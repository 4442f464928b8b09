"""What is known of the true labels: the truth file of the demo's photos, or a table with path and true label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unfreeze.core.errors import SourceError, listed, nearest
from unfreeze.data.sheet import read_sheet
from unfreeze.data.walk import unreadable

DEMO = "truth.json"
MAX_BYTES = 100_000_000


def truth_beside(root: Path) -> Path | None:
    """The demo's truth file in the photos' folder, where it planted wrong labels."""
    file = root / DEMO
    return file if file.is_file() else None


def read_truth(file: Path, classes: Sequence[str], answers: Sequence[int | str]) -> dict[str, str]:
    """path -> true class. A photo that a demo's truth file does not name has the right label and is left out.

    file: a CSV, TSV or Parquet with `path` and `true` or `label`, or the demo's truth.json.
    SourceError: no such file, no such columns, a class that does not exist.
    """
    try:
        if file.suffix.lower() == ".json":
            return _demo(file, classes, answers)
        sheet = read_sheet(file)
    except OSError as error:
        raise unreadable(file, error) from None
    column = "true" if "true" in sheet.frame.columns else "label"
    paths, labels = sheet.filled("path"), sheet.filled(column)
    strange = sorted(set(labels) - set(classes))
    if strange:
        raise SourceError(
            f"{file}: column '{column}' holds {listed(map(repr, strange))}, which the run does not know; "
            f"its classes are {listed(classes, 20)}.{nearest(strange[0], classes)}"
        )
    return dict(zip(paths, labels, strict=True))


def _demo(file: Path, classes: Sequence[str], answers: Sequence[int | str]) -> dict[str, str]:
    if file.stat().st_size > MAX_BYTES:
        raise SourceError(f"{file}: is too large for a truth file.")
    named = {str(answer): name for answer, name in zip(answers, classes, strict=True)}
    try:
        wrong = json.loads(file.read_text("utf-8"))["wrong_labels"]
        return {str(row["path"]): named.get(str(row["true"]), "") for row in wrong}
    except (ValueError, KeyError, TypeError):
        raise SourceError(
            f"{file}: is no truth file of demo photos (no list 'wrong_labels' of path and true)."
        ) from None
