"""Where the faces of each photo are, found once for each content and kept on disk; and the squares cut round them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore, cache_root, content_key, fingerprint
from unfreeze.core.errors import PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.work import in_threads
from unfreeze.data.detectors import Detector, find_detector, shrunk
from unfreeze.data.images import MAX_PIXELS, Box, Pixels, decode_sized, read_bytes

# A new version number makes every photo be searched again.
_VERSION = 1
# Faces of a photo that are kept, the largest first; of a crowd only their number is known beyond it.
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
    """Faces of photos, one entry a photo in the order asked for.

    searched: bool (n,), False where a photo could not be read. count: int64 (n,), faces found.
    boxes: float64 (n, MOST, 4), left, top, right, bottom as shares of the upright photo's width and height, the largest
    first, NaN beyond the last. scores: float64 (n, MOST), in 0..1. width, height: int64 (n,), of the whole photo.
    """

    searched: NDArray[np.bool_]
    count: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]

    @property
    def largest(self) -> NDArray[np.float64]:
        """float64 (n, 4): the largest face of each photo, NaN where none was found."""
        return self.boxes[:, 0]

    def squares(self, margin: float) -> NDArray[np.float64]:
        """float64 (n, 4): the square to cut from each photo, as shares of its width and height; NaN without a face.

        It is centred on the largest face, and `margin` of the face's longer side is added on each side. It is moved
        where it would leave the photo, and no larger than the photo's short side: nothing is ever made up around it.
        """
        left, top, right, bottom = self.largest.T * np.stack([self.width, self.height, self.width, self.height])
        side = np.maximum(right - left, bottom - top) * (1 + 2 * margin)
        side = np.minimum(side, np.minimum(self.width, self.height))
        x = np.clip((left + right - side) / 2, 0, self.width - side)
        y = np.clip((top + bottom - side) / 2, 0, self.height - side)
        with np.errstate(divide="ignore", invalid="ignore"):  # of a photo that could not be read nothing is known
            found = np.stack([x / self.width, y / self.height, (x + side) / self.width, (y + side) / self.height], 1)
        found[self.count == 0] = np.nan
        return found


def box_of(squares: NDArray[np.float64] | None, row: int) -> Box | None:
    """One photo's square as `images.load_square` takes it; None: the centre."""
    if squares is None or np.isnan(squares[row, 0]):
        return None
    left, top, right, bottom = squares[row].tolist()
    return left, top, right, bottom


def cached_boxes(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    detector: str = "retinaface",
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
) -> FaceBoxes:
    """Faces of every readable photo; searched are only those whose content was not seen before by this detector.

    files, keys, readable: (n,), from the first look. detector: a name of DETECTORS or an .onnx file. Interrupted, it
    keeps what is found, and the next call goes on from there. A photo that cannot be decoded is passed over.
    Raises DetectorError for an unknown detector, and MissingExtraError where its package is needed and absent.
    """
    reporter = reporter or Reporter()
    known = find_detector(detector)
    about = {"what": f"faces by {known.identity}", "max_pixels": max_pixels, "version": _VERSION}
    store = RowStore(cache_root() / "faces" / fingerprint(about), _DTYPE, about=about, reporter=reporter)
    lacking = readable & (store.find(keys)[:, 0] < 0)
    # Two photos of one content are searched once.
    _, first = np.unique(keys[lacking], axis=0, return_index=True)
    todo = np.sort(np.flatnonzero(lacking)[first]).tolist()
    if todo:
        _fill(store, files, keys, todo, known.open(), max_pixels, reporter)
    return _collected(store, keys, readable)


def _collected(store: RowStore, keys: NDArray[np.uint64], readable: NDArray[np.bool_]) -> FaceBoxes:
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
    store: RowStore,
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: list[int],
    detector: Detector,
    max_pixels: int,
    reporter: Reporter,
) -> None:
    """Threads decode while the detector searches; written every _FLUSH photos and on interruption."""
    done: list[int] = []
    rows: list[NDArray[np.void]] = []

    def flush() -> None:
        if done:
            store.append(keys[done], np.concatenate(rows))
        done.clear()
        rows.clear()

    def chunks(advance: Any) -> Iterator[list[tuple[int, _Small]]]:
        waiting: list[tuple[int, _Small]] = []
        loaded = in_threads(lambda i: _load(files[i], keys[i], detector.side, max_pixels), todo, ahead=2 * _CHUNK)
        for i, small in zip(todo, loaded, strict=True):
            if small is None:
                advance(1)
                continue
            waiting.append((i, small))
            if len(waiting) == _CHUNK:
                yield waiting
                waiting = []
        yield waiting

    with reporter.bar("Looking for faces", len(todo)) as advance:
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
    """The photo shrunk for the detector, and its full width and height; None where it cannot be read any more."""
    try:
        data = read_bytes(file)
        if content_key(data) != (int(key[0]), int(key[1])):
            return None
        pixels, size = decode_sized(data, side, max_pixels, file)
    except PhotoError:
        return None
    return shrunk(pixels, side), size


def _row(small: _Small, boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.void]:
    """A store's row: faces in shares of the photo, the largest first."""
    (height, width), size = small[0].shape[:2], small[1]
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")[:MOST]
    row = np.zeros(1, _DTYPE)
    row["width"], row["height"] = size
    row["count"] = min(len(boxes), np.iinfo(np.uint16).max)
    row["boxes"][0, : len(order)] = boxes[order] / np.array([width, height, width, height])
    row["scores"][0, : len(order)] = scores[order]
    return row
