"""Writing whole: a file or folder appears under its name complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unfreeze.core.errors import StorageError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission to write there; choose another folder or change its permissions",
    errno.EPERM: "no permission to write there; choose another folder or change its permissions",
    errno.ENOENT: "cannot be made there; choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file of this name is in the way; move it or choose another folder",
    errno.EISDIR: "a folder of this name is in the way; move it or choose another name",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.EFBIG: "the file system takes no file this large; choose another disk",
}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, a read-only folder and their like into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        # NumPy says only "8000 requested and 4096 written", without a number, when the disk fills up meanwhile.
        number = errno.ENOSPC if error.errno is None and "requested and" in str(error) else error.errno
        if number in _REASONS:
            raise StorageError(f"{path}: {_REASONS[number]}.") from None
        raise


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write` with a temporary path beside `path`, then renames it into place.

    Raises StorageError where the disk is full or may not be written; nothing half-written stays.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text whole, with \\n as line end."""
    return write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON whole, indented, NaN refused (it is not JSON)."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
