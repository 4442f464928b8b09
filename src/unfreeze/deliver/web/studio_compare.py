"""The page that holds runs against each other, as `unfreeze compare` does."""

from __future__ import annotations

import shlex
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from unfreeze.core.errors import RunError
from unfreeze.deliver import plots
from unfreeze.deliver.web.studio_library import run_url
from unfreeze.deliver.web.studio_shell import Studio
from unfreeze.study.compare import Comparison, compare

MOST = 8  # runs at once


def pages(studio: Studio) -> APIRouter:
    """The route of the comparison."""
    router = APIRouter()

    @lru_cache(maxsize=8)
    def found(paths: tuple[Path, ...], stamps: tuple[int, ...]) -> Comparison:
        return compare(paths)

    @router.get("/compare")
    def show(run: Annotated[list[str] | None, Query()] = None) -> Response:
        names = list(dict.fromkeys(run or []))
        if not 2 <= len(names) <= MOST:
            raise RunError(f"Choose 2 to {MOST} finished runs in the list to compare them.")
        paths = tuple(studio.library.run(name) for name in names)
        told = found(paths, tuple((path / "run.json").stat().st_mtime_ns for path in paths))
        command = shlex.join(["unfreeze", "compare", *map(str, paths)])
        urls = {str(path): run_url(name) for name, path in zip(names, paths, strict=True)}
        return studio.page("studio_compare.html", here="runs", command_text=command, **described(told, urls))

    return router


def described(told: Comparison, urls: dict[str, str]) -> dict[str, Any]:
    """What the page shows of a comparison. Contenders are named after their folders; urls: run -> its page."""
    rows = [
        {
            "name": one.name,
            "url": urls[str(one.run)],
            "base": one is told.base,
            "changes": "; ".join(f"{key} {_word(value)}" for key, value in one.changes.items()),
            "macro_f1": vars(one.macro_f1),
            "accuracy": vars(one.accuracy),
            "more": one.difference,
            "more_accurate": one.accuracy_difference,
            "folds": "" if one.wins is None or one is told.base else f"{one.wins} to {one.losses}",
        }
        for one in told.contenders
    ]
    return {
        "finding": told.sentence,
        "rows": rows,
        "base": told.base.name,
        "best": told.best,
        "classes": sorted(told.classes, key=lambda row: -abs(row.difference.value)),
        "photos": told.photos,
        "groups": told.groups,
        "folds": told.folds,
        "notes": told.notes,
        "chance": told.chance,
        "bar": plots.interval_bar,
    }


def _word(value: object) -> str:
    """A recipe's value as it is read, not as Python writes it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or "none"
    return str(value) if value != "" else "none"
