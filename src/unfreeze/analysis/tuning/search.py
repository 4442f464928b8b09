"""Hyperparameter search with Optuna on group-safe splits, with pruning and resumption.

Each split (side) has its own study in a common SQLite database. A trial is evaluated part by part and reports macro F1
after each part. Several processes can work on the same search, and trials of a process that died are completed by
others.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from unfreeze.analysis.splits import SearchSplit
from unfreeze.analysis.tuning.folder import DATABASE, cleanup, is_alive, search_lock, worker_lock
from unfreeze.analysis.tuning.space import Dimension, changes_of
from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import BackboneError, EngineError, RecipeError, StorageError, UnfreezeError
from unfreeze.core.files import atomic_write, translate_os_errors
from unfreeze.core.messages import option
from unfreeze.core.processes import file_lock
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.training.context import FitContext
from unfreeze.training.crossval import check_recipe
from unfreeze.training.inner_eval import Candidate, CandidateResult, HeldFeatures, evaluate_candidates

if TYPE_CHECKING:
    import optuna


# Decimals of macro F1 that count: of recipes equal after rounding, the first one is selected.
SHOWN = 3
# User attributes of a trial: the worker that evaluates it, its duration, and the reason of a failure.
WORKER, SECONDS, NOTE = "worker", "seconds", "note"


@dataclass(frozen=True)
class Row:
    """One tried recipe.

    Attributes:
        number: Number of the trial.
        state: "complete", "pruned" or "failed".
        changes: Differences to the given recipe.
        scores: Cumulative macro F1 after each evaluated part.
        seconds: Training time.
        note: Reason of a failure.
    """

    number: int
    state: str
    changes: dict[str, Any]
    scores: tuple[float, ...]
    seconds: float
    note: str = ""

    @property
    def value(self) -> float:
        return self.scores[-1] if self.state == "complete" and self.scores else float("nan")


@dataclass(frozen=True)
class Searched:
    """A side and its trials in order; the first trial is the given recipe."""

    side: SearchSplit
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row:
        """The best complete trial; the first one in case of ties."""
        return max((r for r in self.rows if r.state == "complete"), key=lambda r: (round(r.value, SHOWN), -r.number))

    @property
    def distinct(self) -> tuple[Row, ...]:
        """Trials without repeated recipes; in a small space the same recipe may be drawn more than once."""
        first: dict[str, Row] = {}
        for row in self.rows:
            first.setdefault(json.dumps(row.changes, sort_keys=True), row)
        return tuple(first.values())


@dataclass
class RunningTrial:
    """A trial under evaluation.

    Attributes:
        side: Split of the search.
        study: Study of the side.
        trial: The Optuna trial.
        recipe: Recipe of the trial.
        work: Prepared context.
        seconds: Training time so far.
        proba: float64 (n, C), NaN where nothing is predicted yet.
        known: Number of parts that a process evaluated before it abandoned the trial.
    """

    side: SearchSplit
    study: optuna.Study
    trial: optuna.Trial
    recipe: Recipe
    work: FitContext
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.proba: NDArray[np.float64] = np.full((len(self.work.labels), self.work.classes), np.nan)
        # Parts evaluated by a process that abandoned the trial: pruning is decided only from the last of them on.
        self.known = len(self.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values)

    def take(self, tried: CandidateResult) -> None:
        """Store the result of one part."""
        rows = np.flatnonzero(np.isfinite(tried.proba[:, 0]))
        self.proba[rows] = tried.proba[rows]
        self.seconds += tried.seconds

    def goes_on(self, part: int, parts: int) -> bool:
        """Report the score over all parts so far, and complete or prune the trial if due.

        Returns:
            Whether the trial continues with the next part.
        """
        import optuna

        rows = np.flatnonzero(np.isfinite(self.proba[:, 0]))
        table = confusion_matrix(self.work.labels[rows], self.proba[rows].argmax(1), self.work.classes)
        score, step = float(macro_f1(table)), part + 1
        if step > self.known:
            self.trial.report(score, step)
        whole = step == parts
        if not whole and not (self.trial.number and step >= self.known and self.trial.should_prune()):
            return True
        self.trial.set_user_attr(SECONDS, round(self.seconds, 3))
        if whole:
            self.study.tell(self.trial, score)
        else:
            self.study.tell(self.trial, state=optuna.trial.TrialState.PRUNED)
        return False

    def fail(self, why: UnfreezeError) -> None:
        """Mark the trial as failed because its recipe cannot be fitted. Raises `why` if it is the given recipe."""
        import optuna

        if not self.trial.number:
            raise why
        self.trial.set_user_attr(NOTE, str(why))
        self.study.tell(self.trial, state=optuna.trial.TrialState.FAIL)


# Number of random trials before the sampler uses its model; the default of Optuna.
RANDOM = 10
# Minimum number of complete trials for importances.
_ENOUGH = 8
_SECONDS_BETWEEN = 0.5
# Errors that depend on the sampled values: they fail the trial and not the search.
_REFUSED = (RecipeError, BackboneError, EngineError)


class Search:
    """Search over the images of all sides, with one database per folder. Several processes may share it."""

    def __init__(
        self, work: FitContext, sides: Sequence[SearchSplit], space: Sequence[Dimension], folder: Path
    ) -> None:
        """Open the database.

        Args:
            work: Prepared context.
            sides: Splits of the nested search.
            space: Dimensions to search.
            folder: Folder of the search.

        Raises:
            StorageError: If the database cannot be used.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._work, self._sides, self._space = work, tuple(sides), tuple(space)
        self._wish, self._held = work.recipe.tune, HeldFeatures()
        self._folder, self._me = folder, uuid.uuid4().hex[:8]
        self._alive = worker_lock(folder, self._me)
        with (
            _usable(folder, Exception),
            translate_os_errors(folder),
            search_lock(folder),  # two processes would create the tables twice
        ):
            cleanup(folder, DATABASE)
            if not (folder / DATABASE).exists():
                # Atomic: a database interrupted during creation would lack an index and could later hold a study twice.
                atomic_write(folder / DATABASE, lambda path: _storage(path).engine.dispose())
            storage = _storage(folder / DATABASE)
            self._studies = {side.name: self._study(side, storage) for side in self._sides}
            self._alive.acquire()

    def close(self) -> None:
        """Release the worker lock: this process no longer works on the search."""
        with contextlib.suppress(OSError):
            Path(self._alive.lock_file).unlink()
        self._alive.release()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Mutual exclusion: at most one process of this search is in such a block at a time."""
        lock = file_lock(self._folder / ".answer.lock")
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            self._work.reporter.say("Waiting for another process that fits what this search has found.")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def run(self, seconds: float) -> None:
        """Try recipes on all sides in turn, until each has `tune.trials` trials or the time is over.

        Trials in progress are completed, including those of a process that died. The first trial, the given recipe, is
        always completed. Finally waits for trials of other processes.

        Args:
            seconds: Time limit; 0 for none.

        Raises:
            UnfreezeError: Any error of fitting, except that a sampled recipe that cannot be fitted is a failed trial.
        """
        ends, waits = time.monotonic() + seconds if seconds else float("inf"), False
        with _usable(self._folder):
            done, parts = self._judged(), self._wish.n_splits
            total = max(0, self._wish.trials * parts * len(self._sides) - done)
            what = f"Searching {self._wish.trials} recipes on {len(self._sides)} sets of photos"
            with self._work.reporter.bar(what, total) as advance:
                while True:
                    over = time.monotonic() >= ends
                    asked = [one for side in self._sides if (one := self._ask(side, over)) is not None]
                    if not asked:
                        if all(trial.state.is_finished() for trial in self._every()):
                            return
                        if not waits:
                            self._work.reporter.say("Waiting for another process that is trying recipes.")
                        waits = True
                        time.sleep(_SECONDS_BETWEEN)
                    for part in range(parts):
                        asked = [one for one in self._judge(asked, part) if one.goes_on(part, parts)]
                        before, done = done, self._judged()
                        advance(done - before)

    def found(self) -> tuple[Searched, ...]:
        """Finished trials of each side; the given recipe is always among them."""
        with _usable(self._folder):
            return tuple(
                Searched(side, tuple(self._row(t) for t in _trials(self._studies[side.name]) if t.state.is_finished()))
                for side in self._sides
            )

    def importance(self) -> dict[str, float]:
        """Share of the variance of the score that each key explains, over the trials on all images (fANOVA).

        Returns:
            Key -> share; empty if too few trials are complete.

        References:
            Hutter, Hoos & Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance", ICML.
        """
        import optuna

        study = self._studies["all"]
        whole = [t for t in _trials(study) if t.state == optuna.trial.TrialState.COMPLETE and t.params]
        if len(whole) < _ENOUGH or len({round(t.value or 0.0, SHOWN) for t in whole}) < 2:
            return {}
        judge = optuna.importance.FanovaImportanceEvaluator(seed=self._work.recipe.seed)
        keys = [one.key for one in self._space]
        found = optuna.importance.get_param_importances(study, evaluator=judge, params=keys)
        return {key: float(share) for key, share in found.items()}

    def _study(self, side: SearchSplit, storage: optuna.storages.BaseStorage) -> optuna.Study:
        import optuna

        pruner: optuna.pruners.BasePruner = {
            "median": optuna.pruners.MedianPruner(n_startup_trials=5),
            "hyperband": optuna.pruners.HyperbandPruner(1, self._wish.n_splits, 2),
            "none": optuna.pruners.NopPruner(),
        }[self._wish.pruner]
        return optuna.create_study(
            study_name=side.name,
            storage=storage,
            sampler=self._sampler(side, 0, ""),
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )

    def _sampler(self, side: SearchSplit, number: int, key: str) -> optuna.samplers.TPESampler:
        """Sampler for the value of one key in one trial (TPE: Bergstra et al. 2011).

        The seed depends only on recipe seed, trial number and key (and on the side after the random trials), so that a
        resumed search continues as if it had not been interrupted.
        """
        import optuna

        # Random trials are the same on all sides, so that features are computed only once for them.
        mark = [self._work.recipe.seed, number, key, side.name if number >= RANDOM else ""]
        seed = int(stable_hash(mark)[:8], 16)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=False, constant_liar=True)

    def _ask(self, side: SearchSplit, over: bool) -> RunningTrial | None:
        """Next trial to evaluate: one that a dead process left behind, otherwise a new one; None if there is none.

        Args:
            side: Side of the search.
            over: Whether the time is over, so that no new trial is started.
        """
        with search_lock(self._folder):
            while (trial := self._next(side, over)) is not None:
                asked = self._drawn(side, trial)
                try:
                    check_recipe(asked.recipe, self._work.photos)
                except _REFUSED as error:
                    asked.fail(error)
                    continue
                return asked
        return None

    def _next(self, side: SearchSplit, over: bool) -> optuna.Trial | None:
        import optuna

        study = self._studies[side.name]
        trials = _trials(study)
        for left in trials:
            if not left.state.is_finished() and not is_alive(self._folder, left.user_attrs.get(WORKER, "")):
                return optuna.trial.Trial(study, left._trial_id)
        if len(trials) >= self._wish.trials or (over and trials):
            return None
        return study.ask()

    def _drawn(self, side: SearchSplit, trial: optuna.Trial) -> RunningTrial:
        """Recipe of a trial. An abandoned trial keeps its values; the first trial is the given recipe, the baseline."""
        study, changes = self._studies[side.name], {}
        trial.set_user_attr(WORKER, self._me)
        for one in self._space if trial.number else ():
            study.sampler = self._sampler(side, trial.number, one.key)
            changes[one.key] = one.suggest(trial)
        return RunningTrial(side, study, trial, self._work.recipe.replace(**changes), self._work)

    def _judge(self, asked: Sequence[RunningTrial], part: int) -> list[RunningTrial]:
        """Evaluate trials on one part; networks train in parallel. Returns the trials that could be evaluated."""
        if not asked:
            return []
        trials = [Candidate(one.recipe, one.side.judging(part, self._work.labels)) for one in asked]
        try:
            found = evaluate_candidates(self._work, trials, Reporter(), self._held)
        except _REFUSED as error:
            if len(asked) > 1:  # evaluate one by one to find which of them fails; results of the others are cached
                return [one for alone in asked for one in self._judge([alone], part)]
            asked[0].fail(error)
            return []
        for one, tried in zip(asked, found, strict=True):
            one.take(tried)
        return list(asked)

    def _judged(self) -> int:
        """Number of evaluated parts over all trials, including those of other processes."""
        return sum(
            self._wish.n_splits if trial.state.is_finished() else len(trial.intermediate_values)
            for trial in self._every()
        )

    def _every(self) -> Iterator[optuna.trial.FrozenTrial]:
        for study in self._studies.values():
            yield from _trials(study)

    def _row(self, trial: optuna.trial.FrozenTrial) -> Row:
        state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
        scores = tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values))
        changes, kept = changes_of(self._space, self._work.recipe, trial.params), trial.user_attrs
        return Row(trial.number, state, changes, scores, kept.get(SECONDS, 0.0), kept.get(NOTE, ""))


def _storage(file: Path) -> optuna.storages.RDBStorage:
    import optuna

    url = f"sqlite:///{file.absolute()}"
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def _trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """All trials of the study, ordered by number."""
    return study.get_trials(deepcopy=False)


@contextlib.contextmanager
def _usable(folder: Path, also: type[Exception] = StorageError) -> Iterator[None]:
    """Convert database errors of Optuna and SQLAlchemy into StorageError.

    Args:
        folder: Folder of the database.
        also: Further exception type to convert.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except UnfreezeError:
        raise
    except Timeout:
        raise StorageError(f"{folder}: another process holds {DATABASE}; run the same command again.") from None
    except (OptunaError, SQLAlchemyError, also) as error:  # errors on opening have no common base
        with translate_os_errors(folder / DATABASE):
            _raise_of_system(error)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(
            f"{folder / DATABASE}: cannot be used ({reason}); "
            f"if it is damaged, {option('force', True)} starts a new search."
        ) from None


def _raise_of_system(error: BaseException | None) -> None:
    """Raise the operating system error that SQLite reported, if it is in the exception chain."""
    while error is not None:
        for code, number in ((sqlite3.SQLITE_FULL, errno.ENOSPC), (sqlite3.SQLITE_READONLY, errno.EROFS)):
            if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == code:
                raise OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
