"""Grids of recipes and files of named ones: what they make, and what they refuse before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

import unfreeze as uf
from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe_grid import changes_between, compare_folder, folder_names, parse_vary, read_recipes

PROBE = uf.Recipe(strategy="probe")


def test_a_key_makes_a_recipe_for_each_value_and_nothing_else_changes():
    found = uf.recipe_grid(PROBE, {"image.color": ["rgb", "gray"]})
    assert list(found) == ["rgb", "gray"] and found["rgb"] == PROBE
    assert found["gray"] == PROBE.replace(**{"image.color": "gray"})
    assert changes_between(found["rgb"], found["gray"]) == {"image.color": "gray"}


def test_several_keys_make_a_grid_whose_names_include_both():
    found = uf.recipe_grid(PROBE, {"image.color": ["rgb", "gray"], "probe.pool_size": [1, 3]})
    assert list(found) == [
        "color=rgb pool_size=1",
        "color=rgb pool_size=3",
        "color=gray pool_size=1",
        "color=gray pool_size=3",
    ]
    assert found["color=gray pool_size=1"].probe.pool_size == 1
    clash = uf.recipe_grid(PROBE, {"tune.budget": ["1m", "2m"], "recommend.budget": ["1m", "2m"]})
    assert "tune.budget=2m recommend.budget=2m" in clash


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("image.color=rgb,gray", ["rgb", "gray"]),
        ("probe.pool_size=1, 2 ,3", [1, 2, 3]),
        ("image.squash=true,false", [True, False]),
        ("""balance.extra_views="minority:3:rotate-10,rotate+10",[]""", ["minority:3:rotate-10,rotate+10", []]),
        ("""probe.views=["plain"],["plain","flip"]""", [["plain"], ["plain", "flip"]]),
        ("train.trainable='',last:2", ["", "last:2"]),
        ("train.lr=0.001,1e-2", [0.001, 0.01]),
        ("weights=/a b/it's.pth", None),
    ],
)
def test_values_are_read_as_by_set_and_cut_at_commas_outside_quotes(text, values):
    if values is None:
        with pytest.raises(RecipeError, match="quote or bracket is open"):
            parse_vary([text])
        return
    key = text.partition("=")[0]
    assert parse_vary([text]) == {key: values}


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["image.colour=rgb,gray"], r"unknown key 'image.colour'.*image.color"),
        (["image.color=rgb,grey"], r"image.color = 'grey'"),
        (["folds.n_splits=5,1"], r"folds.n_splits = 1"),
        (["image.color=gray"], "at least two values are required"),
        (["image.color=gray,gray"], "named twice"),
        (["image.color"], "write it as key=value,value"),
        (["image.color="], "write it as key=value,value"),
        (["probe.pool_size=1,,2"], "no value between two commas"),
        (["probe.pool_size=1,2", "probe.pool_size=3,4"], "given twice"),
        (["source.label=a,b"], "recipes are compared on the same images"),
        (["probe.pool_size=1,2,3,4,5", "seed=0,1,2,3,4"], r"5 x 5 = 25 recipes are more than 24"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(assignments, said):
    with pytest.raises(RecipeError, match=said) as error:
        uf.recipe_grid(PROBE, parse_vary(assignments))
    assert "\n" not in str(error.value)


def test_a_file_names_recipes_by_what_they_change(tmp_path: Path):
    file = tmp_path / "recipes.toml"
    file.write_text(
        '[colour]\n[gray]\nimage.color = "gray"\n["two blocks"]\nprobe = {stages = "last:2", pool_size = 2}\n'
    )
    found = read_recipes(file, PROBE)
    assert list(found) == ["colour", "gray", "two blocks"] and found["colour"] == PROBE
    assert (found["two blocks"].probe.stages, found["two blocks"].probe.pool_size) == ("last:2", 2)
    assert found["two blocks"].probe.views == PROBE.probe.views


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = 1\n[a]\n[b]\n", "'seed' is outside of a table"),
        ("[a]\n", r"holds 1 recipe\(s\)"),
        ("[a]\n[b]\n", r"\[b\] is the same recipe as \[a\]"),
        ('[a]\n[b]\nimage.colr = "gray"\n', r"\[b\]: recipe: unknown key 'image.colr'.*image.color"),
        ("[a]\n[b]\nsource.split = 'x'\n", "changes which images are read"),
        ("[a\n", "not valid TOML"),
        ("".join(f"[r{i}]\nseed = {i}\n" for i in range(25)), r"holds 25 recipe\(s\); a comparison takes 2 to 24"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        read_recipes(tmp_path / "r.toml", PROBE)
    with pytest.raises(RecipeError, match="no such file"):
        read_recipes(tmp_path / "none.toml", PROBE)


def test_folders_bear_the_names_as_far_as_a_file_system_takes_them():
    names = ["gray", "Gray", "../up", "a/b", "''", "x" * 200, "grün 1=2,3"]
    recipes = {name: PROBE.replace(seed=i) for i, name in enumerate(names)}
    found = folder_names(recipes)
    assert found["gray"] == "gray" and found["grün 1=2,3"] == "grün-1=2,3"
    assert len({name.casefold() for name in found.values()}) == len(names)
    assert all("/" not in name and not name.startswith(".") and len(name) < 80 for name in found.values())


def test_a_value_that_joins_later_finds_the_others_and_another_question_does_not():
    base = PROBE.replace(**{"source.path": "photos"})
    two = compare_folder(uf.recipe_grid(base, {"probe.pool_size": [1, 2]}))
    assert two.parent == Path("runs") and two.name.startswith("compare-photos-")
    assert compare_folder(uf.recipe_grid(base, {"probe.pool_size": [1, 2, 3]})) == two
    assert compare_folder(uf.recipe_grid(base, {"probe.stages": ["last", "last:2"]})) != two
    assert compare_folder(uf.recipe_grid(base.replace(seed=1), {"probe.pool_size": [1, 2]})) != two
