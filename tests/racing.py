"""Races whose networks train in this process, and sets on which one strategy is clearly the best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze as uf
from finetuning import NETWORK, make_recipe
from photosets import CLASSES
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.training.context import FitContext
from unfreeze.training.crossval import prepare
from unfreeze.training.fine_tune import launcher
from unfreeze.training.fine_tune.fold_job import FoldJob, run_fold_job

# One epoch, one penalty: a race of tiny networks takes a second or two.
QUICK: dict[str, Any] = {"train__epochs": 1, "probe__Cs": [1.0]}


@contextmanager
def trained_here(stop_after: int | None = None) -> Iterator[list[FoldJob]]:
    """Networks train here, one after the other; the value is filled with the jobs that were done.

    stop_after: the epoch, counted over all jobs, after which Ctrl-C is pressed.
    """
    done: list[FoldJob] = []
    epochs = 0

    def train_jobs(
        todo: list[tuple[FoldJob, Path]], reporter: Reporter, seconds: float = 0.0, **_: Any
    ) -> list[np.ndarray]:
        found = []
        for job, folder in todo:
            place, kept = folder / "scratch" / f"fold-{job.fold}", launcher.model_file(folder, job.fold)

            def tell(row: dict[str, Any], job: FoldJob = job, folder: Path = folder, kept: Path = kept) -> None:
                nonlocal epochs
                kept.parent.mkdir(parents=True, exist_ok=True)
                launcher._log(folder, job.fold, row)
                epochs += 1
                if epochs == stop_after:
                    raise KeyboardInterrupt

            if not launcher._finished(job, place, kept):
                job.write(place)
                run_fold_job(FoldJob.read(place), place, kept, tell, reporter)
                done.append(job)
            found.append(np.load(place / "probabilities.npy"))
        return found

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launcher, "train_jobs", train_jobs)
            yield done
    finally:
        torch.set_num_threads(before)


def auto_recipe(source: Path | str, **changes: Any) -> Recipe:
    """Strategy auto on the tiny network."""
    return make_recipe("auto", source, **{**QUICK, **changes})


def work_of(recipe: Recipe, folder: Path) -> FitContext:
    """The recipe's photos with their folds, as a race is given them."""
    return prepare(uf.read(recipe.source.path, recipe.source), recipe.replace(strategy="probe"), folder, Reporter(), {})


def hues(folder: Path, groups: int = 12, each: int = 2) -> Path:
    """Photos whose classes differ in hue alone: the sum of the three colors is noise, and the same in all classes."""
    for colour, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for group in range(groups):
            for photo in range(each):
                draw = np.random.default_rng([colour, group, photo])
                grey = draw.integers(70, 180, (16, 16, 1))
                tint = np.full(3, -30)
                tint[colour] = 60
                pixels = Image.fromarray((grey + tint).astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
                pixels.save(folder / name / f"g{colour}{group:02d}_{photo}.png")
    return folder


def colour_blind(path: Path, seed: int = 0) -> Path:
    """Weights of the tiny network that see the sum of the colors only: what its stages compute knows no hue."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    state = timm.create_model(NETWORK.removeprefix("timm/"), pretrained=False).state_dict()
    first = state["conv1.weight"] if "conv1.weight" in state else state["conv1.0.weight"]
    first[:] = first.mean(1, keepdim=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path
