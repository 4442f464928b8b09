"""Run folders: plain files are the truth; begun, resumed, finished, listed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RunError, UnfreezeError, listed
from unfreeze.core.files import storage_errors, write_json, write_text, write_whole
from unfreeze.core.recipe import Recipe, read_recipe
from unfreeze.core.run_files import json_of, photos_of, predictions_of, scores_of, unlike
from unfreeze.core.tables import Finding, Photos, findings_table

FORMAT = 1
PLACES = ("", "*/", "compare-*/*/", "tune-*/*/")  # of runs below a folder: those of comparisons and searches lie deeper
# What trackers leave: their own numbers of the run, and TensorBoard's event files.
TRACKING, TENSORBOARD = "tracking.json", "tensorboard"
# All that a run may hold; --force clears these and nothing else.
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
    "advice.json",
    "diagnosis.json",
    "suspects.json",
    "explained.json",
    TRACKING,
    ".lock",
]
_FOLD = re.compile(r"fold-[0-9]+")
# What write_whole leaves behind if the process is killed in the middle of it.
_TEMPORARY = re.compile(rf"\.({'|'.join(map(re.escape, _FILES))}|[a-z]+\.safetensors)\.[0-9a-f]{{8}}\.tmp(\.[a-z]+)?")


@dataclass(frozen=True)
class Member:
    """Folds of a run that were learnt alike: what was asked for them, and what prediction must know."""

    folds: tuple[int, ...]
    recipe: Recipe
    info: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run. `info` is run.json: classes, answers, attributes, root, backbone, views, choice, command."""

    path: Path
    recipe: Recipe
    info: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class, in the order of all probability columns."""
        return tuple(self.info["classes"])

    @property
    def members(self) -> tuple[Member, ...]:
        """One for all folds, unless strategy auto chose differently for some. RunError where run.json is damaged."""
        if self.recipe.strategy != "auto":
            return (Member(tuple(range(self.recipe.folds.count)), self.recipe, self.info),)
        try:
            members = tuple(
                Member(tuple(map(int, m["folds"])), self.recipe.replace(**m["changes"]), {**self.info, **m["info"]})
                for m in self.info["members"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{self.path}: run.json is damaged (members: {error}); fit the run again.") from None
        if sorted(k for m in members for k in m.folds) != list(range(self.recipe.folds.count)):
            raise RunError(f"{self.path}: run.json is damaged (members lack folds); fit the run again.")
        return members

    @property
    def strategies(self) -> tuple[str, ...]:
        """What was done: the recipe's strategy, or those that strategy auto chose."""
        return tuple(dict.fromkeys(member.recipe.strategy for member in self.members))

    def scores(self) -> dict[str, Any]:
        """scores.json: `out_of_fold` as judge.metrics gives it, `folds`, and `test` or `random_split` if there."""
        return scores_of(self.path / "scores.json")

    def predictions(self) -> pd.DataFrame:
        """The out-of-fold predictions: path, fold, label, p_<class>."""
        return predictions_of(self.path, self.classes)

    def photos(self) -> pd.DataFrame:
        """The photos table with unit, fold, hash, width and height."""
        return photos_of(self.path, self.classes)

    def head_files(self) -> list[Path]:
        """The heads' files, in fold order."""
        return [self.path / f"fold-{k}" / "head.safetensors" for k in range(self.recipe.folds.count)]


def open_run(path: str | Path) -> Run:
    """The finished run in a folder. RunError if it is none, unfinished, damaged, or of a newer version."""
    path = Path(path)
    info = _info(path)
    if info["status"] != "finished":
        raise RunError(
            f"{path}: this run is not finished; run its command again to go on: {info.get('command', 'unfreeze fit')}"
        )
    absent = [key for key in ("root", "classes", "answers", "attributes") if key not in info]
    if absent:
        raise RunError(f"{path / 'run.json'}: is damaged (no {listed(absent)}); fit the run again with --force.")
    wrong = unlike(info)
    if wrong:
        raise RunError(f"{path / 'run.json'}: is damaged ({wrong}); fit the run again with --force.")
    return Run(path, read_recipe(path / "recipe.toml"), info)


def default_folder(recipe: Recipe, parent: Path = Path("runs")) -> Path:
    """Where a run goes if nobody says: the source's name and a mark of the recipe; a command finds its own run."""
    source = Path(recipe.source.path).resolve()
    name = source.stem if source.is_file() else source.name
    return (
        parent
        / f"{name or 'photos'}-{recipe.strategy}-{fingerprint(recipe.model_dump(mode='json', exclude={'tune'}))[:6]}"
    )


def refuse(path: Path, recipe: Recipe, force: bool) -> None:
    """Raises RunError if a run may not be written to `path`: before any work is done for it.

    That is where the folder holds something else, a finished run, or an unfinished one of another recipe.
    `force` is for runs: a folder that is none stays refused.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: is a file; choose another --run folder.")
    if (path / "run.json").exists():
        if force:
            return
        if _info(path)["status"] == "finished":
            raise RunError(f"{path}: holds a finished run; --force fits it anew, `unfreeze report {path}` shows it.")
        if (path / "recipe.toml").exists() and read_recipe(path / "recipe.toml") != recipe:
            raise RunError(f"{path}: holds an unfinished run of another recipe; choose another --run, or --force.")
    elif path.exists():
        with storage_errors(path):
            strange = [p.name for p in path.iterdir() if not _is_beginning(p)]
        if strange:
            raise RunError(
                f"{path}: exists and is not a run (it holds {listed(sorted(strange), 3)}); choose another --run folder."
            )


@contextlib.contextmanager
def begin(path: Path, recipe: Recipe, photos: Photos, command: str, force: bool) -> Iterator[None]:
    """Opens a run folder for writing: new, or unfinished with the same recipe, or cleared by `force`.

    Raises RunError as `refuse` does, or if another process is writing the run. Nothing outside the run's own
    files is ever touched; a folder that an error leaves without a single head is taken away again.
    """
    refuse(path, recipe, force)
    with storage_errors(path):
        new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        refuse(path, recipe, force)  # once more: another process may have finished it before we had the lock
        for folder in (path, *path.glob("fold-*")):
            _clear_temporary(folder)
        if force:
            clear(path)
        write_text(path / "recipe.toml", recipe.to_toml())
        write_json(
            path / "run.json",
            {
                "format": FORMAT,
                "status": "running",
                "root": str(photos.root.resolve()),
                "classes": list(photos.classes),
                "answers": list(photos.answers),
                "attributes": list(photos.attributes),
                "reader": photos.reader,
                "choice": photos.choice,
                "command": command,
                "strategy": recipe.strategy,
                "backbone": recipe.backbone,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
        try:
            yield
        except UnfreezeError:
            if new and not any(path.glob("fold-*")):
                clear(path)
                (path / ".lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise


def finish(path: Path, **more: Any) -> Run:
    """Marks the run finished: the last thing written, so that a finished run is whole."""
    info = {
        **_info(path),
        **more,
        "status": "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(path / "run.json", info)
    return open_run(path)


def save_findings(path: Path, findings: tuple[Finding, ...]) -> None:
    """findings.json, errors first."""
    write_json(path / "findings.json", findings_table(findings).to_dict("records"))


def save_table(path: Path, table: pd.DataFrame) -> None:
    """A table as Parquet, written whole."""
    write_whole(path, lambda p: table.to_parquet(p, index=False))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of the run's log.jsonl: fold, epoch and what `learn.train.loop.fit` tells. Damaged lines are passed over."""
    rows = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (path / "log.jsonl").read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """One dict a run in or right below `folder`, or in a comparison's or search's folder there: `run`, `status`; if it
    is whole also `strategy`, `backbone`, `finished`, `photos`, `groups`, `macro_f1`, `accuracy`.
    """
    rows = []
    for file in [f for at in PLACES for f in sorted(folder.glob(f"{at}run.json"))]:
        row: dict[str, Any] = {"run": str(file.parent), "status": "unreadable"}
        with contextlib.suppress(RunError, KeyError, TypeError):  # a damaged run must not hide the others
            info = _info(file.parent)
            row |= {k: info.get(k) for k in ("status", "strategy", "backbone", "finished")}
            if info["status"] == "finished":
                score = scores_of(file.parent / "scores.json")["out_of_fold"]
                row |= {k: score[k] for k in ("photos", "groups", "macro_f1", "accuracy")}
        rows.append(row)
    return rows


def _info(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder.{_neighbours(path)}")
    if not (path / "run.json").is_file():
        raise RunError(f"{path}: is not a run (it has no run.json).{_neighbours(path / 'x')}")
    info = json_of(path / "run.json")
    if not isinstance(info, dict) or "format" not in info or "status" not in info:
        raise RunError(f"{path / 'run.json'}: is damaged; fit the run again with --force.")
    if not isinstance(info["format"], int) or info["format"] > FORMAT:
        raise RunError(
            f"{path}: was written by a newer unfreeze (format {info['format']}, this one reads up to {FORMAT}); "
            "upgrade: pip install -U unfreeze."
        )
    return info


def _neighbours(path: Path) -> str:
    parent = path.parent
    names = sorted(str(p.parent) for p in parent.glob("*/run.json")) if parent.is_dir() else []
    return f" Runs nearby: {listed(names)}." if names else ""


def _is_beginning(file: Path) -> bool:
    """Whether a run that was cut off before its run.json was there can have left this file."""
    began = file.name == "recipe.toml" and (file.parent / ".lock").exists()
    return began or file.name == ".lock" or _TEMPORARY.fullmatch(file.name) is not None


def clear(path: Path) -> None:
    """Deletes the run's own files; run.json last, so that what is left of a clearing cut off is still a run."""
    _clear_temporary(path)
    if not (path / "scratch").is_symlink():
        shutil.rmtree(path / "scratch", ignore_errors=True)
    for folder in path.glob("fold-*"):
        if _FOLD.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            _clear_temporary(folder)
            for file in folder.glob("*.safetensors"):
                file.unlink()
            with contextlib.suppress(OSError):  # not empty: somebody keeps something of their own there
                folder.rmdir()
    for file in (path / TENSORBOARD).glob("events.out.tfevents.*"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or somebody keeps something of their own in it
        (path / TENSORBOARD).rmdir()
    for name in [name for name in _FILES if name not in (".lock", "run.json")] + ["run.json"]:
        (path / name).unlink(missing_ok=True)


def _clear_temporary(path: Path) -> None:
    for file in path.glob(".*"):
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with storage_errors(path):
        file = (path / ".lock").open("w")
    with file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{path}: another process is writing this run; wait for it or choose another --run."
                ) from None
        yield
