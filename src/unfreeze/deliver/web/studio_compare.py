"""The page that holds runs against each other."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response

from unfreeze.core.errors import RunError
from unfreeze.core.tables import probability_columns
from unfreeze.deliver import plots
from unfreeze.deliver.web.studio_library import run_url
from unfreeze.deliver.web.studio_shell import Studio
from unfreeze.judge.many import accuracy, macro, many_differences

MOST = 8  # runs at once


def pages(studio: Studio) -> APIRouter:
    """The route of the comparison."""
    router = APIRouter()

    @router.get("/compare")
    def compare(run: Annotated[list[str] | None, Query()] = None) -> Response:
        names = list(dict.fromkeys(run or []))
        context = compared(studio, names)
        return studio.page("studio_compare.html", here="runs", names=names, **context)

    return router


def compared(studio: Studio, names: list[str]) -> dict[str, Any]:
    """Each run against the first, on the photos that all have predicted out of fold. RunError: they cannot be compared."""
    if not 2 <= len(names) <= MOST:
        raise RunError(f"Choose 2 to {MOST} finished runs in the list to compare them.")
    materials = {name: studio.library.material(name) for name in names}
    base = materials[names[0]]
    for name, m in materials.items():
        if set(m.classes) != set(base.classes):
            raise RunError(f"{name}: has other classes than {names[0]}, so the two cannot be compared.")
    place = {label: i for i, label in enumerate(base.classes)}
    columns = probability_columns(base.classes)
    tables = {}
    for name, m in materials.items():
        where = m.root.resolve()
        oof = m.oof.merge(m.photos[["path", "unit"]], on="path")
        tables[name] = oof.assign(file=[str(where / path) for path in oof["path"]]).set_index("file")
    common = set.intersection(*(set(t.index) for t in tables.values()))
    files = sorted(f for f in common if len({t.at[f, "label"] for t in tables.values()}) == 1)
    if not files:
        raise RunError("These runs have no photo with the same label in common, so they cannot be compared.")
    same = all((tables[n].loc[files, "fold"] == tables[names[0]].loc[files, "fold"]).all() for n in names)
    told = {n: t.loc[files, columns].to_numpy(float).argmax(1) for n, t in tables.items()}
    first = tables[names[0]].loc[files]
    truth = np.array([place[label] for label in first["label"]])
    others = {name: told[name] for name in names[1:]}
    metrics = {"macro_f1": macro, "accuracy": accuracy}
    found = many_differences(truth, told[names[0]], others, first["unit"].to_numpy(), len(place), metrics)
    rows = []
    for name in names:
        row = found["" if name == names[0] else name]
        strategy = str(materials[name].info.get("strategy", ""))
        rows.append({"name": name, "url": run_url(name), "strategy": strategy, "base": name == names[0], **row})
    return {
        "rows": rows,
        "photos": len(files),
        "left": max(len(t) for t in tables.values()) - len(files),
        "groups": int(first["unit"].nunique()),
        "same": same,
        "bar": plots.interval_bar,
        "finding": _finding(names[0], rows[1:]),
        "command": [str(studio.library.run(name)) for name in names],
    }


def _finding(base: str, rows: list[dict[str, Any]]) -> str:
    best = max(rows, key=lambda row: row["macro_f1"]["difference"]["value"])
    change = best["macro_f1"]["difference"]
    told = change["low"] > 0 or change["high"] < 0
    verb = "more" if change["value"] >= 0 else "less"
    sure = "" if told else ", which may be chance"
    low, high = (f"{change[end]:+.3f}".replace("-", "−") for end in ("low", "high"))
    return (
        f"“{best['name']}” reaches {plots.score(abs(change['value']))} {verb} macro F1 than “{base}” "
        f"(95 % interval {low} to {high}){sure}."
    )
