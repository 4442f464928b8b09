"""Which folders are classes and which are splits: a table of layouts, and the options that decide in doubt."""

from __future__ import annotations

import re
import shlex
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data.list_images import list_images
from unfreeze.data.readers import read
from unfreeze.data.split_names import is_container_name, split_name, split_of


def plant(root: Path, layout: str) -> Path:
    """Files of a layout: `train/{a,b} test/{a,b} ~` with two images in each folder; a name with a suffix is a file.

    `_` before a name in braces is written as it is, `~` stands for a space.
    """
    for word in layout.split():
        for name in _braces(word.replace("~", " ")):
            path = root / name
            files = [path] if path.suffix else [path / "1.jpg", path / "2.jpg"]
            for file in files:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"x")
    return root


def _braces(text: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    return [each for one in match[1].split(",") for each in _braces(text[: match.start()] + one + text[match.end() :])]


def folders(photos: ImageDataset, split: str) -> set[str]:
    """The folders of a split's images without the class: train/images/a -> train/images."""
    rows = photos.table[photos.table["split"] == split]
    return {
        "/".join(part for part in path.split("/")[:-1] if part != label)
        for path, label in zip(rows["path"], rows["label"], strict=True)
    }


def test_options_in_a_message_are_found() -> None:
    """The tests of refusals follow them."""
    said = "T: x. If so: --reader class_folders. Else --reader split_folders --split none, or --split 'train=a b'."
    assert options_in(said) == [
        {"reader": "class_folders"},
        {"reader": "split_folders", "split": "none"},
        {"split": "train=a b"},
    ]


def options_in(message: str) -> list[dict[str, str]]:
    """What a message offers: each run of `--reader NAME` and `--split VALUE` as keywords of Source."""
    value = r"(?:'[^']*'|[^\s,;'.]+(?:[,.][^\s,;'.]+)*)"
    found = []
    for run in re.findall(rf"(?:--(?:reader|split) {value}\s?)+", message):
        words = shlex.split(run)
        found.append({name.removeprefix("--"): text for name, text in zip(words[::2], words[1::2], strict=True)})
    return found


AB = ("a", "b")
SPLITS = [
    # names of splits, in any case, with affixes and separators
    ("trainset/{a,b} testset/{a,b}", {"trainset"}, {"testset"}),
    ("training_set/{a,b} test_set/{a,b}", {"training_set"}, {"test_set"}),
    ("train_images/{a,b} test_images/{a,b}", {"train_images"}, {"test_images"}),
    ("images_train/{a,b} images_val/{a,b} images_test/{a,b}", {"images_train", "images_val"}, {"images_test"}),
    ("seg_train/{a,b} seg_test/{a,b}", {"seg_train"}, {"seg_test"}),
    ("Training/{a,b} Testing/{a,b}", {"Training"}, {"Testing"}),
    ("TRAIN/{a,b} TEST/{a,b}", {"TRAIN"}, {"TEST"}),
    ("train/{a,b} valid/{a,b} dev/{a,b} validation/{a,b}", {"train", "valid", "dev", "validation"}, set()),
    ("train/{a,b} holdout/{a,b} eval/{a,b} evaluation/{a,b}", {"train"}, {"holdout", "eval", "evaluation"}),
    ("train/{a,b} hold-out/{a,b}", {"train"}, {"hold-out"}),
    ("train/{a,b} holdout_2020/{a,b}", {"train"}, {"holdout_2020"}),
    ("train-images/{a,b} test-images/{a,b}", {"train-images"}, {"test-images"}),
    ("Train~Data/{a,b} Test~Data/{a,b}", {"Train Data"}, {"Test Data"}),
    ("dataset_train/{a,b} dataset_test/{a,b}", {"dataset_train"}, {"dataset_test"}),
    ("train2017/{a,b} val2017/{a,b} test-dev2017/{a,b}", {"train2017", "val2017"}, {"test-dev2017"}),
    ("TrainSet/{a,b} TestSet/{a,b}", {"TrainSet"}, {"TestSet"}),
    ("traindata/{a,b} testdata/{a,b}", {"traindata"}, {"testdata"}),
    ("Training/{a,b} PublicTest/{a,b} PrivateTest/{a,b}", {"Training"}, {"PublicTest", "PrivateTest"}),
    ("train_1/{a,b} train_2/{a,b} test_1/{a,b}", {"train_1", "train_2"}, {"test_1"}),
    ("asl_alphabet_train/{a,b} asl_alphabet_test/{a,b}", {"asl_alphabet_train"}, {"asl_alphabet_test"}),
    ("trainval/{a,b} test/{a,b}", {"trainval"}, {"test"}),
    ("학습_데이터/{a,b} 검증/{a,b} 평가/{a,b}", {"학습_데이터", "검증"}, {"평가"}),
    # doubled folders, as archives make them
    ("seg_train/seg_train/{a,b} seg_test/seg_test/{a,b}", {"seg_train/seg_train"}, {"seg_test/seg_test"}),
    ("train/train/{a,b} test/test/{a,b}", {"train/train"}, {"test/test"}),
    ("train/Train/{a,b} test/{a,b}", {"train/Train"}, {"test"}),
    ("train/train/train/{a,b} test/{a,b}", {"train/train/train"}, {"test"}),
    # wrapper folders around everything
    ("dataset/train/{a,b} dataset/test/{a,b}", {"dataset/train"}, {"dataset/test"}),
    ("archive/{train,test}/{a,b}", {"archive/train"}, {"archive/test"}),
    ("data/dataset/{train,test}/{a,b}", {"data/dataset/train"}, {"data/dataset/test"}),
    ("my_project/{train,test}/{a,b}", {"my_project/train"}, {"my_project/test"}),
    ("x/y/z/{train,test}/{a,b}", {"x/y/z/train"}, {"x/y/z/test"}),
    ("d/{train,test}/{a,b} __MACOSX/d/train/a/._1.jpg README.md .git/x.png", {"d/train"}, {"d/test"}),
    ("data/{train,test}/{a,b} preview.jpg labels.csv", {"data/train"}, {"data/test"}),
    (
        "train_test_split/{train,val,test}/{a,b}",
        {f"train_test_split/{s}" for s in ("train", "val")},
        {"train_test_split/test"},
    ),
    ("images/{train,val}/{a,b} labels/train/1.txt", {"images/train", "images/val"}, set()),
    # wrapper folders inside of splits
    ("train/images/{a,b} test/images/{a,b}", {"train/images"}, {"test/images"}),
    ("train/flowers/{a,b} test/flowers/{a,b}", {"train/flowers"}, {"test/flowers"}),
    ("train/{train,val}/{a,b} test/{a,b}", {"train/train", "train/val"}, {"test"}),
    ("train/{a,b}/images test/{a,b}/images", {"train/images"}, {"test/images"}),
    # some splits only
    ("train/{a,b}", {"train"}, set()),
    ("val/{a,b}", {"val"}, set()),
    ("val/{a,b} test/{a,b}", {"val"}, {"test"}),
    ("dev_set/{a,b} eval_set/{a,b}", {"dev_set"}, {"eval_set"}),
    # splits below classes
    ("a/{train,test} b/{train,test}", {"train"}, {"test"}),
    ("a/{Train,Val,Test} b/{Train,Val,Test}", {"Train", "Val"}, {"Test"}),
    ("a/{trainset,testset} b/trainset", {"trainset"}, {"testset"}),
    ("data/{a,b}/{train,test}", {"data/train"}, {"data/test"}),
    ("{a,b}/{train,test}/images", {"train/images"}, {"test/images"}),
    # images without a class
    ("train/{a,b} test", {"train"}, set()),
    ("train/{a,b} test/unknown", {"train"}, set()),
    ("train/{a,b} test/test_images", {"train"}, set()),
    ("train/{a,b} val/{a,b} test", {"train", "val"}, set()),
    (
        "seg_train/seg_train/{a,b} seg_test/seg_test/{a,b} seg_pred/seg_pred",
        {"seg_train/seg_train"},
        {"seg_test/seg_test"},
    ),
    ("train/{a,b} unlabeled", {"train"}, set()),
    ("asl_train/asl_train/{a,b} asl_test/asl_test", {"asl_train/asl_train"}, set()),
]

OPTIONS_IN_MESSAGES = True


@pytest.mark.parametrize(("layout", "train", "test"), SPLITS, ids=[layout for layout, *_ in SPLITS])
def test_splits_are_recognized(tmp_path: Path, layout: str, train: set[str], test: set[str]) -> None:
    photos = read(plant(tmp_path, layout))
    assert photos.reader == "split_folders"
    assert photos.classes == AB
    assert folders(photos, "train") == train
    assert folders(photos, "test") == test
    # The line about the choice names each folder, and pooling keeps its images.
    said, listed = photos.choice.partition(";")[0], {part for path in train | test for part in path.split("/")}
    assert {part for part in listed if part in said} >= {part for part in listed if split_of(part)}
    assert (" kept for testing" in said) == bool(test)
    pooled = read(tmp_path, Source(split="none"))
    assert list(pooled.table["path"]) == list(photos.table["path"]) and set(pooled.table["split"]) == {"train"}


CLASSES = [
    ("bus car train", ("bus", "car", "train")),
    ("bus train test", ("bus", "test", "train")),
    ("train/steam bus/city", ("bus", "train")),
    ("train/{steam,diesel} bus/{city,coach}", ("bus", "train")),
    ("testa testb", ("testa", "testb")),
    ("dev~board arduino", ("arduino", "dev board")),
    ("training~shoes dress~shoes", ("dress shoes", "training shoes")),
    ("valve val-de-loire strain", ("strain", "val-de-loire", "valve")),
    ("test_positive test_negative", ("test_negative", "test_positive")),
    ("eval_pass eval_fail", ("eval_fail", "eval_pass")),
    ("set1 set2", ("set1", "set2")),
    ("valid invalid", ("invalid", "valid")),
    ("test control", ("control", "test")),
    ("trains planes", ("planes", "trains")),
    ("development production", ("development", "production")),
    ("red/{apple,cherry} yellow/banana", ("red", "yellow")),
    ("a/images b/images", AB),
    ("a/{1,2} b", AB),
    ("dataset/{a,b}", AB),
    ("data/archive~(1)/{a,b}", AB),
    ("flower_photos/{a,b} flower_photos/LICENSE.txt", AB),
    ("repo-master/{a,b} __MACOSX/x.jpg", AB),
]


@pytest.mark.parametrize(("layout", "classes"), CLASSES, ids=[layout for layout, _ in CLASSES])
def test_classes_are_recognized(tmp_path: Path, layout: str, classes: tuple[str, ...]) -> None:
    photos = read(plant(tmp_path, layout))
    assert photos.reader == "class_folders"
    assert photos.classes == classes
    assert set(photos.table["split"]) == {"train"}


REFUSED: list[tuple[str, str, list[tuple[str, ...]]]] = [
    # layout, what the message says, the classes that each of its options gives, in order
    ("train test", "train holds 2 images, test holds 2 images, none of them in a class", [("test", "train")]),
    ("training_set test_set", "none of them in a class folder", [("test_set", "training_set")]),
    ("test1 test2", "none of them in a class folder", [("test1", "test2")]),
    ("train valid", "none of them in a class folder", [("train", "valid")]),
    ("train test seg_pred", "none of them in a class folder", [("seg_pred", "test", "train")]),
    ("data/{train,test}", "none of them in a class folder", [("test", "train")]),
    ("trainA trainB testA testB", "none of them in a class folder", [("testA", "testB", "trainA", "trainB")]),
    (
        "train_cat train_dog test_cat test_dog",
        "may be splits as well",
        [("test_cat", "test_dog", "train_cat", "train_dog")],
    ),
    ("dev~board test~board", "dev board, test board may be splits as well", [("dev board", "test board")]),
    (
        "dev~board/{a,b} test~board/{c,d}",
        "may be splits as well as classes",
        [("dev board", "test board"), (), ()],  # as splits, c and d are only in the test split
    ),
    ("train/{a,b} bus car", "train may be a split as well as a class", [("bus", "car", "train"), AB, AB]),
    (
        "train/{a,b} test/{a,b} more/{a,b}",
        "subfolders of more are those of train, test",
        [AB, ("more", "test", "train")],
    ),
    (
        "bus/{x,y} car/{x,y} train/{x,y}",
        "subfolders of bus, car are those of train",
        [("x", "y"), ("bus", "car", "train")],
    ),
    ("valid/{a,b} invalid/{a,b}", "subfolders of invalid are those of valid", [AB, ("invalid", "valid")]),
    ("east/{a,b} west/{a,b}", "east, west hold the same subfolders", [("east", "west"), AB, AB]),
    ("eval_pass/{a,b} eval_fail/{a,b}", "hold the same subfolders", [("eval_fail", "eval_pass"), AB, AB]),
    ("x/{color,gray}/{a,b}", "needs at least two classes; found only 'x'. .*subfolders look like classes", []),
    ("data/{color,gray}/{a,b}", "color, gray hold the same subfolders", [("color", "gray"), AB, AB]),
    (
        "east/{a,b,c} west/{a,b}",
        "east, west hold the same subfolders",
        [("east", "west"), ("a", "b", "c"), ("a", "b", "c")],
    ),
    ("art/{train,test}/{a,b} photo/{train,test}/{a,b}", "each hold the splits train, test", [("art", "photo")] * 2),
    ("train/{x,y}/{a,b} test/{x,y}/{a,b}", "x, y hold the same subfolders", [("x", "y"), AB]),
    ("{a,b}/dataset/{train,test}", "a, b hold split folders", [AB]),
    ("a/{train,test} b", "a holds split folders", [AB]),
    ("data/{train,test}/{a,b} docs", "data holds split folders", [("data", "docs")]),
    ("data/set/{train,test}/{a,b} docs", "data holds split folders", [("data", "docs")]),
    ("dataset/{a,b} docs", "dataset is not named like a class", [("dataset", "docs")]),
    ("{a,b} copy/{a,b}", "copy holds folders named like those next to it", [("a", "b", "copy")]),
    ("train test/{a,b}", "train holds 2 images, none of them in a class folder, though test has some", [AB]),
    ("test/{a,b}", "all photos are for testing, none for training", [AB]),
    ("train/test/{a,b}", "train holds folders named like splits", [AB]),
    (
        "inner/{a,b}",
        "needs at least two classes; found only 'inner'. Its subfolders look like classes: give .*inner",
        [],
    ),
]


@pytest.mark.parametrize(("layout", "said", "options"), REFUSED, ids=[layout for layout, *_ in REFUSED])
def test_layouts_in_doubt_are_refused_with_options_that_work(
    tmp_path: Path, layout: str, said: str, options: list[tuple[str, ...]]
) -> None:
    with pytest.raises(SourceError, match=said) as refused:
        read(plant(tmp_path, layout))
    assert "\n" not in str(refused.value)
    offered = options_in(str(refused.value))
    assert len(offered) == len(options)
    for given, classes in zip(offered, options, strict=True):
        if classes:
            assert read(tmp_path, Source(**given)).classes == classes, given
        else:  # the option is understood; what is wrong then is another thing
            with pytest.raises(SourceError, match=r"only in the test split|all photos are for testing"):
                read(tmp_path, Source(**given))


@pytest.mark.parametrize(
    ("layout", "split", "train", "test"),
    [
        ("trainset/{a,b} holdout_2020/{a,b}", "train=trainset,test=holdout_2020", {"trainset"}, {"holdout_2020"}),
        ("x/{a,b} y/{a,b} z/{a,b}", "train=x+y,test=z", {"x", "y"}, {"z"}),
        ("x/{a,b} y/{a,b} z/{a,b}", "train=x,val=y,test=z", {"x", "y"}, {"z"}),
        ("x/{a,b} y/{a,b} z/{a,b}", "train=x, train=y, test=z", {"x", "y"}, {"z"}),
        ("x/{a,b} y/{a,b} z/{a,b}", "training=x,testing=z", {"x"}, {"z"}),
        ("x/{a,b} y/{a,b}", "train=X", {"x"}, set()),
        ("train/{a,b} test/{a,b}", "train=test,test=train", {"test"}, {"train"}),
        ("a+b/{a,b} c,d/{a,b}", "train=a+b,test=c,d", {"a+b"}, {"c,d"}),
        ("p=q/{a,b} y~z/{a,b}", "train=p=q,test=y z", {"p=q"}, {"y z"}),
        ("data/x/{a,b} data/y/{a,b}", "train=x,test=y", {"data/x"}, {"data/y"}),
        ("data/x/{a,b} data/y/{a,b}", "train=data/x/,test=./data/y", {"data/x"}, {"data/y"}),
        ("x/x/{a,b} y/images/{a,b}", "train=x,test=y", {"x/x"}, {"y/images"}),
        ("a/{x,y} b/{x,y}", "train=x,test=y", {"x"}, {"y"}),
        ("data/a/{x,y} data/b/{x,y}", "train=x,test=y", {"data/x"}, {"data/y"}),
        (
            "east/{train,test}/{a,b} west/{train,test}/{a,b}",
            "train=east/train+west/train,test=west/test",
            {"east/train", "west/train"},
            {"west/test"},
        ),
    ],
)
def test_splits_may_be_named(tmp_path: Path, layout: str, split: str, train: set[str], test: set[str]) -> None:
    photos = read(plant(tmp_path, layout), Source(split=split))
    assert photos.classes == AB and photos.reader == "split_folders"
    assert (folders(photos, "train"), folders(photos, "test")) == (train, test)
    assert all(name.split("/")[-1] in photos.choice for name in train | test)
    # Nothing outside of the named folders is used, and that is said.
    named = len(photos)
    unnamed = len(list_images(tmp_path)[1]) - named
    assert sum(f.check == "no_class" for f in photos.findings) == bool(unnamed)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("train=x,test=nowhere", "no folder 'nowhere' with images in it .*There are x, y"),
        ("train=x,test=y/c", "no folder 'y/c'.*Did you mean 'y/a'|Did you mean 'y/b'"),
        ("trian=x,test=y", "'trian=x' is not of the form"),
        ("train=,test=y", "'train=' is not of the form"),
        ("test=y", "names no folder to train on"),
        ("train=x,test=x", "names 'x' and 'x', which is the same folder"),
        ("train=x,test=x/a", "names 'x' and 'x/a', which is the same folder or a part of it"),
        ("train=x/a", "a holds 2 images, none of them in a class folder"),
        ("folder", "names no folders, and a folder has no columns. Write it as --split train=FOLDER,test=FOLDER"),
        ("train=../x", "no folder '../x'"),
    ],
)
def test_named_splits_that_cannot_be(tmp_path: Path, split: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read(plant(tmp_path, "x/{a,b} y/{a,b}"), Source(split=split))


def test_a_split_may_be_a_dict() -> None:
    """As Python and TOML write it; a recipe holds one text."""
    split: Any = {"train": ["x", "y"], "test": "z"}
    assert Source(split=split).split == "train=x,train=y,test=z"
    with pytest.raises(ValueError, match="write it as"):
        Source(split={"train": 3})  # type: ignore[arg-type]


def test_readers_that_are_asked_for_decide(tmp_path: Path) -> None:
    plant(tmp_path, "test_positive/{a,b} test_negative/{a,b} train_positive/{a,b} other/{a,b}")
    assert read(tmp_path, Source(reader="class_folders")).classes[0] == "other"
    splits = read(tmp_path, Source(reader="split_folders"))
    assert folders(splits, "train") == {"train_positive"}
    assert folders(splits, "test") == {"test_positive", "test_negative"}
    assert "other left out" in splits.choice
    below = plant(tmp_path / "below", "a/{train,test}/{1,2} b/{train,test}/{1,2}")
    named = read(below, Source(reader="class_folders", split="train=train,test=test"))
    assert named.classes == AB and set(named.table["split"]) == {"train", "test"}
    assert set(read(below, Source(reader="class_folders")).table["split"]) == {"train"}
    assert "in each class folder" in named.choice


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    photos = read(plant(tmp_path, "train/{a,b} test more loose.jpg"))
    (unlabeled,) = [f for f in photos.findings if f.check == "unlabeled"]
    assert unlabeled.message == "2 images without a class in test skipped, first: test/1.jpg"
    assert unlabeled.fix.endswith(f"unfreeze predict RUN {shlex.quote(str(tmp_path / 'test'))}.")
    assert list_images(tmp_path / "test")[1] == ["1.jpg", "2.jpg"]  # as that command lists them
    (loose,) = [f for f in photos.findings if f.check == "no_class"]
    assert loose.message.startswith("3 photos outside") and "--split train=A+B,test=C" in loose.fix
    assert "train cross-validated, test without classes, more left out;" in photos.choice
    (only,) = read(plant(tmp_path / "2", "val/{a,b} test/{a,b}")).findings
    assert (only.severity, only.check, only.message) == ("warning", "no_train", "no training folder: val is trained on")
    (named,) = read(plant(tmp_path / "3", "bus train test")).findings
    assert (named.severity, named.check, named.message) == (
        "warning",
        "split_names",
        "classes named like splits: test, train",
    )


# Tables next to images


def kaggle(root: Path, train: str = "train", test: str = "test", header: str = "image_id,label") -> Path:
    """Images of the same names in two folders, classes of the first in train.csv."""
    for folder, number in ((train, 6), (test, 4)):
        for i in range(number):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{i:04}.jpg").write_bytes(b"x")
    rows = [header, *(f"{i:04}.jpg,{'ab'[i % 2]}" for i in range(6))]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    (root / "sample_submission.csv").write_text("image_id,label\n0000.jpg,a\n0001.jpg,b\n")
    return root


def follow(message: str) -> ImageDataset:
    """What the command reads that a message names."""
    words = shlex.split(message.partition("unfreeze check ")[2].partition(". ")[0].rstrip("."))
    options = dict(zip(words[1::2], words[2::2], strict=True))
    return read(
        words[0], Source(root=options.get("--root", ""), label=(options["--label"],) if "--label" in options else ())
    )


@pytest.mark.parametrize("given", ["", "train"])
@pytest.mark.parametrize(
    ("train", "test", "header"),
    [
        ("train", "test", "image_id,label"),
        ("train_images", "test_images", "image_id,label"),
        ("Train", "Test", "image_id,breed"),
        ("train/images", "test/images", "id,label"),
        ("images", "more", "file,label"),
        ("images_001", "images_002", "file,label"),
        ("train", "extra", "file,label"),
    ],
)
def test_flat_folders_name_the_table_next_to_them(
    tmp_path: Path, train: str, test: str, header: str, given: str
) -> None:
    root = kaggle(tmp_path / "k it", train, test, header)
    if test in ("more", "extra"):  # only the flat folder itself is without classes
        given = "train"
    source = root / (train if given else "")
    with pytest.raises(SourceError, match=r"none of them in a class folder.*train\.csv names classes") as refused:
        read(source)
    photos = follow(str(refused.value))
    assert len(photos) == 6 and photos.classes == AB
    assert all(path.is_relative_to(root / train) for path in photos.files())


def test_a_table_of_which_nothing_is_read_is_still_named(tmp_path: Path) -> None:
    root = kaggle(tmp_path, header="image_id,label")
    (root / "train.csv").write_text("number,label\n1,a\n2,b\n")
    with pytest.raises(SourceError, match=r"train\.csv lies there: .*--root .*train --path COL --label COL"):
        read(root)


def test_tables_of_something_else_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the source anything may lie: only a table whose first rows name these images is read as a whole."""
    root = kaggle(tmp_path / "work/k")
    (root / "train.csv").unlink()
    for folder in (tmp_path, tmp_path / "work"):
        (folder / "big.csv").write_text("id,label\n" + "".join(f"other{i},{i % 2}\n" for i in range(1000)))
        (folder / "broken.parquet").write_bytes(b"PAR1")
        (folder / "folder.csv").mkdir()

    def unexpected(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("unfreeze.data.label_tables.read_sheet", unexpected)
    with pytest.raises(SourceError, match=r"none of them in a class folder\. Sort them into one"):
        read(root)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".tsv"])
def test_ids_without_suffix_in_the_table(tmp_path: Path, suffix: str) -> None:
    root = kaggle(tmp_path / "k")
    (root / "train.csv").unlink()
    frame = pd.DataFrame({"id": [f"{i:04}" for i in range(6)], "target": [*"ababab"]})
    if suffix == ".parquet":
        frame.to_parquet(root / "labels.parquet")
    else:
        frame.to_csv(root / f"labels{suffix}", sep="\t" if suffix == ".tsv" else ",", index=False)
    with pytest.raises(SourceError, match=rf"labels\{suffix} names classes: unfreeze check") as refused:
        read(root)
    photos = follow(str(refused.value))
    assert len(photos) == 6 and photos.root == root / "train"


def test_folders_with_paths_in_the_table(tmp_path: Path) -> None:
    root = kaggle(tmp_path)
    (root / "train.csv").write_text("file,label\n" + "".join(f"train/{i:04}.jpg,{'ab'[i % 2]}\n" for i in range(6)))
    with pytest.raises(SourceError, match=r"train\.csv names classes: unfreeze check \S+train\.csv") as refused:
        read(root)
    assert len(follow(str(refused.value))) == 6


# Names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Train", "TRAIN_SET", "trainset", "trainImages", "img_train", "train.2")
        ),
        *((name, "train") for name in ("val", "valid_data", "Dev Set", "images-validation", "minival2014", "훈련용")),
        *(
            (name, "test")
            for name in ("testset", "Test Images", "stage1_test", "hold out", "held-out", "testA", "평가 데이터")
        ),
        *((name, None) for name in ("tester", "contest", "strain", "evaluated", "values", "devil", "testa", "latest")),
        *((name, None) for name in ("train_test", "training shoes", "validity", "", "set1", "1", "images", "탐험")),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split
    assert split_of(unicodedata.normalize("NFD", name)) == split


def test_names_that_never_end_take_no_time() -> None:
    for name in ("dataset" * 500 + "x", "train" * 2000, "testset" * 1000, "a_" * 5000):
        split_name(name)
        is_container_name(name)


def test_folders_nested_without_end(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 200)
    photos = read(plant(tmp_path, f"train/{{a,b}}/{deep} test/{{a,b}}"))
    assert photos.classes == AB and len(photos) == 8
