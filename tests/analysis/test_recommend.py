"""recommend and strategy auto: the same table again, taken up after Ctrl-C, honest where there is nothing to learn."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

import unfreeze as uf
from finetuning import Says, colours
from racing import auto_recipe, trained_here
from unfreeze.analysis.recommend import recommend
from unfreeze.analysis.recommendation import StrategyRow, probability_better, reason, would_change
from unfreeze.core.errors import RecipeError
from unfreeze.core.format import format_probability

SECONDS = ("seconds", "full_seconds")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """54 photos of 27 groups in three colors."""
    source = colours(tmp_path_factory.mktemp("recommend") / "photos", groups=9, each=2)
    recipe = auto_recipe(source, recommend__candidates=["partial", "scratch"])
    return uf.read(source, recipe.source), recipe


@pytest.fixture(scope="module")
def found(photos, tmp_path_factory):
    """Recommendation on them, from an empty cache; and the folder of that cache."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch, trained_here() as done:
        patch.setenv("UNFREEZE_CACHE", str(cache))
        recommendation = recommend(*photos)
    assert [job.recipe.strategy for job in done] == ["partial", "scratch"]
    return recommendation, cache


def told(recommendation) -> str:
    """All of it but the seconds, and what speaks of them."""
    found = recommendation.to_json()
    for row in found["table"]:
        for key in SECONDS:
            del row[key]
    for key in ("seconds", "reason"):
        del found[key]
    for axis in ("similar", "enough"):
        del found[axis]["seconds"]
    return json.dumps(found, sort_keys=True, default=float)


# --- the same again -----------------------------------------------------------------------------------------------


def test_interrupted_and_resumed_it_says_the_same_as_in_one_go(photos, found, fresh_cache):
    with trained_here(stop_after=1), pytest.raises(KeyboardInterrupt):
        recommend(*photos)
    with trained_here() as done:
        again = recommend(*photos)
    assert [job.recipe.strategy for job in done] == ["partial", "scratch"]  # partial from its checkpoint
    assert told(again) == told(found[0])


def test_the_second_time_nothing_is_trained(photos, found, monkeypatch):
    recommendation, cache = found
    monkeypatch.setenv("UNFREEZE_CACHE", str(cache))
    with trained_here() as done:
        again = recommend(*photos)
    assert not done and told(again) == told(recommendation)
    assert [row.seconds for row in again.table] == [row.seconds for row in recommendation.table]


# --- what it says -------------------------------------------------------------------------------------------------


def test_the_table_is_whole(found):
    recommendation, _ = found
    assert {row.name for row in recommendation.table} == {"probe", "partial", "scratch"}
    assert recommendation.recommended == recommendation.table[0].name and recommendation.changes == {
        "strategy": recommendation.recommended
    }
    assert recommendation.runner_up == recommendation.table[1].name and recommendation.table[-1].name == "scratch"
    assert (recommendation.photos, recommendation.groups) == (54, 27)
    (block,) = recommendation.blocks
    assert block.folds == () and block.learnt_from + block.judged == 54
    probe = next(row for row in recommendation.table if row.name == "probe")
    assert probe.difference == {"value": 0.0, "low": 0.0, "high": 0.0} and probe.expected == probe.doubt == 0.0
    assert all(row.macro_f1["low"] <= row.macro_f1["value"] <= row.macro_f1["high"] for row in recommendation.table)
    assert recommendation.cell is not None and recommendation.taught
    assert str(block.judged) in recommendation.reason and recommendation.would_change.endswith(".")


def row(name: str, expected: float, doubt: float = 0.02, photos: int = 100, out: str = "") -> StrategyRow:
    f1 = {"value": 0.8 + expected, "low": 0.7, "high": 0.9}
    return StrategyRow(name, {"strategy": name}, f1, {"value": expected}, expected, doubt, photos, 100, 1.0, 60.0, out)


def test_words_of_the_recommendation():
    partial, probe, full = row("partial", 0.03), row("probe", 0.0, 0.0), row("full", 0.01, photos=40)
    said = reason(partial, [full, probe], 50)
    assert "Partial scored macro F1 0.830" in said and "chosen among 3 strategies on the same images" in said
    assert "expected macro F1 is 0.020 above that of full" in said and "better of the two is 76%" in said
    assert "chosen among 2 strategies and 4 backbones on the same images" in reason(partial, [probe], 50, backbones=4)
    assert "ull learned from 40 of 100 images only" in would_change(partial, [full, probe])
    assert "robe would have to gain 0.030" in would_change(partial, [probe])
    assert "Nothing else was tried" in reason(probe, [], 50)
    assert (
        probability_better(partial, probe) > 0.9
        and probability_better(probe, partial) < 0.1
        and probability_better(partial, partial) == probability_better(probe, probe) == 0.5
    )
    assert [format_probability(p) for p in (0.87, 0.9901, 0.999, 1.0, 0.004)] == ["87%", "99%", ">99%", ">99%", "<1%"]


def test_other_strategies_are_not_recommended_on(photos, tmp_path):
    folder, recipe = photos
    for key, value in (("recommend.budget", "soon"), ("balance.loss", "soft-f1")):
        with pytest.raises(RecipeError, match=value):
            uf.fit(folder, recipe.replace(**{key: value}), tmp_path / "run")
        assert not (tmp_path / "run").exists()


# --- little to race on --------------------------------------------------------------------------------------------


def test_with_a_handful_of_groups_the_probe_is_taken_and_that_is_said(tmp_path):
    source = colours(tmp_path / "photos", groups=3, each=2)
    recipe = auto_recipe(source)
    photos, voice = uf.read(source, recipe.source), Says()
    with trained_here() as done:
        run = uf.fit(photos, recipe, tmp_path / "run", reporter=voice)
    assert run.strategies == ("probe",) and not done
    assert any("No race: " in line and "Strategy probe is taken" in line for line in voice.lines)
    told = json.loads((tmp_path / "run" / "recommendation.json").read_text())
    assert told["recommendation"] is None and told["left_out"]


def test_where_all_training_contradicts_itself_the_probe_is_taken_without_a_race(tmp_path):
    source = colours(tmp_path / "photos", groups=9, each=1)
    recipe = auto_recipe(source, recommend__candidates=["partial"], train__cutmix_alpha=1.0)
    voice = Says()
    with trained_here() as done:
        run = uf.fit(uf.read(source, recipe.source), recipe, tmp_path / "run", reporter=voice)
    assert run.strategies == ("probe",) and not done
    assert any(line.startswith("Not tried: partial: train.cutmix_alpha") for line in voice.lines)
    assert (
        "partial: train.cutmix_alpha"
        in json.loads((tmp_path / "run" / "recommendation.json").read_text())["left_out"][0]
    )


# --- no signal ----------------------------------------------------------------------------------------------------


def test_random_labels_score_at_chance(tmp_path):
    """A race that chose by photos that it is then judged on would find something here."""
    for number in range(48):
        for photo in range(2):
            draw = np.random.default_rng([number, photo])
            label = ("one", "two", "three")[number % 3]
            (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray(draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)).resize((64, 64))
            pixels.save(tmp_path / "photos" / label / f"g{number:03d}_{photo}.png")
    recipe = auto_recipe(
        tmp_path / "photos", recommend__candidates=["partial", "full"], train__lr=0.02, train__wise_ft_alpha=1.0
    )
    started = time.perf_counter()
    with trained_here() as done:
        run = uf.fit(uf.read(tmp_path / "photos", recipe.source), recipe, tmp_path / "run")
    score = run.scores()["out_of_fold"]
    assert score["photos"] == 96 and score["macro_f1"]["low"] < 1 / 3 < score["macro_f1"]["high"]
    recommendation = json.loads((tmp_path / "run" / "recommendation.json").read_text())
    assert len(recommendation["recommendation"]["table"]) == 3 and len(recommendation["chosen"]) == 3
    assert len([job for job in done if job.fold == 0 and len(job.out) < 48]) >= 4
    assert recommendation["recommendation"]["seconds"] <= time.perf_counter() - started
    assert asdict(run.members[0])["folds"]
