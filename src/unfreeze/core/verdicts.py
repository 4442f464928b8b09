"""verdicts.csv: what a person decided about photos, a line a decision, on the disk before the page says so.

The file only grows, and the last line about a photo counts. A last line that was cut off by a crash is passed over
and cut away by the next decision. A cell that a spreadsheet would take for a formula has an apostrophe before it,
which reading takes off again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from unfreeze.core.cells import guarded, plain
from unfreeze.core.errors import VerdictsError, listed, nearest
from unfreeze.core.files import storage_errors, write_whole
from unfreeze.core.tables import Finding

NAME = "verdicts.csv"
COLUMNS = ("path", "hash", "verdict", "label", "when")
VERDICTS = ("keep", "relabel", "exclude")
MAX_BYTES = 200_000_000
_WRITING = threading.Lock()  # flock is between processes; this is between threads


@dataclass(frozen=True)
class Verdict:
    """One decision. hash: the photo's content hash when it was made, or empty. label: the new one of a relabel."""

    path: str
    hash: str
    verdict: str
    label: str = ""
    when: str = ""


def now() -> str:
    """The time for a verdict: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_verdict(file: Path, verdict: Verdict) -> None:
    """Adds one line and waits until the disk has it. StorageError where it cannot be written; VerdictsError if the
    file is something else.
    """
    with _WRITING, storage_errors(file), _locked(file) as stream:
        whole, torn = _records(_content(stream, file), file)
        line = _line(_written(verdict, whole[0], file), _separator(whole[0])) if whole else _line(_cells(verdict))
        if torn:
            stream.truncate(sum(len(record.encode("utf-8", "surrogateescape")) for record in whole))
        head = "" if whole else _line(COLUMNS)
        before = "\n" if whole and not whole[-1].endswith("\n") else ""
        _put(stream, (before + head + line).encode("utf-8", "surrogateescape"))


def withdraw_verdict(file: Path, path: str) -> bool:
    """Takes the last verdict about a photo out again, the file written whole. False if there is none."""
    with _WRITING, storage_errors(file), _locked(file) as stream:
        whole, _ = _records(_content(stream, file), file)
        columns = _columns(whole[0], file) if whole else {}
        for number in range(len(whole) - 1, 0, -1):
            cells = _parsed(whole[number], _separator(whole[0]))
            if cells and plain(cells[columns["path"]]) == path:
                _replace(file, "".join(whole[:number] + whole[number + 1 :]))
                return True
    return False


def read_verdicts(file: Path, classes: Sequence[str] | None = None) -> tuple[list[Verdict], list[Finding]]:
    """The last verdict about each photo, in the file's order, and findings about the file itself.

    classes: if given, a relabel to any other class is an error. VerdictsError names the line: no such file, not a table
    of these columns, an unknown verdict or class, a relabel without a label.
    """
    try:
        with file.open("rb") as stream:
            content = _content(stream, file)
    except FileNotFoundError:
        raise VerdictsError(f"{file}: no such file of verdicts; `unfreeze review RUN` writes one.") from None
    except IsADirectoryError:
        raise VerdictsError(f"{file}: is a folder; name the {NAME} in it.") from None
    except OSError as error:
        raise VerdictsError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    whole, torn = _records(content, file)
    findings = []
    if torn:
        findings.append(
            Finding(
                "verdicts-torn",
                "warning",
                f"{file.name}: its last line was cut off and is passed over",
                "judge that photo again",
            )
        )
    if not whole:
        raise VerdictsError(f"{file}: the file is empty; it needs the columns {', '.join(COLUMNS)}.")
    columns, separator = _columns(whole[0], file), _separator(whole[0])
    last: dict[str, Verdict] = {}
    again, line = 0, 1 + whole[0].count("\n")
    for record in whole[1:]:
        found = _verdict(record, separator, columns, classes, f"{file}, line {line}")
        line += record.count("\n")
        if found is None:
            continue
        again += found.path in last
        last.pop(found.path, None)  # its place is that of its last word
        last[found.path] = found
    if again:
        message = f"{file.name}: {again:,} verdict(s) about a photo that was judged again; the last word counts"
        findings.append(Finding("verdicts-again", "info", message, "none needed"))
    return list(last.values()), findings


def _verdict(
    record: str, separator: str, columns: dict[str, int], classes: Sequence[str] | None, where: str
) -> Verdict | None:
    cells = _parsed(record, separator)
    if not any(cells):
        return None
    if len(cells) <= max(columns[name] for name in ("path", "verdict")):
        raise VerdictsError(f"{where}: has {len(cells)} cell(s); it needs path and verdict. Mend or remove that line.")
    values = {name: plain(cells[i]) if i < len(cells) else "" for name, i in columns.items()}
    path, word, label = values["path"], values["verdict"].strip().lower(), values.get("label", "")
    if not path:
        raise VerdictsError(f"{where}: names no photo. Fill or remove that line.")
    if word not in VERDICTS:
        raise VerdictsError(
            f"{where}: verdict '{listed([values['verdict']])}' of {listed([path])} is unknown; known are "
            f"{', '.join(VERDICTS)}.{nearest(word, VERDICTS)}"
        )
    if word == "relabel" and not label:
        raise VerdictsError(f"{where}: relabels {listed([path])} without a label. Name one, or exclude the photo.")
    if word == "relabel" and classes is not None and label not in classes:
        raise VerdictsError(
            f"{where}: relabels {listed([path])} as '{listed([label])}', which is no class; "
            f"there are {listed(classes, 20)}.{nearest(label, classes)}"
        )
    return Verdict(path, values.get("hash", ""), word, label if word == "relabel" else "", values.get("when", ""))


def _records(content: str, file: Path) -> tuple[list[str], bool]:
    """The file cut into records, each with its line end, and whether a cut-off one was left away.

    A quoted cell may hold line breaks. A last record without a line end counts only if it has all its cells: a person's
    editor may have left the line end out, a crash leaves cells out.
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
        raise VerdictsError(f"{file}: is no file of verdicts; it needs the columns {', '.join(COLUMNS)}.")
    return records, True


def _lines(content: str) -> list[str]:
    # Not splitlines: a form feed or a line separator in a name is no line end.
    parts = content.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _columns(header: str, file: Path) -> dict[str, int]:
    names = [name.strip().lower() for name in _parsed(header.lstrip("\ufeff"), _separator(header))]
    missing = [name for name in ("path", "verdict") if name not in names]
    if missing:
        raise VerdictsError(
            f"{file}: is no file of verdicts (no column {listed(missing)}); it needs {', '.join(COLUMNS)}."
        )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _parsed(record: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(record, newline=""), delimiter=separator), [])
    except csv.Error as error:  # a cell of more than 131,072 characters, for one
        start = listed([record[:40]])
        raise VerdictsError(f"the line that starts with '{start}' of the file of verdicts: {error}; mend it.") from None


def _content(stream: BinaryIO, file: Path) -> str:
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_BYTES:
        raise VerdictsError(f"{file}: {size / 1e6:.0f} MB is more than a file of verdicts may have.")
    stream.seek(0)
    return stream.read().decode("utf-8", "surrogateescape")  # names need not be UTF-8


def _line(cells: Iterable[str], separator: str = ",") -> str:
    text = io.StringIO()
    # Ended so, a \r in a cell is quoted as well.
    csv.writer(text, delimiter=separator, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cells(verdict: Verdict) -> list[str]:
    cells = [verdict.path, verdict.hash, verdict.verdict, verdict.label, verdict.when or now()]
    return [guarded(cell) for cell in cells]


def _written(verdict: Verdict, header: str, file: Path) -> list[str]:
    """The cells in the order of the file's own header, which a person may have written."""
    columns = _columns(header, file)
    if verdict.label and "label" not in columns:
        raise VerdictsError(f"{file}: has no column 'label', which a relabel needs; add one to its first line.")
    cells = [""] * len(_parsed(header, _separator(header)))
    for name, cell in zip(COLUMNS, _cells(verdict), strict=True):
        if name in columns:
            cells[columns[name]] = cell
    return cells


def _put(stream: BinaryIO, line: bytes) -> None:
    """Puts it behind the file's content, all of it or nothing: what a full disk has refused must not be read later."""
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

    write_whole(file, write)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[BinaryIO]:
    """The file open for reading and writing, made if it is not there, no other process writing it meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        with stream:
            if os.name == "posix":
                import fcntl

                fcntl.flock(stream, fcntl.LOCK_EX)
            same = False
            with contextlib.suppress(FileNotFoundError):  # another process may have put a new file in its place
                same = os.path.samestat(os.fstat(stream.fileno()), file.stat())
            if same:
                yield stream
                return
