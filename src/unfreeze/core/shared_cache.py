"""Rows that machines share without a common disk: segments of the cache go to a URL and come from it, by fsspec."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unfreeze.core.errors import MissingExtraError, StorageError, UnfreezeError, in_a_line
from unfreeze.core.files import write_whole

SHARED = "UNFREEZE_SHARED_CACHE"
# What is small beside the time that it takes to make; pixels and activations are made where they are needed.
_KINDS = ("looks", "features", "faces")
# As RowStore names segments: nothing else that lies there is ever fetched, whatever its name would lead to.
_KEYS = re.compile(r"(\d{20}-[0-9a-f]{8})\.keys\.npy")


class SharedFolder:
    """A store's folder at the URL. Segments are only ever added, so that nobody needs a lock; keys come last."""

    def __init__(self, system: Any, place: str) -> None:
        self._system, self._place = system, place

    def fetch(self, folder: Path, seen: Collection[str]) -> set[str]:
        """Brings the segments that are neither in `folder` nor among `seen`; the names of all that lie there.

        Raises StorageError.
        """
        with self._told():
            try:
                listed = self._system.ls(self._place, detail=False)
            except FileNotFoundError:  # nobody has sent anything yet
                listed = []
        names = (_KEYS.fullmatch(PurePosixPath(path).name) for path in listed)
        there = {name[1] for name in names if name}
        for segment in sorted(there.difference(seen)):
            if not (folder / f"{segment}.keys.npy").exists():
                for part in ("rows", "keys"):
                    self._bring(folder / f"{segment}.{part}.npy")
        return there

    def send(self, folder: Path, segment: str) -> None:
        """Puts a segment that was written in `folder` there too, its keys last and whole. Raises StorageError."""
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

        write_whole(file, fetched)

    @contextlib.contextmanager
    def _told(self, local: Path | None = None) -> Iterator[None]:
        """What the other side raises, which may be anything, as one of our errors. local: a file here, whose disk has
        errors of its own."""
        try:
            yield
        except UnfreezeError:
            raise
        except Exception as error:
            if local is not None and isinstance(error, OSError) and error.errno:
                raise
            raise StorageError(
                f"{SHARED}: {self._place}: {in_a_line(error)}; run the same command again to go on."
            ) from None


def shared_folder(folder: Path, root: Path) -> SharedFolder | None:
    """The counterpart of a folder of the cache at $UNFREEZE_SHARED_CACHE; None where there is none.

    root: the cache here. The URL is any that fsspec takes: s3://bucket/unfreeze, gs://, sftp://, file:///mnt/all.
    Raises StorageError for a URL that is none, MissingExtraError where it needs a package that is not here.
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
        raise MissingExtraError(f"{SHARED}: {in_a_line(error)}") from None
    except Exception as error:  # a driver may raise nearly anything, also of its own
        raise StorageError(f"{SHARED}: {in_a_line(error)}") from None
    return SharedFolder(system, f"{place.rstrip('/')}/{inside.as_posix()}")
