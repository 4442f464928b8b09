"""Where the files of an export go: together, whole, or not at all."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from unfreeze.core.errors import StorageError
from unfreeze.core.files import storage_errors
from unfreeze.deliver.export_formats import Format


def target_of(form: Format, target: Path, force: bool) -> Path:
    """Where the file goes. StorageError if it may not go there, before any work is done for it."""
    if target.suffix.lower() != form.suffix:
        raise StorageError(
            f"--out {target}: {form.name} is written as {form.suffix}; name it {target.stem}{form.suffix}."
        )
    for file in (*form.files(target), sheet_of(target)):
        if file.is_dir():
            raise StorageError(f"{file}: a folder of this name is in the way; choose another --out.")
        if file.exists() and not force:
            raise StorageError(f"{file}: exists; --force overwrites it, --out FILE writes another.")
    return target


def sheet_of(file: Path) -> Path:
    """The JSON beside a file."""
    return file.with_name(f"{file.name}.json")


@contextlib.contextmanager
def put_together(form: Format, target: Path) -> Iterator[Path]:
    """A path in a folder of its own beside `target`; what lies there at the end is put in place, the file last.

    A file never lies beside weights or a sheet that are not its own; after an error all is as it was.
    """
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    with storage_errors(target):
        folder.mkdir(parents=True)
        try:
            file = folder / target.name
            yield file
            target.unlink(missing_ok=True)
            for made, place in zip(
                (sheet_of(file), *form.files(file)), (sheet_of(target), *form.files(target)), strict=True
            ):
                made.replace(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def bytes_of(form: Format, file: Path) -> int:
    """Of a file and what belongs to it."""
    return sum(f.stat().st_size for f in form.files(file))
