"""Recipes searched by Optuna: trials judged part by part on group-safe splits, pruned, kept in SQLite, resumed."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import BackboneError, EngineError, RecipeError, StorageError, UnfreezeError
from unfreeze.core.files import storage_errors, write_whole
from unfreeze.core.progress import Reporter
from unfreeze.learn.crossval import check_recipe
from unfreeze.learn.fitting import Work
from unfreeze.learn.tryout import HeldFeatures, Trial, try_out
from unfreeze.study.sides import Side
from unfreeze.study.space import Dimension, changes_of
from unfreeze.study.trials import NOTE, SECONDS, SHOWN, WORKER, Asked, Row, Searched
from unfreeze.study.tune_folder import DATABASE, at_work, sweep, turn, worker_lock

if TYPE_CHECKING:
    import optuna

# Recipes that are drawn at random before the sampler learns from them: Optuna's own number.
RANDOM = 10
# Of fewer whole trials no share of variance is told.
_ENOUGH = 8
_SECONDS_BETWEEN = 0.5
# What cannot be fitted with these values, though it could with others: a failed trial, and no end of the search.
_REFUSED = (RecipeError, BackboneError, EngineError)


class Search:
    """Searches over the sides' photos, a database for all in one folder; several processes may work on it at once."""

    def __init__(self, work: Work, sides: Sequence[Side], space: Sequence[Dimension], folder: Path) -> None:
        """Opens the database. StorageError where it cannot be used."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._work, self._sides, self._space = work, tuple(sides), tuple(space)
        self._wish, self._held = work.recipe.tune, HeldFeatures()
        self._folder, self._me = folder, uuid.uuid4().hex[:8]
        self._alive = worker_lock(folder, self._me)
        with _usable(folder, Exception), storage_errors(folder), turn(folder):  # two would make the tables twice
            sweep(folder, DATABASE)
            if not (folder / DATABASE).exists():
                # Cut off in the middle, it would lack an index for ever, and then hold a study twice.
                write_whole(folder / DATABASE, lambda path: _storage(path).engine.dispose())
            storage = _storage(folder / DATABASE)
            self._studies = {side.name: self._study(side, storage) for side in self._sides}
            self._alive.acquire()

    def close(self) -> None:
        """Says that this process works on the search no more."""
        with contextlib.suppress(OSError):
            Path(self._alive.lock_file).unlink()
        self._alive.release()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While the block runs, no other process that works on this search is in such a block."""
        lock = FileLock(self._folder / ".answer.lock")
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
        """Tries recipes on all sides in turn, until each has had `tune.trials`, or the seconds are over (0: never).

        What was begun is ended, also by a process that is no more; the first recipe, the one that was given, always
        is. Waits for what other processes are trying. Raises what fitting raises, but a recipe that cannot be fitted
        is a failed trial.
        """
        ends, waits = time.monotonic() + seconds if seconds else float("inf"), False
        with _usable(self._folder):
            done, parts = self._judged(), self._wish.parts
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
        """What was tried so far, side by side; the recipe as it was given is always among it."""
        with _usable(self._folder):
            return tuple(
                Searched(side, tuple(self._row(t) for t in _trials(self._studies[side.name]) if t.state.is_finished()))
                for side in self._sides
            )

    def importance(self) -> dict[str, float]:
        """Share of the score's variance over all photos' trials that each key explains; empty where too few are whole.

        fANOVA: Hutter, Hoos & Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance.
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

    def _study(self, side: Side, storage: optuna.storages.BaseStorage) -> optuna.Study:
        import optuna

        pruner: optuna.pruners.BasePruner = {
            "median": optuna.pruners.MedianPruner(n_startup_trials=5),
            "hyperband": optuna.pruners.HyperbandPruner(1, self._wish.parts, 2),
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

    def _sampler(self, side: Side, number: int, key: str) -> optuna.samplers.TPESampler:
        """What draws that trial's value of that key: it hangs on seed, number and key, so that a search that is taken
        up again goes on as if it had never been cut off. Tree-structured Parzen estimator: Bergstra et al. 2011."""
        import optuna

        # What is drawn at random is the same on all sides, so that features are computed once for all of them.
        mark = [self._work.recipe.seed, number, key, side.name if number >= RANDOM else ""]
        seed = int(fingerprint(mark)[:8], 16)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=False, constant_liar=True)

    def _ask(self, side: Side, over: bool) -> Asked | None:
        """A trial to judge: one that a process left behind, else a new one; None where there is none to be had.

        over: no new one is begun.
        """
        with turn(self._folder):
            while (trial := self._next(side, over)) is not None:
                asked = self._drawn(side, trial)
                try:
                    check_recipe(asked.recipe, self._work.photos)
                except _REFUSED as error:
                    asked.fail(error)
                    continue
                return asked
        return None

    def _next(self, side: Side, over: bool) -> optuna.Trial | None:
        import optuna

        study = self._studies[side.name]
        trials = _trials(study)
        for left in trials:
            if not left.state.is_finished() and not at_work(self._folder, left.user_attrs.get(WORKER, "")):
                return optuna.trial.Trial(study, left._trial_id)
        if len(trials) >= self._wish.trials or (over and trials):
            return None
        return study.ask()

    def _drawn(self, side: Side, trial: optuna.Trial) -> Asked:
        """The trial's recipe; of one that was left behind, with the values that it has. The first is the recipe as it
        was given: what a search has to be better than."""
        study, changes = self._studies[side.name], {}
        trial.set_user_attr(WORKER, self._me)
        for one in self._space if trial.number else ():
            study.sampler = self._sampler(side, trial.number, one.key)
            changes[one.key] = one.suggest(trial)
        return Asked(side, study, trial, self._work.recipe.replace(**changes), self._work)

    def _judge(self, asked: Sequence[Asked], part: int) -> list[Asked]:
        """Those that could be judged on that part. Networks train side by side."""
        if not asked:
            return []
        trials = [Trial(one.recipe, one.side.judging(part, self._work.labels)) for one in asked]
        try:
            found = try_out(self._work, trials, Reporter(), self._held)
        except _REFUSED as error:
            if len(asked) > 1:  # which of them it is shows one by one; what the others have learnt is kept
                return [one for alone in asked for one in self._judge([alone], part)]
            asked[0].fail(error)
            return []
        for one, tried in zip(asked, found, strict=True):
            one.take(tried)
        return list(asked)

    def _judged(self) -> int:
        """How many parts of all trials are behind us, those of other processes among them."""
        return sum(
            self._wish.parts if trial.state.is_finished() else len(trial.intermediate_values) for trial in self._every()
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
    """All of the study, in order of their numbers."""
    return study.get_trials(deepcopy=False)


@contextlib.contextmanager
def _usable(folder: Path, beside: type[Exception] = StorageError) -> Iterator[None]:
    """Turns what Optuna and SQLAlchemy raise about the database into a StorageError. beside: what else is of it."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except UnfreezeError:
        raise
    except Timeout:
        raise StorageError(f"{folder}: another process holds {DATABASE}; run the same command again.") from None
    except (OptunaError, SQLAlchemyError, beside) as error:  # on opening also others, which have no base in common
        with storage_errors(folder / DATABASE):
            _raise_of_system(error)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(
            f"{folder / DATABASE}: cannot be used ({reason}); where it is damaged, --force begins anew."
        ) from None


def _raise_of_system(error: BaseException | None) -> None:
    """Raises what the system told SQLite, if that is what the error came from."""
    while error is not None:
        for code, number in ((sqlite3.SQLITE_FULL, errno.ENOSPC), (sqlite3.SQLITE_READONLY, errno.EROFS)):
            if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == code:
                raise OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
