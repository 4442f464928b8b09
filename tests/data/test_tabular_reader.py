"""Photos named by CSV, TSV, Parquet and DataFrames."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unfreeze.core.errors import SourceError, UnfreezeError
from unfreeze.core.recipe_schema import Source
from unfreeze.data import text_table as sheets
from unfreeze.data.readers import read

NAMES = tuple(f"{i}.jpg" for i in range(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 0.jpg ... 7.jpg, in img/ too."""
    root = tmp_path / "set"
    (root / "img").mkdir(parents=True)
    for name in NAMES:
        (root / name).write_bytes(b"x")
        (root / "img" / name).write_bytes(b"x")
    return root


def sheet(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def column(photos, name: str) -> list[str]:
    return list(photos.table[name])


def finding(photos, check: str) -> tuple[str, str]:
    (one,) = [f for f in photos.findings if f.check == check]
    return one.severity, one.message


def test_csv(folder):
    photos = read(sheet(folder, "file,label,person\n1.jpg,b,p\nimg/0.jpg,a,000001\n0.jpg,a,p\n"))
    assert photos.reader == "table"
    assert list(photos.table.columns) == ["path", "label", "group", "split"]
    assert column(photos, "path") == ["0.jpg", "1.jpg", "img/0.jpg"]
    assert column(photos, "label") == ["a", "b", "a"]
    assert column(photos, "group") == ["p", "p", "000001"]
    assert column(photos, "split") == ["train"] * 3
    assert photos.root == folder.resolve()
    assert photos.attributes == ("label",)
    assert photos.findings == ()
    assert photos.choice == ("CSV t.csv: paths in 'file', label 'label', group 'person'; 3 photos, 2 classes, 2 groups")


def test_without_group_each_photo_is_its_own(folder):
    photos = read(sheet(folder, "file,label\n1.jpg,b\n0.jpg,a\n"))
    assert column(photos, "group") == column(photos, "path")
    assert "each photo its own group" in photos.choice


# The file's form


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_line_ends_and_byte_order_mark(folder, separator, end, mark):
    rows = ['"file"|"label"', '0.jpg|"x, y; z"', '1.jpg|"quoted ""q"""', "2.jpg|ü"]
    photos = read(sheet(folder, mark + end.join(row.replace("|", separator) for row in rows) + end))
    assert column(photos, "path") == ["0.jpg", "1.jpg", "2.jpg"]
    assert column(photos, "label") == ["x, y; z", 'quoted "q"', "ü"]


@pytest.mark.parametrize(("name", "kind"), [("t.tsv", "TSV"), ("t.TXT", "CSV"), ("t.CSV", "CSV")])
def test_other_suffixes(folder, name, kind):
    assert read(sheet(folder, "file\tlabel\n0.jpg\ta\n1.jpg\tb\n", name)).choice.startswith(f"{kind} {name}:")


def test_everything_stays_text(folder):
    photos = read(sheet(folder, "id,file,label,group\n1,0.jpg,NA,000001\n2,1.jpg,nan,1\n3,2.jpg,1.0,01\n"))
    assert photos.classes == ("1.0", "NA", "nan")
    assert column(photos, "group") == ["000001", "1", "01"]


def test_whole_number_labels(folder):
    photos = read(sheet(folder, "file,label\n0.jpg,10\n1.jpg,9\n"))
    assert photos.classes == ("9", "10")
    assert photos.answers == (9, 10)


def test_spaces_around_names_and_values(folder):
    photos = read(sheet(folder, "file, label , group\n0.jpg, a, p\n 1.jpg ,b ,p\n2.jpg,a,p \n"))
    assert photos.classes == ("a", "b")
    assert set(column(photos, "group")) == {"p"}


def test_unnamed_index_column(folder):
    assert len(read(sheet(folder, ",file,label,\n0,0.jpg,a,\n1,1.jpg,b,\n"))) == 2


def test_blank_lines(folder):
    assert len(read(sheet(folder, "\nfile,label\n\n0.jpg,a\n1.jpg,b\n\n"))) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"file,label\n", "no rows"),
        ("file,label\n0.jpg,яблоко\n".encode("cp1251"), "not UTF-8: byte 0xff in line 2.*encoding cp1251"),
        (b"file,label\n0.jpg,a\n1.jpg,b,c\n", "not a valid CSV .*line 3"),
        (b'file,label\n0.jpg,"a\n', "not a valid CSV"),
        (b"file,label,label\n0.jpg,a,b\n", "two columns are named 'label'"),
        (b"file,label\n0.jpg,a\n1.jpg\n", r"'label' is empty in 1 row \(3\)"),
    ],
)
def test_files_that_are_no_table(folder, content, said):
    with pytest.raises(SourceError, match=said):
        read(sheet(folder, content))


def test_too_large(folder, monkeypatch):
    monkeypatch.setattr(sheets, "MAX_BYTES", 10)
    with pytest.raises(SourceError, match="exceeds the limit for a table"):
        read(sheet(folder, "file,label\n0.jpg,a\n1.jpg,b\n"))


def test_another_kind_of_file(folder):
    with pytest.raises(SourceError, match=r"not a CSV, TSV or Parquet by its name"):
        read(sheet(folder, "x", "t.xlsx"))


def test_parquet(folder):
    frame = pd.DataFrame({"file": ["0.jpg", "1.jpg"], "label": [1.0, 2.0], "group": ["01", "1"]})
    frame.to_parquet(folder / "t.parquet")
    photos = read(folder / "t.parquet")
    assert photos.classes == ("1", "2")
    assert column(photos, "group") == ["01", "1"]
    assert photos.choice.startswith("Parquet t.parquet: ")
    with pytest.raises(SourceError, match="not a valid Parquet file"):
        read(sheet(folder, b"PAR1 nonsense", "bad.parquet"))


# DataFrames


def test_dataframe(folder, monkeypatch):
    frame = pd.DataFrame(
        {"file": ["2.jpg", "0.jpg"], "label": pd.Categorical(["b", "a"]), "group": [7, 8]}, index=[5, 5]
    )
    before = frame.copy()
    photos = read(frame, Source(root=str(folder)))
    assert column(photos, "path") == ["0.jpg", "2.jpg"]
    assert column(photos, "group") == ["8", "7"]
    assert photos.choice.startswith("DataFrame: paths in 'file', label 'label', group 'group';")
    pd.testing.assert_frame_equal(frame, before)
    monkeypatch.chdir(folder)
    pd.testing.assert_frame_equal(read(frame).table, photos.table)


def test_dataframe_of_paths_and_numbers(folder):
    frame = pd.DataFrame({0: [folder / "0.jpg", folder / "1.jpg"], 1: [True, False]})
    photos = read(frame, Source(root=str(folder), label=("1",)))
    assert column(photos, "path") == ["0.jpg", "1.jpg"]
    assert photos.classes == ("False", "True")


@pytest.mark.parametrize("absent", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, " "])
def test_absent_values_in_a_dataframe(folder, absent):
    frame = pd.DataFrame({"file": ["0.jpg", "1.jpg"], "label": pd.Series(["a", absent], dtype=object)})
    with pytest.raises(SourceError, match=r"the DataFrame: 'label' is empty in 1 row \(1\)"):
        read(frame, Source(root=str(folder)))


def test_dataframe_with_lone_surrogates(folder):
    frame = pd.DataFrame({"file": ["0.jpg", "1.jpg"], "label": pd.Series(["a", "\ud800"], dtype=object)})
    with pytest.raises(SourceError, match="not valid text in 1 row"):
        read(frame, Source(root=str(folder)))


def test_a_photos_table_can_be_read_again(folder):
    photos = read(sheet(folder, "file,label,group,split\n0.jpg,a,p,train\n1.jpg,b,p,dev\n2.jpg,b,q,test\n"))
    again = read(photos.table, Source(root=str(photos.root)))
    pd.testing.assert_frame_equal(again.table, photos.table)


# Which column is what


def test_path_column_named(folder):
    text = "file,other,label\n0.jpg,1.jpg,a\n1.jpg,2.jpg,b\n"
    with pytest.raises(SourceError, match=r"the columns file, other all hold paths.*path="):
        read(sheet(folder, text))
    assert column(read(folder / "t.csv", Source(path_column="other")), "path") == ["1.jpg", "2.jpg"]


def test_no_path_column(folder):
    with pytest.raises(SourceError, match=r"no column holds paths.*Its columns are name, label.*root=DIR"):
        read(sheet(folder, "name,label\nzero,a\none,b\n"))


def test_path_column_needs_half_of_its_sample(folder):
    rows = "".join(f"{i}.jpg,{i % 2}\n" for i in range(16))  # 0..7 exist
    with pytest.raises(SourceError, match=r"for 8 of 16 paths in 'file': 8.jpg, .* and 3 more"):
        read(sheet(folder, "file,label\n" + rows))
    with pytest.raises(SourceError, match=r"for 9 of 17 paths in 'file': 8.jpg"):
        read(sheet(folder, "file,label\n" + rows + "x.jpg,1\n"))
    with pytest.raises(SourceError, match="no column holds paths"):
        read(sheet(folder, "file,label\n" + rows.replace(".jpg", "th") + "xth,1\n"))


def test_root(folder, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    path = sheet(lists, "file,label\nimg/0.jpg,a\nimg/1.jpg,b\n")
    assert read(path, Source(root=str(folder))).root == folder.resolve()
    with pytest.raises(SourceError, match=r"no such folder \(root=\)"):
        read(path, Source(root=str(folder / "nowhere")))


def test_labels_by_their_usual_names(folder):
    for name in ("label", "Class", "TARGET", "category"):
        photos = read(sheet(folder, f"file,x,{name}\n0.jpg,q,a\n1.jpg,q,b\n"))
        assert photos.classes == ("a", "b")
        assert photos.attributes == (name,)
        assert f"label '{name}'" in photos.choice


def test_no_label_column(folder):
    with pytest.raises(SourceError, match=r"label=COL \(candidates: kind\)"):
        rows = "".join(f"{i}.jpg,{'ab'[i % 2]},id{i},same\n" for i in range(8))
        read(sheet(folder, "file,kind,id,constant\n" + rows))


def test_several_labels(folder):
    text = "file,mask,age\n0.jpg,worn,<30\n1.jpg,worn,60+\n2.jpg,bare,<30\n"
    photos = read(sheet(folder, text), Source(label=("mask", "age")))
    assert photos.attributes == ("mask", "age")
    assert list(photos.table.columns) == ["path", "mask", "age", "label", "group", "split"]
    assert column(photos, "label") == ["worn, <30", "worn, 60+", "bare, <30"]
    assert photos.classes == ("bare, <30", "worn, 60+", "worn, <30")
    assert "label 'mask' + 'age'" in photos.choice


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("a", "a"), "names a column twice"),
        (("a", "group"), "none may be named path, label, group, split"),
        (("file",), "cannot be both path and label"),
        (("a", "c"), "two classes would get one name"),
        (("grop",), "no column 'grop'. Did you mean 'group'?"),
    ],
)
def test_labels_that_cannot_be(folder, labels, said):
    text = 'file,a,group,c\n0.jpg,"x, y",p,z\n1.jpg,x,q,"y, z"\n'
    with pytest.raises(SourceError, match=said):
        read(sheet(folder, text), Source(label=labels))


def test_a_single_label_may_bear_a_reserved_name(folder):
    photos = read(sheet(folder, "file,group\n0.jpg,a\n1.jpg,b\n"), Source(label=("group",)))
    assert photos.attributes == ("label",)
    assert photos.classes == ("a", "b")


@pytest.mark.parametrize("options", [{"path_column": "fle"}, {"group": "fle"}, {"split": "fle"}, {"label": ("fle",)}])
def test_named_column_that_is_not_there(folder, options):
    with pytest.raises(SourceError, match=r"no column 'fle'. Did you mean 'file'\? It has file, label"):
        read(sheet(folder, "file,label\n0.jpg,a\n1.jpg,b\n"), Source(**options))


@pytest.mark.parametrize("name", ["group", "group_id", "Person", "patient", "subject"])
def test_groups_by_their_usual_names(folder, name):
    photos = read(sheet(folder, f"file,label,{name}\n0.jpg,a,1\n1.jpg,b,1\n"))
    assert column(photos, "group") == ["1", "1"]


def test_group_named_or_by_pattern(folder):
    path = sheet(folder, "file,label,group,hand\n0.jpg,a,1,x\n1.jpg,b,2,y\n")
    assert column(read(path, Source(group="hand")), "group") == ["x", "y"]
    assert column(read(path, Source(group_regex=r"(?P<group>\d)\.jpg")), "group") == ["0", "1"]


def test_empty_labels(folder):
    rows = "".join(f"{i}.jpg,{'a' if i < 2 else ' '}\n" for i in range(8))
    with pytest.raises(SourceError, match=r"'label' is empty in 6 rows \(4, 5, 6, 7, 8 and 1 more\)"):
        read(sheet(folder, "file,label\n" + rows))


def test_one_class(folder):
    with pytest.raises(SourceError, match="needs at least two classes; found only 'a'"):
        read(sheet(folder, "file,label\n0.jpg,a\n1.jpg,a\n"))


# Splits


def test_split_column(folder):
    words = ("train", "Training", "val", "valid", "validation", "dev", "test", "EVAL")
    rows = "".join(f"{i}.jpg,{'ab'[i % 2]},{word}\n" for i, word in enumerate(words))
    photos = read(sheet(folder, "file,label,split\n" + rows))
    assert column(photos, "split") == ["train"] * 6 + ["test"] * 2
    assert (
        "split 'split' (train + training + val + valid + validation + dev pooled and cross-validated, "
        "test + eval kept for testing)" in photos.choice
    )
    assert photos.choice.endswith("8 photos, 2 classes, 8 groups, 2 of the photos for testing")
    pooled = read(folder / "t.csv", Source(split="none"))
    assert set(column(pooled, "split")) == {"train"}
    assert "splits ignored" in pooled.choice


def test_split_named(folder):
    path = sheet(folder, "file,label,part\n0.jpg,a,train\n1.jpg,b,train\n2.jpg,b,testing\n")
    assert set(column(read(path), "split")) == {"train"}
    assert column(read(path, Source(split="part")), "split") == ["train", "train", "test"]


def test_fold_column_only_where_it_speaks_of_splits(folder):
    photos = read(sheet(folder, "file,label,fold\n0.jpg,a,0\n1.jpg,b,1\n"))
    assert set(column(photos, "split")) == {"train"}
    photos = read(sheet(folder, "file,label,fold\n0.jpg,a,train\n1.jpg,b,train\n2.jpg,b,test\n"))
    assert "test" in column(photos, "split")


@pytest.mark.parametrize("value", ["second", "train_test", ""])
def test_split_with_another_value(folder, value):
    for others in ("train", "x"):
        text = f"file,label,split\n0.jpg,a,{others}\n1.jpg,b,{value}\n"
        with pytest.raises(SourceError, match=r"split 'split' holds '.*' in .*split='none'"):
            read(sheet(folder, text))


def test_split_leaves_no_training(folder):
    with pytest.raises(SourceError, match="all photos are for testing"):
        read(sheet(folder, "file,label,split\n0.jpg,a,test\n1.jpg,b,test\n"))
    with pytest.raises(SourceError, match="only in the test split: 'c'"):
        read(sheet(folder, "file,label,split\n0.jpg,a,train\n1.jpg,b,train\n2.jpg,c,test\n"))


def test_groups_on_both_sides(folder):
    photos = read(sheet(folder, "file,label,group,split\n0.jpg,a,p,train\n1.jpg,b,q,train\n2.jpg,b,p,test\n"))
    assert finding(photos, "groups") == ("warning", "1 group with photos in both train and test: p")


# Paths


def test_spellings_of_one_path(folder):
    path = sheet(folder, f"file,label\n./0.jpg,a\nimg//1.jpg,b\nimg/../2.jpg,b\n{folder}/3.jpg,b\nimg\\4.jpg,a\n")
    assert column(read(path), "path") == ["0.jpg", "2.jpg", "3.jpg", "img/1.jpg", "img/4.jpg"]


def test_relative_root_and_linked_root(folder, monkeypatch):
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    rows = "file,label\n0.jpg,a\n" + f"{folder.parent}/link/1.jpg,b\n{folder.resolve()}/2.jpg,b\n"
    sheet(folder, rows)
    for source in ("link/t.csv", Path("link/t.csv"), folder.parent / "link/t.csv"):
        assert column(read(source), "path") == ["0.jpg", "1.jpg", "2.jpg"]


def test_sibling_with_the_same_beginning_is_outside(folder):
    (folder.parent / "settwo").mkdir()
    (folder.parent / "settwo/0.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="1 path in 'file' outside of"):
        read(sheet(folder, "file,label\n../settwo/0.jpg,a\n1.jpg,b\n"))


def test_a_folder_is_no_photo(folder):
    with pytest.raises(SourceError, match="for 1 of 3 paths in 'file': img"):
        read(sheet(folder, "file,label\n0.jpg,a\n1.jpg,b\nimg,b\n"))


def test_repeated_rows(folder):
    photos = read(sheet(folder, "file,label,n\n0.jpg,a,1\n./0.jpg,a,2\n1.jpg,b,3\n1.jpg,b,4\n1.jpg,b,5\n"))
    assert column(photos, "path") == ["0.jpg", "1.jpg"]
    assert finding(photos, "repeated_rows") == ("warning", "3 rows that repeat a photo skipped, first: 0.jpg")


@pytest.mark.parametrize("name", ["label", "group", "split"])
def test_contradicting_rows(folder, name):
    first = {"label": "a", "group": "p", "split": "train"}
    other = {"label": "b", "group": "q", "split": "test"}
    second = {**first, name: other[name]}
    rows = "".join(f"{','.join(['0.jpg', *row.values()])}\n" for row in (first, second))
    with pytest.raises(SourceError, match=f"1 photo with different {name}s: 0.jpg; 0.jpg is"):
        read(sheet(folder, f"file,label,group,split\n{rows}1.jpg,b,r,train\n"))


def test_hidden_photos_in_a_list_made_by_a_glob(folder):
    (folder / "._0.jpg").write_bytes(b"x")
    photos = read(sheet(folder, "file,label\n0.jpg,a\n1.jpg,b\n._0.jpg,a\n"))
    assert len(photos) == 2
    assert finding(photos, "hidden") == ("info", "1 hidden file skipped, first: ._0.jpg")
    with pytest.raises(SourceError, match="all of its files are hidden"):
        read(sheet(folder, "file,label\n._0.jpg,a\n"))


def test_a_table_may_name_files_of_any_suffix(folder):
    (folder / "scan").write_bytes(b"x")
    assert len(read(sheet(folder, "file,label\n0.jpg,a\nscan,b\n"))) == 2


# Whatever comes: a table or an error for people


CELLS = st.one_of(
    st.sampled_from([*NAMES, "a", "b", "train", "test", "", "../0.jpg", "0", "01", '"', ",", "\n", "img\\0.jpg"]),
    st.text(max_size=6),
)
HEADERS = st.sampled_from(["file", "label", "group", "split", "class", "", "x", '"', "\ufeff"])


def readable(source, root: Path, options: Source) -> None:
    """`read` either raises one of our errors or keeps its contract."""
    try:
        photos = read(source, options)
    except UnfreezeError as error:
        assert str(error)
        return
    paths = column(photos, "path")
    assert paths == sorted(set(paths))
    assert all((root / path).is_file() for path in paths)
    assert len(photos.classes) >= 2
    assert set(photos.classes) == set(column(photos, "label"))
    assert len(photos.answers) == len(photos.classes)
    assert all(column(photos, "group"))


@pytest.fixture(scope="module")
def shared_folder():
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "img").mkdir()
        for photo in NAMES:
            (Path(name) / photo).write_bytes(b"x")
        yield Path(name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=5), max_size=8),
    header=st.lists(HEADERS, min_size=1, max_size=5),
    separator=st.sampled_from([",", ";", "\t"]),
    pattern=st.sampled_from(["", r"(?P<group>\d)"]),
)
def test_any_csv_gives_photos_or_our_error(shared_folder, rows, header, separator, pattern):
    text = "\n".join(separator.join(row) for row in [header, *rows])
    path = sheet(shared_folder, text.encode("utf-8", "surrogatepass"))
    readable(path, shared_folder, Source(group_regex=pattern))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["csv", "tsv", "parquet"]))
def test_any_bytes_give_our_error(shared_folder, content, suffix):
    readable(sheet(shared_folder, content, f"bytes.{suffix}"), shared_folder, Source())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*NAMES, "gone.jpg", None, Path("0.jpg")]) | st.sampled_from(NAMES),
            st.one_of(st.sampled_from("abc"), st.integers(-3, 3), st.floats(), st.none(), st.booleans()),
            st.one_of(st.sampled_from("pq"), st.integers(0, 2), st.text(max_size=2)),
        ),
        max_size=10,
    )
)
def test_any_dataframe_gives_photos_or_our_error(shared_folder, rows):
    frame = pd.DataFrame(rows, columns=["file", "label", "group"])
    readable(frame, shared_folder, Source(root=str(shared_folder)))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from("abc"), min_size=1), st.randoms())
def test_rows_in_any_order_give_the_same_table(shared_folder, labels, random):
    rows = list(labels.items())
    options = Source(root=str(shared_folder), label=("label",), path_column="file")
    shuffled = random.sample(rows, len(rows))
    if len(set(labels.values())) < 2:
        return
    one, two = (read(pd.DataFrame(each, columns=["file", "label"]), options) for each in (rows, shuffled))
    pd.testing.assert_frame_equal(one.table, two.table)
