"""write_submission fills a template in, and refuses whatever does not fit it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from unfreeze.core.errors import SourceError, TemplateError
from unfreeze.inference.submission import check_template, write_submission

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
    (["a.jpg,0", "b.jpg,0", "z.jpg,0"], "ImageID,ans", r"info\.csv: lists id\(s\) without an image: z\.jpg"),
    (["a.jpg,0"], "ImageID,ans", r"info\.csv: does not list image\(s\): b\.jpg"),
    (["a.jpg", "b.jpg"], "ImageID", r"info\.csv: has 1 column\(s\), ImageID; .* two"),
    (["a.jpg,0,0", "b.jpg,0,0"], "ImageID,x,y", r"info\.csv: has 3 columns, .* not a class of the run: x, y"),
    ([], "ImageID,ans", r"info\.csv: has no rows"),
    (["a.jpg,0", "b.jpg,1"], "ImageID,ans", r"range from 0 to 1; .*class\(es\): 2 \(1 in all\)"),
    (["a.jpg,worn", "b.jpg,normal"], "ImageID,ans", r"does not contain .*0, 1, 2"),
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
    with pytest.raises(TemplateError, match=r"expects integers .* worn, incorrect, normal; use the numbers"):
        check_template(sheet, ["a.jpg", "b.jpg"], CLASSES)


def test_answers_all_alike_say_nothing_about_the_range(tmp_path: Path) -> None:
    check_template(template(tmp_path, "a.jpg,0", "b.jpg,0"), ["a.jpg", "b.jpg"], tuple(range(18)))
    check_template(template(tmp_path, "a.jpg,", "b.jpg,"), ["a.jpg", "b.jpg"], CLASSES)


def test_photos_of_one_name_in_two_folders(tmp_path: Path) -> None:
    sheet = template(tmp_path, "a.jpg,0")
    with pytest.raises(TemplateError, match=r"several images match the same id: a\.jpg"):
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
    with pytest.raises(TemplateError, match=r"not classes of the run: cat"):
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


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("ids", "paths"),
    [
        ([nfd("사과.jpg"), "배.jpg"], ["배.jpg", "사과.jpg"]),
        (["사과.jpg", "배.jpg"], [nfd("시험/배.jpg"), nfd("시험/사과.jpg")]),
        (["시험/사과", "시험/배"], [nfd("시험/") + "배.jpg", "시험/" + nfd("사과.png")]),
        ([nfd("사과"), "배"], ["배.jpg", "사과.jpg"]),
        (["사과.jpg", nfd("사과.jpg")], [nfd("사과.jpg"), "사과.jpg"]),
    ],
    ids=["nfd-ids", "nfd-paths", "mixed", "stems", "both-forms-are-two-photos"],
)
def test_ids_in_another_unicode_form(ids: list[str], paths: list[str], tmp_path: Path) -> None:
    sheet = template(tmp_path, *(f"{i},0" for i in ids))
    check_template(sheet, paths, ANSWERS)
    table = predictions(paths, ["worn", "normal"])
    found = write_submission(table, sheet, tmp_path / "out.csv", CLASSES, ANSWERS)
    assert found["ImageID"].tolist() == ids, "to the letter"
    assert found["ans"].tolist() == [2, 0]


def test_answers_in_another_unicode_form_are_written_as_the_template_has_them(tmp_path: Path) -> None:
    sheet = template(tmp_path, f"a.jpg,{nfd('사과')}", "b.jpg,배")
    table = predictions(["a.jpg", "b.jpg"], [nfd("배"), "사과"])
    found = write_submission(table, sheet, tmp_path / "out.csv", ("배", "사과"), ("배", "사과"))
    assert found["ans"].tolist() == ["배", nfd("사과")]
    with pytest.raises(TemplateError, match=r"does not contain .*감"):
        check_template(sheet, ["a.jpg", "b.jpg"], ("배", "사과", "감"))


@pytest.mark.parametrize("rows", [["a.jpg,0.0", "b.jpg,2.0"], ["a.jpg,0", "b.jpg,2"], ["a.jpg,0.0", "b.jpg,0.0"]])
def test_whole_numbers_with_a_point_are_whole_numbers(rows: list[str], tmp_path: Path) -> None:
    sheet = template(tmp_path, *rows)
    table = predictions(["a.jpg", "b.jpg"], ["normal", "worn"])
    found = write_submission(table, sheet, tmp_path / "out.csv", CLASSES, ANSWERS)
    assert found["ans"].tolist() == [2, 0]
    with pytest.raises(TemplateError, match=r"use the numbers|outside are"):
        check_template(sheet, ["a.jpg", "b.jpg"], CLASSES)


def test_a_template_is_found_under_another_form_of_its_name(tmp_path: Path) -> None:
    template(tmp_path, "a.jpg,0").rename(tmp_path / nfd("양식.csv"))
    check_template(tmp_path / "양식.csv", ["a.jpg"], ANSWERS)


# Probabilities


def probabilities(paths: list[str], classes: tuple[str, ...] = ("cat", "dog")) -> pd.DataFrame:
    """Of class k the photo i has (k + 1 + i) parts."""
    table = predictions(paths, [classes[-1]] * len(paths))
    for k, name in enumerate(classes):
        table[f"p_{name}"] = [(k + 1 + i) / sum(j + 1 + i for j in range(len(classes))) for i in range(len(paths))]
    return table


@pytest.mark.parametrize("header", ["id,cat,dog", "id,dog,cat", "id,p_dog,p_cat"])
@pytest.mark.parametrize("given", ["0.5", "0", "", "1e-3"])
def test_a_column_for_each_class_is_filled_with_probabilities(tmp_path: Path, header: str, given: str) -> None:
    sheet = template(tmp_path, f"2,{given},{given}", f"1,{given},{given}", header=header)
    table, classes = probabilities(["1.jpg", "2.jpg"]), ("cat", "dog")
    names = [name.removeprefix("p_") for name in header.split(",")[1:]]
    said = check_template(sheet, table["path"], classes, classes)
    assert said == f"{sheet}: filled with the probability of {', '.join(map(repr, names))}."
    write_submission(table, sheet, tmp_path / "out.csv", classes, classes)
    found = pd.read_csv(tmp_path / "out.csv")
    assert ",".join(found.columns) == header
    assert found["id"].tolist() == [2, 1]
    for column, name in zip(found.columns[1:], names, strict=True):
        assert found[column].tolist() == table[f"p_{name}"].tolist()[::-1]


def test_columns_named_as_the_numbers_of_a_submission(tmp_path: Path) -> None:
    sheet = template(tmp_path, "1,0,0,0", header="id,2,0,1")
    write_submission(probabilities(["1.jpg"], CLASSES), sheet, tmp_path / "out.csv", CLASSES, ANSWERS)
    found = pd.read_csv(tmp_path / "out.csv")
    assert found[["0", "1", "2"]].iloc[0].tolist() == [1 / 6, 2 / 6, 3 / 6]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("id,cat,dgo", r"has 3 columns, and a column that is not a class of the run: dgo .* each class: cat, dog"),
        ("id,cat,dog,bird", r"a column that is not a class of the run: bird"),
        ("id,cat,p_cat", r"has no column for the run's class\(es\): dog"),
        ("id,Cat,Dog", r"not a class of the run: Cat, Dog"),
    ],
)
def test_columns_that_are_not_the_classes(tmp_path: Path, header: str, words: str) -> None:
    sheet = template(tmp_path, "1" + ",0.5" * header.count(","), header=header)
    with pytest.raises(TemplateError, match=words):
        check_template(sheet, ["1.jpg"], ("cat", "dog"), ("cat", "dog"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["info.csv"]


@pytest.mark.parametrize(
    "given",
    [
        ("0.5", "0.5"),
        ("0.50", "0.50"),
        (".5", ".5"),
        ("5e-1", "5e-1"),
        ("0.3", "0.7"),
        ('"0,5"', '"0,5"'),
        ("0.5", "0"),
    ],
)
def test_numbers_with_a_fraction_are_never_filled_with_names(tmp_path: Path, given: tuple[str, str]) -> None:
    sheet = template(tmp_path, f"1,{given[0]}", f"2,{given[1]}", header="id,label")
    table, classes = probabilities(["1.jpg", "2.jpg"]), ("cat", "dog")
    words = r"'label' holds .* probability is expected, .* of which class; the run has cat, dog\. Name the column"
    with pytest.raises(TemplateError, match=words):
        check_template(sheet, table["path"], classes, classes)
    with pytest.raises(TemplateError, match=words):
        write_submission(table, sheet, tmp_path / "out.csv", classes, classes)
    assert not (tmp_path / "out.csv").exists()
    sheet.write_text(sheet.read_text().replace("id,label", "id,dog"))  # what the message says to do
    assert "probability of 'dog'" in check_template(sheet, table["path"], classes, classes)
    write_submission(table, sheet, tmp_path / "out.csv", classes, classes)
    assert pd.read_csv(tmp_path / "out.csv")["dog"].tolist() == table["p_dog"].tolist()


@pytest.mark.parametrize("given", ["0.0", "0", "1.0", "-1"])
def test_whole_numbers_are_never_filled_with_names(tmp_path: Path, given: str) -> None:
    for header in ("id,label", "id,dog"):
        with pytest.raises(TemplateError, match="expects integers"):
            check_template(template(tmp_path, f"1,{given}", header=header), ["1.jpg"], ("cat", "dog"), ("cat", "dog"))


def test_the_probability_of_1_where_the_classes_are_0_and_1(tmp_path: Path) -> None:
    sheet = template(tmp_path, "1,0.5", "2,0.5", header="id,label")
    table = probabilities(["1.jpg", "2.jpg"], ("0", "1"))
    assert "probability of '1'" in check_template(sheet, table["path"], (0, 1), ("0", "1"))
    write_submission(table, sheet, tmp_path / "out.csv", ("0", "1"), (0, 1))
    assert pd.read_csv(tmp_path / "out.csv")["label"].tolist() == table["p_1"].tolist()
    sheet = template(tmp_path, "1,0.0", "2,0.0", header="id,label")  # a whole number stays one
    write_submission(table, sheet, tmp_path / "out.csv", ("0", "1"), (0, 1))
    assert written(tmp_path) == "id,label\n1,1\n2,1\n"


def test_photos_that_cannot_be_read_have_equal_probabilities(tmp_path: Path) -> None:
    sheet = template(tmp_path, "1,0.5,0.5", "2,0.5,0.5", header="id,cat,dog")
    table, classes = probabilities(["1.jpg", "2.jpg"]), ("cat", "dog")
    table.loc[1, ["label", "p_cat", "p_dog"]] = [None, np.nan, np.nan]
    with pytest.raises(TemplateError, match="have no answer: 2"):
        write_submission(table, sheet, tmp_path / "out.csv", classes, classes)
    write_submission(table, sheet, tmp_path / "out.csv", classes, classes, "dog")
    assert pd.read_csv(tmp_path / "out.csv").iloc[1].tolist() == [2, 0.5, 0.5]


def test_predictions_without_probabilities(tmp_path: Path) -> None:
    sheet = template(tmp_path, "1,0.5,0.5", header="id,cat,dog")
    with pytest.raises(TemplateError, match=r"lack the column\(s\): p_cat, p_dog"):
        write_submission(predictions(["1.jpg"], ["cat"]), sheet, tmp_path / "out.csv", ("cat", "dog"), ("cat", "dog"))


def test_a_template_without_header_or_in_another_encoding(tmp_path: Path) -> None:
    sheet = template(tmp_path, "2.jpg,0", header="1.jpg,0")
    with pytest.raises(TemplateError, match=r"info\.csv: has no header"):
        check_template(sheet, ["1.jpg", "2.jpg"], ANSWERS)
    sheet.write_bytes("파일,정답\n사과.jpg,\n".encode("cp949"))
    assert "read as cp949" in check_template(sheet, ["사과.jpg"], CLASSES)
    write_submission(predictions(["사과.jpg"], ["worn"]), sheet, tmp_path / "out.csv", CLASSES, CLASSES)
    assert written(tmp_path) == "파일,정답\n사과.jpg,worn\n"
    sheet.write_bytes("id,라벨\n狗.jpg,\n".encode("gb18030", "ignore"))
    with pytest.raises(SourceError, match="encoding gb18030"):
        check_template(sheet, ["狗.jpg"], CLASSES)
