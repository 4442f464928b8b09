"""int8: a file's networks in whole numbers of 8 bits, judged on photos that neither fold nor calibration has seen."""

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
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.images import is_there
from unfreeze.deliver.export_formats import About, Format, first_line, open_exported, save_openvino
from unfreeze.deliver.export_photos import Pixels, Shown, files_of, spread
from unfreeze.deliver.folded import Plan
from unfreeze.judge.metrics import confusion_matrix, macro_f1
from unfreeze.judge.paired import paired_difference
from unfreeze.learn.classifier import Classifier

# Photos that the ranges of the activations are taken from, and how many go through at once.
CALIBRATION, _BATCH = 100, 4
# Out-of-fold photos that are judged, spread evenly; more would tell no more about half a point.
MOST = 4000
_JUDGED = 16


@dataclass(frozen=True)
class Judged:
    """What int8 costs. f32, int8: macro F1 out of fold. difference: int8 less float32, 95 % over groups.

    same: share of the photos with the same most probable class. calibration: photos of each calibration, at most.
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
        """Points of macro F1 that it costs; negative where it gains."""
        return -100 * self.difference["value"]

    def told(self) -> str:
        """`costs 0.21 points of macro F1 (95 % -0.30 to 0.74; .815 to .813 on 420 out-of-fold photos)`."""
        low, high = -100 * self.difference["high"], -100 * self.difference["low"]
        return (
            f"costs {self.points:.2f} points of macro F1 (95 % {low:.2f} to {high:.2f}; {self.f32:.3f} to "
            f"{self.int8:.3f} on {self.photos:,} out-of-fold photos)"
        )

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "macro_f1": {"float32": self.f32, "int8": self.int8, "difference": self.difference, "level": 0.95},
            "same_class": self.same,
            "photos": self.photos,
            "groups": self.groups,
            "folds": list(self.folds),
            "calibration_photos": self.calibration,
        }


class Calibration:
    """Which photos the ranges come from, and those that judge: all of a run's training photos, by fold."""

    def __init__(self, classifier: Classifier, reporter: Reporter) -> None:
        run = classifier.run
        table = run.photos()
        table = table[(table["fold"] >= 0) & (table["hash"] != "")]
        root = Path(run.info["root"])
        table = table[[is_there(root / path) for path in table["path"]]]
        if table.empty:
            raise SourceError(
                f"{run.path}: its photos are no longer in {run.info['root']}; int8 is calibrated and judged on them, "
                "so put them back or leave --int8 out."
            )
        self.shown, good = Shown.of(classifier, files_of(run, table), reporter)
        table = table[good]
        truth = run.predictions().set_index("path")["label"].loc[table["path"]]
        number = {name: i for i, name in enumerate(run.classes)}
        self.truth = np.array([number[label] for label in truth], np.int64)
        self.folds, self.groups = table["fold"].to_numpy(np.int64), table["unit"].to_numpy(np.int64)
        self.run: Run = run

    def learnt_from(self, without: int | None) -> Shown:
        """Up to CALIBRATION photos that are not of a fold; None: of all folds."""
        rows = np.flatnonzero(self.folds != (-1 if without is None else without))
        return self.shown.some(rows[spread(len(rows), CALIBRATION)])

    def held_out(self, fold: int, share: float) -> NDArray[np.int64]:
        """Rows of the fold's photos, a share of them evenly apart."""
        rows = np.flatnonzero(self.folds == fold)
        return rows[spread(len(rows), max(1, round(share * len(rows))))]


def judge(
    form: Format,
    plan: Plan,
    folds: Sequence[int],
    whole: Path,
    photos: Calibration,
    folder: Path,
    reporter: Reporter,
) -> Judged:
    """What int8 costs each fold's own file on the photos that were held out of it.

    whole: a float32 file whose outputs are the mean and then each of `folds`. Every fold's part of it is calibrated on
    training photos of the other folds, with the settings of the file that will be written, and both are asked for
    the fold's photos: the file of all folds would know four fifths of any photo. folder: for files that come and go.
    """
    share = min(1.0, MOST / max(1, int(np.isin(photos.folds, folds).sum())))
    rows, exact, small = [], list[NDArray[Any]](), list[NDArray[Any]]()
    with reporter.bar("Judging int8, fold by fold", len(folds)) as advance:
        for place, fold in enumerate(folds):
            part, less = (folder / f"fold-{fold}-{kind}{form.suffix}" for kind in ("f32", "int8"))
            _PARTS[form.name](whole, 1 + place, part)
            quantise(form, plan, part, less, photos.learnt_from(fold), {})
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
        raise EngineError(f"{form.name}: not written, for int8 gives no probabilities here; export without --int8.")
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
    """The first output of a file as a file of its own."""
    _PARTS[form.name](whole, 0, target)


def quantise(form: Format, plan: Plan, source: Path, target: Path, photos: Shown, about: About) -> None:
    """Writes `source` in int8 as `target`, its activations' ranges taken from `photos`. EngineError where it cannot.

    What follows the signed root of the features (one matrix product and the softmax) stays in float32: it costs
    nothing, and the root is steepest where features are small. So does the gray of a run that sees no colours.
    Weights per channel, activations per tensor.
    """
    batches = list(photos.batches(plan, _BATCH))
    try:
        with _silence():
            _QUANTISERS[form.name](source, target, batches, plan, about)
    except (OSError, EngineError):
        raise
    except Exception as error:  # neither library has errors of one kind
        raise EngineError(f"{target.name}: int8 cannot be made ({first_line(error)}); leave --int8 out.") from None


def _quantise_openvino(source: Path, target: Path, batches: list[Pixels], plan: Plan, about: About) -> None:
    # Read when nncf is imported: nothing of what is done here is told to anyone.
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


def _quantise_onnx(source: Path, target: Path, batches: list[Pixels], plan: Plan, about: About) -> None:
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


def _exact(kinds: dict[str, str], after: dict[str, list[str]], plan: Plan) -> list[str]:
    """Names of the nodes that stay in float32: behind the signed root, and before the floor of gray's luminance, whose
    sums of products are whole numbers of 24 bits. kinds: of each node. after: who reads each node."""
    found = _reached([name for name, kind in kinds.items() if kind == "Sign"], after)
    if any(p.gray for p in plan.lenses):
        before: dict[str, list[str]] = {}
        for name, users in after.items():
            for user in users:
                before.setdefault(user, []).append(name)
        found |= _reached([name for name, kind in kinds.items() if kind == "Floor"], before)
    return sorted(found)


def _reached(start: Iterable[str], after: dict[str, list[str]]) -> set[str]:
    """These nodes and all that depends on them."""
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
    """Both libraries print bars and advice, which is nobody's answer here."""
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
_QUANTISERS: dict[str, Callable[[Path, Path, list[Pixels], Plan, About], None]] = {
    "openvino": _quantise_openvino,
    "onnx": _quantise_onnx,
}
