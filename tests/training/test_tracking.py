"""Rows reach MLflow, TensorBoard and functions, once each; a tracker that fails ends no fit."""

from __future__ import annotations

import json
import sys

import pytest

import unfreeze as uf
from commandline import run_cli
from finetuning import Says, colours, make_recipe, no_processes, options
from photosets import GROUP_REGEX
from unfreeze.core.errors import MissingExtraError, RecipeError
from unfreeze.core.runs import read_log


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("tracked") / "colours")


def fit(source, folder, track, **more):
    recipe = make_recipe("partial", source)
    says = Says()
    with no_processes():
        run = uf.fit(uf.read(source, recipe.source), recipe, folder, track=track, reporter=says, **more)
    return run, says


def test_all_three_hear_every_row_once(source, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    heard: list[dict] = []
    run, _ = fit(source, tmp_path / "run", ["mlflow", "tensorboard", heard.append])
    rows = read_log(run.path)
    assert heard[:-1] == rows
    assert heard[-1]["macro_f1"] == run.scores()["macro_f1"]["value"]

    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    mine = [row for row in rows if row["fold"] == 0]
    assert [e.step for e in events.Scalars("fold-0/train_loss")] == [row["epoch"] for row in mine]
    assert events.Scalars("out_of_fold/macro_f1")[0].value == pytest.approx(heard[-1]["macro_f1"])

    client = mlflow.MlflowClient()
    number = json.loads((run.path / "tracking.json").read_text())["mlflow"]
    found = client.get_run(number)
    assert found.info.status == "FINISHED"
    assert found.data.params["train.epochs"] == "2"
    assert found.data.metrics["macro_f1"] == pytest.approx(heard[-1]["macro_f1"])
    history = client.get_metric_history(number, "fold-1/train_loss")
    assert [m.step for m in history] == [row["epoch"] for row in rows if row["fold"] == 1]
    assert {a.path for a in client.list_artifacts(number)} == {"scores.json", "recipe.toml"}

    # --force clears what trackers left, and nothing else.
    (run.path / "tensorboard" / "mine.txt").write_text("kept")
    again, _ = fit(source, run.path, [], force=True)
    assert [p.name for p in (again.path / "tensorboard").iterdir()] == ["mine.txt"]
    assert not (again.path / "tracking.json").exists()


def test_a_listener_that_fails_ends_no_fit(source, tmp_path):
    def broken(row):
        raise OSError("no server there\nmore")

    heard: list[dict] = []
    run, says = fit(source, tmp_path / "run", [broken, heard.append])
    assert len(heard) == len(read_log(run.path)) + 1
    assert [line for line in says.lines if "Tracking" in line] == [
        "Tracking with broken stopped (no server there); the fit continues."
    ]


def test_unknown_and_missing_are_reported_before_any_work(source, tmp_path, monkeypatch):
    recipe = make_recipe("probe", source)
    photos = uf.read(source, recipe.source)
    with pytest.raises(RecipeError, match="Did you mean 'mlflow'"):
        uf.fit(photos, recipe, tmp_path / "run", track=["mlflo"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install"):
        uf.fit(photos, recipe, tmp_path / "run", track=["mlflow"])
    assert not (tmp_path / "run").exists()


def test_a_probe_by_the_command(source, tmp_path):
    pytest.importorskip("tensorboard")
    changes = make_recipe_changes()
    answer = run_cli(
        "fit", source, "--strategy", "probe", "--run", tmp_path / "run", "--group-regex", GROUP_REGEX,
        "--track", "tensorboard", *options(changes),
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    wrong = run_cli("fit", source, "--strategy", "probe", "--run", tmp_path / "other", "--track", "excel")
    assert wrong.code == 2
    assert "known are mlflow, tensorboard" in wrong.complaint


def make_recipe_changes():
    from finetuning import SETTINGS

    return {k: v for k, v in SETTINGS.items() if k != "source.group_regex"}
