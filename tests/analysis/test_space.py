"""What may be searched: the grammar of --space, and the usual spaces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import unfreeze as uf
from finetuning import NETWORK, make_recipe
from photosets import GROUP_REGEX, class_folders
from unfreeze.analysis.tuning.space import _FIXED, SPACES, Dimension, changes_of, parse_dimension, space_of
from unfreeze.core.errors import BackboneError, RecipeError
from unfreeze.core.recipe import Recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    source = class_folders(tmp_path_factory.mktemp("space") / "photos", groups=3, each=1)
    return uf.read(source, Recipe().replace(**{"source.group_regex": GROUP_REGEX}).source)


def test_ranges_and_values():
    assert parse_dimension("train.lr=1e-3..1e-2 log") == Dimension("train.lr", 1e-3, 1e-2, True)
    assert parse_dimension(" balance.class_weight_power = 0 .. 1.0 ") == Dimension(
        "balance.class_weight_power", 0.0, 1.0
    )
    whole = parse_dimension("train.epochs=3..12")
    assert whole == Dimension("train.epochs", 3, 12) and isinstance(whole.low, int)
    assert parse_dimension("probe.pool_size=1,2,3").values == (1, 2, 3)
    assert parse_dimension("image.squash=true,false").values == (True, False)
    assert parse_dimension('probe.views=["plain"],["plain","flip"]').values == (["plain"], ["plain", "flip"])
    assert parse_dimension("image.crop=0.875,face").values == (0.875, "face")


@pytest.mark.parametrize("written", [one for space in SPACES.values() for one in space] + ["a.b=true,false,x"])
def test_a_dimension_is_reported_as_it_is_written(written):
    one = parse_dimension(written)
    assert parse_dimension(one.describe()) == one


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("probe.pool_size", "write it as"),
        ("=1,2", "write it as"),
        ("probe.pool_size=", "write it as"),
        ("probe.pool_size=2", "a search needs two values"),
        ("probe.pool_size=2,2", "named twice"),
        ("probe.pool_size=3..1", "the lower end of a range"),
        ("train.lr=0..1e-2 log", "above 0"),
        ("train.lr=-1..1 log", "above 0"),
        ("probe.views=[1,2", "open at the end"),
        ("probe.pool_size=1,,2", "no value between two commas"),
        ("train.lr=2020-01-01,2021-01-01", "a date or a time"),
        ("strategy=probe,partial", "recommend"),
        ("probe.input_candidates=1,2", "is a search itself"),
        ("source.label=a,b", "selects the images"),
        ("source=1,2", "selects the images"),
        ("train.time_budget=1m,2m", "time"),
    ],
)
def test_what_is_no_dimension_is_refused(written, said):
    with pytest.raises(RecipeError, match=said):
        parse_dimension(written)


@pytest.mark.parametrize("key", _FIXED)
def test_what_would_make_scores_incomparable_is_fixed(key):
    with pytest.raises(RecipeError, match="a search cannot vary it"):
        parse_dimension(f"{key}=1,2")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            ["probe.pool_siz=1,2"],
            r"tune.search_space probe.pool_siz=1,2: recipe: unknown key 'probe.pool_siz'. Did you mean 'probe.pool_s",
        ),
        (["probe.pool_size=0,2"], "greater than or equal to 1"),
        (["probe.pool_size=1..99"], "less than or equal to 7"),
        (["image.color=rgb,grey"], "'rgb' or 'gray'"),
        (["probe.pool_size=1,2", "probe.pool_size=2,3"], "is named twice"),
        (["probe.stages=last,last:99"], "has 7 stages|stages"),
        (["train=1,2"], "tune.search_space train=1,2"),
        (["balance.extra_views=minority:1:roll,x:1:flip"], "roll|balance.extra_views"),
    ],
)
def test_every_end_and_value_is_checked_before_any_work(photos, space, said):
    with pytest.raises(RecipeError, match=said):
        space_of(make_recipe("probe", tune__search_space=space), photos)


def test_an_unknown_backbone_among_the_values_is_reported(photos):
    with pytest.raises(BackboneError, match=r"tune.search_space backbone=.*test_resnot"):
        space_of(make_recipe("probe", tune__search_space=[f"backbone={NETWORK},timm/test_resnot"]), photos)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "auto"}, "covers one strategy"),
        ({"probe__input_candidates": [{"size": 64}]}, "is a search itself"),
        ({"train__time_budget": "10m"}, "remove it"),
    ],
)
def test_recipes_that_cannot_be_searched(photos, changes, said):
    with pytest.raises(RecipeError, match=said):
        space_of(make_recipe("probe").replace(**{k.replace("__", "."): v for k, v in changes.items()}), photos)


@pytest.mark.parametrize("strategy", SPACES)
def test_the_usual_space_of_every_strategy_fits_its_default_recipe(photos, strategy):
    found = space_of(Recipe(strategy=strategy), photos)
    assert [one.describe() for one in found] == [parse_dimension(one).describe() for one in SPACES[strategy]]


def test_the_usual_space_leaves_alone_what_the_recipe_fixes(photos):
    keys = [one.key for one in space_of(Recipe().replace(strategy="probe", **{"image.size": 64}), photos)]
    assert "image.size" not in keys and "probe.pool_size" in keys
    fast = Recipe().replace(strategy="probe", **{"probe.pool_size": 1, "balance.loss": "ce"})
    keys = [one.key for one in space_of(fast, photos)]  # and what it does not take: ce has no weights
    assert "probe.pool_size" not in keys and "balance.class_weight_power" not in keys and "image.crop" in keys
    fixed = {"probe.pool_size": 1, "balance.class_weight_power": 0.2, "image.size": 64, "image.crop": 0.9}
    with pytest.raises(RecipeError, match="does not fit this recipe; define one with"):
        space_of(Recipe().replace(strategy="probe", **fixed), photos)


def test_changes_are_what_differs_from_the_recipe_given():
    space = tuple(
        map(
            parse_dimension,
            ("probe.pool_size=1,3", "balance.class_weight_power=0.0..1.0", 'probe.views=["plain"],["flip"]'),
        )
    )
    kept = {"probe.pool_size": "3", "balance.class_weight_power": 0.123456, "probe.views": '["plain"]', "gone": 1}
    assert changes_of(space, Recipe(), kept) == {"balance.class_weight_power": 0.123, "probe.views": ["plain"]}
    assert changes_of(space, Recipe(), {}) == {}


def test_a_rounded_value_stays_within_its_range():
    one = parse_dimension("train.val_fraction=0.12345..0.49999")
    assert one.value_of(0.12345) == 0.12345 and one.value_of(0.49999) == 0.49999 and one.value_of(0.234567) == 0.235


def test_the_usual_spaces_are_those_of_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "tune.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (`[^|]+`) \|$", page, flags=re.M))
    told = {strategy: tuple(re.findall(r"`([^`]+)`", cell)) for strategy, cell in rows.items()}
    assert {strategy: told[strategy] for strategy in SPACES} == SPACES
