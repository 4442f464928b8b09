"""Every word on the same folds, by one command: what it tells, what it leaves, and rows that are added end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

import unfreeze as uf
from commandline import run_cli
from finetuning import Says, fit_here, make_recipe, no_processes
from photosets import GROUP_REGEX, class_folders
from unfreeze.analysis.compare_balance import BALANCE_OPTIONS, compare_balance
from unfreeze.core.errors import RecipeError
from unfreeze.metrics.classification import confusion_matrix, macro_f1

ADD = "minority:1:rotate-10,rotate+10"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 red photos, 24 green and 6 blue ones, in groups of two."""
    folder = class_folders(tmp_path_factory.mktemp("photos") / "colours", groups=12)
    for photo in (folder / "blue").iterdir():
        if int(photo.name[2:4]) >= 3:
            photo.unlink()
    return folder


def read(source, **changes):
    recipe = make_recipe("probe", source, **changes)
    return uf.read(source, recipe.source), recipe


@pytest.fixture(scope="module")
def compared(source):
    photos, recipe = read(source, balance__extra_views=ADD)
    return compare_balance(photos, recipe)


def test_every_word_is_there_and_scored_as_a_fit_of_it_would_be(compared, source, tmp_path):
    assert [word.name for word in compared.words] == [*BALANCE_OPTIONS, "extra_views"]
    assert compared.counts == {"blue": 6, "green": 24, "red": 24}
    assert (compared.smallest, compared.minority, compared.photos) == ("blue", ("blue",), 54)
    for word in compared.words:
        assert word.difference.value == pytest.approx(word.macro_f1.value - compared.words[0].macro_f1.value)
        assert word.difference.low <= word.difference.value <= word.difference.high
    for word in (compared.words[2], compared.words[-1]):
        changes = {f"balance__{key}": value for key, value in word.settings.items()}
        run = fit_here(source, tmp_path / word.name, "probe", **changes)
        assert run.scores()["macro_f1"]["value"] == pytest.approx(word.macro_f1.value)
    assert "blue" in compared.sentence and json.dumps(compared.to_json())


def test_nothing_is_left_behind_and_the_network_runs_once(source, tmp_path, monkeypatch, fresh_cache):
    monkeypatch.chdir(tmp_path)
    photos, recipe = read(source)
    says = Says()
    first = compare_balance(photos, recipe, reporter=says)
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]
    kept = sorted(fresh_cache.glob("features/*/*.npy"))
    again = compare_balance(photos, recipe)
    assert kept and sorted(fresh_cache.glob("features/*/*.npy")) == kept  # nothing was computed again
    assert len([line for line in says.lines if line.startswith("Fitting: ")]) == len(BALANCE_OPTIONS)
    assert [w.macro_f1 for w in again.words] == [w.macro_f1 for w in first.words]


def test_the_command_says_it_and_gives_json(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"backbone": "timm/test_resnet", "weights": "none", "engine": "torch", "image.size": 64}
    settings |= {"probe.stages": "last:2", "probe.pool_size": 2, "probe.Cs": "[1.0, 30.0]", "balance.extra_views": ADD}
    words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["compare", source, "--preset", "balance", "--group-regex", GROUP_REGEX, "--folds", "3", *words]
    answer = run_cli(*command, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert [word["name"] for word in found["words"]] == [*BALANCE_OPTIONS, "extra_views"] and found[
        "strategy"
    ] == "probe"
    plain = run_cli(*command)
    assert plain.code == 0 and "family-wise error 5%" in plain.out and found["sentence"][:30] in plain.out
    assert "logit-adjusted" in plain.out and "unfreeze fit" in plain.out.splitlines()[-1]


def test_auto_and_words_that_are_none_are_refused(source):
    photos, recipe = read(source)
    with pytest.raises(RecipeError, match=r"name it, as recipe\.replace\(strategy='probe'"):
        compare_balance(photos, recipe.model_copy(update={"strategy": "auto"}))
    with pytest.raises(RecipeError, match="no class is called 'bleu'"):
        compare_balance(photos, recipe.replace(**{"balance.extra_views": "bleu:1:flip"}))


def test_other_strategies_are_runs_that_are_resumed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "unfreeze.analysis.compare_balance.BALANCE_OPTIONS", {"none": {"loss": "ce"}, "over": {"sampling": "over"}}
    )
    photos, _ = read(source)
    recipe = make_recipe("partial", source, train__epochs=1, folds__n_splits=2)
    with no_processes() as jobs:
        first = compare_balance(photos, recipe, tmp_path / "runs")
        assert len(jobs) == 4
        again = compare_balance(photos, recipe, tmp_path / "runs")
        assert len(jobs) == 4
    assert [w.macro_f1 for w in first.words] == [w.macro_f1 for w in again.words]
    run = uf.open_run(tmp_path / "runs" / "over")
    oof = run.predictions()
    truth = oof["label"].map(run.classes.index).to_numpy()
    told = oof.filter(like="p_").to_numpy().argmax(1)
    assert float(macro_f1(confusion_matrix(truth, told, 3))) == pytest.approx(first.words[1].macro_f1.value)


@pytest.mark.parametrize("strategy", ["partial", "full"])
def test_added_rows_train_in_their_persons_folds_and_are_never_judged(source, tmp_path, strategy):
    photos, _ = read(source)
    changes = {"balance__extra_views": ADD, "train__epochs": 1, "train__patience": 1}
    with no_processes() as jobs:
        recipe = make_recipe(strategy, source, **changes)
        run = uf.fit(photos, recipe, tmp_path / "run")
    count, folds = len(photos), run.photos()["fold"].to_numpy()
    assert len(run.predictions()) == count and not run.predictions().isna().any().any()
    for job in jobs:
        assert len(job.added) == 6 and job.added.views == ("rotate-10", "rotate+10")
        behind = job.train[job.train >= count] - count
        assert (job.out < count).all() and (job.valid < count).all() and len(job.valid)
        assert len(behind) and (folds[job.added.photo[behind]] != job.fold).all()
        assert np.isin(job.added.photo[behind], job.train).all()
        assert not np.isin(job.added.photo[behind], job.valid).any()
        assert np.array_equal(job.labels[count:], job.labels[job.added.photo])
    alone = fit_here(source, tmp_path / "alone", strategy, **{**changes, "balance__extra_views": []})
    assert not np.allclose(alone.predictions().filter(like="p_"), run.predictions().filter(like="p_"))


def test_a_run_with_added_rows_is_the_same_twice(source, tmp_path):
    runs = [fit_here(source, tmp_path / str(i), "probe", balance__extra_views=ADD) for i in range(2)]
    assert (runs[0].path / "oof.parquet").read_bytes() == (runs[1].path / "oof.parquet").read_bytes()
    plain = fit_here(source, tmp_path / "plain", "probe")
    named = fit_here(source, tmp_path / "named", "probe", balance__sampling="none", balance__loss="")
    assert (plain.path / "oof.parquet").read_bytes() == (named.path / "oof.parquet").read_bytes()
    assert (plain.path / "oof.parquet").read_bytes() != (runs[0].path / "oof.parquet").read_bytes()
