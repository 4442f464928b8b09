"""The competition's layout."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data.mask_competition import CLASSES
from unfreeze.data.readers import read

STEMS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")
PEOPLE = [("000001", "female", "45"), ("000002", "male", "29"), ("001498-1", "male", "60")]


def competition(root: Path, people=PEOPLE, header: str = "id,gender,race,age,path") -> Path:
    lines = [header]
    for number, (name, gender, age) in enumerate(people):
        folder = f"{name}_{gender}_Asian_{age}"
        lines.append(f"{name},{gender},Asian,{age},{folder}")
        place = root / "train/images" / folder
        place.mkdir(parents=True, exist_ok=True)
        for stem in STEMS:
            (place / f"{stem}.{('jpg', 'jpeg', 'png')[number % 3]}").write_bytes(b"x")
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "train/train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def finding(photos, check: str) -> tuple[str, str]:
    (one,) = [f for f in photos.findings if f.check == check]
    return one.severity, one.message


def test_layout(tmp_path):
    photos = read(competition(tmp_path / "mask"))
    table = photos.table
    assert photos.reader == "competition"
    assert list(table.columns) == ["path", "mask", "gender", "age", "label", "group", "split"]
    assert photos.attributes == ("mask", "gender", "age")
    assert len(table) == 21
    assert set(table["split"]) == {"train"}
    first = table[table["group"] == "000001_female_Asian_45"]
    assert list(first["path"]) == sorted(f"train/images/000001_female_Asian_45/{stem}.jpg" for stem in STEMS)
    assert first["mask"].value_counts().to_dict() == {"worn": 5, "incorrect": 1, "normal": 1}
    normal = first[first["path"].str.endswith("/normal.jpg")].iloc[0]
    assert (normal["mask"], normal["gender"], normal["age"]) == ("normal", "female", "30-59")
    assert normal["label"] == "normal, female, 30-59"
    assert photos.classes == tuple(
        f"{mask}, {person}"
        for mask in ("worn", "incorrect", "normal")
        for person in ("male, <30", "male, 60+", "female, 30-59")
    )
    assert photos.answers == (0, 2, 4, 6, 8, 10, 12, 14, 16)
    assert photos.choice == (
        "competition layout mask: label mask + gender + age, group person folder; 21 photos, 9 classes, 3 groups"
    )
    assert all(path.is_file() for path in photos.files())


def test_the_train_folder_itself(tmp_path):
    photos = read(competition(tmp_path) / "train")
    assert photos.reader == "competition"
    assert photos.table["path"].iloc[0].startswith("images/000001_")


def test_class_numbers():
    assert len(CLASSES) == 18
    assert CLASSES[6 * 1 + 3 * 1 + 2] == "incorrect, female, 60+"
    assert CLASSES[0] == "worn, male, <30"
    assert CLASSES[17] == "normal, female, 60+"


@pytest.mark.parametrize(
    ("age", "name"),
    [("0", "<30"), ("29", "<30"), ("30", "30-59"), ("59", "30-59"), ("60", "60+"), ("60.0", "60+")],
)
def test_age_classes(tmp_path, age, name):
    assert set(read(competition(tmp_path, [("000001", "male", age)])).table["age"]) == {name}


def test_an_id_in_two_folders_is_two_groups(tmp_path):
    root = competition(tmp_path, [("000001", "male", "20"), ("000001", "male", "21")])
    assert read(root).table["group"].nunique() == 2


def test_reading_twice_gives_equal_tables(tmp_path):
    """The competition's own baseline keeps labels in class attributes, which grow with every dataset."""
    root = competition(tmp_path)
    one, two = read(root), read(root)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.classes == two.classes


def test_hidden_files_and_eval_are_left_out(tmp_path):
    root = competition(tmp_path)
    for path in (root / "train/images").iterdir():
        (path / "._normal.jpg").write_bytes(b"x")
    (root / "train/images/._000001").write_bytes(b"x")
    (root / "eval/images").mkdir(parents=True)
    (root / "eval/images/1.jpg").write_bytes(b"x")
    photos = read(root)
    assert len(photos) == 21
    assert [f.check for f in photos.findings] == ["hidden"]
    assert finding(photos, "hidden")[1].startswith("4 hidden files skipped")


def test_missing_folders(tmp_path):
    root = competition(tmp_path)
    table = root / "train/train.csv"
    extra = "".join(f"{i},male,Asian,20,gone{i}\n" for i in range(7))
    table.write_text(table.read_text() + extra)
    with pytest.raises(SourceError, match=r"7 folders .*: gone0, gone1, gone2, gone3, gone4 and 2 more"):
        read(root)


def test_unknown_missing_and_unlisted_photos(tmp_path):
    root = competition(tmp_path)
    person = root / "train/images/000001_female_Asian_45"
    (person / "mask9.jpg").write_bytes(b"x")
    (person / "normal.jpg").unlink()
    (person / "mask1.png").write_bytes(b"x")
    (root / "train/images/stranger").mkdir()
    (root / "train/images/stranger/mask1.jpg").write_bytes(b"x")
    photos = read(root)
    assert len(photos) == 21
    assert finding(photos, "unknown_photos") == (
        "warning",
        "1 photo with an unknown name skipped, first: 000001_female_Asian_45/mask9.jpg",
    )
    assert finding(photos, "missing_photos") == (
        "warning",
        "1 photo missing: 000001_female_Asian_45/normal",
    )
    assert finding(photos, "unlisted")[1].endswith("first: stranger/mask1.jpg")
    assert finding(photos, "two_suffixes")[1].endswith("all kept: 000001_female_Asian_45/mask1")


@pytest.mark.parametrize(
    ("people", "said"),
    [
        (
            [("1", "male", "20"), ("2", "x", "20")],
            r"'gender' is neither male nor female in 1 row \(3\), first: 'x'",
        ),
        (
            [("1", "male", "20"), ("2", "male", "old")],
            r"'age' is not a number of years in 1 row \(3\), first: 'old'",
        ),
        ([("1", "male", "nan")], "'age' is not a number of years"),
        ([("1", "male", "-3")], "'age' is not a number of years"),
        ([("1", "male", "")], r"'age' is empty in 1 row \(2\)"),
        ([], "no rows"),
    ],
)
def test_rows_that_cannot_be(tmp_path, people, said):
    root = competition(tmp_path, people)
    (root / "train/images").mkdir(exist_ok=True)
    with pytest.raises(SourceError, match=said):
        read(root)


def test_contradicting_rows(tmp_path):
    root = competition(tmp_path)
    table = root / "train/train.csv"
    table.write_text(table.read_text() + "000001,male,Asian,45,000001_female_Asian_45\n")
    with pytest.raises(SourceError, match="two genders or age classes: 000001_female"):
        read(root)


def test_missing_column(tmp_path):
    with pytest.raises(SourceError, match=r"no column 'gender'\. Did you mean 'gendre'\?"):
        read(competition(tmp_path, header="id,gendre,race,age,path"))


def test_no_photos(tmp_path):
    root = competition(tmp_path, [("1", "male", "20")])
    person = root / "train/images/1_male_Asian_20"
    for path in person.iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    with pytest.raises(SourceError, match="no photo is named as in the competition"):
        read(root)
    for path in person.iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="no photos found"):
        read(root)


def test_options(tmp_path):
    root = competition(tmp_path)
    photos = read(root, Source(group_regex=r"images/(?P<group>\d+)", split="none"))
    assert sorted(set(photos.table["group"])) == ["000001", "000002", "001498"]
    with pytest.raises(SourceError, match="group_regex="):
        read(root, Source(group="id"))


def test_other_competitions_with_a_train_csv(tmp_path):
    """train/train.csv beside train/images is common; only this competition's columns make it this layout."""
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "train/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train/images" / name).write_bytes(b"x")
    (tmp_path / "train/train.csv").write_text("file,label\n1.jpg,a\n2.jpg,b\n")
    with pytest.raises(SourceError, match=r"train\.csv names classes: uf\.check\('\S+train\.csv', root='\S+images'\)"):
        read(tmp_path)


def test_a_table_in_an_older_encoding(tmp_path):
    root = competition(tmp_path / "mask")
    file = root / "train/train.csv"
    file.write_bytes(file.read_text(encoding="utf-8").replace("Asian,", "아시아,").encode("cp949"))
    photos = read(root)
    assert photos.choice.startswith("competition layout mask (cp949, '아시아'): ")
    assert photos.table["group"].nunique() == 3
    with pytest.raises(SourceError, match="is not encoded as utf-8"):
        read(root, Source(encoding="utf-8"))


@pytest.mark.parametrize("name", ["group", "person", "patient"])
def test_an_empty_group_column_changes_nothing(tmp_path, name):
    """The person's folder is the group, whatever other columns say."""
    root = competition(tmp_path / "mask")
    file = root / "train/train.csv"
    header, *rows = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([f"{header},{name}", *(f"{row}," for row in rows)]) + "\n", encoding="utf-8")
    photos = read(root)
    assert photos.table["group"].nunique() == 3
    assert photos.findings == ()
