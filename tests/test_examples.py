"""Every example runs on a few generated photos and prints what it promises."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

import unfreeze as uf
from photosets import class_folders, table

EXAMPLES = Path(__file__).parents[1] / "examples"
GROUPS = r"(?P<group>[^/_]+)_[^/]*$"
SCRIPTS = sorted(EXAMPLES.glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("examples") / "photos", groups=6)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `unfreeze demo` drew six people."""
    place = tmp_path_factory.mktemp("drawn")
    uf.make_demo(place / "demo" / "photos", 6, 1, 0)
    return place


def run_example(number: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = [s for s in SCRIPTS if s.name.startswith(number)]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")


def test_every_example_is_listed_says_what_it_adds_and_has_defaults() -> None:
    listed = re.findall(r"\]\(([0-9]\w+\.py)\)", (EXAMPLES / "README.md").read_text())
    assert listed == [script.name for script in SCRIPTS]
    for script in SCRIPTS:
        home = runpy.run_path(str(script))
        assert "\nAdds: " in home["__doc__"] and f"\nRun:  python examples/{script.name} " in home["__doc__"]
        parameters = inspect.signature(home["main"]).parameters.values()
        assert all(p.default is not inspect.Parameter.empty for p in parameters)
        assert f"def test_{script.stem[3:]}(" in Path(__file__).read_text(), f"{script.name} has no test"


def test_fit_a_folder(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("01", photos, tmp_path / "run", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert re.search(r"macro F1 [01]\.\d{3} \(95%: ", said)
    assert (tmp_path / "run" / "report.html").is_file()
    assert "blue/g200_0.jpg" in said


def test_groups_from_file_names(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("02", photos, tmp_path / "run", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "36 photos in 18 groups" in said
    assert "groups kept together" in said and "photo by photo" in said


def test_table_with_test_split(tmp_path: Path, monkeypatch, capsys) -> None:
    source = table(tmp_path / "photos")
    run_example("03", source, tmp_path / "run", "colour", "plant", "split", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert re.search(r"out of fold +24 photos", said) and re.search(r"test split +12 photos", said)


def test_predict_and_submit(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("01", photos, tmp_path / "run", monkeypatch=monkeypatch)
    new = class_folders(tmp_path / "new", groups=2, each=1, seed=9)
    (new / "red" / "damaged.jpg").write_bytes(b"x")
    names = sorted((p.name for p in new.glob("*/*.jpg")), reverse=True)
    (tmp_path / "template.csv").write_text("photo,answer\n" + "".join(f"{name},\n" for name in names))
    out = tmp_path / "submission.csv"
    run_example("04", tmp_path / "run", new, tmp_path / "template.csv", out, monkeypatch=monkeypatch)
    assert "7 photos, 1 of them could not be read" in capsys.readouterr().out
    sent = pd.read_csv(out)
    assert list(sent.columns) == ["photo", "answer"] and sent["photo"].tolist() == names
    assert set(sent["answer"]) <= {"red", "green", "blue"}


def test_compare_two_recipes(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("05", photos, tmp_path / "runs", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert len(re.findall(r"^(fast|good) +macro F1 [01]\.\d{3} \(", said, flags=re.M)) == 2
    assert re.search(r"good minus fast: [+-][01]\.\d{3} \(95%: [+-]", said)


def test_train_the_last_stages(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("06", photos, tmp_path / "run", GROUPS, "1", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert re.search(r"the probe: macro F1 [01]\.\d{3}", said) and "its last stages trained: " in said
    assert re.search(r"training changed it by [+-]0\.\d{3} \(95%: [+-]", said)
    assert "blue/g200_0.jpg" in said


def test_gray_or_color(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("07", photos, tmp_path / "runs", GROUPS, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert len(re.findall(r"^(rgb|gray) +macro F1 [01]\.\d{3} \(", said, flags=re.M)) == 2
    assert re.search(r"gray scores \d+\.\d points lower than rgb", said)  # color alone tells these photos' classes
    assert (tmp_path / "runs" / "compare.html").is_file() and (tmp_path / "runs" / "gray" / "run.json").is_file()


def test_freeze_or_train_it_all(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("08", photos, tmp_path / "runs", GROUPS, "1", "64", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert re.search(r"^freeze +macro F1 [01]\.\d{3} in \d+ s$", said, flags=re.M)
    assert re.search(r"better in \d of 3 folds, worse in \d$", said, flags=re.M)
    assert said.splitlines()[-1].startswith("train it all ")


def test_which_backbone(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run_example("09", photos, tmp_path / "runs", GROUPS, "64", "torch", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert re.search(r"^tf_efficientnet_lite0: macro F1 [01]\.\d{3}$", said, flags=re.M)
    assert "\nresnet18, untrained " in said and re.search(r"differs most in '(red|green|blue)': F1 ", said)


@pytest.mark.parametrize("number", ["07", "08", "09", "10"])
def test_questions_of_the_log_read_the_demo_as_they_stand(people: Path, number: str, monkeypatch) -> None:
    monkeypatch.chdir(people)
    (script,) = [s for s in SCRIPTS if s.name.startswith(number)]
    given = inspect.signature(runpy.run_path(str(script))["main"]).parameters
    source, pattern = given["source"].default, given["pattern"].default
    photos = uf.read(source, uf.Recipe().replace(**{"source.path": source, "source.group_regex": pattern}).source)
    assert photos.table["group"].nunique() == 6 and len(photos.classes) == 18


def test_over_sampling(tmp_path: Path, monkeypatch, capsys) -> None:
    source = class_folders(tmp_path / "photos", groups=6)
    for photo in (source / "blue").iterdir():
        if int(photo.name[2:4]) >= 5:
            photo.unlink()
    run_example("10", source, tmp_path / "runs", GROUPS, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert len(re.findall(r"^sampling=(none|over) views=plain", said, flags=re.M)) == 4
    assert "rarest is 'blue', 10 photos: F1 " in said and "(95%: " in said
