"""On-disk cache of decoded and resized pixels, keyed by file content.

Later epochs read pixels from the cache and decode nothing. The cached square is slightly larger than the network
input: training takes random crops from all of it, and its central `size` x `size` pixels are the evaluation view of
`decode.load_crop`, resized once. For most images the two are identical. Pillow rounds the crop box, so overall about 1
in 100 values differs, nearly always by one level. The stored square has the same scale as the evaluation view and
covers the whole center square of the image up to less than a pixel. At 224 pixels and crop 0.875, the stored side is
256.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import ArrayStore, cache_root, content_hash, stable_hash
from unfreeze.core.errors import PhotoError, StorageError
from unfreeze.core.format import pluralize
from unfreeze.core.parallel import map_threads
from unfreeze.core.progress import Reporter
from unfreeze.data.decode import DECODER, MAX_PIXELS, Box, load_crop, read_bytes
from unfreeze.data.face_boxes import crop_of

# Part of the cache key: increment it to invalidate all cached pixels.
_VERSION = 1
# Bytes per segment: large enough for few files, small enough for low memory use.
_FLUSH_BYTES = 64 << 20


@dataclass(frozen=True)
class CropSpec:
    """The square that is cached for each image.

    Attributes:
        size: Input size of the network in pixels.
        crop: Share of the resized short side that the evaluation view shows.
        resample: Resampling filter; see `decode.load_crop`.
        squash: Use both sides, resized without keeping the aspect ratio. Otherwise, only the center square is kept.
        face: If not empty, an image-specific square is kept. The value names its detector; see `Preprocessing.face`.
        gray: Keep the luminance only, repeated over three channels.
    """

    size: int
    crop: float
    resample: str = "bicubic"
    squash: bool = False
    face: str = ""
    gray: bool = False

    @property
    def margin(self) -> int:
        """Stored pixels on each side of the evaluation view."""
        return int((self.size / self.crop - self.size) / 2 + 1e-6)

    @property
    def side(self) -> int:
        """Side of the stored square in pixels."""
        return self.size + 2 * self.margin

    @property
    def share(self) -> float:
        """Share of the short side (if squashed, of both sides) of the image that the stored square shows."""
        return min(1.0, self.crop * self.side / self.size)

    @property
    def row_bytes(self) -> int:
        """Bytes per image on disk."""
        return 3 * self.side**2

    @property
    def about(self) -> dict[str, Any]:
        """Fields of the cache key.

        `face` and `gray` are omitted if unset, so that caches from before these fields existed stay valid.
        """
        return {key: value for key, value in asdict(self).items() if key not in ("face", "gray") or value}

    def cut(
        self, data: bytes, max_pixels: int = MAX_PIXELS, path: object = "photo", box: Box | None = None
    ) -> NDArray[np.uint8]:
        """Decode an image file and cut the stored square.

        Args:
            data: File content.
            max_pixels: Maximum number of pixels of the image.
            path: Path for messages.
            box: Box to cut instead of the center; None for the center.

        Returns:
            Pixels, uint8 (side, side, 3).

        Raises:
            PhotoError: As raised by `decode.decode`.
        """
        # side / share = size / crop, so libjpeg decodes at the same scale as for the evaluation view.
        return load_crop(data, self.side, self.share, max_pixels, path, self.resample, self.squash, box, self.gray)


@dataclass(frozen=True)
class PixelCache:
    """Cached pixels with one row per image, in the order of the requested table.

    Attributes:
        store: The on-disk array store.
        places: Location of each image in the store, int64 (n, 2); -1 if the image has no pixels.
        keys: Content hashes, uint64 (n, 2).
        frame: The stored square.
        failed: Image index -> reason why it has no pixels although `scan_images` could read it.
    """

    store: ArrayStore
    places: NDArray[np.int64]
    keys: NDArray[np.uint64]
    frame: CropSpec
    failed: dict[int, str]

    @property
    def side(self) -> int:
        """Side of the stored squares in pixels."""
        return self.frame.side

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the stored squares of some images.

        Args:
            rows: Image indices, int64 (k,).

        Returns:
            Pixels, uint8 (k, side, side, 3), as a new array.

        Raises:
            CacheError: If the rows are no longer on disk, or are damaged.
            ValueError: If an image has no pixels.
        """
        return self.store.take(self.places[rows])

    def forget_pages(self) -> None:
        """Release the memory of the pages read so far; see `ArrayStore.forget_pages`."""
        self.store.forget_pages()


def cache_pixels(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    frame: CropSpec,
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
    squares: NDArray[np.float64] | None = None,
) -> PixelCache:
    """Cache the pixels of every readable image.

    Only content that is not in the cache yet is decoded. If interrupted, the decoded pixels are kept, and the next call
    continues with the remaining images. An image that cannot be decoded is recorded in `PixelCache.failed`.

    Args:
        files: Image files, n of them.
        keys: Content hashes from `scan_images`, uint64 (n, 2).
        readable: Images that decode, from `scan_images`, bool (n,).
        frame: The square to store.
        max_pixels: Maximum number of pixels of an image.
        reporter: Receives progress.
        squares: Square to cut from each image, float64 (n, 4), from `FaceBoxes.squares`. A row of NaN means the center.
            Required if `frame.face` is set.

    Returns:
        The cache.

    Raises:
        StorageError: If the pixels do not fit on the disk, before anything is decoded, or if writing fails.
        ValueError: If `frame.face` is set and `squares` is None.
    """
    reporter = reporter or Reporter()
    about = {"what": "pixels", **frame.about, "version": _VERSION, "decoder": DECODER}
    store = ArrayStore(
        cache_root() / "pixels" / stable_hash(about),
        np.uint8,
        (frame.side, frame.side, 3),
        {**about, "side": frame.side, "bytes_a_photo": frame.row_bytes},
        reporter,
    )
    lacking = readable & (store.find(keys)[:, 0] < 0)
    # Images with the same content are decoded once.
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
    return PixelCache(store, places, keys, frame, failed)


def _announce(folder: Path, needed: int, count: int, reporter: Reporter) -> None:
    """Report the disk usage, and raise `StorageError` before decoding if there is not enough space."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder}: pixels of {pluralize(count, 'photo')} take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free; free some space, choose a smaller image.size, or point UNFREEZE_CACHE to a larger disk."
        )
    reporter.say(f"Pixels of {pluralize(count, 'photo')} are kept on disk: {needed / 1e9:.2f} GB in {folder}.")


def _load(
    file: Path, key: NDArray[np.uint64], frame: CropSpec, max_pixels: int, box: Box | None
) -> NDArray[np.uint8] | str:
    """Pixels of an image, or the reason of the failure, so that a single bad image does not end a run."""
    try:
        data = read_bytes(file)
        if content_hash(data) != (int(key[0]), int(key[1])):
            return "its content changed while it was read"
        return frame.cut(data, max_pixels, file, box)
    except PhotoError as error:
        return error.reason


def _fill(
    store: ArrayStore,
    files: list[Path],
    keys: NDArray[np.uint64],
    todo: list[int],
    frame: CropSpec,
    failed: dict[int, str],
    max_pixels: int,
    reporter: Reporter,
    squares: NDArray[np.float64] | None,
) -> None:
    """Decode the images `todo` in threads and append them to the store.

    A segment is written every `_FLUSH_BYTES`, at the end, and on interruption.
    """
    room = np.empty((min(len(todo), max(1, _FLUSH_BYTES // frame.row_bytes)), frame.side, frame.side, 3), np.uint8)
    done: list[int] = []

    def flush() -> None:
        if done:
            store.append(keys[done], room[: len(done)])
        done.clear()

    def loaded() -> Iterator[tuple[int, NDArray[np.uint8] | str]]:
        def load(i: int) -> NDArray[np.uint8] | str:
            return _load(files[i], keys[i], frame, max_pixels, crop_of(squares, i))

        return zip(todo, map_threads(load, todo), strict=True)

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
