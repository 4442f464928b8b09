"""A first look at every photo: its content hash, size, perceptual hash, measures, and whether it can be read at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from unfreeze.core.cache import RowStore, cache_root, content_key
from unfreeze.core.errors import PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.tables import Finding, Photos
from unfreeze.core.work import in_threads
from unfreeze.data import measures
from unfreeze.data.aligned import aligned_duplicates
from unfreeze.data.duplicates import Pairs, exact_duplicates, joined_groups, near_duplicates
from unfreeze.data.images import MAX_PIXELS, NO_MEMORY, decode_sized, read_bytes

# A new version number makes every photo be looked at again.
_VERSION = 3
HASH_WORDS = 4
THUMB = 8
GREY = 32
_DTYPE = np.dtype(
    [
        ("dhash", "<u8", HASH_WORDS),
        ("thumb", "u1", (THUMB, THUMB, 3)),
        ("grey", "u1", (GREY, GREY)),
        ("measures", measures.DTYPE),
        ("width", "<u4"),
        ("height", "<u4"),
        ("problem", "S120"),
    ]
)
_FLUSH = 4096


@dataclass(frozen=True)
class Looks:
    """What the first look saw, one entry a photo in the table's order.

    keys: uint64 (n, 2), content hash; zeros where the file could not even be read.
    dhash: uint64 (n, 4), 256-bit difference hash. thumb: uint8 (n, 8, 8, 3). grey: uint8 (n, 32, 32), luma of
    the whole photo pressed into a square. measures: measures.DTYPE (n,), zeros where it does not decode.
    width, height: uint32 (n,), of the upright photo. problem: text, empty if it decodes.
    """

    keys: NDArray[np.uint64]
    dhash: NDArray[np.uint64]
    thumb: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    measures: NDArray[np.void]
    width: NDArray[np.uint32]
    height: NDArray[np.uint32]
    problem: list[str]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """bool (n,): photos that decode."""
        return np.array([not p for p in self.problem], bool)

    def hashes(self) -> list[str]:
        """The content hash as 32 hex digits, or empty text."""
        return [f"{a:016x}{b:016x}" if a or b else "" for a, b in self.keys.tolist()]

    def beside(self, other: Looks) -> Looks:
        """Both, the other's photos after these."""
        joined = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("keys", "dhash", "thumb", "grey", "measures", "width", "height")
        }
        return Looks(**joined, problem=[*self.problem, *other.problem])

    @cached_property
    def duplicates(self) -> tuple[Pairs, Pairs]:
        """Pairs of exact and of near duplicates, int64 (m, 2) each; near ones without the exact."""
        exact = exact_duplicates(self.keys, self.readable)
        # One of each kind is enough to find what looks like all of them: a hundred copies would be 4,950 pairs.
        again = np.zeros(len(self.keys), bool)
        again[exact[:, 1]] = True
        near = near_duplicates(self.dhash, self.thumb, self.readable & ~again)
        kind = joined_groups(np.arange(len(self.keys)), exact, near)
        first = np.zeros(len(kind), bool)
        first[np.unique(kind, return_index=True)[1]] = True
        near = np.unique(
            np.concatenate([near, aligned_duplicates(self.grey, self.thumb, self.readable & first)]), axis=0
        )
        same_bytes = (self.keys[near[:, 0]] == self.keys[near[:, 1]]).all(1)
        return exact, near[~same_bytes]


def look(photos: Photos, max_pixels: int = MAX_PIXELS, reporter: Reporter | None = None) -> Looks:
    """Looks at every photo once; what a photo's bytes once told is kept in the cache.

    Never raises for a photo: one that is missing, damaged, cut off or a bomb has a `problem`.
    """
    reporter = reporter or Reporter()
    store = RowStore(
        cache_root() / "looks" / f"v{_VERSION}-{max_pixels}",
        _DTYPE,
        about={"what": "hashes, sizes and measures of photos", "max_pixels": max_pixels},
        reporter=reporter,
    )

    files, n = photos.files(), len(photos)
    rows, keys = np.zeros(n, _DTYPE), np.zeros((n, 2), np.uint64)
    with reporter.bar("Reading photos", n) as advance:
        for i, key in enumerate(in_threads(_key, files)):
            if isinstance(key, str):
                rows[i]["problem"] = _short(key)
            else:
                keys[i] = key
            advance(1)
    # One search for all: a search for each photo costs as much as hashing it.
    places = store.find(keys)
    known = places[:, 0] >= 0
    known_rows = np.flatnonzero(known)
    for start in range(0, len(known_rows), _FLUSH):  # in pieces: a look takes 1.4 KB
        some = known_rows[start : start + _FLUSH]
        rows[some] = store.take(places[some])
        store.forget_pages()
    new = np.flatnonzero(~known & keys.any(1))
    # Copies of one content are decoded once.
    _, first, kind = np.unique(keys[new], axis=0, return_index=True, return_inverse=True)
    todo = new[np.sort(first)].tolist()
    before = keys[new]
    fresh: list[int] = []
    with reporter.bar("Looking at photos", len(todo)) as advance:
        looked = in_threads(lambda i: _look_at(files[i], max_pixels), todo)
        for i, (key, row) in zip(todo, looked, strict=True):
            keys[i], rows[i] = key, row[0]
            # Want of memory is the machine's trouble of today, not the photo's, and what cannot be read has no key.
            if keys[i].any() and row["problem"][0] != NO_MEMORY.encode():
                fresh.append(i)
            if len(fresh) >= _FLUSH:
                store.append(keys[fresh], rows[fresh])
                fresh = []
            advance(1)
    store.append(keys[fresh], rows[fresh])
    told = new[first[kind.ravel()]]
    same = (keys[told] == before).all(1)  # where the first one's content is still the one that its copies have
    rows[new[same]] = rows[told[same]]
    for i in new[~same & (new != told)].tolist():
        keys[i], row = _look_at(files[i], max_pixels)
        rows[i] = row[0]
    problems = [bytes(p).decode("utf-8", "replace") for p in rows["problem"]]
    return Looks(
        keys, rows["dhash"], rows["thumb"], rows["grey"], rows["measures"], rows["width"], rows["height"], problems
    )


def _key(path: Path) -> tuple[int, int] | str:
    """The content key, or why there is none."""
    try:
        return content_key(read_bytes(path))
    except PhotoError as error:
        return error.reason


def _look_at(path: Path, max_pixels: int) -> tuple[tuple[int, int], NDArray[np.void]]:
    """Content key and row of what the file holds now."""
    try:
        data = read_bytes(path)
    except PhotoError as error:  # it was there a moment ago
        row = np.zeros(1, _DTYPE)
        row["problem"] = _short(error.reason)
        return (0, 0), row
    return content_key(data), _row(data, max_pixels)


def _short(reason: str) -> bytes:
    return reason.encode("utf-8", "backslashreplace")[:120]


def with_looks(photos: Photos, looks: Looks) -> Photos:
    """The table with `hash`, `width` and `height`, and a finding for each photo that cannot be read."""
    table: pd.DataFrame = photos.table.assign(hash=looks.hashes(), width=looks.width, height=looks.height)
    findings = [
        Finding("unreadable", "warning", problem, "mend or remove the file; it is left out of training", path)
        for path, problem in zip(table["path"], looks.problem, strict=True)
        if problem
    ]
    return photos.with_table(table, *findings)


def _row(data: bytes, max_pixels: int) -> NDArray[np.void]:
    row = np.zeros(1, _DTYPE)
    try:
        # A large JPEG is read at an eighth of its size here, which still walks all its bytes: damage shows.
        pixels, (row["width"], row["height"]) = decode_sized(data, measures.SIDE, max_pixels)
    except PhotoError as error:
        row["problem"] = _short(error.reason)
        return row
    # One photo of two sizes has one hash only if both are shrunk by a filter that does not alias: no box.
    image = measures.shrunk(pixels)
    luma = image.convert("L")
    grey = np.asarray(luma.resize((17, 16), Image.Resampling.BILINEAR), np.int16)
    bits = np.packbits((grey[:, 1:] > grey[:, :-1] + 1).ravel())
    row["dhash"] = bits.view("<u8")
    row["grey"] = np.asarray(luma.resize((GREY, GREY), Image.Resampling.BILINEAR))
    row["thumb"] = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BILINEAR))
    row["measures"] = measures.measure(data, image)
    return row
