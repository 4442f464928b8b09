"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from unfreeze.core.errors import StorageError
from unfreeze.core.files import atomic_write, json_memo, read_record, translate_os_errors, write_json, write_text


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "deep" / "er" / "a.json"
    assert write_json(path, {"é": 1}) == path
    write_json(path, {"é": 2})
    assert json.loads(path.read_text("utf-8")) == {"é": 2}
    assert names(path.parent) == ["a.json"]


def test_line_ends_and_utf8_on_every_system(tmp_path):
    assert write_text(tmp_path / "a", "é\nb\n").read_bytes() == "é\nb\n".encode()


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_interrupted_write_leaves_the_old_file(tmp_path, stop):
    path = write_text(tmp_path / "a.txt", "old")

    def write(temporary):
        temporary.write_text("half")
        raise stop

    with pytest.raises(stop):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    """np.save and others append a suffix of their own where it is missing."""
    names = []
    atomic_write(tmp_path / "a.npy", lambda p: (names.append(p.name), p.touch()))
    assert names[0].startswith(".") and names[0].endswith(".npy")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_storage_errors_name_the_path_and_the_remedy(tmp_path, number):
    def write(temporary):
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=r"a\.txt: .*; (free some space|choose)"):
        atomic_write(tmp_path / "a.txt", write)
    assert names(tmp_path) == []


def test_other_system_errors_pass():
    with pytest.raises(ConnectionResetError), translate_os_errors("x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "a"):
        with pytest.raises(StorageError, match=r"file"):
            write_text(path, "")


def test_a_folder_in_the_way_of_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="a folder of this name is in the way"):
        write_text(tmp_path / "a", "")
    assert names(tmp_path) == ["a"]


def test_a_disk_that_fills_up_while_numpy_writes(tmp_path):
    """A real short write: NumPy tells it without an error number."""
    pytest.importorskip("resource")
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from unfreeze.core.errors import StorageError
from unfreeze.core.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    atomic_write(Path(sys.argv[1]) / "a.npy", lambda p: np.save(p, np.zeros(1_000_000)))
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "a.npy: the disk is full" in done.stdout
    assert names(tmp_path) == []


def test_a_memo_is_computed_once_and_again_if_damaged_or_unusable(tmp_path):
    file, asked = tmp_path / "memo.json", []

    def compute():
        asked.append(1)
        return {"n": [len(asked)]}

    def value(minimum=0):
        return json_memo(file, compute, lambda found: found["n"][0] if found["n"][0] >= minimum else None)

    assert [value(), value()] == [1, 1]
    for damaged in ("{", "[]", '{"n": 3}', '{"n": []}', "null", '{"m": [1]}'):
        file.write_text(damaged)
        assert read_record(file, lambda found: found["n"][0]) is None, damaged
        assert value() == len(asked) > 1
    assert value(len(asked) + 1) == len(asked)
    assert read_record(file, lambda found: found["n"], max_bytes=3) is None
    assert read_record(tmp_path / "none.json", bool) is None
