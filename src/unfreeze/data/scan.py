"""Scan of every image: content hash, size, perceptual hash, statistics and decoding errors.

`scan_images` decodes each image once and caches the result by content hash. `image_stats` computes statistics that
need no network: brightness, contrast, sharpness, colorfulness, border color and file properties. `ImageScan` holds the
results and derives duplicates from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from unfreeze.core.cache import ArrayStore, cache_root, content_hash
from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import PhotoError
from unfreeze.core.parallel import map_threads
from unfreeze.core.progress import Reporter
from unfreeze.data.crop_duplicates import find_cropped_duplicates
from unfreeze.data.decode import DECODER, MAX_PIXELS, NO_MEMORY, DecodedImage, Pixels, decode_image, read_bytes
from unfreeze.data.duplicates import Pairs, components, exact_duplicates, near_duplicates
from unfreeze.data.image_formats import HEIC_REMEDY
from unfreeze.data.look_alikes import LookAlikes, screened

# Images are resized to this short side (smaller ones are not) so that sharpness is comparable between them.
SIDE = 128
# Border width as a fraction of the short side.
_BORDER = 1 / 16
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

DTYPE = np.dtype(
    [
        ("bytes", "<u8"),
        ("format", "S8"),
        ("mode", "S8"),
        ("orientation", "u1"),
        ("brightness", "<f4"),
        ("contrast", "<f4"),
        ("sharpness", "<f4"),
        ("colourfulness", "<f4"),
        ("border", "u1", 3),
        ("border_spread", "<f4"),
        ("levels", "<u2"),
        ("range", "<f8", 2),
    ]
)


@dataclass(frozen=True)
class ImageStat:
    """Metadata of an image statistic.

    Attributes:
        name: Field name.
        title: Title for reports.
        unit: Unit or definition, for axis labels.
        logarithmic: Whether values are compared by their logarithm, because ratios matter.
        low: Adjective for small values.
        high: Adjective for large values.
    """

    name: str
    title: str
    unit: str
    logarithmic: bool
    low: str
    high: str


# Statistics with distributions, outliers and plots; `size` is sqrt(width * height).
MEASURES: dict[str, ImageStat] = {
    m.name: m
    for m in (
        ImageStat("size", "Size", "pixels, root of width x height", True, "small", "large"),
        ImageStat("aspect", "Aspect", "width / height", True, "tall", "wide"),
        ImageStat("brightness", "Brightness", "mean luma, 0-255", False, "dark", "bright"),
        ImageStat("contrast", "Contrast", "deviation of luma, 0-128", False, "flat", "contrasty"),
        ImageStat("sharpness", "Sharpness", "variance of the Laplacian", True, "blurred", "sharp"),
        ImageStat("colourfulness", "Colourfulness", "Hasler and Suesstrunk's M3", False, "pale", "colourful"),
        ImageStat("bytes", "File size", "bytes", True, "small as a file", "large as a file"),
    )
}


def image_stats(decoded: DecodedImage, image: Image.Image, size: int) -> NDArray[np.void]:
    """Compute the statistics of one image.

    The fields of `DTYPE` are:

    - brightness, contrast: mean and standard deviation of luma (ITU-R BT.601).
    - sharpness: variance of the 4-neighbor Laplacian of luma at a short side of `SIDE` (Pech-Pacheco et al. 2000).
    - colourfulness: metric M3 of Hasler and Suesstrunk (2003).
    - border: mean color of a frame with a width of 1/16 of the short side.
    - border_spread: standard deviation of the frame, about 0 for a uniform one.
    - levels: number of distinct values of the green channel, 1 to 256.
    - range: values that map to 0 and 255 for files with more than 8 bits per channel; otherwise zeros.
    - bytes, format, mode, orientation: properties of the file.

    Args:
        decoded: The decoded image.
        image: The same image resized by `resize_short_side`.
        size: File size in bytes.

    Returns:
        One row of `DTYPE`, shape (1,).

    References:
        Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR 2000.
        Hasler and Suesstrunk, "Measuring colorfulness in natural images", SPIE 2003.
    """
    row = np.zeros(1, DTYPE)
    row["bytes"] = size
    row["format"], row["mode"] = decoded.format.encode()[:8], decoded.mode.encode()
    row["orientation"] = decoded.orientation
    row["levels"] = np.count_nonzero(np.bincount(decoded.pixels[..., 1].ravel(), minlength=256))
    row["range"] = decoded.value_range or (0.0, 0.0)
    small = np.asarray(image, np.float32)
    luma = small @ _LUMA
    row["brightness"], row["contrast"] = luma.mean(), luma.std()
    row["sharpness"] = _laplacian(luma)
    row["colourfulness"] = _colourfulness(small)
    frame = _frame(small)
    row["border"] = np.rint(frame.mean(0))
    row["border_spread"] = frame.std(0).mean()
    return row


def resize_short_side(pixels: Pixels) -> Image.Image:
    """Resize an image to a short side of `SIDE` with antialiasing; smaller images are returned unchanged."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    if short <= SIDE:
        return image
    size = (max(1, round(image.width * SIDE / short)), max(1, round(image.height * SIDE / short)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _laplacian(luma: NDArray[np.float32]) -> float:
    if min(luma.shape) < 3:
        return 0.0
    middle = luma[1:-1, 1:-1]
    edges = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(edges.var())


def _colourfulness(pixels: NDArray[np.float32]) -> float:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def _frame(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels of the border, float32 (n, 3)."""
    wide = max(1, round(min(pixels.shape[:2]) * _BORDER))
    sides = (pixels[:wide], pixels[-wide:], pixels[wide:-wide, :wide], pixels[wide:-wide, -wide:])
    return np.concatenate([side.reshape(-1, 3) for side in sides])


# Part of the cache key: increment it to invalidate all cached scans.
_VERSION = 4
HASH_WORDS = 4
THUMB = 8
GREY = 32
_DTYPE = np.dtype(
    [
        ("dhash", "<u8", HASH_WORDS),
        ("thumb", "u1", (THUMB, THUMB, 3)),
        ("grey", "u1", (GREY, GREY)),
        ("measures", DTYPE),
        ("width", "<u4"),
        ("height", "<u4"),
        ("problem", "S120"),
    ]
)
_FLUSH = 4096


@dataclass(frozen=True)
class ImageScan:
    """Scan results with one entry per image, in the order of the table.

    Attributes:
        keys: Content hashes, uint64 (n, 2); zeros if the file could not be read.
        dhash: 256-bit difference hashes, uint64 (n, 4).
        thumb: Thumbnails, uint8 (n, 8, 8, 3).
        grey: Luma of the whole image resized to a square, uint8 (n, 32, 32).
        measures: Image statistics, `DTYPE` (n,); zeros if the image cannot be decoded.
        width: Width after EXIF orientation, uint32 (n,).
        height: Height after EXIF orientation, uint32 (n,).
        problem: Reason why the image cannot be decoded; empty if it can.
        labels: Class index of each image, int64 (n,), to separate copies from look-alikes; None if unknown.
    """

    keys: NDArray[np.uint64]
    dhash: NDArray[np.uint64]
    thumb: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    measures: NDArray[np.void]
    width: NDArray[np.uint32]
    height: NDArray[np.uint32]
    problem: list[str]
    labels: NDArray[np.int64] | None = None

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Images that can be decoded, bool (n,)."""
        return np.array([not p for p in self.problem], bool)

    def hashes(self) -> list[str]:
        """Content hashes as 32 hexadecimal digits; empty for unreadable files."""
        return [f"{a:016x}{b:016x}" if a or b else "" for a, b in self.keys.tolist()]

    def concat(self, other: ImageScan) -> ImageScan:
        """Concatenate with another scan; labels are dropped."""
        joined = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("keys", "dhash", "thumb", "grey", "measures", "width", "height")
        }
        return ImageScan(**joined, problem=[*self.problem, *other.problem])

    def with_labels(self, labels: Iterable[str]) -> ImageScan:
        """Return a copy with the class of each image.

        Args:
            labels: Class names, n of them.

        Returns:
            The scan with `labels` as class indices.
        """
        _, number = np.unique(np.array(list(labels), str), return_inverse=True)
        return replace(self, labels=number.astype(np.int64))

    @property
    def duplicates(self) -> tuple[Pairs, Pairs]:
        """Pairs of exact and of near duplicates, int64 (m, 2) each. Near duplicates exclude exact ones."""
        return self.copies.exact, self.copies.near

    @cached_property
    def copies(self) -> Copies:
        """Exact duplicates, near duplicates, and the look-alikes that were rejected as near duplicates."""
        exact = exact_duplicates(self.keys, self.readable)
        # One representative per set of copies is enough: a hundred copies would give 4,950 pairs.
        again = np.zeros(len(self.keys), bool)
        again[exact[:, 1]] = True
        usable = self.readable & ~again
        near = near_duplicates(self.dhash, self.thumb, usable)
        kind = components(len(self.keys), exact, near)
        first = np.zeros(len(kind), bool)
        first[np.unique(kind, return_index=True)[1]] = True
        near = np.unique(
            np.concatenate([near, find_cropped_duplicates(self.grey, self.thumb, self.readable & first)]), axis=0
        )
        near, look_alikes = screened(near, self.dhash, self.thumb, self.grey, usable, self.labels)
        same_bytes = (self.keys[near[:, 0]] == self.keys[near[:, 1]]).all(1)
        return Copies(exact, near[~same_bytes], tuple(look_alikes))


@dataclass(frozen=True)
class Copies:
    """Duplicates of a data set.

    Attributes:
        exact: Pairs with identical bytes, int64 (m, 2): each copy with the first image of its set.
        near: Pairs of the same image up to encoding, size, crop or brightness, int64 (m, 2), without exact duplicates.
        look_alikes: Groups of similar images from which pairs were rejected.
    """

    exact: Pairs
    near: Pairs
    look_alikes: tuple[LookAlikes, ...]


def scan_images(photos: ImageDataset, max_pixels: int = MAX_PIXELS, reporter: Reporter | None = None) -> ImageScan:
    """Scan all images; results are cached by content hash.

    Never raises because of an image: a missing, damaged or truncated file, or a decompression bomb, gets an entry in
    `ImageScan.problem`.

    Args:
        photos: The dataset.
        max_pixels: Maximum number of pixels of an image.
        reporter: Receives progress.

    Returns:
        The scan.
    """
    reporter = reporter or Reporter()
    store = ArrayStore(
        cache_root() / "looks" / f"v{_VERSION}.{DECODER}-{max_pixels}",
        _DTYPE,
        about={"what": "hashes, sizes and measures of photos", "max_pixels": max_pixels},
        reporter=reporter,
    )

    files, n = photos.files(), len(photos)
    rows, keys = np.zeros(n, _DTYPE), np.zeros((n, 2), np.uint64)
    with reporter.bar("Reading photos", n) as advance:
        for i, key in enumerate(map_threads(_key, files)):
            if isinstance(key, str):
                rows[i]["problem"] = _short(key)
            else:
                keys[i] = key
            advance(1)
    # One batched lookup: a lookup per image would cost as much as hashing it.
    places = store.find(keys)
    known = places[:, 0] >= 0
    known_rows = np.flatnonzero(known)
    for start in range(0, len(known_rows), _FLUSH):  # in batches: a row takes 1.4 KB
        some = known_rows[start : start + _FLUSH]
        rows[some] = store.take(places[some])
        store.forget_pages()
    new = np.flatnonzero(~known & keys.any(1))
    # Files with the same content are decoded once.
    _, first, kind = np.unique(keys[new], axis=0, return_index=True, return_inverse=True)
    todo = new[np.sort(first)].tolist()
    before = keys[new]
    fresh: list[int] = []
    with reporter.bar("Scanning images", len(todo)) as advance:
        looked = map_threads(lambda i: _look_at(files[i], max_pixels), todo)
        for i, (key, row) in zip(todo, looked, strict=True):
            keys[i], rows[i] = key, row[0]
            # Not cached: failures that depend on this machine (memory, optional dependencies), and unreadable files,
            # which have no key.
            if keys[i].any() and not _passing(bytes(row["problem"][0])):
                fresh.append(i)
            if len(fresh) >= _FLUSH:
                store.append(keys[fresh], rows[fresh])
                fresh = []
            advance(1)
    store.append(keys[fresh], rows[fresh])
    copied_from = new[first[kind.ravel()]]
    same = (keys[copied_from] == before).all(1)  # the first file may have changed since it was hashed
    rows[new[same]] = rows[copied_from[same]]
    for i in new[~same & (new != copied_from)].tolist():
        keys[i], row = _look_at(files[i], max_pixels)
        rows[i] = row[0]
    problems = [bytes(p).decode("utf-8", "replace") for p in rows["problem"]]
    return ImageScan(
        keys, rows["dhash"], rows["thumb"], rows["grey"], rows["measures"], rows["width"], rows["height"], problems
    )


def _key(path: Path) -> tuple[int, int] | str:
    """Content hash of a file, or the reason why it cannot be read."""
    try:
        return content_hash(read_bytes(path))
    except PhotoError as error:
        return error.reason


def _look_at(path: Path, max_pixels: int) -> tuple[tuple[int, int], NDArray[np.void]]:
    """Content hash and scan row of the current file content."""
    try:
        data = read_bytes(path)
    except PhotoError as error:  # removed or changed after hashing
        row = np.zeros(1, _DTYPE)
        row["problem"] = _short(error.reason)
        return (0, 0), row
    return content_hash(data), _row(data, max_pixels)


def _passing(problem: bytes) -> bool:
    """Whether the failure is temporary, so that the same file may be readable later."""
    return problem == NO_MEMORY.encode() or problem.endswith(HEIC_REMEDY.encode())


def _short(reason: str) -> bytes:
    return reason.encode("utf-8", "backslashreplace")[:120]


def add_scan_columns(photos: ImageDataset, looks: ImageScan) -> ImageDataset:
    """Add the columns `hash`, `width` and `height`, and a finding for each unreadable image.

    Args:
        photos: The dataset.
        looks: Scan of the same images.

    Returns:
        The extended dataset.
    """
    table: pd.DataFrame = photos.table.assign(hash=looks.hashes(), width=looks.width, height=looks.height)
    findings = [
        Finding("unreadable", "warning", problem, "repair or remove the file; it is left out of training", path)
        for path, problem in zip(table["path"], looks.problem, strict=True)
        if problem
    ]
    return photos.with_table(table, *findings)


def _row(data: bytes, max_pixels: int) -> NDArray[np.void]:
    row = np.zeros(1, _DTYPE)
    try:
        # Large JPEGs are decoded at reduced scale, which still reads all bytes, so damage is detected.
        decoded = decode_image(data, SIDE, max_pixels)
    except PhotoError as error:
        row["problem"] = _short(error.reason)
        return row
    row["width"], row["height"] = decoded.size
    # Two sizes of an image get the same hash only if both are resized with an antialiasing filter, not a box filter.
    image = resize_short_side(decoded.pixels)
    luma = image.convert("L")
    grey = np.asarray(luma.resize((17, 16), Image.Resampling.BILINEAR), np.int16)
    bits = np.packbits((grey[:, 1:] > grey[:, :-1] + 1).ravel())
    row["dhash"] = bits.view("<u8")
    row["grey"] = np.asarray(luma.resize((GREY, GREY), Image.Resampling.BILINEAR))
    row["thumb"] = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BILINEAR))
    row["measures"] = image_stats(decoded, image, len(data))
    return row
