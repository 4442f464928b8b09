"""Tables that `unfreeze predict` writes are read back to the letter: odd names, error rows, templates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.core.dataset import probability_columns
from unfreeze.core.files import write_csv
from unfreeze.core.recipe_schema import Source
from unfreeze.data.list_images import list_images
from unfreeze.data.readers import read
from unfreeze.data.text_table import read_sheet
from unfreeze.inference.submission import check_template, write_submission

ODD = [
    "-1",
    "=x",
    "+a",
    "@b",
    " lead",
    "trail ",
    "a,b",
    'say "x"',
    "two\nlines",
    "a\ttab",
    "\ttab",
    "'tis",
    "'=x",
    "''",
    "가나",
    "a;b;c;d",
    "a|b",
    "cr\rcr",
    "both\r\nends",
    "'",
    "NA",
    "nan",
    "0",
    "p_x",
]


def predictions(paths: list[str], labels: list[str | None]) -> pd.DataFrame:
    """As `Classifier.predict` gives them."""
    classes = sorted({label for label in labels if label is not None})
    frame = pd.DataFrame({"path": paths, "label": pd.Series(labels, dtype=object)})
    for name in probability_columns(classes):
        frame[name] = [float(name == f"p_{label}") if label is not None else float("nan") for label in labels]
    return frame.assign(error=["" if label is not None else "damaged, no image" for label in labels])


def written(folder: Path, table: pd.DataFrame, suffix: str) -> Path:
    file = folder / f"predictions.{suffix}"
    if suffix == "csv":
        return write_csv(file, table)
    table.to_parquet(file, index=False)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder a class and an image in each, all named oddly."""
    for name in ODD:
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / f"{name}.jpg").write_bytes(b"x")
    return tmp_path / "set"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_odd_names_come_back(folder: Path, tmp_path: Path, suffix: str) -> None:
    paths = [f"{name}/{name}.jpg" for name in ODD]
    file = written(tmp_path, predictions(paths, list(ODD)), suffix)
    options = Source(root=str(folder))
    assert list_images(file, options) == (folder, paths)
    photos = read(file, options)
    assert dict(zip(photos.table["path"], photos.table["label"], strict=True)) == dict(zip(paths, ODD, strict=True))
    assert photos.findings == ()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_in_the_folder_itself(tmp_path: Path, suffix: str) -> None:
    names = [f"{name}.jpg" for name in ODD]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    file = written(tmp_path, predictions(names, ["a", "b"] * (len(ODD) // 2)), suffix)
    assert list_images(file)[1] == names
    assert sorted(read(file).table["path"]) == sorted(names)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "frame"])
def test_error_rows_are_left_out_of_training_and_predicted_again(tmp_path: Path, suffix: str) -> None:
    names = ["0.jpg", "1.jpg", "2.jpg", "gone.jpg"]
    for name in names[:3]:
        (tmp_path / name).write_bytes(b"x")
    table = predictions(names, ["a", "b", None, None])
    file = table if suffix == "frame" else written(tmp_path, table, suffix)
    photos = read(file, Source(root=str(tmp_path)))
    assert list(photos.table["path"]) == ["0.jpg", "1.jpg"]
    (finding,) = photos.findings
    assert (finding.check, finding.severity) == ("unpredicted", "warning")
    assert finding.message.startswith("2 images left out that could not be read when predicted: 2 rows")
    if suffix != "frame":
        assert list_images(file)[1] == names


def test_one_class_more_than_columns_with_other_separators(tmp_path: Path) -> None:
    """Names full of semicolons do not make the table one of semicolons."""
    (tmp_path / "a;b;c;d").mkdir()
    (tmp_path / "a;b;c;d" / "1;2;3;4.jpg").write_bytes(b"x")
    file = written(tmp_path, predictions(["a;b;c;d/1;2;3;4.jpg"] * 2, ["a;b;c;d", "e;f;g;h"]), "csv")
    assert list_images(file)[1] == ["a;b;c;d/1;2;3;4.jpg"] * 2


def test_classes_that_differ_in_spaces(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(4)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    file = written(tmp_path, predictions(names, ["cat", "cat ", "cat", "cat "]), "csv")
    assert read(file).classes == ("cat", "cat ")


def test_an_edited_table_of_predictions(tmp_path: Path) -> None:
    """Two of its columns alone: the apostrophes still come off, of labels too."""
    for name in ("=x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    frame = predictions(["=x/1.jpg", "y/1.jpg"], ["=x", "y"])[["path", "label"]]
    photos = read(write_csv(tmp_path / "t.csv", frame))
    assert photos.classes == ("=x", "y")
    assert list(photos.table["path"]) == ["=x/1.jpg", "y/1.jpg"]


def test_an_apostrophe_that_is_part_of_a_name_survives(tmp_path: Path) -> None:
    for name in ("'=x.jpg", "=x.jpg", "'a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "own.csv").write_text("file,label\n'=x.jpg,'-a\n=x.jpg,b\n'a.jpg,b\n")
    photos = read(tmp_path / "own.csv")
    assert sorted(photos.table["path"]) == ["'=x.jpg", "'a.jpg", "=x.jpg"]
    assert photos.classes == ("'-a", "b")
    names = ["'=x.jpg", "=x.jpg", "'a.jpg"]
    file = written(tmp_path, predictions(names, ["'-a", "-a", "b"]), "csv")
    assert list_images(file)[1] == names
    assert read(file).classes == ("'-a", "-a", "b")


@pytest.mark.parametrize("ids", ["names", "stems", "paths"])
def test_submissions_come_back(tmp_path: Path, ids: str) -> None:
    names = [f"{name}.jpg" for name in ODD]
    (tmp_path / "test").mkdir()
    for name in names:
        (tmp_path / "test" / name).write_bytes(b"x")
    shown = {"names": names, "stems": ODD, "paths": [f"test/{name}" for name in names]}[ids]
    write_csv(tmp_path / "info.csv", pd.DataFrame({"ImageID": shown, "ans": ""}), exact=True)
    paths = names if ids != "paths" else shown
    table = predictions(paths, ["a", "b"] * (len(ODD) // 2))
    assert check_template(tmp_path / "info.csv", paths, ("a", "b"), ("a", "b")) == ""
    write_submission(table, tmp_path / "info.csv", tmp_path / "sub.csv", ("a", "b"), ("a", "b"))
    root = Source(root=str(tmp_path if ids == "paths" else tmp_path / "test"))
    found, listed = list_images(tmp_path / "sub.csv", root)
    assert [(found / name).relative_to(root.root).as_posix() for name in listed] == paths
    photos = read(tmp_path / "sub.csv", root)
    assert len(photos) == len(ODD)
    assert dict(zip(photos.table["path"], photos.table["label"], strict=True)) == dict(
        zip(table["path"], table["label"], strict=True)
    )


def test_a_submission_of_probabilities_comes_back(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "t.csv").write_text("id,dog,cat\n2,0.5,0.5\n1,0.5,0.5\n")
    table = predictions(["1.jpg", "2.jpg"], ["cat", "dog"])
    write_submission(table, tmp_path / "t.csv", tmp_path / "sub.csv", ("cat", "dog"), ("cat", "dog"))
    photos = read(tmp_path / "sub.csv")
    assert list(photos.table["label"]) == ["cat", "dog"]


NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES), min_size=2, max_size=5))
def test_any_names_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    if len({label for _, label in rows}) < 2:
        return
    file = tmp_path_factory.getbasetemp() / "any.csv"
    write_csv(file, predictions([path for path, _ in rows], [label for _, label in rows]))
    sheet = read_sheet(file)
    assert sheet.predicted
    assert list(zip(sheet.column("path"), sheet.column("label"), strict=True)) == rows
