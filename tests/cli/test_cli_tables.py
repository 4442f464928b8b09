"""Tables as people have them, through the commands: read, predicted, written, read again."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from commandline import Answer


@pytest.fixture
def new(photos: Path, tmp_path: Path) -> Path:
    """12 photos of two classes without suffixes in their table, which is in cp949."""
    folder = tmp_path / "새 사진"
    folder.mkdir()
    rows = []
    for name in ("red", "green"):
        for i, file in enumerate(sorted((photos / name).iterdir())[:12:2]):
            shutil.copy(file, folder)
            rows.append(f"{file.stem},{name},{name + '사람' if i % 3 else ''}")
    (tmp_path / "목록.csv").write_bytes(("번호,label,person\n" + "\n".join(rows) + "\n").encode("cp949"))
    return tmp_path / "목록.csv"


def good(answer: Answer) -> Answer:
    assert answer.code == 0, answer.err
    return answer


def test_a_table_is_read_predicted_and_read_again(cli, fitted: Path, new: Path) -> None:
    checked = good(cli("check", new))
    assert "CSV 목록.csv (cp949, '번호'): paths in '번호' (in 새 사진; without suffix, found as .jpg)" in checked.out
    assert "without a group in 'person'" in checked.out
    predicted = good(cli("predict", fitted, new, "--group", "person", "--out", "p.csv"))
    assert "paths in '번호' (in 새 사진; without suffix, found as .jpg)." in predicted.err
    assert "4 images of 12 without a group in 'person': each is a group of its own." in predicted.err
    good(cli("predict", fitted, "p.csv", "--root", new.parent, "--out", "q.csv"))
    first, second = pd.read_csv("p.csv"), pd.read_csv("q.csv")
    assert first["path"].tolist() == second["path"].tolist()
    assert "CSV p.csv: paths in 'path', label 'label'" in good(cli("check", "p.csv", "--root", new.parent)).out
    again = good(cli("fit", "p.csv", "--root", new.parent, "--strategy", "probe", "--quality", "fast", "--folds", "3"))
    assert "12 photos, 2 classes, 12 groups" in again.err
    refused = cli("predict", fitted, new, "--group", "label", "--encoding", "big5", "--out", "p.csv")
    assert refused.code == 2
    assert "big5" in refused.complaint


def test_the_remedy_of_a_message_is_a_command_that_works(cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "labels").mkdir(parents=True)
    shutil.copytree(photos, tmp_path / "set" / "images")
    files = sorted((tmp_path / "set" / "images").glob("*/*.jpg"))
    rows = [f"../images/{file.parent.name}/{file.name},{file.parent.name}" for file in files]
    source = tmp_path / "set" / "labels" / "t.csv"
    source.write_text("file,label\n" + "\n".join(rows) + "\n")
    refused = cli("check", source)
    assert refused.code == 2
    option = shlex.split(re.search(r"(--root .*)\.\s*$", refused.complaint)[1])
    assert f"{len(files)} photos" in good(cli("check", source, *option)).out


def test_a_template_of_probabilities(cli, fitted: Path, new: Path) -> None:
    images = new.parent / "새 사진"
    ids = sorted(file.stem for file in images.iterdir())
    Path("t.csv").write_text("id,red,blue,green\n" + "".join(f"{i},0.3,0.3,0.4\n" for i in ids))
    answer = good(cli("predict", fitted, images, "--template", "t.csv", "--out", "s.csv"))
    assert "t.csv: filled with the probability of 'red', 'blue', 'green'." in answer.err
    found = pd.read_csv("s.csv")
    assert found.columns.tolist() == ["id", "red", "blue", "green"]
    assert found["id"].tolist() == ids
    assert ((found[["red", "blue", "green"]].sum(axis=1) - 1).abs() < 1e-6).all()
    good(cli("predict", fitted, images, "--out", "p.parquet"))
    assert found["blue"].tolist() == pd.read_parquet("p.parquet")["p_blue"].tolist()
    good(cli("predict", fitted, "s.csv", "--root", images, "--out", "p.csv"))
    Path("t.csv").write_text("id,label\n" + "".join(f"{i},0.5\n" for i in ids))
    refused = cli("predict", fitted, images, "--template", "t.csv", "--out", "half.csv")
    assert refused.code == 2
    assert "unclear of which class" in refused.complaint
    assert not Path("half.csv").exists()
