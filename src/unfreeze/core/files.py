"""Writing whole: a file or folder appears under its name complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unfreeze.core.errors import StorageError, UnfreezeError

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
# With less than this left a disk is full: what did not fit has taken all but the last blocks.
_ROOM = 1 << 17


def is_text(name: str) -> bool:
    """False for names with lone surrogates, which is how Python spells bytes that are not valid UTF-8."""
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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


@contextlib.contextmanager
def words_of_full_disks(folder: Path) -> Iterator[None]:
    """What a library raises of its own for a full disk at `folder` becomes the system's error.

    Those in Rust say the number; torch says nothing, but the disk is full when it fails.
    """
    try:
        yield
    except (OSError, UnfreezeError):
        raise
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        refuse_full(folder)
        raise


def refuse_full(folder: Path, room: int = _ROOM) -> None:
    """Raises the system's error of a full disk where less than `room` bytes are left for `folder`."""
    if shutil.disk_usage(folder).free < room:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write` with a temporary path beside `path`, then renames it into place.

    Raises StorageError where the disk is full or may not be written; nothing half-written stays.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with words_of_full_disks(path.parent):
                write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text whole, with \\n as line end."""
    return write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def read_json(path: Path) -> Any:
    """The JSON in a file. OSError; ValueError where it is none, is nested too deeply, or holds what is no text."""
    text = path.read_text("utf-8")
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a pair, written as an escape, could not be written or shown again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON whole, indented, NaN refused (it is not JSON)."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
