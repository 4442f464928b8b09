"""tune: what it finds, the figure to believe, the folder it leaves, and the same again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unfreeze as uf
from finetuning import Says, colours, make_recipe, no_processes
from racing import trained_here
from searching import search_recipe, tinted
from unfreeze.analysis import fit
from unfreeze.analysis.tuning import tune as tuning
from unfreeze.analysis.tuning.search import Searched
from unfreeze.analysis.tuning.tune import Tuning
from unfreeze.core.errors import FoldError, MissingExtraError, RecipeError, RunError
from unfreeze.core.recipe import read_recipe
from unfreeze.metrics.classification import confusion_matrix, macro_f1


def told(found: Tuning) -> str:
    """All of it but the seconds."""
    out = found.to_json()
    del out["seconds"]
    return json.dumps(out, sort_keys=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """32 photos of 16 groups, told apart by color alone; and a recipe that sees them in gray."""
    recipe = search_recipe(tinted(tmp_path_factory.mktemp("tune") / "photos", groups=8), trials=4)
    return uf.read(recipe.source.path, recipe.source), recipe


@pytest.fixture(scope="module")
def found(photos, tmp_path_factory) -> Tuning:
    return uf.tune(*photos, tmp_path_factory.mktemp("found") / "search")


# --- what it finds ------------------------------------------------------------------------------------------------


def test_what_is_planted_is_found_and_pays_on_photos_without_part_in_it(found):
    assert found.changes["image.color"] == "rgb" and all(c["image.color"] == "rgb" for c in found.chosen)
    assert found.gain.low > 0.1 and found.nested.value > found.base.value + 0.2
    assert found.nested.low <= found.nested.value <= found.nested.high
    assert found.searched >= found.searches[0].rows[0].value
    assert (found.photos, found.groups, found.tried) == (32, 16, 4)
    assert found.sentence.startswith("Searching 4 recipes gains ") and "on held-out images" in found.sentence


def test_what_it_leaves_is_a_recipe_two_runs_and_all_that_was_tried(found):
    place = Path(found.folder)
    best, base = uf.open_run(place / "best"), uf.open_run(place / "base")
    assert best.scores()["out_of_fold"]["macro_f1"]["value"] == found.shown.value and best.recipe.image.color == "rgb"
    assert base.scores()["out_of_fold"]["macro_f1"]["value"] == found.base.value and base.recipe.image.color == "gray"
    recipe = read_recipe(place / "best.toml")
    assert recipe == best.recipe == found.best and recipe.tune == uf.Recipe().tune
    lines = (place / "best.toml").read_text().splitlines()
    assert lines[1] == f"# {found.sentence}" and f"{found.nested.value:.3f}" in lines[2]
    kept = json.loads((place / "tune.json").read_text())
    assert kept["status"] == "finished" and kept["gain"]["low"] == found.gain.low
    assert [row["number"] for row in kept["searches"]["second"]["trials"]] == [0, 1, 2, 3]


def test_the_best_recipe_fits_again_to_the_same_score(photos, found, tmp_path):
    run = uf.fit(photos[0], read_recipe(Path(found.folder) / "best.toml"), tmp_path / "run")
    assert run.scores()["macro_f1"] == vars(found.shown)


def test_every_fold_is_predicted_by_what_was_chosen_without_it(photos, found, tmp_path):
    """The nested figure, put together by hand."""
    first, second = found.searches[1:]
    assert first.side.chosen_for == (0,) and second.side.chosen_for == (1, 2)
    tables = []
    for one, changes in zip((first, second), found.chosen, strict=True):
        run = uf.fit(photos[0], photos[1].replace(**changes, **{"tune.search_space": []}), tmp_path / one.side.name)
        table = run.predictions()
        tables.append(table[table["fold"].isin(one.side.chosen_for)])
    labels = np.concatenate([(t["label"] == "warm").to_numpy(int) for t in tables])
    answers = np.concatenate([(t["p_warm"] > t["p_cold"]).to_numpy(int) for t in tables])
    assert len(labels) == 32
    assert macro_f1(confusion_matrix(labels, answers, 2)) == pytest.approx(found.nested.value)


def test_of_equals_the_earlier_is_best(found):
    rows = tuple(replace(row, scores=(0.5, 0.5, 0.50004 if row.number else 0.5)) for row in found.searches[0].rows)
    assert Searched(found.searches[0].side, tuple(replace(r, state="complete") for r in rows)).best.number == 0


@pytest.mark.parametrize(
    ("gain", "changes", "said"),
    [
        ((-0.03, -0.05, -0.01), {"a": 1}, "costs 3.0 points on held-out images, 95% interval [-5.0, -1.0]"),
        ((0.01, -0.01, 0.03), {"a": 1}, "makes no significant difference to the given recipe"),
        ((0.01, -0.01, 0.03), {}, "None of 3 other recipes was better"),
    ],
)
def test_the_sentence_says_what_the_interval_allows(found, gain, changes, said):
    assert said in replace(found, changes=changes, gain=type(found.gain)(*gain)).sentence


def test_random_labels_are_seen_through(tmp_path):
    """Of many recipes on noise the best looks better than chance; photos that had no part in it know better."""
    for group in range(30):
        label = "ab"[int(np.random.default_rng(group).integers(2))]
        for photo in range(2):
            pixels = np.random.default_rng([group, photo]).integers(0, 256, (64, 64, 3)).astype(np.uint8)
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"g{group:02d}_{photo}.png")
    space = ["probe.pool_size=1,2", "balance.class_weight_power=0.0..1.0", "image.color=rgb,gray"]
    recipe = search_recipe(tmp_path / "photos", *space, trials=8)
    found = uf.tune(uf.read(recipe.source.path, recipe.source), recipe, tmp_path / "search")
    assert found.nested.low < 0.5 and found.gain.low <= 0 and "gains" not in found.sentence
    assert found.searched > found.searches[0].rows[0].value and found.searched > found.nested.value


def test_a_network_is_tuned_as_well(tmp_path):
    recipe = make_recipe(
        "partial",
        colours(tmp_path / "photos"),
        tune__trials=2,
        tune__search_space=["train.lr=1e-3..1e-2 log"],
        train__epochs=1,
    ).replace(**{"probe.Cs": [1.0]})
    with trained_here(), no_processes() as fitted:
        found = uf.tune(uf.read(recipe.source.path, recipe.source), recipe, tmp_path / "search")
    assert found.tried == 2 and {row.state for row in found.searches[0].rows} == {"complete"}
    assert uf.open_run(tmp_path / "search" / "base").recipe.strategy == "partial" and fitted
    assert not [p for p in (tmp_path / "search").glob("nested/*") if p.is_dir()]


# --- the same again -----------------------------------------------------------------------------------------------


def test_a_finished_search_is_not_done_again(photos, found, monkeypatch):
    monkeypatch.setattr(fit, "cross_validate", None)
    monkeypatch.setattr(tuning, "run_strategy", None)
    again = uf.tune(*photos, found.folder)
    assert told(again) == told(found)


def test_cut_off_in_a_fit_it_ends_the_same(photos, found, tmp_path, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    place = tmp_path / "search"
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_nested", cut)
        with pytest.raises(KeyboardInterrupt):
            uf.tune(*photos, place)
    assert json.loads((place / "tune.json").read_text())["status"] == "searching" and not (place / "best.toml").exists()
    again = uf.tune(*photos, place)
    assert told(replace(again, folder=found.folder)) == told(found)


def test_more_trials_go_on_in_the_same_folder(photos, tmp_path):
    data, recipe = photos
    place, voice = tmp_path / "search", Says()
    short = uf.tune(data, recipe.replace(**{"tune.budget": "0.001s"}), place)
    assert short.tried == 1 and short.sentence.startswith("Only the recipe given was tried")
    assert (short.gain.low, short.gain.high) == (0, 0) and not (place / "best").exists()
    longer = uf.tune(data, recipe, place, reporter=voice)
    assert longer.tried == 4 and (place / "best" / "run.json").exists()
    assert longer.searches[0].rows[0].scores == short.searches[0].rows[0].scores
    assert not any(line.startswith("Found (") for line in voice.lines)


# --- what it refuses ----------------------------------------------------------------------------------------------


def test_another_search_is_not_mixed_in_and_force_starts_over(photos, found, tmp_path):
    data, recipe = photos
    place = tmp_path / "search"
    uf.tune(data, recipe.replace(**{"tune.budget": "0.001s"}), place)
    keep = {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    other = recipe.replace(**{"seed": 1, "tune.budget": "0.001s"})
    for changed in (other, recipe.replace(**{"tune.search_space": ["image.color=rgb,gray"]})):
        with pytest.raises(RunError, match=r"holds a search of other photos or another recipe; force=True"):
            uf.tune(data, changed, place)
    assert all(p.read_bytes() == content for p, content in keep.items())
    begun = uf.tune(data, other, place, force=True)
    assert begun.tried == 1 and uf.open_run(place / "base").recipe.seed == 1


def test_folders_of_something_else_are_left_alone(photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for force in (False, True):
        with pytest.raises(RunError, match="exists and is not a search"):
            uf.tune(*photos, tmp_path / "mine", force=force)
        with pytest.raises(RunError, match="is a file"):
            uf.tune(*photos, tmp_path / "mine" / "notes.txt", force=force)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_search_without_its_record_is_reported(photos, tmp_path):
    data, recipe = photos
    recipe = recipe.replace(**{"tune.budget": "0.001s"})
    uf.tune(data, recipe, tmp_path / "search")
    (tmp_path / "search" / "tune.json").write_text("{")
    with pytest.raises(RunError, match=r"tune.json: is damaged or missing; force=True"):
        uf.tune(data, recipe, tmp_path / "search")
    assert uf.tune(data, recipe, tmp_path / "search", force=True).tried == 1


def test_what_is_missing_or_too_little_is_reported_before_any_work(photos, tmp_path, monkeypatch):
    data, recipe = photos
    with pytest.raises(RecipeError, match=r"tune.budget = 'soon'"):
        uf.tune(data, recipe.replace(**{"tune.budget": "soon"}), tmp_path / "search")
    with pytest.raises(RecipeError, match=r"set probe, partial, full or scratch"):
        uf.tune(data, recipe.replace(strategy="auto"), tmp_path / "search")
    with pytest.raises(FoldError, match="too few"):
        uf.tune(data, recipe.replace(**{"tune.n_splits": 20}), tmp_path / "search")
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'unfreeze\[tune\]'"):
        uf.tune(data, recipe, tmp_path / "search")
    assert not (tmp_path / "search").exists()
