"""predict with several images: files, folders, tables and patterns mixed; addresses; a line for each of few."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import unfreeze as uf
from commandline import Answer

Run = Callable[..., Answer]


@pytest.fixture
def new(photos: Path, cli: Run) -> Path:
    """In the working folder: new/red with 4 photos, new/blue with 2, and files of odd names."""
    for name, count in (("red", 4), ("blue", 2)):
        (Path("new") / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir())[:count]:
            shutil.copy(file, Path("new") / name / file.name)
    return Path("new")


def written(path: str = "predictions.csv") -> list[str]:
    return pd.read_csv(path)["path"].tolist()


def images(new: Path) -> list[str]:
    return sorted(file.relative_to(new).as_posix() for file in new.rglob("*.jpg"))


def test_several_files_each_have_a_line(cli: Run, fitted: Path, new: Path) -> None:
    first, second = new / "red" / "g000_0.jpg", new / "blue" / "g200_0.jpg"
    answer = cli("predict", fitted, first, second)
    assert answer.code == 0 and written() == ["red/g000_0.jpg", "blue/g200_0.jpg"]
    table = uf.load(fitted).predict([first, second])
    lines = answer.out.splitlines()
    for line, row in zip(lines[:2], table.to_dict("records"), strict=True):
        p = sorted(((row[f"p_{name}"], name) for name in ("red", "green", "blue")), reverse=True)
        place = Path(row["path"]).relative_to("new").as_posix()
        assert line.split() == [place, p[0][1], f"{p[0][0]:.3f}", p[1][1], f"{p[1][0]:.3f}"]
    assert "share" not in answer.out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["new/red/*.jpg"], ["g000_0.jpg", "g000_1.jpg", "g001_0.jpg", "g001_1.jpg"]),
        (["new/*/g?00_0.jpg"], ["blue/g200_0.jpg", "red/g000_0.jpg"]),
        (["new/**/*.jpg"], None),
        (["new/**"], None),
        (["new/[rb]*"], None),
        (["new"], None),
        (["new/blue", "new/red"], ...),
        (["new/blue", "new/red/g00*.jpg", "new/red/../red/g000_0.jpg", "./new/blue/g200_0.jpg"], ...),
        (["new/red/g000_0.jpg", "list.csv"], ["red/g000_0.jpg", "blue/g200_1.jpg", "red/g001_0.jpg"]),
        (["*.csv"], ["blue/g200_1.jpg", "red/g001_0.jpg"]),
    ],
)
def test_folders_patterns_and_tables(
    cli: Run, fitted: Path, new: Path, given: list[str], expected: list[str] | None
) -> None:
    """Each image once, in the order given, relative to the deepest folder that holds all of them."""
    Path("list.csv").write_text("file\nnew/blue/g200_1.jpg\nnew/red/g001_0.jpg\nnew/red/g001_0.jpg\n")
    (new / "notes.txt").write_text("no photo")
    answer = cli("predict", fitted, *given, "--out", "out.csv")
    assert answer.code == 0, answer.err
    found = written("out.csv")
    if given == ["*.csv"]:  # a table alone keeps its rows and its root
        assert found == ["new/blue/g200_1.jpg", "new/red/g001_0.jpg", "new/red/g001_0.jpg"]
        return
    assert found == (expected if isinstance(expected, list) else images(new))
    assert pd.read_csv("out.csv")["error"].isna().all()


def test_what_was_written_is_read_back(cli: Run, fitted: Path, new: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(new, elsewhere)
    answer = cli("predict", fitted, new, elsewhere / "red", "--out", "p.csv")
    assert answer.code == 0 and len(set(written("p.csv"))) == 10
    root = next(line for line in answer.out.splitlines() if "start from" in line).split("--root ")[1].rstrip(".")
    assert len(uf.read("p.csv", root=root, label="label")) == 10
    assert cli("predict", fitted, "p.csv", "--root", root).code == 0 and len(written()) == 10


def test_content_and_odd_names_count(cli: Run, fitted: Path, new: Path) -> None:
    photo = new / "red" / "g000_0.jpg"
    for name in ("nosuffix", "a[1].jpg", "star*.jpg", "what?.jpg", "x.dat", "--force.jpg"):
        shutil.copy(photo, name)
    odd = ["nosuffix", "a[1].jpg", "star*.jpg", "what?.jpg", "x.dat", "./--force.jpg"]
    answer = cli("predict", fitted, *odd)
    assert answer.code == 0, answer.err
    # A CSV has an apostrophe before a name that a spreadsheet would compute.
    assert [name.removeprefix("'") for name in written()] == [Path(name).name for name in odd]


def test_many_are_counted_instead(cli: Run, fitted: Path, photos: Path) -> None:
    answer = cli("predict", fitted, photos / "red", photos / "green" / "g100_0.jpg")
    assert answer.code == 0 and "share" in answer.out and "g100_0.jpg" not in answer.out
    twenty = sorted((photos / "red").iterdir())[:20]
    answer = cli("predict", fitted, *twenty)
    assert "share" not in answer.out and all(file.name in answer.out for file in twenty)


def test_a_photo_without_a_prediction_has_its_line_too(cli: Run, fitted: Path, new: Path) -> None:
    Path("bad.jpg").write_bytes(b"x")
    answer = cli("predict", fitted, new / "blue", "bad.jpg")
    assert "bad.jpg" in answer.out and "not predicted: not an image" in answer.out
    table = pd.read_csv("predictions.csv")
    assert table["label"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["https://example.org/a.jpg"], "https://example.org/a.jpg: an address on the network"),
        (["HTTP://example.org/a.jpg"], "Download the images first"),
        (["s3://bucket/a.jpg"], "s3://bucket/a.jpg: an address"),
        (["file:///a.jpg"], "Give the path alone: /a.jpg"),
        (["-"], "standard input is not read"),
        (["new/*.bmp"], "no file matches this pattern"),
        (["new/*.txt"], "no images among"),
        (["new", "absent.jpg"], "absent.jpg: no such file"),
        (["new/notes.doc"], "neither a photo"),
    ],
)
def test_what_is_none_is_one_line(cli: Run, fitted: Path, new: Path, given: list[str], said: str) -> None:
    (new / "notes.doc").write_text("x")
    (new / "notes.txt").write_text("x\n")
    if given == ["new/*.txt"]:
        given = ["new/*.doc"]
    for command in ("predict", "explain"):
        answer = cli(command, fitted, *given)
        assert answer.code == 2 and said in answer.complaint
    assert not Path("predictions.csv").exists() and not Path("explain.html").exists()


@pytest.mark.parametrize("command", ["check", "fit"])
def test_an_address_is_explained_wherever_a_source_is_named(cli: Run, command: str) -> None:
    assert "an address on the network" in cli(command, "https://example.org/photos.zip").complaint


@pytest.mark.skipif(os.name != "posix", reason="FIFOs are POSIX")
def test_a_fifo_does_not_block(cli: Run, fitted: Path, new: Path) -> None:
    os.mkfifo("pipe.jpg")
    os.mkfifo("pipe")
    for given in ("pipe.jpg", "pipe"):
        assert "no such file" in cli("predict", fitted, given).complaint
    assert cli("predict", fitted, "p*", "new/blue/*").code == 2


def test_options_hold_for_several(cli: Run, fitted: Path, new: Path) -> None:
    files = [new / "red" / "g000_0.jpg", new / "red" / "g000_1.jpg", new / "blue" / "g200_0.jpg"]
    answer = cli("predict", fitted, *files, "--group-regex", r"(?P<group>g\d+)_")
    assert answer.code == 0 and answer.out.splitlines()[0].startswith("red/g000_0.jpg")
    assert "is not a table" in cli("predict", fitted, *files, "--group", "x").complaint
    Path("template.csv").write_text("id,label\n" + "".join(f"{file.name},x\n" for file in files[::-1]))
    answer = cli("predict", fitted, *files, "--template", "template.csv", "--out", "s.csv")
    assert answer.code == 0, answer.err
    assert pd.read_csv("s.csv")["id"].tolist() == [file.name for file in files[::-1]]
    assert answer.out.splitlines()[0].split()[0] == "red/g000_0.jpg"
    assert "would overwrite its own input" in cli("predict", fitted, "*.csv", "--out", "template.csv").complaint


def test_explain_takes_the_same(cli: Run, fitted: Path, new: Path) -> None:
    answer = cli("explain", fitted, "new/*/g?00_0.jpg", new / "red", "--out", "why.html")
    assert answer.code == 0 and "5 photo(s) explained" in answer.out


def test_standard_input_is_bytes_in_python(fitted: Path, photos: Path) -> None:
    file = sorted((photos / "red").iterdir())[0]
    stream = io.BufferedReader(io.BytesIO(file.read_bytes()))
    assert uf.load(fitted).predict(stream)["path"].tolist() == ["<image 0>"]
