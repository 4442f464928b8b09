"""Face boxes, detected once per image and cached by content, and square crops around faces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import ArrayStore, cache_root, content_hash, stable_hash
from unfreeze.core.errors import PhotoError
from unfreeze.core.parallel import map_threads
from unfreeze.core.progress import Reporter
from unfreeze.data.decode import DECODER, MAX_PIXELS, Box, Pixels, decode_sized, read_bytes
from unfreeze.data.face_detectors import Detector, find_detector, resize_long_side

# Changing the version invalidates all cached detections.
_VERSION = 1
# Maximum number of faces stored per image, the largest first. Further faces are only counted.
MOST = 16
_DTYPE = np.dtype(
    [
        ("width", "<u4"),
        ("height", "<u4"),
        ("count", "<u2"),
        ("boxes", "<f4", (MOST, 4)),
        ("scores", "<f4", (MOST,)),
    ]
)


_CHUNK, _FLUSH = 64, 1024


_Small = tuple[Pixels, tuple[int, int]]


@dataclass(frozen=True)
class FaceBoxes:
    """Detected faces, one entry per image in the requested order.

    Attributes:
        searched: bool (n,), False if the image could not be read.
        count: Number of detected faces, int64 (n,).
        boxes: float64 (n, MOST, 4), left, top, right, bottom as fractions of the width and height of the upright image,
            largest face first, padded with NaN.
        scores: Scores in 0..1, float64 (n, MOST), padded with NaN.
        width: Full width of the upright image, int64 (n,); 0 if not searched.
        height: Full height of the upright image, int64 (n,); 0 if not searched.
    """

    searched: NDArray[np.bool_]
    count: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]

    @property
    def largest(self) -> NDArray[np.float64]:
        """Box of the largest face of each image, float64 (n, 4); NaN for images without a face."""
        return self.boxes[:, 0]

    def squares(self, margin: float) -> NDArray[np.float64]:
        """Compute a square crop around the largest face of each image.

        The square is centered on the face. It is limited to the short side of the image and shifted to lie within the
        image, so that no padding is needed.

        Args:
            margin: Margin on each side, as a fraction of the longer side of the face.

        Returns:
            float64 (n, 4): left, top, right, bottom as fractions of the width and height of the image; NaN for images
            without a face.
        """
        left, top, right, bottom = self.largest.T * np.stack([self.width, self.height, self.width, self.height])
        side = np.maximum(right - left, bottom - top) * (1 + 2 * margin)
        side = np.minimum(side, np.minimum(self.width, self.height))
        x = np.clip((left + right - side) / 2, 0, self.width - side)
        y = np.clip((top + bottom - side) / 2, 0, self.height - side)
        with np.errstate(divide="ignore", invalid="ignore"):  # images that were not searched have size 0
            found = np.stack([x / self.width, y / self.height, (x + side) / self.width, (y + side) / self.height], 1)
        found[self.count == 0] = np.nan
        return found


def crop_of(squares: NDArray[np.float64] | None, row: int) -> Box | None:
    """Return the box of one image for `decode.load_crop`.

    Args:
        squares: Result of `FaceBoxes.squares`, float64 (n, 4), or None.
        row: Index of the image.

    Returns:
        The box; None (center crop) if there is no face.
    """
    if squares is None or np.isnan(squares[row, 0]):
        return None
    left, top, right, bottom = squares[row].tolist()
    return left, top, right, bottom


def detect_faces_cached(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    detector: str = "retinaface",
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
) -> FaceBoxes:
    """Detect the faces of all readable images, using cached results for known content.

    Results are written regularly and on interruption, so the next call continues from there. Images that cannot be
    decoded are skipped.

    Args:
        files: Path of each image, (n,).
        keys: Content hash of each image from its scan, uint64 (n, 2).
        readable: Whether each image can be decoded, bool (n,).
        detector: A name in `DETECTORS` or the path of an .onnx file.
        max_pixels: Images with more pixels are not decoded.
        reporter: Receives progress and messages.

    Returns:
        The faces of each image.

    Raises:
        DetectorError: The detector is unknown or cannot be loaded.
        MissingExtraError: The detector must be loaded, and its package is not installed.
    """
    reporter = reporter or Reporter()
    known = find_detector(detector)
    about = {"what": f"faces by {known.identity}", "max_pixels": max_pixels, "version": _VERSION, "decoder": DECODER}
    store = ArrayStore(cache_root() / "faces" / stable_hash(about), _DTYPE, about=about, reporter=reporter)
    lacking = readable & (store.find(keys)[:, 0] < 0)
    # Images with identical content are searched once.
    _, first = np.unique(keys[lacking], axis=0, return_index=True)
    todo = np.sort(np.flatnonzero(lacking)[first]).tolist()
    if todo:
        _fill(store, files, keys, todo, known.open(), max_pixels, reporter)
    return _collected(store, keys, readable)


def _collected(store: ArrayStore, keys: NDArray[np.uint64], readable: NDArray[np.bool_]) -> FaceBoxes:
    places = store.find(keys)
    searched = readable & (places[:, 0] >= 0)
    rows = np.zeros(len(keys), _DTYPE)
    rows[searched] = store.take(places[searched])
    count = rows["count"].astype(np.int64)
    absent = np.arange(MOST) >= count[:, None]
    boxes, scores = rows["boxes"].astype(np.float64), rows["scores"].astype(np.float64)
    boxes[absent], scores[absent] = np.nan, np.nan
    return FaceBoxes(searched, count, boxes, scores, rows["width"].astype(np.int64), rows["height"].astype(np.int64))


def _fill(
    store: ArrayStore,
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: list[int],
    detector: Detector,
    max_pixels: int,
    reporter: Reporter,
) -> None:
    """Detect the faces of the images in `todo`; threads decode ahead of the detector.

    Results are written every `_FLUSH` images and on interruption.
    """
    done: list[int] = []
    rows: list[NDArray[np.void]] = []

    def flush() -> None:
        if done:
            store.append(keys[done], np.concatenate(rows))
        done.clear()
        rows.clear()

    def chunks(advance: Any) -> Iterator[list[tuple[int, _Small]]]:
        waiting: list[tuple[int, _Small]] = []
        loaded = map_threads(lambda i: _load(files[i], keys[i], detector.side, max_pixels), todo, ahead=2 * _CHUNK)
        for i, small in zip(todo, loaded, strict=True):
            if small is None:
                advance(1)
                continue
            waiting.append((i, small))
            if len(waiting) == _CHUNK:
                yield waiting
                waiting = []
        yield waiting

    with reporter.bar("Detecting faces", len(todo)) as advance:
        try:
            for chunk in chunks(advance):
                for (i, small), (boxes, scores) in zip(
                    chunk, detector.find([pixels for _, (pixels, _) in chunk]), strict=True
                ):
                    rows.append(_row(small, boxes, scores))
                    done.append(i)
                advance(len(chunk))
                if len(done) >= _FLUSH:
                    flush()
        finally:
            flush()


def _load(file: Path, key: NDArray[np.uint64], side: int, max_pixels: int) -> _Small | None:
    """Load an image resized for the detector, and its full width and height.

    Returns None if the file can no longer be read or its content has changed.
    """
    try:
        data = read_bytes(file)
        if content_hash(data) != (int(key[0]), int(key[1])):
            return None
        pixels, size = decode_sized(data, side, max_pixels, file)
    except PhotoError:
        return None
    return resize_long_side(pixels, side), size


def _row(small: _Small, boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.void]:
    """Row of the cache, shape (1,): boxes as fractions of the image, largest face first."""
    (height, width), size = small[0].shape[:2], small[1]
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")[:MOST]
    row = np.zeros(1, _DTYPE)
    row["width"], row["height"] = size
    row["count"] = min(len(boxes), np.iinfo(np.uint16).max)
    row["boxes"][0, : len(order)] = boxes[order] / np.array([width, height, width, height])
    row["scores"][0, : len(order)] = scores[order]
    return row
