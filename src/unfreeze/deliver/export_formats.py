"""The formats of `unfreeze export`: how each is written, what it needs, and how its own runtime runs it."""

from __future__ import annotations

import contextlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import EngineError, MissingExtraError, SourceError, StorageError, nearest
from unfreeze.deliver.folded import Plan

if TYPE_CHECKING:
    from torch import nn

About = dict[str, str]
# One uint8 array for each input -> probabilities.
Answer = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]

# Read by ONNX Runtime 1.14 and later and by OpenVINO; later sets bring these networks nothing.
OPSET = 18
# protobuf, which ONNX files are written in, ends at 2 GiB.
_ONNX_BYTES = (2 << 30) - (64 << 20)
# The record of a TorchScript file that holds what an ONNX or OpenVINO file holds as metadata.
RECORD = "unfreeze.json"


@dataclass(frozen=True)
class Format:
    """A kind of file. beside: suffixes of what lies beside it and belongs to it. packages: what writing it imports,
    and `int8` what making it smaller does. write: (network, plan, names of the outputs, metadata, path)."""

    name: str
    suffix: str
    beside: tuple[str, ...]
    packages: tuple[str, ...]
    int8: tuple[str, ...]
    install: str
    write: Callable[[nn.Module, Plan, Sequence[str], About, Path], None]

    def files(self, path: Path) -> list[Path]:
        """All that is written for `path`, itself last."""
        return [*(path.with_suffix(suffix) for suffix in self.beside), path]

    def check(self, int8: bool = False) -> None:
        """Raises MissingExtraError for what is not installed, SourceError where there is no int8 of it."""
        if int8 and not self.int8:
            others = ", ".join(f.name for f in FORMATS.values() if f.int8)
            raise SourceError(f"--int8: is for {others}; {self.name} is written in float32.")
        absent = [name for name in self.packages if not has(name)]
        if absent:
            raise MissingExtraError(f"--to {self.name} needs {' and '.join(absent)}: {self.install}, or another --to.")
        absent = [name for name in self.int8 if int8 and not has(name)]
        if absent:
            raise MissingExtraError(
                f"--int8 needs {' and '.join(absent)}: pip install 'unfreeze[int8]', or leave --int8 out."
            )


def has(package: str) -> bool:
    """Whether it is installed."""
    return find_spec(package) is not None


def find_format(name: str) -> Format:
    """By name. SourceError where there is none."""
    if name not in FORMATS:
        raise SourceError(f"--to {name}: known are {', '.join(FORMATS)}.{nearest(name, FORMATS)}")
    return FORMATS[name]


def versions(form: Format, int8: bool) -> dict[str, str]:
    """The packages that had a part in the file, and ours."""
    from unfreeze import __version__

    found = {"unfreeze": __version__}
    for name in dict.fromkeys(("torch", "timm", *form.packages, "onnxruntime", *(form.int8 if int8 else ()))):
        if name != "onnxruntime" or form.name == "onnx":
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
    return found


def open_exported(path: Path) -> tuple[str, Answer]:
    """The runtime's name, and a function: one uint8 array for each input -> probabilities. EngineError if unreadable.

    An .xml runs in OpenVINO, a .pt in torch; an .onnx in ONNX Runtime where that is installed, else OpenVINO reads it.
    In float32: a processor's faster bfloat16 is the runtime's choice and not the file's.
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
    """The ONNX operator set of a file; None of another format."""
    if path.suffix != ".onnx":
        return None
    import onnx

    return next(int(o.version) for o in onnx.load(path, load_external_data=False).opset_import if not o.domain)


def _write_openvino(network: nn.Module, plan: Plan, outputs: Sequence[str], about: About, path: Path) -> None:
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
    """The .xml and its .bin. StorageError where the disk is full or may not be written."""
    import openvino as ov

    for key, text in about.items():
        model.set_rt_info(text, ["unfreeze", key])
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's own word for a full or forbidden disk
        raise StorageError(f"{path.parent}: the file cannot be written there ({first_line(error)}).") from None


def _write_onnx(network: nn.Module, plan: Plan, outputs: Sequence[str], about: About, path: Path) -> None:
    import logging

    import torch

    held = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    if held > _ONNX_BYTES:
        raise EngineError(
            f"{path.name}: {held / 1e9:.1f} GB of weights are more than an ONNX file holds; export one fold with "
            "--fold K, or to openvino."
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
        node.metadata_props.clear()  # stack traces: this machine's folders are nobody's business
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)


def _write_torchscript(network: nn.Module, plan: Plan, outputs: Sequence[str], about: About, path: Path) -> None:
    import torch

    whole = path.with_name(f"{path.name}.traced")
    with _quiet():
        frozen = torch.jit.freeze(_traced(network, plan))
        frozen.save(str(whole), _extra_files={RECORD: json.dumps(about, ensure_ascii=False)})
    try:
        # Without the records of where in our source each line came from: they name this machine's folders.
        with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as kept:
            for name in given.namelist():
                if not name.endswith(".debug_pkl"):
                    kept.writestr(name, given.read(name))
    finally:
        whole.unlink(missing_ok=True)


def _traced(network: nn.Module, plan: Plan) -> Any:
    import torch

    with _quiet(), torch.inference_mode():
        return torch.jit.trace(network, _examples(plan), check_trace=False)


def _examples(plan: Plan) -> tuple[Any, ...]:
    import torch

    # Two photos: an exporter takes a batch of one for a constant.
    return tuple(torch.zeros(2, p.size, p.size, 3, dtype=torch.uint8) for p in plan.frames())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of shapes that are constants here, and torch of torch.jit's age (see docs/export.md)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: Exception) -> str:
    """Of what a runtime says."""
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
