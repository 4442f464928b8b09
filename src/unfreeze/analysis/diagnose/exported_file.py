"""Diagnosis of an exported model file: comparison of its probabilities with those of its run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.analysis.diagnose.cause import Cause, Severity, max_severity, not_measured, severity_of, zero
from unfreeze.analysis.diagnose.preprocessing import CALLS, FAULTS, LARGE
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import StorageError, UnfreezeError
from unfreeze.core.files import read_record
from unfreeze.core.format import format_estimate
from unfreeze.core.messages import wording
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, as_run
from unfreeze.data.decode import Pixels
from unfreeze.exporters.export import SUFFIXES, TOLERANCE_BF16, sidecar_path
from unfreeze.exporters.formats import open_exported
from unfreeze.exporters.graph import ExportPlan
from unfreeze.exporters.images import ExportImages, files_of, spread
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.differences import paired_difference

NAME = "preprocessing: the exported file"
PHOTOS = 64
# Allowed difference of an int8 file, as a multiple of the difference measured at export.
_INT8 = 2.0
_BATCH = 16


def check_exported(run: str | Path | Run, file: str | Path, reporter: Reporter | None = None) -> Cause:
    """Check whether an exported file reproduces the probabilities of its run on the run's images.

    The sidecar <file>.json is taken into account: a file of a single fold is compared with that fold, and an int8 file
    may differ by the quantization error measured at export. If the probabilities differ, known preprocessing faults are
    simulated on the input pixels, and the fault that restores agreement is named.

    Args:
        run: A finished run of any strategy, or its folder.
        file: .xml, .onnx or .pt file written by `unfreeze export`, or by another program that takes the same pixels.
        reporter: Receives progress messages.

    Returns:
        The row of the diagnosis.

    Raises:
        RunError: If the run is incomplete.
        StorageError: If the file does not exist or has another suffix.
    """
    run, file = as_run(run), Path(file)
    if not file.is_file() or file.suffix.lower() not in SUFFIXES.values():
        raise StorageError(
            f"{wording('--exported ', '')}{file}: no such file, or none of {', '.join(SUFFIXES.values())}."
        )
    try:
        return _checked(run, file, reporter or Reporter())
    except UnfreezeError as error:
        return not_measured(NAME, str(error).rstrip("."))


def _checked(run: Run, file: Path, reporter: Reporter) -> Cause:
    about = _about(file)
    folds = [k for k in about["folds"] if k in range(run.recipe.folds.n_splits)]
    alone = f"those of fold {folds[0]} alone" if len(folds) == 1 else ""
    classifier = Classifier.load(run, folds=folds) if folds else Classifier.load(run)
    table = run.photos()
    files = files_of(run, table)
    if not files:
        return not_measured(NAME, f"the run's photos are no longer in {run.info['root']}")
    files = [files[i] for i in spread(len(files), PHOTOS)]
    shown, good = ExportImages.of(classifier, files, reporter)
    said = {}
    for views in ("plain", "flip"):  # the file may have been exported with either
        found = classifier.predict(shown.files, tta=views, reporter=reporter)
        said[views] = found[probability_columns(run.classes)].to_numpy(np.float64)
    if not len(shown.files) or not np.isfinite(said["plain"]).all():
        return not_measured(NAME, f"{int((~good).sum())} of {len(files)} photos cannot be read any more")
    runtime, answer = open_exported(file)
    batches = list(shown.batches(ExportPlan.of(classifier, None), _BATCH))

    def asked(change: int | None) -> NDArray[np.float64]:
        parts = [np.asarray(answer([_changed(p, change) for p in some]), np.float64) for some in batches]
        return np.concatenate(parts)

    try:
        ours = asked(None)
    except Exception as error:  # errors of the runtimes have no common base class
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return not_measured(NAME, f"{file} does not take the run's pixels ({first})")
    if ours.shape != said["plain"].shape:
        classes = f"{ours.shape[-1]} numbers per image, and the run has {len(run.classes)} classes"
        return Cause(
            NAME, "error", f"The file gives {classes}: it was exported from another run.", None, "Export the run again."
        )
    reference = min(said.values(), key=lambda p: float(np.abs(ours - p).mean()))
    largest = float(np.abs(ours - reference).max())
    limit, photos = max(TOLERANCE_BF16, _INT8 * about["int8"]), len(shown.files)
    details: dict[str, Any] = {"largest": largest, "limit": limit, "photos": photos, "folds": folds}
    if largest <= limit:
        off = f"{runtime}; largest difference {largest:.1g}, allowed {limit:.2g}{', int8' if about['int8'] else ''}"
        whose = alone or "the run's probabilities"
        return Cause(NAME, "none", f"The file gives {whose} on {photos} photos ({off}).", zero(), details=details)
    changed = float((ours.argmax(1) != reference.argmax(1)).mean())
    rows = table.set_index("path").loc[[file.relative_to(run.info["root"]).as_posix() for file in shown.files]]
    labels = np.array([run.classes.index(label) for label in rows["label"]], np.int64)
    cost = paired_difference(labels, ours, reference, rows["unit"].to_numpy(), resamples=500)
    tried = [float(np.abs(asked(i) - reference).mean()) for i in range(len(FAULTS))]
    best = int(np.argmin(tried))
    fault = FAULTS[best].said if tried[best] < 0.5 * float(np.abs(ours - reference).mean()) else ""
    least: Severity = "error" if changed >= CALLS or largest >= LARGE else "warning"
    return Cause(
        NAME,
        max_severity(severity_of(cost), least),
        f"The exported file disagrees with the run: of {photos} images {changed:.0%} get another class, and a "
        f"probability differs by up to {largest:.2f} ({runtime}); this costs "
        f"{format_estimate(cost, signed=True)} of macro F1"
        f"{f'. It agrees if {fault}' if fault else ''}.",
        cost,
        "Give the file what its metadata asks for (uint8 RGB, the upright photo's center square), or export it again.",
        f"unfreeze export {shlex.quote(str(run.path))} --to {_format(file)} --out {shlex.quote(str(file))} --force",
        details={**details, "calls_changed": changed, "fault": fault},
    )


def _about(file: Path) -> dict[str, Any]:
    """Folds and int8 difference according to <file>.json; empty if it is absent or damaged."""

    def parse(sidecar: dict[str, Any]) -> dict[str, Any]:
        int8 = float(sidecar["int8"]["parity"]["difference"]) if sidecar["int8"] else 0.0
        return {"folds": [int(k) for k in sidecar["folds"]], "int8": int8}

    return read_record(sidecar_path(file), parse) or {"folds": [], "int8": 0.0}


def _format(file: Path) -> str:
    """Name of the export format."""
    return next(name for name, suffix in SUFFIXES.items() if suffix == file.suffix.lower())


def _changed(pixels: NDArray[np.uint8], fault: int | None) -> NDArray[np.uint8]:
    """Apply a preprocessing fault to a batch of square images, uint8 (n, S, S, 3)."""
    if fault is None:
        return pixels
    made: list[Pixels] = [FAULTS[fault].make(one) for one in pixels]
    return np.ascontiguousarray(np.stack(made))
