"""How combined labels are learnt, compared by one command: figures as fits of them have, and plain words."""

from __future__ import annotations

import json

import pytest

import unfreeze as uf
from attributesets import LABELS, two_attributes
from commandline import run_cli
from finetuning import colours, fit_here, make_recipe
from unfreeze.core.errors import RecipeError

CHANGES = {key.replace(".", "__"): value for key, value in LABELS.items()} | {"source__group_regex": ""}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 photos: three colors, dark or bright."""
    return two_attributes(tmp_path_factory.mktemp("photos"), groups=5)


@pytest.fixture(scope="module")
def compared(table):
    recipe = make_recipe("probe", table, **CHANGES)
    return uf.compare_labels(uf.read(table, recipe.source), recipe)


def test_each_is_scored_as_a_fit_of_it_would_be(compared, table, tmp_path):
    assert [model.name for model in compared.models] == ["joint", "parts", "both"]
    assert compared.attributes == {"colour": ("blue", "green", "red"), "light": ("bright", "dark")}
    assert (compared.photos, compared.groups, compared.combinations) == (60, 30, 6) and compared.unseen == ()
    for model in compared.models:
        scores = fit_here(table, tmp_path / model.name, "probe", labels__model=model.name, **CHANGES).scores()
        out_of_fold = scores["out_of_fold"]
        assert model.macro_f1.value == pytest.approx(out_of_fold["macro_f1"]["value"])
        assert model.accuracy.value == pytest.approx(out_of_fold["accuracy"]["value"])
        assert model.log_loss == pytest.approx(out_of_fold["log_loss"]["value"])
        for name, figure in model.parts.items():
            assert figure.value == pytest.approx(scores["parts"][name]["macro_f1"]["value"])
        base = compared.models[0]
        assert model.difference.value == pytest.approx(model.macro_f1.value - base.macro_f1.value)
        assert model.difference.low <= model.difference.value <= model.difference.high
        gains = {n: figure.value - base.parts[n].value for n, figure in model.parts.items()}
        assert gains == pytest.approx({n: figure.value for n, figure in model.part_differences.items()})


def test_it_is_the_same_twice_and_leaves_nothing_behind(compared, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe("probe", table, **CHANGES)
    again = uf.compare_labels(uf.read(table, recipe.source), recipe)
    assert not list(tmp_path.iterdir())
    for one, other in zip(compared.models, again.models, strict=True):
        assert (one.macro_f1, one.log_loss, one.parts) == (other.macro_f1, other.log_loss, other.parts)
    assert compared.best.macro_f1.value == max(model.macro_f1.value for model in compared.models)


def test_the_command_says_it_and_gives_json(compared, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"backbone": "timm/test_resnet", "weights": "none", "engine": "torch", "image.size": 64}
    settings |= {"probe.stages": "last:2", "probe.pool_size": 2, "probe.Cs": "[1.0, 30.0]"}
    words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    options = ["--label", "colour", "--label", "light", "--group", "plant", "--folds", "3"]
    command = ["compare", table, "--preset", "labels", *options, *words]
    answer = run_cli(*command, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert [model["macro_f1"] for model in found["models"]] == [vars(m.macro_f1) for m in compared.models]
    plain = run_cli(*command)
    assert (
        plain.code == 0
        and "family-wise error 5%" in " ".join(plain.out.split())
        and compared.sentence[:30] in plain.out
    )
    assert "light alone" in plain.out
    assert plain.out.splitlines()[-1].endswith(f"--set labels.model={compared.best.name}")


def test_one_column_and_other_strategies_are_refused_in_one_line(table, tmp_path):
    recipe = make_recipe("partial", table, **CHANGES)
    with pytest.raises(RecipeError, match=r"compare with recipe\.replace\(strategy='probe'"):
        uf.compare_labels(uf.read(table, recipe.source), recipe)
    answer = run_cli("compare", colours(tmp_path / "photos", groups=3), "--preset", "labels")
    assert answer.code == 2 and "needs two or more label columns" in answer.complaint
