"""Disks that fill up at any file: one line that says so, nothing lost, and the same command ends once there is room."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from disks import small_disk
from killing import opened_whole, times_of, unfreeze
from safetensors.torch import save_file
from smallruns import TRIED, Undisturbed, cached_in, fit_words, same_found, with_engines

from commandline import Answer, leftovers, run_cli
from unfreeze.core.corrections import Correction, append_correction, read_corrections, withdraw_correction
from unfreeze.core.errors import StorageError
from unfreeze.core.files import atomic_write

FULL = "the disk is full; free some space and run the same command again"


@pytest.mark.parametrize("what", ["run", "cache"])
@pytest.mark.parametrize("strategy", TRIED)
def test_a_disk_that_is_full_again_and_again(
    strategy: str, what: str, photos: Path, undisturbed: Undisturbed, engines: Path, tmp_path: Path
) -> None:
    """It gets a little larger each time, so that it fills up at another file."""
    other, allowed = undisturbed(strategy), {"probe__max_cache_gb": 1.0}
    complaints: list[str] = []
    with small_disk(tmp_path / "disk", 8) as disk:
        run = (disk.path if what == "run" else tmp_path) / "run"
        cache = (disk.path if what == "cache" else tmp_path) / "cache"
        cache.mkdir()
        for kind in engines.iterdir():
            (cache / kind.name).symlink_to(kind)
        kept: dict[Path, int] = {}
        size = 8.0
        with cached_in(cache):
            while (answer := run_cli(*fit_words(strategy, photos, run, **allowed))).code != 0:
                assert answer.code == 2 and "free some space" in answer.complaint and size < 1e5, answer.err
                complaints.append(answer.complaint)
                assert not leftovers(run) and not leftovers(cache)
                opened_whole(run)
                opened_whole(cache)
                now = times_of(run)
                assert kept.items() <= now.items()
                kept = now
                size *= 2.2 if strategy == "probe" else 4
                disk.resize(round(size))
            if "Disk: " in answer.err:  # it did with less than was asked for, and said so
                disk.resize(65_536)
                answer = run_cli(*fit_words(strategy, photos, run, **allowed), "--force")
                assert answer.code == 0 and "Disk: " not in answer.err, answer.err
        same_found(run, other)
    assert len(set(complaints)) > 2, complaints


@pytest.mark.parametrize("library", ["torch", "safetensors", "pyarrow", "numpy"])
def test_a_full_disk_in_the_words_of_a_library(library: str, tmp_path: Path) -> None:
    """Some say only that a position was unexpected."""
    values, table = torch.zeros(100_000), pd.DataFrame({"values": np.random.default_rng(0).normal(size=100_000)})
    write: dict[str, Callable[[Path], object]] = {
        "torch": lambda path: torch.save({"values": values}, path),
        "safetensors": lambda path: save_file({"values": values}, path),
        "pyarrow": lambda path: table.to_parquet(path),
        "numpy": lambda path: np.save(path, values.numpy()),
    }
    with small_disk(tmp_path / "disk", 256) as disk:
        with pytest.raises(StorageError, match=FULL):
            atomic_write(disk.path / "file.npy", write[library])
        assert not list(disk.path.iterdir())


def test_a_correction_that_the_disk_refused_is_not_in_the_file(tmp_path: Path) -> None:
    """What was answered is there, what was refused is not: also where a part of the line still fitted."""
    with small_disk(tmp_path / "disk", 64) as disk:
        file = disk.path / "corrections.csv"
        append_correction(file, Correction("0.jpg", "", "keep", "", "t"))
        (disk.path / "other").write_bytes(b"x" * disk.free)
        saved = ["0.jpg"]
        with pytest.raises(StorageError, match=FULL):
            for number in range(1, 10_000):
                append_correction(file, Correction(f"{number}.jpg", "", "relabel", "red", "2026-01-01T00:00:00+00:00"))
                saved.append(f"{number}.jpg")
        assert len(saved) > 10
        found, findings = read_corrections(file)
        assert [v.path for v in found] == saved and not findings
        with pytest.raises(StorageError, match=FULL):
            withdraw_correction(file, saved[-1])
        assert not leftovers(disk.path) and read_corrections(file)[0] == found
        (disk.path / "other").unlink()
        append_correction(file, Correction("last.jpg", "", "keep", "", "t"))
        assert withdraw_correction(file, saved.pop())
        assert [v.path for v in read_corrections(file)[0]] == [*saved, "last.jpg"]


@pytest.mark.soak
def test_a_converted_network_that_the_disk_has_no_room_for(
    photos: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """OpenVINO may cut its file off without a word: nothing of it is kept or used."""
    run, words = tmp_path / "run", fit_words("probe", photos, tmp_path / "run", probe__max_cache_gb=1.0)
    with small_disk(tmp_path / "disk", 400) as disk, cached_in(disk.path):
        for kilobytes in (400, 1_000, 1_600, 2_000):
            disk.resize(kilobytes)
            answer = run_cli(*words)
            assert answer.code == 2 and FULL in answer.complaint, answer.err
            assert not leftovers(disk.path) and not list((disk.path / "engines").iterdir())
        disk.resize(65_536)
        answer = run_cli(*words)
        assert answer.code == 0, answer.err
    same_found(run, undisturbed("probe"))


@pytest.mark.soak
def test_a_search_on_a_full_disk(photos: Path, tmp_path: Path) -> None:
    """The database's own errors, too, are one line, and the search goes on."""
    options = [*fit_words("probe", photos, "x")[2:4], *fit_words("probe", photos, "x")[6:], "--trials", "2"]
    space = ["--space", "image.color=gray,rgb", "--space", "balance.class_weight_power=0.0..1.0"]
    complaints: list[str] = []
    with small_disk(tmp_path / "disk", 8) as disk, cached_in(tmp_path / "cache"):
        words = ["tune", photos, *options, *space, "--run", disk.path / "search"]
        size = 8.0
        while (answer := run_cli(*words)).code != 0:
            assert answer.code == 2 and "disk is full" in answer.complaint and size < 1e5, answer.err
            complaints.append(answer.complaint)
            assert not leftovers(disk.path)
            size *= 1.6
            disk.resize(round(size))
        assert opened_whole(disk.path) > 10
    assert len(set(complaints)) > 1, complaints


def test_files_that_may_not_grow(photos: Path, undisturbed: Undisturbed, engines: Path, tmp_path: Path) -> None:
    """A limit on the size of a file, which the kernel keeps for any user: no mount is needed for it."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    run, other = tmp_path / "run", undisturbed("probe")
    with cached_in(tmp_path / "cache"):
        with_engines(tmp_path, engines)
        shutil.copytree(other.parent / "cache" / "looks", tmp_path / "cache" / "looks")
        words = fit_words("probe", photos, run)
        ended = subprocess.run(unfreeze(*words), preexec_fn=limited, capture_output=True, text=True, check=False)
        # NumPy does not say why it could not write.
        complaint = Answer(ended.returncode, "", ended.stderr).complaint
        assert "the file system takes no file this large" in complaint or FULL in complaint
        assert ended.returncode == 2 and not leftovers(tmp_path)
        answer = run_cli(*words)
        assert answer.code == 0, answer.err
    same_found(run, other)
