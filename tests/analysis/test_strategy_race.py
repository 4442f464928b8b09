"""The race: the better strategy leads, the hopeless stop early, no photo has a part in what is chosen for its fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from finetuning import Says, colours
from racing import auto_recipe, colour_blind, hues, trained_here, work_of
from unfreeze.analysis.recommend import check_recommendation, choose_strategies
from unfreeze.analysis.strategy_race import (
    CandidateState,
    GainPrior,
    RaceResult,
    StrategyCandidate,
    budget_of,
    cross_fit_halves,
    one_block,
    pooled_scores,
    posterior,
    race,
    standard_error,
    strategy_candidates,
    together,
)
from unfreeze.core.errors import RecipeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.metrics.differences import paired_difference
from unfreeze.training.context import FitContext

ENOUGH = 1e9
# With these the tiny network learns hues in seconds.
LEARNS = {"train__epochs": 8, "train__lr": 0.02, "train__wise_ft_alpha": 1.0}


def raced(work: FitContext, blocks, budget: float = ENOUGH) -> list[RaceResult]:
    found, left_out = strategy_candidates(work.recipe, min(block.photos for block in blocks))
    assert not left_out
    with trained_here():
        return race(work, blocks, found, budget, Reporter())


def everything(work: FitContext) -> np.ndarray:
    return np.flatnonzero(work.folds >= 0)


# --- what is recommended ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> FitContext:
    """144 photos that frozen features tell apart without error."""
    folder = tmp_path_factory.mktemp("easy")
    recipe = auto_recipe(colours(folder / "photos", groups=12, each=4), recommend__candidates=["full", "scratch"])
    return work_of(recipe, folder / "work")


def test_the_probe_leads_where_frozen_features_suffice_and_who_is_behind_stops(easy):
    found = raced(easy, [one_block(easy, everything(easy), 0)], budget=1.0)[0]
    assert found.best.candidate.name == "probe"
    probe, full, scratch = (found.of(name) for name in ("probe", "full", "scratch"))
    assert sorted(probe.tries) == [64, 96] and probe.out == ""
    assert scratch.out == "significantly behind the probe on 64 photos" and scratch.difference["high"] < 0
    assert full.out == "judged on 64 photos; all 96 would go beyond the budget" or full.difference["high"] < 0
    assert list(scratch.tries) == list(full.tries) == [64]
    assert pooled_scores(easy, [found], "probe")["macro_f1"]["value"] > 0.95
    expected = [round(s.expected, 3) for s in found.standings]  # finer than that, the cheaper one leads
    assert expected == sorted(expected, reverse=True)
    for standing in found.standings:
        rows = np.flatnonzero(np.isfinite(standing.last[:, 0]))
        assert (rows == found.block.judged).all()  # what is learnt from is never predicted


def test_with_budget_enough_all_but_the_hopeless_see_every_photo(easy):
    recipe = easy.recipe.replace(**{"recommend.candidates": ["full"]})
    found = raced(replace(easy, recipe=recipe), [one_block(easy, everything(easy), 0)])[0]
    assert [s.photos for s in found.standings] == [96, 96] and {s.out for s in found.standings} == {""}


def test_training_leads_where_frozen_features_do_not_suffice(tmp_path):
    """Classes of hues, and a network that sees none before its first stage is trained: partial cannot, full can."""
    weights = colour_blind(tmp_path / "blind.safetensors")
    recipe = auto_recipe(
        hues(tmp_path / "photos"), weights=str(weights), recommend__candidates=["partial", "full"], **LEARNS
    )
    work = work_of(recipe, tmp_path / "work")
    found = raced(work, [one_block(work, everything(work), 0)])[0]
    assert found.best.candidate.name == "full"
    assert found.of("full").difference["low"] > 0.2 and found.of("partial").difference["low"] < 0.2
    assert found.best.expected < found.best.difference["value"]  # drawn to what other sets have shown


def halves_judged(seed: int, judged: int) -> tuple[float, list[CandidateState]]:
    """A true difference drawn from partial's prior, and what two halves of so many judged images measure of it."""
    draw = np.random.default_rng([seed, judged])
    partial = StrategyCandidate("partial", "partial", {}, {}, 1.0, 1, 1.0, 1)
    true, found = float(draw.normal(partial.prior.mean, partial.prior.deviation)), []
    for _ in range(2):
        gained, lost = max((0.06 + true) / 2, 0.0), max((0.06 - true) / 2, 0.0)
        kind = draw.choice(4, judged, p=[0.82 - lost, lost, gained, 1 - 0.82 - gained])
        truth = draw.integers(0, 3, judged)
        ours, theirs = (np.eye(3)[np.where(right, truth, (truth + 1) % 3)] for right in ((kind % 2 == 0), (kind <= 1)))
        found.append(
            CandidateState(partial, difference=paired_difference(truth, theirs, ours, np.arange(judged), resamples=200))
        )
    return true, found


@pytest.mark.parametrize("judged", [40, 96, 200])
def test_what_is_expected_of_two_halves_together_holds_in_95_of_100_sets(judged):
    """The prior enters once: averaging two posterior means held in 79 to 90 of 100."""
    held = 0
    for seed in range(200):
        true, found = halves_judged(seed, judged)
        _, expected, doubt = together(found, [judged, judged])
        held += abs(true - expected) <= 1.96 * doubt
    assert held >= 180


def test_where_the_probe_makes_no_error_no_prior_expects_more():
    partial = GainPrior(0.013, 0.02)
    assert posterior(0.0, 0.02, partial)[0] > 0 and posterior(0.0, 0.02, partial, most=0.0)[0] == 0.0


def test_identical_predictions_of_few_images_are_no_proof_of_equality():
    truth = np.arange(40) % 2
    same = paired_difference(truth, np.eye(2)[truth], np.eye(2)[truth], np.arange(40))
    assert standard_error(same) == pytest.approx(1 / 40, rel=0.1)


def test_a_longer_budget_is_more_photos(easy):
    found, _ = strategy_candidates(easy.recipe, 96)
    default = budget_of(easy, found, 1.0)
    assert default >= 2000 and budget_of(easy, found, 0.01) == pytest.approx(100 * default)


# --- what takes part ----------------------------------------------------------------------------------------------


def test_what_cannot_be_had_is_left_out_with_its_reason(easy):
    recipe = easy.recipe.replace(**{"recommend.candidates": ["partial", "full"], "train.cutmix_alpha": 1.0})
    found, left_out = strategy_candidates(recipe, 96)
    assert [c.name for c in found] == ["probe", "full"]
    assert len(left_out) == 1 and left_out[0].startswith("partial: train.cutmix_alpha needs pixels")


def test_a_race_of_inputs_takes_part_alone(easy):
    found, left_out = strategy_candidates(easy.recipe.replace(**{"probe.input_candidates": [{"size": 64}]}), 96)
    assert [c.name for c in found] == ["probe"]
    assert [line.split(":")[0] for line in left_out] == ["full", "scratch"]


def test_what_a_probe_cannot_do_cannot_be_raced(easy):
    recipe = easy.recipe.replace(**{"balance.loss": "soft-f1", "strategy": "auto"})
    for refuse in (lambda: strategy_candidates(recipe, 96), lambda: check_recommendation(recipe)):
        with pytest.raises(RecipeError, match="a probe is fitted on all rows at once"):
            refuse()


def test_a_try_is_of_the_same_strategy_and_no_dearer(easy):
    recipe = easy.recipe.replace(**{"train.time_budget": "10m", "image.size": 96})
    for candidate in strategy_candidates(recipe, 96)[0]:
        whole, tried = candidate.recipe(recipe), candidate.trial(recipe)
        assert whole.strategy == tried.strategy == candidate.strategy
        assert candidate.strategy == "probe" or tried.train.time_budget == ""
        assert candidate.tried_epochs <= candidate.epochs and candidate.tried_step <= candidate.step
        assert candidate.full_cost(5, 100) == candidate.step * candidate.epochs * 400


# --- nothing leaks ------------------------------------------------------------------------------------------------


def test_a_half_is_raced_on_without_a_photo_of_the_folds_it_chooses_for(easy):
    sides = cross_fit_halves(easy)
    assert sorted(k for folds, _ in sides for k in folds) == [0, 1, 2]
    for folds, block in sides:
        inside = block.folds >= 0
        assert inside.any() and not np.isin(easy.folds[inside], folds).any()
        assert not set(easy.units[inside].tolist()) & set(easy.units[np.isin(easy.folds, folds)].tolist())
        assert len(block.judged) and block.photos


@pytest.fixture(scope="module")
def races(tmp_path_factory):
    """Function: work -> the probabilities of every try of both halves, from an empty cache."""

    def again(work: FitContext) -> list[dict[str, np.ndarray]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UNFREEZE_CACHE", str(tmp_path_factory.mktemp("cache")))
            found = raced(work, [block for _, block in cross_fit_halves(work)])
        return [{s.candidate.name: s.last[one.block.judged] for s in one.standings} for one in found]

    return again


@pytest.fixture(scope="module")
def plain(tmp_path_factory, races):
    """27 photos in three folds, and what a race of probe and full on them found."""
    folder = tmp_path_factory.mktemp("plain")
    recipe = auto_recipe(colours(folder / "photos", groups=9, each=1), recommend__candidates=["full"])
    work = work_of(recipe, folder / "work")
    return work, races(work)


@pytest.mark.parametrize("what", ["labels", "pixels"])
def test_what_is_chosen_for_a_fold_knows_nothing_of_its_photos(what, plain, races, tmp_path):
    work, before = plain
    (own, _), _ = cross_fit_halves(work)
    rows = np.flatnonzero(np.isin(work.folds, own))
    if what == "labels":
        labels = work.labels.copy()
        labels[rows] = (labels[rows] + np.arange(len(rows)) % 2 + 1) % 3
        changed = replace(work, labels=labels)
    else:
        changed_folder = colours(tmp_path / "photos", groups=9, each=1)
        for path in work.photos.table["path"].iloc[rows]:
            noise = np.random.default_rng(len(path)).integers(0, 256, (64, 48, 3)).astype(np.uint8)
            Image.fromarray(noise).save(changed_folder / path, quality=95)
        seen = work_of(work.recipe.replace(**{"source.path": str(changed_folder)}), tmp_path / "work")
        changed = replace(work, photos=seen.photos, looks=seen.looks)
        assert (changed.looks.keys[rows] != work.looks.keys[rows]).any(1).all()
    after = races(changed)
    for name, probabilities in before[0].items():
        np.testing.assert_allclose(after[0][name], probabilities, atol=1e-7, err_msg=name)
    # The change is no small one: what is chosen for the other folds is learnt from it.
    assert any(np.abs(after[1][name] - p).max() > 1e-3 for name, p in before[1].items())


def test_each_half_follows_what_the_other_half_shows(tmp_path):
    """Fold 0 holds photos whose classes differ in brightness, which the frozen network tells; folds 1 and 2 hold hues,
    which it does not see: so training is chosen for fold 0, and the probe for the two others.
    """
    source = hues(tmp_path / "photos")
    weights = colour_blind(tmp_path / "blind.safetensors")
    recipe = auto_recipe(source, weights=str(weights), recommend__candidates=["full"], **LEARNS)
    for place in sorted(source.glob("*/*.png")):
        group = int(place.stem[2:4])
        if group % 3 == 0:
            noise = np.random.default_rng([group, len(place.parent.name)]).integers(0, 40, (64, 64, 3))
            level = {"red": 20, "green": 100, "blue": 180}[place.parent.name]
            Image.fromarray((noise + level).astype(np.uint8)).save(place)
    work = work_of(recipe, tmp_path / "work")
    folds = np.array([int(path.split("_")[0][-2:]) % 3 for path in work.photos.table["path"]])
    voice = Says()
    work = replace(work, recipe=recipe, folds=folds, reporter=voice)
    with trained_here():
        choice = choose_strategies(work)
    assert [changes["strategy"] for changes in choice.changes] == ["full", "probe", "probe"]
    told = choice.evidence["recommendation"]
    assert [(block["folds"], block["recommended"]) for block in told["blocks"]] == [((0,), "full"), ((1, 2), "probe")]
    assert any(line.startswith("Recommendation: ") and "full" in line and "probe" in line for line in voice.lines)
    # Labels of fold 0 turned round: what is chosen for fold 0 stays, and its tries are those that are kept.
    turned = work.labels.copy()
    turned[folds == 0] = np.random.default_rng(0).permutation(turned[folds == 0])
    with trained_here() as done:
        again = choose_strategies(replace(work, labels=turned, reporter=Reporter()))
    assert again.changes[0] == {"strategy": "full"}
    assert all(np.isin(folds[job.train], [0]).all() for job in done)


@pytest.mark.parametrize(
    ("backbone", "size", "side"),
    [
        ("timm/resnet10t", 224, 64),
        ("torchvision/inception_v3", 224, 75),
        ("timm/resnet10t", 32, 32),
    ],
)
def test_a_network_from_nothing_is_tried_on_the_smallest_images_that_it_takes(backbone, size, side):
    changes = {"backbone": backbone, "weights": "none", "image.size": size, "recommend.candidates": ["scratch"]}
    found, left_out = strategy_candidates(Recipe().replace(**changes), 96)
    assert left_out == []
    assert found[-1].tried["image.size"] == side
