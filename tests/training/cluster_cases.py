"""The same runs on a cluster of two workers: equal to those made here, whatever dies in the middle.

Collected by test_cluster.py, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

import unfreeze as uf
from finetuning import Says, colours, make_recipe
from unfreeze.core.errors import EngineError, MissingExtraError, RecipeError
from unfreeze.core.parallel import _variables, cluster, use_backend, validate_backend
from unfreeze.core.recipe import read_recipe
from unfreeze.core.runs import read_log
from unfreeze.features import extract

ray = pytest.importorskip("ray")
# On a busy machine a node may not answer for some seconds, which is no reason to declare it dead.
_PATIENT = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 20}
_HEAD = {"num_cpus": 1, "include_dashboard": False, "_system_config": _PATIENT}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("photos") / "colours", groups=6, each=3)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """A cluster of two nodes with a core each, on this machine; both see one cache."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(tmp_path_factory.mktemp("cluster") / "cache"))
        patch.setattr(extract, "_SHARD", 32)
        started = Cluster(initialize_head=True, head_node_args=_HEAD)
        started.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", started.address)
        try:
            with use_backend("ray"):
                yield cluster()
        finally:
            started.shutdown()


def fit(source, folder, strategy, reporter=None, **changes):
    recipe = make_recipe(strategy, source, **changes)
    return uf.fit(uf.read(source, recipe.source), recipe, folder, reporter=reporter)


def here(source, folder, strategy, **changes):
    """The same without the cluster, and with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(folder.parent / "own"))
        patch.setattr("unfreeze.core.parallel._joined", [])
        return fit(source, folder, strategy, **changes)


@pytest.mark.parametrize(
    "strategy", ["probe", *(pytest.param(one, marks=pytest.mark.soak) for one in ("partial", "full"))]
)
def test_a_run_equals_the_one_made_here(strategy, two_workers, source, tmp_path):
    assert two_workers.cpus == 2
    there, own = fit(source, tmp_path / "there", strategy), here(source, tmp_path / "here", strategy)
    # A worker has one core and this process all: on some processors features then differ in their last bits.
    pd.testing.assert_frame_equal(there.predictions(), own.predictions(), check_exact=False, rtol=0, atol=1e-4)
    same = ("epoch", "fold", "train_loss", "photos")
    rows = [[{key: row[key] for key in same} for row in read_log(run.path)] for run in (there, own)]
    assert rows[0] == rows[1] and bool(rows[0]) == (strategy != "probe")


def test_features_come_in_shards_from_other_processes(two_workers, source, tmp_path, monkeypatch):
    sent = []
    run = type(two_workers).run

    def seen(self, function, tasks, **more):
        sent.append((function, tasks))
        return run(self, function, tasks, **more)

    monkeypatch.setattr(type(two_workers), "run", seen)
    fit(source, tmp_path / "run", "probe", image__size=72)  # not seen before
    ((function, tasks),) = sent
    assert function is extract.compute_shard and [len(task.files) for task in tasks] == [32, 22]


def test_a_worker_that_is_killed_costs_nothing(two_workers, source, tmp_path):
    messages = tmp_path / "cut" / "scratch" / "fold-0" / "messages.jsonl"
    killed = []

    def kill():
        for _ in range(1200):
            if messages.exists() and messages.read_text().count('"row"') >= 2:
                running = {int(one.name) for one in Path("/proc").iterdir() if one.name.isdecimal()} - {os.getpid()}
                pids = [pid for pid in running if _has_open(pid, messages)]
                if pids:
                    os.kill(pids[0], signal.SIGKILL)
                    killed.append(pids[0])
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    says = Says()
    cut = fit(source, tmp_path / "cut", "scratch", says, train__epochs=30)
    killer.join()
    assert killed and any("Resuming training after epoch" in line for line in says.lines)
    whole = here(source, tmp_path / "whole", "scratch", train__epochs=30)
    pd.testing.assert_frame_equal(cut.predictions(), whole.predictions(), check_exact=True)


def _has_open(pid: int, file: Path) -> bool:
    try:
        return any(one.readlink() == file for one in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_compared_recipes_are_tasks_and_equal_those_made_here(two_workers, source, tmp_path):
    base = make_recipe("probe", source)
    recipes = uf.recipe_grid(base, {"image.color": ["rgb", "gray"], "probe.pool_size": [1, 2]})
    photos, says = uf.read(source, base.source), Says()
    there = uf.compare(photos, recipes, tmp_path / "there", reporter=says)
    assert sum(line.startswith("Fitting on the cluster: ") for line in says.lines) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfreeze.core.parallel._joined", [])
        own = uf.compare(photos, recipes, tmp_path / "own")
    assert len(there.contenders) == 4
    for one, other in zip(there.contenders, own.contenders, strict=True):
        pd.testing.assert_frame_equal(
            uf.open_run(one.run).predictions(), uf.open_run(other.run).predictions(), check_exact=True
        )
    again = uf.compare(photos, recipes, tmp_path / "there", reporter=(says := Says()))
    assert not any("Fitting" in line for line in says.lines)  # finished runs are taken as they are
    assert [one.macro_f1 for one in again.contenders] == [one.macro_f1 for one in there.contenders]


def test_errors_of_tasks_are_reported_as_our_own(two_workers, tmp_path):
    # Functions that a worker can import, as ours are.
    with pytest.raises(RecipeError, match=r"absent\.toml: no such recipe file\."):
        two_workers.run(read_recipe, [tmp_path / "absent.toml"])
    with pytest.raises(EngineError, match=r"a task on the cluster failed \(JSONDecodeError: .*\)\.$"):
        two_workers.run(json.loads, ["{"])


def test_names_are_checked_before_any_work(monkeypatch):
    with pytest.raises(RecipeError, match=r"engine\('dask'\): known are local, ray"):
        validate_backend("dask")
    monkeypatch.setattr("unfreeze.core.parallel.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'unfreeze\[ray\]'"):
        validate_backend("ray")
    before = cluster()
    with use_backend("local"):
        assert cluster() is before


def test_a_machine_with_a_cache_of_its_own_shares_it_by_url(two_workers, source, tmp_path, monkeypatch):
    """Last in this file, for it joins the cluster anew: its workers see another cache than this process does."""
    monkeypatch.setattr("unfreeze.core.parallel._joined", [])
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("UNFREEZE_SHARED_CACHE", (tmp_path / "shared").as_uri())
    there = {"UNFREEZE_CACHE": str(tmp_path / "theirs")}
    variables = _variables()
    assert variables["UNFREEZE_SHARED_CACHE"] == (tmp_path / "shared").as_uri()
    monkeypatch.setattr("unfreeze.core.parallel._variables", lambda: variables | there)
    ray.shutdown()
    with use_backend("ray"):
        run = fit(source, tmp_path / "run", "probe", image__size=88)
    stored = [
        {file.name for file in (tmp_path / one / "features").rglob("*.npy")} for one in ("mine", "theirs", "shared")
    ]
    assert stored[0] and stored[0] == stored[1] == stored[2]
    monkeypatch.delenv("UNFREEZE_SHARED_CACHE")
    own = here(source, tmp_path / "here", "probe", image__size=88)
    pd.testing.assert_frame_equal(run.predictions(), own.predictions(), check_exact=True)
