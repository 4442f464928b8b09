"""learn/verdicts.py: a fit that obeys verdicts: labels, folds, what is scored, and what it says changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from unfreeze.core.errors import FoldError, VerdictsError
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run
from unfreeze.core.verdicts import Verdict, append_verdict
from unfreeze.data.readers import read
from unfreeze.learn.crossval import fit
from wronglabels import WRONG, wrong_recipe, wrong_run, wrong_set


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """The table of photos with three wrong labels, and a run of it. Not to be changed."""
    pytest.importorskip("openvino")
    table, _ = wrong_set(tmp_path_factory.mktemp("wrong") / "photos")
    return table, wrong_run(table, tmp_path_factory.mktemp("runs") / "before")


def judged(before: tuple[Path, Run], folder: Path, verdicts: dict[str, tuple[str, str]], **recipe: object) -> Run:
    table, run = before
    hashes = run.photos().set_index("path")["hash"]
    file = folder / "verdicts.csv"
    for path, (word, label) in verdicts.items():
        append_verdict(file, Verdict(path, hashes.get(path, ""), word, label))
    chosen: Recipe = wrong_recipe(table).replace(**{"source.verdicts": str(file), **recipe})
    return fit(read(str(table), chosen.source), chosen, folder / "after")


def test_relabelled_excluded_and_kept(before: tuple[Path, Run], tmp_path: Path) -> None:
    photos = {p.relative_to(before[0].parent): p.read_bytes() for p in before[0].parent.rglob("*") if p.is_file()}
    first, second, third = WRONG
    said = {first: ("relabel", "red"), second: ("exclude", ""), third: ("keep", ""), "red/g000_0.jpg": ("keep", "")}
    run = judged(before, tmp_path, said)
    old, new = before[1].photos().set_index("path"), run.photos().set_index("path")
    assert new.loc[first, ["label", "label_given", "verdict"]].tolist() == ["red", "green", "relabel"]
    assert new.loc[second, "fold"] == -1 and new.loc[second, "label"] == "blue"
    assert second not in set(run.predictions()["path"]) and len(run.predictions()) == 71
    assert new.loc[third, ["label", "verdict"]].tolist() == ["red", "keep"]
    same = new.index != second
    pd.testing.assert_series_equal(new["fold"][same], old["fold"][same])
    assert (new["fold_given"] == old["fold"]).all()
    did = run.scores()["verdicts"]
    assert (did["relabel"], did["exclude"], did["keep"], did["photos"]) == (1, 1, 2, 70)
    assert did["moves"] == [{"given": "green", "label": "red", "photos": 1}]
    assert "1 relabelled, 1 excluded" in (run.path / "findings.json").read_text()
    assert not (run.path / "scratch").exists()
    now = {p.relative_to(before[0].parent): p.read_bytes() for p in before[0].parent.rglob("*") if p.is_file()}
    assert photos == now, "photos and tables are never changed"


def test_before_is_the_run_without_verdicts(before: tuple[Path, Run], tmp_path: Path) -> None:
    """Where nothing changes, before, after and the run itself are the same predictions."""
    run = judged(before, tmp_path, {"red/g000_0.jpg": ("keep", "")})
    did, own = run.scores()["verdicts"], before[1].scores()
    assert did["before"] == did["after"] and did["gain"]["value"] == 0
    assert did["before"]["macro_f1"]["value"] == pytest.approx(own["macro_f1"]["value"])


def test_mending_the_planted_errors_helps_or_does_not_hurt(before: tuple[Path, Run], tmp_path: Path) -> None:
    run = judged(before, tmp_path, {p: ("relabel", p.split("/")[0]) for p in WRONG})
    did = run.scores()["verdicts"]
    assert did["photos"] == 69 and did["gain"]["low"] <= did["gain"]["value"] <= did["gain"]["high"]
    assert did["after"]["log_loss"]["value"] < did["before"]["log_loss"]["value"]


def test_changed_and_absent_photos_are_not_obeyed(before: tuple[Path, Run], tmp_path: Path) -> None:
    file = tmp_path / "verdicts.csv"
    append_verdict(file, Verdict("red/g000_0.jpg", "0" * 32, "exclude"))
    append_verdict(file, Verdict("red/gone.jpg", "", "exclude"))
    run = judged(before, tmp_path, {})
    assert len(run.predictions()) == 72
    findings = pd.read_json(run.path / "findings.json")
    assert set(findings["check"]) >= {"verdicts-changed", "verdicts-absent"}
    assert "has changed since it was judged" in findings.set_index("path").loc["red/g000_0.jpg", "message"]


def test_what_cannot_be_is_refused_before_anything_is_written(before: tuple[Path, Run], tmp_path: Path) -> None:
    with pytest.raises(VerdictsError, match="which is no class; there are blue, green, red"):
        judged(before, tmp_path / "a", {"red/g000_0.jpg": ("relabel", "reed")})
    everything = dict.fromkeys(before[1].photos()["path"], ("exclude", ""))
    with pytest.raises(FoldError, match="exclude every photo of fold"):
        judged(before, tmp_path / "b", everything)
    assert not list(tmp_path.glob("*/after"))


def test_attributes_follow_the_new_label(tmp_path: Path) -> None:
    """A combined label is relabelled in all its parts."""
    from unfreeze.core.progress import Reporter
    from unfreeze.learn.crossval import prepare
    from unfreeze.learn.verdicts import obey

    table, _ = wrong_set(tmp_path / "photos")
    frame = pd.read_csv(table).rename(columns={"label": "colour"})
    frame["size"] = ["small" if i % 4 < 2 else "large" for i in range(len(frame))]
    frame.to_csv(table, index=False)
    recipe = wrong_recipe(table).replace(**{"source.label": ["colour", "size"]})
    photos = read(str(table), recipe.source)
    target = next(c for c in photos.classes if "blue" in c and "large" in c)
    file = tmp_path / "verdicts.csv"
    append_verdict(file, Verdict("red/g000_0.jpg", "", "relabel", target))
    work = prepare(photos, recipe, tmp_path / "run", Reporter())
    mended = obey(replace(work, recipe=recipe.replace(**{"source.verdicts": str(file)})))
    row = mended.photos.table.set_index("path").loc["red/g000_0.jpg"]
    assert row[["label", "colour", "size"]].tolist() == [target, "blue", "large"]
