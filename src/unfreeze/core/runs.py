"""Run folders: plain files are the truth; begun, resumed, finished, listed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RunError, listed
from unfreeze.core.files import storage_errors, write_json, write_text, write_whole
from unfreeze.core.recipe import Recipe, read_recipe
from unfreeze.core.tables import Finding, Photos, findings_table

FORMAT = 1
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
    ".lock",
]


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

    def scores(self) -> dict[str, Any]:
        """scores.json: `out_of_fold` as judge.metrics gives it, `folds`, and `test` or `random_split` if there."""
        return _json(self.path / "scores.json")

    def predictions(self) -> pd.DataFrame:
        """The out-of-fold predictions: path, fold, label, p_<class>."""
        return _parquet(self.path / "oof.parquet")

    def photos(self) -> pd.DataFrame:
        """The photos table with unit, fold, hash, width and height."""
        return _parquet(self.path / "photos.parquet")

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
    return Run(path, read_recipe(path / "recipe.toml"), info)


def default_folder(recipe: Recipe, parent: Path = Path("runs")) -> Path:
    """Where a run goes if nobody says: the source's name and a mark of the recipe, so that a command finds its own run."""
    source = Path(recipe.source.path).resolve()
    name = source.stem if source.is_file() else source.name
    return parent / f"{name or 'photos'}-{recipe.strategy}-{fingerprint(recipe.model_dump(mode='json'))[:6]}"


@contextlib.contextmanager
def begin(path: Path, recipe: Recipe, photos: Photos, command: str, force: bool) -> Iterator[None]:
    """Opens a run folder for writing: new, or unfinished with the same recipe, or cleared by `force`.

    Raises RunError if the folder holds something else, a finished run, a run of another recipe, or one that
    another process is writing. Nothing outside the run's own files is ever touched.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: is a file; choose another --run folder.")
    if (path / "run.json").exists():
        info = {"status": "unreadable"} if force else _info(path)
        if info["status"] == "finished":
            raise RunError(f"{path}: holds a finished run; --force fits it anew, `unfreeze report {path}` shows it.")
        if not force and (path / "recipe.toml").exists() and read_recipe(path / "recipe.toml") != recipe:
            raise RunError(f"{path}: holds an unfinished run of another recipe; choose another --run, or --force.")
    elif path.exists() and any(p.name not in _FILES for p in path.iterdir()):
        raise RunError(f"{path}: exists and is not a run; choose another --run folder.")
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if force:
            _clear(path)
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
        yield


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


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """One dict a run below `folder` (itself included): path, status, strategy, backbone, photos, macro_f1, accuracy, finished."""
    rows = []
    for file in sorted(folder.glob("run.json")) + sorted(folder.glob("*/run.json")):
        row: dict[str, Any] = {"run": str(file.parent), "status": "unreadable"}
        with contextlib.suppress(RunError):
            info = _info(file.parent)
            row |= {k: info.get(k) for k in ("status", "strategy", "backbone", "finished")}
            if info["status"] == "finished":
                score = _json(file.parent / "scores.json")["out_of_fold"]
                row |= {k: score[k] for k in ("photos", "groups", "macro_f1", "accuracy")}
        rows.append(row)
    return rows


def _info(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder.{_neighbours(path)}")
    if not (path / "run.json").is_file():
        raise RunError(f"{path}: is not a run (it has no run.json).{_neighbours(path / 'x')}")
    info = _json(path / "run.json")
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


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: is missing; the run is not whole, fit it again with --force.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with --force.") from None


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise RunError(f"{path}: is missing; the run is not whole, fit it again with --force.") from None
    except Exception as error:  # pyarrow's errors have no common base that is ours to name
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with --force.") from None


def _clear(path: Path) -> None:
    for name in _FILES:
        if name != ".lock":
            (path / name).unlink(missing_ok=True)
    for folder in path.glob("fold-*"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with storage_errors(path), (path / ".lock").open("w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{path}: another process is writing this run; wait for it or choose another --run."
                ) from None
        yield
