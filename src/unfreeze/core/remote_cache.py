"""Synchronization of cache segments with a remote URL through fsspec.

If `UNFREEZE_SHARED_CACHE` is set, machines without a common disk share rows that way.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unfreeze.core.errors import MissingExtraError, StorageError, UnfreezeError, one_line
from unfreeze.core.files import atomic_write

SHARED = "UNFREEZE_SHARED_CACHE"
# Kinds that are shared: small compared with the time to compute them. Pixels and activations stay local.
_KINDS = ("looks", "features", "faces")
# Segment names as written by `ArrayStore`. Other remote files are never fetched, whatever path their names form.
_KEYS = re.compile(r"(\d{20}-[0-9a-f]{8})\.keys\.npy")


class RemoteStore:
    """Remote copy of the folder of an `ArrayStore`.

    Segments are only added, and the key file of a segment is uploaded last. Clients therefore need no locks.
    """

    def __init__(self, system: Any, place: str) -> None:
        self._system, self._place = system, place

    def fetch(self, folder: Path, seen: Collection[str]) -> set[str]:
        """Download the segments that are neither in `folder` nor in `seen`.

        Args:
            folder: Local folder of the store.
            seen: Names of segments that need not be downloaded.

        Returns:
            Names of all segments in the remote folder.

        Raises:
            StorageError: The remote folder cannot be read, or the local folder cannot be written.
        """
        with self._told():
            try:
                listed = self._system.ls(self._place, detail=False)
            except FileNotFoundError:  # nothing has been uploaded yet
                listed = []
        names = (_KEYS.fullmatch(PurePosixPath(path).name) for path in listed)
        there = {name[1] for name in names if name}
        for segment in sorted(there.difference(seen)):
            if not (folder / f"{segment}.keys.npy").exists():
                for part in ("rows", "keys"):
                    self._bring(folder / f"{segment}.{part}.npy")
        return there

    def send(self, folder: Path, segment: str) -> None:
        """Upload a segment of the local folder.

        The key file is uploaded last, under a temporary name, and then renamed.

        Raises:
            StorageError: The remote folder cannot be written.
        """
        rows, keys = (f"{segment}.{part}.npy" for part in ("rows", "keys"))
        on_its_way = f"{self._place}/.{keys}.{uuid.uuid4().hex[:8]}"
        with self._told():
            self._system.makedirs(self._place, exist_ok=True)
            self._system.put_file(str(folder / rows), f"{self._place}/{rows}")
            self._system.put_file(str(folder / keys), on_its_way)
            self._system.mv(on_its_way, f"{self._place}/{keys}")

    def _bring(self, file: Path) -> None:
        def fetched(temporary: Path) -> None:
            with self._told(file):
                self._system.get_file(f"{self._place}/{file.name}", str(temporary))

        atomic_write(file, fetched)

    @contextlib.contextmanager
    def _told(self, local: Path | None = None) -> Iterator[None]:
        """Translate any exception of the remote file system into a StorageError.

        Args:
            local: Local file that is being written. An OSError with an errno then concerns the local disk and is raised
                unchanged.
        """
        try:
            yield
        except UnfreezeError:
            raise
        except Exception as error:
            if local is not None and isinstance(error, OSError) and error.errno:
                raise
            raise StorageError(
                f"{SHARED}: {self._place}: {one_line(error)}; run the same command again to go on."
            ) from None


def shared_folder(folder: Path, root: Path) -> RemoteStore | None:
    """Remote counterpart of a cache folder at `$UNFREEZE_SHARED_CACHE`.

    Args:
        folder: Local folder of a store.
        root: Local cache root.

    Returns:
        The remote store, or None if the variable is not set, `folder` is not in the cache, or its kind is not shared.
        The URL is any that fsspec accepts: `s3://bucket/unfreeze`, `gs://`, `sftp://`, `file:///mnt/all`.

    Raises:
        StorageError: The URL is invalid.
        MissingExtraError: The URL needs a package that is not installed.
    """
    url = os.environ.get(SHARED)
    if not url or not folder.is_relative_to(root):
        return None
    inside = folder.relative_to(root)
    if inside.parts[0] not in _KINDS:
        return None
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise MissingExtraError(f"{SHARED}: {one_line(error)}") from None
    except Exception as error:  # drivers raise exception types of their own
        raise StorageError(f"{SHARED}: {one_line(error)}") from None
    return RemoteStore(system, f"{place.rstrip('/')}/{inside.as_posix()}")
