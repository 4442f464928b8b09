"""Export formats: how each is written, which packages it needs, and how its runtime executes it."""

from __future__ import annotations

import contextlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import EngineError, MissingExtraError, SourceError, StorageError, did_you_mean
from unfreeze.core.messages import option
from unfreeze.core.version import VERSION, versions
from unfreeze.exporters.graph import ExportPlan

if TYPE_CHECKING:
    from torch import nn

About = dict[str, str]
# One uint8 array (N, S, S, 3) per input -> probabilities float32 (N, C).
Answer = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]

# Supported by ONNX Runtime 1.14 and later and by OpenVINO; later opsets have no benefit for these networks.
OPSET = 18
# ONNX files are protobuf messages, which are limited to 2 GiB.
_ONNX_BYTES = (2 << 30) - (64 << 20)
# Extra file in a TorchScript archive with the content that ONNX and OpenVINO files store as metadata.
RECORD = "unfreeze.json"


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        name: Name of the format.
        suffix: Suffix of the model file.
        companions: Suffixes of companion files.
        packages: Packages that writing the format requires.
        int8: Packages that quantization requires; empty if int8 is not supported.
        install: Command that installs `packages`.
        write: Function of (network, plan, output names, metadata, path) that writes the file.
    """

    name: str
    suffix: str
    companions: tuple[str, ...]
    packages: tuple[str, ...]
    int8: tuple[str, ...]
    install: str
    write: Callable[[nn.Module, ExportPlan, Sequence[str], About, Path], None]

    def files(self, path: Path) -> list[Path]:
        """All files written for `path`, `path` itself last."""
        return [*(path.with_suffix(suffix) for suffix in self.companions), path]

    def check(self, int8: bool = False) -> None:
        """Check that the required packages are installed.

        Raises:
            MissingExtraError: A package is missing.
            SourceError: The format does not support int8.
        """
        if int8 and not self.int8:
            others = ", ".join(f.name for f in FORMATS.values() if f.int8)
            raise SourceError(f"{option('int8', True)}: is for {others}; {self.name} is written in float32.")
        absent = [name for name in self.packages if not has(name)]
        if absent:
            raise MissingExtraError(
                f"{option('to', self.name)} needs {' and '.join(absent)}: {self.install}, or another {option('to')}."
            )
        absent = [name for name in self.int8 if int8 and not has(name)]
        if absent:
            raise MissingExtraError(
                f"{option('int8', True)} needs {' and '.join(absent)}: pip install 'unfreeze[int8]', or leave "
                f"{option('int8', True)} out."
            )


def has(package: str) -> bool:
    """Whether a package is installed."""
    return find_spec(package) is not None


def find_format(name: str) -> Format:
    """Look up a format by name.

    Raises:
        SourceError: Unknown format.
    """
    if name not in FORMATS:
        raise SourceError(f"{option('to', name)}: known are {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def package_versions(form: Format, int8: bool) -> dict[str, str]:
    """Versions of unfreeze and of the packages that contributed to the file."""
    names = dict.fromkeys(("torch", "timm", *form.packages, "onnxruntime", *(form.int8 if int8 else ())))
    return {"unfreeze": VERSION, **versions(*(n for n in names if n != "onnxruntime" or form.name == "onnx"))}


def open_exported(path: Path) -> tuple[str, Answer]:
    """Load an exported file in its runtime, in float32.

    OpenVINO runs .xml files, torch runs .pt files, and .onnx files run in ONNX Runtime if it is installed and in
    OpenVINO otherwise. bfloat16 is disabled, since it is a choice of the runtime and not of the file.

    Returns:
        Name of the runtime, and a function from one uint8 array per input to probabilities.

    Raises:
        EngineError: The file cannot be loaded.
    """
    try:
        if path.suffix == ".pt":
            return _open_torchscript(path)
        if path.suffix == ".onnx" and has("onnxruntime"):
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            names = [i.name for i in session.get_inputs()]
            first = session.get_outputs()[0].name
            return (
                f"ONNX Runtime {onnxruntime.__version__}",
                lambda pixels: session.run([first], dict(zip(names, pixels, strict=True)))[0],
            )
        import openvino as ov

        compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return f"OpenVINO {ov.__version__.split('-')[0]}", lambda pixels: compiled(list(pixels))[0]
    except Exception as error:  # the runtimes' errors have no common base
        raise EngineError(f"{path}: cannot be run ({first_line(error)}).") from None


def _open_torchscript(path: Path) -> tuple[str, Answer]:
    import torch

    with _quiet():
        network = torch.jit.load(path, map_location="cpu")

    def answer(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = network(*(torch.from_numpy(p) for p in pixels))
            return np.asarray((found[0] if isinstance(found, tuple) else found).numpy())

    return f"torch {torch.__version__.split('+')[0]} (torch.jit.load)", answer


def opset(path: Path) -> int | None:
    """ONNX opset version of a file; None for other formats."""
    if path.suffix != ".onnx":
        return None
    import onnx

    return next(int(o.version) for o in onnx.load(path, load_external_data=False).opset_import if not o.domain)


def _write_openvino(network: nn.Module, plan: ExportPlan, outputs: Sequence[str], about: About, path: Path) -> None:
    import openvino as ov

    shapes = [(ov.PartialShape([-1, *e.shape[1:]]), ov.Type.u8) for e in _examples(plan)]
    with _quiet():
        model = ov.convert_model(_traced(network, plan), input=shapes)
    for given, name in zip(model.inputs, plan.names, strict=True):
        given.get_tensor().set_names({name})
    for given, name in zip(model.outputs, outputs, strict=True):
        given.get_tensor().set_names({name})
    save_openvino(model, about, path)


def save_openvino(model: Any, about: About, path: Path) -> None:
    """Write an OpenVINO model as .xml and .bin.

    Raises:
        StorageError: The disk is full or not writable.
    """
    import openvino as ov

    for key, text in about.items():
        model.set_rt_info(text, ["unfreeze", key])
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # raised by OpenVINO if the disk is full or not writable
        raise StorageError(f"{path.parent}: the file cannot be written there ({first_line(error)}).") from None


def _write_onnx(network: nn.Module, plan: ExportPlan, outputs: Sequence[str], about: About, path: Path) -> None:
    import logging

    import torch

    held = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    if held > _ONNX_BYTES:
        raise EngineError(
            f"{path.name}: {held / 1e9:.1f} GB of weights are more than an ONNX file holds; export one fold with "
            f"{option('fold', metavar='K')}, or to openvino."
        )
    examples = _examples(plan)
    photos = torch.export.Dim("photos")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    with _quiet(), torch.inference_mode():
        quiet.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                network,
                examples,
                input_names=list(plan.names),
                output_names=list(outputs),
                dynamo=True,
                dynamic_shapes=(tuple({0: photos} for _ in examples),),
                opset_version=OPSET,
                verbose=False,
            )
        finally:
            quiet.setLevel(level)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which contain local paths
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)


def _write_torchscript(network: nn.Module, plan: ExportPlan, outputs: Sequence[str], about: About, path: Path) -> None:
    import torch

    whole = path.with_name(f"{path.name}.traced")
    with _quiet():
        frozen = torch.jit.freeze(_traced(network, plan))
        frozen.save(str(whole), _extra_files={RECORD: json.dumps(about, ensure_ascii=False)})
    try:
        # Drop the debug records, which contain local paths.
        with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as kept:
            for name in given.namelist():
                if not name.endswith(".debug_pkl"):
                    kept.writestr(name, given.read(name))
    finally:
        whole.unlink(missing_ok=True)


def _traced(network: nn.Module, plan: ExportPlan) -> Any:
    import torch

    with _quiet(), torch.inference_mode():
        return torch.jit.trace(network, _examples(plan), check_trace=False)


def _examples(plan: ExportPlan) -> tuple[Any, ...]:
    import torch

    # Batch of two: exporters treat a batch size of one as a constant.
    return tuple(torch.zeros(2, p.size, p.size, 3, dtype=torch.uint8) for p in plan.frames())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress tracer warnings about constant shapes and torch's deprecation of torch.jit (see docs/export.md)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: Exception) -> str:
    """First line of an error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("openvino", ".xml", (".bin",), ("openvino",), ("nncf",), "pip install openvino", _write_openvino),
        Format(
            "onnx", ".onnx", (), ("onnx", "onnxscript"), ("onnxruntime",), "pip install 'unfreeze[onnx]'", _write_onnx
        ),
        Format("torchscript", ".pt", (), ("torch",), (), "pip install torch", _write_torchscript),
    )
}
