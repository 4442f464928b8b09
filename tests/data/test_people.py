"""Demo photos: exact layout, known truth, same bytes, and no harm to other people's folders."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unfreeze.core.errors import SourceError, StorageError
from unfreeze.demo import dataset as module
from unfreeze.demo.dataset import SHOTS, class_of, make_demo

SMALL = (48, 64)
Source = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("people") / "demo"
    return root, make_demo(root, people=60, test_people=3, seed=0, size=SMALL, workers=1)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_layout_is_the_competitions(source: Source) -> None:
    root, _ = source
    table = rows(root / "train/train.csv")
    assert list(table[0]) == ["id", "gender", "race", "age", "path"]
    assert len(table) == 60 and table[0]["id"].startswith("000001")
    suffixes, mixed = set(), 0
    for row in table:
        assert row["path"] == f"{row['id']}_{row['gender']}_Asian_{row['age']}"
        assert row["race"] == "Asian" and 18 <= int(row["age"]) <= 75
        shown = [p for p in (root / "train/images" / row["path"]).iterdir() if not p.name.startswith(".")]
        assert sorted(p.stem for p in shown) == sorted(SHOTS)
        own = {p.suffix for p in shown}
        suffixes |= own
        mixed += len(own) > 1
    assert suffixes == {".jpg", ".jpeg", ".png"} and mixed > 20
    folders = [p.name for p in (root / "train/images").iterdir() if p.is_dir()]
    assert sorted(folders) == sorted(row["path"] for row in table)
    assert [p.name for p in root.parent.iterdir()] == ["demo"]


def test_ids_do_not_name_the_group(source: Source) -> None:
    ids = Counter(row["id"] for row in rows(source[0] / "train/train.csv"))
    assert sorted(ids.values())[-2:] == [1, 2]
    assert sum(name.endswith("-1") for name in ids) == 1


def test_every_cell_and_both_edges_are_there(source: Source) -> None:
    people = source[1]["people"]
    cells = Counter((p["gender"], class_of(0, 0, p["age"])) for p in people)
    assert len(cells) == 6 and min(cells.values()) >= 6
    for gender in ("male", "female"):
        assert {29, 30, 59, 60} <= {p["age"] for p in people if p["gender"] == gender}


def test_classes_from_names_equal_the_truth_but_for_the_planted(source: Source) -> None:
    root, truth = source
    wrong = {entry["path"]: entry for entry in truth["wrong_labels"]}
    true_people = {p["path"]: p for p in truth["people"]}
    seen, classes = 0, set()
    for photo in (root / "train/images").glob("*/*"):
        if photo.name.startswith("."):
            continue
        _, gender, _, age = photo.parent.name.split("_")
        state = {"incorrect_mask": 1, "normal": 2}.get(photo.stem, 0)
        label = class_of(state, gender == "female", int(age))
        classes.add(label)
        entry = wrong.get(photo.relative_to(root).as_posix())
        drawn = true_people[photo.parent.name]["gender"]
        if entry is None:
            assert drawn == gender
        else:
            seen += 1
            assert entry["label"] == label != entry["true"]
            assert drawn != gender or state in (1, 2)
    assert classes == set(range(18))
    assert seen == len(wrong)
    assert 0.01 < len(wrong) / 420 < 0.04


def test_eval_lists_all_photos_with_no_answers(source: Source) -> None:
    root, truth = source
    table = rows(root / "eval/info.csv")
    assert list(table[0]) == ["ImageID", "ans"] and {row["ans"] for row in table} == {"0"}
    names = [row["ImageID"] for row in table]
    assert sorted(names) == sorted(p.name for p in (root / "eval/images").iterdir())
    assert len(names) == 21 and all(len(n) == 44 and n.endswith(".jpg") for n in names)
    assert list(truth["eval"]) == names
    assert Counter(c // 6 for c in truth["eval"].values()) == {0: 15, 1: 3, 2: 3}
    assert json.loads((root / "truth.json").read_text()) == truth


def test_photos_decode_and_hidden_files_do_not(source: Source) -> None:
    root, truth = source
    hidden = {p.relative_to(root).as_posix() for p in root.rglob("._*")}
    assert hidden == set(truth["hidden"])
    assert any(name.startswith("train/images/._000003_") for name in hidden)
    assert any("/._mask1." in name for name in hidden)
    photos = [p for p in root.glob("*/images/**/*.*") if p.is_file() and not p.name.startswith(".")]
    assert len(photos) == 63 * 7
    for path in photos:
        with Image.open(path) as image:
            assert image.size == SMALL and image.mode == "RGB"
            assert np.asarray(image).std() > 10
            assert (image.format == "PNG") == (path.suffix == ".png")


def test_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    arguments: dict[str, Any] = {"people": 4, "test_people": 1, "seed": 3, "size": (96, 128)}
    alone = make_demo(tmp_path / "a", **arguments, workers=1, on_photo=lambda *tick: ticks.append(tick))
    assert make_demo(tmp_path / "b", **arguments, workers=2) == alone
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert ticks == [(i, 35) for i in range(1, 36)]
    other = make_demo(tmp_path / "c", **{**arguments, "seed": 4})
    assert not set(other["eval"]) & set(alone["eval"])


def test_an_equal_call_reuses_and_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_demo(tmp_path / "a", people=1, test_people=0, size=SMALL)
    monkeypatch.setattr(module, "draw_portrait", None)
    ticks: list[tuple[int, int]] = []
    again = make_demo(tmp_path / "a", people=1, test_people=0, size=SMALL, on_photo=lambda *t: ticks.append(t))
    assert again == first and ticks == [(7, 7)]
    with pytest.raises(SourceError, match="other settings; pick another folder"):
        make_demo(tmp_path / "a", people=1, test_people=0, seed=1, size=SMALL)


def test_a_foreign_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/truth.json").write_text("my own")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):
        with pytest.raises(SourceError, match="pick another folder"):
            make_demo(tmp_path / name, people=1, size=SMALL)
    assert contents(tmp_path) == {"mine/truth.json": b"my own", "file": b"a file"}


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "draw_portrait", full)
    with pytest.raises(StorageError, match="No space left"):
        make_demo(tmp_path / "a", people=1, test_people=0, size=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{"people": 0}, {"seed": -1}, {"wrong_share": 0.9}, {"size": (8, 8)}])
def test_arguments_out_of_range(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(SourceError):
        make_demo(tmp_path / "a", **bad)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("people", [1, 2, 3, 4, 7])
def test_few_people_and_no_wrong_labels(tmp_path: Path, people: int) -> None:
    truth = make_demo(tmp_path / "a", people=people, test_people=0, wrong_share=0, size=SMALL)
    assert truth["wrong_labels"] == [] and truth["eval"] == {}
    assert len({p["path"] for p in truth["people"]}) == people
