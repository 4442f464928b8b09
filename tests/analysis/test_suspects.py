"""uf.label_issues: likely wrong labels of a run, the cached table, the truth file, and images that are gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import unfreeze as uf
from unfreeze.analysis.label_issues import FILE, find_run_label_issues
from unfreeze.core.errors import SourceError
from unfreeze.core.runs import Run, open_run
from unfreeze.server.review import open_deck
from wronglabels import WRONG, wrong_run, wrong_set


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """The true labels, and a run of photos with three wrong ones."""
    table, truth = wrong_set(tmp_path_factory.mktemp("wrong") / "photos")
    return truth, wrong_run(table, tmp_path_factory.mktemp("runs") / "colours")


def test_the_planted_come_first_with_their_right_class_and_a_reason(made: tuple[Path, Run]) -> None:
    truth, run = made
    found = find_run_label_issues(run, truth)
    top = found.table.head(3).set_index("path")
    assert set(top.index) == set(WRONG)
    assert [top.loc[p, "suggested"] for p in WRONG] == [p.split("/")[0] for p in WRONG]
    assert top["reason"].str.len().gt(10).all() and (top["true"] == top["suggested"]).all()
    assert found.truth is not None
    assert (found.truth["precision_at_k"], found.truth["recall_at_2k"], found.truth["planted"]) == (1.0, 1.0, 3)
    assert [row["found_at_2k"] for row in found.truth["per_class"]] == [1, 1, 1]
    assert found.photos == 72 and found.wrong["low"] <= found.wrong["value"] < 8 and found.wrong["high"] >= 3


def test_one_call_gives_the_table_of_the_contract(made: tuple[Path, Run]) -> None:
    table = uf.label_issues(made[1].path)
    assert list(table.columns) == ["path", "label", "suggested", "score", "reason"]
    assert table["score"].is_monotonic_decreasing and set(table["path"].head(3)) == set(WRONG)


def test_a_second_call_reads_what_the_first_left_until_the_run_is_refitted(made: tuple[Path, Run]) -> None:
    run = made[1]
    first = find_run_label_issues(run).table
    kept = json.loads((run.path / FILE).read_text())
    kept["table"] = kept["table"][:1]
    (run.path / FILE).write_text(json.dumps(kept))
    assert len(find_run_label_issues(run).table) == 1
    (run.path / FILE).write_text("{")
    pd.testing.assert_frame_equal(find_run_label_issues(run).table, first)
    kept["mark"] = "of another fit"
    (run.path / FILE).write_text(json.dumps(kept))
    pd.testing.assert_frame_equal(find_run_label_issues(run).table, first)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "no-such.jpg"},
        {"path": 3},
        {"label": "no-class"},
        {"suggested": ["a"]},
        {"score": "x"},
        {"score": None},
    ],
)
def test_a_kept_table_of_another_run_is_computed_again(made: tuple[Path, Run], tmp_path: Path, change: dict) -> None:
    shutil.copytree(made[1].path, tmp_path / "run")
    whole = find_run_label_issues(open_run(tmp_path / "run")).table
    kept = json.loads((tmp_path / "run" / "label_issues.json").read_text())
    kept["table"][0] |= change
    (tmp_path / "run" / "label_issues.json").write_text(json.dumps(kept))
    assert find_run_label_issues(open_run(tmp_path / "run")).table.equals(whole)
    assert open_deck(tmp_path / "run").cards


def test_without_the_photos_the_runs_own_predictions_serve(made: tuple[Path, Run], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made[1].path, folder)
    (folder / FILE).unlink(missing_ok=True)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"root": str(tmp_path / "nowhere")}))
    found = find_run_label_issues(open_run(folder))
    assert found.looked == "the run's out-of-fold predictions"
    assert set(found.table["path"].head(4)) >= set(WRONG)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\nred/g000_0.jpg,mauve\n", "holds 'mauve', which the run does not know"),
        ("path,colour\nred/g000_0.jpg,red\n", "no column"),
        ("path,label\nother.jpg,red\n", "names none of the run's photos"),
    ],
)
def test_a_truth_file_that_does_not_fit_is_refused(
    made: tuple[Path, Run], tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "truth.csv"
    file.write_text(text)
    with pytest.raises(SourceError, match=said):
        find_run_label_issues(made[1], file)


def test_the_demos_truth_is_found_next_to_its_photos(tmp_path: Path) -> None:
    """Four people are too few to learn from; what is read of the truth file is what counts here."""
    from unfreeze.data.readers import read
    from unfreeze.data.true_labels import find_truth_file, read_truth

    truth = uf.make_demo(tmp_path / "photos", 20, 0, seed=1, wrong_share=0.1, size=(48, 64))
    file = find_truth_file(tmp_path / "photos")
    photos = read(str(tmp_path / "photos"))
    assert file is not None
    known = read_truth(file, photos.classes, photos.answers)
    labels = photos.table.set_index("path")["label"]
    assert len(known) == len(truth["wrong_labels"]) > 0
    assert all(path in labels.index and labels[path] != true for path, true in known.items())
    file.write_text("[]")
    with pytest.raises(SourceError, match="not a truth file of demo images"):
        read_truth(file, photos.classes, photos.answers)
