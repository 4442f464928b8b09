"""Tries within the training data: a recipe is fitted on some photos and predicts others; what was tried is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from unfreeze.core.cache import cache_root, fingerprint
from unfreeze.core.files import write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import read_log
from unfreeze.learn.fitting import Rows, Work
from unfreeze.learn.probe.inputs import graphs_of
from unfreeze.learn.probe.probing import probe

# A new number makes everything be tried again.
_VERSION = 1


@dataclass(frozen=True)
class Trial:
    """A recipe with a strategy, and what it is tried on.

    folds: int64 (n,) of all photos: 0 is predicted, 1 and above is learnt from (of two numbers at least, between which
    penalties are chosen), -1 takes no part. Groups must not straddle them.
    """

    recipe: Recipe
    folds: Rows


@dataclass(frozen=True)
class Tried:
    """proba: float64 (n, C), NaN where nothing was predicted. seconds: what learning took, features from the cache.
    photos: learnt from."""

    proba: NDArray[np.float64]
    seconds: float
    photos: int


def try_out(work: Work, trials: Sequence[Trial], reporter: Reporter) -> list[Tried]:
    """Each trial's answer, in order. Networks train side by side, a core each.

    The same trial is never done twice: its answer is kept in the cache by its recipe and the photos' contents, labels
    and groups; an interrupted one goes on from its last epoch. Raises what fitting raises.
    """
    places = [cache_root() / "trials" / _identity(work, trial) for trial in trials]
    found = {place: _kept(place, work) for place in places}
    todo = {place: trial for place, trial in zip(places, trials, strict=True) if found[place] is None}
    networks: dict[Path, Work] = {}
    with reporter.bar("Trying probes", sum(t.recipe.strategy == "probe" for t in todo.values())) as advance:
        for place, trial in todo.items():
            inside = _inside(work, trial, place)
            if trial.recipe.strategy != "probe":
                networks[place] = inside
                continue
            started = perf_counter()
            outcome, _ = probe(inside)
            found[place] = _keep(place, inside, outcome.proba, perf_counter() - started)
            advance(1)
    if networks:
        with _alone(reporter):
            found |= _train(networks, reporter)
    return [tried for place in places if (tried := found[place]) is not None]


@contextmanager
def _alone(reporter: Reporter) -> Iterator[None]:
    """One process at a time: two that try the same would write the same files."""
    place = cache_root() / "trials"
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / ".lock")
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        reporter.say("Waiting for another process that is trying candidates.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train(networks: dict[Path, Work], reporter: Reporter) -> dict[Path, Tried]:
    from unfreeze.learn.train.finetune import train_jobs
    from unfreeze.learn.train.tuned_folds import gather, prepare

    prepared = {place: prepare(inside) for place, inside in networks.items()}
    jobs = [(p.jobs[0], networks[place].folder) for place, p in prepared.items()]
    answers = train_jobs(jobs, reporter, threads=1, what="Trying {count} network(s), {workers} at a time")
    found = {}
    for (place, inside), ready, answer in zip(networks.items(), prepared.values(), answers, strict=True):
        outcome = gather(inside, ready, {0: answer})
        seconds = sum(row["seconds"] for row in read_log(inside.folder))
        found[place] = _keep(place, inside, outcome.proba, seconds)
    return found


def _inside(work: Work, trial: Trial, place: Path) -> Work:
    """The work of a trial: its own folder and folds, one of which is predicted; silent."""
    folder = place.with_suffix(".work")
    return replace(
        work,
        recipe=trial.recipe,
        folds=trial.folds.copy(),
        folder=folder,
        reporter=Reporter(),
        spent={},
        failed=dict(work.failed),
        which=(0,),
        trial=True,
    )


def _identity(work: Work, trial: Trial) -> str:
    rows = np.flatnonzero(trial.folds >= 0)
    recipe = trial.recipe.model_dump(mode="json", exclude={"source", "folds", "advise"})
    if recipe["image"]["color"] == "rgb":  # as it was named before there was a choice
        del recipe["image"]["color"]
    about = [a[rows].tolist() for a in (work.looks.keys, work.labels, work.units, trial.folds)]
    about += [graph.described() for graph in graphs_of(trial.recipe)]  # a file of weights may be another one by now
    return fingerprint([_VERSION, recipe, work.photos.classes, len(work.labels), rows.tolist(), *about])


def _keep(place: Path, inside: Work, proba: NDArray[np.float64], seconds: float) -> Tried:
    rows = np.flatnonzero(np.isfinite(proba[:, 0]))
    photos = int((inside.folds > 0).sum())
    place.parent.mkdir(parents=True, exist_ok=True)
    about = np.array([seconds, photos])
    write_whole(place.with_suffix(".npz"), lambda p: _save(p, rows=rows, proba=proba[rows], about=about))
    shutil.rmtree(inside.folder, ignore_errors=True)
    return Tried(proba, seconds, photos)


def _save(path: Path, **arrays: NDArray[np.generic]) -> None:
    with path.open("wb") as file:  # given a name, numpy would add an ending to it
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _kept(place: Path, work: Work) -> Tried | None:
    try:
        with np.load(place.with_suffix(".npz"), allow_pickle=False) as found:
            proba = np.full((len(work.labels), work.classes), np.nan)
            proba[found["rows"]] = found["proba"]
            seconds, photos = found["about"]
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile):  # damaged: tried again
        return None
    return Tried(proba, float(seconds), int(photos))
