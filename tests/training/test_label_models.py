"""Runs by `labels.model`, end to end: what each leaves, predicts and scores, and that joint is what it was."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

import unfreeze as uf
from attributesets import LABELS, two_attributes
from finetuning import colours, fit_here, make_recipe
from unfreeze.core.dataset import label_columns
from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import from_dict
from unfreeze.data.decode import load_crop
from unfreeze.exporters.graph import ExportPlan, build_export_module, metadata
from unfreeze.metrics.label_columns import marginalize
from unfreeze.reports.run_report import write_report
from unfreeze.training.linear_probe.heads import LinearHead

CHANGES = {key.replace(".", "__"): value for key, value in LABELS.items()} | {"source__group_regex": ""}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 photos to learn from and 12 to test on: three colors, dark or bright."""
    return two_attributes(tmp_path_factory.mktemp("photos"), groups=5, tests=1)


@pytest.fixture(scope="module")
def runs(table, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    fit = {m: fit_here(table, place / m, "probe", labels__model=m, **CHANGES) for m in ("joint", "parts", "both")}
    return fit | {"plain": fit_here(table, place / "plain", "probe", **CHANGES)}


def told(run, table=None):
    table = run.predictions() if table is None else table
    return table.filter(like="p_").to_numpy()


def test_joint_is_what_a_recipe_without_the_key_does_bit_for_bit(runs):
    names = ["oof.parquet", "test.parquet", "photos.parquet", *(f"fold-{k}/head.safetensors" for k in range(3))]
    for name in names:
        assert (runs["joint"].path / name).read_bytes() == (runs["plain"].path / name).read_bytes()
    old = runs["plain"].recipe.model_dump(mode="json")
    old.pop("labels")  # a recipe written before there was the key
    assert from_dict(old) == runs["joint"].recipe
    assert not (runs["joint"].path / "fold-0" / "parts.safetensors").exists()


def test_both_is_the_mean_of_joint_and_parts(runs):
    joint, parts, both = (told(runs[m]) for m in ("joint", "parts", "both"))
    np.testing.assert_allclose(both, (joint + parts) / 2, atol=1e-12)
    assert not np.allclose(joint, parts) and np.allclose(parts.sum(1), 1)
    beside = runs["both"].scores()["components"]
    assert beside["joint"]["log_loss"] == runs["joint"].scores()["out_of_fold"]["log_loss"]
    assert beside["parts"]["log_loss"] == runs["parts"].scores()["log_loss"]


def test_each_part_has_its_penalty(runs):
    fold = runs["parts"].scores()["folds"][0]
    assert set(fold["strengths"]) == {"colour", "light"} and set(fold["strengths"].values()) <= {1.0, 30.0}
    assert "strengths" not in runs["joint"].scores()["folds"][0]


@pytest.mark.parametrize("model", ["parts", "both"])
def test_the_run_predicts_new_photos_as_it_predicted_the_test_split(runs, table, model):
    run = runs[model]
    photos = run.photos()
    test = photos[photos["split"] == "test"]
    again = uf.load(run).predict([table.parent / path for path in test["path"]])
    assert [c for c in again if c.startswith("p_")] == [f"p_{name}" for name in run.classes]
    kept = pd.read_parquet(run.path / "test.parquet")
    np.testing.assert_allclose(told(run, again), told(run, kept), atol=1e-5)


@pytest.mark.parametrize("model", ["joint", "parts", "both"])
def test_scores_list_each_part_whatever_was_learnt(runs, model):
    run = runs[model]
    parts = run.scores()["parts"]
    oof = run.predictions()
    assert list(parts) == ["colour", "light"] and json.dumps(parts)
    found = uf.read(run.recipe.source.path, run.recipe.source)
    light = label_columns(found)[1]
    truth = light.of(np.array([run.classes.index(name) for name in oof["label"]]))
    right = float((marginalize(told(run), light).argmax(1) == truth).mean())
    assert parts["light"]["accuracy"]["value"] == pytest.approx(right)
    assert {row["class"] for row in parts["light"]["per_class"]} == {"dark", "bright"}
    assert parts["light"]["if_right"]["macro_f1"]["value"] >= run.scores()["macro_f1"]["value"]


def test_the_report_says_which_part_costs_most(runs, tmp_path):
    page = write_report(runs["both"].path).read_text()
    assert '<section id="parts">' in page and "Macro F1 gained if a part were always right" in page
    assert page.index('id="parts"') < page.index('id="classes"')


@pytest.mark.parametrize("model", ["parts", "both"])
def test_what_is_exported_and_explained_is_what_predicts(runs, table, model):
    classifier = uf.load(runs[model])
    photo = table.parent / "red-dark-0-0.jpg"
    expected = told(None, classifier.predict([photo]))
    plan = ExportPlan.of(classifier, None)
    (frame,) = plan.frames()
    pixels = load_crop(photo.read_bytes(), frame.size, frame.crop, 10**8, photo, frame.resample, frame.squash)
    with torch.inference_mode():
        found = build_export_module(plan)(torch.from_numpy(pixels[None].copy())).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert "mean of 3 folds" in metadata(classifier, plan)["output"]
    (why,) = uf.explain(classifier, photo).photos
    cells = [np.sum(block["classes"][why.label]) + block["whole"][why.label] for block in why.maps]
    assert why.logits[why.label] == pytest.approx(why.base[why.label] + sum(cells), abs=1e-3)


def test_a_run_cut_off_goes_on_to_the_same_end(runs, table, tmp_path):
    run = fit_here(table, tmp_path / "run", "probe", labels__model="both", **CHANGES)
    kept = (run.path / "fold-1" / "parts.safetensors").read_bytes()
    (run.path / "fold-1" / "parts.safetensors").unlink()
    (run.path / "fold-2" / "head.safetensors").unlink()
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(info | {"status": "running"}))
    again = fit_here(table, tmp_path / "run", "probe", labels__model="both", **CHANGES)
    assert (again.path / "fold-1" / "parts.safetensors").read_bytes() == kept
    assert (again.path / "oof.parquet").read_bytes() == (runs["both"].path / "oof.parquet").read_bytes()


def test_corrections_change_the_parts_as_well(runs, table, tmp_path):
    photos = runs["parts"].photos()
    rows = photos[(photos["label"] == "red, dark") & (photos["split"] == "train")]
    row = rows.iloc[0]
    file = tmp_path / "corrections.csv"
    lines = [
        "path,hash,action,label,timestamp",
        f'{row.path},{row["hash"]},relabel,"green, bright",2026-01-01T00:00:00',
    ]
    file.write_text("\n".join(lines) + "\n")
    changes = {**CHANGES, "source__corrections": str(file), "labels__model": "parts"}
    run = fit_here(table, tmp_path / "run", "probe", **changes)
    scores = run.scores()
    assert scores["corrections"]["relabel"] == 1 and list(scores["parts"]) == ["colour", "light"]
    assert scores["corrections"]["before"]["macro_f1"]["value"] > 0.5
    support = {c["class"]: c["support"] for c in scores["parts"]["colour"]["per_class"]}
    assert support == {"red": 19, "green": 21, "blue": 20}


def test_a_network_keeps_the_parts_heads_and_trains_before_them(runs, table, tmp_path):
    changes = {**CHANGES, "labels__model": "parts", "train__epochs": 1, "folds__n_splits": 2, "train__augment": "flip"}
    run = fit_here(table, tmp_path / "run", "partial", **changes)
    scores = run.scores()
    head, _ = LinearHead.load(run.path / "fold-0" / "head.safetensors")
    kept = load_file(run.path / "fold-0" / "model.safetensors")["head.weight"]
    assert len(head.strengths) == 2
    np.testing.assert_allclose(kept, head.weight.T, rtol=1e-5)
    assert scores["components"]["probe"]["log_loss"]["value"] != scores["log_loss"]["value"]
    assert list(scores["parts"]) == ["colour", "light"]
    files = [table.parent / path for path in run.predictions()["path"][:3]]
    assert uf.load(run).predict(files)["error"].tolist() == [""] * 3


@pytest.mark.parametrize(
    ("strategy", "changes", "says"),
    [
        ("partial", {"labels.model": "both"}, "would take two networks"),
        ("full", {"labels.model": "both"}, "would take two networks"),
        ("scratch", {"labels.model": "parts"}, "its head would train"),
        ("full", {"labels.model": "parts", "train.head_lr_mult": 1.0}, "its head would train"),
        ("partial", {"labels.model": "parts", "train.head": "classifier"}, "its head would train"),
    ],
)
def test_networks_refuse_what_they_cannot_learn_in_one_line(table, tmp_path, strategy, changes, says):
    recipe = make_recipe(strategy, table, **CHANGES).replace(**changes)
    with pytest.raises(RecipeError, match=says) as error:
        uf.fit(uf.read(table, recipe.source), recipe, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_one_label_column_has_no_parts_and_is_refused(tmp_path):
    source = colours(tmp_path / "photos", groups=4)
    with pytest.raises(RecipeError, match="needs two or more label columns"):
        fit_here(source, tmp_path / "run", "probe", labels__model="parts")
    assert not (tmp_path / "run").exists()
    run = fit_here(source, tmp_path / "run", "probe")
    assert "parts" not in run.scores() and 'id="parts"' not in write_report(run.path).read_text()
