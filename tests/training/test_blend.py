"""Several runs answer together: weights, class order, what cannot be blended, votes of groups."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from attributesets import LABELS, two_attributes
from finetuning import colours, fit_here, make_recipe
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import RunError, SourceError
from unfreeze.inference.ensemble import Ensemble, parse_run_spec
from unfreeze.inference.group_voting import GroupConstantLabels
from unfreeze.inference.predictor import Classifier


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("blend")


@pytest.fixture(scope="module")
def source(place):
    return colours(place / "colours")


@pytest.fixture(scope="module")
def runs(source, place):
    """Two runs of the same photos on other features and folds. Not to be changed."""
    first = fit_here(source, place / "first", "probe")
    return [first, fit_here(source, place / "second", "probe", seed=1, probe__views=["plain"])]


def test_a_blend_is_the_weighted_mean(runs, source):
    blend = uf.load(runs)
    assert isinstance(blend, Ensemble)
    assert blend.weights.sum() == pytest.approx(1)
    photos = sorted(source.rglob("*.jpg"))[:5]
    columns = probability_columns(runs[0].classes)
    each = [uf.load(run).predict(photos)[columns].to_numpy() for run in runs]
    found = blend.predict(photos)
    assert np.allclose(found[columns], np.tensordot(blend.weights, each, 1))
    assert list(found.columns) == ["path", "label", *columns, "error"]
    assert found["label"].tolist() == [runs[0].classes[i] for i in found[columns].to_numpy().argmax(1)]


def test_named_with_a_plus(runs, place, monkeypatch):
    text = f"{runs[0].path}+{runs[1].path}"
    assert [p.name for p in parse_run_spec(text)] == ["first", "second"]
    assert isinstance(uf.load(text), Ensemble)
    assert isinstance(uf.load(str(runs[0].path)), Classifier)
    odd = place / "a+b"
    odd.mkdir(exist_ok=True)
    assert parse_run_spec(odd) == [odd]  # a folder of that name is no blend
    with pytest.raises(SourceError, match="RUN\\+RUN"):
        parse_run_spec("first+")


def copied(run, folder):
    shutil.copytree(run.path, folder)
    return folder


def test_class_order_is_held_to(runs, source, tmp_path):
    """A run whose classes stand in another order counts class by class."""
    other = copied(runs[1], tmp_path / "turned")
    info = json.loads((other / "run.json").read_text())
    order = info["classes"][::-1]
    table = pd.read_parquet(other / "oof.parquet")
    table = table[["path", "fold", "label", *probability_columns(order)]]
    table.to_parquet(other / "oof.parquet", index=False)
    info["classes"] = order
    (other / "run.json").write_text(json.dumps(info))
    from unfreeze.core.runs import open_run
    from unfreeze.inference.ensemble import AlignedPredictions

    straight, turned = AlignedPredictions.of(runs), AlignedPredictions.of([runs[0], open_run(other)])
    assert np.array_equal(straight.probas[1], turned.probas[1])
    # The heads' own file says another order than run.json now: that is refused, not guessed.
    with pytest.raises(RunError, match="order"):
        Ensemble.load([runs[0], open_run(other)])


def test_what_cannot_be_blended(runs, source, tmp_path, place):
    with pytest.raises(RunError, match="each named once"):
        Ensemble.load([runs[0], runs[0]])
    other = fit_here(two_colours(tmp_path / "two", source), tmp_path / "two-run", "probe")
    with pytest.raises(RunError, match="only one of them has"):
        Ensemble.load([runs[0], other])
    changed = copied(runs[1], tmp_path / "changed")
    table = pd.read_parquet(changed / "oof.parquet")
    table["label"] = np.roll(table["label"].to_numpy(), 7)
    table.to_parquet(changed / "oof.parquet", index=False)
    with pytest.raises(RunError, match="another label or content"):
        Ensemble.load([runs[0], changed])
    few = copied(runs[1], tmp_path / "few")
    table = pd.read_parquet(few / "oof.parquet").head(5)
    table.to_parquet(few / "oof.parquet", index=False)
    with pytest.raises(RunError, match="5 photos in common"):
        Ensemble.load([runs[0], few])


def two_colours(folder, source):
    shutil.copytree(source, folder)
    shutil.rmtree(folder / "blue")
    return folder


def test_a_photo_that_cannot_be_read(runs, source, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    table = uf.load(runs).predict([bad, next(iter(sorted(source.rglob("*.jpg"))))])
    assert table["error"].ne("").tolist() == [True, False]
    assert pd.isna(table["label"][0])
    assert np.isnan(table.loc[0, probability_columns(runs[0].classes)].to_numpy(float)).all()


@pytest.fixture(scope="module")
def plants(place):
    """A run of color and light; all photos of a plant have one color, in the dark and in bright light."""
    table = two_attributes(place / "plants", groups=8, each=2)
    named = pd.read_csv(table)
    named["plant"] = named["colour"] + named["file"].str.extract(r"-(\d+)-")[0]
    named.to_csv(table, index=False)
    recipe = make_recipe("probe", table, source__group_regex="").replace(**LABELS)
    return uf.fit(uf.read(table, recipe.source), recipe, place / "plants-run"), table


def test_groups_vote(plants):
    run, table = plants
    shared = GroupConstantLabels.of(run)
    assert shared.names == ("colour",)
    named = pd.read_csv(table)
    photos = [table.parent / f for f in named["file"]]
    found = uf.load(run).predict(photos, groups=named["plant"])
    columns = probability_columns(run.classes)
    proba = found[columns].to_numpy()
    colour = np.stack([proba[:, shared.of_class == value].sum(1) for value in range(3)], 1)
    for plant in named["plant"].unique():
        assert np.ptp(colour[named["plant"] == plant], axis=0).max() < 1e-9
    alone = uf.load(run).predict(photos)[columns].to_numpy()
    assert np.abs(alone - proba).max() > 1e-3
    with pytest.raises(SourceError, match="name one for each"):
        uf.load(run).predict(photos, groups=["a"])


def test_groups_that_share_nothing_do_not_vote(place, source):
    run = fit_here(source, place / "alone", "probe", source__group_regex="(?P<group>[^/]+)$")
    with pytest.raises(SourceError, match="nothing to vote on"):
        uf.load(run).predict(sorted(source.rglob("*.jpg"))[:4], groups=list("aabb"))
