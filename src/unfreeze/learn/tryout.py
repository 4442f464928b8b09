"""Tries within the training data: a recipe is fitted on some photos and predicts others; what was tried is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from unfreeze.learn.probe.probing import Probe, fit_probe
from unfreeze.learn.sight import squares_of

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


class HeldFeatures:
    """The last probes' features, for who tries many heads on the same few inputs: reading them anew costs more than
    the head. Of the same photos throughout; at most `most` inputs, each as large as `JoinedFeatures.held` keeps."""

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._probes: dict[str, Probe] = {}

    def fit(self, work: Work) -> Probe:
        """`fit_probe`, with features that are here already."""
        recipe = work.recipe
        inputs = [graph.described() for graph in graphs_of(recipe)]
        key = fingerprint([inputs, recipe.probe.views, recipe.engine, recipe.probe.max_gigabytes])
        fitted = fit_probe(work, self._probes.pop(key, None))
        self._probes[key] = fitted
        for old in list(self._probes)[: -self._most]:
            del self._probes[old]
        return fitted


def try_out(work: Work, trials: Sequence[Trial], reporter: Reporter, held: HeldFeatures | None = None) -> list[Tried]:
    """Each trial's answer, in order. Networks train side by side, a core each.

    held: features that earlier tries on the same photos have read. The same trial is never done twice: its answer is
    kept in the cache by its recipe and the photos' contents, labels and groups; an interrupted one goes on from its
    last epoch. Raises what fitting raises.
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
            proba = (held or HeldFeatures()).fit(inside).out_of_fold(inside)
            found[place] = _keep(place, inside, proba, perf_counter() - started)
            advance(1)
    if networks:
        with _alone(networks, reporter):
            for place in list(networks):  # another process may have done it while this one waited
                if (kept := _kept(place, work)) is not None:
                    found[place] = kept
                    del networks[place]
            if networks:
                found |= _train(networks, reporter)
    return [tried for place in places if (tried := found[place]) is not None]


@contextmanager
def _alone(places: Iterable[Path], reporter: Reporter) -> Iterator[None]:
    """One process at a time for each trial: two that train the same would write the same files."""
    with ExitStack() as stack:
        for place in sorted(places):  # in one order, so that two processes never wait for each other
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0.1)
            except Timeout:
                reporter.say("Waiting for another process that is trying the same candidate.")
                lock.acquire()
            stack.callback(lock.release)
        yield


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
    squares = work.squares
    if trial.recipe.image != work.recipe.image:
        keys, readable = work.looks.keys, work.looks.readable
        faces = squares_of(trial.recipe, work.photos.files(), keys, readable, Reporter())
        squares = faces.cut if faces else None
    return replace(
        work,
        recipe=trial.recipe,
        folds=trial.folds.copy(),
        folder=folder,
        reporter=Reporter(),
        spent={},
        failed=dict(work.failed),
        squares=squares,
        which=(0,),
        trial=True,
    )


def _identity(work: Work, trial: Trial) -> str:
    rows = np.flatnonzero(trial.folds >= 0)
    recipe = trial.recipe.model_dump(mode="json", exclude={"source", "folds", "advise", "tune"})
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
