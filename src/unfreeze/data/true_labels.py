"""Known true labels: the truth file of the demo data, or a table with paths and true labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unfreeze.core.errors import SourceError, did_you_mean, join_names
from unfreeze.core.names import matching, on_disk
from unfreeze.data.directory_walk import unreadable
from unfreeze.data.text_table import read_sheet

DEMO = "truth.json"
MAX_BYTES = 100_000_000


def find_truth_file(root: Path) -> Path | None:
    """Find the demo's truth file, which lists its deliberately wrong labels.

    Args:
        root: Image folder.

    Returns:
        The file, or None if there is none.
    """
    file = on_disk(root / DEMO)
    return file if file.is_file() else None


def read_truth(file: Path, classes: Sequence[str], answers: Sequence[int | str]) -> dict[str, str]:
    """Read true labels.

    Args:
        file: A CSV, TSV or Parquet file with the columns `path` and `true` or `label`, or the demo's truth.json.
        classes: Class names of the run.
        answers: Submission value of each class, in the same order; the demo's truth file uses these.

    Returns:
        Path -> true class. The demo's truth file lists only wrongly labeled images; all others are correct and omitted.

    Raises:
        SourceError: If the file does not exist, a column is missing, or a class is unknown.
    """
    file = on_disk(file)
    try:
        if file.suffix.lower() == ".json":
            return _demo(file, classes, answers)
        sheet = read_sheet(file)
    except OSError as error:
        raise unreadable(file, error) from None
    column = "true" if "true" in sheet.frame.columns else "label"
    paths, labels = [text.strip() for text in sheet.raw("path")], sheet.filled(column)
    meant = {label: matching(label, classes) for label in set(labels)}
    strange = sorted(label for label, name in meant.items() if name is None)
    if strange:
        raise SourceError(
            f"{file}: column '{column}' holds {join_names(map(repr, strange))}, which the run does not know; "
            f"its classes are {join_names(classes, 20)}.{did_you_mean(strange[0], classes)}"
        )
    return {path: meant[label] or "" for path, label in zip(paths, labels, strict=True)}


def _demo(file: Path, classes: Sequence[str], answers: Sequence[int | str]) -> dict[str, str]:
    if file.stat().st_size > MAX_BYTES:
        raise SourceError(f"{file}: is too large for a truth file.")
    named = {str(answer): name for answer, name in zip(answers, classes, strict=True)}
    try:
        wrong = json.loads(file.read_text("utf-8"))["wrong_labels"]
        return {str(row["path"]): named.get(str(row["true"]), "") for row in wrong}
    except (ValueError, KeyError, TypeError):
        raise SourceError(
            f"{file}: is not a truth file of demo images (no list 'wrong_labels' of path and true)."
        ) from None
