"""Evaluation of candidate recipes within the training data, with cached results.

A candidate is fitted on some images and predicts others. Results are cached, and networks are trained in parallel.
"""

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

from unfreeze.core.arrays import Rows
from unfreeze.core.cache import cache_root, stable_hash
from unfreeze.core.files import atomic_write, regular_file
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import read_log
from unfreeze.data.decode import DECODER
from unfreeze.features.crops import face_crops
from unfreeze.features.inputs import feature_extractors
from unfreeze.training.context import FitContext
from unfreeze.training.linear_probe.strategy import Probe, fit_probe

# Increment to invalidate all cached results.
_VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """Recipe with a strategy, and the rows that it is evaluated on.

    Attributes:
        recipe: The recipe.
        folds: int64 (n,) for all images: rows with 0 are predicted, rows with 1 and above are used for training (at
            least two distinct values, between which penalties are selected by cross-validation), rows with -1 are not
            used. A group must not be split across values.
    """

    recipe: Recipe
    folds: Rows


@dataclass(frozen=True)
class CandidateResult:
    """Result of a candidate.

    Attributes:
        proba: float64 (n, C) probabilities, NaN for rows that were not predicted.
        seconds: Training time with features from the cache.
        photos: Number of training images.
    """

    proba: NDArray[np.float64]
    seconds: float
    photos: int


class HeldFeatures:
    """LRU cache of the features of the most recent probes.

    For callers that evaluate many heads on the same few inputs, where reading the features costs more than fitting a
    head. All calls must use the same images.

    Args:
        most: Maximum number of inputs, each as large as `JoinedFeatureMatrix.held` keeps in memory.
    """

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._probes: dict[str, Probe] = {}

    def fit(self, work: FitContext) -> Probe:
        """Run `fit_probe`, reusing features that are already in memory."""
        recipe = work.recipe
        inputs = [graph.described() for graph in feature_extractors(recipe)]
        key = stable_hash([inputs, recipe.probe.views, recipe.engine, recipe.probe.max_cache_gb])
        fitted = fit_probe(work, self._probes.pop(key, None))
        self._probes[key] = fitted
        for old in list(self._probes)[: -self._most]:
            del self._probes[old]
        return fitted


def evaluate_candidates(
    work: FitContext, trials: Sequence[Candidate], reporter: Reporter, held: HeldFeatures | None = None
) -> list[CandidateResult]:
    """Evaluate candidates. Networks are trained in parallel, one core each.

    Results are cached by the recipe and the images' contents, labels and groups, so the same candidate is never
    evaluated twice. An interrupted network resumes from its last epoch. Errors raised by fitting propagate.

    Args:
        work: The context of the dataset.
        trials: The candidates.
        reporter: Progress reporter.
        held: Features that earlier evaluations on the same images have read.

    Returns:
        The result of each candidate, in order.
    """
    places = [cache_root() / "trials" / _identity(work, trial) for trial in trials]
    found = {place: _kept(place, work) for place in places}
    todo = {place: trial for place, trial in zip(places, trials, strict=True) if found[place] is None}
    networks: dict[Path, FitContext] = {}
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
            for place in list(networks):  # another process may have completed it while this one waited for the lock
                if (kept := _kept(place, work)) is not None:
                    found[place] = kept
                    del networks[place]
            if networks:
                found |= _train(networks, reporter)
    return [tried for place in places if (tried := found[place]) is not None]


@contextmanager
def _alone(places: Iterable[Path], reporter: Reporter) -> Iterator[None]:
    """Lock each candidate: two processes that train the same candidate would write the same files."""
    with ExitStack() as stack:
        for place in sorted(places):  # in a fixed order to avoid deadlocks
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0.1)
            except Timeout:
                reporter.say("Waiting for another process that is trying the same candidate.")
                lock.acquire()
            stack.callback(lock.release)
        yield


def _train(networks: dict[Path, FitContext], reporter: Reporter) -> dict[Path, CandidateResult]:
    from unfreeze.training.fine_tune.launcher import train_jobs
    from unfreeze.training.fine_tune.strategy import collect, prepare

    prepared = {place: prepare(inside) for place, inside in networks.items()}
    jobs = [(p.jobs[0], networks[place].folder) for place, p in prepared.items()]
    answers = train_jobs(jobs, reporter, threads=1, what="Trying {count} network(s), {workers} at a time")
    found = {}
    for (place, inside), ready, answer in zip(networks.items(), prepared.values(), answers, strict=True):
        outcome = collect(inside, ready, {0: answer})
        seconds = sum(row["seconds"] for row in read_log(inside.folder))
        found[place] = _keep(place, inside, outcome.proba, seconds)
    return found


def _inside(work: FitContext, trial: Candidate, place: Path) -> FitContext:
    """Return the context of a candidate, with its own folder and folds and without progress output."""
    folder = place.with_suffix(".work")
    squares = work.squares
    if trial.recipe.image != work.recipe.image:
        keys, readable = work.looks.keys, work.looks.readable
        faces = face_crops(trial.recipe, work.photos.files(), keys, readable, Reporter())
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


def _identity(work: FitContext, trial: Candidate) -> str:
    rows = np.flatnonzero(trial.folds >= 0)
    recipe = trial.recipe.model_dump(mode="json", exclude={"source", "folds", "recommend", "tune"})
    if recipe["image"]["color"] == "rgb":  # keeps the cache keys from before this option existed
        del recipe["image"]["color"]
    about = [a[rows].tolist() for a in (work.looks.keys, work.labels, work.units, trial.folds)]
    about += [graph.described() for graph in feature_extractors(trial.recipe)]  # the weights file may have changed
    return stable_hash([_VERSION, DECODER, recipe, work.photos.classes, len(work.labels), rows.tolist(), *about])


def _keep(place: Path, inside: FitContext, proba: NDArray[np.float64], seconds: float) -> CandidateResult:
    rows = np.flatnonzero(np.isfinite(proba[:, 0]))
    photos = int((inside.folds > 0).sum())
    place.parent.mkdir(parents=True, exist_ok=True)
    about = np.array([seconds, photos])
    atomic_write(place.with_suffix(".npz"), lambda p: _save(p, rows=rows, proba=proba[rows], about=about))
    shutil.rmtree(inside.folder, ignore_errors=True)
    return CandidateResult(proba, seconds, photos)


def _save(path: Path, **arrays: NDArray[np.generic]) -> None:
    with path.open("wb") as file:  # np.savez would append an extension to a file name
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _kept(place: Path, work: FitContext) -> CandidateResult | None:
    try:
        with np.load(regular_file(place.with_suffix(".npz")), allow_pickle=False) as found:
            proba = np.full((len(work.labels), work.classes), np.nan)
            proba[found["rows"]] = found["proba"]
            seconds, photos = found["about"]
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile):  # missing or damaged: evaluate again
        return None
    return CandidateResult(proba, float(seconds), int(photos))
