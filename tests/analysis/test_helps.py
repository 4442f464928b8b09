"""Whether a blend, views or a vote help is told out of fold, and nothing is scored on what chose it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from attributesets import LABELS, two_attributes
from commandline import run_cli
from finetuning import colours, fit_here, make_recipe
from unfreeze.analysis.compare_variants import by_group, compare_variants
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import RunError, SourceError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("helps")


@pytest.fixture(scope="module")
def source(place):
    return colours(place / "colours")


@pytest.fixture(scope="module")
def runs(source, place):
    return [
        fit_here(source, place / "first", "probe"),
        fit_here(source, place / "second", "probe", image__size=32, seed=1),
    ]


def rewritten(run, classes, folder, seed):
    """The run with out-of-fold predictions of its own noise around the truth."""
    import shutil

    shutil.copytree(run.path, folder)
    oof = run.predictions()
    truth = np.array([classes.index(label) for label in oof["label"]])
    logits = np.random.default_rng(seed).normal(0, 1.5, (len(oof), len(classes)))
    logits[np.arange(len(oof)), truth] += 1.5
    proba = np.exp(logits)
    oof[probability_columns(classes)] = proba / proba.sum(1, keepdims=True)
    oof.to_parquet(folder / "oof.parquet", index=False)
    return folder


def test_a_blend_of_what_errs_apart_helps(place, tmp_path):
    run = fit_here(colours(place / "more", groups=20), place / "many", "probe")
    made = [rewritten(run, run.classes, tmp_path / f"run-{i}", i) for i in range(9)]
    found = compare_variants(made)
    names = [way.name for way in found.ways]
    assert names[:2] == ["best single run, chosen inside", "blend"]
    assert names[2:] == [f"run-{i}" for i in range(9)]
    blend = found.ways[1]
    assert blend.outcome == "helps"
    assert blend.scores["macro_f1"]["value"] > found.ways[0].scores["macro_f1"]["value"] + 0.05
    assert sum(found.weights.values()) == pytest.approx(1)
    assert "helps" in found.sentence
    assert json.loads(json.dumps(found.described()))["ways"][1]["outcome"] == "helps"


def test_the_same_run_under_two_names_is_no_help(runs, tmp_path):
    import shutil

    shutil.copytree(runs[0].path, tmp_path / "again")
    found = compare_variants([runs[0], tmp_path / "again"])
    assert found.ways[1].difference["value"] == 0 and found.ways[1].outcome == "not significant"


def test_views_are_predicted_by_what_has_not_seen_the_photo(runs):
    """With the training views named, the out-of-fold scores come out again; further views change them."""
    with pytest.raises(SourceError, match="already"):
        compare_variants(runs[0], tta="plain,flip")
    found = compare_variants(runs[0], tta="plain,flip,rotate+180")
    plain = compare_variants(runs[0], tta="plain")
    assert [way.name for way in found.ways] == ["as it is", "views plain,flip,rotate+180"]
    stored = runs[0].scores()["out_of_fold"]["log_loss"]["value"]
    assert found.ways[0].scores["log_loss"]["value"] == pytest.approx(stored)
    assert plain.ways[1].scores["log_loss"]["value"] == pytest.approx(stored, abs=0.3)
    assert found.ways[1].scores["log_loss"]["value"] != pytest.approx(stored, abs=1e-9)


def test_blend_views_and_vote_together(place):
    table = two_attributes(place / "plants", groups=8, each=2)
    named = pd.read_csv(table)
    named["plant"] = named["colour"] + named["file"].str.extract(r"-(\d+)-")[0]
    named.to_csv(table, index=False)
    recipe = make_recipe("probe", table, source__group_regex="").replace(**LABELS)
    photos = uf.read(table, recipe.source)
    a = uf.fit(photos, recipe, place / "a")
    b = uf.fit(photos, recipe.replace(**{"image.size": 32}), place / "b")
    found = compare_variants([a, b], tta="crop-10", vote=True)
    names = [way.name for way in found.ways]
    assert names[-2:] == ["blend, views crop-10", "blend, views crop-10, vote of each group on colour"]
    assert [way.against for way in found.ways][-2:] == ["blend", "blend, views crop-10"]
    answer = run_cli("scores", f"{a.path}+{b.path}", "--tta", "crop-10", "--group-vote")
    assert answer.code == 0, answer.err
    assert "vote of each group on colour" in answer.out
    assert "Weights: " in answer.out


def test_nothing_to_try_and_groups(runs):
    with pytest.raises(RunError, match="nothing to try"):
        compare_variants(runs[0])
    table = by_group(runs[0])
    assert table["photos"].sum() == len(runs[0].predictions())
    assert table["accuracy"].is_monotonic_increasing
    answer = run_cli("scores", runs[0].path, "--by-group", "--json")
    assert len(json.loads(answer.out)["groups"]) == len(table)
    both = run_cli("scores", f"{runs[0].path}+{runs[1].path}", "--by-group")
    assert both.code == 2
    assert "single run" in both.complaint


def test_predict_with_groups_and_several_runs(runs, source, tmp_path):
    target = tmp_path / "out.csv"
    text = f"{runs[0].path}+{runs[1].path}"
    answer = run_cli("predict", text, source, "--out", target, "--group-regex", r"(?P<group>g\d+)_", "--json")
    assert answer.code == 0, answer.err
    table = pd.read_csv(target)
    assert len(table) == json.loads(answer.out)["photos"]
    columns = probability_columns(runs[0].classes)
    for _, some in table.groupby(table["path"].str.extract(r"(g\d+)_")[0]):  # its photos have one color: all agree
        assert np.allclose(some[columns], some[columns].iloc[0])
    wrong = run_cli("predict", text, source, "--out", target, "--group", "person")
    assert wrong.code == 2
    assert "not a table" in wrong.complaint
    missing = run_cli("predict", f"{runs[0].path}+{tmp_path / 'none'}", source, "--out", target)
    assert missing.code == 2
    assert "none" in missing.complaint
