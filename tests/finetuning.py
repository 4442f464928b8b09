"""Small runs of the strategies that train a network: tiny networks, untrained, 64 px."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unfreeze as uf
from photosets import GROUP_REGEX, class_folders
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run
from unfreeze.training.fine_tune import fold_job

# timm's network for tests: a stem and four stages, 0.5 million weights.
NETWORK = "timm/test_resnet"
SETTINGS: dict[str, Any] = {
    "backbone": NETWORK,
    "weights": "none",
    "engine": "torch",
    "image.size": 64,
    "folds.n_splits": 3,
    "probe.stages": "last:2",
    "probe.pool_size": 2,
    "probe.Cs": [1.0, 30.0],
    "train.epochs": 2,
    "train.memory_format": "contiguous",
    "train.precision": "f32",
    "train.micro_batch": 16,
    "source.group_regex": GROUP_REGEX,
}


def make_recipe(strategy: str, source: Path | str = "", **changes: Any) -> Recipe:
    """Keys of `train` are given as `train__epochs=1`."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return Recipe().replace(**{**SETTINGS, "strategy": strategy, "source.path": str(source), **dotted})


def options(recipe_changes: dict[str, Any]) -> list[str]:
    """The same as options of the command line."""
    import json

    out: list[str] = []
    for key, value in recipe_changes.items():
        out += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return out


class Says(Reporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@contextmanager
def no_processes() -> Iterator[list[fold_job.FoldJob]]:
    """Folds are trained here, one after the other; the value is filled with their jobs."""
    done: list[fold_job.FoldJob] = []

    def train_folds(
        todo: list[fold_job.FoldJob], folder: Path, reporter: Reporter, seconds: float = 0.0
    ) -> dict[int, Any]:
        from unfreeze.training.fine_tune.launcher import _log

        found = {}
        for job in todo:
            place = folder / "scratch" / f"fold-{job.fold}"
            job.write(place)
            again = fold_job.FoldJob.read(place)
            assert again.identity() == job.identity()
            kept = folder / f"fold-{job.fold}" / "model.safetensors"
            fold_job.run_fold_job(again, place, kept, lambda row, fold=job.fold: _log(folder, fold, row), reporter)  # type: ignore[misc]
            found[job.fold] = np.load(place / "probabilities.npy")
            done.append(job)
        return found

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("unfreeze.training.fine_tune.strategy.train_folds", train_folds)
            yield done
    finally:
        torch.set_num_threads(before)


def fit_here(source: Path, run: Path, strategy: str, reporter: Reporter | None = None, **changes: Any) -> Run:
    """A run of the photos in `source` without processes of its own."""
    recipe = make_recipe(strategy, source, **changes)
    with no_processes():
        return uf.fit(uf.read(source, recipe.source), recipe, run, reporter=reporter)


def colours(folder: Path, groups: int = 6, each: int = 2) -> Path:
    """Photos of three colors; by default 36 in 18 groups."""
    return class_folders(folder, groups=groups, each=each)
