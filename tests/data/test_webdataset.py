"""Photos inside .tar shards: the same table, features and predictions as of files; nothing leaves an archive."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commandline import run_cli
from photosets import class_folders
from tarsets import add, jpeg, shards
from unfreeze.core.errors import PhotoError, SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data import tar_index as inside
from unfreeze.data.decode import exists, read_bytes
from unfreeze.data.list_images import list_images
from unfreeze.data.read_webdataset import archives_of
from unfreeze.data.readers import read
from unfreeze.data.tar_index import split_path, tar_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("set") / "set")


def archive(path: Path, **inside: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as made:
        for name, data in inside.items():
            add(made, name, data)
    return path


def test_shards_as_a_source(folder: Path) -> None:
    photos = read(folder)
    assert photos.reader == "webdataset"
    assert photos.choice == ("2 WebDataset shards, label 'cls', group 'person'; 48 photos, 3 classes, 24 groups")
    assert list(photos.table.iloc[0]) == ["shard-000.tar/blue-0-0.jpg", "blue", "blue", "blue0", "train"]
    assert read(folder / "shard-001.tar").table["path"].str.startswith("shard-001.tar/").all()
    assert read_bytes(photos.files()[0]) == jpeg(2, 0, 0)


def test_what_reveals_the_class_may_be_chosen(folder: Path) -> None:
    photos = read(folder, Source(label=("kind",), group="cls"))
    assert photos.attributes == ("kind",) and set(photos.table["group"]) == set(photos.classes)
    assert "group by a pattern" in read(folder, Source(group_regex=r"(?P<group>\w+-\d+)-")).choice
    assert read(folder, Source(label=("age", "kind"))).classes == ("7, blue", "7, green", "7, red")
    with pytest.raises(
        SourceError, match=r"the first sample shard-000.tar/red-0-0 has no 'kin'; it has 'cls', 'person'"
    ):
        read(folder, Source(label=("kin",)))
    with pytest.raises(SourceError, match="root= cannot be used with archives"):
        read(folder, Source(root="x"))


def test_folders_inside_are_classes_and_samples_are_groups(tmp_path: Path) -> None:
    """As `tar -cf set.tar cat dog` writes them; two photos of a sample stay together."""
    files = {
        "./cat/1.left.jpg": b"1",
        "./cat/1.right.png": b"2",
        "dog/2.jpg": b"3",
        "dog/._2.jpg": b"",
        "dog/2.pdf": b"",
    }
    photos = read(archive(tmp_path / "set.tar", **files))
    assert list(photos.table["path"]) == ["set.tar/cat/1.left.jpg", "set.tar/cat/1.right.png", "set.tar/dog/2.jpg"]
    assert list(photos.table["group"]) == ["set.tar/cat/1", "set.tar/cat/1", "set.tar/dog/2"]
    assert [f.check for f in photos.findings] == ["hidden", "not_photos"]
    assert read_bytes(photos.files()[1]) == b"2"


@pytest.mark.parametrize(
    "names",
    [
        "train-{}.tar test-{}.tar",
        "train/{}.tar test/{}.tar",
        "trainset-{:03}.tar testset-{:03}.tar",
        "imagenet1k-train-{}.tar imagenet1k-holdout-{}.tar",
        "shards/Train-Data/{}.tar shards/Test-Data/{}.tar",
        "pets_train2017_{}.tar pets_test2017_{}.tar",
    ],
)
def test_names_of_archives_give_the_split(tmp_path: Path, names: str) -> None:
    for name in names.format(0, 1).split():
        archive(tmp_path / name, **{"a/1.jpg": b"1", "b/2.jpg": b"2"})
    assert set(read(tmp_path).table["split"]) == {"train", "test"}
    assert set(read(tmp_path, Source(split="none")).table["split"]) == {"train"}
    archive(tmp_path / "more.tar", **{"a/1.jpg": b"1", "b/2.jpg": b"2"})
    with pytest.raises(SourceError, match=r"1 archive of 3 have no split.*more.tar.*split='none'"):
        read(tmp_path)
    assert set(read(tmp_path, Source(split="none")).table["split"]) == {"train"}


def test_wrapper_folders_around_archives(tmp_path: Path) -> None:
    for name in ("train/0.tar", "test/0.tar"):
        archive(tmp_path / "dataset/shards" / name, **{"a/1.jpg": b"1", "b/2.jpg": b"2"})
    assert set(read(tmp_path).table["split"]) == {"train", "test"}


@pytest.mark.parametrize(
    ("inside", "train", "test"),
    [
        (("train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg", "test/b/2.jpg"), "train", "test"),
        (("./d/trainset/a/1.jpg", "./d/trainset/b/1.jpg", "./d/testset/a/2.jpg"), "d/trainset", "d/testset"),
        (
            ("seg_train/seg_train/a/1.jpg", "seg_train/seg_train/b/1.jpg", "seg_test/seg_test/b/2.jpg"),
            "seg_train",
            "seg_test",
        ),
        (("a/train/1.jpg", "b/train/1.jpg", "a/test/2.jpg", "b/test/2.jpg"), "train", "test"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_splits_inside_of_archives_are_no_classes(
    tmp_path: Path, inside: tuple[str, ...], train: str, test: str, several: bool
) -> None:
    """As `tar -cf set.tar train test` writes them, in one archive or in one for each image."""
    for number, names in enumerate([[name] for name in inside] if several else [inside]):
        archive(tmp_path / f"{number}.tar", **dict.fromkeys(names, b"x"))
    photos = read(tmp_path)
    assert photos.classes == ("a", "b")
    tested = photos.table["split"] == "test"
    assert [path for path, is_test in zip(photos.table["path"], tested, strict=True) if is_test] == [
        path for path in photos.table["path"] if "test" in path
    ]
    assert f"{train} cross-validated, {test} kept for testing" in photos.choice
    assert set(read(tmp_path, Source(split="none")).table["split"]) == {"train"}


def test_folders_inside_of_archives_in_doubt(tmp_path: Path) -> None:
    archive(tmp_path / "1.tar", **{"train/1.jpg": b"1", "test/2.jpg": b"2"})
    with pytest.raises(SourceError, match=r"may be splits as well as classes .*label='folder'"):
        read(tmp_path)
    assert read(tmp_path, Source(label=("folder",))).classes == ("test", "train")
    archive(tmp_path / "1.tar", **{"train/1.jpg": b"1", "bus/2.jpg": b"2"})
    assert read(tmp_path).classes == ("bus", "train")
    archive(tmp_path / "1.tar", **{"train/a/1.jpg": b"1", "train/b/2.jpg": b"2", "test/3.jpg": b"3"})
    photos = read(tmp_path)
    assert photos.classes == ("a", "b")
    (outside,) = [f for f in photos.findings if f.check == "no_class"]
    assert outside.message == "1 image outside of class folders skipped, first: 1.tar/test/3.jpg"


def test_a_folder_of_photos_with_an_archive_is_still_one(tmp_path: Path) -> None:
    class_folders(tmp_path, 2, 1)
    archive(tmp_path / "backup.tar", **{"a/1.jpg": b"1"})
    assert read(tmp_path).reader == "class_folders"


def test_missing_labels_are_counted(tmp_path: Path) -> None:
    archive(tmp_path / "1.tar", **{"1.jpg": b"1", "1.cls": b"a", "2.jpg": b"2", "2.cls": b"b", "3.jpg": b"3"})
    with pytest.raises(SourceError, match=r"'cls' is empty in 1 row \(3\)"):
        read(tmp_path)
    archive(tmp_path / "1.tar", **{"1.jpg": b"1", "1.json": json.dumps({"text": "a", "n": 1}).encode()})
    with pytest.raises(SourceError, match=r"no class found for 1.tar/1.*'text', 'n'.*label=FIELD"):
        read(tmp_path)


def test_names_that_lead_elsewhere_are_reported_and_read_nothing(tmp_path: Path) -> None:
    """Tar's own kinds of escape: steps upward, absolute names, links, devices, sparse files, bytes that are no text."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    path = tmp_path / "set" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as made:
        for name in ("../secret.jpg", "a/../../secret.jpg", "/etc/x.jpg", "a/1.jpg", "b/1.jpg", "a/1.jpg"):
            add(made, name, b"inside" if name != "a/1.jpg" else b"first" if "first" not in str(made.members) else b"")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"a/link{kind.decode()}.jpg")
            member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
            made.addfile(member)
        add(made, os.fsdecode(b"a/\xff.jpg"), b"x")
    photos = read(path.parent)
    assert list(photos.table["path"]) == ["a.tar/a/1.jpg", "a.tar/b/1.jpg"]
    told = {f.check: f.message for f in photos.findings}
    assert told["names"].startswith("4 names in archives") and told["repeated_rows"].startswith("1 photo whose name")
    for inner in ("../secret.jpg", "../../secret.jpg", "a/link2.jpg", "a", "a/1.jpg/"):
        assert b"secret" not in _bytes(path / inner), inner
    assert exists(path / "a/1.jpg") and not exists(path / "a/2.jpg") and exists(path)


def _bytes(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except PhotoError:
        return b""


def test_damaged_archives(tmp_path: Path, folder: Path) -> None:
    whole = (folder / "shard-000.tar").read_bytes()
    for name, data, words in (
        ("cut.tar", whole[: len(whole) // 2 + 100], "not a whole, uncompressed tar file"),
        ("noise.tar", os.urandom(5000), "not a whole, uncompressed tar file"),
        ("zipped.tar", b"\x1f\x8b" + whole, "not a whole, uncompressed tar file"),
        ("empty.tar", b"", "no photos in its 1 archive|not a whole"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=words):
            read(tmp_path / name)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"x\.tar\.gz is compressed"):
        archives_of(tmp_path / "only")


@settings(max_examples=60, deadline=None)
@given(at=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=40))
def test_flipped_bytes_are_our_errors(at: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as made:
        for i in range(4):
            add(made, f"{i}.jpg", bytes(900))
            add(made, f"{i}.cls", b"ab"[i % 2 : i % 2 + 1])
    data = bytearray(held.getvalue())
    for place, value in at:
        data[place % len(data)] = value
    file = tmp_path_factory.mktemp("flipped") / "a.tar"
    file.write_bytes(data)
    try:
        photos = read(file)
    except SourceError:
        return
    for each in photos.files():
        _bytes(each)


def test_headers_are_read_once_for_the_table_and_all_photos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "_known", OrderedDict())
    opened = []
    real = inside.tar_entries
    monkeypatch.setattr(inside, "tar_entries", lambda archive: opened.append(archive) or real(archive))
    for file in read(folder).files():
        assert read_bytes(file)
    assert len(opened) == 2
    monkeypatch.setattr(inside, "_KEPT", 1)  # as for a set of more members than are kept
    tar_index(folder / "shard-000.tar")
    tar_index(archive(folder.parent / "other.tar", **{"1.jpg": b"1", "2.jpg": b"2"}))
    assert len(inside._known) == 1


def test_an_archive_that_changes_is_read_again(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", **{"a/1.jpg": b"one"})
    assert read_bytes(path / "a/1.jpg") == b"one"
    archive(path, **{"a/0.jpg": b"zero", "a/1.jpg": b"another"})
    assert read_bytes(path / "a/1.jpg") == b"another"
    path.unlink()
    with pytest.raises(PhotoError, match="no such file"):
        read_bytes(path / "a/1.jpg")
    assert pickle.loads(pickle.dumps(PhotoError("a", "b"))).reason == "b"


def test_a_path_through_a_folder_named_so(tmp_path: Path) -> None:
    (tmp_path / "odd.tar").mkdir()
    (tmp_path / "odd.tar" / "1.jpg").write_bytes(b"plain")
    assert split_path(tmp_path / "odd.tar" / "1.jpg") is None
    assert read_bytes(tmp_path / "odd.tar" / "1.jpg") == b"plain"
    inner = archive(tmp_path / "odd.tar" / "in.tar", **{"b.tar/2.jpg": b"inner"})
    assert read_bytes(inner / "b.tar/2.jpg") == b"inner"
    assert [m.name for m in tar_index(inner).members] == ["b.tar/2.jpg"]


def test_the_main_job_is_the_same_as_on_files(folder: Path, tmp_path: Path) -> None:
    """Unpacked or not, with one seed: the same scores; prediction and report read inside the archives too."""
    for shard in sorted(folder.iterdir()):
        with tarfile.open(shard) as opened:
            opened.extractall(tmp_path / "files" / shard.name.replace(".tar", ".out"), filter="data")
    lines = [f"{p.relative_to(tmp_path / 'files')},{p.stem.split('-')[0]},{''.join(p.stem.split('-')[:2])}"
             for p in sorted((tmp_path / "files").rglob("*.jpg"))]  # fmt: skip
    (tmp_path / "files" / "t.csv").write_text("file,label,group\n" + "\n".join(lines) + "\n")
    for source, run in ((folder, "tar"), (tmp_path / "files" / "t.csv", "plain")):
        answer = run_cli("fit", source, "--run", tmp_path / run, "--strategy", "probe", "--folds", "2")
        assert answer.code == 0, answer.err
    scores = [json.loads((tmp_path / run / "scores.json").read_text()) for run in ("tar", "plain")]
    assert scores[0]["macro_f1"] == scores[1]["macro_f1"] and scores[0]["log_loss"] == scores[1]["log_loss"]
    assert "no longer there" not in (tmp_path / "tar" / "report.html").read_text()
    assert list_images(folder / "shard-001.tar" / "red-4-0.jpg") == (folder, ["shard-001.tar/red-4-0.jpg"])
    with pytest.raises(SourceError, match="no such file"):
        list_images(folder / "shard-001.tar" / "red-0-0.jpg")
    root, listed = list_images(folder)
    assert root == folder and len(listed) == 48
    out = tmp_path / "p.csv"
    answer = run_cli("predict", tmp_path / "tar", folder / "shard-001.tar", "--out", out)
    assert answer.code == 0, answer.err
    assert out.read_text().splitlines()[1].startswith("shard-001.tar/red-4-0.jpg,red")
