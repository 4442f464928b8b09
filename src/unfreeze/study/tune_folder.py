"""The folder of a search: what it is of, who works in it, what is cleared when another begins there."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RecipeError, RunError, StorageError
from unfreeze.core.files import read_json, storage_errors, write_json
from unfreeze.core.recipe import Recipe, read_recipe
from unfreeze.core.runs import clear
from unfreeze.learn.fitting import Work
from unfreeze.learn.probe.inputs import graphs_of
from unfreeze.study.space import Dimension

DATABASE, RECORD, BEST, PAGE, NESTED = "search.db", "tune.json", "best.toml", "tune.html", "nested"
_SECONDS_LOCKED = 120


def folder_of(recipe: Recipe, space: tuple[Dimension, ...], parent: Path = Path("runs")) -> Path:
    """Where a search goes if nobody says: the same for more trials or another budget, so that it goes on there."""
    source = Path(recipe.source.path).resolve()
    name = source.stem if source.is_file() else source.name
    about = [recipe.model_dump(mode="json", exclude={"tune"}), *_how(recipe, space)]
    return parent / f"tune-{name or 'photos'}-{fingerprint(about)[:6]}"


def mark_of(work: Work, space: tuple[Dimension, ...]) -> str:
    """Names what a search is of: recipe, space and weights; photos by content, their labels, groups and folds."""
    recipe = work.recipe
    about = [recipe.model_dump(mode="json", exclude={"tune", "source"}), *_how(recipe, space), work.photos.classes]
    about += [graph.described() for graph in graphs_of(recipe)]
    return fingerprint([*about, *(a.tolist() for a in (work.looks.keys, work.labels, work.units, work.folds))])


def _how(recipe: Recipe, space: tuple[Dimension, ...]) -> list[Any]:
    return [recipe.tune.parts, recipe.tune.pruner, [one.told() for one in space]]


def turn(folder: Path) -> FileLock:
    """Held while a process opens the folder or takes a trial: one at a time."""
    return FileLock(folder / f".{DATABASE}.lock", timeout=_SECONDS_LOCKED)


def worker_lock(folder: Path, worker: str) -> FileLock:
    """Held by a process as long as it works on the search."""
    return FileLock(folder / f".worker-{worker}.lock")


def at_work(folder: Path, worker: str) -> bool:
    """Whether the process of that name is alive and still works on the search."""
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
    """Makes the folder one of this search, or finds it so.

    RunError where it holds another search or something else; `force` clears another search, and nothing else.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; choose another --run folder.")
    with storage_errors(folder):
        _refuse(folder, mark, force)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with turn(folder):
                known = _refuse(folder, mark, force)  # once more: another process may have begun meanwhile
                if known == mark and not force:
                    return
                workers = [p.name.removeprefix(".worker-").removesuffix(".lock") for p in folder.glob(".worker-*.lock")]
                if any(at_work(folder, worker) for worker in workers):
                    raise RunError(f"{folder}: another process searches there; wait for it or choose another --run.")
                _clear(folder)
                write_json(folder / RECORD, {"identity": mark, "status": "searching"})
        except Timeout:
            raise StorageError(f"{folder}: another process holds it; run the same command again.") from None


def _refuse(folder: Path, mark: str, force: bool) -> str:
    """The mark of the search that the folder holds, '' for none. RunError if this one may not go there."""
    known = str(record(folder).get("identity", ""))
    if not known and (folder / DATABASE).exists():
        if not force:
            raise RunError(f"{folder / RECORD}: is damaged or missing; --force begins the search anew.")
    elif not known and folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise RunError(f"{folder}: exists and is no search; choose another --run folder.")
    elif known and known != mark and not force:
        raise RunError(f"{folder}: holds a search of other photos or another recipe; --force begins anew over it.")
    return known


def sweep(folder: Path, *names: str) -> None:
    """Deletes what a kill has left of writing these files; for who alone may write them now."""
    for name in names:
        for file in folder.glob(f".{name}.*.tmp*"):
            file.unlink(missing_ok=True)


def record(folder: Path) -> dict[str, Any]:
    """What tune.json says; nothing where there is none."""
    try:
        found = read_json(folder / RECORD)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _clear(folder: Path) -> None:
    """Deletes what an earlier search has left there."""
    for name in (DATABASE, f"{DATABASE}-journal", BEST, PAGE):  # a journal would be played into the next database
        (folder / name).unlink(missing_ok=True)
    if not (folder / NESTED).is_symlink():
        shutil.rmtree(folder / NESTED, ignore_errors=True)
    for name in ("base", "best"):
        make_way(folder / name)


def make_way(place: Path, recipe: Recipe | None = None) -> None:
    """Clears a run that an earlier search has left there, unless it is of this recipe."""
    if not (place / "run.json").exists():
        return
    if recipe is not None:
        with contextlib.suppress(RecipeError):  # damaged: fitted anew
            if read_recipe(place / "recipe.toml") == recipe:
                return
    clear(place)
