"""Runs against the first: planted differences are found, none is claimed where there is none, misfits are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

import unfreeze as uf
from comparedruns import CLASSES, table_of, told, write_run
from finetuning import Says, make_recipe, no_processes
from photosets import class_folders
from unfreeze.core.errors import RecipeError, RunError
from unfreeze.core.runs import list_runs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """48 photos of 24 groups; color alone tells the three classes."""
    return class_folders(tmp_path_factory.mktemp("photos") / "colours", groups=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "compare-colours"


@pytest.fixture(scope="module")
def colours(source, place):
    """Gray against rgb."""
    recipe = make_recipe("probe", source)
    photos = uf.read(source, recipe.source)
    return uf.compare(photos, uf.recipe_grid(recipe, {"image.color": ["rgb", "gray"]}), place)


def test_where_color_alone_separates_the_classes_gray_loses_and_that_is_reported(colours):
    rgb, gray = colours.contenders
    assert rgb.macro_f1.value > 0.95 and gray.macro_f1.value < rgb.macro_f1.value - 0.1
    assert gray.difference.high < 0 and gray.difference.significant and gray.losses == 3 and gray.wins == 0
    assert colours.sentence == gray.sentence and " points lower than rgb (95% interval [-" in gray.sentence
    assert gray.changes == {"image.color": "gray"} and colours.folds == 3 and not colours.notes
    assert (colours.photos, colours.groups, colours.best) == (48, 24, "gray")
    assert colours.chance.accuracy == pytest.approx(1 / 3) and json.dumps(colours.to_json())


def test_scores_are_those_of_the_runs_and_of_a_fit_alone(colours, source, place, tmp_path):
    for one in colours.contenders:
        run = uf.open_run(one.run)
        scores = run.scores()["out_of_fold"]
        assert Path(one.run) == place / one.name
        assert one.macro_f1.value == pytest.approx(scores["macro_f1"]["value"])
        assert one.accuracy.value == pytest.approx(scores["accuracy"]["value"])
        assert one.log_loss == pytest.approx(scores["log_loss"]["value"])
    recipe = uf.open_run(place / "gray").recipe
    alone = uf.fit(uf.read(source, recipe.source), recipe, tmp_path / "alone")
    assert (alone.path / "oof.parquet").read_bytes() == (place / "gray" / "oof.parquet").read_bytes()
    f1 = {row["class"]: row["f1"]["value"] for row in alone.scores()["out_of_fold"]["per_class"]}
    for row in colours.classes:
        assert row.best == pytest.approx(f1[row.name]) and row.photos == 16
        assert row.difference.value == pytest.approx(row.best - row.base)


def test_the_same_call_fits_nothing_again_and_a_value_that_joins_is_all_that_is_fitted(
    colours, source, place, monkeypatch
):
    recipe = make_recipe("probe", source)
    photos = uf.read(source, recipe.source)
    recipes = uf.recipe_grid(recipe, {"image.color": ["rgb", "gray"]})
    fitted = []
    from unfreeze.analysis import fit

    real = fit.cross_validate
    monkeypatch.setattr(
        fit, "cross_validate", lambda photos, one, *a, **k: fitted.append(one) or real(photos, one, *a, **k)
    )
    again = uf.compare(photos, recipes, place)
    assert not fitted and again.contenders == colours.contenders
    wider = uf.compare(photos, {**recipes, "one cell": recipe.replace(**{"probe.pool_size": 1})}, place)
    assert fitted == [recipe.replace(**{"probe.pool_size": 1})] and (place / "one-cell" / "run.json").is_file()
    assert wider.contenders[1].macro_f1 == colours.contenders[1].macro_f1
    assert {Path(row["run"]).name for row in list_runs(place.parent)} == {"rgb", "gray", "one-cell"}


def test_photos_are_looked_at_once_for_all_recipes(source, tmp_path, monkeypatch):
    from unfreeze.training import crossval

    looked = []
    real = crossval.run_checks
    monkeypatch.setattr(crossval, "run_checks", lambda *a: looked.append(1) or real(*a))
    recipe = make_recipe("probe", source)
    says = Says()
    photos = uf.read(source, recipe.source)
    uf.compare(
        photos,
        uf.recipe_grid(recipe, {"probe.pool_size": [1, 2], "image.color": ["rgb", "gray"]}),
        tmp_path,
        reporter=says,
    )
    assert len(looked) == 1 and len([line for line in says.lines if line.startswith("Fitting: ")]) == 4


def test_finished_runs_compare_as_they_did_when_they_were_fitted(colours, place):
    found = uf.compare([place / "rgb", uf.open_run(place / "gray")])
    assert [one.difference for one in found.contenders] == [one.difference for one in colours.contenders]
    assert found.sentence == colours.sentence and found.folder == ""
    turned = uf.compare([place / "gray", place / "rgb"])
    assert turned.contenders[1].sentence.startswith("rgb scores ") and turned.contenders[1].wins == 3


def test_the_run_with_the_highest_score_says_among_how_many_it_was_chosen(source, tmp_path):
    recipe = make_recipe("probe", source)
    photos = uf.read(source, recipe.source)
    recipes = uf.recipe_grid(recipe, {"image.color": ["rgb", "gray"]})
    found = uf.compare(photos, recipes, tmp_path / "runs")
    rgb, gray = tmp_path / "runs" / "rgb", tmp_path / "runs" / "gray"
    kept = json.loads((rgb / "selection.json").read_text())
    assert kept == {"by": "compare", "among": 2, "estimate": {"value": found.corrected}}
    assert found.highest == "rgb" and found.corrected <= found.contenders[0].macro_f1.value
    uf.compare([gray, rgb])  # finished runs are left as they are
    assert not (gray / "selection.json").exists()
    assert "selected this run among 2 recipes by macro F1 on these images" in uf.write_report(rgb).read_text()
    (rgb / "selection.json").write_text('{"among": "x", "estimate": null}')
    with pytest.raises(RunError, match="is damaged"):
        uf.write_report(rgb)


def test_a_fold_without_a_class_is_scored_on_the_others(tmp_path):
    """Fold 0 has no image of class red: one wrong "red" there costs less than three wrong "green"."""
    table = table_of()
    table.loc[(table["fold"] == 0) & (table["label"] == "red"), "label"] = "blue"
    blue = table.index[(table["fold"] == 0) & (table["label"] == "blue")]
    one, three = told(table, 1.0, 1), told(table, 1.0, 1)
    one[blue[0]], three[blue[:3]] = [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]
    found = uf.compare([write_run(tmp_path / "one", table, one), write_run(tmp_path / "three", table, three)])
    assert (found.contenders[1].wins, found.contenders[1].losses) == (0, 1)


def test_uneven_groups_count_as_fewer(tmp_path):
    table = table_of()
    table["unit"] = np.where(np.arange(120) < 60, 0, np.arange(120))
    table["fold"] = table["unit"] % 5
    found = uf.compare(two(tmp_path, table))
    assert found.groups == 61 and found.effective_groups == pytest.approx(120**2 / (60**2 + 60), abs=0.05)


def test_two_names_of_one_recipe_claim_no_difference(source, tmp_path):
    recipe = make_recipe("probe", source)
    photos = uf.read(source, recipe.source)
    found = uf.compare(photos, {"one": recipe, "other": recipe}, tmp_path / "runs")
    other = found.contenders[1]
    assert other.same and other.difference.value == 0 and not other.difference.significant
    assert (other.wins, other.losses) == (0, 0) and not any(row.difference.significant for row in found.classes)
    assert found.sentence == "other predicts the same class as one for every image."


def test_a_network_that_is_trained_is_resumed_after_it_was_cut_off(source, tmp_path):
    photos, recipe = (
        uf.read(source, make_recipe("partial", source).source),
        make_recipe("partial", source, train__epochs=1),
    )
    recipe = recipe.replace(**{"folds.n_splits": 2})
    recipes = {"probe": recipe.replace(strategy="probe"), "partial": recipe}
    with no_processes() as jobs:
        first = uf.compare(photos, recipes, tmp_path / "runs")
        assert len(jobs) == 2
        shutil.rmtree(tmp_path / "runs" / "partial" / "fold-1")
        state = json.loads((tmp_path / "runs" / "partial" / "run.json").read_text())
        (tmp_path / "runs" / "partial" / "run.json").write_text(json.dumps({**state, "status": "running"}))
        again = uf.compare(photos, recipes, tmp_path / "runs")
        assert first.contenders[1].macro_f1 == again.contenders[1].macro_f1
        assert uf.open_run(tmp_path / "runs" / "partial").info["status"] == "finished"


def test_what_cannot_be_fitted_or_stands_in_the_way_is_refused_before_any_work(source, place, colours, tmp_path):
    recipe = make_recipe("probe", source)
    photos = uf.read(source, recipe.source)
    says = Says()
    for changes, said in (({"probe.stages": "last:99"}, "last:99"), ({"balance.extra_views": "x:1:flip"}, "'x'")):
        with pytest.raises(RecipeError, match=said):
            uf.compare(photos, {"a": recipe, "b": recipe.replace(**changes)}, tmp_path / "none", reporter=says)
        assert not (tmp_path / "none").exists()
        assert not [line for line in says.lines if line.startswith("Fitting: ")]
    with pytest.raises(RunError, match="is a run itself"):
        uf.compare(photos, uf.recipe_grid(recipe, {"probe.pool_size": [1, 2]}), place / "rgb")
    with pytest.raises(RecipeError, match="name 2 to 24"):
        uf.compare(photos, {"a": recipe}, tmp_path / "none")
    with pytest.raises(RecipeError, match="not both"):
        uf.compare([place / "rgb"], {"a": recipe})


def test_runs_of_other_photos_are_not_taken_for_those_of_today(colours, source, place, tmp_path):
    less = tmp_path / "less"
    shutil.copytree(source, less)
    next((less / "red").iterdir()).unlink()
    recipe = make_recipe("probe", source)
    photos = uf.read(less, recipe.source)
    recipes = uf.recipe_grid(recipe, {"image.color": ["rgb", "gray"]})
    shutil.copytree(place, tmp_path / "runs")
    with pytest.raises(RunError, match="other images than are there now; force=True"):
        uf.compare(photos, recipes, tmp_path / "runs")
    assert uf.compare(photos, recipes, tmp_path / "runs", force=True).photos == 47


# Runs made of arrays.


def two(tmp_path, table=None, other=None, *, right=(0.8, 0.6), **changes):
    table = table_of() if table is None else table
    other = table if other is None else other
    one = write_run(tmp_path / "one", table, told(table, right[0], 1))
    return one, write_run(tmp_path / "two", other, told(other, right[1], 2), **changes)


def test_scores_are_scikit_learns(tmp_path):
    one, other = two(tmp_path)
    found = uf.compare([one, other])
    for run, row in zip((one, other), found.contenders, strict=True):
        oof = run.predictions()
        proba = oof.filter(like="p_").to_numpy()
        guess = np.array(CLASSES)[proba.argmax(1)]
        assert row.macro_f1.value == pytest.approx(f1_score(oof["label"], guess, average="macro"))
        assert row.accuracy.value == pytest.approx(accuracy_score(oof["label"], guess))
        assert row.log_loss == pytest.approx(log_loss(oof["label"], proba, labels=list(CLASSES)))
        assert row.seconds == 2.0
        folds = [f1_score(o["label"], guess[o.index], average="macro") for _, o in oof.groupby("fold")]
        if run is one:
            base = folds
    assert found.contenders[1].wins == sum(f > b for f, b in zip(folds, base, strict=True))
    assert found.contenders[1].difference.high < 0


def test_photos_are_matched_by_path_and_content_whatever_their_order(tmp_path):
    table = table_of()
    moved = table.sample(frac=1, random_state=0).reset_index(drop=True)
    moved["path"] = "elsewhere/" + moved["path"]
    answers = told(table, 0.7, 3)
    one = write_run(tmp_path / "one", table, answers)
    place = {content: i for i, content in enumerate(table["hash"])}
    same = write_run(tmp_path / "moved", moved, answers[[place[h] for h in moved["hash"]]])
    found = uf.compare([one, same])
    assert found.photos == 120 and found.contenders[1].same and not found.notes


def test_classes_in_another_order_are_the_same_classes(tmp_path):
    table, turned = table_of(), ("red", "blue", "green")
    answers = told(table, 0.7, 3)
    one = write_run(tmp_path / "one", table, answers)
    columns = [CLASSES.index(name) for name in turned]
    other = write_run(tmp_path / "two", table, answers[:, columns], classes=turned)
    assert uf.compare([one, other]).contenders[1].same


def test_copies_with_two_labels_are_matched_by_path(tmp_path):
    table = table_of()
    table.loc[1, "hash"] = table.loc[0, "hash"]
    table.loc[[0, 1], "label"] = ["red", "blue"]
    one, other = two(tmp_path, table)
    assert uf.compare([one, other]).photos == 120


def test_other_folds_seeds_groups_and_photos_are_said_and_still_compared(tmp_path):
    table = table_of()
    other = table.assign(fold=(table["unit"] + 1) // 2 % 5, unit=table["unit"] // 3).iloc[:100]
    one, two_ = two(tmp_path, table, other, seed=3)
    found = uf.compare([one, two_])
    assert found.photos == 100 and found.folds is None and found.contenders[1].wins is None
    assert found.groups == 17  # the wider groups
    said = " ".join(found.notes)
    assert "'two' was fitted on other folds than 'one'." in said and "'two' has seed 3, 'one' seed 0." in said
    assert (
        "'two' has other groups" in said
        and "100 photos that all have predicted; alone have predicted: 'one' 120" in said
    )


def test_other_labels_classes_and_too_few_photos_are_refused(tmp_path):
    table = table_of()
    relabelled = table.copy()
    relabelled.loc[5, "label"] = next(name for name in CLASSES if name != table.loc[5, "label"])
    one, other = two(tmp_path / "labels", table, relabelled)
    with pytest.raises(RunError, match=r"1 of 120 shared photos have another label.*0005.jpg"):
        uf.compare([one, other])
    fewer = table.assign(label=table["label"].replace("blue", "green"))
    third = write_run(tmp_path / "third", fewer, told(fewer, 0.7, 1, CLASSES[1:]), classes=CLASSES[1:])
    with pytest.raises(RunError, match=r"other classes than .*\(blue in one of them only\)"):
        uf.compare([one, third])
    apart = table_of().assign(
        hash=[f"{i + 110:032x}" for i in range(120)], path=[f"{i + 110:04d}.jpg" for i in range(120)]
    )
    apart["label"] = [*table["label"][110:], *table["label"][:110]]
    few = write_run(tmp_path / "few", apart, told(apart, 0.7, 1))
    with pytest.raises(RunError, match=r"share 10 photo\(s\) in 5 group\(s\).* needs 20"):
        uf.compare([one, few])
    with pytest.raises(RunError, match="two or more runs"):
        uf.compare([one])
    with pytest.raises(RunError, match="is given twice"):
        uf.compare([one, one.path])


def test_twenty_that_are_alike_in_truth_raise_no_alarm_and_one_that_is_better_is_found(tmp_path):
    """Each of 20 errs at the same rate as the first, on photos of its own. Uncorrected, most sets would claim one."""
    alarms = 0
    for draw in range(6):
        table = table_of(240, seed=draw)
        runs = [write_run(tmp_path / f"{draw}" / f"r{i}", table, told(table, 0.7, 100 * draw + i)) for i in range(21)]
        found = uf.compare(runs)
        alarms += any(one.difference.significant for one in found.contenders)
        if draw == 0:
            assert found.sentence.startswith("None of 20 recipes scores significantly higher than r0 (family-wise")
            assert found.corrected < found.named(found.highest).macro_f1.value - 0.01
            assert f"; {found.corrected:.3f} after correction for being chosen among 21" in found.sentence
            assert not any(row.difference.significant for row in found.classes)
            better = write_run(tmp_path / "0" / "better", table, told(table, 0.95, 99))
            wider = uf.compare([*runs, better])
            assert wider.best == "better" and wider.named("better").difference.low > 0
            said = "1 of 21 recipes scores significantly higher than r0 (family-wise error 5%): better."
            assert wider.sentence.startswith(said) and wider.highest == "better"
    assert alarms <= 1
