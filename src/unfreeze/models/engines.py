"""Inference engines for frozen backbones: OpenVINO in float32 or bfloat16, and eager torch.

Eager float32 torch is the reference for every converted graph, and the engine on a GPU. On a CPU, OpenVINO is used if
it is installed. The precision is selected once per graph and processor: bfloat16 if the processor supports it and the
features of fixed reference images agree with those of eager float32. Neither timings nor the user's images influence
the choice, so an image has the same features in every data set, in training and in prediction.

Converted graphs are stored in the cache, in ``engines/<key>``, together with a record of the choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import shutil
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import cache_root, stable_hash
from unfreeze.core.errors import EngineError
from unfreeze.core.files import read_record, require_free_space, translate_os_errors, write_json
from unfreeze.core.messages import setting
from unfreeze.core.progress import Reporter
from unfreeze.core.version import versions
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.model_info import Preprocessing

if TYPE_CHECKING:
    from torch import nn


BATCH = 4
# Minimum cosine similarity between the features of every reference image and those of eager float32.
PARITY = 0.999
_FORMAT = 3
# Number of reference images, half of them with a flat background: rounding errors are largest in flat areas.
_REFERENCES = 16
# Upper bound on the size of a converted graph without its weights, in bytes.
_ROOM = 1 << 20
Batch = NDArray[np.uint8]
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """A compiled graph.

    Attributes:
        name: 'openvino-f32', 'openvino-bf16' or 'torch'.
        precision: 'f32' or 'bf16' for OpenVINO, 'torch' for eager float32. Part of the feature cache key, because the
            results of two engines differ by rounding.
        blocks: Name and width of each feature block, in column order.
        run: Maps an iterable of uint8 batches (n, S, S, 3), n <= BATCH, to float32 features (n, D), in order.
    """

    name: str
    precision: str
    blocks: tuple[tuple[str, int], ...]
    run: Callable[[Iterable[Batch]], Iterator[Features]]


def open_engine(graph: FeatureExtractor, wish: str = "auto", reporter: Reporter | None = None) -> Engine:
    """Open the inference engine for a graph.

    The first time a graph is used on a machine, it is converted, each available precision is compared with eager
    float32 torch on the reference images, and the choice is stored in the cache.

    Args:
        graph: Feature extractor to run.
        wish: 'auto' or the name of an engine.
        reporter: Receives progress messages about the conversion.

    Returns:
        The compiled engine.

    Raises:
        EngineError: If the requested engine is not available here, or if its features differ too much from float32.
    """
    reporter = reporter or Reporter()
    if _runs_torch(wish):
        return _torch_engine(graph)
    if not _has_openvino():
        raise EngineError(
            f"engine = '{wish}': openvino is not installed; pip install openvino, or use {setting('engine', 'torch')}."
        )
    folder = _folder(graph)
    record = _read_record(folder)
    if record is None:
        record = _convert(graph, folder, reporter)
    choice = record["choice"] if wish == "auto" else wish
    if wish != "auto" and wish not in record["parity"]:
        raise EngineError(
            f"engine = '{wish}': not supported by this processor; available: {', '.join(record['parity'])}, torch."
        )
    if wish != "auto" and record["parity"][wish] < PARITY:
        raise EngineError(
            f"engine = '{wish}': cosine {record['parity'][wish]:.4f} to float32 is under {PARITY}; use engine=auto."
        )
    if not _intact(folder, record):
        reporter.say(f"Cache: {folder.name} (a converted network) is damaged; rebuilding it.")
        shutil.rmtree(folder, ignore_errors=True)
        return open_engine(graph, wish, reporter)
    return _openvino_engine(folder, choice, _blocks(record))


@dataclass(frozen=True)
class EngineRecord:
    """Result of an earlier engine selection for a graph.

    Attributes:
        precision: As in `Engine`.
        blocks: As in `Engine`.
    """

    precision: str
    blocks: tuple[tuple[str, int], ...]


def recorded_engine(graph: FeatureExtractor, wish: str = "auto") -> EngineRecord | None:
    """Look up the engine that `open_engine` would use, without loading a network or importing OpenVINO.

    Returns:
        None if the graph has not been converted on this machine.
    """
    if _runs_torch(wish):
        return EngineRecord("torch", graph.blocks())
    record = _read_record(_folder(graph))
    if record is None:
        return None
    name = str(record["choice"] if wish == "auto" else wish)
    return EngineRecord("bf16" if name.endswith("bf16") else "f32", _blocks(record))


def parity(features: Features, reference: Features) -> float:
    """Minimum over images of the cosine similarity between features and reference features.

    Args:
        features: float32 (n, D).
        reference: float32 (n, D).
    """
    # In float64: the squares of an untrained network's features may underflow in float32.
    ours, theirs = features.astype(np.float64), reference.astype(np.float64)
    norm = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / np.maximum(norm, 1e-30)).min())


def _convert(graph: FeatureExtractor, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Convert the graph, compare the precisions, write the cache folder atomically and return its record."""
    started = time.perf_counter()
    reporter.say(f"Engine: converting {graph.title()} for this machine.")
    import openvino as ov
    import torch

    module = graph.module()
    size = graph.preprocessing.size
    example = torch.zeros(BATCH, 3, size, size)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns about shapes that become constants, as intended
        traced = torch.jit.trace(module, example, check_trace=False)
        converted = ov.convert_model(traced, input=[ov.PartialShape([BATCH, 3, size, size])])
    model = _with_preprocessing(converted, graph.preprocessing)
    blocks = graph.blocks()
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    with translate_os_errors(folder):
        temporary.mkdir(parents=True)
        try:
            # OpenVINO does not report a full disk and may silently truncate the file.
            require_free_space(
                temporary, sum(t.numel() * t.element_size() for t in module.state_dict().values()) + _ROOM
            )
            ov.save_model(model, temporary / "model.xml", compress_to_fp16=False)
            require_free_space(temporary)
            images = reference_images(size)
            reference = _outputs(_torch_engine(graph, module, blocks), images)
            record = {**_compare(temporary, blocks, images, reference), "files": _marks(temporary)}
            write_json(temporary / "engine.json", record)
            write_json(temporary / "about.json", {"what": "a converted network", **graph.key()})
            record = _put(temporary, folder, record)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    cosines = ", ".join(f"{name} {cosine:.4f}" for name, cosine in record["parity"].items())
    seconds = time.perf_counter() - started
    reporter.say(f"Engine: {record['choice']}, ready in {seconds:.1f} s (cosine to float32 in torch: {cosines}).")
    return record


def _put(temporary: Path, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Rename the folder into place. If a concurrent run has already done so, use its folder and record."""
    try:
        temporary.replace(folder)
    except OSError:
        theirs = _read_record(folder)
        if theirs is None:
            raise
        return theirs
    return record


def _compare(folder: Path, blocks: tuple[tuple[str, int], ...], images: Batch, reference: Features) -> dict[str, Any]:
    """Record of a converted graph: parity of each precision with the reference, and the choice.

    Args:
        folder: Folder with the converted graph.
        blocks: Name and width of each feature block.
        images: Reference images, uint8 (n, S, S, 3).
        reference: Eager float32 features of the images, (n, D).

    Raises:
        EngineError: If no precision reaches PARITY.
    """
    import openvino as ov

    names = ["openvino-f32"]
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        names.append("openvino-bf16")
    cosine = {name: parity(_outputs(_openvino_engine(folder, name, blocks), images), reference) for name in names}
    right = [name for name in names if cosine[name] >= PARITY]
    if not right:
        raise EngineError(
            f"no OpenVINO engine agrees with float32 torch here ({cosine}); use {setting('engine', 'torch')}."
        )
    return {
        "format": _FORMAT,
        "choice": right[-1],  # bfloat16 is faster wherever the processor supports it: benchmarks/precision.py
        "parity": cosine,
        "blocks": blocks,
        "machine": cpu_name(),
        "features": _features_of_processor(),
    }


def reference_images(size: int) -> Batch:
    """Fixed reference images for the choice of the precision.

    The first half shows small random patterns on flat backgrounds from black to white; the others are filled with
    patterns of 9 x 9 flat cells.

    Args:
        size: Side of the images in pixels.

    Returns:
        uint8 (_REFERENCES, size, size, 3), always the same for a size.
    """
    draw, cell = np.random.default_rng(0), -(-size // 9)
    coarse = draw.integers(0, 256, (_REFERENCES, 9, 9, 3), np.uint8)
    images = np.repeat(np.repeat(coarse, cell, 1), cell, 2)[:, :size, :size]
    for number, gray in enumerate(np.linspace(0, 255, _REFERENCES // 2).astype(np.uint8)):
        shown = images[number].copy()
        images[number] = gray
        middle = slice(size // 4, size - size // 4)
        images[number, middle, middle] = shown[middle, middle]
    return np.ascontiguousarray(images)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record of a cache folder. Delete the folder and return None if it is unusable.

    A record is unusable if it is absent or damaged, or if it was made on another processor.
    """

    def usable(record: dict[str, Any]) -> dict[str, Any] | None:
        whole = (
            record["machine"] == cpu_name()
            and record["features"] == _features_of_processor()
            and record["choice"] in record["parity"]
            and bool(_blocks(record))
            and all((folder / name).stat().st_size == size for name, (size, _) in record["files"].items())
        )
        return dict(record) if whole else None

    record = read_record(folder / "engine.json", usable)
    if record is None:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def _marks(folder: Path) -> dict[str, list[Any]]:
    """Size in bytes and sha256 of each file of the converted graph."""
    return {name: _mark(folder / name) for name in ("model.xml", "model.bin")}


def _mark(file: Path) -> list[Any]:
    with file.open("rb") as opened:
        return [file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()]


def _intact(folder: Path, record: dict[str, Any]) -> bool:
    """Check the files against the recorded sizes and hashes: a corrupted weight would silently change features."""
    with contextlib.suppress(OSError):
        return bool(_marks(folder) == record["files"])
    return False


def _folder(graph: FeatureExtractor) -> Path:
    made_by = versions("openvino", "torch", "timm")
    return cache_root() / "engines" / stable_hash({**graph.key(), "format": _FORMAT, "made_by": made_by})


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
        busy: deque[tuple[Any, int, Batch]] = deque()  # keeps the batch alive: its memory is shared, not copied
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
        finally:  # also on early exit: pending requests still read the memory of their batches
            for request, _, _ in busy:
                request.wait()

    return Engine(name, precision, blocks, run)


def _finish(busy: deque[tuple[Any, int, Batch]], free: deque[Any]) -> Features:
    request, n, _ = busy.popleft()
    request.wait()
    free.append(request)
    return np.array(request.get_output_tensor(0).data[:n], np.float32)


def _with_preprocessing(model: Any, preprocessing: Preprocessing) -> Any:
    """Change the input to uint8 NHWC pixels: normalization inside the graph needs no copy in Python."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    image = steps.input(0)
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout("NCHW"))
    mean, std = ([255 * v for v in values] for values in (preprocessing.mean, preprocessing.std))
    image.preprocess().convert_element_type(ov.Type.f32).mean(mean).scale(std)
    return steps.build()


def _torch_engine(
    graph: FeatureExtractor, module: nn.Module | None = None, blocks: tuple[tuple[str, int], ...] = ()
) -> Engine:
    import torch

    # A module is passed only as the reference of a conversion, which runs on the CPU.
    device = "cuda" if torch.cuda.is_available() and module is None else "cpu"
    module = module or graph.module()
    blocks = blocks or graph.blocks()
    from unfreeze.models.eager import run_eager

    return Engine("torch", "torch", blocks, run_eager(module, graph.preprocessing, device, BATCH))


def _outputs(engine: Engine, pixels: Batch) -> Features:
    return np.concatenate(list(engine.run(pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))))


def _features_of_processor() -> str:
    """Hash of the CPU feature flags, which virtual machines may mask; empty if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return stable_hash(sorted(line.partition(":")[2].split()))
    return ""


def cpu_name() -> str:
    """Model name of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _runs_torch(wish: str) -> bool:
    return wish == "torch" or (wish == "auto" and (_has_gpu() or not _has_openvino()))


def _has_openvino() -> bool:
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def _has_gpu() -> bool:
    """Check whether CUDA works. Imports torch, which takes seconds, only if a driver may be present."""
    if not (Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists() or platform.system() == "Windows"):
        return False
    import torch

    return torch.cuda.is_available()
