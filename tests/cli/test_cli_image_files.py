"""Images that cannot be read here, or whose names do not say that they are images: said by every command."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from commandline import Answer
from photosets import CLASSES, class_folders, draw
from tarsets import add, jpeg
from unfreeze.data import image_formats
from unfreeze.data.directory_walk import scan_folder

Cli = Callable[..., Answer]
FIT = ("--strategy", "probe", "--quality", "fast", "--folds", "3")
HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(90)
FILES = {
    "a.heic": HEIC,
    "b.HEIF": HEIC + b"b",
    "c.jpg": HEIC + b"c",
    "d": HEIC + b"d",
    "e.jxl": b"\xff\x0a" + bytes(60),
    "f.dng": b"II*\0\x10\0\0\0CR\x02\0" + bytes(60),
    "g.dcm": bytes(128) + b"DICM" + bytes(60),
    "h.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "i.psd": b"8BPS" + bytes(60),
    "j.exr": b"\x76\x2f\x31\x01" + bytes(60),
    "k.jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
}


@pytest.fixture(autouse=True)
def _without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """18 good photos, 11 of FILES in the first class."""
    root = class_folders(tmp_path / "mixed", groups=3)
    for name, data in FILES.items():
        (root / CLASSES[0] / name).write_bytes(data)
    return root


def encoded(colour: int, group: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    draw(colour, group, 0).save(file, kind)
    return file.getvalue()


def test_check_counts_each_format(cli: Cli, mixed: Path) -> None:
    answer = cli("check", mixed, "--json", "--fail-on", "warning", "--report", "eda.html")
    assert answer.code == 1
    findings = json.loads(answer.out)["findings"]
    formats = {f["message"].split(": ")[0].split(", ")[1]: f for f in findings if f["check"] == "formats"}
    counts = {name: int(f["message"].split()[0]) for name, f in formats.items()}
    assert counts == {
        "HEIC": 4,
        **dict.fromkeys(("JPEG XL", "JPEG 2000", "camera RAW", "DICOM", "SVG", "Photoshop", "OpenEXR"), 1),
    }
    assert all(f["severity"] == "warning" for f in formats.values())
    assert "pip install 'unfreeze[heic]'" in formats["HEIC"]["fix"]
    assert "4 images in a format that cannot be decoded here, HEIC" in Path("eda.html").read_text("utf-8")
    shown = cli("check", mixed)
    assert "4 images in a format that cannot be decoded here, HEIC" in shown.out and "18 photos" not in shown.out


def test_fit_says_it_and_predict_has_a_row_for_each(cli: Cli, mixed: Path) -> None:
    answer = cli("fit", mixed, *FIT, "--run", "run")
    assert answer.code == 0
    assert "4 images in a format that cannot be decoded here, HEIC" in answer.err
    assert "4 images in a format that cannot be decoded here, HEIC" in Path("run/report.html").read_text("utf-8")
    assert cli("predict", "run", mixed, "--out", "p.parquet").code == 0
    table = pd.read_parquet("p.parquet").set_index("path")
    assert len(table) == 18 + len(FILES)
    assert set(table.index[table["error"] != ""]) == {f"{CLASSES[0]}/{name}" for name in FILES}
    assert "unfreeze[heic]" in table["error"][f"{CLASSES[0]}/c.jpg"]
    # A table and an archive of the same files.
    (mixed / "all.csv").write_text("path\n" + "\n".join(table.index) + "\n", "utf-8")
    assert cli("predict", "run", mixed / "all.csv", "--out", "q.parquet").code == 0
    pd.testing.assert_frame_equal(pd.read_parquet("q.parquet").set_index("path").loc[table.index], table)
    with tarfile.open("all.tar", "w") as archive:
        for name, data in FILES.items():
            add(archive, f"x/{name}", data)
        add(archive, "x/good.jpg", jpeg(0, 0, 0))
    assert cli("predict", "run", "all.tar", "--out", "t.parquet").code == 0
    inside = pd.read_parquet("t.parquet")
    assert len(inside) == len(FILES) + 1 and (inside["error"] == "").sum() == 1
    # A single file, by its path.
    answer = cli("predict", "run", mixed / CLASSES[0] / "a.heic", "--out", "one.csv")
    assert answer.code == 1 and "none of 1 photo could be read" in answer.complaint and "HEIC" in answer.complaint


def test_where_none_can_be_read(cli: Cli, fitted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.heic").write_bytes(HEIC + bytes([i]))
    answer = cli("predict", fitted, folder, "--json")
    assert answer.code == 1 and "none of 3 photos could be read" in answer.complaint
    told = {"out": "predictions.csv", "root": str(folder), "photos": 3, "errors": 3, "labels": {}}
    assert json.loads(answer.out) == told
    assert len(pd.read_csv("predictions.csv")) == 3
    Path("t.csv").write_text("id,label\n0.heic,\n1.heic,\n2.heic,\n")
    answer = cli("predict", fitted, folder, "--template", "t.csv", "--out", "s.csv")
    assert answer.code in (1, 2) and not Path("s.csv").exists()
    draw(0, 0, 0).save(folder / "good.jpg")
    answer = cli("predict", fitted, folder)
    assert answer.code == 0 and "1 photo predicted by 3 folds; 3 more could not be read" in answer.out


def test_a_class_of_nothing_else_is_named(cli: Cli, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos", groups=3)
    (root / "heic").mkdir()
    for i in range(4):
        (root / "heic" / f"{i}.heic").write_bytes(HEIC + bytes([i]))
    answer = cli("check", root)
    assert "all images of class 'heic'" in answer.out and "unfreeze[heic]" in answer.out
    alone = tmp_path / "alone"
    for name in ("a", "b"):
        shutil.copytree(root / "heic", alone / name)
    answer = cli("fit", alone, *FIT, "--run", "run")
    assert answer.code == 2 and answer.complaint and not Path("run").exists()


def test_images_without_a_suffix_or_of_another_are_read(cli: Cli, tmp_path: Path, fitted: Path) -> None:
    root = class_folders(tmp_path / "photos", groups=3)
    (root / "red" / "noext").write_bytes(encoded(0, 50))
    (root / "red" / "photo.jpg.1").write_bytes(encoded(0, 51, "JPEG"))
    (root / "green" / "photo.dat").write_bytes(encoded(1, 52, "WEBP"))
    (root / "green" / "notes.txt").write_text("BM is a beginning\n" * 20)
    (root / "green" / "labels.json").write_text("{}")
    (root / "blue" / "README").write_text("read me")
    answer = cli("check", root, "--json", "--fail-on", "warning")
    told = json.loads(answer.out)
    assert answer.code == 1 and told["photos"] == 21
    (finding,) = (f for f in told["findings"] if f["check"] == "misnamed_images")
    assert finding["severity"] == "warning"
    assert "3 images" in finding["message"] and "1 PNG without a suffix" in finding["message"]
    assert "1 WEBP ending in .dat" in finding["message"] and "1 JPEG ending in .1" in finding["message"]
    answer = cli("fit", root, *FIT, "--run", "run")
    assert answer.code == 0 and "3 images by content" in answer.err
    assert len(pd.read_parquet("run/oof.parquet")) == 21
    assert cli("predict", fitted, root, "--out", "p.parquet").code == 0
    table = pd.read_parquet("p.parquet")
    assert len(table) == 21 and (table["error"] == "").all()
    assert cli("predict", fitted, root / "red" / "noext", "--out", "one.csv").code == 0


def test_members_of_archives_alike(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as archive:
        for group in range(4):
            for colour, label in enumerate(CLASSES):
                key = f"{label}{group}"
                add(
                    archive,
                    f"{key}.heic" if group == 3 else f"{key}.jpg",
                    HEIC if group == 3 else jpeg(colour, group, 0),
                )
                add(archive, f"{key}.cls", label.encode())
        add(archive, "odd", jpeg(0, 9, 9))
        add(archive, "odd.cls", b"red")
        add(archive, "notes.npy", bytes(80))
    told = json.loads(cli("check", root, "--json").out)
    checks = {f["check"]: f["message"] for f in told["findings"]}
    assert told["photos"] == 13 and "3 images in a format" in checks["formats"]
    assert "1 JPEG without a suffix" in checks["misnamed_images"]


def test_pipes_and_unreadable_files_are_never_waited_for(tmp_path: Path) -> None:
    import os

    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe")
    os.mkfifo(tmp_path / "a" / "pipe.dat")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "x.png")
    found = scan_folder(tmp_path)
    assert found.photos == ["a/x.png"] and sorted(found.others) == ["a/gone", "a/pipe", "a/pipe.dat"]
