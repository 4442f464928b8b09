"""A run folder that somebody else made: links, FIFOs and files that decode to gigabytes are a one-line error."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.test_runs import RECIPE, photos, run, write  # noqa: F401 - fixtures
from unfreeze.core import dataset
from unfreeze.core.corrections import Correction, append_correction, read_corrections, withdraw_correction
from unfreeze.core.dataset import read_parquet
from unfreeze.core.errors import CorrectionsError, RunError
from unfreeze.core.files import MAX_JSON_BYTES, read_json, regular_file
from unfreeze.core.runs import create_run, list_runs, open_run, read_log

FILES = (
    "run.json",
    "recipe.toml",
    "scores.json",
    "photos.parquet",
    "oof.parquet",
    "log.jsonl",
    "corrections.csv",
    ".lock",
)


def within(seconds: float, call) -> BaseException | None:
    """What `call` raises; an error of the test where it has not returned in time."""
    raised: list[BaseException | None] = []

    def run_it() -> None:
        try:
            call()
            raised.append(None)
        except BaseException as error:  # passed on to the test
            raised.append(error)

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, "it blocks"
    return raised[0]


@pytest.mark.parametrize("name", [*FILES, "fold-0", "fold-0/head.safetensors", "scratch", "tensorboard"])
def test_a_link_is_refused_and_what_it_points_to_stays(run, photos, name):  # noqa: F811
    write(run, photos)
    target = run.parent / "thesis.txt"
    target.write_text("years of work")
    at = run / name
    if at.is_dir():
        at.rename(run.parent / "moved")
        target = run.parent / "moved"
    at.unlink(missing_ok=True)
    at.symlink_to(target)
    with pytest.raises(RunError, match="symbolic link"):
        open_run(run)
    for force in (False, True):
        with pytest.raises(RunError, match="symbolic link"), create_run(run, RECIPE, photos, "", force):
            pytest.fail("begun")
    kept = [p.read_bytes() for p in ([target] if target.is_file() else sorted(target.iterdir()))]
    assert kept in ([b"years of work"], [b"head"])


def test_a_run_folder_that_is_a_link_itself_is_the_users_own(run, photos):  # noqa: F811
    write(run, photos)
    link = run.parent / "short"
    link.symlink_to(run)
    assert open_run(link).classes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", FILES)
def test_a_fifo_does_not_block(run, photos, name):  # noqa: F811
    write(run, photos)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert isinstance(within(5, lambda: open_run(run)), RunError)
    assert isinstance(within(5, lambda: create_run(run, RECIPE, photos, "", True).__enter__()), RunError)
    assert within(5, lambda: list_runs(run.parent)) is None
    assert within(5, lambda: read_log(run)) is None
    if name == "corrections.csv":
        correction = Correction("a.jpg", "", "keep")
        assert isinstance(within(5, lambda: append_correction(run / name, correction)), CorrectionsError)
        assert isinstance(within(5, lambda: withdraw_correction(run / name, "a.jpg")), CorrectionsError)
        assert isinstance(within(5, lambda: read_corrections(run / name)), CorrectionsError)


def test_corrections_are_never_written_through_a_link(tmp_path):
    target, link = tmp_path / "profile", tmp_path / "corrections.csv"
    link.symlink_to(target)
    with pytest.raises(CorrectionsError, match="symbolic link"):
        append_correction(link, Correction("$(touch x).jpg", "", "keep"))
    assert not target.exists()
    append_correction(target, Correction("a.jpg", "", "keep"))
    with pytest.raises(CorrectionsError, match="symbolic link"):
        withdraw_correction(link, "a.jpg")
    assert [correction.path for correction in read_corrections(link)[0]] == [
        "a.jpg"
    ]  # reading what the user names is fine


def test_json_is_limited_in_size(tmp_path):
    file = tmp_path / "a.json"
    with file.open("wb") as opened:
        opened.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(OSError, match="limit"):
        read_json(file)
    file.write_text(json.dumps({"a": 1}))
    assert read_json(file) == {"a": 1}
    with pytest.raises(IsADirectoryError):
        regular_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "b")


ROWS = 5_000_000
HUGE = {
    "one long text in every row": lambda: pa.table({"path": pa.DictionaryArray.from_arrays(zeros(), ["x" * 1000])}),
    "one text in every row": lambda: pa.table({"path": pa.DictionaryArray.from_arrays(zeros(), ["x"])}),
    "zeros": lambda: pa.table({f"p_{i}": pa.array(np.zeros(ROWS)) for i in range(8)}),
    "large text": lambda: pa.table({"path": pa.array(["y" * 5_000_000] * 60, pa.large_string())}),
    "lists": lambda: pa.table({"boxes": pa.array([np.zeros(ROWS * 8)])}),
}


def zeros() -> pa.Array:
    return pa.array(np.zeros(ROWS, np.int32))


@pytest.mark.parametrize("name", HUGE)
def test_a_small_parquet_file_of_gigabytes_is_refused_before_it_is_decoded(tmp_path, name):
    file = tmp_path / "oof.parquet"
    pq.write_table(HUGE[name](), file, compression="zstd", row_group_size=1_000_000)
    assert file.stat().st_size < 12e6
    before = pa.total_allocated_bytes()
    pa.default_memory_pool().release_unused()
    with pytest.raises(ValueError, match="once decoded"):
        read_parquet(file)
    with file.open("rb") as opened, pytest.raises(ValueError, match="once decoded"):
        read_parquet(opened)
    assert pa.total_allocated_bytes() - before < 100e6


def test_ordinary_tables_pass_and_are_read_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_MIN_DECODED_BYTES", 1 << 20)
    n = 200_000
    table = pd.DataFrame(
        {
            "path": [f"train/{i % 18}/{i:06d}.jpg" for i in range(n)],
            "label": pd.Categorical.from_codes(np.arange(n) % 3, ["고양이", "dog", "cat"]),
            "p_dog": np.random.default_rng(0).random(n),
        }
    )
    file = tmp_path / "photos.parquet"
    table.to_parquet(file, index=False)
    pd.testing.assert_frame_equal(read_parquet(file), pd.read_parquet(file))
    with file.open("rb") as opened:
        assert list(read_parquet(opened, ["path"]).columns) == ["path"]


def test_a_run_with_such_a_table_is_damaged(run, photos, monkeypatch):  # noqa: F811
    write(run, photos)
    pq.write_table(HUGE["one long text in every row"](), Path(run) / "oof.parquet", compression="zstd")
    with pytest.raises(RunError, match="once decoded"):
        open_run(run).predictions()
