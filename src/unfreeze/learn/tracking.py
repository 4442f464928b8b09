"""A run's rows told to others while it goes on: MLflow, TensorBoard, or a function of the user's.

Trackers read what the run folder says (log.jsonl, then scores.json). Whatever trains the folds, and wherever, knows
nothing of them, and a tracker that fails ends no fit.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from unfreeze.core.errors import MissingExtraError, RecipeError, nearest
from unfreeze.core.files import write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import TENSORBOARD, TRACKING, Run, read_log

Row = dict[str, Any]
Listener = Callable[[Row], None]
_EVERY = 1.0
_HEADLINES = ("macro_f1", "accuracy", "log_loss", "ece")
_MOST_PARAMETERS, _LONGEST = 100, 500  # what MLflow takes at once, and of a value


class Tracker(Protocol):
    """What is told of a run. Rows may come twice where a run is taken up again; their fold and epoch are the same."""

    def row(self, row: Row) -> None:
        """A row of log.jsonl: fold, epoch, and numbers."""

    def finished(self, run: Run) -> None:
        """The run is whole."""

    def close(self, done: bool) -> None:
        """No more comes; done: the run is finished, not cut off."""


class _Mlflow:
    """Metrics by fold and epoch, the recipe as parameters, scores.json and recipe.toml as artifacts.

    Where: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, as everywhere with MLflow. A run that is taken up again goes
    on in the same MLflow run, whose number the run folder keeps.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        # A library that we load must not tell the world that it was loaded.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "unfreeze")
        kept = folder / TRACKING
        try:
            self._id = str(json.loads(kept.read_text("utf-8"))["mlflow"])
            self._client.set_terminated(self._id, "RUNNING")
            return
        except Exception:  # never tracked, or by another server
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
    """Scalars by fold and epoch in the run's folder `tensorboard`: `tensorboard --logdir runs` shows all runs."""

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
    """A function that is called with each row, and at the end with the headline scores."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def row(self, row: Row) -> None:
        self._listener(row)

    def finished(self, run: Run) -> None:
        self._listener(_final(run))

    def close(self, done: bool) -> None:
        pass


# Name -> what makes a tracker, the module it needs, and what to install for it.
TRACKERS: dict[str, tuple[Callable[[Path, Recipe], Tracker], str, str]] = {
    "mlflow": (_Mlflow, "mlflow", "pip install 'unfreeze[mlflow]'"),
    "tensorboard": (_TensorBoard, "tensorboard", "pip install 'unfreeze[tensorboard]'"),
}


def check_trackers(names: Sequence[str | Listener]) -> None:
    """Raises RecipeError for a name that is none, MissingExtraError where its package is not installed."""
    from importlib.util import find_spec

    for name in names:
        if not isinstance(name, str):
            continue
        if name not in TRACKERS:
            raise RecipeError(f"--track {name}: known are {', '.join(TRACKERS)}.{nearest(name, TRACKERS)}")
        _, module, remedy = TRACKERS[name]
        if find_spec(module) is None:
            raise MissingExtraError(f"--track {name} needs {module}: {remedy}.")


@contextlib.contextmanager
def tracked(
    folder: Path, recipe: Recipe, names: Sequence[str | Listener], reporter: Reporter
) -> Iterator[Callable[[Run], None]]:
    """While the block runs, rows of `folder` go to each tracker; the value is called with the finished run.

    names: of TRACKERS, or functions that take a row. A tracker that raises is left out from then on, and that is said.
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
    """A thread that reads the log as it grows."""

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
        # run.json comes first: without it the folder may be another's, or not be there at all.
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
            except Exception as error:  # a server that is down must not end a fit of hours
                self._say(label, error)

    def each(self, what: str, value: Any) -> None:
        """Calls one method of every tracker."""
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, what)(value)
            except Exception as error:
                del self._trackers[name]
                self._say(name, error)

    def _say(self, name: str, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self._reporter.say(f"Tracking by {name} ends here ({reason}); the fit goes on.")

    def stop(self) -> None:
        """Reads what is left; nothing comes after it."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._read()


def _numbers(row: Row) -> dict[str, float]:
    keep = {k: v for k, v in row.items() if k not in ("fold", "epoch")}
    return {k: float(v) for k, v in keep.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _final(run: Run) -> dict[str, float]:
    """The headline scores, their intervals, and each fold's macro F1."""
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
