"""Runs of photos whose names come in several Unicode forms: folds, predictions, corrections, true labels,
comparison.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from comparedruns import table_of, told, write_run
from photosets import draw
from unfreeze.analysis.aligned_runs import align_runs
from unfreeze.analysis.label_issues import find_run_label_issues
from unfreeze.core.corrections import Correction, append_correction, read_corrections
from unfreeze.core.errors import RecipeError, UnfreezeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, open_run
from unfreeze.data.decode import exists
from unfreeze.data.readers import read
from unfreeze.features.extra_samples import select_extra_samples
from unfreeze.inference.ensemble import AlignedPredictions
from unfreeze.inference.group_voting import GroupConstantLabels, Vote
from unfreeze.reports.thumbnails import thumbnails
from unfreeze.server.review import open_deck
from unfreeze.server.studio.library import inside
from unfreeze.training.crossval import cross_validate
from wronglabels import RECIPE

CLASSES = ("바나나", "사과", "체리")


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Run]]:
    """72 photos of 12 people in three class folders; every second photo's folder and name are in NFD. Its run."""
    root = tmp_path_factory.mktemp("forms") / "photos"
    (root.parent / "é").touch()
    if (root.parent / nfd("é")).exists():
        pytest.skip("this file system takes both forms of a name for one")
    for colour, label in enumerate(CLASSES):
        for person in range(12):
            for photo in range(2):
                form = (nfc, nfd)[(person + photo) % 2]
                file = root / form(f"{label}/사람{person}_{photo}.jpg")
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(colour, person, photo).save(file, quality=90)
    yield root, fitted(root, root.parent / "run")


def fitted(root: Path, run: Path, **changes: object) -> Run:
    recipe = Recipe().replace(**RECIPE | {"source.group": "", "source.group_regex": nfd("(?P<group>사람[0-9]+)_")})
    recipe = recipe.replace(**{"source.path": str(root), **changes})
    return cross_validate(read(str(root), recipe.source), recipe, run)


def test_classes_are_one_and_no_one_is_in_two_folds(made: tuple[Path, Run]) -> None:
    root, run = made
    photos = run.photos()
    assert run.classes == CLASSES and len(photos) == 72
    assert photos.groupby("group")["fold"].nunique().eq(1).all() and photos["group"].nunique() == 12
    assert all((root / path).is_file() for path in photos["path"])
    assert run.scores()["out_of_fold"]["macro_f1"]["value"] > 0.9


def test_predictions_keep_the_names_given_and_fill_a_template_in_another_form(
    made: tuple[Path, Run], tmp_path: Path
) -> None:
    root, run = made
    disk = run.photos()["path"].head(12).tolist()
    ids = [nfc(path) for path in disk]
    classifier = uf.load(run.path)
    by_list = classifier.predict([root / path for path in ids])
    assert by_list["error"].eq("").all() and by_list["path"].tolist() == [str(root / path) for path in ids]
    template = tmp_path / "template.csv"
    template.write_text("id,answer\n" + "".join(f"{nfd(i)},{nfd(CLASSES[k % 3])}\n" for k, i in enumerate(ids)))
    found = classifier.predict([root / path for path in disk]).assign(path=disk)
    filled = uf.write_submission(found, template, tmp_path / "out.csv", run.classes, tuple(run.info["answers"]))
    assert filled["id"].tolist() == [nfd(i) for i in ids], "ids are the template's, to the letter"
    assert set(filled["answer"]) <= {nfd(name) for name in CLASSES}, "and so are the answers that it has"
    assert [nfc(a) for a in filled["answer"]] == found["label"].tolist()
    assert uf.explain(run.path, str(root / nfd(nfc(disk[0])))).photos[0].error == ""


def test_photos_are_found_after_a_copy_that_changed_the_form_of_every_name(
    made: tuple[Path, Run], tmp_path: Path
) -> None:
    root, run = made
    moved = tmp_path / "photos"
    for path in run.photos()["path"]:
        other = moved / (nfd(path) if nfc(path) == path else nfc(path))
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, other)
    paths = run.photos()["path"].tolist()
    assert not any((moved / path).is_file() for path in paths) and all(exists(moved / path) for path in paths)
    assert inside(moved, paths[0]).is_file()
    assert not any(shown.problem for shown in thumbnails(moved, paths[:4]).values())
    again = fitted(moved, tmp_path / "run")
    both = align_runs({"a": run, "b": again})
    assert len(both.inside) == 72 and both.same_folds and not both.notes
    together = AlignedPredictions.of([run, again])
    assert len(together.table) == 72
    assert uf.compare_variants([run.path, again.path], tta="flip,crop-10").photos == 72


def test_corrections_in_another_form_are_applied_and_the_last_word_counts(
    made: tuple[Path, Run], tmp_path: Path
) -> None:
    root, run = made
    first, second, third = run.photos()["path"].head(3)
    file = tmp_path / "corrections.csv"
    append_correction(file, Correction(nfd(nfc(first)), "", "relabel", nfd("체리")))
    append_correction(file, Correction(nfc(first), "", "keep"))
    append_correction(file, Correction(nfc(second), "", "relabel", nfd("사과")))
    append_correction(file, Correction(nfd(nfc(third)), "", "exclude"))
    assert [v.label for v in read_corrections(file, run.classes)[0]] == ["체리", "", "사과", ""]
    new = fitted(root, tmp_path / "after", **{"source.corrections": str(file)}).photos().set_index("path")
    assert new.loc[first, ["label", "action"]].tolist() == ["바나나", "keep"]
    assert new.loc[second, ["label", "action"]].tolist() == ["사과", "relabel"]
    assert new.loc[third, "fold"] == -1
    assert "corrections-absent" not in (tmp_path / "after/findings.json").read_text()


def test_the_review_page_takes_up_corrections_in_another_form_and_can_undo_them(
    made: tuple[Path, Run], tmp_path: Path
) -> None:
    _, run = made
    file = tmp_path / "corrections.csv"
    deck = open_deck(run, file, limit=72)
    if not deck.cards:
        pytest.skip("nothing is suspect")
    row = deck.cards[0]["id"]
    append_correction(file, Correction(nfd(nfc(deck.paths[row])), "", "keep"))
    append_correction(file, Correction(nfc(deck.paths[row]), "", "exclude"))
    deck = open_deck(run, file, limit=72)
    assert deck.corrections[row].action == "exclude"
    deck.judge(row, "relabel", nfd("사과"))
    assert deck.corrections[row].label == "사과"
    assert [deck.undo(), deck.corrections[row].action] == [row, "exclude"]
    assert [deck.undo(), deck.undo(), deck.undo()] == [row, row, None]


def test_true_labels_in_another_form(made: tuple[Path, Run], tmp_path: Path) -> None:
    _, run = made
    photos = run.photos()
    true = ["체리" if i == 0 else label for i, label in enumerate(photos["label"])]
    truth = pd.DataFrame({"path": [nfd(nfc(p)) for p in photos["path"]], "true": [nfd(t) for t in true]})
    truth.to_csv(tmp_path / "truth.csv", index=False)
    found = find_run_label_issues(run, tmp_path / "truth.csv")
    assert found.truth is not None and found.truth["planted"] == 1
    assert set(found.table["true"]) <= set(CLASSES)


def test_a_diagnosis_reads_test_labels_in_another_form(made: tuple[Path, Run], tmp_path: Path) -> None:
    from unfreeze.analysis.diagnose.context import open_case
    from unfreeze.core.recipe_schema import Source

    root, run = made
    photos = run.photos().head(20)
    table = pd.DataFrame({"path": [nfc(p) for p in photos["path"]], "label": [nfd(t) for t in photos["label"]]})
    table.to_csv(tmp_path / "test.csv", index=False)
    case = open_case(run, tmp_path / "test.csv", Source(root=str(root)), tmp_path / "scratch", Reporter())
    assert case.test is not None and case.test.labelled and len(case.test.labels) == 20


def test_a_run_is_opened_under_another_form_of_its_name(made: tuple[Path, Run], tmp_path: Path) -> None:
    shutil.copytree(made[1].path, tmp_path / nfd("결과"))
    assert open_run(tmp_path / "결과").classes == CLASSES


# Without photos


def test_runs_are_aligned_by_paths_in_any_form(tmp_path: Path) -> None:
    table = table_of(60, per_group=2)
    table["path"] = [nfc(f"사진/{i}.jpg") for i in range(60)]
    table["hash"] = [f"{i // 2:032x}" for i in range(60)]  # copies, so that content alone cannot tell
    other = table.assign(path=[nfd(path) for path in table["path"]])
    runs = {
        "a": write_run(tmp_path / "a", table, told(table, 0.9, 1)),
        "b": write_run(tmp_path / "b", other, told(table, 0.8, 2)),
    }
    found = align_runs(runs)
    assert len(found.inside) == 60 and not found.notes
    assert len(AlignedPredictions.of(list(runs.values())).table) == 60


def test_two_photos_whose_names_differ_in_form_are_never_taken_for_one(tmp_path: Path) -> None:
    table = table_of(60, per_group=2)
    paths = [nfc(f"사진/{i}.jpg") for i in range(30)]
    table["path"] = paths + [nfd(path) for path in paths]
    table["hash"] = [f"{i % 2:032x}" for i in range(60)]
    few = table.assign(path=paths + [f"{i}.jpg" for i in range(30)])
    runs = {
        "few": write_run(tmp_path / "few", few, told(table, 0.9, 1)),
        "both": write_run(tmp_path / "both", table, told(table, 0.8, 2)),
    }
    assert len(align_runs(runs).inside) == 30
    assert AlignedPredictions.of(list(runs.values())).table["path"].tolist() == paths


def test_new_rows_of_a_class_named_in_another_form() -> None:
    labels, units, folds = np.arange(6) % 2, np.arange(6), np.zeros(6, np.int64)
    keys = np.stack([np.arange(6), np.arange(6)], 1).astype(np.uint64)
    recipe = Recipe().replace(**{"balance.extra_views": [nfd("사과") + ":0:flip", nfd("바*") + ":0:flip"]})
    assert len(select_extra_samples(recipe, ("바나나", "사과"), labels, units, folds, keys)) == 6
    with pytest.raises(RecipeError, match="no class is called"):
        select_extra_samples(recipe, ("배", "사과"), labels, units, folds, keys)


def test_a_group_votes_whatever_the_form_of_its_name() -> None:
    vote = Vote(("a", "b"), GroupConstantLabels(("label",), np.arange(2)), 1.0)
    table = pd.DataFrame({"path": list("xyz"), "label": list("aab"), "p_a": [0.9, 0.9, 0.4], "p_b": [0.1, 0.1, 0.6]})
    table["error"] = ""
    assert vote.apply(table, ["가", nfd("가"), nfd("가")])["label"].tolist() == ["a", "a", "a"]


def test_a_relabel_to_a_class_that_does_not_exist_is_still_an_error(tmp_path: Path) -> None:
    append_correction(tmp_path / "v.csv", Correction("a.jpg", "", "relabel", nfd("배")))
    with pytest.raises(UnfreezeError, match="which is an unknown class"):
        read_corrections(tmp_path / "v.csv", CLASSES)
    assert read_corrections(tmp_path / "v.csv")[0][0].label == "배"


def test_a_fit_warns_of_names_that_look_alike(made: tuple[Path, Run], tmp_path: Path) -> None:
    said = list[str]()

    class Heard(Reporter):
        """Keeps what is said."""

        def say(self, text: str) -> None:
            said.append(text)

    root = tmp_path / "photos"
    for colour, label in enumerate(("Cat", "cat")):
        for person in range(12):
            file = root / label / f"{('kim', 'Kim')[colour]}{person}_0.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw(colour, person, 0).save(file)
    recipe = Recipe().replace(**RECIPE | {"source.group": "", "source.group_regex": "(?P<group>[^/_]+)_"})
    cross_validate(read(str(root), recipe.source), recipe, tmp_path / "run", reporter=Heard())
    assert any(line.startswith("Found (warning): labels 'Cat' (12 photos) and 'cat' (12 photos)") for line in said)
    assert any(line.startswith("Found (warning): 12 set(s) of groups differ only in") for line in said)
