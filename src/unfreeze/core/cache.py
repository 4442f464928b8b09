"""Rows on disk by content: a photo's hash gives its row, whatever the photo is called today.

A store is a folder of segments. A segment is two .npy files, rows first and keys last, each written whole:
the keys are the commit mark. Segments are only ever added, so that runs can share a store
without locks; a row written twice is harmless.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
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

Keys = NDArray[np.uint64]


def cache_root() -> Path:
    """The cache folder: $UNFREEZE_CACHE, else $XDG_CACHE_HOME/unfreeze, else ~/.cache/unfreeze."""
    if own := os.environ.get("UNFREEZE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfreeze"


def fingerprint(value: Any) -> str:
    """A short hex name for anything that JSON can write; equal values give equal names."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=10).hexdigest()


def content_key(data: bytes) -> tuple[int, int]:
    """128 bits of BLAKE2b of a file's bytes, as two integers below 2**64."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


KINDS = ("looks", "features", "engines", "rotations")


@dataclass
class _Segment:
    name: str
    rows: NDArray[Any]


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
        self._segments: list[_Segment] = []
        self._known: set[str] = set()
        self._keys: Keys = np.zeros((0, 2), np.uint64)
        self._where: NDArray[np.int64] = np.zeros((0, 2), np.int64)
        self.refresh()

    def refresh(self) -> None:
        """Takes in the segments that this or another process has written since."""
        keys, where = [self._keys], [self._where]
        for key_file in sorted(self.folder.glob("*.keys.npy")):
            name = key_file.name.removesuffix(".keys.npy")
            if name in self._known:
                continue
            self._known.add(name)
            try:
                found = np.load(key_file, allow_pickle=False)
                rows = np.load(self.folder / f"{name}.rows.npy", mmap_mode="r", allow_pickle=False)
                whole = rows.dtype == self.dtype and rows.shape == (len(found), *self.shape) and found.shape[1:] == (2,)
                if not whole or found.dtype != np.uint64:
                    raise ValueError("it is not what its folder says")
            except (OSError, ValueError, EOFError) as error:
                self.reporter.say(f"Cache: {key_file.name} is unreadable ({error}); its rows are made again.")
                for part in (key_file, self.folder / f"{name}.rows.npy"):
                    part.unlink(missing_ok=True)
                continue
            self._segments.append(_Segment(name, rows))
            keys.append(found)
            where.append(np.stack([np.full(len(found), len(self._segments) - 1), np.arange(len(found))], 1))
        if len(keys) > 1:
            merged, places = np.concatenate(keys), np.concatenate(where)
            order = np.argsort(merged[:, 0], kind="stable")
            self._keys, self._where = merged[order], places[order]

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Place of each key as (n, 2) segment and row; -1 where it is not stored. keys: uint64 (n, 2)."""
        places = np.full((len(keys), 2), -1, np.int64)
        if len(self._keys) and len(keys):
            at = np.minimum(np.searchsorted(self._keys[:, 0], keys[:, 0]), len(self._keys) - 1)
            hit = (self._keys[at] == keys).all(1)
            places[hit] = self._where[at[hit]]
        return places

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The rows at `places` (from `find`), in that order, as an array of their own."""
        out = np.empty((len(places), *self.shape), self.dtype)
        for segment in np.unique(places[:, 0]):
            here = places[:, 0] == segment
            out[here] = self._segments[segment].rows[places[here, 1]]
        return out

    def forget_pages(self) -> None:
        """Lets the kernel drop the pages read so far, so that resident memory does not grow with the store."""
        for segment in self._segments:
            mapped = getattr(segment.rows, "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def append(self, keys: Sequence[tuple[int, int]] | Keys, rows: NDArray[Any]) -> None:
        """Writes a segment. Raises StorageError where the disk is full; what was there stays usable."""
        if not len(keys):
            return
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        table = np.asarray(keys, np.uint64).reshape(-1, 2)
        if rows.shape != (len(table), *self.shape):
            raise CacheError(f"{self.folder}: rows of shape {rows.shape} do not fit {(len(table), *self.shape)}.")
        write_whole(self.folder / f"{name}.rows.npy", lambda p: np.save(p, rows.astype(self.dtype, copy=False)))
        write_whole(self.folder / f"{name}.keys.npy", lambda p: np.save(p, table))
        self.refresh()


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
                rows += len(np.load(key_file, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError, EOFError):
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
    return table


def clear_cache() -> int:
    """Deletes what unfreeze has cached (known kinds only) and returns the bytes freed."""
    freed = 0
    for kind in KINDS:
        folder = cache_root() / kind
        if folder.is_dir():
            freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            shutil.rmtree(folder, ignore_errors=True)
    return freed
