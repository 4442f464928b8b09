"""Small fits by the command line, and whether two runs found the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from commandline import leftovers
from finetuning import SETTINGS, options

STRATEGIES = ("probe", "partial", "full", "scratch")
# Probes in `make test`, the trainings in `make soak`.
TRIED = ["probe", *(pytest.param(strategy, marks=pytest.mark.soak) for strategy in STRATEGIES[1:])]
Undisturbed = Callable[[str], Path]


def changes_of(strategy: str) -> dict[str, Any]:
    """What a strategy is tried with. A probe runs without torch; a training has it anyway, and needs no conversion."""
    if strategy == "probe":
        return {"engine": "openvino-f32"}
    return {"engine": "torch", **({"train__cached_views": 3} if strategy == "partial" else {})}


def fit_words(strategy: str, source: Path | str, run: Path | str, **changes: Any) -> list[str]:
    """`fit ...` of a tiny untrained network. changes: keys of the recipe with __ for the dot."""
    dotted = {key.replace("__", "."): value for key, value in {**changes_of(strategy), **changes}.items()}
    return ["fit", str(source), "--strategy", strategy, "--run", str(run), *options({**SETTINGS, **dotted})]


@contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """That folder is the cache, for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(folder))
        yield


def with_engines(place: Path, engines: Path, cache: str = "cache") -> Path:
    """The folder, with a cache in it that has the converted network and nothing else."""
    shutil.copytree(engines, place / cache)
    return place


def same_found(run: Path, other: Path) -> None:
    """Out-of-fold predictions, weights and scores are the same to the bit, and nothing half-written is left."""
    assert (run / "oof.parquet").read_bytes() == (other / "oof.parquet").read_bytes()
    files = sorted(p.relative_to(other) for p in other.glob("fold-*/*.safetensors"))
    assert files == sorted(p.relative_to(run) for p in run.glob("fold-*/*.safetensors"))
    for file in files:
        one, two = load_file(run / file), load_file(other / file)
        assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one), file
    assert json.loads((run / "scores.json").read_text()) == json.loads((other / "scores.json").read_text())
    assert not leftovers(run) and not (run / "scratch").exists()
