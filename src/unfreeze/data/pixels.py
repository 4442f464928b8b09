"""Decoded, resized pixels of photos, kept on disk by content, so that later epochs decode nothing.

What is kept is a square a little larger than the network's input: training cuts its random crops from the whole of it,
and its middle `size` x `size` pixels are what `images.load_square` gives the probe, resized once. (Equal for most
photos; Pillow rounds the box it is given, so that over all a value in a hundred differs, nearly always by one level.)
That costs nothing because the stored square has the evaluation view's scale: only its frame is wider, as wide as the
photo's centre square allows, less than a pixel. At 224 px and crop 0.875 the stored side is 256.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore, cache_root, content_key, fingerprint
from unfreeze.core.errors import PhotoError, StorageError
from unfreeze.core.progress import Reporter
from unfreeze.core.work import in_threads
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import MAX_PIXELS, Box, load_square, read_bytes

# A new version number makes every photo be decoded again.
_VERSION = 1
# Written at once: large enough that few files arise, small enough that it is no burden on memory.
_FLUSH_BYTES = 64 << 20


@dataclass(frozen=True)
class Frame:
    """The square that is kept of each photo, for an input of `size` pixels that shows the share `crop`.

    resample, squash: as of `images.square`. Unless squashed, only the photo's centre square is kept.
    face: if not empty, a square of the photo's own is kept, named by what found it (see `Preprocessing.face`).
    gray: its luminance is kept, on three channels.
    """

    size: int
    crop: float
    resample: str = "bicubic"
    squash: bool = False
    face: str = ""
    gray: bool = False

    @property
    def margin(self) -> int:
        """Pixels stored on each side of the evaluation view."""
        return int((self.size / self.crop - self.size) / 2 + 1e-6)

    @property
    def side(self) -> int:
        """Side of the stored square, pixels."""
        return self.size + 2 * self.margin

    @property
    def share(self) -> float:
        """Share of the photo's short side (squashed: of both sides) that the stored square shows."""
        return min(1.0, self.crop * self.side / self.size)

    @property
    def row_bytes(self) -> int:
        """Bytes that a photo takes on disk."""
        return 3 * self.side**2

    @property
    def about(self) -> dict[str, Any]:
        """What names a store of such squares; without `face` and `gray` as it was named before there were these."""
        return {key: value for key, value in asdict(self).items() if key not in ("face", "gray") or value}

    def cut(
        self, data: bytes, max_pixels: int = MAX_PIXELS, path: object = "photo", box: Box | None = None
    ) -> NDArray[np.uint8]:
        """uint8 (side, side, 3) of an image file's bytes. Raises PhotoError as `images.decode` does."""
        # libjpeg is asked for as many pixels as for the evaluation view: side / share = size / crop.
        return load_square(data, self.side, self.share, max_pixels, path, self.resample, self.squash, box, self.gray)


@dataclass(frozen=True)
class StoredPixels:
    """Pixels on disk, read in pieces: one row a photo, in the order of the table they were asked for.

    places: int64 (n, 2), -1 where a photo has none. keys: uint64 (n, 2), content keys.
    failed: index of a photo -> why it has no pixels, although its first look was fine.
    """

    store: RowStore
    places: NDArray[np.int64]
    keys: NDArray[np.uint64]
    frame: Frame
    failed: dict[int, str]

    @property
    def side(self) -> int:
        """Side of the stored squares, pixels."""
        return self.frame.side

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Stored squares of the photos `rows`, uint8 (len(rows), side, side, 3), an array of its own.

        Raises CacheError if they are gone from the disk since, ValueError for a photo that has none.
        """
        return self.store.take(self.places[rows])

    def forget_pages(self) -> None:
        """Gives back the memory of pages read so far; see RowStore."""
        self.store.forget_pages()


def cached_pixels(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    frame: Frame,
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
    squares: NDArray[np.float64] | None = None,
) -> StoredPixels:
    """Pixels of every readable photo; decoded are only those whose content was not seen before.

    files, keys, readable: (n,), from the first look. squares: float64 (n, 4), what to cut from each photo, from
    `FaceBoxes.squares`, if `frame.face` asks for it; a row of NaN is the centre. Interrupted, it keeps what is decoded,
    and the next call goes on from there. A photo that cannot be decoded is told in `failed`. Raises StorageError,
    before a photo is decoded, if the pixels do not fit on the disk, and where writing fails.
    """
    reporter = reporter or Reporter()
    about = {"what": "pixels", **frame.about, "version": _VERSION}
    store = RowStore(
        cache_root() / "pixels" / fingerprint(about),
        np.uint8,
        (frame.side, frame.side, 3),
        {**about, "side": frame.side, "bytes_a_photo": frame.row_bytes},
        reporter,
    )
    lacking = readable & (store.find(keys)[:, 0] < 0)
    # Two photos of one content are decoded once.
    _, first = np.unique(keys[lacking], axis=0, return_index=True)
    todo = np.sort(np.flatnonzero(lacking)[first]).tolist()
    failed: dict[int, str] = {}
    if todo:
        if frame.face and squares is None:
            raise ValueError("a frame around faces needs the squares to cut")
        _announce(store.folder, len(todo) * frame.row_bytes, len(todo), reporter)
        _fill(store, files, keys, todo, frame, failed, max_pixels, reporter, squares if frame.face else None)
    places = store.find(keys)
    for i in np.flatnonzero(readable & (places[:, 0] < 0)):
        failed.setdefault(int(i), "its content changed while it was read")
    return StoredPixels(store, places, keys, frame, failed)


def _announce(folder: Path, needed: int, count: int, reporter: Reporter) -> None:
    """Says what the disk will hold; a disk that is too small is told now, not after an hour of decoding."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder}: pixels of {count:,} photos take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free "
            "some space, choose a smaller image.size, or point UNFREEZE_CACHE to a larger disk."
        )
    reporter.say(f"Pixels of {count:,} photos are kept on disk: {needed / 1e9:.2f} GB in {folder}.")


def _load(
    file: Path, key: NDArray[np.uint64], frame: Frame, max_pixels: int, box: Box | None
) -> NDArray[np.uint8] | str:
    """Pixels, or the reason why there are none: one bad photo must not end a run of thousands."""
    try:
        data = read_bytes(file)
        if content_key(data) != (int(key[0]), int(key[1])):
            return "its content changed while it was read"
        return frame.cut(data, max_pixels, file, box)
    except PhotoError as error:
        return error.reason


def _fill(
    store: RowStore,
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: list[int],
    frame: Frame,
    failed: dict[int, str],
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None,
) -> None:
    """Decodes `todo` in threads into the store, a segment every _FLUSH_BYTES and on interruption."""
    room = np.empty((min(len(todo), max(1, _FLUSH_BYTES // frame.row_bytes)), frame.side, frame.side, 3), np.uint8)
    done: list[int] = []

    def flush() -> None:
        if done:
            store.append(keys[done], room[: len(done)])
        done.clear()

    def loaded() -> Iterator[tuple[int, NDArray[np.uint8] | str]]:
        def load(i: int) -> NDArray[np.uint8] | str:
            return _load(files[i], keys[i], frame, max_pixels, box_of(squares, i))

        return zip(todo, in_threads(load, todo), strict=True)

    with reporter.bar("Decoding photos", len(todo)) as advance:
        try:
            for i, pixels in loaded():
                advance(1)
                if isinstance(pixels, str):
                    failed[i] = pixels
                    continue
                room[len(done)] = pixels
                done.append(i)
                if len(done) == len(room):
                    flush()
        finally:
            flush()
