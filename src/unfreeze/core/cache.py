"""Content-addressed array cache on disk.

An `ArrayStore` maps the content hash of a file to a row of one dtype and shape, so that a row is found again after the
file was renamed or moved. A store is a folder of immutable segments. A segment consists of two `.npy` files, rows and
keys, which are written atomically and in this order: the key file commits the segment. Segments are only added, so
processes share a store without locks, and a row that is stored twice is harmless. Each key carries the CRC-32 of its
row, which is verified when the row is first read.

Segments can be synchronized with a remote URL: see `remote_cache`.
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
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import CacheError
from unfreeze.core.files import atomic_write, read_json, regular_file, translate_os_errors, write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.remote_cache import shared_folder

Keys = NDArray[np.uint64]
# Maximum number of mapped segments: each holds a file descriptor, of which a process has about 1,000.
_OPEN = 64


def cache_root() -> Path:
    """Cache folder: `$UNFREEZE_CACHE`, else `$XDG_CACHE_HOME/unfreeze`, else `~/.cache/unfreeze`."""
    if own := os.environ.get("UNFREEZE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfreeze"


def stable_hash(value: Any) -> str:
    """Hash a JSON-serializable value to 20 hexadecimal digits. Equal values have equal hashes."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=10).hexdigest()


def content_hash(data: bytes) -> tuple[int, int]:
    """128-bit BLAKE2b hash of a file's bytes, as two integers below 2**64."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


_LOADING = threading.Lock()


def load_array(path: Path, mapped: bool = False) -> NDArray[Any]:
    """Load the array of a `.npy` file, without unpickling.

    Calls are serialized: NumPy parses the header with Python's own parser, whose state in CPython 3.11 is shared by all
    threads. Two concurrent calls can fail with "AST constructor recursion depth mismatch".

    Args:
        path: A regular file.
        mapped: Memory-map the file read-only instead of reading it.

    Raises:
        OSError: The file cannot be read or is not a regular file.
        ValueError: The file is not a valid `.npy` file; `numpy.load` may raise other exceptions for damaged files.
    """
    with _LOADING:
        return np.load(regular_file(path), mmap_mode="r" if mapped else None, allow_pickle=False)


KINDS = ("looks", "features", "engines", "rotations", "cards", "pixels", "activations", "faces", "trials")


@dataclass(frozen=True)
class _Index:
    """Sorted index from content keys to the location of their rows.

    Instances are never modified, so threads can search while another thread adds a segment.

    Attributes:
        first: First word of each key, uint64 (n,), sorted.
        keys: Keys, uint64 (n, 2), in the same order.
        where: Segment number and row of each key, int64 (n, 2).
    """

    first: Keys
    keys: Keys
    where: NDArray[np.int64]

    @classmethod
    def of(cls, keys: Sequence[Keys], where: Sequence[NDArray[np.int64]]) -> _Index:
        """Merge several parts into one index."""
        merged, places = np.concatenate(keys), np.concatenate(where)
        order = np.argsort(merged[:, 0], kind="stable")
        return cls(np.ascontiguousarray(merged[order, 0]), merged[order], places[order])


def release_pages(mapped: NDArray[Any]) -> None:
    """Let the kernel drop the resident pages of a memory-mapped array; they are read again when needed."""
    held = getattr(mapped, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


class ArrayStore:
    """Persistent rows of one dtype and shape, looked up by content key.

    A damaged segment is reported and deleted, and its rows have to be computed again.

    Args:
        folder: Folder of the store, created if missing.
        dtype: Data type of a row.
        shape: Shape of a row.
        about: Metadata for `about.json`, which `unfreeze cache` shows.
        reporter: Receives messages about damaged segments.

    Raises:
        StorageError: The folder cannot be created, or the shared cache cannot be reached.
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
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if about and not (folder / "about.json").exists():
            write_json(folder / "about.json", about)
        self._segments: list[str] = []
        self._seen: set[str] = set()
        self._open: dict[int, NDArray[Any]] = {}
        self._checksums: list[Keys] = []  # CRC-32 of the rows of each segment
        self._verified: list[NDArray[np.bool_]] = []
        self._lock = threading.Lock()
        self._shared = shared_folder(folder, cache_root())
        # Each index is at least twice as long as the next, so that each of n rows is merged O(log n) times.
        self._indices: tuple[_Index, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Load the segments that this or another process has added since the last call.

        With a shared cache, new remote segments are downloaded, and local segments that it lacks are uploaded.

        Raises:
            StorageError: The shared cache cannot be reached.
        """
        there = self._shared.fetch(self.folder, self._seen) if self._shared else set()
        keys: list[Keys] = []
        where: list[NDArray[np.int64]] = []
        for key_file in sorted(self.folder.glob("*.keys.npy")):
            name = key_file.name.removesuffix(".keys.npy")
            if name in self._seen:
                continue
            self._seen.add(name)
            try:
                found, checksums = self._checked(key_file, name)
            except Exception as error:  # damaged .npy files raise many exception types
                self.reporter.say(f"Cache: {key_file} is unreadable ({error}); its rows are recomputed.")
                if not isinstance(error, OSError) or error.errno == errno.ENOENT:
                    self._drop(name)  # damaged; after other OSErrors it may be intact
                continue
            keys.append(found)
            where.append(self._placed(name, checksums, False))
        if keys:
            self._add(_Index.of(keys, where))
        if self._shared:  # segments written before the shared cache was set, or while it was down
            for name in self._segments:
                if name not in there:
                    self._shared.send(self.folder, name)

    def _placed(self, name: str, checksums: Keys, verified: bool) -> NDArray[np.int64]:
        """Register a segment and return the places of its rows, int64 (n, 2)."""
        rows = len(checksums)
        self._checksums.append(checksums)
        self._verified.append(np.full(rows, verified))
        self._segments.append(name)
        return np.stack([np.full(rows, len(self._segments) - 1), np.arange(rows)], 1)

    def _add(self, index: _Index) -> None:
        indices = [*self._indices, index]
        while len(indices) > 1 and len(indices[-2].first) < 2 * len(indices[-1].first):
            last, before = indices.pop(), indices.pop()
            indices.append(_Index.of([before.keys, last.keys], [before.where, last.where]))
        self._indices = tuple(indices)

    def _checked(self, key_file: Path, name: str) -> tuple[Keys, Keys]:
        """Load the keys, uint64 (n, 2), and checksums, uint64 (n,), of a segment and validate them against its rows."""
        keys = load_array(key_file)
        rows = self._mapped(name)
        if keys.dtype != np.uint64 or keys.shape != (len(rows), 3):
            raise ValueError("its keys do not fit its rows")
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape:
            raise ValueError("its rows are not what their folder says")
        return np.ascontiguousarray(keys[:, :2]), keys[:, 2].copy()

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
                        f"{self.folder}: rows disappeared ({error}); was the cache cleared meanwhile? "
                        "Run the same command again."
                    ) from None
            self._open[segment] = rows  # most recently used last
            if len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
            return rows

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Look up the places of keys.

        Args:
            keys: Content keys, uint64 (n, 2).

        Returns:
            Segment number and row of each key, int64 (n, 2); -1 for keys that are not stored.
        """
        places = np.full((len(keys), 2), -1, np.int64)
        if len(keys):
            for index in self._indices:
                if len(index.first):
                    at = np.minimum(np.searchsorted(index.first, keys[:, 0]), len(index.first) - 1)
                    hit = (index.keys[at] == keys).all(1) & (places[:, 0] < 0)
                    places[hit] = index.where[at[hit]]
        return places

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Copy rows out of the store.

        Args:
            places: Places as returned by `find`, int64 (n, 2), without -1.

        Returns:
            The rows in the order of `places`, (n, *shape).

        Raises:
            CacheError: Rows were deleted from disk since they were found, or are damaged.
            ValueError: A place is -1.
        """
        out = np.empty((len(places), *self.shape), self.dtype)
        for segment in np.unique(places[:, 0]).tolist():
            if segment < 0:
                raise ValueError("take: position -1 means that the row is missing; request only rows that were found")
            here = places[:, 0] == segment
            out[here] = self._rows(segment)[places[here, 1]]
            self._verify(segment, places[here, 1], out, np.flatnonzero(here))
        return out

    def _verify(self, segment: int, rows: NDArray[np.int64], taken: NDArray[Any], at: NDArray[np.int64]) -> None:
        """Verify the checksums of rows that have not been verified yet.

        Args:
            segment: Segment number.
            rows: Rows of the segment, int64 (n,).
            taken: Array that holds the values of the rows.
            at: Index of each row in `taken`, int64 (n,).

        Raises:
            CacheError: A row is damaged; its segment is deleted.
        """
        verified = self._verified[segment]
        new = np.flatnonzero(~verified[rows])
        for row, place in zip(rows[new].tolist(), at[new].tolist(), strict=True):
            if _checksum(taken[place]) != self._checksums[segment][row]:
                name = self._segments[segment]
                self._drop(name)
                raise CacheError(
                    f"{self.folder}: {name}.rows.npy was damaged and is removed (a row does not match its checksum). "
                    "Run the same command again."
                )
        verified[rows[new]] = True

    def forget_pages(self) -> None:
        """Let the kernel drop the resident pages of all mapped segments, which bounds resident memory."""
        with self._lock:
            for rows in self._open.values():
                release_pages(rows)

    def append(self, keys: Sequence[tuple[int, int]] | Keys, rows: NDArray[Any]) -> None:
        """Write rows as a new segment, locally and to the shared cache.

        Args:
            keys: Content keys, n pairs of integers or uint64 (n, 2).
            rows: Rows, (n, *shape).

        Raises:
            StorageError: The disk is full, or the shared cache cannot be reached. Earlier rows stay usable.
            CacheError: `rows` has the wrong shape.
        """
        if not len(keys):
            return
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        table = np.asarray(keys, np.uint64).reshape(-1, 2)
        if rows.shape != (len(table), *self.shape):
            raise CacheError(f"{self.folder}: rows of shape {rows.shape} do not fit {(len(table), *self.shape)}.")
        rows = np.ascontiguousarray(rows, self.dtype)
        checksums = np.array([_checksum(row) for row in rows], np.uint64)
        atomic_write(self.folder / f"{name}.rows.npy", lambda p: np.save(p, rows))
        atomic_write(self.folder / f"{name}.keys.npy", lambda p: np.save(p, np.column_stack([table, checksums])))
        # Segments of other processes are loaded by `refresh`: listing the folder after each append would be quadratic.
        self._seen.add(name)
        self._add(_Index.of([table], [self._placed(name, checksums, True)]))
        if self._shared:
            self._shared.send(self.folder, name)


def _checksum(row: Any) -> int:
    """CRC-32 of a row's bytes, at about 2 GB/s."""
    return zlib.crc32(np.ascontiguousarray(row).view(np.uint8).data)


def cache_table() -> list[dict[str, Any]]:
    """List the stores of the cache.

    Returns:
        One dict per store with `kind`, `name`, `about`, `rows`, `bytes` and `folder`.
    """
    table = []
    for about_file in sorted(cache_root().glob("*/*/about.json")):
        folder = about_file.parent
        try:
            about = read_json(about_file)
        except (OSError, ValueError):
            about = {}
        rows = 0
        for key_file in folder.glob("*.keys.npy"):
            try:
                rows += len(load_array(key_file, mapped=True))
            except Exception:  # damaged: reported and deleted when the store is used
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
    """Delete the oldest folders of a kind until it takes at most `limit` bytes.

    Args:
        kind: A kind whose folders can be recomputed within seconds.
        limit: Total size in bytes.
    """
    folders = sorted(_folders(kind))
    total = sum(size for _, size, _ in folders)
    for _, size, folder in folders:
        if total <= limit:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= size


def _folders(kind: str) -> list[tuple[float, int, Path]]:
    """Modification time, size in bytes and path of each folder of a kind, without those deleted by another process."""
    found = []
    for folder in (cache_root() / kind).glob("*/"):
        with contextlib.suppress(OSError):
            found.append((folder.stat().st_mtime, sum(p.stat().st_size for p in folder.iterdir()), folder))
    return found


def clear_cache() -> int:
    """Delete all folders of known kinds from the cache and return the number of bytes freed."""
    freed = 0
    for kind in KINDS:
        folder = cache_root() / kind
        if folder.is_dir():
            freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            shutil.rmtree(folder, ignore_errors=True)
    return freed
