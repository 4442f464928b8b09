"""Small and read-only file systems, where this process may mount them; permission bits that root obeys too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _mounted(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode == 0


class SmallDisk:
    """A tmpfs. Every file and folder takes whole pages of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int) -> None:
        """May be smaller than what is there: then it is full."""
        assert _mounted("-o", f"remount,size={kilobytes}k", self.path)

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.path).free


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """A file system of that size at a new folder `path`."""
    path.mkdir()
    if not (
        shutil.which("mount")
        and os.geteuid() == 0
        and _mounted("-t", "tmpfs", "-o", f"size={kilobytes}k", "none", path)
    ):
        pytest.skip("a small file system can be mounted by root alone")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """The folder's file system is read-only while this lasts."""
    if not (shutil.which("mount") and os.geteuid() == 0 and _mounted("--bind", path, path)):
        pytest.skip("a read-only file system can be mounted by root alone")
    try:
        assert _mounted("-o", "remount,bind,ro", path)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def as_owner(words: list[str]) -> list[str]:
    """The command as a user's who must obey permission bits: root without the right to pass over them."""
    if os.name != "posix":
        pytest.skip("permission bits are POSIX's")
    if os.geteuid() != 0:
        return words
    if not shutil.which("setpriv"):
        pytest.skip("root passes over permission bits, and setpriv is not here to take that right away")
    rights = "-dac_override,-dac_read_search,-fowner"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *words]


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Nobody may write into the folder or what is below it while this lasts."""
    below = [path, *(p for p in path.rglob("*") if p.is_dir() and not p.is_symlink())]
    before = {p: p.stat().st_mode for p in below}
    for folder in below:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder, mode in before.items():
            folder.chmod(mode)
