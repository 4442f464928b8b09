"""An exported file held against its run: the row of a diagnosis that says whether it sees photos as the run does."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import StorageError, UnfreezeError
from unfreeze.core.files import read_json
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.data.images import Pixels
from unfreeze.deliver.export import SUFFIXES, TOLERANCE_BF16
from unfreeze.deliver.export_files import sheet_of
from unfreeze.deliver.export_formats import open_exported
from unfreeze.deliver.export_photos import Shown, files_of, spread
from unfreeze.deliver.folded import Plan
from unfreeze.judge.paired import paired_difference
from unfreeze.learn.classifier import Classifier
from unfreeze.study.diagnosis.cause import Cause, Severity, graver, not_measured, severity_of, told, zero
from unfreeze.study.diagnosis.parity import CALLS, FAULTS, LARGE

NAME = "preprocessing: the exported file"
PHOTOS = 64
# A file in int8 may differ by so many times what its own check found when it was written.
_INT8 = 2.0
_BATCH = 16


def check_exported(run: str | Path | Run, file: str | Path, reporter: Reporter | None = None) -> Cause:
    """Whether an exported file gives the run's own probabilities on the run's own photos; if not, why.

    run: a finished run of any strategy. file: .xml, .onnx or .pt, as `unfreeze export` writes them, or made by another
    program that takes the same pixels. What <file>.json says of it counts: a file of one fold is held against that
    fold, and one in int8 may differ by what its own check found. Where the two differ, the pixels are given as faulty
    programs give them, and the fault with which they agree is named. Raises RunError where the run is not whole,
    StorageError where the file is not there.
    """
    run, file = run if isinstance(run, Run) else open_run(run), Path(file)
    if not file.is_file() or file.suffix.lower() not in SUFFIXES.values():
        raise StorageError(f"--exported {file}: no such file, or none of {', '.join(SUFFIXES.values())}.")
    try:
        return _checked(run, file, reporter or Reporter())
    except UnfreezeError as error:
        return not_measured(NAME, str(error).rstrip("."))


def _checked(run: Run, file: Path, reporter: Reporter) -> Cause:
    about = _about(file)
    folds = [k for k in about["folds"] if k in range(run.recipe.folds.count)]
    alone = f"those of fold {folds[0]} alone" if len(folds) == 1 else ""
    classifier = Classifier.load(run, folds=folds) if folds else Classifier.load(run)
    table = run.photos()
    files = files_of(run, table)
    if not files:
        return not_measured(NAME, f"the run's photos are no longer in {run.info['root']}")
    files = [files[i] for i in spread(len(files), PHOTOS)]
    shown, good = Shown.of(classifier, files, reporter)
    said = {}
    for views in ("plain", "flip"):  # a file may have been written with either
        found = classifier.predict(shown.files, tta=views, reporter=reporter)
        said[views] = found[probability_columns(run.classes)].to_numpy(np.float64)
    if not len(shown.files) or not np.isfinite(said["plain"]).all():
        return not_measured(NAME, f"{int((~good).sum())} of {len(files)} photos cannot be read any more")
    runtime, answer = open_exported(file)
    batches = list(shown.batches(Plan.of(classifier, None), _BATCH))

    def asked(change: int | None) -> NDArray[np.float64]:
        parts = [np.asarray(answer([_changed(p, change) for p in some]), np.float64) for some in batches]
        return np.concatenate(parts)

    try:
        ours = asked(None)
    except Exception as error:  # the runtimes' errors have no common base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return not_measured(NAME, f"{file} does not take the run's pixels ({first})")
    if ours.shape != said["plain"].shape:
        classes = f"{ours.shape[-1]} numbers a photo, and the run has {len(run.classes)} classes"
        return Cause(NAME, "error", f"The file gives {classes}: it is of another run.", None, "Export the run again.")
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
        graver(severity_of(cost), least),
        f"The file does not see as the run does: of {photos} photos {changed:.0%} are called otherwise, and a "
        f"probability differs by up to {largest:.2f} ({runtime}); this costs {told(cost, True)} of macro F1"
        f"{f'. It agrees if {fault}' if fault else ''}.",
        cost,
        "Give the file what its metadata asks for (uint8 RGB, the upright photo's centre square), or export it again.",
        f"unfreeze export {shlex.quote(str(run.path))} --to {_format(file)} --out {shlex.quote(str(file))} --force",
        details={**details, "calls_changed": changed, "fault": fault},
    )


def _about(file: Path) -> dict[str, Any]:
    """What <file>.json says: folds that speak in it, and by how much int8 differed; nothing if it is not there or not
    whole, as of a file that another program made."""
    try:
        told = read_json(sheet_of(file))
        folds = [int(k) for k in told["folds"]]
        int8 = float(told["int8"]["parity"]["difference"]) if told["int8"] else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        folds, int8 = [], 0.0
    return {"folds": folds, "int8": int8}


def _format(file: Path) -> str:
    """The name of the kind of file."""
    return next(name for name, suffix in SUFFIXES.items() if suffix == file.suffix.lower())


def _changed(pixels: NDArray[np.uint8], fault: int | None) -> NDArray[np.uint8]:
    """A batch of squares as a faulty program gives them."""
    if fault is None:
        return pixels
    made: list[Pixels] = [FAULTS[fault].make(one) for one in pixels]
    return np.ascontiguousarray(np.stack(made))
