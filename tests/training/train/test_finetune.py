"""Folds in processes of their own: taken as they are when finished, and stopped together when one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unfreeze as uf
from finetuning import Says, colours, fit_here, make_recipe, no_processes
from unfreeze.core.errors import BackboneError, EngineError, PhotoError, RecipeError, UnfreezeError
from unfreeze.core.runs import read_log
from unfreeze.training.fine_tune import launcher
from unfreeze.training.fine_tune.launcher import _log, _Worker, train_folds


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("photos") / "colours")


@pytest.fixture(scope="module")
def todo(source, tmp_path_factory):
    """Jobs of a run from nothing, whose pixels and plan are in the cache."""
    recipe = make_recipe("scratch", source)
    with no_processes() as done:
        uf.fit(uf.read(source, recipe.source), recipe, tmp_path_factory.mktemp("runs") / "run")
    return done


class Fake:
    """Answers for a worker process: `script` is a list of lines, or what to do."""

    def __init__(self, monkeypatch, do):
        self.given, self.stopped = [], threading.Event()
        outer = self

        class Worker:
            def __init__(self, threads, workers, processes=1, number=0):
                self.threads = threads

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def stop(self):
                outer.stopped.set()

            def do(self, place, kept, tell, reporter):
                outer.given.append(place.name)
                do(outer, place, tell, reporter)
                np.save(place / "probabilities.npy", np.zeros((1, 3)))

        monkeypatch.setattr(launcher, "_Worker", Worker)
        monkeypatch.setattr(launcher, "cores", lambda: 2)


def test_an_error_of_one_fold_ends_the_others_at_once(todo, tmp_path, monkeypatch):
    def do(fake, place, tell, reporter):
        if place.name == "fold-1":
            raise RecipeError("no number")
        assert fake.stopped.wait(20)  # as a process that is killed
        raise EngineError("killed")

    fake = Fake(monkeypatch, do)
    began = time.monotonic()
    with pytest.raises(RecipeError, match="no number"):
        train_folds(todo, tmp_path, Says())
    assert time.monotonic() - began < 10 and sorted(fake.given) == ["fold-0", "fold-1"]


def test_an_interruption_stops_workers_at_once(todo, tmp_path, monkeypatch):
    def do(fake, place, tell, reporter):
        assert fake.stopped.wait(20)
        raise EngineError("killed")

    fake = Fake(monkeypatch, do)

    monkeypatch.setattr(launcher, "Queue", _Interrupting)
    with pytest.raises(KeyboardInterrupt):
        train_folds(todo, tmp_path, Says())
    assert fake.stopped.is_set()


class _Interrupting:
    def __class_getitem__(cls, _):
        return cls

    def get(self, timeout=None):
        time.sleep(0.2)
        raise KeyboardInterrupt

    def put(self, _):
        pass


def test_lines_of_several_folds_are_said_once(todo, tmp_path, monkeypatch):
    Fake(monkeypatch, lambda fake, place, tell, reporter: reporter.say("Plan: f32"))
    says = Says()
    assert set(train_folds(todo, tmp_path, says)) == {0, 1, 2}
    assert says.lines == ["Plan: f32"]


def test_a_budget_is_shared_by_the_rounds_of_folds(todo, tmp_path, monkeypatch):
    ends = {}

    def do(fake, place, tell, reporter):
        ends[place.name] = json.loads((place / "job.json").read_text())["ends"] - time.time()

    Fake(monkeypatch, do)
    train_folds(todo, tmp_path / "a", Says(), 100.0)
    # Three folds, two at a time: the first has half of the time, the last what is left.
    assert 40 < ends["fold-0"] < 51 and 90 < max(ends.values()) <= 100
    train_folds(todo, tmp_path / "b", Says())
    assert all(json.loads((tmp_path / f"b/scratch/fold-{k}/job.json").read_text())["ends"] == 0 for k in range(3))


def test_a_finished_fold_is_taken_as_it_is(source, todo, tmp_path, monkeypatch):
    run = fit_here(source, tmp_path / "run", "scratch")
    rows = {job.fold: len(job.out) for job in todo}
    for job in todo:
        place = tmp_path / "run" / "scratch" / f"fold-{job.fold}"
        place.mkdir(parents=True)
        np.save(place / "probabilities.npy", np.full((rows[job.fold], 3), 0.5))
    fake = Fake(monkeypatch, lambda *_: None)
    same = [replace(job, recipe=job.recipe) for job in todo]
    found = train_folds(same, run.path, Says())
    assert not fake.given and all((found[k] == 0.5).all() for k in range(3))
    other = [replace(job, settings=job.settings.model_copy(update={"lr": 0.5})) for job in todo]
    train_folds([other[0], *same[1:]], run.path, Says())
    assert fake.given == ["fold-0"]
    fake.given.clear()
    (run.path / "fold-2" / "model.safetensors").write_bytes(b"cut off")
    train_folds(same[1:], run.path, Says())
    assert fake.given == ["fold-2"]


def test_a_fold_that_is_resumed_reports_its_rows_again(tmp_path):
    for epoch in (1, 2, 3):
        _log(tmp_path, 0, {"epoch": epoch, "train_loss": 1.0})
        _log(tmp_path, 1, {"epoch": epoch, "train_loss": 1.0})
    _log(tmp_path, 0, {"epoch": 1, "train_loss": 2.0})
    found = [(r["fold"], r["epoch"], r["train_loss"]) for r in read_log(tmp_path)]
    assert found == [(0, 1, 2.0), (1, 1, 1.0), (1, 2, 1.0), (1, 3, 1.0)]


# --- processes -------------------------------------------------------------------------------------------------------


def script(monkeypatch, text):
    """Worker processes that run `text` in place of training."""
    was = subprocess.Popen
    monkeypatch.setattr(launcher.subprocess, "Popen", lambda command, **more: was([sys.executable, "-c", text], **more))


def outcome(tmp_path, rows=None):
    says = Says()
    with _Worker(1, 1) as worker:
        worker.do(tmp_path / "fold-0", tmp_path / "m", (rows if rows is not None else []).append, says)
    return says.lines


def test_a_process_answers_in_lines(tmp_path, monkeypatch):
    script(
        monkeypatch,
        "import json,sys; sys.stdin.readline(); print('noise'); print('[1]'); print(json.dumps({'say': 'a line'}));"
        "print(json.dumps({'row': {'epoch': 1}})); print(json.dumps({'done': 'x'}), flush=True); sys.stdin.read()",
    )
    rows: list[dict] = []
    assert outcome(tmp_path, rows) == ["a line"] and rows == [{"epoch": 1}]


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("raise ValueError('shapes differ')", r"ValueError: shapes differ\)\.$"),
        (
            "os.kill(os.getpid(), 9)",
            r"killed by SIGKILL, most often because memory ran out\); run the same command to continue",
        ),
        ("os.kill(os.getpid(), 11)", r"killed by SIGSEGV\); run the same command to continue"),
        ("os._exit(3)", r"exit code 3\)\.$"),
    ],
)
def test_a_process_that_ends_early_says_why(ending, why, tmp_path, monkeypatch):
    script(monkeypatch, f"import os,sys; sys.stdin.readline()\n{ending}")
    with pytest.raises(EngineError, match=rf"fold-0: its training process ended \({why}"):
        outcome(tmp_path)


@pytest.mark.parametrize("kind", [BackboneError, RecipeError])
def test_an_error_of_ours_comes_through_as_itself(kind, tmp_path, monkeypatch):
    script(
        monkeypatch,
        f"import json,sys; sys.stdin.readline(); print(json.dumps({{'error': '{kind.__name__}', 'text': 'why'}}))",
    )
    with pytest.raises(kind, match=r"^why$"):
        outcome(tmp_path)


@pytest.mark.parametrize("name", ["PhotoError", "Strange"])
def test_any_error_is_one_line(name, tmp_path, monkeypatch):
    assert issubclass(PhotoError, UnfreezeError)
    script(
        monkeypatch, f"import json,sys; sys.stdin.readline(); print(json.dumps({{'error': '{name}', 'text': 'why'}}))"
    )
    with pytest.raises(UnfreezeError, match=r"^why$"):
        outcome(tmp_path)


def test_a_worker_ends_when_no_parent_is_left(todo, tmp_path):
    """Standard input closes as when the parent is killed: in the middle of training, and before it begins."""
    place = tmp_path / "fold-0"
    replace(todo[0], settings=todo[0].settings.model_copy(update={"epochs": 10_000})).write(place)
    idle, busy = (
        subprocess.Popen(
            [sys.executable, "-m", "unfreeze.training.fine_tune.worker", "1", "2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    )
    assert idle.stdin and busy.stdin and busy.stdout
    idle.stdin.close()
    busy.stdin.write(os.fsencode(f"{place}\t{Path(tmp_path) / 'model'}\n"))
    busy.stdin.flush()
    for line in busy.stdout:
        if b'"row"' in line:
            break
    busy.stdin.close()
    assert busy.wait(10) == 1
    assert idle.wait(60) == 0
    busy.stdout.close()
    assert not (tmp_path / "model").exists() and (place / "training" / "checkpoint.json").exists()


def test_an_error_that_would_come_again_is_one_line_without_that_recommendation(todo, tmp_path):
    """In the worker itself: what no one has foreseen."""
    job = replace(todo[0], labels=todo[0].labels[:3])
    with pytest.raises(EngineError, match=r"^fold-0: training failed \(IndexError: .*\)\.$") as caught:
        train_folds([job], tmp_path, Says())
    assert "same command" not in str(caught.value)
    assert "\n" not in str(caught.value)
