"""Paths in tables: absolute, of another computer, without suffix, in subfolders; and remedies that work as written."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data.list_images import list_images
from unfreeze.data.readers import read

OPTIONS_IN_MESSAGES = True

LABELS = "abab"


def plant(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def table(file: Path, paths: list[str], header: str = "file,label") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [f'"{path}",{label}' for path, label in zip(paths, LABELS * len(paths), strict=False)]
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def paths(source, **options) -> list[str]:
    photos = read(source, Source(**options))
    assert all(file.is_file() for file in photos.files())
    return list(photos.table["path"])


def refusal(source, **options) -> str:
    with pytest.raises(SourceError) as error:
        read(source, Source(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


def remedy(message: str) -> str:
    """The folder of the `--root` that a message names."""
    words = shlex.split(re.search(r"--root (.*)\.$", message)[1])
    return words[0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return plant(tmp_path / "set" / "images", "1.jpg", "2.jpg", "3.jpg", "4.jpg")


# Absolute paths


@pytest.mark.parametrize("form", ["csv", "parquet", "frame", "tsv"])
def test_absolute_paths_work_wherever_they_point(images: Path, tmp_path: Path, form: str) -> None:
    other = plant(tmp_path / "elsewhere" / "deep", "5.jpg", "6.png")
    files = [str(images / "1.jpg"), str(images / "2.jpg"), str(other / "5.jpg"), str(other / "6.png")]
    frame = pd.DataFrame({"file": files, "label": list("abab")})
    lists = tmp_path / "lists"
    lists.mkdir()
    if form == "frame":
        source = frame
    else:
        source = lists / f"t.{form}"
        frame.to_parquet(source) if form == "parquet" else frame.to_csv(
            source, index=False, sep="\t" if form == "tsv" else ","
        )
    photos = read(source)
    assert photos.root == tmp_path.resolve()
    assert [str(file) for file in photos.files()] == sorted(files)
    assert f"paths in 'file' (4 absolute, root {tmp_path})" in photos.choice


def test_absolute_and_relative_paths_together(images: Path, tmp_path: Path) -> None:
    plant(tmp_path / "lists", "own.jpg")
    source = table(tmp_path / "lists" / "t.csv", ["own.jpg", str(images / "1.jpg"), f"{images}/../images/2.jpg"])
    photos = read(source)
    assert list(photos.table["path"]) == ["lists/own.jpg", "set/images/1.jpg", "set/images/2.jpg"]
    assert "2 absolute" in photos.choice


def test_absolute_paths_inside_the_tables_folder_stay_relative_to_it(images: Path) -> None:
    source = table(images.parent / "t.csv", [str(images / "1.jpg"), "images/2.jpg"])
    photos = read(source)
    assert photos.root == images.parent.resolve()
    assert list(photos.table["path"]) == ["images/1.jpg", "images/2.jpg"]
    assert "absolute" not in photos.choice


def test_home_folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths(table(tmp_path / "lists" / "t.csv", ["~/set/images/1.jpg", "~/set/images/2.jpg"])) == [
        "1.jpg",
        "2.jpg",
    ]


@pytest.mark.parametrize("name", ["secret.txt", "passwd", "key.pem"])
def test_absolute_paths_of_other_files_are_refused(images: Path, tmp_path: Path, name: str) -> None:
    plant(tmp_path / "private", name)
    source = table(images / "t.csv", ["1.jpg", str(tmp_path / "private" / name)])
    assert "no image by name" in refusal(source, path_column="file")
    with pytest.raises(SourceError, match="no image by name"):
        list_images(source, Source(path_column="file"))


def test_a_root_confines_absolute_paths(images: Path, tmp_path: Path) -> None:
    other = plant(tmp_path / "elsewhere", "5.jpg")
    source = table(tmp_path / "lists" / "t.csv", [str(images / "1.jpg"), str(other / "5.jpg")])
    message = refusal(source, root=str(images))
    assert f"1 path in 'file' outside of {images}, first: {other}/5.jpg" in message
    assert message.endswith("Leave --root out.")
    assert len(paths(source)) == 2
    assert paths(source, root=str(tmp_path)) == ["elsewhere/5.jpg", "set/images/1.jpg"]


def test_predicted_absolute_paths_stay_absolute(images: Path, tmp_path: Path) -> None:
    plant(tmp_path / "lists", "own.jpg")
    files = [str(images / "2.jpg"), "own.jpg", str(images / "gone.jpg")]
    said: list[str] = []
    root, names = list_images(table(tmp_path / "lists" / "t.csv", files), None, said.append)
    assert (root, names) == (tmp_path / "lists", files)
    assert said == ["CSV t.csv: paths in 'file' (2 absolute)."]


# Paths that leave the folder, and what the message says to do


@pytest.mark.parametrize(
    ("place", "rows"),
    [
        ("set/labels", ["../images/1.jpg", "../images/2.jpg"]),
        ("set/labels", ["..\\images\\1.jpg", "..\\images\\2.jpg"]),
        ("set/labels", ["../images/1.jpg", "own.jpg"]),
        ("set/labels/deep", ["../../images/1.jpg", "./../../images/2.jpg"]),
        ("set/images/lists", ["../1.jpg", "../2.jpg"]),
        ("other lists", ["../set/images/1.jpg", "../set/images/2.jpg"]),
        ("set/labels", ["../images/1", "../images/2"]),
    ],
)
def test_the_remedy_for_paths_that_leave_the_folder_works(
    images: Path, tmp_path: Path, place: str, rows: list[str]
) -> None:
    plant(tmp_path / place, "own.jpg")
    source = table(tmp_path / place / "t.csv", rows)
    message = refusal(source)
    assert "outside of" in message or "no such file" in message
    photos = read(source, Source(root=remedy(message)))
    wanted = {(source.parent / row.replace("\\", "/")).resolve().with_suffix("") for row in rows}
    assert {file.resolve().with_suffix("") for file in photos.files()} == wanted
    with pytest.raises(SourceError, match="outside of"):
        list_images(source)
    assert len(list_images(source, Source(root=remedy(message)))[1]) == 2


def test_the_remedy_never_leads_to_other_files(tmp_path: Path) -> None:
    """--root set/images would find files for these names, but not those that the table means."""
    plant(tmp_path / "set", "images/images/1.jpg", "images/1.jpg", "images/images/2.jpg", "images/2.jpg")
    source = table(tmp_path / "set" / "images" / "lists" / "t.csv", ["../images/1.jpg", "../images/2.jpg"])
    photos = read(source, Source(root=remedy(refusal(source))))
    assert {str(file) for file in photos.files()} == {f"{tmp_path}/set/images/images/{i}.jpg" for i in (1, 2)}


def test_no_remedy_is_promised_where_none_works(images: Path) -> None:
    message = refusal(table(images / "t.csv", ["../gone.jpg", "1.jpg"]))
    assert "outside of" in message
    assert message.endswith("Write all paths relative to one folder, and name it: --root DIR.")


@pytest.mark.parametrize(
    ("place", "rows"),
    [
        ("set/images", ["images/1.jpg", "images/2.jpg"]),  # paths start one folder above the table
        ("set/images", ["set/images/1.jpg", "set/images/2.jpg"]),
        ("set/labels", ["images/1.jpg", "images/2.jpg"]),
        ("set/labels", ["C:\\data\\images\\1.jpg", "C:\\data\\images\\2.jpg"]),
        ("set/labels", ["/content/drive/x/images/1.jpg", "/content/drive/x/images/2.jpg"]),
    ],
)
def test_the_remedy_for_paths_that_start_elsewhere_works(
    images: Path, tmp_path: Path, place: str, rows: list[str]
) -> None:
    source = table(tmp_path / place / "t.csv", rows)
    photos = read(source, Source(root=remedy(refusal(source))))
    assert sorted(file.name for file in photos.files()) == ["1.jpg", "2.jpg"]


# Paths of another computer


@pytest.mark.parametrize(
    "prefix",
    [
        "C:\\Users\\me\\set\\images\\",
        "D:/data/images/",
        "\\\\server\\share\\images\\",
        "/content/drive/MyDrive/set/images/",
        "/kaggle/input/",
        "/home/someone/.cache/set/deep/images/",
    ],
)
def test_paths_of_another_computer_are_found_by_their_last_parts(images: Path, prefix: str) -> None:
    source = table(images.parent / "t.csv", [f"{prefix}1.jpg", f"{prefix}2.jpg"])
    said: list[str] = []
    if prefix == "/kaggle/input/":  # only the names are left, and the images lie in a subfolder
        assert remedy(refusal(source)) == str(images)
        source = table(images / "t.csv", [f"{prefix}1.jpg", f"{prefix}2.jpg"])
    photos = read(source)
    assert [file.name for file in photos.files()] == ["1.jpg", "2.jpg"]
    assert f"read as {source.parent}" in photos.choice
    assert len(list_images(source, None, said.append)[1]) == 2
    assert "read as" in said[0]


def test_paths_of_another_computer_under_a_root(images: Path, tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", ["E:\\x\\1.jpg", "E:\\x\\2.jpg"])
    assert paths(source, root=str(images)) == ["1.jpg", "2.jpg"]
    assert "name the folder that holds x/1.jpg: --root DIR" in refusal(source)


def test_all_or_none_are_found_by_their_last_parts(images: Path) -> None:
    source = table(images / "t.csv", ["/far/1.jpg", "/far/2.jpg", "/far/none.jpg"])
    assert "no such file" in refusal(source)


def test_a_path_of_another_computer_cannot_leave_the_folder(images: Path) -> None:
    source = table(images / "t.csv", ["/far/../../../set/images/1.jpg", "C:\\..\\..\\etc\\passwd"])
    refusal(source, path_column="file")


def test_addresses_are_named(images: Path) -> None:
    source = table(images / "t.csv", ["https://example.org/1.jpg", "https://example.org/2.jpg"])
    assert refusal(source).endswith("These are addresses: download the images, and give their paths.")


def test_another_suffix_or_case_is_named(images: Path) -> None:
    assert "1.jpg is there, under another suffix or case" in refusal(table(images / "t.csv", ["1.JPG", "2.JPG"]))
    assert "1.jpg is there" in refusal(table(images / "t.csv", ["1.png", "2.png"]))


# Ids without suffix


@pytest.mark.parametrize(
    "options", [{}, {"root": "images"}, {"path_column": "id"}, {"root": "images", "path_column": "id"}]
)
def test_ids_without_suffix(images: Path, tmp_path: Path, options: dict[str, str]) -> None:
    plant(images, "5.png", "6.JPEG", "v1.2.jpg")
    source = table(images.parent / "labels.csv", ["1", "5", "6", "v1.2"], "id,breed")
    if "root" in options:
        options = options | {"root": str(images)}
    photos = read(source, Source(label=("breed",), **options))
    assert sorted(file.name for file in photos.files()) == ["1.jpg", "5.png", "6.JPEG", "v1.2.jpg"]
    assert "without suffix, found as .JPEG, .jpg, .png" in photos.choice
    root, names = list_images(source, Source(**options))
    assert [(root / name).name for name in names] == ["1.jpg", "5.png", "6.JPEG", "v1.2.jpg"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_numbers_are_ids_too(images: Path, kind: str) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3, 4], "label": list("abab")})
    source: object = frame
    if kind != "frame":
        source = images / f"t.{kind}"
        frame.to_csv(source, index=False) if kind == "csv" else frame.to_parquet(source)
    assert paths(source, root=str(images)) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


def test_ids_with_folders_and_absolute_ids(images: Path, tmp_path: Path) -> None:
    assert paths(table(images.parent / "t.csv", ["images/1", "images/2"])) == ["images/1.jpg", "images/2.jpg"]
    assert paths(table(tmp_path / "x" / "t.csv", [f"{images}/1", f"{images}/2"])) == ["1.jpg", "2.jpg"]


def test_an_id_with_two_images_is_refused(images: Path) -> None:
    plant(images, "1.png")
    source = table(images / "t.csv", ["1", "2"])
    message = refusal(source)
    assert "1 value in 'file' with several files, first: 1 (1.jpg, 1.png). Write the suffix" in message
    with pytest.raises(SourceError, match="with several files"):
        list_images(source)


def test_ids_in_several_subfolders(tmp_path: Path) -> None:
    plant(tmp_path, "part_1/1.jpg", "part_2/2.jpg", "part_2/3.jpg")
    source = table(tmp_path / "t.csv", ["1", "2", "3"])
    assert paths(source) == ["part_1/1.jpg", "part_2/2.jpg", "part_2/3.jpg"]
    assert "in part_1, part_2; without suffix" in read(source).choice


def test_an_id_in_two_subfolders_is_refused_with_the_roots_that_work(tmp_path: Path) -> None:
    plant(tmp_path, "full/1.jpg", "full/2.jpg", "small/1.jpg", "small/2.jpg", "masks/1.png")
    source = table(tmp_path / "t.csv", ["1", "2"])
    message = refusal(source)
    assert message.endswith(f"Name the folder: --root {tmp_path}/full or --root {tmp_path}/small.")
    assert paths(source, root=str(tmp_path / "small")) == ["1.jpg", "2.jpg"]


def test_file_names_whose_images_lie_in_a_subfolder(images: Path) -> None:
    source = table(images.parent / "t.csv", ["1.jpg", "2.jpg"])
    assert paths(source) == ["images/1.jpg", "images/2.jpg"]


def test_labels_that_are_names_of_images_by_chance(images: Path) -> None:
    """A column of classes 1 and 2 beside images 1.jpg and 2.jpg is not the column of paths."""
    source = images / "t.csv"
    source.write_text("file,class,weight\n1.jpg,1,3\n2.jpg,2,4\n3.jpg,1,1\n4.jpg,2,2\n")
    photos = read(source)
    assert photos.classes == ("1", "2")
    source.write_text("id,class\n1,1\n2,2\n3,1\n4,2\n")
    assert list(read(source).table["path"]) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


def test_nothing_to_predict_is_said_at_once(images: Path) -> None:
    source = table(images / "t.csv", ["x1", "x2"])
    with pytest.raises(SourceError, match=r"no such file in .* for 2 of 2 paths in 'file'"):
        list_images(source, Source(path_column="file"))


def test_paths_into_an_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("1.jpg", "2.jpg"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    source = table(tmp_path / "t.csv", ["s.tar/1.jpg", "s.tar/2.jpg"])
    assert list(read(source).table["path"]) == ["s.tar/1.jpg", "s.tar/2.jpg"]


@pytest.mark.parametrize("name", [" lead.jpg", "trail .jpg", "'quote.jpg", "=1.jpg", "a,b.jpg", "가 나.jpg"])
def test_odd_names_as_they_are_written(tmp_path: Path, name: str) -> None:
    plant(tmp_path, name, "2.jpg")
    assert set(paths(table(tmp_path / "t.csv", [name, "2.jpg"]))) == {name, "2.jpg"}


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "b.tar.bz2", "b.zip", "b.7z", "b.tar.xz"])
def test_compressed_archives_say_how_to_unpack_them(tmp_path: Path, name: str) -> None:
    plant(tmp_path, name)
    assert "a compressed archive, which is not read. Unpack it:" in refusal(tmp_path / name)
    with pytest.raises(SourceError, match="Unpack it:"):
        list_images(tmp_path / name)


def test_a_folder_of_a_compressed_archive_says_so(tmp_path: Path) -> None:
    plant(tmp_path, "set/train.zip", "set/readme.txt")
    message = refusal(tmp_path / "set")
    assert message.startswith(f"{tmp_path}/set/train.zip: a compressed archive, which is not read. Unpack it: unzip")
