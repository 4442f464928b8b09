"""Folder readers, and the rules that hold for every source."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data.directory_walk import ParsedSource, scan_folder
from unfreeze.data.image_formats import SUFFIXES
from unfreeze.data.readers import READERS, read, register


def plant(root: Path, *names: str) -> Path:
    """Small files named as given; readers never look inside."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def pairs(photos) -> list[tuple[str, str]]:
    return list(zip(photos.table["path"], photos.table["label"], strict=True))


def finding(photos, check: str) -> tuple[str, str]:
    """Severity and message of the one finding of this check."""
    (one,) = [f for f in photos.findings if f.check == check]
    assert one.fix
    return one.severity, one.message


# Class folders


def test_class_folders(tmp_path):
    plant(tmp_path / "pets", "dog/b.png", "cat/2.jpg", "cat/deep/er/1.JPG")
    photos = read(str(tmp_path / "pets"))
    assert photos.reader == "class_folders"
    assert pairs(photos) == [("cat/2.jpg", "cat"), ("cat/deep/er/1.JPG", "cat"), ("dog/b.png", "dog")]
    assert list(photos.table.columns) == ["path", "label", "group", "split"]
    assert list(photos.table.index) == [0, 1, 2]
    assert list(photos.table["group"]) == list(photos.table["path"])
    assert set(photos.table["split"]) == {"train"}
    assert photos.classes == photos.answers == ("cat", "dog")
    assert photos.attributes == ("label",)
    assert photos.root == (tmp_path / "pets").resolve()
    assert photos.choice == "class folders pets, each photo its own group; 3 photos, 2 classes, 3 groups"
    assert photos.findings == ()
    assert all(path.is_file() for path in photos.files())


def test_paths_are_sorted_as_text(tmp_path):
    plant(tmp_path, "a/1/x.png", "a/1.png", "a/10.png", "a/2.png", "a-b/1.png", "B/1.png")
    paths = list(read(tmp_path).table["path"])
    assert paths == sorted(paths)


def test_unicode_names(tmp_path):
    plant(tmp_path, "猫 кот/ä é.jpg", "🐕’/1 2.png", "a,b/x\ty.png")
    photos = read(tmp_path)
    assert photos.classes == tuple(sorted(["猫 кот", "🐕’", "a,b"]))
    assert "猫 кот/ä é.jpg" in set(photos.table["path"])


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_image_suffixes_in_any_case(tmp_path, suffix):
    plant(tmp_path, f"a/1.{suffix}", f"b/1.{suffix.upper()}")
    assert len(read(tmp_path)) == 2


def test_photos_outside_of_classes_and_empty_classes_are_said(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/1.jpg", "loose.jpg", "c/notes.txt")
    (tmp_path / "d").mkdir()
    photos = read(tmp_path)
    assert photos.classes == ("a", "b")
    assert finding(photos, "no_class") == (
        "warning",
        "1 photo outside of class folders skipped, first: loose.jpg",
    )
    assert finding(photos, "empty_class") == ("warning", "2 class folders without photos skipped, first: c")


@pytest.mark.parametrize(
    ("names", "classes", "answers"),
    [
        (["10", "9", "-1", "0"], ("-1", "0", "9", "10"), (-1, 0, 9, 10)),
        (["10", "9", "x"], ("10", "9", "x"), ("10", "9", "x")),
        (["007", "07", "10"], ("007", "07", "10"), ("007", "07", "10")),
        (["Zebra", "ant"], ("Zebra", "ant"), ("Zebra", "ant")),
        (["1", "9" * 30], ("1", "9" * 30), ("1", "9" * 30)),
        (["1", "²"], ("1", "²"), ("1", "²")),
    ],
)
def test_order_of_classes(tmp_path, names, classes, answers):
    photos = read(plant(tmp_path, *(f"{name}/a.jpg" for name in names)))
    assert (photos.classes, photos.answers) == (classes, answers)


def test_one_class(tmp_path):
    with pytest.raises(SourceError, match="needs at least two classes; found only 'x'"):
        read(plant(tmp_path, "x/1.jpg", "x/2.jpg"))


def test_one_class_whose_subfolders_look_like_classes(tmp_path):
    with pytest.raises(SourceError, match=r"Its subfolders look like classes: give .*inner"):
        read(plant(tmp_path, "inner/a/1.jpg", "inner/b/2.jpg"))


# What is passed over


def test_hidden_files_and_folders_are_one_finding(tmp_path):
    plant(
        tmp_path,
        *("a/1.jpg", "b/2.jpg", "a/._1.jpg", ".DS_Store", "b/Thumbs.db", "b/Desktop.ini"),
        *("__MACOSX/a/._1.jpg", "a/.ipynb_checkpoints/1.jpg", ".git/x.png"),
    )
    photos = read(tmp_path)
    assert len(photos) == 2
    assert [f.check for f in photos.findings] == ["hidden"]
    assert finding(photos, "hidden") == ("info", "7 hidden files or folders skipped, first: .DS_Store")


def test_hidden_files_only(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/2.jpg", *(f"a/._{i:02}.jpg" for i in range(13)))
    assert finding(read(tmp_path), "hidden") == ("info", "13 hidden files skipped, first: a/._00.jpg")


def test_hidden_root_is_no_hindrance(tmp_path):
    assert len(read(plant(tmp_path / ".cache", "a/1.jpg", "b/2.jpg"))) == 2


def test_files_that_are_not_images(tmp_path):
    photos = read(plant(tmp_path, "a/1.jpg", "b/2.jpg", "README.md", "a/jpg", "b/x.jpg.txt"))
    assert finding(photos, "not_photos") == (
        "info",
        "3 files that are not images skipped, first: README.md",
    )


def test_names_that_are_not_utf8(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    try:
        for name in (b"a/bad\xff.jpg", b"bad\xfe"):
            path = os.fsencode(tmp_path) + b"/" + name
            if name.endswith(b".jpg"):
                Path(os.fsdecode(path)).write_bytes(b"x")
            else:
                Path(os.fsdecode(path)).mkdir()
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    photos = read(tmp_path)
    assert len(photos) == 2
    severity, message = finding(photos, "names")
    assert severity == "warning"
    assert message == r"2 names that are not valid UTF-8 skipped, first: a/bad\udcff.jpg"
    message.encode("utf-8")


def test_linked_folders_are_followed(tmp_path):
    plant(tmp_path / "elsewhere", "1.jpg")
    plant(tmp_path / "root", "a/1.jpg")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/2.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    assert pairs(read(tmp_path / "root")) == [("a/1.jpg", "a"), ("a/2.jpg", "a"), ("b/1.jpg", "b")]


def test_link_loops_end(tmp_path):
    root = plant(tmp_path / "up" / "root", "a/1.jpg", "b/1.jpg")
    (root / "a/self").symlink_to(root / "a")
    (root / "a/root").symlink_to(root)
    (root / "b/up").symlink_to(tmp_path / "up")
    (root / "b/loop").symlink_to(root / "b/loop")
    (root / "b/gone.jpg").symlink_to(root / "nothing.jpg")
    photos = read(root)
    assert [path for path, _ in pairs(photos)] == ["a/1.jpg", "b/1.jpg"]
    messages = [(f.severity, f.message) for f in photos.findings if f.check == "links"]
    assert messages == [
        ("warning", "3 links to folders that are already read skipped, first: a/root"),
        ("warning", "1 photo that is a broken link skipped, first: b/gone.jpg"),
    ]


def test_links_among_many_folders_do_not_multiply(tmp_path):
    """Each folder links to all others: following every link would take 12! walks."""
    names = [f"c{i:02}" for i in range(12)]
    plant(tmp_path, *(f"{name}/1.jpg" for name in names))
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(tmp_path / other)
    assert pairs(read(tmp_path)) == [(f"{name}/1.jpg", name) for name in names]


def test_folder_that_looks_like_a_photo(tmp_path):
    assert pairs(read(plant(tmp_path, "a.jpg/1.png", "b/2.jpg/3.png"))) == [
        ("a.jpg/1.png", "a.jpg"),
        ("b/2.jpg/3.png", "b"),
    ]


# Split folders


def test_split_folders(tmp_path):
    plant(tmp_path / "s", "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "dev/b/4.jpg", "test/b/3.jpg")
    photos = read(tmp_path / "s")
    assert photos.reader == "split_folders"
    splits = dict(zip(photos.table["path"], photos.table["split"], strict=True))
    assert splits.pop("test/b/3.jpg") == "test"
    assert set(splits.values()) == {"train"}
    assert photos.classes == ("a", "b")
    assert photos.choice == (
        "split folders s, each photo its own group, train + val + dev pooled and cross-validated, "
        "test kept for testing; 5 photos, 2 classes, 5 groups, 1 of the photos for testing"
    )


@pytest.mark.parametrize("word", ["val", "valid", "Validation", "dev"])
def test_validation_folders_are_pooled(tmp_path, word):
    photos = read(plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{word}/a/1.jpg"))
    assert photos.reader == "split_folders"
    assert set(photos.table["split"]) == {"train"}
    assert f"train + {word} pooled and cross-validated;" in photos.choice


@pytest.mark.parametrize("word", ["test", "Test", "eval"])
def test_test_folders_are_kept_apart(tmp_path, word):
    photos = read(plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{word}/a/1.jpg"))
    assert list(photos.table.loc[photos.table["split"] == "test", "path"]) == [f"{word}/a/1.jpg"]


def test_split_none_pools_all(tmp_path):
    plant(tmp_path, "train/a/1.jpg", "test/b/1.jpg")
    photos = read(tmp_path, Source(split="none"))
    assert set(photos.table["split"]) == {"train"}
    assert "train + test pooled, nothing kept for testing" in photos.choice


def test_class_only_in_test(tmp_path):
    plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/new/1.jpg")
    with pytest.raises(SourceError, match=r"1 class only in the test split: 'new'"):
        read(tmp_path)


def test_class_only_in_validation_is_pooled(tmp_path):
    assert read(plant(tmp_path, "train/a/1.jpg", "val/b/1.jpg")).classes == ("a", "b")


def test_train_alone_is_split_folders(tmp_path):
    assert read(plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg")).classes == ("a", "b")


def test_train_may_be_a_class(tmp_path):
    photos = read(plant(tmp_path, "train/1.jpg", "bus/1.jpg", "test/1.jpg"))
    assert photos.classes == ("bus", "test", "train")
    photos = read(plant(tmp_path / "2", "train/steam/1.jpg", "bus/city/1.jpg"))
    assert photos.classes == ("bus", "train")


def test_photos_next_to_the_splits_are_said(tmp_path):
    plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "more/a/1.jpg", "test/c/x.txt")
    photos = read(tmp_path)
    assert len(photos) == 2
    assert finding(photos, "no_class")[1] == "1 photo outside of class folders skipped, first: more/a/1.jpg"
    assert finding(photos, "unlabeled")[1] == "1 image without a class in test skipped, first: test/1.jpg"
    assert finding(photos, "empty_class")[1] == "1 class folder without photos skipped, first: test/c"


def test_only_test_photos(tmp_path):
    plant(tmp_path, "test/a/1.jpg", "test/b/1.jpg", "train/a/x.txt")
    with pytest.raises(SourceError, match="all photos are for testing"):
        read(tmp_path)


# Groups


def test_group_regex(tmp_path):
    plant(tmp_path, "a/p1_1.jpg", "a/p1_2.jpg", "b/p2_1.jpg")
    photos = read(tmp_path, Source(group_regex=r"(?P<group>p\d+)_"))
    assert list(photos.table["group"]) == ["p1", "p1", "p2"]
    assert photos.choice.endswith("group by a pattern; 3 photos, 2 classes, 2 groups")


def test_group_regex_without_match(tmp_path):
    plant(tmp_path, "a/p1_1.jpg", *(f"b/x{i}.jpg" for i in range(7)))
    with pytest.raises(SourceError, match=r"no group in 7 of 8 paths: b/x0.jpg, .*b/x4.jpg and 2 more"):
        read(tmp_path, Source(group_regex=r"(?P<group>p\d+)_"))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "not a valid pattern"),
        ("a{99999999999999}", "not a valid pattern"),
        (r"(\d)", "no part is named group"),
        (r"(?P<person>\d)", "no part is named group"),
        (r"(?P<group>z)?", "no group in 2 of 2 paths"),
        (r"(?P<group>z*)", "no group in 2 of 2 paths"),
    ],
)
def test_group_regex_that_cannot_be(tmp_path, pattern, said):
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    with pytest.raises(SourceError, match=said):
        read(tmp_path, Source(group_regex=pattern))


def test_groups_on_both_sides_of_the_split(tmp_path):
    plant(tmp_path, *(f"{split}/{c}/p{i}.jpg" for split in ("train", "test") for c in "ab" for i in range(7)))
    photos = read(tmp_path, Source(group_regex=r"(?P<group>p\d+)\."))
    assert finding(photos, "groups") == (
        "warning",
        "7 groups with photos in both train and test: p0, p1, p2, p3, p4 and 2 more",
    )


# What cannot be read


def test_absent_source(tmp_path):
    for source in (tmp_path / "nowhere", tmp_path / "nowhere/x.csv", "a\0b"):
        with pytest.raises(SourceError, match="no such folder or file"):
            read(source)
    with pytest.raises(SourceError, match="cannot be read"):
        read("x" * 5000)
    for source in ("", " "):
        with pytest.raises(SourceError, match="no source given"):
            read(source)


def test_empty_folder(tmp_path):
    with pytest.raises(SourceError, match="no photos found; it is empty"):
        read(tmp_path)
    with pytest.raises(SourceError, match="no photos found; 2 files hidden, broken or not an image"):
        read(plant(tmp_path, "a/x.txt", "b/.y.jpg"))


def test_photos_without_class_folders(tmp_path):
    with pytest.raises(SourceError, match="3 photos, none of them in a class folder"):
        read(plant(tmp_path, "1.jpg", "2.jpg", "3.jpg"))


def test_folder_that_may_not_be_read(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a").chmod(0)
    try:
        if os.access(tmp_path / "a", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(SourceError, match="a: cannot be read"):
            read(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_folder_that_the_system_refuses(tmp_path, monkeypatch):
    """As above, for users who may read everything."""
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("unfreeze.data.directory_walk.os.scandir", refuse)
    with pytest.raises(SourceError, match=r"b: cannot be read \(Permission denied\)"):
        read(tmp_path, Source(reader="class_folders"))


def test_special_file(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SourceError, match="neither a folder nor a file"):
        read(tmp_path / "pipe.csv")


def test_relative_and_home_paths(tmp_path, monkeypatch):
    plant(tmp_path / "pets", "a/1.jpg", "b/2.jpg")
    monkeypatch.chdir(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (".", "../pets", "~/pets", "a/.."):
        photos = read(source)
        assert photos.root == (tmp_path / "pets").resolve()
        assert photos.choice.startswith("class folders pets,")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Source(group="person"), "has no column 'person'.*group_regex=.*or a CSV"),
        (Source(label=("x",)), "label= cannot be used with a folder"),
        (Source(path_column="x", root="y"), "path=, root= cannot be used with a folder"),
        (Source(split="x"), "split='x' names no folders.*split='train=FOLDER,test=FOLDER'.*split='none'"),
        (Source(group="x", group_regex="(?P<group>y)"), "group.* and .*group_regex.* cannot be combined"),
        (Source(reader="class_folder"), "no reader 'class_folder'. Did you mean 'class_folders'?"),
        (Source(reader="table"), "it needs a CSV"),
        (Source(reader="competition"), "it needs a folder with train/train.csv and train/images"),
        (Source(reader="split_folders"), "no folder is named like a split.*split='train=FOLDER"),
    ],
)
def test_options_that_do_not_fit_a_folder(tmp_path, options, said):
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    with pytest.raises(SourceError, match=said):
        read(tmp_path, options)


def test_folder_readers_refuse_a_dataframe():
    for name in READERS.keys() - {"table"}:
        with pytest.raises(SourceError, match=f"the DataFrame: not for the reader '{name}'"):
            read(pd.DataFrame(), Source(reader=name))


def test_reader_overrides(tmp_path):
    plant(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg")
    assert read(tmp_path, Source(reader="class_folders")).classes == ("test", "train")


# The registry and the walk


def test_registry():
    assert list(READERS) == ["webdataset", "table", "competition", "class_folders", "split_folders"]
    for name, reader in READERS.items():
        assert reader.name == name
        assert reader.needs

    def never(source: object, options: Source) -> ParsedSource:
        raise AssertionError

    with pytest.raises(ValueError, match="two readers are named 'table'"):
        register("table", lambda source: False, "nothing")(never)
    assert list(READERS) == ["webdataset", "table", "competition", "class_folders", "split_folders"]


def test_reading_twice_gives_equal_tables(tmp_path):
    plant(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", ".x")
    one, two = read(tmp_path), read(tmp_path)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert (one.classes, one.findings, one.choice) == (two.classes, two.findings, two.choice)


def test_walk_lists_folders(tmp_path):
    found = scan_folder(plant(tmp_path, "a/b/1.jpg", "c/x.txt"))
    assert found.folders == ["a", "a/b", "c"]
    assert found.photos == ["a/b/1.jpg"]
    assert found.others == ["c/x.txt"]
