"""Folder of a hyperparameter search: identity, locks and cleanup.

A search is identified by `search_key`. Several processes may work in one folder; each holds a worker lock while alive.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unfreeze.analysis.tuning.space import Dimension
from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import RecipeError, RunError, StorageError
from unfreeze.core.files import read_record, translate_os_errors, write_json
from unfreeze.core.messages import option
from unfreeze.core.processes import file_lock
from unfreeze.core.recipe import Recipe, read_recipe
from unfreeze.core.runs import clear
from unfreeze.features.inputs import feature_extractors
from unfreeze.training.context import FitContext

DATABASE, RECORD, BEST, PAGE, NESTED = "search.db", "tune.json", "best.toml", "tune.html", "nested"
_SECONDS_LOCKED = 120


def folder_of(recipe: Recipe, space: tuple[Dimension, ...], parent: Path = Path("runs")) -> Path:
    """Default folder of a search, independent of the number of trials and the budget, so that it can be extended."""
    source = Path(recipe.source.path).resolve()
    name = source.stem if source.is_file() else source.name
    about = [recipe.model_dump(mode="json", exclude={"tune"}), *_how(recipe, space)]
    return parent / f"tune-{name or 'photos'}-{stable_hash(about)[:6]}"


def search_key(work: FitContext, space: tuple[Dimension, ...]) -> str:
    """Identity of a search: recipe, space, weights, and images by content with labels, groups and folds."""
    recipe = work.recipe
    about = [recipe.model_dump(mode="json", exclude={"tune", "source"}), *_how(recipe, space), work.photos.classes]
    about += [graph.described() for graph in feature_extractors(recipe)]
    return stable_hash([*about, *(a.tolist() for a in (work.looks.keys, work.labels, work.units, work.folds))])


def _how(recipe: Recipe, space: tuple[Dimension, ...]) -> list[Any]:
    return [recipe.tune.n_splits, recipe.tune.pruner, [one.describe() for one in space]]


def search_lock(folder: Path) -> FileLock:
    """Lock held while a process opens the folder or requests a trial."""
    return file_lock(folder / f".{DATABASE}.lock", timeout=_SECONDS_LOCKED)


def worker_lock(folder: Path, worker: str) -> FileLock:
    """Lock held by a process for as long as it works on the search."""
    return file_lock(folder / f".worker-{worker}.lock")


def is_alive(folder: Path, worker: str) -> bool:
    """Whether the worker with this name still holds its lock. The lock file of a dead worker is deleted."""
    lock = worker_lock(folder, worker)
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
    return False


def open_folder(folder: Path, mark: str, force: bool) -> None:
    """Create the folder of a search, or check that it belongs to this search.

    Args:
        folder: Folder of the search.
        mark: Identity of the search, from `search_key`.
        force: Clear another search in the folder; anything else in it is still refused.

    Raises:
        RunError: If the folder holds another search or other files, or another process searches in it.
        StorageError: If the folder cannot be used or stays locked.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; choose another {option('folder', metavar='DIR', command='run')}.")
    with translate_os_errors(folder):
        _refuse(folder, mark, force)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with search_lock(folder):
                known = _refuse(folder, mark, force)  # again under the lock: another process may have started meanwhile
                if known == mark and not force:
                    return
                workers = [p.name.removeprefix(".worker-").removesuffix(".lock") for p in folder.glob(".worker-*.lock")]
                if any(is_alive(folder, worker) for worker in workers):
                    raise RunError(
                        f"{folder}: another process searches there; wait for it or choose another "
                        f"{option('folder', metavar='DIR', command='run')}."
                    )
                _clear(folder)
                write_json(folder / RECORD, {"identity": mark, "status": "searching"})
        except Timeout:
            raise StorageError(f"{folder}: another process holds it; run the same command again.") from None


def _refuse(folder: Path, mark: str, force: bool) -> str:
    """Identity of the search in the folder, '' if there is none. Raises RunError if the new search may not use it."""
    known = str(record(folder).get("identity", ""))
    if not known and (folder / DATABASE).exists():
        if not force:
            raise RunError(f"{folder / RECORD}: is damaged or missing; {option('force', True)} starts a new search.")
    elif not known and folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise RunError(
            f"{folder}: exists and is not a search; choose another {option('folder', metavar='DIR', command='run')}."
        )
    elif known and known != mark and not force:
        raise RunError(
            f"{folder}: holds a search of other photos or another recipe; {option('force', True)} replaces it."
        )
    return known


def cleanup(folder: Path, *names: str) -> None:
    """Delete temporary files that an interrupted write of these files left behind.

    The caller must be the only process that writes them.
    """
    for name in names:
        for file in folder.glob(f".{name}.*.tmp*"):
            file.unlink(missing_ok=True)


def record(folder: Path) -> dict[str, Any]:
    """Content of tune.json; empty if it is absent or damaged."""
    return read_record(folder / RECORD, lambda found: found if isinstance(found, dict) else None) or {}


def _clear(folder: Path) -> None:
    """Delete the files of an earlier search."""
    # SQLite would replay a stale journal into the next database
    for name in (DATABASE, f"{DATABASE}-journal", BEST, PAGE):
        (folder / name).unlink(missing_ok=True)
    if not (folder / NESTED).is_symlink():
        shutil.rmtree(folder / NESTED, ignore_errors=True)
    for name in ("base", "best"):
        clear_run(folder / name)


def clear_run(place: Path, recipe: Recipe | None = None) -> None:
    """Delete the run of an earlier search, unless it is of this recipe."""
    if not (place / "run.json").exists():
        return
    if recipe is not None:
        with contextlib.suppress(RecipeError):  # damaged: fit again
            if read_recipe(place / "recipe.toml") == recipe:
                return
    clear(place)
