"""write_submission fills a template in, and refuses whatever does not fit it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from unfreeze.core.errors import SourceError, TemplateError
from unfreeze.deliver.submission import check_template, write_submission

CLASSES = ("worn", "incorrect", "normal")
ANSWERS = (0, 1, 2)


def predictions(paths: list[str], labels: list[str | None]) -> pd.DataFrame:
    return pd.DataFrame({"path": paths, "label": labels, "error": ["" if k else "damaged" for k in labels]})


def template(folder: Path, *rows: str, header: str = "ImageID,ans") -> Path:
    path = folder / "info.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def written(folder: Path) -> str:
    return (folder / "out.csv").read_text(encoding="utf-8")


def test_header_order_and_whole_numbers(tmp_path: Path) -> None:
    sheet = template(tmp_path, "b.jpg,0", "c.jpg,0", "a.jpg,0")
    table = write_submission(
        predictions(["a.jpg", "b.jpg", "c.jpg"], ["normal", "worn", "incorrect"]),
        sheet,
        tmp_path / "out.csv",
        CLASSES,
        ANSWERS,
    )
    assert written(tmp_path) == "ImageID,ans\nb.jpg,0\nc.jpg,1\na.jpg,2\n"
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "out.csv"), check_dtype=False)
    assert pd.api.types.is_integer_dtype(table["ans"])


@pytest.mark.parametrize(
    ("ids", "paths"),
    [
        (["b.jpg", "a.jpg"], ["test/a.jpg", "test/b.jpg"]),
        (["b", "a"], ["test/a.jpg", "test/b.png"]),
        (["x/a.jpg", "y/a.jpg"], ["y/a.jpg", "x/a.jpg"]),
        (["x/a", "y/a"], ["y/a.jpg", "x/a.png"]),
        (["0001", "0010"], ["0010.jpg", "0001.jpg"]),
        (["a.b", "a.c"], ["a.c.jpg", "a.b.jpg"]),
        (["NA", "null"], ["null.jpg", "NA.jpg"]),
        (["=1+1.jpg", "@x.jpg"], ["@x.jpg", "=1+1.jpg"]),
    ],
    ids=["names", "stems", "paths", "paths-without-suffix", "leading-zeros", "dots", "words-for-nothing", "formulas"],
)
def test_how_a_template_may_call_a_photo(ids: list[str], paths: list[str], tmp_path: Path) -> None:
    sheet = template(tmp_path, *(f"{i}," for i in ids))
    labels = [CLASSES[k] for k in range(len(paths))]
    check_template(sheet, paths, ANSWERS)
    write_submission(predictions(paths, list(labels)), sheet, tmp_path / "out.csv", CLASSES, ANSWERS)
    rows = [line.split(",") for line in written(tmp_path).splitlines()[1:]]
    assert [row[0] for row in rows] == ids
    by_path = dict(zip(paths, ANSWERS[: len(paths)], strict=True))
    for i, answer in rows:
        (path,) = [p for p in paths if i in (p, p.rpartition(".")[0], Path(p).name, Path(p).stem)]
        assert int(answer) == by_path[path]


def test_text_answers_stay_text(tmp_path: Path) -> None:
    sheet = template(tmp_path, "a.jpg,worn", "b.jpg,normal", "c.jpg,incorrect", header="file,class")
    table = predictions(["a.jpg", "b.jpg", "c.jpg"], ["normal", "normal", "worn"])
    write_submission(table, sheet, tmp_path / "out.csv", CLASSES, CLASSES)
    assert written(tmp_path) == "file,class\na.jpg,normal\nb.jpg,normal\nc.jpg,worn\n"


def test_labels_that_need_quotes_come_back(tmp_path: Path) -> None:
    classes = ("worn, male", 'so "called"', "=1+1")
    sheet = template(tmp_path, *(f"{k}.jpg," for k in range(3)))
    table = predictions([f"{k}.jpg" for k in range(3)], list(classes))
    write_submission(table, sheet, tmp_path / "out.csv", classes, classes)
    assert pd.read_csv(tmp_path / "out.csv")["ans"].tolist() == list(classes)


REFUSED = [
    (["a.jpg,0", "b.jpg,0", "b.jpg,0"], "ImageID,ans", r"info\.csv: repeats id\(s\): b\.jpg"),
    (["a.jpg,0", "b.jpg,0", "z.jpg,0"], "ImageID,ans", r"info\.csv: asks for.*z\.jpg"),
    (["a.jpg,0"], "ImageID,ans", r"info\.csv: does not ask for.*b\.jpg"),
    (["a.jpg", "b.jpg"], "ImageID", r"info\.csv: has 1 column\(s\), ImageID; .* two"),
    (["a.jpg,0,0", "b.jpg,0,0"], "ImageID,x,y", r"info\.csv: has 3 column\(s\)"),
    ([], "ImageID,ans", r"info\.csv: has no rows"),
    (["a.jpg,0", "b.jpg,1"], "ImageID,ans", r"range from 0 to 1; .*class\(es\): 2 \(1 in all\)"),
    (["a.jpg,worn", "b.jpg,normal"], "ImageID,ans", r"does not know .*0, 1, 2"),
]


@pytest.mark.parametrize(("rows", "header", "words"), REFUSED)
def test_what_is_refused_leaves_nothing(rows: list[str], header: str, words: str, tmp_path: Path) -> None:
    sheet = template(tmp_path, *rows, header=header)
    table = predictions(["a.jpg", "b.jpg"], ["worn", "normal"])
    with pytest.raises(TemplateError, match=words):
        check_template(sheet, table["path"], ANSWERS)
    with pytest.raises(TemplateError, match=words) as told:
        write_submission(table, sheet, tmp_path / "out.csv", CLASSES, ANSWERS)
    assert str(told.value).endswith(".") and "\n" not in str(told.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["info.csv"]


def test_words_where_numbers_are_wanted(tmp_path: Path) -> None:
    sheet = template(tmp_path, "a.jpg,0", "b.jpg,0")
    with pytest.raises(TemplateError, match=r"wants whole numbers .* worn, incorrect, normal; label the training"):
        check_template(sheet, ["a.jpg", "b.jpg"], CLASSES)


def test_answers_all_alike_say_nothing_about_the_range(tmp_path: Path) -> None:
    check_template(template(tmp_path, "a.jpg,0", "b.jpg,0"), ["a.jpg", "b.jpg"], tuple(range(18)))
    check_template(template(tmp_path, "a.jpg,", "b.jpg,"), ["a.jpg", "b.jpg"], CLASSES)


def test_photos_of_one_name_in_two_folders(tmp_path: Path) -> None:
    sheet = template(tmp_path, "a.jpg,0")
    with pytest.raises(TemplateError, match=r"cannot tell apart photos of one id: a\.jpg"):
        check_template(sheet, ["x/a.jpg", "y/a.jpg"], ANSWERS)


def test_photos_without_prediction(tmp_path: Path) -> None:
    sheet = template(tmp_path, "a.jpg,0", "b.jpg,0")
    table = predictions(["a.jpg", "b.jpg"], [None, "incorrect"])
    with pytest.raises(TemplateError, match=r"could not be read have no answer: a\.jpg"):
        write_submission(table, sheet, tmp_path / "out.csv", CLASSES, ANSWERS)
    with pytest.raises(TemplateError, match="fallback 'wron': the run has no such class"):
        write_submission(table, sheet, tmp_path / "out.csv", CLASSES, ANSWERS, "wron")
    table["label"] = [np.nan, "incorrect"]
    write_submission(table, sheet, tmp_path / "out.csv", CLASSES, ANSWERS, "normal")
    assert written(tmp_path) == "ImageID,ans\na.jpg,2\nb.jpg,1\n"


def test_labels_of_another_run(tmp_path: Path) -> None:
    sheet = template(tmp_path, "a.jpg,0")
    with pytest.raises(TemplateError, match=r"no class of the run: cat"):
        write_submission(predictions(["a.jpg"], ["cat"]), sheet, tmp_path / "out.csv", CLASSES, ANSWERS)


def test_an_empty_template_or_none(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"none\.csv: no such template file"):
        check_template(tmp_path / "none.csv", [], ANSWERS)
    (tmp_path / "info.csv").write_text("")
    with pytest.raises(SourceError, match=r"info\.csv: the file is empty"):
        check_template(tmp_path / "info.csv", [], ANSWERS)


def test_a_template_with_semicolons_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "info.csv").write_bytes("\ufeffImageID;ans\r\na.jpg;0\r\n".encode())
    uf.write_submission(predictions(["a.jpg"], ["normal"]), tmp_path / "info.csv", tmp_path / "o.csv", CLASSES, ANSWERS)
    assert (tmp_path / "o.csv").read_text() == "ImageID,ans\na.jpg,2\n"
