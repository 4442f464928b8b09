"""Several processes that train a fold together do what one process does: two on a CPU, joined by gloo."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

import unfreeze as uf
from finetuning import Says, colours, make_recipe, no_processes
from unfreeze.core.errors import EngineError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import read_log
from unfreeze.training.fine_tune import launcher
from unfreeze.training.fine_tune.distributed import ProcessGroup, init_process_group
from unfreeze.training.fine_tune.fold_job import FoldJob
from unfreeze.training.fine_tune.launcher import train_folds


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("photos") / "colours", groups=6, each=2)


def job_of(source, folder, strategy, **changes) -> FoldJob:
    """The job of fold 0, with what it reads in the cache."""
    recipe = make_recipe(strategy, source, **changes)
    with no_processes() as done:
        uf.fit(uf.read(source, recipe.source), recipe, folder)
    return done[0]


def together(job: FoldJob, processes: int) -> FoldJob:
    return replace(job, settings=job.settings.model_copy(update={"processes_per_fold": processes}))


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        # Held groups give metrics by epoch; batches of 7 do not halve; the last batch is smaller than the others.
        (
            "full",
            {"train__patience": 3, "train__batch_size": 7, "balance__sampling": "over", "train__mixup_alpha": 0.2},
        ),
        ("partial", {"train__batch_size": 16}),
    ],
)
def test_two_processes_end_where_one_does(strategy, changes, source, tmp_path):
    job = job_of(source, tmp_path / "run", strategy, **changes)
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        found[processes] = train_folds([together(job, processes)], folder, Reporter())[0]
    assert np.abs(found[1] - found[2]).max() < 1e-4
    assert not np.allclose(found[1], found[1].mean(0), atol=1e-3)  # it has learnt something that could differ
    one, two = (read_log(tmp_path / str(p)) for p in (1, 2))
    assert [row["epoch"] for row in one] == [row["epoch"] for row in two] != []  # told once, by the one that leads
    for a, b in zip(one, two, strict=True):
        assert a["photos"] == b["photos"]
        for name in ("train_loss", "valid_loss", "valid_macro_f1"):
            assert a[name] == b[name] if a[name] is None else abs(a[name] - b[name]) < 1e-4


def test_one_that_is_killed_ends_the_fold_in_a_line_and_the_same_command_goes_on(source, tmp_path, monkeypatch):
    job = together(job_of(source, tmp_path / "run", "full", train__epochs=40), 2)
    workers = []

    class Seen(launcher._Worker):
        def __init__(self, *args):
            super().__init__(*args)
            workers.append(self)

    monkeypatch.setattr(launcher, "_Worker", Seen)
    folder = tmp_path / "cut"

    def kill():
        for _ in range(3000):
            if workers and len(read_log(folder)) >= 1:
                workers[0].crew[1].kill()
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(EngineError, match=r"its training process ended \(killed by SIGKILL"):
            train_folds([job], folder, Reporter())
    finally:
        killer.join()
    assert all(process.poll() is not None for process in workers[0].crew)
    says = Says()
    again = train_folds([job], folder, says)[0]
    assert any("Resuming training after epoch" in line for line in says.lines)
    whole = train_folds([job], tmp_path / "whole", Reporter())[0]
    assert np.array_equal(again, whole)


def test_shares_cover_every_row_once_in_order():
    for size in (1, 2, 3, 7):
        for count in (0, 1, 2, 13, 64):
            rows = [list(range(count))[ProcessGroup(rank, size).share(count)] for rank in range(size)]
            assert list(chain(*rows)) == list(range(count))
            assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_alone_nothing_is_sent():
    crew = ProcessGroup()
    weight = torch.nn.Parameter(torch.ones(2))
    crew.sum_gradients([weight])
    assert weight.grad is None and crew.total(2.5) == crew.agreed(2.5) == 2.5
    assert crew.gathered(weight, 2) is weight


def test_who_waits_in_vain_says_so(monkeypatch, tmp_path):
    from datetime import timedelta

    from unfreeze.training.fine_tune import distributed as module

    monkeypatch.setattr(module, "_PATIENCE", timedelta(seconds=1))
    with (
        pytest.raises(EngineError, match=r"process 1 of 2 cannot join the others"),
        init_process_group(0, 2, tmp_path / "meeting"),
    ):
        pass
