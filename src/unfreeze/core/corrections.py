"""Label corrections: a reviewer's decisions about images, stored in `corrections.csv`.

A decision is appended as one row and flushed to disk before the review page confirms it. The last decision about an
image counts. A last row that was truncated by a crash is ignored, and removed by the next write. A cell that a
spreadsheet would evaluate as a formula is stored with a leading apostrophe, which is removed on reading.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import CorrectionsError, did_you_mean, join_names
from unfreeze.core.files import atomic_write, escape_formula, regular_file, translate_os_errors, unescape_formula
from unfreeze.core.names import matching, nfc

NAME = "corrections.csv"
COLUMNS = ("path", "hash", "action", "label", "timestamp")
CORRECTIONS = ("keep", "relabel", "exclude")
MAX_BYTES = 200_000_000
_WRITING = threading.Lock()  # flock excludes other processes, this lock other threads


@dataclass(frozen=True)
class Correction:
    """One decision about an image.

    Attributes:
        path: Path of the image, as in the dataset.
        hash: Content hash of the image at the time of the decision, or empty.
        correction: `keep`, `relabel` or `exclude`.
        label: New class of a relabeled image.
        when: Time of the decision, ISO 8601.
    """

    path: str
    hash: str
    action: str
    label: str = ""
    timestamp: str = ""


def now() -> str:
    """Current UTC time in ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_correction(file: Path, correction: Correction) -> None:
    """Append a decision to the file and wait until it is on disk.

    Args:
        file: Corrections file, created if missing.
        correction: The decision. An empty `when` is replaced by the current time.

    Raises:
        StorageError: The file cannot be written.
        CorrectionsError: The file is not a corrections file.
    """
    with _WRITING, translate_os_errors(file), _locked(file) as stream:
        whole, torn = _records(_content(stream, file), file)
        line = _line(_written(correction, whole[0], file), _separator(whole[0])) if whole else _line(_cells(correction))
        if torn:
            stream.truncate(sum(len(record.encode("utf-8", "surrogateescape")) for record in whole))
        head = "" if whole else _line(COLUMNS)
        before = "\n" if whole and not whole[-1].endswith("\n") else ""
        _put(stream, (before + head + line).encode("utf-8", "surrogateescape"))


def withdraw_correction(file: Path, path: str) -> bool:
    """Remove the last decision about an image and rewrite the file atomically.

    Returns:
        False if there is no decision about the image.

    Raises:
        StorageError: The file cannot be written.
        CorrectionsError: The file is not a corrections file.
    """
    with _WRITING, translate_os_errors(file), _locked(file) as stream:
        whole, _ = _records(_content(stream, file), file)
        columns = _columns(whole[0], file) if whole else {}
        for number in range(len(whole) - 1, 0, -1):
            cells = _parsed(whole[number], _separator(whole[0]))
            if cells and unescape_formula(cells[columns["path"]]) == path:
                _replace(file, "".join(whole[:number] + whole[number + 1 :]))
                return True
    return False


def read_corrections(file: Path, classes: Sequence[str] | None = None) -> tuple[list[Correction], list[Finding]]:
    """Read the last decision about each image.

    Args:
        file: Corrections file.
        classes: Known classes. If given, a relabel to any other class is an error.

    Returns:
        The decisions, in the file's order of the last decision about each image, and findings about the file itself.

    Raises:
        CorrectionsError: The file is missing or not a corrections file, or a row has an unknown correction or class or
            relabels without a label. The message names the line.
    """
    try:
        # A file named by the user may be a symbolic link; opening a FIFO would block.
        with regular_file(file.resolve()).open("rb") as stream:
            content = _content(stream, file)
    except FileNotFoundError:
        raise CorrectionsError(f"{file}: no such corrections file; `unfreeze review RUN` writes one.") from None
    except IsADirectoryError:
        raise CorrectionsError(f"{file}: is a folder; name the {NAME} in it.") from None
    except OSError as error:
        raise CorrectionsError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    whole, torn = _records(content, file)
    findings = []
    if torn:
        findings.append(
            Finding(
                "corrections-torn",
                "warning",
                f"{file.name}: the last line is truncated and was ignored",
                "review that image again",
            )
        )
    if not whole:
        raise CorrectionsError(f"{file}: the file is empty; it needs the columns {', '.join(COLUMNS)}.")
    columns, separator = _columns(whole[0], file), _separator(whole[0])
    last: dict[str, Correction] = {}
    again, line = 0, 1 + whole[0].count("\n")
    for record in whole[1:]:
        found = _correction(record, separator, columns, classes, f"{file}, line {line}")
        line += record.count("\n")
        if found is None:
            continue
        again += found.path in last
        last.pop(found.path, None)  # ordered by the last decision
        last[found.path] = found
    if again:
        message = (
            f"{file.name}: {again:,} correction(s) superseded by a later one for the same image; the last one counts"
        )
        findings.append(Finding("corrections-again", "info", message, "none needed"))
    return list(last.values()), findings


def _correction(
    record: str, separator: str, columns: dict[str, int], classes: Sequence[str] | None, where: str
) -> Correction | None:
    cells = _parsed(record, separator)
    if not any(cells):
        return None
    if len(cells) <= max(columns[name] for name in ("path", "action")):
        raise CorrectionsError(f"{where}: has {len(cells)} cell(s); it needs path and action. Fix or remove that line.")
    values = {name: unescape_formula(cells[i]) if i < len(cells) else "" for name, i in columns.items()}
    path, word, label = values["path"], values["action"].strip().lower(), values.get("label", "")
    if not path:
        raise CorrectionsError(f"{where}: the path is empty. Add it, or remove that line.")
    if word not in CORRECTIONS:
        raise CorrectionsError(
            f"{where}: correction '{join_names([values['action']])}' of {join_names([path])} is unknown; known are "
            f"{', '.join(CORRECTIONS)}.{did_you_mean(word, CORRECTIONS)}"
        )
    if word == "relabel" and not label:
        raise CorrectionsError(
            f"{where}: relabels {join_names([path])} without a label. Name one, or exclude the photo."
        )
    meant = nfc(label) if classes is None else matching(label, classes)
    if word == "relabel" and meant is None:
        raise CorrectionsError(
            f"{where}: relabels {join_names([path])} as '{join_names([label])}', which is an unknown class; "
            f"known are {join_names(classes or (), 20)}.{did_you_mean(label, classes or ())}"
        )
    return Correction(
        path, values.get("hash", ""), word, meant or "" if word == "relabel" else "", values.get("timestamp", "")
    )


def _records(content: str, file: Path) -> tuple[list[str], bool]:
    """Split the file into records, each with its line end, and report whether a truncated last record was dropped.

    A quoted cell may contain line breaks. A last record without a line end is kept only if it has all of its cells: an
    editor may omit the line end, whereas a crash truncates the record.
    """
    records: list[str] = []
    pending = ""
    for line in _lines(content):
        pending += line
        if pending.count('"') % 2 == 0 and pending.endswith("\n"):
            records.append(pending)
            pending = ""
    if not pending:
        return records, False
    if records and pending.count('"') % 2 == 0:
        separator = _separator(records[0])
        if len(_parsed(pending, separator)) >= len(_parsed(records[0], separator)):
            return [*records, pending], False
    if not records and not _line(COLUMNS).startswith(pending):
        raise CorrectionsError(f"{file}: is not a corrections file; it needs the columns {', '.join(COLUMNS)}.")
    return records, True


def _lines(content: str) -> list[str]:
    # str.splitlines would also split at form feeds and Unicode line separators, which names may contain.
    parts = content.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _columns(header: str, file: Path) -> dict[str, int]:
    names = [name.strip().lower() for name in _parsed(header.lstrip("\ufeff"), _separator(header))]
    missing = [name for name in ("path", "action") if name not in names]
    if missing:
        raise CorrectionsError(
            f"{file}: is not a corrections file (no column {join_names(missing)}); it needs {', '.join(COLUMNS)}."
        )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _parsed(record: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(record, newline=""), delimiter=separator), [])
    except csv.Error as error:  # for example a cell of more than 131,072 characters
        start = join_names([record[:40]])
        raise CorrectionsError(f"invalid line in the corrections file, starting with '{start}': {error}.") from None


def _content(stream: BinaryIO, file: Path) -> str:
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_BYTES:
        raise CorrectionsError(f"{file}: {size / 1e6:.0f} MB exceeds the size limit of a corrections file.")
    stream.seek(0)
    return stream.read().decode("utf-8", "surrogateescape")  # file names need not be valid UTF-8


def _line(cells: Iterable[str], separator: str = ",") -> str:
    text = io.StringIO()
    # With this line terminator the writer also quotes cells that contain \r.
    csv.writer(text, delimiter=separator, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cells(correction: Correction) -> list[str]:
    cells = [correction.path, correction.hash, correction.action, correction.label, correction.timestamp or now()]
    return [escape_formula(cell) for cell in cells]


def _written(correction: Correction, header: str, file: Path) -> list[str]:
    """Cells of a decision in the column order of the file's header, which the user may have written."""
    columns = _columns(header, file)
    if correction.label and "label" not in columns:
        raise CorrectionsError(f"{file}: has no column 'label', which a relabel needs; add one to its first line.")
    cells = [""] * len(_parsed(header, _separator(header)))
    for name, cell in zip(COLUMNS, _cells(correction), strict=True):
        if name in columns:
            cells[columns[name]] = cell
    return cells


def _put(stream: BinaryIO, line: bytes) -> None:
    """Append bytes to the file. A partial write, for example on a full disk, is truncated again."""
    end = stream.seek(0, os.SEEK_END)
    try:
        while line:
            line = line[os.write(stream.fileno(), line) :]
        os.fsync(stream.fileno())
    except OSError:
        os.ftruncate(stream.fileno(), end)
        raise


def _replace(file: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            stream.write(text.encode("utf-8", "surrogateescape"))
            stream.flush()
            os.fsync(stream.fileno())

    atomic_write(file, write)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[BinaryIO]:
    """Open the file for reading and writing under an exclusive lock between processes; create it if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Symbolic links are not followed: in a run folder made by someone else, a link could point to any file of the user.
    # O_NONBLOCK avoids waiting for the other end of a FIFO.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        try:
            descriptor = os.open(file, flags, 0o644)
        except OSError:
            if file.is_symlink():
                raise CorrectionsError(f"{file}: is a symbolic link; name the file that it points to.") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CorrectionsError(f"{file}: is not a regular file; name another one.")
        stream = os.fdopen(descriptor, "r+b")
        with stream:
            if os.name == "posix":
                import fcntl

                fcntl.flock(stream, fcntl.LOCK_EX)
            same = False
            with contextlib.suppress(FileNotFoundError):  # another process may have replaced the file
                same = os.path.samestat(os.fstat(stream.fileno()), file.stat())
            if same:
                yield stream
                return
