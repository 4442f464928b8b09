"""Rows on disk by content: a photo's hash gives its row, whatever the photo is called today.

A store is a folder of segments. A segment is two .npy files, rows first and keys last, each written whole:
the keys are the commit mark. Segments are only ever added, so that runs can share a store
without locks; a row written twice is harmless.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import CacheError
from unfreeze.core.files import storage_errors, write_json, write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.shared_cache import shared_folder

Keys = NDArray[np.uint64]
# Segments kept mapped at once: each mapping holds a file descriptor, of which a process has about 1,000.
_OPEN = 64


def cache_root() -> Path:
    """The cache folder: $UNFREEZE_CACHE, else $XDG_CACHE_HOME/unfreeze, else ~/.cache/unfreeze."""
    if own := os.environ.get("UNFREEZE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfreeze"


def fingerprint(value: Any) -> str:
    """A short hex name for anything that JSON can write; equal values give equal names."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=10).hexdigest()


def content_key(data: bytes) -> tuple[int, int]:
    """128 bits of BLAKE2b of a file's bytes, as two integers below 2**64."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


_LOADING = threading.Lock()


def load_array(path: Path, mapped: bool = False) -> NDArray[Any]:
    """The array in a .npy file, never unpickled; mapped: read-only, from the disk as it is used.

    One at a time: numpy reads the header with Python's own parser, which in CPython 3.11 keeps its state in one place
    for all threads and at times fails where two use it ("AST constructor recursion depth mismatch"). Raises what
    `numpy.load` raises.
    """
    with _LOADING:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


KINDS = ("looks", "features", "engines", "rotations", "cards", "pixels", "activations", "plans", "faces", "trials")


@dataclass(frozen=True)
class _Index:
    """Where rows are: `keys` (n, 2) sorted by their first word, which is `first`; `where` (n, 2) segment and row.

    Never changed, so that threads may search while another adds a segment.
    """

    first: Keys
    keys: Keys
    where: NDArray[np.int64]

    @classmethod
    def of(cls, keys: Sequence[Keys], where: Sequence[NDArray[np.int64]]) -> _Index:
        """One index of several parts."""
        merged, places = np.concatenate(keys), np.concatenate(where)
        order = np.argsort(merged[:, 0], kind="stable")
        return cls(np.ascontiguousarray(merged[order, 0]), merged[order], places[order])


def forget_pages(mapped: NDArray[Any]) -> None:
    """Lets the kernel drop the pages read so far of an array that lies in a file; they come back when read again."""
    held = getattr(mapped, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


class RowStore:
    """Rows of one dtype and shape, found by content key.

    folder: made if absent. dtype, shape: of one row. about: kept in about.json for `unfreeze cache`.
    Raises StorageError if the folder cannot be made. A damaged segment is dropped and said; what it
    held is computed again.
    """

    def __init__(
        self,
        folder: Path,
        dtype: np.dtype[Any] | type,
        shape: tuple[int, ...] = (),
        about: dict[str, Any] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.folder, self.dtype, self.shape = folder, np.dtype(dtype), shape
        self.reporter = reporter or Reporter()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if about and not (folder / "about.json").exists():
            write_json(folder / "about.json", about)
        self._segments: list[str] = []
        self._seen: set[str] = set()
        self._open: dict[int, NDArray[Any]] = {}
        self._lock = threading.Lock()
        self._shared = shared_folder(folder, cache_root())
        # Each at least twice as long as the next, so that n rows in many segments are sorted n log n times in all.
        self._indices: tuple[_Index, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Takes in the segments that this or another process has written since, here or to the shared cache."""
        there = self._shared.fetch(self.folder, self._seen) if self._shared else set()
        keys: list[Keys] = []
        where: list[NDArray[np.int64]] = []
        for key_file in sorted(self.folder.glob("*.keys.npy")):
            name = key_file.name.removesuffix(".keys.npy")
            if name in self._seen:
                continue
            self._seen.add(name)
            try:
                found = self._checked(key_file, name)
            except Exception as error:  # damaged .npy files raise nearly anything
                self.reporter.say(f"Cache: {key_file} is unreadable ({error}); its rows are made again.")
                if not isinstance(error, OSError) or error.errno == errno.ENOENT:
                    self._drop(name)  # damaged; where the system only refuses it now, it may be whole
                continue
            keys.append(found)
            where.append(self._placed(name, len(found)))
        if keys:
            self._add(_Index.of(keys, where))
        if self._shared:  # what was made before there was a shared cache, or while it could not be reached
            for name in self._segments:
                if name not in there:
                    self._shared.send(self.folder, name)

    def _placed(self, name: str, rows: int) -> NDArray[np.int64]:
        """The places of a segment's rows, which from now on is one of this store's."""
        self._segments.append(name)
        return np.stack([np.full(rows, len(self._segments) - 1), np.arange(rows)], 1)

    def _add(self, index: _Index) -> None:
        indices = [*self._indices, index]
        while len(indices) > 1 and len(indices[-2].first) < 2 * len(indices[-1].first):
            last, before = indices.pop(), indices.pop()
            indices.append(_Index.of([before.keys, last.keys], [before.where, last.where]))
        self._indices = tuple(indices)

    def _checked(self, key_file: Path, name: str) -> Keys:
        """A segment's keys, once its rows are known to be as many and of our kind."""
        keys = load_array(key_file)
        rows = self._mapped(name)
        if keys.dtype != np.uint64 or keys.shape != (len(rows), 2):
            raise ValueError("its keys do not fit its rows")
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape:
            raise ValueError("its rows are not what their folder says")
        return keys

    def _drop(self, name: str) -> None:
        for part in ("keys", "rows"):
            with contextlib.suppress(OSError):
                (self.folder / f"{name}.{part}.npy").unlink(missing_ok=True)

    def _mapped(self, name: str) -> NDArray[Any]:
        return load_array(self.folder / f"{name}.rows.npy", mapped=True)

    def _rows(self, segment: int) -> NDArray[Any]:
        with self._lock:
            rows = self._open.pop(segment, None)
            if rows is None:
                try:
                    rows = self._mapped(self._segments[segment])
                except (OSError, ValueError) as error:
                    raise CacheError(
                        f"{self.folder}: rows that were there are gone ({error}); was the cache cleared meanwhile? "
                        "Run the same command again."
                    ) from None
            self._open[segment] = rows  # last: the first one is the one not asked for longest
            if len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
            return rows

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Place of each key as (n, 2) segment and row; -1 where it is not stored. keys: uint64 (n, 2)."""
        places = np.full((len(keys), 2), -1, np.int64)
        if len(keys):
            for index in self._indices:
                if len(index.first):
                    at = np.minimum(np.searchsorted(index.first, keys[:, 0]), len(index.first) - 1)
                    hit = (index.keys[at] == keys).all(1) & (places[:, 0] < 0)
                    places[hit] = index.where[at[hit]]
        return places

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The rows at `places` (from `find`, none of them -1), in that order, as an array of their own.

        Raises CacheError if the rows are gone from the disk since they were found.
        """
        out = np.empty((len(places), *self.shape), self.dtype)
        for segment in np.unique(places[:, 0]).tolist():
            if segment < 0:
                raise ValueError("take: a place of -1 is no row; ask only for rows that were found")
            here = places[:, 0] == segment
            out[here] = self._rows(segment)[places[here, 1]]
        return out

    def forget_pages(self) -> None:
        """Lets the kernel drop the pages read so far, so that resident memory does not grow with the store."""
        with self._lock:
            for rows in self._open.values():
                forget_pages(rows)

    def append(self, keys: Sequence[tuple[int, int]] | Keys, rows: NDArray[Any]) -> None:
        """Writes a segment, here and to the shared cache. Raises StorageError where the disk is full or the other place
        cannot be reached; what was there stays usable."""
        if not len(keys):
            return
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        table = np.asarray(keys, np.uint64).reshape(-1, 2)
        if rows.shape != (len(table), *self.shape):
            raise CacheError(f"{self.folder}: rows of shape {rows.shape} do not fit {(len(table), *self.shape)}.")
        write_whole(self.folder / f"{name}.rows.npy", lambda p: np.save(p, rows.astype(self.dtype, copy=False)))
        write_whole(self.folder / f"{name}.keys.npy", lambda p: np.save(p, table))
        # What others have written is taken in by `refresh`: looking for it after each segment would cost squares.
        self._seen.add(name)
        self._add(_Index.of([table], [self._placed(name, len(table))]))
        if self._shared:
            self._shared.send(self.folder, name)


def cache_table() -> list[dict[str, Any]]:
    """What the cache holds: one dict a store with `kind`, `name`, `about`, `rows`, `bytes`, `folder`."""
    table = []
    for about_file in sorted(cache_root().glob("*/*/about.json")):
        folder = about_file.parent
        try:
            about = json.loads(about_file.read_text("utf-8"))
        except (OSError, ValueError):
            about = {}
        rows = 0
        for key_file in folder.glob("*.keys.npy"):
            try:
                rows += len(load_array(key_file, mapped=True))
            except Exception:  # damaged: the run that needs it will say so and drop it
                continue
        size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
        table.append(
            {
                "kind": folder.parent.name,
                "name": folder.name,
                "about": about,
                "rows": rows,
                "bytes": size,
                "folder": str(folder),
            }
        )
    rotations = _folders("rotations")
    if rotations:
        about = {"what": f"coordinates of {len(rotations)} training part(s) for heads"}
        size, place = sum(size for _, size, _ in rotations), cache_root() / "rotations"
        table.append({"kind": "rotations", "name": "", "about": about, "rows": 0, "bytes": size, "folder": str(place)})
    return table


def prune(kind: str, limit: int) -> None:
    """Deletes the oldest folders of a kind that can be made again in seconds, until it takes at most `limit` bytes."""
    folders = sorted(_folders(kind))
    total = sum(size for _, size, _ in folders)
    for _, size, folder in folders:
        if total <= limit:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= size


def _folders(kind: str) -> list[tuple[float, int, Path]]:
    """Time of change, bytes and path of each folder of a kind; one that another process takes away is passed over."""
    found = []
    for folder in (cache_root() / kind).glob("*/"):
        with contextlib.suppress(OSError):
            found.append((folder.stat().st_mtime, sum(p.stat().st_size for p in folder.iterdir()), folder))
    return found


def clear_cache() -> int:
    """Deletes what unfreeze has cached (known kinds only) and returns the bytes freed."""
    freed = 0
    for kind in KINDS:
        folder = cache_root() / kind
        if folder.is_dir():
            freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            shutil.rmtree(folder, ignore_errors=True)
    return freed
