"""Atomic writes, checked reads, and CSV files that are safe to open in a spreadsheet.

Files are written under a temporary name and renamed, so that a file is either complete or absent. Files of run folders
and caches are opened only if they are regular files of limited size.

In CSV files, a text cell that a spreadsheet would evaluate as a formula gets a leading apostrophe, as OWASP recommends
against CSV injection. Plain numbers stay as they are. Submissions and Parquet files keep all cells unchanged.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unfreeze.core.errors import StorageError, UnfreezeError

T = TypeVar("T")

if TYPE_CHECKING:
    import pandas as pd

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
# Free bytes below which a disk counts as full: a failed write has used up all but the last blocks.
_ROOM = 1 << 17
# Maximum size of a JSON file: the parsed objects take up to 20 times as much memory as the text.
MAX_JSON_BYTES = 32 << 20


def is_valid_utf8(name: str) -> bool:
    """Whether a name can be encoded as UTF-8.

    Python decodes file names that are not valid UTF-8 to lone surrogates, which cannot be encoded.
    """
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Translate a full disk, a read-only folder and similar OSErrors into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        # NumPy reports a disk that fills up during a write as "8000 requested and 4096 written", without an errno.
        number = errno.ENOSPC if error.errno is None and "requested and" in str(error) else error.errno
        if number in _REASONS:
            raise StorageError(f"{path}: {_REASONS[number]}.") from None
        raise


@contextlib.contextmanager
def translate_disk_full(folder: Path) -> Iterator[None]:
    """Translate a library's own exception for a full disk at `folder` into an OSError.

    Libraries written in Rust include the errno in their message. torch does not, so the free space is checked instead.
    """
    try:
        yield
    except (OSError, UnfreezeError):
        raise
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        require_free_space(folder)
        raise


def require_free_space(folder: Path, room: int = _ROOM) -> None:
    """Raise an OSError with ENOSPC if less than `room` bytes are free on the disk of `folder`."""
    if shutil.disk_usage(folder).free < room:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def atomic_write(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: Target file. Its folder is created if missing.
        write: Writes the file to the path that it is called with.

    Returns:
        `path`.

    Raises:
        StorageError: The disk is full or not writable. No partial file is left.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}"
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with translate_disk_full(path.parent):
                write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text atomically as UTF-8, without newline translation."""
    return atomic_write(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def regular_file(path: Path, max_bytes: int | None = None) -> Path:
    """Check a file of a run folder or a cache before it is opened.

    Such folders may come from someone else. A symbolic link in one can point to any file of the user, and opening a
    FIFO or a device can block forever.

    Args:
        path: File to check.
        max_bytes: Maximum size in bytes.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: The path is a symbolic link, not a regular file, or larger than `max_bytes`.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise OSError("is a symbolic link")
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError("is not a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise OSError(f"{status.st_size / 1e6:,.0f} MB are more than the limit of {max_bytes / 1e6:,.0f} MB")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder or a cache.

    Raises:
        OSError: The file cannot be read, is not a regular file, or is larger than `MAX_JSON_BYTES`.
        ValueError: The file is not valid JSON, is nested too deeply, or contains invalid Unicode.
    """
    text = regular_file(path, MAX_JSON_BYTES).read_text("utf-8")
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # an escaped lone surrogate cannot be encoded
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON atomically. NaN and infinity raise a ValueError, since JSON has neither."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(path: Path, parse: Callable[[Any], T | None], max_bytes: int | None = None) -> T | None:
    """Read a JSON file that this package wrote, and can do without.

    Args:
        path: The file.
        parse: Turns its content into the value. Any error that damaged content raises, and None, mean unusable.
        max_bytes: Maximum size in bytes, if smaller than `MAX_JSON_BYTES`.

    Returns:
        The value, or None if the file is missing, damaged or unusable.
    """
    try:
        if max_bytes is not None:
            regular_file(path, max_bytes)
        return parse(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def json_memo(path: Path, compute: Callable[[], Any], parse: Callable[[Any], T | None]) -> T:
    """Value of a JSON file, which is computed and written if it is missing, damaged or unusable.

    Args:
        path: The file.
        compute: Computes the content of the file.
        parse: Turns the content into the value, as in `read_record`.
    """
    found = read_record(path, parse)
    if found is None:
        content = compute()
        write_json(path, content)
        found = parse(content)
        assert found is not None  # just computed
    return found


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def escape_formula(text: str) -> str:
    """Escape text that a spreadsheet would evaluate as a formula. `unescape_formula` is the inverse."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def unescape_formula(cell: str) -> str:
    """Remove the apostrophe that `escape_formula` has added."""
    return cell[1:] if len(cell) > 1 and cell[0] == "'" and cell[1] in _FORMULA else cell


def write_csv(path: Path, table: pd.DataFrame, exact: bool = False) -> Path:
    """Write a table atomically as UTF-8 CSV with a header and \\n as line end.

    Args:
        path: Target file.
        table: Table to write.
        exact: Write all cells unchanged, without escaping formulas.

    Raises:
        StorageError: The file cannot be written.
    """
    import pandas as pd

    texts = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    shown = table if exact else table.assign(**{n: pd.Series(map(_cell, table[n]), table.index, object) for n in texts})
    # Many readers take a lone \r for a line end, and by default the writer does not quote it.
    broken = any(isinstance(value, str) and "\r" in value for n in texts for value in (n, *shown[n]))
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if broken else csv.QUOTE_MINIMAL
    return atomic_write(path, lambda p: shown.to_csv(p, index=False, lineterminator="\n", quoting=quoting))


def _cell(value: object) -> object:
    """Escape a text cell unless it is a plain number: classes may be named -1 and 0."""
    return escape_formula(value) if isinstance(value, str) and not _NUMBER.fullmatch(value) else value
