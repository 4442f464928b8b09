"""Run folders: begun, resumed, finished, never lost and never taken for what they are not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import RunError, StorageError
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import (
    FORMAT,
    create_run,
    default_run_dir,
    finalize_run,
    list_runs,
    open_run,
    save_findings,
    save_table,
)

RECIPE = Recipe(strategy="probe")
OTHER = Recipe(strategy="probe", seed=1)


@pytest.fixture
def photos(tmp_path) -> ImageDataset:
    table = pd.DataFrame({"path": ["a", "b"], "label": ["x", "y"], "group": ["1", "2"], "split": "train"})
    return ImageDataset(table, tmp_path, ("x", "y"), (0, 1), ("label",), "table", "CSV")


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "runs" / "r"


HALF = {"value": 0.5, "low": 0.0, "high": 1.0}
SCORE = {
    "photos": 2,
    "groups": 2,
    "chance": {"class": "x", "accuracy": 0.5, "macro_f1": 0.5, "macro_f1_of": "shares"},
    "log_loss_clipped": 0,
    **dict.fromkeys(("macro_f1", "accuracy", "log_loss", "ece"), HALF),
    "per_class": [{"class": "x", "support": 1, "f1": HALF, "precision": HALF, "recall": HALF}],
}
HEADLINE = dict.fromkeys(("macro_f1", "accuracy", "log_loss"), HALF)


def predicted(photos):
    return photos.table.assign(fold=0, p_x=0.5, p_y=0.5)


def write(run, photos, recipe=RECIPE, force=False, done=True):
    with create_run(run, recipe, photos, "unfreeze fit x", force):
        (run / "fold-0").mkdir(exist_ok=True)
        (run / "fold-0" / "head.safetensors").write_bytes(b"head")
        if done:
            save_table(run / "oof.parquet", predicted(photos))
            (run / "scores.json").write_text(json.dumps({"out_of_fold": SCORE, **HEADLINE}))
            finalize_run(run)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_from_begin_to_finish(run, photos):
    write(run, photos)
    opened = open_run(run)
    assert opened.recipe == RECIPE
    assert opened.classes == ("x", "y")
    assert opened.info["answers"] == [0, 1]
    assert opened.scores()["out_of_fold"]["photos"] == 2
    assert opened.predictions().equals(predicted(photos))
    assert len(opened.head_files()) == RECIPE.folds.n_splits
    assert (opened.info["status"], opened.info["format"]) == ("finished", FORMAT)


def test_an_unfinished_run_goes_on_with_what_it_had(run, photos):
    write(run, photos, done=False)
    with pytest.raises(RunError, match=r"not finished; run its command again.*unfreeze fit x"):
        open_run(run)
    with create_run(run, RECIPE, photos, "", force=False):
        assert (run / "fold-0" / "head.safetensors").read_bytes() == b"head"


def test_refuses_a_finished_run(run, photos):
    write(run, photos)
    before = (run / "run.json").read_bytes()
    with pytest.raises(RunError, match="holds a finished run; force=True"):
        write(run, photos)
    assert (run / "run.json").read_bytes() == before


def test_refuses_an_unfinished_run_of_another_recipe(run, photos):
    write(run, photos, done=False)
    with pytest.raises(RunError, match="another recipe"):
        write(run, photos, OTHER)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "report.html", "recipe.toml", "fold-1/x", ".hidden"])
def test_refuses_a_folder_that_is_no_run(run, photos, force, name):
    """Also one whose files are called like ours: they may be somebody's."""
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("mine")
    with pytest.raises(RunError, match="is not a run"):
        write(run, photos, force=force)
    assert (run / name).read_text() == "mine"
    assert names(run) == [name.split("/")[0]]


def test_refuses_a_file(run, photos):
    run.parent.mkdir()
    run.touch()
    for force in (False, True):
        with pytest.raises(RunError, match="is a file"):
            write(run, photos, force=force)


def test_takes_an_empty_folder(run, photos):
    run.mkdir(parents=True)
    write(run, photos)
    assert open_run(run).recipe == RECIPE


def newer(run, **changes):
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | changes))


@pytest.mark.parametrize("format", [FORMAT + 1, "2.0"])
def test_refuses_a_newer_format(run, photos, format):
    write(run, photos)
    newer(run, format=format)
    for action in (lambda: open_run(run), lambda: write(run, photos)):
        with pytest.raises(RunError, match="newer unfreeze"):
            action()
    write(run, photos, force=True)
    open_run(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', '"x"', "\x00", "null"])
def test_damaged_run_json(run, photos, text):
    write(run, photos)
    (run / "run.json").write_text(text)
    for action in (lambda: open_run(run), lambda: write(run, photos)):
        with pytest.raises(RunError, match=r"run\.json.*force=True"):
            action()
    write(run, photos, force=True)
    open_run(run)


def test_run_json_that_lacks_something(run, photos):
    write(run, photos)
    (run / "run.json").write_text('{"format": 1, "status": "finished"}')
    with pytest.raises(RunError, match=r"damaged.*classes"):
        open_run(run)


@pytest.mark.parametrize("name", ["scores.json", "oof.parquet"])
def test_files_that_are_gone_or_damaged(run, photos, name):
    write(run, photos)
    opened = open_run(run)
    read = opened.scores if name == "scores.json" else opened.predictions
    (run / name).write_bytes(b"\xff damaged")
    with pytest.raises(RunError, match=rf"{name}: cannot be read"):
        read()
    (run / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: is missing"):
        read()


def test_no_such_run_names_its_neighbors(run, photos):
    write(run, photos)
    with pytest.raises(RunError, match=r"no such run folder\. Runs nearby: .*runs/r\."):
        open_run(run.parent / "q")
    with pytest.raises(RunError, match=r"is not a run.* Runs nearby: .*runs/r\."):
        open_run(run.parent)


def test_force_clears_its_own_files_and_no_other(run, photos):
    write(run, photos)
    for name in ("notes.txt", "submission.csv", "fold-notes/x", "fold-0/mine.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "fold-1").mkdir()
    (run / "fold-1" / "head.safetensors").write_bytes(b"old")
    with create_run(run, OTHER, photos, "", force=True):
        assert names(run) == [
            ".lock",
            "fold-0",
            "fold-notes",
            "notes.txt",
            "recipe.toml",
            "run.json",
            "submission.csv",
        ]
        assert names(run / "fold-0") == ["mine.txt"]


def test_killed_while_writing_its_very_first_files(run, photos):
    """write_whole cannot tidy up after a kill -9; the same command must go on all the same."""
    run.mkdir(parents=True)
    (run / ".lock").touch()
    (run / ".recipe.toml.0123abcd.tmp.toml").write_text("half")
    (run / "recipe.toml").write_text(RECIPE.to_toml())
    write(run, photos)
    assert not [name for name in names(run) if "tmp" in name]
    open_run(run)


def test_an_error_before_the_first_head_leaves_no_folder(run, photos):
    with pytest.raises(StorageError), create_run(run, RECIPE, photos, "", force=False):
        raise StorageError("x")
    assert not run.exists()


def test_errors_inside_are_not_blamed_on_the_folder(run, photos):
    with pytest.raises(PermissionError), create_run(run, RECIPE, photos, "", force=False):
        raise PermissionError(errno.EACCES, "some photo")


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="locks are flock")
def test_two_processes(run, photos):
    write(run, photos, done=False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        for force in (False, True):
            with pytest.raises(RunError, match="another process"):
                write(run, photos, force=force)
        assert (run / "fold-0" / "head.safetensors").read_bytes() == b"head"
        other.stdin.close()
        other.wait()
    write(run, photos)  # the lock dies with its process
    open_run(run)


def test_list_runs(run, photos, tmp_path):
    assert list_runs(tmp_path / "none") == []
    write(run, photos)
    write(run.parent / "open", photos, done=False)
    for name, text in (("bad", "{"), ("odd", "[]")):
        (run.parent / name).mkdir()
        (run.parent / name / "run.json").write_text(text)
    write(run.parent / "scoreless", photos)
    (run.parent / "scoreless" / "scores.json").write_text("[]")
    rows = {Path(row["run"]).name: row for row in list_runs(run.parent)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "r": "finished",
        "open": "running",
        "bad": "unreadable",
        "odd": "unreadable",
        "scoreless": "finished",
    }
    assert rows["r"]["macro_f1"] == HALF
    assert [row["run"] for row in list_runs(run)] == [str(run)]


def test_default_folder_is_the_same_for_the_same_command(tmp_path):
    recipe = RECIPE.replace(**{"source.path": str(tmp_path / "pets")})
    assert default_run_dir(recipe) == default_run_dir(recipe)
    assert default_run_dir(recipe).name.startswith("pets-probe-")
    assert default_run_dir(recipe.replace(strategy="auto")).name.startswith("pets-auto-")
    assert default_run_dir(recipe) != default_run_dir(recipe.replace(seed=1))


def test_findings(tmp_path):
    save_findings(tmp_path, (Finding("a", "info", "m", "f"), Finding("b", "error", "m", "f")))
    assert [row["check"] for row in json.loads((tmp_path / "findings.json").read_text())] == ["b", "a"]
    save_findings(tmp_path, ())
    assert json.loads((tmp_path / "findings.json").read_text()) == []
