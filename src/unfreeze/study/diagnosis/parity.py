"""Preprocessing: a photo decoded anew and predicted must be what it was when it was judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfreeze.core.errors import PhotoError, UnfreezeError
from unfreeze.core.progress import Reporter
from unfreeze.data.images import Pixels, decode, read_bytes
from unfreeze.judge.paired import paired_difference
from unfreeze.study.diagnosis.case import Case
from unfreeze.study.diagnosis.cause import Cause, Severity, graver, not_measured, severity_of, told
from unfreeze.study.diagnosis.voices import decoded_anew, spoken

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]
SEEN = "preprocessing: training against prediction"

# Photos that are decoded anew; those on which a fault is looked for.
PHOTOS, PHOTOS_NETWORK, TRIED = 96, 48, 12
# The largest difference of a probability that passes: features are kept as float16, and bfloat16 differs by more.
TOLERANCE, TOLERANCE_LOOSE = 2e-3, 2e-2
# Share of photos that are called otherwise, or difference of a probability, from which it is an error.
CALLS, LARGE = 0.02, 0.25


@dataclass(frozen=True)
class Fault:
    """A known fault of preprocessing. said: what was done. make: a photo -> the photo as a faulty program sees it."""

    said: str
    make: Callable[[Pixels], Pixels]


def _squeezed(pixels: Pixels) -> Pixels:
    side = min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def _coarse(pixels: Pixels) -> Pixels:
    image = Image.fromarray(pixels)
    half = (max(1, image.width // 2), max(1, image.height // 2))
    return np.asarray(image.resize(half, Image.Resampling.NEAREST).resize(image.size, Image.Resampling.NEAREST))


FAULTS = (
    Fault("red and blue are swapped (BGR for RGB)", lambda p: p[:, :, ::-1]),
    Fault("height and width are swapped", lambda p: p.transpose(1, 0, 2)),
    Fault("photos are mirrored", lambda p: p[:, ::-1]),
    Fault("photos stand on their heads", lambda p: p[::-1]),
    Fault("photos are pressed into a square instead of cropped", _squeezed),
    Fault("photos are resized by another method (nearest pixel)", _coarse),
    Fault("photos are grey", lambda p: p.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)),
)


def parity(case: Case) -> Cause:
    """What each fold's model said out of fold, against what prediction says of the same photos decoded anew."""
    rows = case.inside[case.same[case.inside]]
    if case.gone or not len(rows):
        return not_measured(SEEN, case.gone or "no photo is as it was")
    networks = case.run.strategies != ("probe",)
    rows = _spread(rows[case.folds[rows] < 5], PHOTOS_NETWORK if networks else PHOTOS)
    files = [case.photos.files()[i] for i in rows]
    try:
        with decoded_anew():
            anew = spoken(case.run, files, case.folds[rows], Reporter())
    except UnfreezeError as error:
        return not_measured(SEEN, f"its prediction does not run here: {error}")
    before = case.proba[rows]
    limit = TOLERANCE_LOOSE if networks or "f32" not in _engine(case) else TOLERANCE
    difference = np.abs(anew - before).max(1)
    largest = float(np.nanmax(difference)) if np.isfinite(difference).any() else 1.0
    lost = ~np.isfinite(difference)
    changed = float(((anew.argmax(1) != before.argmax(1)) | lost).mean())
    details: dict[str, Any] = {"photos": len(rows), "largest": largest, "limit": limit, "calls_changed": changed}
    if largest <= limit and not lost.any():
        return Cause(
            SEEN,
            "none",
            f"{len(rows)} photos decoded anew get the probabilities that they were judged by (largest difference "
            f"{largest:.1g}, allowed {limit:g}).",
            {"value": 0.0, "low": 0.0, "high": 0.0},
            details=details,
        )
    filled = np.where(lost[:, None], np.roll(np.eye(case.classes)[case.labels[rows]], 1, 1), anew)
    cost = paired_difference(case.labels[rows], filled, before, case.units[rows], resamples=500)
    fault = named_fault(
        lambda some: spoken(case.run, some, case.folds[rows[: len(some)]], Reporter()),
        files[:TRIED],
        before[:TRIED],
        anew[:TRIED],
        case.scratch / "faults",
        case.limit,
    )
    details["fault"] = fault
    least: Severity = "error" if changed >= CALLS or largest >= LARGE else "warning"
    return Cause(
        SEEN,
        graver(severity_of(cost), least),
        f"The same photo is seen otherwise in prediction than in training: of {len(rows)} photos decoded anew "
        f"{changed:.0%} are called otherwise, and a probability differs by up to {largest:.2f}; this costs "
        f"{told(cost, True)} of macro F1{f'. It agrees if {fault}' if fault else ''}.",
        cost,
        "Training and prediction must decode alike: if unfreeze or a decoder was changed since the fit, fit again with "
        "--force; `unfreeze cache --clear` throws away what was computed by the other version.",
        str(case.run.info.get("command", "")) + " --force" if case.run.info.get("command") else "",
        details=details,
    )


def named_fault(
    answer: Callable[[list[Path]], F64],
    files: list[Path],
    before: F64,
    anew: F64,
    scratch: Path,
    limit: int,
) -> str:
    """Which of FAULTS, applied to the photos, brings back what was said before; '' if none does.

    answer: files -> probabilities (n, C). before, anew: (n, C) of these files.
    """
    off = float(np.nanmean(np.abs(anew - before)))
    found = []
    for number, fault in enumerate(FAULTS):
        folder = scratch / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            made = [_faulty(file, fault, folder / f"{i}.png", limit) for i, file in enumerate(files)]
        except PhotoError:
            return ""
        found.append(float(np.nanmean(np.abs(answer(made) - before))))
    best = int(np.argmin(found))
    return FAULTS[best].said if found[best] < 0.5 * off else ""


def _faulty(file: Path, fault: Fault, out: Path, limit: int) -> Path:
    """The photo as a faulty program sees it, as a file that loses nothing."""
    pixels = decode(read_bytes(file), max_pixels=limit, path=file)
    Image.fromarray(np.ascontiguousarray(fault.make(pixels))).save(out)
    return out


def _engine(case: Case) -> str:
    """Precision of what made the features: 'f32', or '' if it may be another."""
    from unfreeze.learn.classifier import Classifier
    from unfreeze.model.engines import recorded_engine

    graphs = Classifier.load(case.run).graphs
    known = [recorded_engine(graph, case.run.recipe.engine) for graph in graphs]
    return "" if any(k and k.precision != "f32" for k in known) else "f32"


def _spread(rows: Rows, most: int) -> Rows:
    """Up to `most` rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]
