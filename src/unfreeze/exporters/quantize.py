"""Quantization to int8, evaluated on images that neither the fold nor its calibration has seen."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import EngineError, SourceError
from unfreeze.core.format import format_interval
from unfreeze.core.messages import option
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode import exists
from unfreeze.exporters.formats import About, Format, first_line, open_exported, save_openvino
from unfreeze.exporters.graph import ExportPlan
from unfreeze.exporters.images import ExportImages, Pixels, files_of, spread
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.differences import paired_difference

# Number of images for calibrating the activation ranges, and the batch size.
CALIBRATION, _BATCH = 100, 4
# Maximum number of out-of-fold images for the evaluation; more would not resolve half a point any better.
MOST = 4000
_JUDGED = 16


@dataclass(frozen=True)
class Judged:
    """Cost of int8.

    Attributes:
        f32: Out-of-fold macro F1 in float32.
        int8: Out-of-fold macro F1 in int8.
        difference: int8 minus float32, with a 95% interval over groups.
        same: Share of images with the same predicted class.
        photos: Number of images.
        groups: Number of groups.
        folds: The folds.
        calibration: Maximum number of images per calibration.
    """

    f32: float
    int8: float
    difference: dict[str, float]
    same: float
    photos: int
    groups: int
    folds: tuple[int, ...]
    calibration: int

    @property
    def points(self) -> float:
        """Loss of macro F1 in points; negative for a gain."""
        return -100 * self.difference["value"]

    def describe(self) -> str:
        """Summary: `costs 0.21 points of macro F1 (95% interval [-0.30, +0.74]; 0.815 to 0.813 on 420 images)`."""
        ends = {"low": -100 * self.difference["high"], "high": -100 * self.difference["low"]}
        return (
            f"costs {self.points:.2f} points of macro F1 (95% interval {format_interval(ends, 2, signed=True)}; "
            f"{self.f32:.3f} to {self.int8:.3f} on {self.photos:,} out-of-fold photos)"
        )

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return {
            "macro_f1": {"float32": self.f32, "int8": self.int8, "difference": self.difference, "level": 0.95},
            "same_class": self.same,
            "photos": self.photos,
            "groups": self.groups,
            "folds": list(self.folds),
            "calibration_photos": self.calibration,
        }


class Calibration:
    """Training images of a run by fold: those to calibrate on and those to evaluate on.

    Raises:
        SourceError: None of the images exists any more.
    """

    def __init__(self, classifier: Classifier, reporter: Reporter) -> None:
        run = classifier.run
        table = run.photos()
        table = table[(table["fold"] >= 0) & (table["hash"] != "")]
        root = Path(run.info["root"])
        table = table[[exists(root / path) for path in table["path"]]]
        if table.empty:
            raise SourceError(
                f"{run.path}: its photos are no longer in {run.info['root']}; int8 is calibrated and tested on them, "
                f"so put them back or leave {option('int8', True)} out."
            )
        self.shown, good = ExportImages.of(classifier, files_of(run, table), reporter)
        table = table[good]
        truth = run.predictions().set_index("path")["label"].loc[table["path"]]
        number = {name: i for i, name in enumerate(run.classes)}
        self.truth = np.array([number[label] for label in truth], np.int64)
        self.folds, self.groups = table["fold"].to_numpy(np.int64), table["unit"].to_numpy(np.int64)
        self.run: Run = run

    def learnt_from(self, without: int | None) -> ExportImages:
        """Up to CALIBRATION images that are not in fold `without` (None: of all folds)."""
        rows = np.flatnonzero(self.folds != (-1 if without is None else without))
        return self.shown.some(rows[spread(len(rows), CALIBRATION)])

    def held_out(self, fold: int, share: float) -> NDArray[np.int64]:
        """Rows of a share of the fold's images, evenly spaced."""
        rows = np.flatnonzero(self.folds == fold)
        return rows[spread(len(rows), max(1, round(share * len(rows))))]


def judge(
    form: Format,
    plan: ExportPlan,
    folds: Sequence[int],
    whole: Path,
    photos: Calibration,
    folder: Path,
    reporter: Reporter,
) -> Judged:
    """Measure the cost of int8 for each fold on its held-out images.

    The part of each fold is extracted from the float32 file and quantized with the settings of the final file,
    calibrated on training images of the other folds. Both versions then predict the held-out images of the fold. The
    file of all folds cannot be used for this, since most of its models were trained on any given image.

    Args:
        form: Format of the file.
        plan: Plan of the file.
        folds: The folds in the file.
        whole: float32 file with the mean and then each of `folds` as outputs.
        photos: Training images of the run.
        folder: Folder for temporary files.
        reporter: Receives progress.

    Raises:
        EngineError: The int8 model returns probabilities that are not finite.
    """
    share = min(1.0, MOST / max(1, int(np.isin(photos.folds, folds).sum())))
    rows, exact, small = [], list[NDArray[Any]](), list[NDArray[Any]]()
    with reporter.bar("Evaluating int8 by fold", len(folds)) as advance:
        for place, fold in enumerate(folds):
            part, less = (folder / f"fold-{fold}-{kind}{form.suffix}" for kind in ("f32", "int8"))
            _PARTS[form.name](whole, 1 + place, part)
            quantize(form, plan, part, less, photos.learnt_from(fold), {})
            (_, ask), (_, ask_less) = open_exported(part), open_exported(less)
            own = photos.held_out(fold, share)
            for pixels in photos.shown.some(own).batches(plan, _JUDGED):
                exact.append(ask(pixels))
                small.append(ask_less(pixels))
            rows.append(own)
            for file in (*form.files(part), *form.files(less)):
                file.unlink()
            advance(1)
    at = np.concatenate(rows)
    truth, groups = photos.truth[at], photos.groups[at]
    first, second = np.concatenate(exact), np.concatenate(small)
    if not np.isfinite(second).all():
        raise EngineError(
            f"{form.name}: not written, for int8 gives no probabilities here; export without {option('int8', True)}."
        )
    f32, int8 = (float(macro_f1(confusion_matrix(truth, p.argmax(1), len(plan.classes)))) for p in (first, second))
    return Judged(
        f32,
        int8,
        difference=paired_difference(truth, first, second, groups),
        same=float((first.argmax(1) == second.argmax(1)).mean()),
        photos=len(at),
        groups=len(np.unique(groups)),
        folds=tuple(folds),
        calibration=max(len(photos.learnt_from(fold).files) for fold in folds),
    )


def whole_part(form: Format, whole: Path, target: Path) -> None:
    """Write the first output of a file as a separate file."""
    _PARTS[form.name](whole, 0, target)


def quantize(form: Format, plan: ExportPlan, source: Path, target: Path, photos: ExportImages, about: About) -> None:
    """Write `source` in int8 as `target`, with activation ranges from `photos`.

    Weights are quantized per channel, activations per tensor. Everything after the signed root of the features (one
    matrix product and the softmax) stays in float32: it costs little time, and the root is steepest for small features.
    The grayscale conversion also stays in float32.

    Raises:
        EngineError: Quantization failed.
    """
    batches = list(photos.batches(plan, _BATCH))
    try:
        with _silence():
            _QUANTISERS[form.name](source, target, batches, plan, about)
    except (OSError, EngineError):
        raise
    except Exception as error:  # the libraries have no common error class
        raise EngineError(
            f"{target.name}: int8 cannot be made ({first_line(error)}); leave {option('int8', True)} out."
        ) from None


def _quantise_openvino(source: Path, target: Path, batches: list[Pixels], plan: ExportPlan, about: About) -> None:
    # Disables nncf's telemetry; the variable is read on import.
    with _environment("NNCF_CI", "1"):
        import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(source)
    ops = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    after = {
        name: [given.get_node().get_friendly_name() for out in op.outputs() for given in out.get_target_inputs()]
        for name, op in ops.items()
    }
    kept = _exact({name: op.get_type_name() for name, op in ops.items()}, after, plan)
    small = nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER if plan.tokens() else None,
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False) if kept else None,
    )
    save_openvino(small, about, target)


def _quantise_onnx(source: Path, target: Path, batches: list[Pixels], plan: ExportPlan, about: About) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, names: list[str]) -> None:
            self.left = iter([dict(zip(names, pixels, strict=True)) for pixels in batches])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    prepared = target.with_name(f"{target.stem}-prepared.onnx")
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        users: dict[str, list[str]] = {}
        for node in graph.node:
            for name in node.input:
                users.setdefault(name, []).append(node.name)
        after = {node.name: [user for out in node.output for user in users.get(out, [])] for node in graph.node}
        kept = _exact({node.name: node.op_type for node in graph.node}, after, plan)
        quantize_static(
            str(prepared),
            str(target),
            Reader(list(plan.names)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
        )
    finally:
        prepared.unlink(missing_ok=True)
    small = onnx.load(target)
    del small.metadata_props[:]
    for key, text in about.items():
        small.metadata_props.add(key=key, value=text)
    onnx.save(small, target)


def _exact(kinds: dict[str, str], after: dict[str, list[str]], plan: ExportPlan) -> list[str]:
    """Names of the nodes that stay in float32.

    These are the nodes after the signed root, and those before the floor of the grayscale conversion, whose sums of
    products are 24-bit integers.

    Args:
        kinds: Operation type of each node.
        after: Consumers of each node.
        plan: Plan of the file.
    """
    found = _reached([name for name, kind in kinds.items() if kind == "Sign"], after)
    if any(p.gray for p in plan.lenses):
        before: dict[str, list[str]] = {}
        for name, users in after.items():
            for user in users:
                before.setdefault(user, []).append(name)
        found |= _reached([name for name, kind in kinds.items() if kind == "Floor"], before)
    return sorted(found)


def _reached(start: Iterable[str], after: dict[str, list[str]]) -> set[str]:
    """The given nodes and everything that depends on them."""
    found, waiting = set[str](), list(start)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += after.get(name, [])
    return found


def _part_openvino(whole: Path, output: int, target: Path) -> None:
    import openvino as ov

    model = ov.Core().read_model(whole)
    part = ov.Model([model.output(output)], model.get_parameters(), "part")
    save_openvino(part, {}, target)


def _part_onnx(whole: Path, output: int, target: Path) -> None:
    import onnx

    model = onnx.load(whole)
    names = [given.name for given in model.graph.input]
    part = onnx.utils.Extractor(model).extract_model(names, [model.graph.output[output].name])
    onnx.save(part, target)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress progress bars and recommendation of the quantization libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


_PARTS: dict[str, Callable[[Path, int, Path], None]] = {"openvino": _part_openvino, "onnx": _part_onnx}
_QUANTISERS: dict[str, Callable[[Path, Path, list[Pixels], ExportPlan, About], None]] = {
    "openvino": _quantise_openvino,
    "onnx": _quantise_onnx,
}
