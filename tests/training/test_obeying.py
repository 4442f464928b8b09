"""A fit that obeys corrections: labels, folds, what is scored, and the effect without leakage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from unfreeze.core.corrections import Correction, append_correction
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import CorrectionsError, FoldError
from unfreeze.core.messages import effect_sentence
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run
from unfreeze.data.readers import read
from unfreeze.training.corrections import apply_corrections, correction_effect
from unfreeze.training.crossval import cross_validate, prepare
from wronglabels import WRONG, wrong_recipe, wrong_run, wrong_set


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """The table of photos with three wrong labels, and a run of it. Not to be changed."""
    table, _ = wrong_set(tmp_path_factory.mktemp("wrong") / "photos")
    return table, wrong_run(table, tmp_path_factory.mktemp("runs") / "before")


def judged(before: tuple[Path, Run], folder: Path, corrections: dict[str, tuple[str, str]], **recipe: object) -> Run:
    table, run = before
    hashes = run.photos().set_index("path")["hash"]
    file = folder / "corrections.csv"
    for path, (word, label) in corrections.items():
        append_correction(file, Correction(path, hashes.get(path, ""), word, label))
    chosen: Recipe = wrong_recipe(table).replace(**{"source.corrections": str(file), **recipe})
    return cross_validate(read(str(table), chosen.source), chosen, folder / "after")


def test_relabeled_excluded_and_kept(before: tuple[Path, Run], tmp_path: Path) -> None:
    photos = {p.relative_to(before[0].parent): p.read_bytes() for p in before[0].parent.rglob("*") if p.is_file()}
    first, second, third = WRONG
    said = {first: ("relabel", "red"), second: ("exclude", ""), third: ("keep", ""), "red/g000_0.jpg": ("keep", "")}
    run = judged(before, tmp_path, said)
    old, new = before[1].photos().set_index("path"), run.photos().set_index("path")
    assert new.loc[first, ["label", "label_given", "action"]].tolist() == ["red", "green", "relabel"]
    assert new.loc[second, "fold"] == -1 and new.loc[second, "label"] == "blue"
    assert second not in set(run.predictions()["path"]) and len(run.predictions()) == 71
    assert new.loc[third, ["label", "action"]].tolist() == ["red", "keep"]
    same = new.index != second
    pd.testing.assert_series_equal(new["fold"][same], old["fold"][same])
    assert (new["fold_given"] == old["fold"]).all()
    did = run.scores()["corrections"]
    assert (did["relabel"], did["exclude"], did["keep"], did["photos"]) == (1, 1, 2, 72)
    assert did["moves"] == [{"given": "green", "label": "red", "photos": 1}]
    assert "1 relabeled, 1 excluded" in (run.path / "findings.json").read_text()
    assert not (run.path / "scratch").exists()
    now = {p.relative_to(before[0].parent): p.read_bytes() for p in before[0].parent.rglob("*") if p.is_file()}
    assert photos == now, "photos and tables are never changed"


def test_before_is_the_run_without_corrections(before: tuple[Path, Run], tmp_path: Path) -> None:
    """Where nothing changes, before, after and the run itself are the same predictions, by either labels."""
    run = judged(before, tmp_path, {"red/g000_0.jpg": ("keep", "")})
    did, own = run.scores()["corrections"], before[1].scores()
    assert did["before"] == did["after"] == did["given"] == did["corrected"] and did["nested"]
    assert did["gain"]["value"] == did["optimism"]["value"] == did["corrections"] == 0
    assert did["before"]["macro_f1"]["value"] == pytest.approx(own["out_of_fold"]["macro_f1"]["value"])


def test_the_headline_is_by_the_labels_as_given_and_corrected_ones_are_next_to_it(
    before: tuple[Path, Run], tmp_path: Path
) -> None:
    run = judged(before, tmp_path, {p: ("relabel", p.split("/")[0]) for p in WRONG})
    scores = run.scores()
    did = scores["corrections"]
    assert did["photos"] == 72 and did["gain"]["low"] <= did["gain"]["value"] <= did["gain"]["high"]
    assert (did["corrections"], did["applied"]) == (3, 3), "the search without a fold lists all three as well"
    assert {key: scores[key] for key in did["given"]} == did["given"] == did["after"]
    # Three labels are wrong: by the labels as given no model is right about them, by the corrected ones it may be.
    assert did["given"]["accuracy"]["value"] <= 69 / 72 < did["corrected"]["accuracy"]["value"]
    assert scores["out_of_fold"]["accuracy"]["value"] > 69 / 72, "of models with all corrections, corrected labels"


def test_corrections_that_no_search_without_the_fold_lists_are_not_applied(
    before: tuple[Path, Run], tmp_path: Path
) -> None:
    """Somebody relabels photos that nothing contradicts: what the search did not find has no measured effect."""
    right = sorted(p for p in before[1].photos()["path"] if p not in WRONG and p.startswith("blue/"))[:3]
    did = judged(before, tmp_path, dict.fromkeys(right, ("relabel", "red"))).scores()["corrections"]
    assert did["corrections"] == 3 and did["applied"] == 0 and did["gain"]["value"] == 0


def test_another_strategy_is_measured_with_probes_and_says_so(before: tuple[Path, Run], tmp_path: Path) -> None:
    """Training is replaced by its outcome: what it would predict has no part in what is tested."""

    table, run = before
    file = tmp_path / "corrections.csv"
    for path in WRONG:
        append_correction(file, Correction(path, "", "relabel", path.split("/")[0]))
    recipe = wrong_recipe(table).replace(**{"source.corrections": str(file), "strategy": "partial"})
    work = prepare(read(str(table), recipe.source), recipe, tmp_path / "run", Reporter())
    proba = run.predictions().set_index("path")[probability_columns(run.classes)]
    proba = proba.reindex(work.photos.table["path"]).to_numpy()
    did = correction_effect(work, proba)
    assert did["model"] == "probe" and not did["nested"] and did["applied"] == 3
    assert did["given"] != did["after"], "its own predictions are scored, the gain is that of probes"
    assert "linear probes on the same folds" in effect_sentence(did) and "selection alone" in effect_sentence(did)


def test_with_two_folds_halves_are_searched(before: tuple[Path, Run], tmp_path: Path) -> None:
    said = {p: ("relabel", p.split("/")[0]) for p in WRONG}
    did = judged(before, tmp_path, said, **{"folds.n_splits": 2}).scores()["corrections"]
    assert did["nested"] and did["applied"] >= 1 and did["given"] == did["after"]
    assert did["given"]["accuracy"]["value"] < did["corrected"]["accuracy"]["value"]


def test_what_cannot_be_measured_is_said_and_only_agreement_is_scored(
    before: tuple[Path, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FoldError("too few groups to search for issues with two folds; use folds.n_splits = 3 or more")

    monkeypatch.setattr("unfreeze.training.corrections._halves", refuse)
    did = judged(before, tmp_path, {p: ("relabel", p.split("/")[0]) for p in WRONG}).scores()["corrections"]
    assert "too few groups" in did["not_measured"] and "gain" not in did and not did["nested"]
    text = effect_sentence(did)
    assert "was not measured (too few groups to search for issues" in text and "optimistic" in text
    assert did["given"]["accuracy"]["value"] < did["corrected"]["accuracy"]["value"]


def test_changed_and_absent_photos_are_not_applied(before: tuple[Path, Run], tmp_path: Path) -> None:
    file = tmp_path / "corrections.csv"
    append_correction(file, Correction("red/g000_0.jpg", "0" * 32, "exclude"))
    append_correction(file, Correction("red/gone.jpg", "", "exclude"))
    run = judged(before, tmp_path, {})
    assert len(run.predictions()) == 72
    findings = pd.read_json(run.path / "findings.json")
    assert set(findings["check"]) >= {"corrections-changed", "corrections-absent"}
    assert "has changed since it was reviewed" in findings.set_index("path").loc["red/g000_0.jpg", "message"]


def test_what_cannot_be_is_refused_before_anything_is_written(before: tuple[Path, Run], tmp_path: Path) -> None:
    with pytest.raises(CorrectionsError, match="which is an unknown class; known are blue, green, red"):
        judged(before, tmp_path / "a", {"red/g000_0.jpg": ("relabel", "reed")})
    everything = dict.fromkeys(before[1].photos()["path"], ("exclude", ""))
    with pytest.raises(FoldError, match="exclude every photo of fold"):
        judged(before, tmp_path / "b", everything)
    assert not list(tmp_path.glob("*/after"))


def test_attributes_follow_the_new_label(tmp_path: Path) -> None:
    """A combined label is relabeled in all its parts."""
    table, _ = wrong_set(tmp_path / "photos")
    frame = pd.read_csv(table).rename(columns={"label": "colour"})
    frame["size"] = ["small" if i % 4 < 2 else "large" for i in range(len(frame))]
    frame.to_csv(table, index=False)
    recipe = wrong_recipe(table).replace(**{"source.label": ["colour", "size"]})
    photos = read(str(table), recipe.source)
    target = next(c for c in photos.classes if "blue" in c and "large" in c)
    file = tmp_path / "corrections.csv"
    append_correction(file, Correction("red/g000_0.jpg", "", "relabel", target))
    work = prepare(photos, recipe, tmp_path / "run", Reporter())
    mended = apply_corrections(replace(work, recipe=recipe.replace(**{"source.corrections": str(file)})))
    row = mended.photos.table.set_index("path").loc["red/g000_0.jpg"]
    assert row[["label", "colour", "size"]].tolist() == [target, "blue", "large"]
