"""Locks as files: one process at a time, and nothing else at their place is followed, emptied or waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from filelock import Timeout

from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import RunError, StorageError
from unfreeze.core.processes import file_lock, is_locked
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import create_run

HOLD = """
import sys, time
from pathlib import Path
from unfreeze.core.processes import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def photos(tmp_path: Path) -> ImageDataset:
    rows = [{"path": f"{i}.jpg", "label": "ab"[i % 2], "group": str(i), "split": "train"} for i in range(4)]
    return ImageDataset(pd.DataFrame(rows), tmp_path, ("a", "b"), ("a", "b"), (), "test", "")


def test_another_process_holds_it_until_it_ends(tmp_path: Path, photos: ImageDataset) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert not is_locked(run / ".lock")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert is_locked(run / ".lock")
    with (
        pytest.raises(RunError, match="another process is writing this run"),
        create_run(run, Recipe(), photos, "", False),
    ):
        pass
    with pytest.raises(Timeout):
        file_lock(run / ".lock", timeout=0).acquire()
    holder.kill()
    holder.wait()
    assert not is_locked(run / ".lock")
    with create_run(run, Recipe(), photos, "", False):
        assert (run / "run.json").exists()


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX")
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(tmp_path: Path, photos: ImageDataset, kind: str) -> None:
    run, thesis = tmp_path / "run", tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    run.mkdir()
    lock = run / ".lock"
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(thesis if kind == "link" else tmp_path / "absent.txt")
    for force in (False, True):
        with (
            pytest.raises((RunError, StorageError), match=r"(?i)\.lock: is .* remove it"),
            create_run(run, Recipe(), photos, "", force),
        ):
            pass
    assert not is_locked(lock)
    assert thesis.read_text() == "years of work" and not (tmp_path / "absent.txt").exists()
    assert [file.name for file in run.iterdir()] == [".lock"]


def test_what_stands_in_a_lock_file_stays(tmp_path: Path) -> None:
    """A hard link at its place is a file like any other."""
    (tmp_path / "thesis.txt").write_text("years of work")
    os.link(tmp_path / "thesis.txt", tmp_path / ".lock")
    with file_lock(tmp_path / ".lock", timeout=0):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
