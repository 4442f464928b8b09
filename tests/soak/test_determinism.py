"""One seed gives one result: to the bit on as many threads, within a stated tolerance on others."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from killing import unfreeze
from smallruns import STRATEGIES, cached_in, fit_words, same_found

from commandline import run_cli

# Largest difference of an out-of-fold probability between runs on 1, 2 and 4 threads, as docs/training.md states it.
TOLERANCE = 1e-5


def fitted(strategy: str, photos: Path, place: Path, warm: Path | None = None) -> Path:
    """A run in a new cache. warm: a cache to begin from."""
    if warm:
        shutil.copytree(warm, place / "cache")
    with cached_in(place / "cache"):
        answer = run_cli(*fit_words(strategy, photos, place / "run"))
    assert answer.code == 0, answer.err
    return place / "run"


def probabilities(run: Path) -> np.ndarray:
    table = pd.read_parquet(run / "oof.parquet")
    return table[[name for name in table if name.startswith("p_")]].to_numpy()


@pytest.mark.parametrize(
    "strategy", ["probe", *(pytest.param(strategy, marks=pytest.mark.soak) for strategy in STRATEGIES[1:])]
)
def test_two_runs_of_one_seed_in_two_caches(strategy: str, photos: Path, engines: Path, tmp_path: Path) -> None:
    warm = engines if strategy == "probe" else None
    same_found(*(fitted(strategy, photos, tmp_path / name, warm) for name in "ab"))


@pytest.mark.soak
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_two_and_four_threads(strategy: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of each training process, of the frozen network in torch, and of the heads' linear algebra."""
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            # Three folds side by side on three times as many cores: so many threads each.
            for module in ("unfreeze.training.fine_tune.launcher", "unfreeze.training.linear_probe.heads"):
                monkeypatch.setattr(f"{module}.cores", lambda threads=threads: 3 * threads)
            torch.set_num_threads(threads)
            place = tmp_path / str(threads)
            with cached_in(place / "cache"):
                answer = run_cli(*fit_words(strategy, photos, place / "run", engine="torch"))
            assert answer.code == 0, answer.err
            runs.append(probabilities(place / "run"))
    finally:
        torch.set_num_threads(before)
    largest = max(np.abs(run - runs[0]).max() for run in runs)
    print(f"{strategy}: {largest:.2g}")
    assert largest < TOLERANCE


@pytest.mark.soak
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_one_core_and_all(photos: Path, engines: Path, tmp_path: Path) -> None:
    """As a container or a job queue gives them: OpenVINO, heads and folds take what there is."""
    runs = []
    for count in (1, len(os.sched_getaffinity(0))):
        place = tmp_path / str(count)
        shutil.copytree(engines, place / "cache")
        some = set(sorted(os.sched_getaffinity(0))[:count])
        ended = subprocess.run(
            unfreeze(*fit_words("probe", photos, place / "run")),
            env={**os.environ, "UNFREEZE_CACHE": str(place / "cache")},
            preexec_fn=lambda some=some: os.sched_setaffinity(0, some),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        runs.append(probabilities(place / "run"))
    largest = np.abs(runs[0] - runs[1]).max()
    print(f"cores: {largest:.2g}")
    assert largest < TOLERANCE
