"""A folder of hostile photos and names: each bad one is named, the good ones are used, nothing else happens."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from commandline import run_cli
from hostile import CLASSES, NAMES, hostile_photos, many_scans, odd_photos, png_bomb, unreadable_photos
from photosets import class_folders
from spent import cost_of_refusing, in_a_process_of_its_own, peak_of_decoding
from unfreeze.core.errors import PhotoError
from unfreeze.data.decode import decode, load_crop, read_bytes
from unfreeze.data.directory_walk import scan_folder
from unfreeze.data.image_structure import SCANS, count_jpeg_scans

FIT = ["--strategy", "probe", "--quality", "fast", "--folds", "3", "--set", "engine=openvino-f32"]
BAD = {name: data for name, data in unreadable_photos().items() if not name.endswith(".eps")}
UNREAD = {f"{CLASSES[0]}/bad_{name}" for name in BAD} | {f"{CLASSES[0]}/passwd.jpg"}
HIDDEN = tuple(name for name in NAMES if name.startswith("."))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_photos(tmp_path_factory.mktemp("hostile") / "photos")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where a name that was taken for a command would leave `executed`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(unreadable_photos()))
def test_what_is_no_photo_is_refused(name: str) -> None:
    with pytest.raises(PhotoError) as told:
        decode(unreadable_photos()[name], path="a.jpg")
    assert str(told.value).startswith("a.jpg: ") and "\n" not in str(told.value)


def test_all_that_is_no_photo_is_refused_at_once_and_takes_no_memory() -> None:
    seconds, grown = in_a_process_of_its_own(cost_of_refusing)
    assert seconds < 5 * len(unreadable_photos()) and grown < 400e6


@pytest.mark.parametrize("name", sorted(odd_photos(0)))
def test_what_is_odd_is_a_photo(name: str) -> None:
    pixels = decode(odd_photos(0)[name])
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert load_crop(odd_photos(0)[name], 32, 0.9).shape == (32, 32, 3)


def test_a_jpeg_of_many_scans_is_refused_unopened_and_a_usual_one_is_not() -> None:
    """Without the limit the first took 1.3 s of CPU for each hundred scans of 3,000 x 3,000 pixels."""
    data = many_scans(4000, 20_000)
    assert len(data) < 3_000_000 and count_jpeg_scans(data) > 20_000
    began = time.process_time()
    with pytest.raises(PhotoError, match=f"more than {SCANS} scans"):
        decode(data, 64)
    assert time.process_time() - began < 0.5
    assert 1 < count_jpeg_scans(odd_photos(0)["progressive.jpg"]) <= SCANS


def test_a_true_bomb_is_refused_and_may_be_let_in() -> None:
    with pytest.raises(PhotoError, match=r"bomb|more than the limit"):
        decode(png_bomb())
    with pytest.raises(PhotoError, match="30000 x 30000 pixels are more than the limit"):
        # Pillow's own limit is higher than ours only for what it is told; ours holds by itself.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            decode(png_bomb())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def test_large_photos_wait_for_each_other() -> None:
    """Four threads that decode 40 megapixels each take little more memory than one does, where the budget is one's."""
    budget = 400_000_000
    one = in_a_process_of_its_own(peak_of_decoding, 1, budget)
    assert 100e6 < one < budget, "the figure is of the decoding"
    # The pixels that others wait with before they shrink them are 120 MB each at most.
    assert in_a_process_of_its_own(peak_of_decoding, 4, budget) < one + 3 * 130e6


def test_every_name_is_walked_and_read(photos: Path) -> None:
    found = scan_folder(photos)
    there = {path.rpartition("/")[2] for path in found.photos}
    assert there >= set(NAMES) - set(HIDDEN)
    for path in found.photos:
        if path.rpartition("/")[2] in NAMES:
            assert decode(read_bytes(photos / path)).size
    assert all(not Path(path).is_absolute() and ".." not in Path(path).parts for path in found.photos)


def test_the_whole_check_names_each_bad_photo(photos: Path, here: Path) -> None:
    answer = run_cli("check", photos, "--json", "--report", "eda.html")
    assert answer.code == 0 and "Traceback" not in answer.err
    told = json.loads(answer.out)
    named = {one["path"] for one in told["findings"] if one["check"] == "unreadable"}
    assert named == UNREAD
    messages = " ".join(one["message"] for one in told["findings"])
    for said in ("not valid UTF-8", "broken links", "already read", "hidden file"):
        assert said in messages
    page = Path("eda.html").read_text("utf-8")
    assert "<script>window.hit" not in page and "<img src=x" not in page and "root:x:" not in page
    assert sorted(path.name for path in Path().iterdir()) == ["eda.html"]
    shown = run_cli("check", photos)
    assert shown.code == 0 and not any(ord(c) < 32 and c != "\n" for c in shown.out), "no name drives a terminal"


@pytest.mark.soak
def test_the_whole_fit_uses_the_good_ones_and_predicts_all(photos: Path, here: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in photos.rglob("*")}
    answer = run_cli("fit", photos, *FIT, "--run", "run")
    assert answer.code == 0 and "Traceback" not in answer.err, answer.err
    judged = pd.read_parquet("run/oof.parquet")["path"]
    good = {f"{CLASSES[i % 3]}/{name}" for i, name in enumerate(NAMES) if name not in HIDDEN}
    good |= {f"{label}/{name}" for label in CLASSES for name in odd_photos(0)}
    assert good <= set(judged) and not any("/bad_" in path for path in judged)
    for words in (["scores", "run"], ["report", "run"], ["label-issues", "run"], ["runs", "."]):
        answer = run_cli(*words)
        assert answer.code == 0 and "Traceback" not in answer.err, answer.err
    answer = run_cli("predict", "run", photos, "--out", "p.parquet")
    assert answer.code == 0, answer.err
    table = pd.read_parquet("p.parquet").set_index("path")
    assert set(judged) <= set(table.index)
    assert set(table.index[table["error"] != ""]) == {f"{CLASSES[0]}/bad_{n}" for n in BAD} | {
        f"{CLASSES[0]}/passwd.jpg"
    }
    assert {path: path.lstat().st_mtime_ns for path in photos.rglob("*")} == before, "photos are never changed"
    assert sorted(path.name for path in Path().iterdir()) == ["p.parquet", "run"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small, good set of photos, and `run`, fitted to it, beside it. Not to be changed."""
    source = class_folders(tmp_path_factory.mktemp("small") / "photos", groups=4)
    assert run_cli("fit", source, *FIT, "--run", source.parent / "run").code == 0
    return source


@pytest.mark.soak
@pytest.mark.parametrize("name", ["-rf", "a\nb", "'; touch executed '", "x" * 200, "..."])
def test_the_folder_itself_may_have_any_name(name: str, here: Path, small: Path) -> None:
    """And no command that is made of it does anything else."""
    source = Path(shutil.copytree(small, here / name))
    answer = run_cli("fit", source, *FIT)
    assert answer.code == 0, answer.err
    (run,) = Path("runs").iterdir()
    for words in (["report", run], ["scores", run], ["check", source, "--report", "eda.html"]):
        answer = run_cli(*words)
        assert answer.code == 0 and "Traceback" not in answer.err, answer.err
    shown = json.loads((run / "run.json").read_text("utf-8"))["command"]
    assert str(source) in shlex.split(shown), "what is shown to be copied is one word in a shell"
    assert not Path("executed").exists()


@pytest.mark.soak
def test_names_that_are_not_utf8_are_refused_in_a_line(
    here: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = os.fsdecode(b"\xff\xfe")
    folder = Path(shutil.copytree(small, here / raw))
    photo = here / f"{raw}.jpg"
    photo.write_bytes(next(small.rglob("*.jpg")).read_bytes())
    run = small.parent / "run"
    for words in (
        ["fit", folder, *FIT],
        ["fit", small, *FIT, "--run", raw],
        ["check", folder],
        ["predict", run, photo, "--out", "p.csv"],
        ["predict", run, folder, "--out", "p.parquet"],
        ["predict", run, small, "--out", f"{raw}.csv"],
    ):
        answer = run_cli(*words)
        assert answer.code == 2 and "not valid UTF-8" in answer.complaint
    monkeypatch.chdir(folder)
    for words in (["fit", ".", *FIT], ["check", "red"], ["predict", run, ".", "--out", "p.csv"]):
        answer = run_cli(*words)
        assert answer.code == 2 and "not valid UTF-8" in answer.complaint
    assert sorted(path.name for path in here.iterdir()) == sorted([raw, photo.name])
    assert not list(here.rglob("p.csv"))
