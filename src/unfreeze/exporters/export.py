"""Export a finished run to a single model file and verify it against the run.

The exported model maps uint8 pixels to probabilities. `export` builds it, checks it in the runtime of its format,
optionally quantizes it to int8, and puts all files in place atomically, together with a JSON sidecar.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import EngineError, RunError, SourceError, StorageError, did_you_mean
from unfreeze.core.files import translate_os_errors, write_json
from unfreeze.core.messages import Brief, option
from unfreeze.core.parallel import cores
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, as_run
from unfreeze.exporters.formats import FORMATS, Answer, Format, find_format, open_exported, opset, package_versions
from unfreeze.exporters.graph import OUTPUT, ExportPlan, build_export_module, inputs_of, metadata
from unfreeze.exporters.images import ExportImages, photos_to_check
from unfreeze.features.views import LOOKS
from unfreeze.inference.predictor import Classifier
from unfreeze.models.engines import cpu_name, recorded_engine


def target_of(form: Format, target: Path, force: bool) -> Path:
    """Validate the target path before any work is done.

    Raises:
        StorageError: Wrong suffix, a folder of this name, or an existing file without `force`.
    """
    if target.suffix.lower() != form.suffix:
        raise StorageError(
            f"{option('out', target)}: {form.name} is written as {form.suffix}; name it {target.stem}{form.suffix}."
        )
    for file in (*form.files(target), sidecar_path(target)):
        if file.is_dir():
            raise StorageError(f"{file}: a folder of this name is in the way; choose another {option('out')}.")
        if file.exists() and not force:
            raise StorageError(
                f"{file}: exists; {option('force', True)} overwrites it, {option('out', metavar='FILE')} writes "
                "another."
            )
    return target


def sidecar_path(file: Path) -> Path:
    """Path of the JSON file next to an exported file."""
    return file.with_name(f"{file.name}.json")


@contextlib.contextmanager
def atomic_export(form: Format, target: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; on success, move its files to `target`, the model file last.

    A model file is never next to weights or a sidecar of another export. If the block raises, existing files are
    unchanged.
    """
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    with translate_os_errors(target):
        folder.mkdir(parents=True)
        try:
            file = folder / target.name
            yield file
            target.unlink(missing_ok=True)
            for made, place in zip(
                (sidecar_path(file), *form.files(file)), (sidecar_path(target), *form.files(target)), strict=True
            ):
                made.replace(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def bytes_of(form: Format, file: Path) -> int:
    """Total size of an exported file and its companion files."""
    return sum(f.stat().st_size for f in form.files(file))


# Largest allowed difference of a probability. A run stores features as float16, the file computes in float32: this
# alone changes probabilities by 1e-5 to 1e-4. If the run's engine uses bfloat16, the difference can reach 1e-2.
TOLERANCE, TOLERANCE_BF16 = 1e-3, 2e-2
SUFFIXES = {form.name: form.suffix for form in FORMATS.values()}
PHOTOS = 64
# Largest loss of macro F1 by int8, in points (hundredths).
ALLOWED = 0.5
_BATCH = 5  # does not divide PHOTOS: the last batch is smaller, so the check covers two batch sizes
_SPEED_BATCH, _SPEED_SECONDS = 16, 1.0


@dataclass(frozen=True)
class Parity:
    """Differences between the probabilities of a file and of the run.

    Attributes:
        photos: Number of images compared.
        difference: Largest absolute difference of a probability to `Classifier.predict`.
        mean_difference: Mean absolute difference.
        same: Number of images with the same predicted class.
        tolerance: Largest allowed difference.
        runtime: Runtime that the file was executed in.
    """

    photos: int
    difference: float
    mean_difference: float
    same: int
    tolerance: float
    runtime: str


@dataclass(frozen=True, repr=False)
class Exported(Brief):
    """Result of an export.

    Attributes:
        path: The exported file.
        about: The JSON sidecar.
        to: Name of the format.
        bytes: Size of the file and its companion files.
        inputs: Names of the model's inputs.
        networks: Number of networks in the file.
        fold: The only fold in the file; None for all folds.
        photos: Number of images that the file was checked on.
        difference: Largest absolute difference of a probability, of the written file.
        mean_difference: Mean absolute difference, of the written file.
        tolerance: Largest allowed difference, of the float32 model.
        same: Number of images with the same predicted class, of the written file.
        runtime: Runtime that the file was executed in.
        images_per_second: Throughput in `runtime` on this machine, in batches of 16.
        int8: Cost and gain of int8; empty for float32.
    """

    path: Path
    about: Path
    to: str
    bytes: int
    inputs: tuple[str, ...]
    networks: int
    fold: int | None
    photos: int
    difference: float
    mean_difference: float
    tolerance: float
    same: int
    runtime: str
    images_per_second: float
    int8: dict[str, Any] = field(default_factory=dict)

    def _brief(self) -> str:
        return f"{self.path}: {self.to}, {self.bytes:,} bytes, within {self.difference:.2g} of the run"

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return {**asdict(self), "path": str(self.path), "about": str(self.about), "inputs": list(self.inputs)}


def export(
    run: str | Path | Run | Classifier,
    to: str = "openvino",
    out: str | Path | None = None,
    *,
    tta: str | None = None,
    photos: str | Path | None = None,
    fold: int | None = None,
    int8: bool = False,
    max_f1_drop: float = ALLOWED,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Exported:
    """Export a finished run as one network and check it in the runtime of its format.

    The model takes uint8 RGB pixels (N, size, size, 3) of each image's center crop, for any N, and returns float32
    probabilities (N, classes): the mean over the folds, and over the image and its horizontal flip if the run averages
    them. A run with several inputs (a race) takes one array for each size and crop. Class names, preprocessing,
    licenses of the weights and the identity of the run are stored in the file's metadata and, with the results of the
    check, in `<file>.json`.

    With `int8`, weights and activations are quantized to 8-bit integers and calibrated on training images. For each
    fold, a separate file is calibrated without the fold and evaluated on its held-out images; the files are only
    written if int8 costs at most `max_f1_drop` points of out-of-fold macro F1.

    Args:
        run: A finished run, its path, or a loaded classifier.
        to: 'openvino' (an .xml and its .bin), 'onnx' or 'torchscript' (one file each).
        out: Target path, by default the name of the run in the working directory.
        tta: 'plain' or 'flip', by default the views used in training.
        photos: Images to check the file on, by default up to 64 images of the run.
        fold: Export only the models of this fold.
        int8: Quantize to int8.
        max_f1_drop: Largest loss of macro F1 by int8, in points.
        force: Overwrite existing files.
        reporter: Receives progress.

    Raises:
        RunError: The run cannot be loaded or has no such fold.
        SourceError: An argument is invalid, or there are no images to check on.
        MissingExtraError: A required package is not installed.
        StorageError: The file cannot be written.
        EngineError: The probabilities differ from the run's, or int8 costs too much.
    """
    reporter = reporter or Reporter()
    form = find_format(to)
    if tta is not None and tta not in LOOKS:
        raise SourceError(f"{option('tta', tta)}: known are {', '.join(LOOKS)}.{did_you_mean(tta, LOOKS)}")
    if not 0 <= max_f1_drop <= 100:
        raise SourceError(
            f"{option('max_f1_drop', max_f1_drop)}: points of macro F1 that int8 may cost, from 0 to 100."
        )
    form.check(int8)
    classifier, folds = _asked(run, fold)
    name = classifier.run.path.resolve().name
    default = f"{name}{'' if fold is None else f'-fold-{fold}'}{'-int8' if int8 else ''}{form.suffix}"
    target = target_of(form, Path(out) if out else Path(default), force)
    files = photos_to_check(classifier.run, photos, PHOTOS)
    speakers = [Classifier.load(classifier.run, folds=(k,)) for k in folds] if int8 else [classifier]
    plan = ExportPlan.of(speakers, tta)
    reporter.say(f"Export: {plan.networks()} network(s), {_folds(folds)}, to {to}.")
    if plan.networks() > len(plan.trunks) + 1:
        reporter.say(
            f"Export: each fold brings weights of its own; {option('fold', metavar='K')} writes the small file of one."
        )
    expected = _expected(classifier, files, tta, reporter)
    about = metadata(classifier, plan, fold)
    judged: dict[str, Any] = {}
    with atomic_export(form, target) as file:
        network = build_export_module(plan, apart=int8)
        outputs = [OUTPUT, *(f"fold_{k}" for k in folds)] if int8 else [OUTPUT]
        first = file.with_name(f"whole{form.suffix}") if int8 else file
        form.write(network, plan, outputs, about, first)
        del network
        reporter.say(f"Export: checking it on {len(expected.shown.files)} photos.")
        tolerance = _tolerance(classifier)
        parity = _held_against(first, plan, expected, tolerance)
        if not parity.difference <= tolerance:  # also where it is NaN
            raise EngineError(
                f"{target}: not written, for its probabilities differ from the run's by up to {parity.difference:.2g} "
                f"({parity.runtime}, {parity.photos} photos), and {tolerance:g} is allowed; export to "
                f"{'onnx' if to == 'openvino' else 'openvino'} instead, or report it with this line."
            )
        exact = parity
        if int8:
            judged = _made_small(form, plan, classifier, folds, first, file, target, about, max_f1_drop, reporter)
            parity = _held_against(file, plan, expected, tolerance)
            judged["parity"] = {k: v for k, v in asdict(parity).items() if k != "tolerance"}
        speed = _speed(open_exported(file)[1], plan, expected.shown)
        found = Exported(
            path=target,
            about=sidecar_path(target),
            to=to,
            bytes=bytes_of(form, file),
            inputs=plan.names,
            networks=plan.networks(),
            fold=fold,
            images_per_second=judged.get("images_per_second", {}).get("int8", speed),
            int8=judged,
            **asdict(parity),
        )
        write_json(sidecar_path(file), _sheet(found, exact, classifier, plan, form, file, folds))
    return found


@dataclass(frozen=True)
class _Expected:
    """Readable images and the run's probabilities for them, float64 (n, C)."""

    shown: ExportImages
    probabilities: NDArray[np.float64]


def _asked(run: str | Path | Run | Classifier, fold: int | None) -> tuple[Classifier, list[int]]:
    """The classifier to export and the folds it contains."""
    found = run.run if isinstance(run, Classifier) else as_run(run)
    count = found.recipe.folds.n_splits
    if fold is not None and not 0 <= fold < count:
        raise RunError(f"{option('fold', fold)}: {found.path} has the folds 0 to {count - 1}.")
    if fold is not None:
        return Classifier.load(found, folds=(fold,)), [fold]
    return run if isinstance(run, Classifier) else Classifier.load(found), list(range(count))


def _folds(folds: list[int]) -> str:
    return f"fold {folds[0]} alone" if len(folds) == 1 else f"{len(folds)} folds"


def _expected(classifier: Classifier, files: list[Path], tta: str | None, reporter: Reporter) -> _Expected:
    table = classifier.predict(files, tta=tta, reporter=reporter)
    good = (table["error"] == "").to_numpy()
    if not good.any():
        raise SourceError(
            f"none of the {len(files)} photos to check the file on can be read any more "
            f"({table['error'].iloc[0]}); name others with {option('photos')}."
        )
    shown, _ = ExportImages.of(classifier, [file for file, fine in zip(files, good, strict=True) if fine], Reporter())
    return _Expected(shown, table.loc[good, probability_columns(classifier.run.classes)].to_numpy(np.float64))


def _held_against(file: Path, plan: ExportPlan, expected: _Expected, tolerance: float) -> Parity:
    runtime, answer = open_exported(file)
    ours = np.concatenate([answer(pixels) for pixels in expected.shown.batches(plan, _BATCH)])
    apart = np.abs(ours - expected.probabilities)
    same = int((ours.argmax(1) == expected.probabilities.argmax(1)).sum())
    return Parity(len(ours), float(apart.max()), float(apart.mean()), same, tolerance, runtime)


def _made_small(
    form: Format,
    plan: ExportPlan,
    classifier: Classifier,
    folds: list[int],
    whole: Path,
    file: Path,
    target: Path,
    about: dict[str, str],
    max_f1_drop: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write `file` in int8 and return its cost and gain.

    Raises:
        EngineError: int8 costs more macro F1 than allowed.
    """
    from unfreeze.exporters.quantize import Calibration, judge, quantize, whole_part

    photos = Calibration(classifier, reporter)
    reporter.say(f"Export: int8, calibrated and evaluated on {len(photos.folds):,} training photos, each out of fold.")
    found = judge(form, plan, folds, whole, photos, file.parent, reporter)
    exact = file.with_name(f"float32{form.suffix}")
    whole_part(form, whole, exact)
    quantize(form, plan, exact, file, photos.learnt_from(None), about)
    some = photos.shown.some(np.arange(min(_SPEED_BATCH, len(photos.shown.files))))
    # Alternate twice, so that other load on the machine affects both measurements alike.
    asks = [open_exported(f)[1] for f in (exact, file)]
    rounds = [[_speed(ask, plan, some) for ask in asks] for _ in range(2)]
    f32, small = (max(each) for each in zip(*rounds, strict=True))
    gain = f"{small / f32:.2f} times the images/s ({small:.0f} against {f32:.0f})"
    sizes = {"float32": bytes_of(form, exact), "int8": bytes_of(form, file)}
    if found.points > max_f1_drop:
        raise EngineError(
            f"{target}: not written, for int8 {found.describe()}, and {max_f1_drop:g} is allowed; it would "
            f"give {gain} and "
            f"{sizes['int8'] / 1e6:.1f} for {sizes['float32'] / 1e6:.1f} MB: take it with "
            f"{option('max_f1_drop', float(np.ceil(10 * found.points) / 10))}, or leave {option('int8', True)} out."
        )
    reporter.say(f"Export: int8 {found.describe()} and gives {gain}.")
    speeds = {"float32": round(f32, 1), "int8": round(small, 1)}
    return {**found.described(), "allowed": max_f1_drop, "images_per_second": speeds, "bytes": sizes}


def _speed(answer: Answer, plan: ExportPlan, shown: ExportImages) -> float:
    """Images per second in batches of 16, without decoding."""
    pixels = next(shown.batches(plan, _SPEED_BATCH))
    pixels = [np.resize(p, (_SPEED_BATCH, *p.shape[1:])) for p in pixels]
    for _ in range(2):  # some runtimes still optimize on the second call
        answer(pixels)
    started, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < _SPEED_SECONDS:
        answer(pixels)
        done += _SPEED_BATCH
    return done / spent


def _sheet(
    found: Exported, exact: Parity, classifier: Classifier, plan: ExportPlan, form: Format, file: Path, folds: list[int]
) -> dict[str, Any]:
    """Content of `<file>.json`: how to feed the model and how it was checked."""
    weights = {b.name: b.describe() for b in plan.backbones()}
    run = classifier.run
    return {
        "file": found.path.name,
        "to": found.to,
        "precision": "int8" if found.int8 else "float32",
        "bytes": found.bytes,
        "classes": list(run.classes),
        "answers": list(run.info["answers"]),
        "inputs": inputs_of(plan),
        "output": {"name": OUTPUT, "type": "float32", "shape": ["N", len(run.classes)], "rows": "sum to 1"},
        "views": list(plan.views),
        "folds": folds,
        "networks": found.networks,
        "opset": opset(file),
        "versions": package_versions(form, bool(found.int8)),
        "run": {
            "name": run.path.resolve().name,
            "identity": run.info.get("identity", ""),
            "strategies": list(run.strategies),
            "macro_f1": run.scores()["macro_f1"],
        },
        "backbones": weights,
        "licence": list(dict.fromkeys(f"weights of {w['title']}: {w['licence']}" for w in weights.values())),
        "parity": asdict(exact),
        "speed": {
            "images_per_second": round(found.images_per_second, 1),
            "batch": _SPEED_BATCH,
            "cores": cores(),
            "machine": cpu_name(),
        },
        "int8": found.int8 or None,
    }


def _tolerance(classifier: Classifier) -> float:
    wish = classifier.run.recipe.engine
    graphs = [*classifier.graphs, *(m.setting.front for m in classifier.tuned if m.setting.cut)]
    known = [recorded_engine(graph, wish) for graph in graphs]
    return TOLERANCE_BF16 if any(k and k.precision == "bf16" for k in known) else TOLERANCE
