"""Run folders: create, resume, finalize, open and list runs.

A run is a folder of plain files (JSON, TOML, Parquet, safetensors); nothing else stores its state. `create_run` opens a
folder for writing under a lock, `finalize_run` marks it as finished, and `open_run` returns a finished `Run`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import Timeout

from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import Finding, ImageDataset, findings_frame
from unfreeze.core.errors import RunError, UnfreezeError, join_names, wrong_type
from unfreeze.core.files import atomic_write, regular_file, translate_os_errors, write_json, write_text
from unfreeze.core.messages import option, wording
from unfreeze.core.names import on_disk
from unfreeze.core.processes import file_lock
from unfreeze.core.recipe import Recipe, read_recipe
from unfreeze.core.run_validation import (
    check_entries,
    read_images,
    read_predictions,
    read_run_json,
    read_scores,
    validation_error,
)
from unfreeze.core.signing import is_signed, sign

FORMAT = 1
MAX_LOG_BYTES = 64 << 20
PLACES = ("", "*/", "compare-*/*/", "tune-*/*/")  # glob prefixes of runs, also of comparisons and searches
# Files of experiment trackers: their identifiers of the run, and TensorBoard's event files.
TRACKING, TENSORBOARD = "tracking.json", "tensorboard"
CORRECTIONS = "corrections.csv"  # written by the user: kept when a run is cleared
SELECTION = "selection.json"  # how the run was selected by its score, and its score corrected for that
# All files of a run; --force deletes these and no others.
_FILES = [
    "run.json",
    "recipe.toml",
    "findings.json",
    "photos.parquet",
    "oof.parquet",
    "test.parquet",
    "scores.json",
    "environment.json",
    "report.html",
    "log.jsonl",
    "recommendation.json",
    "diagnosis.json",
    "label_issues.json",
    "explained.json",
    SELECTION,
    TRACKING,
    ".lock",
]
# Seconds to wait for the lock of a run: the studio acquires it briefly to test whether it is held.
_PATIENCE = 0.5
_FOLD = re.compile(r"fold-[0-9]+")
# Temporary files that `atomic_write` leaves behind if the process is killed.
_TEMPORARY = re.compile(rf"\.({'|'.join(map(re.escape, _FILES))}|[a-z]+\.safetensors)\.[0-9a-f]{{8}}\.tmp(\.[a-z]+)?")


@dataclass(frozen=True)
class FoldGroup:
    """Folds of a run that were trained with the same recipe.

    Attributes:
        folds: Indices of the folds.
        recipe: Their recipe.
        info: Content of run.json, with the values for these folds that prediction needs.
    """

    folds: tuple[int, ...]
    recipe: Recipe
    info: dict[str, Any]


class Scores(dict[str, Any]):
    """Content of scores.json, with a short `repr` for notebooks; `dict(scores)` shows all of it."""

    def __repr__(self) -> str:
        found = self.get("out_of_fold", {})
        parts = [
            f"{name} {found[key]['value']:.3f} [{found[key]['low']:.3f}, {found[key]['high']:.3f}]"
            for key, name in (("macro_f1", "macro F1"), ("accuracy", "accuracy"))
            if isinstance(found.get(key), dict)
        ]
        return f"Scores({', '.join(parts)}; {', '.join(map(repr, self))})"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: Run folder.
        recipe: Recipe of the run.
        info: Content of run.json: classes, answers, attributes, root, backbone, views, choice, command.
    """

    path: Path
    recipe: Recipe
    info: dict[str, Any]

    def __repr__(self) -> str:
        about = f"{self.recipe.strategy} of {self.recipe.backbone}, {len(self.info.get('classes', ()))} classes"
        return f"Run({str(self.path)!r}, {about})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class, in the order of all probability columns."""
        return tuple(self.info["classes"])

    @property
    def members(self) -> tuple[FoldGroup, ...]:
        """Groups of folds with the same recipe: a single one, unless strategy auto chose differently for some folds.

        Raises:
            RunError: run.json is damaged.
        """
        if self.recipe.strategy != "auto":
            return (FoldGroup(tuple(range(self.recipe.folds.n_splits)), self.recipe, self.info),)
        try:
            members = tuple(
                FoldGroup(tuple(map(int, m["folds"])), self.recipe.replace(**m["changes"]), {**self.info, **m["info"]})
                for m in self.info["members"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{self.path}: run.json is damaged (members: {error}); fit the run again.") from None
        if sorted(k for m in members for k in m.folds) != list(range(self.recipe.folds.n_splits)):
            raise RunError(f"{self.path}: run.json is damaged (members lack folds); fit the run again.")
        return members

    @property
    def strategies(self) -> tuple[str, ...]:
        """Strategy of the recipe, or the strategies that auto chose."""
        return tuple(dict.fromkeys(member.recipe.strategy for member in self.members))

    def scores(self) -> Scores:
        """Scores of the run (scores.json).

        Returns:
            `accuracy`, `macro_f1` and `log_loss` of the delivered model with intervals, `out_of_fold` as returned by
            `metrics.classification.score_predictions`, `folds`, and if available `test` and `random_split`.

        Raises:
            RunError: The file is missing or damaged.
        """
        return Scores(read_scores(self.path / "scores.json"))

    def predictions(self) -> pd.DataFrame:
        """Out-of-fold predictions, with the columns path, fold, label and `p_<class>`.

        Raises:
            RunError: The file is missing or damaged.
        """
        return read_predictions(self.path, self.classes)

    def photos(self) -> pd.DataFrame:
        """Image table of the run, with the columns of `ImageDataset.table` and unit, fold, hash, width and height.

        Raises:
            RunError: The file is missing or damaged.
        """
        return read_images(self.path, self.classes)

    def head_files(self, delivered: bool = False) -> list[Path]:
        """Files of the heads, in fold order.

        Args:
            delivered: Return the heads that predict new images. If cross-validation was repeated, these are averaged
                over all fold assignments. Otherwise return the heads of the run's own folds, which have not seen their
                fold.
        """
        folders = [self.path / f"fold-{k}" for k in range(self.recipe.folds.n_splits)]
        repeated = delivered and self.info.get("repeats", 1) > 1
        return [folder / ("delivered.safetensors" if repeated else "head.safetensors") for folder in folders]


def open_run(path: str | Path) -> Run:
    """Open a finished run.

    Args:
        path: Run folder.

    Raises:
        RunError: The folder is not a run, or the run is unfinished, damaged, or written by a newer version.
        ArgumentTypeError: `path` is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise wrong_type("run", path, "a finished Run, or the path of its folder")
    path = on_disk(Path(path))
    _check_entries(path)
    info = _info(path)
    if info["status"] != "finished":
        raise RunError(
            f"{path}: this run is not finished; run its command again to go on: {info.get('command', 'unfreeze fit')}"
        )
    absent = [key for key in ("root", "classes", "answers", "attributes") if key not in info]
    if absent:
        raise RunError(
            f"{path / 'run.json'}: is damaged (no {join_names(absent)}); fit the run again with "
            f"{option('force', True)}."
        )
    wrong = validation_error(info)
    if wrong:
        raise RunError(f"{path / 'run.json'}: is damaged ({wrong}); fit the run again with {option('force', True)}.")
    return Run(path, read_recipe(path / "recipe.toml"), info)


def as_run(run: str | Path | Run) -> Run:
    """Return `run` if it is a Run, else open the finished run in that folder. Raises the errors of `open_run`."""
    return run if isinstance(run, Run) else open_run(run)


def default_run_dir(recipe: Recipe, parent: Path = Path("runs")) -> Path:
    """Default run folder: the name of the source, the strategy, and a hash of the recipe.

    The same command therefore finds its own run again.
    """
    source = Path(recipe.source.path).resolve()
    name = source.stem if source.is_file() else source.name
    return (
        parent
        / f"{name or 'photos'}-{recipe.strategy}-{stable_hash(recipe.model_dump(mode='json', exclude={'tune'}))[:6]}"
    )


def check_writable(path: Path, recipe: Recipe, force: bool) -> None:
    """Check that a run may be written to a folder, before any work is done.

    Args:
        path: Run folder, which may not exist yet.
        recipe: Recipe of the new run.
        force: Accept a folder with any other run, finished or not. A folder that is not a run is still refused.

    Raises:
        RunError: The folder has other content, a finished run, or an unfinished run of another recipe.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: is a file; choose another {option('run', metavar='DIR')}.")
    _check_entries(path)
    if (path / "run.json").exists():
        if force:
            return
        if _info(path)["status"] == "finished":
            raise RunError(
                f"{path}: holds a finished run; {option('force', True)} overwrites it, "
                f"{wording(f'`unfreeze report {path}`', '`uf.write_report`')} shows it."
            )
        if (path / "recipe.toml").exists() and read_recipe(path / "recipe.toml") != recipe:
            raise RunError(
                f"{path}: holds an unfinished run of another recipe; choose another {option('run', metavar='DIR')}, "
                f"or {option('force', True)}."
            )
    elif path.exists():
        with translate_os_errors(path):
            strange = [p.name for p in path.iterdir() if not _is_beginning(p)]
        if strange:
            raise RunError(
                f"{path}: exists and is not a run (it holds {join_names(sorted(strange), 3)}); choose another "
                f"{option('run', metavar='DIR')}."
            )


@contextlib.contextmanager
def create_run(path: Path, recipe: Recipe, photos: ImageDataset, command: str, force: bool) -> Iterator[None]:
    """Open a run folder for writing while the block runs.

    The folder is new, has an unfinished run of the same recipe, or is cleared by `force`. Only the run's own files are
    touched. If an error occurs in a new folder before its first fold is written, the folder is removed.

    Args:
        path: Run folder.
        recipe: Recipe of the run.
        photos: Dataset of the run.
        command: Command that reproduces the run.
        force: Delete the files of a run in this folder first.

    Raises:
        RunError: As by `check_writable`, or another process is writing the run.
        StorageError: The folder cannot be written.
    """
    check_writable(path, recipe, force)
    with translate_os_errors(path):
        new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        check_writable(path, recipe, force)  # again: another process may have finished the run meanwhile
        for folder in (path, *path.glob("fold-*")):
            _clear_temporary(folder)
        if force:
            clear(path)
        write_text(path / "recipe.toml", recipe.to_toml())
        root = str(photos.root.resolve())
        write_json(
            path / "run.json",
            {
                "format": FORMAT,
                "status": "running",
                "root": root,
                "classes": list(photos.classes),
                "answers": list(photos.answers),
                "attributes": list(photos.attributes),
                "reader": photos.reader,
                "choice": photos.choice,
                "command": command,
                "strategy": recipe.strategy,
                "backbone": recipe.backbone,
                "started": (started := datetime.now(UTC).isoformat(timespec="seconds")),
                "signature": sign(_signed_part(root, started)),
            },
        )
        try:
            yield
        except UnfreezeError:
            if new and not any(path.glob("fold-*")):
                clear(path)
                with contextlib.suppress(OSError):  # Windows does not delete open files
                    (path / ".lock").unlink(missing_ok=True)
                    path.rmdir()
            raise


def finalize_run(path: Path, **more: Any) -> Run:
    """Mark the run as finished.

    This is the last write of a run, so a finished run is complete.

    Args:
        path: Run folder.
        **more: Further entries of run.json.
    """
    info = {
        **_info(path),
        **more,
        "status": "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(path / "run.json", info)
    return open_run(path)


def save_findings(path: Path, findings: tuple[Finding, ...]) -> None:
    """Write findings.json, errors first."""
    write_json(path / "findings.json", findings_frame(findings).to_dict("records"))


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically as Parquet."""
    atomic_write(path, lambda p: table.to_parquet(p, index=False))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of the log.jsonl of a run (fold, epoch, losses and scores). Damaged lines are skipped."""
    rows = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in regular_file(path / "log.jsonl", MAX_LOG_BYTES).read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """List the runs in or directly below a folder, and those of comparisons and searches in it.

    Returns:
        One dict per run: `run` and `status`; if run.json is readable also `strategy`, `backbone` and `finished`; if the
        run is finished also `photos`, `groups`, `macro_f1`, `accuracy` and `selection`.
    """
    rows = []
    for file in [f for at in PLACES for f in sorted(folder.glob(f"{at}run.json"))]:
        row: dict[str, Any] = {"run": str(file.parent), "status": "unreadable"}
        with contextlib.suppress(RunError, KeyError, TypeError):  # a damaged run must not hide the others
            info = _info(file.parent)
            row |= {k: info.get(k) for k in ("status", "strategy", "backbone", "finished")}
            if info["status"] == "finished":
                scores = read_scores(file.parent / "scores.json")
                row |= {k: scores["out_of_fold"][k] for k in ("photos", "groups")}
                row |= {k: scores[k] for k in ("macro_f1", "accuracy")}
                row["selection"] = selection_of(file.parent)
        rows.append(row)
    return rows


def selection_of(path: Path) -> dict[str, Any] | None:
    """How `compare` or `tune` selected a run by its score (selection.json).

    Returns:
        `by`, `among` and `estimate`, or None if the run was not selected.

    Raises:
        RunError: The file is damaged.
    """
    file = path / SELECTION
    if not file.exists():
        return None
    found = read_run_json(file)
    try:
        ends = [float(value) for value in found["estimate"].values()]
        whole = {"value"} <= found["estimate"].keys() <= {"value", "low", "high"} and len(ends) in (1, 3)
        if whole and found["by"] in ("compare", "tune") and int(found["among"]) > 0 and all(map(math.isfinite, ends)):
            return {"by": found["by"], "among": int(found["among"]), "estimate": found["estimate"]}
    except (TypeError, ValueError, KeyError, AttributeError):
        pass
    raise RunError(f"{file}: is damaged; remove it and run the comparison or search again.")


def is_own(info: dict[str, Any]) -> bool:
    """Whether this user wrote this run.json on this machine. Only then is its data folder trusted."""
    return is_signed(_signed_part(info.get("root"), info.get("started")), info.get("signature"))


def _signed_part(root: object, started: object) -> list[object]:
    return ["run", root, started]


def _info(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder.{_neighbours(path)}")
    if not (path / "run.json").is_file():
        raise RunError(f"{path}: is not a run (it has no run.json).{_neighbours(path / 'x')}")
    info = read_run_json(path / "run.json")
    if not isinstance(info, dict) or "format" not in info or "status" not in info:
        raise RunError(f"{path / 'run.json'}: is damaged; fit the run again with {option('force', True)}.")
    if not isinstance(info["format"], int) or info["format"] > FORMAT:
        raise RunError(
            f"{path}: was written by a newer unfreeze (format {info['format']}, this one reads up to {FORMAT}); "
            "upgrade: pip install -U unfreeze."
        )
    return info


def _check_entries(path: Path) -> None:
    folds = sorted(entry.name for entry in path.glob("fold-*") if _FOLD.fullmatch(entry.name))
    check_entries(path, (*_FILES, CORRECTIONS, "scratch", TENSORBOARD, *folds))


def _neighbours(path: Path) -> str:
    parent = path.parent
    names = sorted(str(p.parent) for p in parent.glob("*/run.json")) if parent.is_dir() else []
    return f" Runs nearby: {join_names(names)}." if names else ""


def _is_beginning(file: Path) -> bool:
    """Whether a file can stem from a run that was interrupted before it wrote run.json."""
    began = file.name == "recipe.toml" and (file.parent / ".lock").exists()
    return began or file.name == ".lock" or _TEMPORARY.fullmatch(file.name) is not None


def clear(path: Path) -> None:
    """Delete the run's own files, run.json last, so that an interrupted deletion still leaves a run."""
    _clear_temporary(path)
    if not (path / "scratch").is_symlink():
        shutil.rmtree(path / "scratch", ignore_errors=True)
    for folder in path.glob("fold-*"):
        if _FOLD.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            _clear_temporary(folder)
            for file in folder.glob("*.safetensors"):
                file.unlink()
            with contextlib.suppress(OSError):  # not empty: it has files of the user
                folder.rmdir()
    for file in (path / TENSORBOARD).glob("events.out.tfevents.*"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # missing, or it has files of the user
        (path / TENSORBOARD).rmdir()
    for name in [name for name in _FILES if name not in (".lock", "run.json")] + ["run.json"]:
        (path / name).unlink(missing_ok=True)


def _clear_temporary(path: Path) -> None:
    for file in path.glob(".*"):
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with translate_os_errors(path):
        lock = file_lock(path / ".lock", timeout=_PATIENCE)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{path}: another process is writing this run; wait for it or choose another "
                f"{option('run', metavar='DIR')}."
            ) from None
    try:
        yield
    finally:
        lock.release()
