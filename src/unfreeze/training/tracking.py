"""Experiment tracking: forward the rows of a run to MLflow, TensorBoard or a callback.

A thread reads the files of the run folder (log.jsonl, then scores.json). Training code, in whatever process or machine,
does not depend on trackers, and a tracker that fails does not abort the run.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from unfreeze.core.errors import MissingExtraError, RecipeError, did_you_mean
from unfreeze.core.files import read_json, write_json
from unfreeze.core.messages import option
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import TENSORBOARD, TRACKING, Run, read_log

Row = dict[str, Any]
Listener = Callable[[Row], None]
_EVERY = 1.0
_HEADLINES = ("macro_f1", "accuracy", "log_loss", "ece")
_MOST_PARAMETERS, _LONGEST = 100, 500  # MLflow limits: parameters per batch, characters per value


class Tracker(Protocol):
    """Protocol of a tracker.

    A resumed run can send a row twice, with the same fold and epoch.
    """

    def row(self, row: Row) -> None:
        """Handle a row of log.jsonl: fold, epoch and metrics."""

    def finished(self, run: Run) -> None:
        """Handle the finished run."""

    def close(self, done: bool) -> None:
        """Release resources. `done` is True if the run finished and False if it was interrupted."""


class _Mlflow:
    """Logs metrics by fold and epoch, the recipe as parameters, and scores.json and recipe.toml as artifacts.

    The server and experiment are set by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, as usual with MLflow. A resumed
    run continues the same MLflow run, whose ID is stored in the run folder.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "unfreeze")
        kept = folder / TRACKING
        try:
            self._id = str(read_json(kept)["mlflow"])
            self._client.set_terminated(self._id, "RUNNING")
            return
        except Exception:  # not tracked yet, or on a different server
            pass
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"mlflow.source.name": "unfreeze", "unfreeze.run": str(folder.resolve())}
        self._id = self._client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id
        flat = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(recipe.model_dump(mode="json"))]
        for start in range(0, len(flat), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=flat[start : start + _MOST_PARAMETERS])
        write_json(kept, {"mlflow": self._id})

    def _log(self, numbers: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, value, now, step) for key, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def row(self, row: Row) -> None:
        self._log({f"fold-{row['fold']}/{k}": v for k, v in _numbers(row).items()}, int(row["epoch"]))

    def finished(self, run: Run) -> None:
        self._log(_final(run), 0)
        for name in ("scores.json", "recipe.toml"):
            self._client.log_artifact(self._id, str(run.path / name))

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


class _TensorBoard:
    """Writes scalars by fold and epoch to the folder `tensorboard` of the run.

    `tensorboard --logdir runs` shows all runs.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD))
        self._writer.add_text("recipe", f"```\n{recipe.to_toml()}\n```")

    def row(self, row: Row) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(f"fold-{row['fold']}/{name}", value, int(row["epoch"]))
        self._writer.flush()

    def finished(self, run: Run) -> None:
        for name, value in _final(run).items():
            self._writer.add_scalar(f"out_of_fold/{name}", value, 0)

    def close(self, done: bool) -> None:
        self._writer.close()


class _Told:
    """Calls a function with each row and finally with the headline scores."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def row(self, row: Row) -> None:
        self._listener(row)

    def finished(self, run: Run) -> None:
        self._listener(_final(run))

    def close(self, done: bool) -> None:
        pass


# Name -> (tracker factory, required module, installation command).
TRACKERS: dict[str, tuple[Callable[[Path, Recipe], Tracker], str, str]] = {
    "mlflow": (_Mlflow, "mlflow", "pip install 'unfreeze[mlflow]'"),
    "tensorboard": (_TensorBoard, "tensorboard", "pip install 'unfreeze[tensorboard]'"),
}


def check_trackers(names: Sequence[str | Listener]) -> None:
    """Check that all trackers are known and installed.

    Raises:
        RecipeError: If a name is unknown.
        MissingExtraError: If the package of a tracker is not installed.
    """
    from importlib.util import find_spec

    for name in names:
        if not isinstance(name, str):
            continue
        if name not in TRACKERS:
            raise RecipeError(
                f"{option('track', name)}: known are {', '.join(TRACKERS)}.{did_you_mean(name, TRACKERS)}"
            )
        _, module, remedy = TRACKERS[name]
        if find_spec(module) is None:
            raise MissingExtraError(f"{option('track', name)} needs {module}: {remedy}.")


@contextlib.contextmanager
def tracked(
    folder: Path, recipe: Recipe, names: Sequence[str | Listener], reporter: Reporter
) -> Iterator[Callable[[Run], None]]:
    """Send the log rows of a run folder to each tracker while the block runs.

    A tracker that raises is removed, with a message.

    Args:
        folder: The run folder.
        recipe: The recipe.
        names: Keys of TRACKERS, or functions that take a row.
        reporter: Progress reporter.

    Yields:
        A function to be called with the finished run.
    """
    if not names:
        yield lambda run: None
        return
    follower = _Follower(folder, recipe, names, reporter)
    done = False

    def whole(run: Run) -> None:
        nonlocal done
        follower.stop()
        follower.each("finished", run)
        done = True

    try:
        yield whole
    finally:
        follower.stop()
        follower.each("close", done)


class _Follower:
    """Thread that polls the log file and forwards new rows."""

    def __init__(self, folder: Path, recipe: Recipe, names: Sequence[str | Listener], reporter: Reporter) -> None:
        self._folder, self._recipe, self._names, self._reporter = folder, recipe, list(names), reporter
        self._trackers: dict[str, Tracker] = {}
        self._told: set[tuple[int, int]] = set()
        self._started, self._ended = time.time(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(_EVERY):
            self._read()

    def _read(self) -> None:
        # run.json is written first. Without a recent one, the folder is missing or belongs to an earlier run.
        try:
            if (self._folder / "run.json").stat().st_mtime < self._started - 2:
                return
        except OSError:
            return
        self._open()
        for row in read_log(self._folder):
            mark = int(row["fold"]), int(row["epoch"])
            if mark not in self._told:
                self._told.add(mark)
                self.each("row", row)

    def _open(self) -> None:
        while self._names:
            name = self._names.pop(0)
            label = name if isinstance(name, str) else getattr(name, "__name__", "listener")
            try:
                found = TRACKERS[name][0](self._folder, self._recipe) if isinstance(name, str) else _Told(name)
                self._trackers[label] = found
            except Exception as error:  # an unreachable server must not abort the fit
                self._say(label, error)

    def each(self, what: str, value: Any) -> None:
        """Call one method of every tracker."""
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, what)(value)
            except Exception as error:
                del self._trackers[name]
                self._say(name, error)

    def _say(self, name: str, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self._reporter.say(f"Tracking with {name} stopped ({reason}); the fit continues.")

    def stop(self) -> None:
        """Stop polling and forward the remaining rows."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._read()


def _numbers(row: Row) -> dict[str, float]:
    keep = {k: v for k, v in row.items() if k not in ("fold", "epoch")}
    return {k: float(v) for k, v in keep.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _final(run: Run) -> dict[str, float]:
    """Return the headline scores with their confidence intervals, and the macro F1 of each fold."""
    scores = run.scores()
    out: dict[str, float] = {}
    for name in _HEADLINES:
        interval = scores["out_of_fold"][name]
        out |= {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
    return out | {f"fold-{row['fold']}_macro_f1": row["macro_f1"] for row in scores["folds"]}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
