"""The search: it finds what is planted, gives up what is plainly worse, and goes on wherever it was cut off."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optuna
import pytest
from PIL import Image

from searching import opened, rows_of, search_recipe, tinted, work_of
from unfreeze.analysis.splits import search_splits
from unfreeze.analysis.tuning import search as searching
from unfreeze.analysis.tuning.folder import DATABASE, is_alive, open_folder, search_key
from unfreeze.analysis.tuning.search import RunningTrial
from unfreeze.analysis.tuning.space import Dimension
from unfreeze.core.errors import FoldError, RunError, StorageError
from unfreeze.training.context import FitContext
from unfreeze.training.crossval import detect_faces

TRIALS, SHARED = 20, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tinted(tmp_path_factory.mktemp("tinted") / "photos")


@pytest.fixture(scope="module")
def work(source, tmp_path_factory) -> FitContext:
    """48 photos of 24 groups in three folds."""
    return work_of(search_recipe(source, trials=TRIALS), tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(work, folder):
    """A search in one go, and what it tried."""
    with opened(work, folder) as search:
        search.run(0)
        return search.found(), search.importance(), rows_of(search)


def test_what_is_planted_is_found_on_every_side(whole):
    found, importance, _ = whole
    for one in found:
        assert len(one.rows) == TRIALS and one.rows[0].changes == {} and one.rows[0].state == "complete"
        assert one.best.changes["image.color"] == "rgb" and one.best.value > one.rows[0].value + 0.2
        assert not any(r.value >= one.best.value and r.number < one.best.number for r in one.rows)
    assert max(importance, key=importance.__getitem__) == "image.color" and importance["image.color"] > 0.9
    assert sum(importance.values()) == pytest.approx(1)


def test_what_is_plainly_worse_is_given_up_and_nothing_else(whole):
    given_up = [r for one in whole[0] for r in one.rows if r.state == "pruned"]
    assert given_up and all("image.color" not in r.changes and len(r.scores) < 3 for r in given_up)
    assert all(len(r.scores) == 3 for one in whole[0] for r in one.rows if r.state == "complete")
    assert all(np.isnan(r.value) for r in given_up)


def test_all_sides_draw_the_same_as_long_as_they_draw_at_random(whole):
    everything, first, second = (one.rows for one in whole[0])
    for rows in zip(everything, first, second, strict=True):
        if rows[0].number < searching.RANDOM:
            assert rows[0].changes == rows[1].changes == rows[2].changes
    assert everything[-1].changes != first[-1].changes or everything[-1].changes != second[-1].changes


def test_more_trials_later_are_what_they_had_been_at_once(work, whole, tmp_path):
    for trials in (5, TRIALS):
        recipe = work.recipe.replace(**{"tune.trials": trials})
        with opened(replace(work, recipe=recipe), tmp_path / "search") as search:
            search.run(0)
            found = rows_of(search)
        assert found == {side: rows[:trials] for side, rows in whole[2].items()}


class StoppedError(Exception):
    """Stands for the end of a process: nothing that follows is written."""


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been(work, pruner, tmp_path, monkeypatch):
    """Ends the search again and again: while values are drawn, before and after a part's score is told."""
    monkeypatch.setattr(searching, "RANDOM", 7)
    work = replace(work, recipe=work.recipe.replace(**{"tune.pruner": pruner, "tune.trials": 9, "seed": 1}))
    with opened(work, tmp_path / "whole") as search:
        search.run(0)
        expected = rows_of(search)
    assert any(row[1] == "pruned" for rows in expected.values() for row in rows)
    calls, stop = 0, 3

    def stopping(real, after):
        def call(*arguments, **words):
            nonlocal calls
            calls += 1
            mine = calls
            if mine == stop and not after:
                raise StoppedError
            out = real(*arguments, **words)
            if mine == stop:
                raise StoppedError
            return out

        return call

    monkeypatch.setattr(Dimension, "suggest", stopping(Dimension.suggest, after=True))
    monkeypatch.setattr(RunningTrial, "goes_on", stopping(RunningTrial.goes_on, after=True))
    monkeypatch.setattr(RunningTrial, "take", stopping(RunningTrial.take, after=False))
    monkeypatch.setattr(optuna.trial.Trial, "report", stopping(optuna.trial.Trial.report, after=True))
    times = 0
    while True:
        calls, stop = 0, 3 + 23 * (times % 4)
        try:
            with opened(work, tmp_path / "search") as search:
                search.run(0)
            break
        except StoppedError:
            times += 1
    assert times > 4
    with opened(work, tmp_path / "search") as search:
        assert rows_of(search) == expected


def test_a_search_that_is_whole_asks_for_nothing(work, folder, whole, monkeypatch):
    monkeypatch.setattr(searching, "evaluate_candidates", None)
    with opened(work, folder) as search:
        search.run(0)
        assert rows_of(search) == whole[2]


def test_a_budget_begins_no_further_recipe_but_ends_the_first(work, tmp_path):
    with opened(work, tmp_path / "search") as search:
        search.run(1e-6)
        assert [len(one.rows) for one in search.found()] == [1, 1, 1]
        assert {one.best.number for one in search.found()} == {0} and search.importance() == {}


def test_a_recipe_that_cannot_be_is_reported_and_the_search_goes_on(work, tmp_path):
    """Each value by itself is good, but ce has no weights to take a power of."""
    space = ["balance.loss=weighted,ce", "balance.class_weight_power=0.2..0.8"]
    recipe = work.recipe.replace(**{"tune.search_space": space, "tune.trials": 6})
    with opened(replace(work, recipe=recipe), tmp_path / "search") as search:
        search.run(0)
        rows = search.found()[0].rows
    failed = [r for r in rows if r.state == "failed"]
    assert len(rows) == 6 and 0 < len(failed) < 5
    assert all(r.changes["balance.loss"] == "ce" and "has no class weights" in r.note and not r.scores for r in failed)


@pytest.mark.skipif(not find_spec("retinaface"), reason="the extra faces is not installed")
def test_faces_are_looked_for_where_a_recipe_asks_for_them(work, tmp_path):
    """None is there, so that the center is seen: what matters is that either crop can be tried from the other."""
    for given, space in (("face", "image.crop=1.0,face"), (1.0, "image.crop=face,1.0")):
        recipe = work.recipe.replace(**{"image.crop": given, "tune.search_space": [space], "tune.trials": 4})
        one = replace(work, recipe=recipe)
        detect_faces(one)
        with opened(one, tmp_path / str(given)) as search:
            search.run(0)
            everything = search.found()[0]
        assert len(everything.distinct) == 2 and {r.state for r in everything.rows} == {"complete"}


def test_a_small_space_is_counted_once(work, tmp_path):
    recipe = work.recipe.replace(**{"tune.search_space": ["image.color=gray,rgb"], "tune.trials": 5})
    with opened(replace(work, recipe=recipe), tmp_path / "search") as search:
        search.run(0)
        everything = search.found()[0]
    assert [r.changes for r in everything.distinct] == [{}, {"image.color": "rgb"}] and len(everything.rows) == 5
    assert everything.best == everything.distinct[1]  # the first of equals


# --- nothing leaks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["labels", "pixels"])
def test_what_is_chosen_for_a_fold_knows_nothing_of_its_photos(what, work, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "cache"))  # nothing is known from before
    recipe = work.recipe.replace(**{"tune.trials": 3})
    side = search_splits(work, 3)[1]
    rows = np.flatnonzero(np.isin(work.folds, side.chosen_for))
    assert (
        len(rows)
        and (side.parts[rows] == -1).all()
        and not np.isin(work.units[rows], work.units[side.parts >= 0]).any()
    )
    if what == "labels":
        labels = work.labels.copy()
        labels[rows] = np.random.default_rng(0).permutation(labels[rows])
        changed = replace(work, labels=labels, recipe=recipe)
    else:
        folder = tinted(tmp_path / "photos")
        for path in work.photos.table["path"].iloc[rows]:
            noise = np.random.default_rng(len(path)).integers(0, 256, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / path)
        seen = work_of(recipe.replace(**{"source.path": str(folder)}), tmp_path / "work")
        changed = replace(work, photos=seen.photos, looks=seen.looks, recipe=recipe)
    with opened(changed, tmp_path / "search") as search:
        search.run(0)
        found = rows_of(search)
    assert (search_splits(changed, 3)[1].parts == side.parts).all()
    assert found["first"] == whole[2]["first"][:3]
    assert found["all"] != whole[2]["all"][:3]  # the change is no small one


def test_too_few_groups_are_reported(source, work):
    few = replace(work, folds=np.where(work.units < np.unique(work.units)[3], work.folds, -1))
    with pytest.raises(FoldError, match="too few"):
        search_splits(few, 3)


# --- the folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["no database", "cut short"])
def test_a_damaged_database_is_reported_in_one_line(how, work, tmp_path):
    folder = tmp_path / "search"
    with opened(work, folder) as search:
        search.run(1e-6)
    data = (folder / DATABASE).read_bytes()
    (folder / DATABASE).write_bytes(b"no database at all" * 300 if how == "no database" else data[: len(data) // 3])
    with (
        pytest.raises(StorageError, match=r"search.db: cannot be used \(.*force=True starts a new search") as told,
        opened(work, folder) as search,
    ):
        search.run(0)
        search.found()
    assert "\n" not in str(told.value)


def test_no_one_starts_over_over_a_search_at_work(work, tmp_path):
    with opened(work, tmp_path / "search") as search:
        assert is_alive(tmp_path / "search", search._me)
        with pytest.raises(RunError, match="another process searches there"):
            open_folder(tmp_path / "search", search_key(work, ()), force=True)
        assert (tmp_path / "search" / DATABASE).exists()
    open_folder(tmp_path / "search", search_key(work, ()), force=True)
    assert not (tmp_path / "search" / DATABASE).exists()


# --- processes ----------------------------------------------------------------------------------------------------

PROCESS = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import unfreeze as uf
from searching import search_recipe
from unfreeze.analysis import fit as same_folds
from unfreeze.analysis.tuning import search, tune

source, folder, trials = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
fits, real = 0, same_folds.cross_validate
def counted(*arguments, **words):
    global fits
    fits += 1
    return real(*arguments, **words)
same_folds.cross_validate = counted
recipe = search_recipe(source, trials=trials)
photos = uf.read(source, recipe.source)
Path(sys.argv[5]).touch()
while not Path(sys.argv[6]).exists():
    time.sleep(0.01)
found = uf.tune(photos, recipe, folder).to_json()
print(json.dumps([fits, found]))
"""


def process(source: Path, folder: Path, trials: int, ready: Path, go: Path) -> subprocess.Popen[str]:
    words = [str(w) for w in (source, folder, trials, Path(__file__).parents[1], ready, go)]
    return subprocess.Popen([sys.executable, "-c", PROCESS, *words], stdout=subprocess.PIPE, text=True)


def tried(folder: Path) -> int:
    """How many scores the database holds; 0 while there is none."""
    try:
        with sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True, timeout=10) as connection:
            return int(connection.execute("select count(*) from trial_intermediate_values").fetchone()[0])
    except sqlite3.Error:
        return 0


def test_killed_and_then_shared_by_two_processes_it_is_one_search(source, work, whole, tmp_path, fresh_cache):
    """One process is killed by SIGKILL at some moment; then two at once end the search, and one of them fits."""
    folder, go = tmp_path / "search", tmp_path / "go"
    go.touch()
    first = process(source, folder, SHARED, tmp_path / "first", go)
    moment = random.randint(3, 40)
    while first.poll() is None and tried(folder) < moment:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = tried(folder)
    assert 0 < before < 3 * 3 * SHARED, "it was killed in the middle"
    go.unlink()
    both = [process(source, folder, SHARED, tmp_path / name, go) for name in ("second", "third")]
    while not all((tmp_path / name).exists() for name in ("second", "third")):
        time.sleep(0.01)
    go.touch()
    answers = [json.loads(one.communicate(timeout=300)[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum(fits for fits, _ in answers) == 2  # base and best, by one of them
    told = [{k: v for k, v in found.items() if k != "seconds"} for _, found in answers]
    assert told[0] == told[1]
    for side, rows in whole[2].items():
        numbers = [row["number"] for row in told[0]["searches"][side]["trials"]]
        assert numbers == list(range(SHARED))  # none is lost, none done twice
        drawn = [tuple(r["changes"].items()) for r in told[0]["searches"][side]["trials"]]
        assert drawn == [row[2] for row in rows[:SHARED]]
    assert told[0]["changes"]["image.color"] == "rgb"
    assert not list(folder.glob(".worker-*.lock"))
