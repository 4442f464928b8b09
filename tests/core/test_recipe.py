"""Recipes: frozen, complete, and clear about what is wrong with one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import PRESETS, Recipe, from_dict, parse_overrides, read_recipe

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(text, text, st.integers(2, 100), st.booleans(), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4))
def test_toml_round_trip(path, regex, folds, join, strengths):
    recipe = Recipe().replace(
        **{
            "source.path": path,
            "source.group_regex": regex,
            "source.label": ["a", path],
            "folds.n_splits": folds,
            "folds.group_duplicates": join,
            "probe.Cs": strengths,
        }
    )
    import tomllib

    assert from_dict(tomllib.loads(recipe.to_toml())) == recipe
    assert recipe.source.path == path
    assert recipe.probe.Cs == tuple(strengths)


def test_toml_is_complete():
    import tomllib

    values = tomllib.loads(Recipe().to_toml())
    assert values == Recipe().model_dump(mode="json")


def test_frozen():
    with pytest.raises(ValidationError):
        Recipe().seed = 1
    changed = Recipe().replace(seed=1, **{"image.size": 192})
    assert (changed.seed, changed.image.size) == (1, 192)
    assert (Recipe().seed, Recipe().image.size) == (0, 0)
    assert changed.replace(seed=0, **{"image.size": 0}) == Recipe()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image.sise": 1}, r"unknown key 'image\.sise'.*'image\.size'"),
        ({"sed": 1}, r"unknown key 'sed'.*'seed'"),
        ({"seed.x": 1}, r"unknown key 'seed\.x'"),
        ({"a.b.c": 1}, r"unknown key 'a\.b\.c'"),
        ({"": 1}, "unknown key ''"),
        ({"image.size": -1}, r"image\.size = -1"),
        ({"image.size": "big"}, r"image\.size = 'big'"),
        ({"folds.n_splits": 1}, r"folds\.n_splits = 1"),
        ({"probe.Cs": []}, r"probe\.Cs"),
        ({"probe.Cs": [1.0, 0.0]}, r"probe\.Cs\.1 = 0\.0"),
        ({"probe.Cs": [float("inf")]}, r"probe\.Cs\.0 = inf"),
        ({"image.max_megapixels": float("nan")}, r"image\.max_megapixels = nan"),
        ({"probe.views": ["upside-down"]}, r"probe\.views\.0"),
        ({"strategy": "magic"}, "strategy = 'magic'"),
        ({"image": 3}, "image = 3"),
    ],
)
def test_what_is_wrong_is_said(changes, said):
    with pytest.raises(RecipeError, match=said):
        Recipe().replace(**changes)


def test_unknown_key_in_a_file_suggests_the_nearest(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("[folds]\ncuont = 3\n")
    with pytest.raises(RecipeError, match=r"r\.toml: unknown key 'folds\.cuont'.*'folds\.n_splits'"):
        read_recipe(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"seed = ")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(bad)


def test_assignments():
    given = ["image.size=192", "source.group_regex=(?P<group>a=b)", "backbone=", " seed = 3", 'probe.views=["plain"]']
    assert parse_overrides(given) == {
        "image.size": 192,
        "source.group_regex": "(?P<group>a=b)",
        "backbone": "",
        "seed": 3,
        "probe.views": ["plain"],
    }
    for wrong in ("seed", "=3", ""):
        with pytest.raises(RecipeError, match="key=value"):
            parse_overrides([wrong])


@pytest.mark.parametrize("quality", PRESETS)
def test_qualities_are_recipes(quality):
    Recipe().replace(**PRESETS[quality])


def test_good_is_the_default():
    assert Recipe().replace(**PRESETS["good"]) == Recipe()
