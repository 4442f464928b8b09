"""A finished run in one file for other programs: uint8 pixels in, probabilities out, held against the run itself."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import EngineError, MissingExtraError, RunError, SourceError, StorageError, listed, nearest
from unfreeze.core.files import write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.data.images import load_square, read_bytes
from unfreeze.data.listing import list_images
from unfreeze.deliver.folded import OUTPUT, Plan, folded, metadata
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.tta import LOOKS
from unfreeze.model.engines import recorded_engine

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = {"openvino": ".xml", "onnx": ".onnx"}
# The largest difference of a probability that passes. A run keeps its features as float16, a file computes them in
# float32: that alone moved probabilities by 1e-5 to 1e-4. Where the run's engine is bfloat16, it may be a percent.
TOLERANCE, TOLERANCE_BF16 = 1e-3, 2e-2
PHOTOS = 32
_BATCH = 5  # no divisor of PHOTOS: the last batch is smaller, so that the check runs two batch sizes


@dataclass(frozen=True)
class Exported:
    """What was written and how near it is to the run.

    difference: largest absolute difference of a probability to `Classifier.predict`, over `photos` photos.
    same: of how many of them the most probable class is the same. runtime: what ran the file for the check.
    """

    path: Path
    to: str
    bytes: int
    inputs: tuple[str, ...]
    photos: int
    difference: float
    tolerance: float
    same: int
    runtime: str

    def described(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**asdict(self), "path": str(self.path), "inputs": list(self.inputs)}


def export(
    run: str | Path | Run | Classifier,
    to: str = "openvino",
    out: str | Path | None = None,
    *,
    views: str | None = None,
    photos: str | Path | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Exported:
    """Writes a finished probe run as one network for other programs, and checks it in its own runtime.

    The file takes uint8 RGB pixels (N, size, size, 3), any N, of each photo's centre square, and gives float32
    probabilities (N, classes): the mean over the folds, and over the photo and its mirror image where the run
    averages them. A run of several inputs (the race) takes one such array for each size and crop. Names of the classes,
    preprocessing, licence of the weights and identity of the run stand in the file's metadata.

    to: 'openvino' (an .xml and its .bin) or 'onnx' (one file). out: by default the run's name in the working folder.
    views: 'plain' or 'flip'; by default the views of training. photos: what to check the file on, by default up
    to 32 of the run's own. force: overwrite. The file appears only if it passes.
    Raises RunError, SourceError, MissingExtraError, StorageError, or EngineError where it differs too much.
    """
    reporter = reporter or Reporter()
    if to not in SUFFIXES:
        raise SourceError(f"--to {to}: known are {', '.join(SUFFIXES)}.{nearest(to, SUFFIXES)}")
    if views is not None and views not in LOOKS:
        raise SourceError(f"--views {views}: known are {', '.join(LOOKS)}.{nearest(views, LOOKS)}")
    _needs(to)
    classifier = run if isinstance(run, Classifier) else _classifier(run)
    if classifier.sees_faces:
        raise RunError(
            f"{classifier.run.path}: sees the square around each face (image.crop = 'face'), and an exported file "
            "finds none; predict with `unfreeze predict`, or fit without image.crop and export that run."
        )
    target = _target(classifier.run, to, out, force)
    files = _check_photos(classifier.run, photos)
    plan = Plan.of(classifier, views)
    reporter.say(f"Export: {len(plan.graphs)} network(s) and {classifier.run.recipe.folds.count} folds to {to}.")
    expected = classifier.predict(files, tta=views, reporter=reporter)
    good = (expected["error"] == "").to_numpy()
    if not good.any():
        raise SourceError(
            f"none of the {len(files)} photos to check the file on can be read any more "
            f"({expected['error'].iloc[0]}); name others with --photos."
        )
    readable = [file for file, fine in zip(files, good, strict=True) if fine]
    reference = expected.loc[good, probability_columns(classifier.run.classes)].to_numpy(np.float64)
    tolerance = _tolerance(classifier)
    found: dict[str, Any] = {}

    def write(temporary: Path) -> None:
        network = folded(classifier, plan)
        _WRITERS[to](network, plan, metadata(classifier, plan), temporary)
        reporter.say(f"Export: checking it on {len(readable)} photos.")
        runtime, answer = open_exported(temporary)
        limit = int(classifier.run.recipe.image.max_megapixels * 1e6)
        ours = np.concatenate([answer(pixels) for pixels in _pixels(readable, plan, limit)])
        difference = float(np.abs(ours - reference).max())
        if not difference <= tolerance:  # also where it is NaN
            raise EngineError(
                f"{target}: not written, for its probabilities differ from the run's by up to {difference:.2g} "
                f"({runtime}, {len(readable)} photos), and {tolerance:g} is allowed; export to "
                f"{'onnx' if to == 'openvino' else 'openvino'} instead, or report it with this line."
            )
        same = int((ours.argmax(1) == reference.argmax(1)).sum())
        found.update(difference=difference, same=same, runtime=runtime, bytes=_bytes(temporary))

    if to == "openvino":
        _write_pair(target, write)
    else:
        write_whole(target, write)
    return Exported(path=target, to=to, inputs=tuple(plan.names), photos=len(readable), tolerance=tolerance, **found)


Answer = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]


def open_exported(path: Path) -> tuple[str, Answer]:
    """The runtime's name, and a function: one uint8 array for each input -> probabilities. EngineError if unreadable.

    An .xml runs in OpenVINO; an .onnx in ONNX Runtime where that is installed, else OpenVINO reads it. In float32:
    a processor's faster bfloat16 is the runtime's choice and not the file's.
    """
    try:
        if path.suffix == ".onnx" and _has("onnxruntime"):
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            names = [i.name for i in session.get_inputs()]
            return (
                f"ONNX Runtime {onnxruntime.__version__}",
                lambda pixels: session.run([OUTPUT], dict(zip(names, pixels, strict=True)))[0],
            )
        import openvino as ov

        compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return f"OpenVINO {ov.__version__.split('-')[0]}", lambda pixels: compiled(list(pixels))[OUTPUT]
    except Exception as error:  # the runtimes' errors have no common base
        raise EngineError(f"{path}: cannot be run ({_first_line(error)}).") from None


def _write_openvino(network: nn.Module, plan: Plan, about: dict[str, str], path: Path) -> None:
    import openvino as ov
    import torch

    examples = _examples(plan)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of shapes that are constants here
        traced = torch.jit.trace(network, examples, check_trace=False)
        shapes = [(ov.PartialShape([-1, *e.shape[1:]]), ov.Type.u8) for e in examples]
        model = ov.convert_model(traced, input=shapes)
    for given, name in zip(model.inputs, plan.names, strict=True):
        given.get_tensor().set_names({name})
    model.output(0).get_tensor().set_names({OUTPUT})
    for key, text in about.items():
        model.set_rt_info(text, ["unfreeze", key])
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's own word for a full or forbidden disk
        raise StorageError(f"{path.parent}: the file cannot be written there ({_first_line(error)}).") from None


def _write_onnx(network: nn.Module, plan: Plan, about: dict[str, str], path: Path) -> None:
    import logging

    import torch

    examples = _examples(plan)
    photos = torch.export.Dim("photos")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        quiet.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                network,
                examples,
                input_names=list(plan.names),
                output_names=[OUTPUT],
                dynamo=True,
                dynamic_shapes=(tuple({0: photos} for _ in examples),),
                verbose=False,
            )
        finally:
            quiet.setLevel(level)
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)


_WRITERS: dict[str, Callable[[Any, Plan, dict[str, str], Path], None]] = {
    "openvino": _write_openvino,
    "onnx": _write_onnx,
}


def _write_pair(target: Path, write: Callable[[Path], None]) -> None:
    """As write_whole, for an .xml and its .bin: an .xml never lies beside weights that are not its own."""

    def both(temporary: Path) -> None:
        weights = temporary.with_suffix(".bin")
        try:
            write(temporary)
            target.unlink(missing_ok=True)
            weights.replace(target.with_suffix(".bin"))
        finally:
            with contextlib.suppress(FileNotFoundError):
                weights.unlink()

    write_whole(target, both)


def _classifier(run: str | Path | Run) -> Classifier:
    found = run if isinstance(run, Run) else open_run(run)
    if found.strategies != ("probe",):
        raise RunError(f"{found.path}: a {listed(found.strategies)} run; export takes probe runs.")
    return Classifier.load(found)


def _target(run: Run, to: str, out: str | Path | None, force: bool) -> Path:
    """Where the file goes. StorageError if it may not go there, before any work is done for it."""
    suffix = SUFFIXES[to]
    target = Path(out) if out else Path(f"{run.path.resolve().name}{suffix}")
    if target.suffix.lower() != suffix:
        raise StorageError(f"--out {target}: {to} is written as {suffix}; name it {target.stem}{suffix}.")
    for file in (target, target.with_suffix(".bin")) if to == "openvino" else (target,):
        if file.is_dir():
            raise StorageError(f"{file}: a folder of this name is in the way; choose another --out.")
        if file.exists() and not force:
            raise StorageError(f"{file}: exists; --force overwrites it, --out FILE writes another.")
    return target


def _check_photos(run: Run, photos: str | Path | None) -> list[Path]:
    """Up to PHOTOS files, spread evenly over what there is."""
    if photos is not None:
        root, names = list_images(Path(photos))
        files = [root / name for name in names]
    else:
        table, root = run.photos(), Path(run.info["root"])
        files = [root / path for path in table.loc[table["hash"] != "", "path"]]
        files = [file for file in files if file.is_file()]
    if not files:
        raise SourceError(
            f"{run.path}: its photos are no longer in {run.info['root']}, and the file is held against the run on "
            "photos; name some with --photos FOLDER."
        )
    places = np.unique(np.linspace(0, len(files) - 1, PHOTOS).round().astype(int))
    return [files[i] for i in places]


def _pixels(files: list[Path], plan: Plan, limit: int) -> Iterator[list[NDArray[np.uint8]]]:
    """Batches: one array (n, size, size, 3) for each input."""
    for start in range(0, len(files), _BATCH):
        contents = [(file, read_bytes(file)) for file in files[start : start + _BATCH]]
        yield [
            np.stack([load_square(data, p.size, p.crop, limit, file, p.resample, p.squash) for file, data in contents])
            for p in plan.frames()
        ]


def _examples(plan: Plan) -> tuple[Any, ...]:
    import torch

    # Two photos: an exporter takes a batch of one for a constant.
    return tuple(torch.zeros(2, p.size, p.size, 3, dtype=torch.uint8) for p in plan.frames())


def _tolerance(classifier: Classifier) -> float:
    known = [recorded_engine(graph, classifier.run.recipe.engine) for graph in classifier.graphs]
    return TOLERANCE_BF16 if any(k and k.precision == "bf16" for k in known) else TOLERANCE


def _needs(to: str) -> None:
    wanted = {"openvino": ["openvino"], "onnx": ["onnx", "onnxscript"]}[to]
    absent = [name for name in wanted if not _has(name)]
    if absent:
        extra = "pip install openvino" if to == "openvino" else "pip install 'unfreeze[onnx]'"
        raise MissingExtraError(f"--to {to} needs {' and '.join(absent)}: {extra}, or export to the other kind.")


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _bytes(path: Path) -> int:
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" else 0)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
