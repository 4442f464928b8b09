"""A finished run in one file for other programs: uint8 pixels in, probabilities out, held against the run itself."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import EngineError, RunError, SourceError, nearest
from unfreeze.core.files import write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.core.work import cores
from unfreeze.deliver.export_files import bytes_of, put_together, sheet_of, target_of
from unfreeze.deliver.export_formats import FORMATS, Answer, Format, find_format, open_exported, opset, versions
from unfreeze.deliver.export_photos import Shown, photos_to_check
from unfreeze.deliver.folded import OUTPUT, Plan, folded, inputs_of, metadata
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.tta import LOOKS
from unfreeze.model.engines import machine, recorded_engine

# The largest difference of a probability that passes. A run keeps its features as float16, a file computes them in
# float32: that alone moved probabilities by 1e-5 to 1e-4. Where the run's engine is bfloat16, it may be a percent.
TOLERANCE, TOLERANCE_BF16 = 1e-3, 2e-2
SUFFIXES = {form.name: form.suffix for form in FORMATS.values()}
PHOTOS = 64
# Points of macro F1 that int8 may cost.
ALLOWED = 0.5
_BATCH = 5  # no divisor of PHOTOS: the last batch is smaller, so that the check runs two batch sizes
_SPEED_BATCH, _SPEED_SECONDS = 16, 1.0


@dataclass(frozen=True)
class Parity:
    """How near a file is to the run, over `photos` photos.

    difference: largest absolute difference of a probability to `Classifier.predict`. mean_difference: of all of them.
    same: of how many photos the most probable class is the same. runtime: what ran the file.
    """

    photos: int
    difference: float
    mean_difference: float
    same: int
    tolerance: float
    runtime: str


@dataclass(frozen=True)
class Exported:
    """What was written and how near it is to the run.

    about: the JSON beside it. bytes: of the file and what belongs to it. networks: how many it holds. fold: the
    only one that speaks in it; None: all of them. images_per_second: in `runtime`, here, batches of 16. parity: of
    the float32 network; `same`, `difference` and `mean_difference` are the file's own. int8: what it costs and gains.
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

    def described(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**asdict(self), "path": str(self.path), "about": str(self.about), "inputs": list(self.inputs)}


def export(
    run: str | Path | Run | Classifier,
    to: str = "openvino",
    out: str | Path | None = None,
    *,
    views: str | None = None,
    photos: str | Path | None = None,
    fold: int | None = None,
    int8: bool = False,
    allow: float = ALLOWED,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Exported:
    """Writes a finished run as one network for other programs, and checks it in its own runtime.

    The file takes uint8 RGB pixels (N, size, size, 3), any N, of each photo's centre square, and gives float32
    probabilities (N, classes): the mean over the folds, and over the photo and its mirror image where the run
    averages them. A run of several inputs (the race) takes one such array for each size and crop. Names of the classes,
    preprocessing, licence of the weights and identity of the run stand in the file's metadata, and with the check's
    figures in <file>.json.

    to: 'openvino' (an .xml and its .bin), 'onnx' or 'torchscript' (one file). out: by default the run's name in the
    working folder. views: 'plain' or 'flip'; by default the views of training. photos: what to check the file on, by
    default up to 64 of the run's own. fold: only what was learnt for this fold speaks. force: overwrite.
    int8: in whole numbers of 8 bits, calibrated on training photos, and only if that costs no more than `allow` points
    of macro F1 on out-of-fold photos: each fold's own file on the photos held out of it. The files appear only if
    they pass. Raises RunError, SourceError, MissingExtraError, StorageError, or EngineError where it differs or
    costs too much.
    """
    reporter = reporter or Reporter()
    form = find_format(to)
    if views is not None and views not in LOOKS:
        raise SourceError(f"--views {views}: known are {', '.join(LOOKS)}.{nearest(views, LOOKS)}")
    if not 0 <= allow <= 100:
        raise SourceError(f"--allow {allow:g}: points of macro F1 that int8 may cost, from 0 to 100.")
    form.check(int8)
    classifier, folds = _asked(run, fold)
    name = classifier.run.path.resolve().name
    default = f"{name}{'' if fold is None else f'-fold-{fold}'}{'-int8' if int8 else ''}{form.suffix}"
    target = target_of(form, Path(out) if out else Path(default), force)
    files = photos_to_check(classifier.run, photos, PHOTOS)
    speakers = [Classifier.load(classifier.run, folds=(k,)) for k in folds] if int8 else [classifier]
    plan = Plan.of(speakers, views)
    reporter.say(f"Export: {plan.networks()} network(s), {_folds(folds)}, to {to}.")
    if plan.networks() > len(plan.trunks) + 1:
        reporter.say("Export: each fold brings weights of its own; --fold K writes the small file of one.")
    expected = _expected(classifier, files, views, reporter)
    about = metadata(classifier, plan, fold)
    judged: dict[str, Any] = {}
    with put_together(form, target) as file:
        network = folded(plan, apart=int8)
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
            judged = _made_small(form, plan, classifier, folds, first, file, target, about, allow, reporter)
            parity = _held_against(file, plan, expected, tolerance)
            judged["parity"] = {k: v for k, v in asdict(parity).items() if k != "tolerance"}
        speed = _speed(open_exported(file)[1], plan, expected.shown)
        found = Exported(
            path=target,
            about=sheet_of(target),
            to=to,
            bytes=bytes_of(form, file),
            inputs=plan.names,
            networks=plan.networks(),
            fold=fold,
            images_per_second=judged.get("images_per_second", {}).get("int8", speed),
            int8=judged,
            **asdict(parity),
        )
        write_json(sheet_of(file), _sheet(found, exact, classifier, plan, form, file, folds))
    return found


@dataclass(frozen=True)
class _Expected:
    """What the run says of the photos that it can read: float64 (n, C)."""

    shown: Shown
    probabilities: NDArray[np.float64]


def _asked(run: str | Path | Run | Classifier, fold: int | None) -> tuple[Classifier, list[int]]:
    """The classifier that is to be written, and the folds that speak in it."""
    found = run.run if isinstance(run, Classifier) else run if isinstance(run, Run) else open_run(run)
    count = found.recipe.folds.count
    if fold is not None and not 0 <= fold < count:
        raise RunError(f"--fold {fold}: {found.path} has the folds 0 to {count - 1}.")
    if fold is not None:
        return Classifier.load(found, folds=(fold,)), [fold]
    return run if isinstance(run, Classifier) else Classifier.load(found), list(range(count))


def _folds(folds: list[int]) -> str:
    return f"fold {folds[0]} alone" if len(folds) == 1 else f"{len(folds)} folds"


def _expected(classifier: Classifier, files: list[Path], views: str | None, reporter: Reporter) -> _Expected:
    table = classifier.predict(files, tta=views, reporter=reporter)
    good = (table["error"] == "").to_numpy()
    if not good.any():
        raise SourceError(
            f"none of the {len(files)} photos to check the file on can be read any more "
            f"({table['error'].iloc[0]}); name others with --photos."
        )
    shown, _ = Shown.of(classifier, [file for file, fine in zip(files, good, strict=True) if fine], Reporter())
    return _Expected(shown, table.loc[good, probability_columns(classifier.run.classes)].to_numpy(np.float64))


def _held_against(file: Path, plan: Plan, expected: _Expected, tolerance: float) -> Parity:
    runtime, answer = open_exported(file)
    ours = np.concatenate([answer(pixels) for pixels in expected.shown.batches(plan, _BATCH)])
    apart = np.abs(ours - expected.probabilities)
    same = int((ours.argmax(1) == expected.probabilities.argmax(1)).sum())
    return Parity(len(ours), float(apart.max()), float(apart.mean()), same, tolerance, runtime)


def _made_small(
    form: Format,
    plan: Plan,
    classifier: Classifier,
    folds: list[int],
    whole: Path,
    file: Path,
    target: Path,
    about: dict[str, str],
    allow: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Writes `file` in int8 and gives what that costs and gains. EngineError where it costs more than is allowed."""
    from unfreeze.deliver.export_int8 import Calibration, judge, quantise, whole_part

    photos = Calibration(classifier, reporter)
    reporter.say(f"Export: int8, calibrated and judged on {len(photos.folds):,} training photos, each out of fold.")
    found = judge(form, plan, folds, whole, photos, file.parent, reporter)
    exact = file.with_name(f"float32{form.suffix}")
    whole_part(form, whole, exact)
    quantise(form, plan, exact, file, photos.learnt_from(None), about)
    some = photos.shown.some(np.arange(min(_SPEED_BATCH, len(photos.shown.files))))
    # One after the other, twice: a neighbour's load on the machine meets both.
    asks = [open_exported(f)[1] for f in (exact, file)]
    rounds = [[_speed(ask, plan, some) for ask in asks] for _ in range(2)]
    f32, small = (max(each) for each in zip(*rounds, strict=True))
    gain = f"{small / f32:.2f} times the images/s ({small:.0f} against {f32:.0f})"
    sizes = {"float32": bytes_of(form, exact), "int8": bytes_of(form, file)}
    if found.points > allow:
        raise EngineError(
            f"{target}: not written, for int8 {found.told()}, and {allow:g} is allowed; it would give {gain} and "
            f"{sizes['int8'] / 1e6:.1f} for {sizes['float32'] / 1e6:.1f} MB: take it with --allow "
            f"{np.ceil(10 * found.points) / 10:g}, or leave --int8 out."
        )
    reporter.say(f"Export: int8 {found.told()} and gives {gain}.")
    speeds = {"float32": round(f32, 1), "int8": round(small, 1)}
    return {**found.described(), "allowed": allow, "images_per_second": speeds, "bytes": sizes}


def _speed(answer: Answer, plan: Plan, shown: Shown) -> float:
    """Images per second in batches of 16, decoded beforehand."""
    pixels = next(shown.batches(plan, _SPEED_BATCH))
    pixels = [np.resize(p, (_SPEED_BATCH, *p.shape[1:])) for p in pixels]
    for _ in range(2):  # a runtime may still arrange itself at its second call
        answer(pixels)
    started, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < _SPEED_SECONDS:
        answer(pixels)
        done += _SPEED_BATCH
    return done / spent


def _sheet(
    found: Exported, exact: Parity, classifier: Classifier, plan: Plan, form: Format, file: Path, folds: list[int]
) -> dict[str, Any]:
    """What <file>.json says: all that a program needs to feed the file, and how it was checked."""
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
        "versions": versions(form, bool(found.int8)),
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
            "machine": machine(),
        },
        "int8": found.int8 or None,
    }


def _tolerance(classifier: Classifier) -> float:
    wish = classifier.run.recipe.engine
    graphs = [*classifier.graphs, *(m.setting.front for m in classifier.tuned if m.setting.cut)]
    known = [recorded_engine(graph, wish) for graph in graphs]
    return TOLERANCE_BF16 if any(k and k.precision == "bf16" for k in known) else TOLERANCE
