"""How a frozen network runs fastest on this machine: OpenVINO or torch, chosen by measurement, parity checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import cache_root, fingerprint
from unfreeze.core.errors import EngineError
from unfreeze.core.files import refuse_full, storage_errors, write_json
from unfreeze.core.progress import Reporter
from unfreeze.model.backbones import Preprocessing
from unfreeze.model.graphs import Graph

if TYPE_CHECKING:
    from torch import nn

BATCH = 4
# An engine is used if every photo's features point within this cosine of eager float32's.
PARITY = 0.999
_FORMAT = 2
# Bytes of a converted network beside its weights, at most.
_ROOM = 1 << 20
Batch = NDArray[np.uint8]
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """A compiled graph. `blocks`: name and width of each block.

    run: uint8 batches (n, size, size, 3), n at most BATCH, to float32 features (n, D), in order.
    name: 'openvino-f32', 'openvino-bf16' or 'torch'. precision: 'f32' or 'bf16': engines of one precision
    share cached features.
    """

    name: str
    precision: str
    blocks: tuple[tuple[str, int], ...]
    run: Callable[[Iterable[Batch]], Iterator[Features]]


def open_engine(graph: Graph, sample: Batch, wish: str = "auto", reporter: Reporter | None = None) -> Engine:
    """The fastest engine for this graph whose parity holds on `sample`.

    sample: uint8 (n, size, size, 3), the user's first photos. wish: 'auto' or an engine's name.
    The first time a graph is met on this machine it is converted, each engine is timed and held against
    eager float32 torch on `sample`, and the choice is kept in the cache. Later a float32 engine is
    trusted as it was checked; bfloat16 is held against OpenVINO's float32 on each new sample.
    Raises EngineError if the wished engine cannot run here or fails its parity.
    """
    reporter = reporter or Reporter()
    if wish == "torch" or (wish == "auto" and (_has_gpu() or not _has_openvino())):
        return _torch_engine(graph)
    if not _has_openvino():
        raise EngineError(
            f"engine = '{wish}': openvino is not installed; pip install openvino, or use --set engine=torch."
        )
    folder = _folder(graph)
    record = _read_record(folder)
    if record is None:
        record = _convert(graph, folder, sample, reporter)
    choice = record["choice"] if wish == "auto" else wish
    if wish != "auto" and wish not in record["parity"]:
        raise EngineError(
            f"engine = '{wish}': this processor does not offer it; here are {', '.join(record['parity'])}, torch."
        )
    if wish != "auto" and record["parity"][wish] < PARITY:
        raise EngineError(
            f"engine = '{wish}': cosine {record['parity'][wish]:.4f} to float32 is under {PARITY}; use engine=auto."
        )
    blocks = _blocks(record)
    if not _intact(folder, record):
        reporter.say(f"Cache: {folder.name} (a converted network) is damaged; it is made again.")
        shutil.rmtree(folder, ignore_errors=True)
        return open_engine(graph, sample, wish, reporter)
    engine = _openvino_engine(folder, choice, blocks)
    if engine.precision != "f32":
        exact = _openvino_engine(folder, "openvino-f32", blocks)
        cosine = parity(_outputs(engine, sample), _outputs(exact, sample))
        if cosine < PARITY:
            reporter.say(
                f"Engine: {choice} differs from float32 on these photos (cosine {cosine:.4f}); float32 is used."
            )
            return exact
    return engine


@dataclass(frozen=True)
class Recorded:
    """What an earlier measurement settled for a graph."""

    precision: str
    blocks: tuple[tuple[str, int], ...]


def recorded_engine(graph: Graph, wish: str = "auto") -> Recorded | None:
    """What `open_engine` would use, if it was measured before; loads no network and imports no engine."""
    record = _read_record(_folder(graph))
    if record is None:
        return None
    name = str(record["choice"] if wish == "auto" else wish)
    return Recorded("bf16" if name.endswith("bf16") else "f32", _blocks(record))


def parity(features: Features, reference: Features) -> float:
    """The lowest cosine between the features of one photo and its reference; both (n, D)."""
    # In float64: features of an untrained network can be so small that their squares vanish.
    ours, theirs = features.astype(np.float64), reference.astype(np.float64)
    norm = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / np.maximum(norm, 1e-30)).min())


def _convert(graph: Graph, folder: Path, sample: Batch, reporter: Reporter) -> dict[str, Any]:
    """Converts, measures and writes the graph's folder whole; returns its record."""
    started = time.perf_counter()
    reporter.say(f"Engine: converting {graph.title()} for this machine, once.")
    import openvino as ov
    import torch

    module = graph.module()
    size = graph.preprocessing.size
    example = torch.zeros(BATCH, 3, size, size)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of shapes that are constants here
        traced = torch.jit.trace(module, example, check_trace=False)
        converted = ov.convert_model(traced, input=[ov.PartialShape([BATCH, 3, size, size])])
    model = _with_preprocessing(converted, graph.preprocessing)
    blocks = graph.blocks()
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    with storage_errors(folder):
        temporary.mkdir(parents=True)
        try:
            # OpenVINO does not say that the disk is full, and may cut the file off without a word.
            refuse_full(temporary, sum(t.numel() * t.element_size() for t in module.state_dict().values()) + _ROOM)
            ov.save_model(model, temporary / "model.xml", compress_to_fp16=False)
            refuse_full(temporary)
            reference = _outputs(_torch_engine(graph, module, blocks), sample)
            record = {**_measure(temporary, blocks, sample, reference), "files": _marks(temporary)}
            write_json(temporary / "engine.json", record)
            write_json(temporary / "about.json", {"what": "a converted network", **graph.key()})
            record = _put(temporary, folder, record)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    speeds = ", ".join(
        f"{name} {speed:,.0f}/s, cosine {record['parity'][name]:.4f}" for name, speed in record["speed"].items()
    )
    seconds = time.perf_counter() - started
    reporter.say(f"Engine: {record['choice']}, measured once on this machine in {seconds:.1f} s ({speeds}).")
    return record


def _put(temporary: Path, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Renames into place; where another run was faster, its folder serves as well, with its own record."""
    try:
        temporary.replace(folder)
    except OSError:
        theirs = _read_record(folder)
        if theirs is None:
            raise
        return theirs
    return record


def _measure(folder: Path, blocks: tuple[tuple[str, int], ...], sample: Batch, reference: Features) -> dict[str, Any]:
    import openvino as ov

    names = ["openvino-f32"]
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        names.append("openvino-bf16")
    speed, cosine = {}, {}
    for name in names:
        engine = _openvino_engine(folder, name, blocks)
        cosine[name] = parity(_outputs(engine, sample), reference)
        started = time.perf_counter()
        _outputs(engine, np.resize(sample, (16 * BATCH, *sample.shape[1:])))
        speed[name] = 16 * BATCH / (time.perf_counter() - started)
    right = [name for name in names if cosine[name] >= PARITY]
    if not right:
        raise EngineError(f"no OpenVINO engine agrees with float32 torch here ({cosine}); use --set engine=torch.")
    return {
        "format": _FORMAT,
        "choice": max(right, key=lambda name: speed[name]),
        "speed": speed,
        "parity": cosine,
        "blocks": blocks,
        "machine": machine(),
    }


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The folder's record, or None where it must be made: absent, damaged, or of another machine."""
    try:
        record = json.loads((folder / "engine.json").read_text("utf-8"))
        usable = (
            record["machine"] == machine()
            and record["choice"] in record["parity"]
            and bool(_blocks(record))
            and all((folder / name).stat().st_size == size for name, (size, _) in record["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return dict(record)


def _marks(folder: Path) -> dict[str, list[Any]]:
    """Size and hash of the model's files."""
    return {name: _mark(folder / name) for name in ("model.xml", "model.bin")}


def _mark(file: Path) -> list[Any]:
    with file.open("rb") as opened:
        return [file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()]


def _intact(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the model's bytes are those that were measured: a flipped one would spoil features without a word."""
    with contextlib.suppress(OSError):
        return bool(_marks(folder) == record["files"])
    return False


def _folder(graph: Graph) -> Path:
    return cache_root() / "engines" / fingerprint({**graph.key(), "format": _FORMAT, "made_by": _versions()})


def _blocks(record: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple((str(name), int(width)) for name, width in record["blocks"])


def _openvino_engine(folder: Path, name: str, blocks: tuple[tuple[str, int], ...]) -> Engine:
    import openvino as ov

    precision = name.removeprefix("openvino-")
    config = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(folder / "model.xml", "CPU", config)
    jobs = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    requests = [compiled.create_infer_request() for _ in range(jobs + 1)]

    def run(batches: Iterable[Batch]) -> Iterator[Features]:
        free = deque(requests)
        busy: deque[tuple[Any, int, Batch]] = deque()  # the batch is kept: its memory is shared, not copied
        try:
            for batch in batches:
                if not free:
                    yield _finish(busy, free)
                request, n = free.popleft(), len(batch)
                if n < BATCH:
                    batch = np.concatenate([batch, np.zeros((BATCH - n, *batch.shape[1:]), np.uint8)])
                batch = np.ascontiguousarray(batch)
                request.start_async([batch], share_inputs=True)
                busy.append((request, n, batch))
            while busy:
                yield _finish(busy, free)
        finally:  # left early: nothing may go on reading pixels that are about to be freed
            for request, _, _ in busy:
                request.wait()

    return Engine(name, precision, blocks, run)


def _finish(busy: deque[tuple[Any, int, Batch]], free: deque[Any]) -> Features:
    request, n, _ = busy.popleft()
    request.wait()
    free.append(request)
    return np.array(request.get_output_tensor(0).data[:n], np.float32)


def _with_preprocessing(model: Any, preprocessing: Preprocessing) -> Any:
    """Takes uint8 NHWC pixels: normalising inside the graph costs no copy in Python."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    image = steps.input(0)
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout("NCHW"))
    mean, std = ([255 * v for v in values] for values in (preprocessing.mean, preprocessing.std))
    image.preprocess().convert_element_type(ov.Type.f32).mean(mean).scale(std)
    return steps.build()


def _torch_engine(graph: Graph, module: nn.Module | None = None, blocks: tuple[tuple[str, int], ...] = ()) -> Engine:
    import torch

    from unfreeze.model.eager import eager_run

    # A module that is given is the reference of a conversion, which runs on the processor.
    device = "cuda" if torch.cuda.is_available() and module is None else "cpu"
    module = module or graph.module()
    blocks = blocks or graph.blocks()
    return Engine("torch", "f32", blocks, eager_run(module, graph.preprocessing, device))


def _outputs(engine: Engine, pixels: Batch) -> Features:
    return np.concatenate(list(engine.run(pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))))


def machine() -> str:
    """The processor's name: what an engine's measured speed holds for."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in ("openvino", "torch", "timm"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _has_openvino() -> bool:
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def _has_gpu() -> bool:
    """Whether CUDA works; torch is imported only where a driver is, for it takes seconds."""
    if not (Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists() or platform.system() == "Windows"):
        return False
    import torch

    return torch.cuda.is_available()
