"""Shift: test files that are stored otherwise than those of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.data.looks import Looks
from unfreeze.judge.shift import chance_larger
from unfreeze.study.diagnosis.case import Case, TestSet
from unfreeze.study.diagnosis.cause import Cause, Severity, not_measured

STORED = "shift: the test files are stored otherwise"
# Share of photos that must be stored otherwise.
_SHARE = 0.2


def stored(case: Case, test: TestSet) -> Cause:
    """EXIF orientation, mode, format and size of the files, training against test."""
    if case.gone:
        return not_measured(STORED, case.gone)
    rows = case.inside
    differences: dict[str, tuple[float, str]] = {}
    for name, read in _PROPERTIES.items():
        first, second = read(case.looks)[rows], read(test.looks)
        values = sorted(set(first.tolist()) | set(second.tolist()))
        shares = [(float((first == v).mean()), float((second == v).mean()), v) for v in values]
        distance = sum(abs(a - b) for a, b, _ in shares) / 2
        noise = np.sqrt(len(values) / len(first) + len(values) / len(second))
        if distance >= _SHARE and distance > noise:
            a, b, value = max(shares, key=lambda s: s[1] - s[0])  # what is new in the test photos
            differences[name] = distance, f"{name} {value}: {a:.0%} of the training and {b:.0%} of the test photos"
    sizes = [np.sqrt(look.width.astype(float) * look.height) for look in (case.looks, test.looks)]
    one, other = float(np.median(sizes[0][rows])), float(np.median(sizes[1]))
    if max(one, other) > 1.5 * min(one, other) and abs(chance_larger(sizes[0][rows], sizes[1]) - 0.5) > 0.3:
        differences["size"] = 1.0, f"size: {one:.0f} px in training and {other:.0f} px in the test photos (median side)"
    details = {name: text for name, (_, text) in differences.items()}
    if not differences:
        return Cause(STORED, "none", "Orientation, mode, format and size of the files are those of training.")
    severity: Severity = "warning" if set(differences) & {"EXIF orientation", "mode"} else "info"
    return Cause(
        STORED,
        severity,
        f"The test files differ: {'; '.join(details.values())}.",
        None,
        "Orientation and mode are undone before a photo is seen; make sure that your own program does so too, and that "
        "the photos were not scaled or recoded on their way.",
        details=details,
    )


def _text(looks: Looks, name: str) -> NDArray[np.str_]:
    return np.char.decode(looks.measures[name], "ascii")


_PROPERTIES: dict[str, Callable[[Looks], NDArray[Any]]] = {
    "EXIF orientation": lambda looks: looks.measures["orientation"].astype(str),
    "mode": lambda looks: _text(looks, "mode"),
    "format": lambda looks: _text(looks, "format"),
    "shape": lambda looks: np.where(
        looks.width > 1.05 * looks.height, "wide", np.where(looks.height > 1.05 * looks.width, "tall", "square")
    ),
}
