"""What columns of tables hold: one-hot labels, several labels a row, quantities, no label, no group, no header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data.list_images import list_images
from unfreeze.data.readers import read

OPTIONS_IN_MESSAGES = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(18):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    return tmp_path


def csv(folder: Path, header: str, rows: list[str]) -> Path:
    text = "".join(f"{i}.jpg,{row}\n" for i, row in enumerate(rows))
    (folder / "t.csv").write_text(f"{header}\n{text}" if header else text, encoding="utf-8")
    return folder / "t.csv"


def labels(photos: ImageDataset) -> dict[str, str]:
    return dict(zip(photos.table["path"], photos.table["label"], strict=True))


def finding(photos: ImageDataset, check: str) -> tuple[str, str]:
    (one,) = [f for f in photos.findings if f.check == check]
    return one.severity, one.message


# One-hot


@pytest.mark.parametrize(
    ("one", "zero"), [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("true", "false"), (" 1", "0 ")]
)
@pytest.mark.parametrize(
    "asked", [(), ("apple,banana,cherry",), ("apple", "banana", "cherry"), ("cherry, apple", "banana")]
)
def test_one_hot_columns(folder: Path, one: str, zero: str, asked: tuple[str, ...]) -> None:
    source = csv(
        folder, "image,apple,banana,cherry", [",".join(one if k == i % 3 else zero for k in range(3)) for i in range(6)]
    )
    photos = read(source, Source(label=asked))
    assert photos.classes == ("apple", "banana", "cherry")
    assert photos.attributes == ("label",)
    assert [labels(photos)[f"{i}.jpg"] for i in range(6)] == ["apple", "banana", "cherry"] * 2
    assert "label from one-hot columns 'apple', 'banana', 'cherry'" in photos.choice or asked


@pytest.mark.parametrize("kind", [int, float, bool, "Int64", "boolean"])
def test_one_hot_in_a_dataframe(folder: Path, kind: object) -> None:
    frame = pd.DataFrame({"image": [f"{i}.jpg" for i in range(4)]})
    for name in ("cat", "dog"):
        frame[name] = pd.Series([(i % 2 == 0) == (name == "cat") for i in range(4)]).astype(kind)
    photos = read(frame, Source(root=str(folder)))
    assert labels(photos) == {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": "cat", "3.jpg": "dog"}


def test_one_hot_next_to_other_columns(folder: Path) -> None:
    """Ids and sizes beside them leave no doubt; another column that may hold classes does."""
    rows = [f"id{i},{100 + i},{i % 2},{1 - i % 2},0" for i in range(8)]
    photos = read(csv(folder, "image,id,width,nevus,melanoma,unknown", rows))
    assert photos.classes == ("melanoma", "nevus")
    source = csv(folder, "image,breed,male,female", [f"{'xyz'[i % 3]},{i % 2},{1 - i % 2}" for i in range(9)])
    with pytest.raises(SourceError, match=r"candidates: breed.*one-hot columns as one label: --label male,female"):
        read(source)
    assert read(source, Source(label=("male,female",))).classes == ("female", "male")
    assert read(source, Source(label=("breed",))).classes == ("x", "y", "z")


def test_several_ones_in_a_row(folder: Path) -> None:
    rows = ["1,0,0", "0,1,0", "1,1,0", "0,0,0", "0,0,1", "1,0,1"]
    source = csv(folder, "image,scab,rust,spot", rows)
    with pytest.raises(SourceError) as error:
        read(source)
    assert "scab, rust, spot hold 2 rows (4, 7) with several 1s and 1 row (5) with none: several labels" in str(
        error.value
    )
    assert "--label scab" in str(error.value)
    photos = read(source, Source(label=("scab,rust,spot",)))
    assert len(photos.classes) == 6
    assert finding(photos, "multi-hot")[0] == "warning"
    assert read(source, Source(label=("scab",))).classes == ("0", "1")


def test_attributes_stay_attributes(folder: Path) -> None:
    source = csv(folder, "image,mask,age", ["0,30", "1,60", "0,60", "1,30"])
    photos = read(source, Source(label=("mask", "age")))
    assert photos.attributes == ("mask", "age")
    assert photos.findings == ()


def test_probability_columns(folder: Path) -> None:
    source = csv(folder, "id,cat,dog", ["0.9,0.1", "0.2,0.8", "0.51,0.49"])
    photos = read(source)
    assert list(photos.table["label"]) == ["cat", "dog", "cat"]
    assert "label from probability columns 'cat', 'dog'" in photos.choice
    with pytest.raises(SourceError, match="with no single largest value"):
        read(csv(folder, "id,cat,dog", ["0.9,0.1", "0.5,0.5"]))


def test_the_only_other_column_is_the_label(folder: Path) -> None:
    assert read(csv(folder, "ImageID,ans", ["3", "4", "3"])).classes == ("3", "4")


# Several labels in a cell


@pytest.mark.parametrize("between", [" ", ",", ", ", "|", ";"])
def test_labels_made_of_labels_are_a_finding(folder: Path, between: str) -> None:
    words = ["scab", "rust", f"scab{between}rust", "healthy", f"scab{between}rust", "rust"]
    photos = read(csv(folder, "image,labels", [f'"{word}"' for word in words]))
    severity, message = finding(photos, "multi-label")
    assert severity == "warning"
    assert f"1 label of 'labels' made of others, in 2 images: 'scab{between}rust' (2)" in message


@pytest.mark.parametrize(
    "names", [["red apple", "green apple"], ["hot dog", "dog"], ["a_b", "a"], ["worn, <30", "worn, 60+"]]
)
def test_labels_of_several_words_are_none(folder: Path, names: list[str]) -> None:
    photos = read(csv(folder, "image,label", [f'"{names[i % 2]}"' for i in range(6)]))
    assert photos.findings == ()


@pytest.mark.parametrize(
    "cells",
    [
        [["apple"], ["apple", "rust"]],
        [("apple",), ("rust",)],
        [{"apple"}, {"rust"}],
        [np.array(["apple"]), np.array(["rust"])],
        ["['apple']", "['apple', 'rust']"],
        ['["apple"]', '["rust"]'],
    ],
)
def test_lists_are_refused(folder: Path, cells: list[object]) -> None:
    frame = pd.DataFrame({"image": ["0.jpg", "1.jpg"], "label": pd.Series(cells, dtype=object)})
    with pytest.raises(
        SourceError, match=r"'label' holds lists in 2 rows \(0, 1\), first: .*apple.*one label"
    ) as error:
        read(frame, Source(root=str(folder)))
    assert "\n" not in str(error.value)


def test_lists_in_parquet_and_their_remedy(folder: Path) -> None:
    frame = pd.DataFrame({"image": ["0.jpg", "1.jpg"], "label": [["a"], ["b"]]})
    frame.to_parquet(folder / "t.parquet")
    with pytest.raises(SourceError, match=r"holds lists .*df\['label'\]\.str\[0\]"):
        read(folder / "t.parquet")
    assert read(frame.assign(label=frame["label"].str[0]), Source(root=str(folder))).classes == ("a", "b")


# Quantities


@pytest.mark.parametrize(
    "values",
    [
        [i * 1.37 for i in range(18)],
        [f"{i},5" for i in range(18)],
        [-i for i in range(18)],
        [f"{i}e-3" for i in range(18)],
        [1990 + i // 2 * 3 + i for i in range(12)],
        [0.25, 0.5, 0.75],
    ],
)
@pytest.mark.parametrize("asked", [(), ("target",)])
def test_a_quantity_is_refused(folder: Path, values: list[object], asked: tuple[str, ...]) -> None:
    source = csv(folder, "image,target", [f'"{value}"' for value in values])
    n = len(values)
    with pytest.raises(
        SourceError, match=rf"'target' holds {n} different numbers in {n} rows: a quantity, not classes"
    ):
        read(source, Source(label=asked))


@pytest.mark.parametrize("values", [["10", "9"], ["0.0", "1.0"], ["0", "1", "2"], [str(i % 6) for i in range(18)]])
def test_numbers_may_be_classes(folder: Path, values: list[str]) -> None:
    assert len(read(csv(folder, "image,target", values)).classes) == len(set(values))


# Test rows without labels


@pytest.mark.parametrize("absent", ["", " "])
def test_test_rows_may_lack_labels(folder: Path, absent: str) -> None:
    source = csv(folder, "image,label,split", ["a,train", "b,train", f"{absent},test", "a,test", f"{absent},test"])
    photos = read(source)
    assert labels(photos) == {"0.jpg": "a", "1.jpg": "b", "3.jpg": "a"}
    assert finding(photos, "unlabeled_test")[1].startswith("2 test images without a label left out")
    assert "2 of test without a label left out" in photos.choice
    assert photos.choice.endswith("1 of the photos for testing")
    assert len(list_images(source)[1]) == 5
    with pytest.raises(SourceError, match=r"'label' is empty in 2 rows \(4, 6\)"):
        read(source, Source(split="none"))


def test_no_test_row_has_a_label(folder: Path) -> None:
    photos = read(csv(folder, "image,label,split", ["a,train", "b,train", ",test", ",eval"]))
    assert set(photos.table["split"]) == {"train"}


@pytest.mark.parametrize("absent", [None, float("nan"), pd.NA])
def test_test_rows_of_a_dataframe(folder: Path, absent: object) -> None:
    frame = pd.DataFrame({"image": ["0.jpg", "1.jpg", "2.jpg"], "split": ["train", "train", "test"]})
    frame["label"] = pd.Series(["a", "b", absent], dtype=object)
    assert len(read(frame, Source(root=str(folder)))) == 2


@pytest.mark.parametrize("row", [",,,test", "0,0,0,test"])
def test_one_hot_test_rows(folder: Path, row: str) -> None:
    rows = ["1,0,0,train", "0,1,0,train", "0,0,1,train", row]
    photos = read(csv(folder, "image,a,b,c,split", rows))
    assert photos.classes == ("a", "b", "c")
    assert len(photos) == 3
    with pytest.raises(SourceError, match=r"\(5\)|row \(5\)"):
        read(csv(folder, "image,a,b,c,split", [*rows[:3], row.replace("test", "train")]))


def test_train_rows_need_labels(folder: Path) -> None:
    for rows in (["a,train", ",train", ",test"], ["a,train", ",val", ",test"]):
        with pytest.raises(SourceError, match=r"'label' is empty in 1 row \(3\)"):
            read(csv(folder, "image,label,split", rows))


def test_a_test_row_with_some_of_its_labels_is_an_error(folder: Path) -> None:
    source = csv(folder, "image,x,y,split", ["a,c,train", "b,d,train", "a,,test"])
    with pytest.raises(SourceError, match=r"'y' is empty in 1 row \(4\)"):
        read(source, Source(label=("x", "y")))
    photos = read(csv(folder, "image,x,y,split", ["a,c,train", "b,d,train", ",,test"]), Source(label=("x", "y")))
    assert photos.classes == ("a, c", "b, d")


# Without header


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_two_columns_without_header(folder: Path, separator: str) -> None:
    source = csv(folder, "", ["a", "b", "a"])
    source.write_text(source.read_text().replace(",", separator))
    photos = read(source)
    assert labels(photos) == {"0.jpg": "a", "1.jpg": "b", "2.jpg": "a"}
    assert photos.choice.startswith("CSV t.csv (no header): paths in 'path', label 'label'")
    with pytest.raises(SourceError, match=r"'label' is empty in 1 row \(2\)"):
        source.write_text(f"0.jpg{separator}a\n1.jpg{separator}\n2.jpg{separator}b\n")
        read(source)


def test_the_label_may_come_first(folder: Path) -> None:
    (folder / "t.csv").write_text("a,0.jpg\nb,1.jpg\n")
    assert labels(read(folder / "t.csv")) == {"0.jpg": "a", "1.jpg": "b"}


def test_more_columns_without_header(folder: Path) -> None:
    source = csv(folder, "", [f"{i},{'ab'[i % 2]},p{i // 2}" for i in range(6)])
    with pytest.raises(SourceError, match=r"--label COL \(candidates: column_3, column_4\)"):
        read(source)
    photos = read(source, Source(label=("column_3",), group="column_4"))
    assert photos.classes == ("a", "b")
    assert set(photos.table["group"]) == {"p0", "p1", "p2"}


def test_the_first_row_repeats_a_value(folder: Path) -> None:
    """As a header it would name two columns alike."""
    photos = read(csv(folder, "", ["1,1", "0,1", "1,0"]), Source(label=("column_2",)))
    assert photos.classes == ("0", "1")


def test_ids_without_suffix_or_header(folder: Path) -> None:
    (folder / "t.csv").write_text("0,a\n1,b\n2,a\n")
    assert labels(read(folder / "t.csv")) == {"0.jpg": "a", "1.jpg": "b", "2.jpg": "a"}
    (folder / "images").mkdir()
    (folder / "images" / "x.png").write_bytes(b"x")
    (folder / "t.csv").write_text("x,a\nx,a\n")
    assert list_images(folder / "t.csv")[1] == ["images/x.png"] * 2


def test_a_list_of_paths(folder: Path) -> None:
    (folder / "t.txt").write_text("3.jpg\n1.jpg\n2.jpg\n")
    said: list[str] = []
    assert list_images(folder / "t.txt", None, said.append)[1] == ["3.jpg", "1.jpg", "2.jpg"]
    assert said == ["CSV t.txt (no header): paths in 'path'."]


def test_a_header_is_none_where_a_column_is_asked_for_by_it(folder: Path) -> None:
    (folder / "t.csv").write_text("0.jpg,label\n1.jpg,a\n2.jpg,b\n")
    assert len(read(folder / "t.csv", Source(path_column="0.jpg"))) == 2


def test_a_dataframe_whose_column_names_are_data(folder: Path) -> None:
    (folder / "t.csv").write_text("0.jpg,a\n1.jpg,b\n2.jpg,a\n")
    with pytest.raises(SourceError, match=r"header is a row of data \('0.jpg'\).*header=None"):
        read(pd.read_csv(folder / "t.csv"), Source(root=str(folder)))
    assert len(read(pd.read_csv(folder / "t.csv", header=None), Source(root=str(folder)))) == 3


# Groups


@pytest.mark.parametrize("absent", ["", "  ", "nan"])
def test_an_empty_group_column_is_ignored(folder: Path, absent: str) -> None:
    source = csv(folder, "image,label,person", [f"a,{absent}", f"b,{absent}"])
    photos = read(source)
    assert list(photos.table["group"]) == list(photos.table["path"])
    assert "'person' ignored, because it is empty: each image is its own group" in photos.choice
    assert finding(photos, "no_group") == (
        "info",
        "the column 'person' is empty in all rows: each image is a group of its own",
    )
    with pytest.raises(SourceError, match=r"'person' is empty in all rows\. Leave --group out"):
        read(source, Source(group="person"))


@pytest.mark.parametrize("options", [Source(), Source(group="person")])
def test_rows_without_a_group_are_groups_of_their_own(folder: Path, options: Source) -> None:
    photos = read(csv(folder, "image,label,person", ["a,p", "b,", "a, ", "b,p", "a,1.jpg"]), options)
    groups = dict(zip(photos.table["path"], photos.table["group"], strict=True))
    assert groups["0.jpg"] == groups["3.jpg"] == "p"
    assert len(set(groups.values())) == 4  # although a group is named as one of the images without a group
    assert groups["4.jpg"] == "1.jpg" != groups["1.jpg"]
    assert "group 'person' (2 without: each its own)" in photos.choice
    severity, message = finding(photos, "no_group")
    assert severity == "warning"
    assert message.startswith("2 images of 5 without a group in 'person'")


@pytest.mark.parametrize("kind", ["frame", "parquet"])
@pytest.mark.parametrize(
    "values",
    [["p", None, "p"], [1.0, float("nan"), 1.0], ["p", pd.NA, "p"], ["p", " ", "p"], [7, None, 7]],
)
def test_absent_groups_of_other_tables(folder: Path, kind: str, values: list[object]) -> None:
    frame = pd.DataFrame({"image": ["0.jpg", "1.jpg", "2.jpg"], "label": ["a", "b", "a"], "group": values})
    source: object = frame
    if kind == "parquet":
        frame.to_parquet(folder / "t.parquet")
        source = folder / "t.parquet"
    photos = read(source, Source(root=str(folder)))
    groups = list(photos.table["group"])
    assert groups[0] == groups[2] != groups[1] == "1.jpg"
    empty = read(frame.assign(group=None), Source(root=str(folder)))
    assert list(empty.table["group"]) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_word_for_a_missing_value_is_a_warning(folder: Path) -> None:
    photos = read(csv(folder, "image,label,person", ["a,p", "b,nan", "a,nan", "b,p"]))
    assert finding(photos, "no_group") == ("warning", "2 images in the group 'nan' of 'person': one group")
