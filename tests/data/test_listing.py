"""What is to be predicted: any photo, folder or table, with nothing dropped in silence."""

from __future__ import annotations

import os
import unicodedata

import pytest

from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data.list_images import list_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "._a.png", "notes.txt", ".hidden/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder(folder):
    assert list_images(folder) == (folder, ["a.png", "b.JPG", "sub/c.webp"])


def test_one_photo(folder):
    assert list_images(folder / "b.JPG") == (folder, ["b.JPG"])


def test_a_table_keeps_its_order_and_needs_no_label(folder):
    (folder / "t.csv").write_text("n,file\n1,sub/c.webp\n2,a.png\n3,b.JPG\n")
    assert list_images(folder / "t.csv") == (folder, ["sub/c.webp", "a.png", "b.JPG"])


def test_a_table_with_files_that_are_gone(folder):
    """They become error rows of the prediction."""
    (folder / "t.csv").write_text("file\na.png\ngone.png\nb.JPG\n")
    assert list_images(folder / "t.csv")[1] == ["a.png", "gone.png", "b.JPG"]


def test_root_and_column(folder):
    (folder / "t.csv").write_text("one,two\nc.webp,x\n")
    options = Source(path_column="one", root=str(folder / "sub"))
    assert list_images(folder / "t.csv", options) == (folder / "sub", ["c.webp"])


def test_nothing_to_predict(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(SourceError, match="no photos"):
        list_images(empty)
    with pytest.raises(SourceError, match="no such file"):
        list_images(empty / "x.jpg")
    (empty / "t.csv").write_text("file\n")
    with pytest.raises(SourceError, match="no rows"):
        list_images(empty / "t.csv")
    (empty / "x.pdf").touch()
    with pytest.raises(SourceError, match="neither a photo"):
        list_images(empty / "x.pdf")


def test_paths_that_escape(folder):
    (folder / "sub" / "t.csv").write_text("file\n../a.png\n")
    with pytest.raises(SourceError, match="outside of"):
        list_images(folder / "sub" / "t.csv")


@pytest.mark.skipif(os.name != "posix", reason="made with POSIX permissions")
def test_a_table_that_may_not_be_read(folder, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    (folder / "t.csv").write_text("file\na.png\n")
    monkeypatch.setattr(type(folder), "read_bytes", refuse)
    with pytest.raises(SourceError, match="cannot be read"):
        list_images(folder / "t.csv")


@pytest.mark.parametrize(("typed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_pattern_matches_names_in_any_unicode_form(tmp_path, typed, stored):
    folder = tmp_path / unicodedata.normalize(stored, "사진")
    folder.mkdir()
    for name in ("가.jpg", "나.jpg"):
        (folder / unicodedata.normalize(stored, name)).write_bytes(b"x")
    root, names = list_images(tmp_path / unicodedata.normalize(typed, "사진") / "*.jpg")
    assert root.name == folder.name and len(names) == 2
    assert len(list_images(tmp_path / "*" / unicodedata.normalize(typed, "가*"))[1]) == 1
