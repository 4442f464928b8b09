"""Diagnosis of preprocessing: images decoded again must get the probabilities they had at evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unfreeze.analysis.diagnose.cause import Cause, Severity, max_severity, not_measured, severity_of
from unfreeze.analysis.diagnose.context import DiagnosisContext, bypass_cache, fold_predictions
from unfreeze.core.arrays import F64, Rows
from unfreeze.core.errors import PhotoError, UnfreezeError
from unfreeze.core.format import format_estimate
from unfreeze.core.messages import option
from unfreeze.core.progress import Reporter
from unfreeze.data.decode import Pixels, decode, read_bytes
from unfreeze.metrics.differences import paired_difference

SEEN = "preprocessing: training against prediction"

# Number of images to decode again for probes and for networks, and to search for a known fault.
PHOTOS, PHOTOS_NETWORK, TRIED = 96, 48, 12
# Largest allowed difference of a probability: cached features are float16, and bfloat16 differs by more.
TOLERANCE, TOLERANCE_LOOSE = 2e-3, 2e-2
# Share of changed predictions, or difference of a probability, from which the severity is error.
CALLS, LARGE = 0.02, 0.25


@dataclass(frozen=True)
class PreprocessingFault:
    """A known preprocessing fault.

    Attributes:
        said: Description.
        make: Function from the correct image to the image with the fault, uint8 (H, W, 3) each.
    """

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
    PreprocessingFault("red and blue are swapped (BGR for RGB)", lambda p: p[:, :, ::-1]),
    PreprocessingFault("height and width are swapped", lambda p: p.transpose(1, 0, 2)),
    PreprocessingFault("photos are mirrored", lambda p: p[:, ::-1]),
    PreprocessingFault("images are upside down", lambda p: p[::-1]),
    PreprocessingFault("photos are pressed into a square instead of cropped", _squeezed),
    PreprocessingFault("photos are resized by another method (nearest pixel)", _coarse),
    PreprocessingFault("photos are grey", lambda p: p.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)),
)


def parity(case: DiagnosisContext) -> Cause:
    """Compare out-of-fold probabilities with predictions of the same images decoded again."""
    rows = case.inside[case.same[case.inside]]
    if case.gone or not len(rows):
        return not_measured(SEEN, case.gone or "every image has changed since the fit")
    networks = case.run.strategies != ("probe",)
    rows = _spread(rows[case.folds[rows] < 5], PHOTOS_NETWORK if networks else PHOTOS)
    files = [case.photos.files()[i] for i in rows]
    try:
        with bypass_cache():
            current = fold_predictions(case.run, files, case.folds[rows], Reporter())
    except UnfreezeError as error:
        return not_measured(SEEN, f"its prediction does not run here: {error}")
    before = case.proba[rows]
    limit = TOLERANCE_LOOSE if networks or "f32" not in _engine(case) else TOLERANCE
    difference = np.abs(current - before).max(1)
    largest = float(np.nanmax(difference)) if np.isfinite(difference).any() else 1.0
    lost = ~np.isfinite(difference)
    changed = float(((current.argmax(1) != before.argmax(1)) | lost).mean())
    details: dict[str, Any] = {"photos": len(rows), "largest": largest, "limit": limit, "calls_changed": changed}
    if largest <= limit and not lost.any():
        return Cause(
            SEEN,
            "none",
            f"{len(rows)} images decoded again get the same probabilities as in the fit (largest difference "
            f"{largest:.1g}, allowed {limit:g}).",
            {"value": 0.0, "low": 0.0, "high": 0.0},
            details=details,
        )
    filled = np.where(lost[:, None], np.roll(np.eye(case.classes)[case.labels[rows]], 1, 1), current)
    cost = paired_difference(case.labels[rows], filled, before, case.units[rows], resamples=500)
    fault = named_fault(
        lambda some: fold_predictions(case.run, some, case.folds[rows[: len(some)]], Reporter()),
        files[:TRIED],
        before[:TRIED],
        current[:TRIED],
        case.scratch / "faults",
        case.limit,
    )
    details["fault"] = fault
    least: Severity = "error" if changed >= CALLS or largest >= LARGE else "warning"
    return Cause(
        SEEN,
        max_severity(severity_of(cost), least),
        f"Preprocessing differs between prediction and training: of {len(rows)} images decoded again "
        f"{changed:.0%} get another class, and a probability differs by up to {largest:.2f}; this costs "
        f"{format_estimate(cost, signed=True)} of macro F1{f'. It agrees if {fault}' if fault else ''}.",
        cost,
        "Training and prediction must decode identically: if unfreeze or a decoder has changed, fit again with "
        f"{option('force', True)}; `unfreeze cache --clear` deletes what the other version computed.",
        str(case.run.info.get("command", "")) + " --force" if case.run.info.get("command") else "",
        details=details,
    )


def named_fault(
    answer: Callable[[list[Path]], F64],
    files: list[Path],
    before: F64,
    current: F64,
    scratch: Path,
    limit: int,
) -> str:
    """Find the fault in `FAULTS` that, applied to the images, restores the earlier probabilities.

    Args:
        answer: Function from files to probabilities (n, C).
        files: Image files.
        before: float64 (n, C), earlier probabilities.
        current: float64 (n, C), current probabilities.
        scratch: Folder for the modified images.
        limit: Maximum number of pixels of an image.

    Returns:
        Description of the fault; empty if none restores them.
    """
    off = float(np.nanmean(np.abs(current - before)))
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


def _faulty(file: Path, fault: PreprocessingFault, out: Path, limit: int) -> Path:
    """Apply a fault to an image and save the result losslessly."""
    pixels = decode(read_bytes(file), max_pixels=limit, path=file)
    Image.fromarray(np.ascontiguousarray(fault.make(pixels))).save(out)
    return out


def _engine(case: DiagnosisContext) -> str:
    """ "f32" if all features were computed in float32, else ''."""
    from unfreeze.inference.predictor import Classifier
    from unfreeze.models.engines import recorded_engine

    graphs = Classifier.load(case.run).graphs
    known = [recorded_engine(graph, case.run.recipe.engine) for graph in graphs]
    return "" if any(k and k.precision == "bf16" for k in known) else "f32"


def _spread(rows: Rows, most: int) -> Rows:
    """Up to `most` evenly spaced rows."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]
