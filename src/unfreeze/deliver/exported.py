"""An exported file held against its run: the row of a diagnosis that says whether it sees photos as the run does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import StorageError, UnfreezeError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.data.images import Pixels, load_square, read_bytes
from unfreeze.deliver.export import SUFFIXES, TOLERANCE_BF16, open_exported
from unfreeze.deliver.folded import Plan
from unfreeze.judge.paired import paired_difference
from unfreeze.learn.classifier import Classifier
from unfreeze.study.diagnosis.cause import Cause, Severity, graver, not_measured, severity_of, told, zero
from unfreeze.study.diagnosis.parity import CALLS, FAULTS, LARGE

NAME = "preprocessing: the exported file"
PHOTOS = 64
_BATCH = 16


def check_exported(run: str | Path | Run, file: str | Path, reporter: Reporter | None = None) -> Cause:
    """Whether an exported file gives the run's own probabilities on the run's own photos; if not, why.

    run: a finished probe run. file: .xml or .onnx, as `unfreeze export` writes them, or made by another program that
    takes the same pixels. Where the two differ, the pixels are given as faulty programs give them, and the fault with
    which they agree is named. Raises RunError where the run is not whole, StorageError where the file is not there.
    """
    run, file = run if isinstance(run, Run) else open_run(run), Path(file)
    if not file.is_file() or file.suffix.lower() not in SUFFIXES.values():
        raise StorageError(f"--exported {file}: no such file, or neither {' nor '.join(SUFFIXES.values())}.")
    try:
        return _checked(run, file, reporter or Reporter())
    except UnfreezeError as error:
        return not_measured(NAME, str(error).rstrip("."))


def _checked(run: Run, file: Path, reporter: Reporter) -> Cause:
    if run.strategies != ("probe",):
        return not_measured(NAME, "export writes probe runs only")
    classifier = Classifier.load(run)
    if classifier.sees_faces:
        return not_measured(NAME, "the run sees the square around each face, which an exported file does not find")
    table, root = run.photos(), Path(run.info["root"])
    there = np.array([(root / path).is_file() for path in table["path"]], bool)
    table = table[(table["fold"] >= 0).to_numpy() & there]
    if table.empty:
        return not_measured(NAME, f"the run's photos are no longer in {root}")
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, PHOTOS).round().astype(int))]
    files = [root / path for path in table["path"]]
    said = {}
    for views in ("plain", "flip"):  # a file may have been written with either
        found = classifier.predict(list(files), tta=views, reporter=reporter)
        said[views] = found[probability_columns(run.classes)].to_numpy(np.float64)
    plan, limit = Plan.of(classifier, None), int(run.recipe.image.max_megapixels * 1e6)
    good = np.isfinite(said["plain"]).all(1)
    files, said = [f for f, fine in zip(files, good, strict=True) if fine], {k: v[good] for k, v in said.items()}
    table = table[good]
    runtime, answer = open_exported(file)
    squares = [
        np.stack([load_square(read_bytes(f), p.size, p.crop, limit, f, p.resample, p.squash) for f in files])
        for p in plan.frames()
    ]

    def asked(change: int | None) -> NDArray[np.float64]:
        parts = []
        for start in range(0, len(files), _BATCH):
            some = [pixels[start : start + _BATCH] for pixels in squares]
            parts.append(np.asarray(answer([_changed(p, change) for p in some]), np.float64))
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
    if largest <= TOLERANCE_BF16:
        off = f"{runtime}; largest difference {largest:.1g}"
        text = f"The file gives the run's probabilities on {len(files)} photos ({off})."
        return Cause(NAME, "none", text, zero(), details={"largest": largest, "photos": len(files)})
    changed = float((ours.argmax(1) != reference.argmax(1)).mean())
    labels = np.array([run.classes.index(label) for label in table["label"]], np.int64)
    cost = paired_difference(labels, ours, reference, table["unit"].to_numpy(), resamples=500)
    tried = [float(np.abs(asked(i) - reference).mean()) for i in range(len(FAULTS))]
    best = int(np.argmin(tried))
    fault = FAULTS[best].said if tried[best] < 0.5 * float(np.abs(ours - reference).mean()) else ""
    least: Severity = "error" if changed >= CALLS or largest >= LARGE else "warning"
    return Cause(
        NAME,
        graver(severity_of(cost), least),
        f"The file does not see as the run does: of {len(files)} photos {changed:.0%} are called otherwise, and a "
        f"probability differs by up to {largest:.2f} ({runtime}); this costs {told(cost, True)} of macro F1"
        f"{f'. It agrees if {fault}' if fault else ''}.",
        cost,
        "Give the file what its metadata asks for (uint8 RGB, the upright photo's centre square), or export it again.",
        f"unfreeze export {run.path} --force",
        details={"largest": largest, "photos": len(files), "calls_changed": changed, "fault": fault},
    )


def _changed(pixels: NDArray[np.uint8], fault: int | None) -> NDArray[np.uint8]:
    """A batch of squares as a faulty program gives them."""
    if fault is None:
        return pixels
    made: list[Pixels] = [FAULTS[fault].make(one) for one in pixels]
    return np.ascontiguousarray(np.stack(made))
