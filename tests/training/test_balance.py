"""What each word makes of counts: weights that sum as they should, and rows that are added where they may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import Recipe, from_dict, parse_overrides
from unfreeze.core.recipe_schema import Balance, ExtraViews
from unfreeze.features.extra_samples import ExtraSamples, select_extra_samples
from unfreeze.features.views import MIRRORED, apply_view, check_view
from unfreeze.training.class_balance import (
    ResolvedBalance,
    check_balance,
    expected_draws,
    log_prior,
    resolve_balance,
    sample_weights,
)

COUNTS = (60, 15, 5)
LABELS = np.repeat([0, 1, 2], COUNTS)
UNITS = np.arange(80) % 20


def weights(**words):
    return sample_weights(LABELS, UNITS, 3, resolve_balance(Balance(**words)), 0)


def shares(**words):
    """What all rows of each class weigh together."""
    return np.bincount(LABELS, weights=weights(**words)[0])


@pytest.mark.parametrize("sampling", ["none", "over", "under", "sqrt"])
@pytest.mark.parametrize("loss", ["", "ce", "weighted", "focal", "logit-adjusted"])
def test_weights_sum_to_one_and_rows_of_a_class_weigh_alike(sampling, loss):
    found, drawn, counts = weights(sampling=sampling, loss=loss)
    assert found.sum() == pytest.approx(1) and (found >= 0).all() and counts.sum() == pytest.approx(drawn)
    for c in range(3):
        assert len({round(w, 12) for w in found[c == LABELS] if w}) == 1


def test_none_is_no_class_weights_at_all():
    found, drawn, counts = weights(sampling="none", loss="ce")
    assert (found == 1 / 80).all() and drawn == 80 and counts.tolist() == list(COUNTS)


def test_class_shares_are_what_the_words_say():
    roots = np.sqrt(COUNTS)
    for words in ({"sampling": "over"}, {"loss": "weighted"}, {"sampling": "under"}):
        assert shares(**words) == pytest.approx([1 / 3] * 3)
    for words in ({}, {"sampling": "sqrt"}, {"loss": "weighted", "class_weight_power": 0.5}):
        assert shares(**words) == pytest.approx(roots / roots.sum())
    assert shares(loss="focal") == pytest.approx(np.array(COUNTS) / 80)


def test_rows_drawn():
    assert weights(sampling="over")[1:][0] == pytest.approx(180)
    assert weights(sampling="sqrt")[1] == pytest.approx(80)
    assert weights(sampling="under")[1] == 15


def test_sampling_and_weights_do_not_correct_the_same_thing_twice():
    assert shares(sampling="over", loss="weighted") == pytest.approx([1 / 3] * 3)
    prior = log_prior(weights(sampling="over", loss="logit-adjusted")[2])
    assert prior == pytest.approx(np.log([1 / 3] * 3), abs=1e-6)
    assert resolve_balance(Balance(sampling="over")) == ResolvedBalance("over", "ce", 0.0)
    assert resolve_balance(Balance(), from_probe=False) == ResolvedBalance("none", "ce", 0.0)
    assert resolve_balance(Balance()) == ResolvedBalance()


def test_under_keeps_as_many_groups_as_it_can():
    labels = np.array([0] * 40 + [1] * 8)
    units = np.array([g for g in range(8) for _ in range(5)] + list(range(8)))
    for seed in range(5):
        times = expected_draws(labels, units, "under", seed)
        kept = np.flatnonzero(times)
        assert np.bincount(labels[kept]).tolist() == [8, 8] and len(set(units[kept[:8]])) == 8
    assert (expected_draws(labels, units, "under", 0) != expected_draws(labels, units, "under", 1)).any()


@pytest.mark.parametrize(
    "text",
    [
        "balance.extra_views=wrong:3:rotate-10,rotate+10",
        'balance.extra_views=["wrong:3:rotate-10,rotate+10"]',
        'balance.extra_views=[{label="wrong", per_group=3, views=["rotate-10", "rotate+10"]}]',
    ],
)
def test_rows_to_add_are_one_thing_however_they_are_written(text):
    recipe = Recipe().replace(**parse_overrides([text]))
    assert recipe.balance.extra_views == (ExtraViews(label="wrong", per_group=3, views=("rotate-10", "rotate+10")),)
    import tomllib

    assert from_dict(tomllib.loads(recipe.to_toml())) == recipe
    check_balance(recipe)


@pytest.mark.parametrize("view", ["rotate", "rotate+0", "rotate+181", "flip+3", "crop+10", "blur+1", "rotate 10", ""])
def test_a_view_that_is_none_is_refused(view):
    with pytest.raises(RecipeError, match=r"balance\.extra_views"):
        check_view(view)


def photos(seed=0):
    """200 photos of three classes in 40 groups of five; every fifth group is in no fold."""
    draw = np.random.default_rng(seed)
    units = np.arange(200) // 5
    labels = draw.choice(3, 200, p=[0.7, 0.2, 0.1]).astype(np.int64)
    folds = np.where(units % 5 == 4, -1, units % 4)
    return labels, units, folds, draw.integers(0, 2**63, (200, 2), dtype=np.uint64)


def chosen(add, table, seed=0, names=("worn", "wrong", "none at all")):
    return select_extra_samples(Recipe(seed=seed, balance=Balance(extra_views=add)), names, *table)


@pytest.mark.parametrize("add", ["wrong:3:rotate-10,rotate+10", "minority:1:flip", "*:2:crop-10", "w*:0:flip,crop-5"])
@pytest.mark.parametrize("seed", range(4))
def test_added_rows_are_of_their_persons_fold_class_and_group(add, seed):
    table = photos(seed)
    labels, units, folds, _ = table
    added = chosen(add, table, seed)
    assert len(added) and (folds[added.photo] >= 0).all()
    for column in (labels, units, folds):
        assert np.array_equal(added.extended(column)[200:], column[added.photo])
    assert len({*zip(added.photo.tolist(), added.view.tolist(), strict=True)}) == len(added)
    entry = Recipe(balance=Balance(extra_views=add)).balance.extra_views[0]
    if entry.per_group:
        for view in range(len(added.views)):
            pairs = [(units[p], labels[p]) for p in added.of(view)]
            assert max(pairs.count(pair) for pair in set(pairs)) <= entry.per_group


def test_photos_are_chosen_by_seed_and_content_not_by_order():
    table = photos()
    first = chosen("*:1:flip", table)
    order = np.random.default_rng(5).permutation(200)
    again = chosen("*:1:flip", tuple(column[order] for column in table))
    assert sorted(order[again.photo].tolist()) == sorted(first.photo.tolist())
    assert set(chosen("*:1:flip", table, seed=1).photo.tolist()) != set(first.photo.tolist())


def test_minority_and_names():
    table = photos()
    counts = np.bincount(table[0][table[2] >= 0])
    assert set(table[0][chosen("minority:0:flip", table).photo]) == {int(counts.argmin())}
    assert set(table[0][chosen("none at all:0:flip", table).photo]) == {2}
    with pytest.raises(RecipeError, match=r"no class is called 'wron'.*Did you mean 'wrong'"):
        chosen("wron:0:flip", table)
    assert len(chosen((), table)) == 0 and np.array_equal(ExtraSamples().extended(table[0]), table[0])


def test_views_show_what_their_names_say():
    grid = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    grid[:, :, 16, 24] = 255  # right of the middle
    for view, place in {"rotate+90": (8, 16), "rotate-90": (24, 16), "flip": (16, 8)}.items():
        shown = apply_view(grid, view)
        assert shown.shape == grid.shape and divmod(int(shown[0, 0].argmax()), 33) == place
    assert torch.equal(apply_view(grid, "rotate+90" + MIRRORED), apply_view(grid, "rotate+90").flip(-1))
    flat = torch.full((2, 3, 40, 40), 100, dtype=torch.uint8)
    for view in ("rotate+10", "rotate-30", "crop-10"):  # no dark corners
        assert (apply_view(flat, view).int() - 100).abs().max() <= 1
    assert (apply_view(flat, "brightness+20").int() - 120).abs().max() <= 1
    ramp = torch.arange(40, dtype=torch.uint8).mul(6).expand(1, 3, 40, 40)
    wider = apply_view(ramp, "crop-50")[0, 0, 20]
    assert int(wider[0]) == pytest.approx(int(ramp[0, 0, 0, 10]), abs=6) and wider[-1] < ramp[0, 0, 0, -9]
