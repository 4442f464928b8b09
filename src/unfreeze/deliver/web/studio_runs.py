"""The pages about runs: the list, one run, its photos by what was said of them, its report, its progress."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response

from unfreeze.core.errors import RunError
from unfreeze.core.runs import read_log
from unfreeze.deliver import plots, sections
from unfreeze.deliver.report import glued
from unfreeze.deliver.web.studio_curves import curves
from unfreeze.deliver.web.studio_library import MissingError, photo_urls, predicted, run_url
from unfreeze.deliver.web.studio_shell import Studio, paged, photo_answer, written_page

COLUMNS = {
    "name": "Run",
    "status": "Status",
    "strategy": "Strategy",
    "backbone": "Backbone",
    "macro_f1": "Macro F1",
    "accuracy": "Accuracy",
    "photos": "Photos",
    "when": "Finished (UTC)",
}
NUMBERS = ("macro_f1", "accuracy", "photos")
ORDERS = {"sure": "surest first", "unsure": "least sure first", "path": "by name"}


def pages(studio: Studio) -> APIRouter:
    """The routes of runs."""
    router, library = APIRouter(), studio.library

    @router.get("/runs")
    def listing(request: Request, sort: str = "when", down: bool = True) -> Response:
        context = runs_table(studio, sort, down)
        if request.headers.get("hx-request"):
            return studio.part("studio_runs_table.html", **context)
        return studio.page("studio_runs.html", here="runs", questions=list(library.questions()), **context)

    @router.get("/questions/{name}")
    def question(name: str) -> Response:
        if (file := library.questions().get(name)) is None:
            raise MissingError(f"No comparison or search '{name}' here.")
        return written_page(file, studio.environment)

    @router.get("/runs/{name}")
    def one(name: str) -> Response:
        info, path = library.info(name), library.run(name)
        status = studio.status({"run": str(path), "status": info.get("status", "unreadable")})
        base: dict[str, Any] = {
            "name": name,
            "path": path,
            "info": info,
            "status": status,
            "url": run_url(name),
            "here": "runs",
        }
        if status != "finished":
            return studio.page("studio_run_open.html", **base, **live(studio, name, info))
        return studio.page("studio_run.html", **base, **finished(studio, name))

    @router.get("/runs/{name}/live")
    def progress(name: str) -> Response:
        info, path = library.info(name), library.run(name)
        status = studio.status({"run": str(path), "status": info.get("status", "unreadable")})
        if status == "finished":  # the page is another one now
            return Response(status_code=204, headers={"HX-Redirect": run_url(name)})
        context = live(studio, name, info)
        return studio.part("studio_run_live.html", name=name, url=run_url(name), status=status, info=info, **context)

    @router.get("/runs/{name}/report")
    def report(name: str) -> Response:
        return written_page(library.run(name) / "report.html", studio.environment)

    @router.get("/runs/{name}/photos")
    def photos(
        name: str, true: str = "", said: str = "", only: str = "", order: str = "sure", page: int = 1
    ) -> Response:
        context = told_photos(studio, name, true, said, only, order, page)
        return studio.page("studio_run_photos.html", name=name, url=run_url(name), here="runs", **context)

    @router.get("/runs/{name}/photo/{row}/{size}.jpg")
    def photo(name: str, row: int, size: str) -> Response:
        material = library.material(name)
        return photo_answer(library, material.root, material.photos["path"].array, row, size)

    return router


def runs_table(studio: Studio, sort: str, down: bool) -> dict[str, Any]:
    """The rows of the list, sorted; unfinished runs last where a number is asked for."""
    sort = sort if sort in COLUMNS else "when"
    empty = dict.fromkeys((*COLUMNS, "finished"))
    rows = [
        {**empty, **row, "status": studio.status(row), "url": run_url(row["name"])} for row in studio.library.rows()
    ]

    def number(row: dict[str, Any]) -> Any:
        return row[sort]["value"] if isinstance(row[sort], dict) else row[sort]

    if sort in NUMBERS:
        there = sorted((row for row in rows if number(row) is not None), key=number, reverse=down)
        rows = there + [row for row in rows if number(row) is None]
    elif sort == "when":  # what is at work now is the newest
        rows.sort(key=lambda row: (row["status"] in ("running", "waiting"), row["when"]), reverse=down)
    else:
        rows.sort(key=lambda row: str(row[sort] or "").lower(), reverse=down)
    heads = [
        {
            "key": name,
            "title": title,
            "number": name in NUMBERS,
            "sorted": ("descending" if down else "ascending") if name == sort else "none",
            "link": "/runs?" + urlencode({"sort": name, "down": int(not down if name == sort else name in NUMBERS)}),
        }
        for name, title in COLUMNS.items()
    ]
    again = "/runs?" + urlencode({"sort": sort, "down": int(down)})
    busy = any(row["status"] in ("running", "waiting") for row in rows)
    return {
        "rows": rows,
        "heads": heads,
        "bar": plots.interval_bar,
        "again": again,
        "busy": busy,
        "done": sum(row["status"] == "finished" for row in rows),
    }


def live(studio: Studio, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """What an unfinished run shows: its curves so far, the job that makes it, its last words."""
    path = studio.library.run(name)
    job = studio.job_of(path)
    return {
        "curves": curves(read_log(path)),
        "job": job,
        "lines": studio.jobs.lines(job, 12) if job else [],
        "command": str(info.get("command", "unfreeze fit")),
    }


def finished(studio: Studio, name: str) -> dict[str, Any]:
    """What a finished run shows: the score, what is taken for what, classes, training."""
    path = studio.library.run(name)
    material = studio.library.material(name)
    url = run_url(name)
    confusion = sections.confusion(material, set())
    place = {label: i for i, label in enumerate(material.classes)}
    for cell in [c for row in confusion["matrix"] for c in row] + confusion["pairs"]:
        choice = urlencode({"true": place[cell["true"]], "said": place[cell["said"]]})
        cell["href"] = f"{url}/photos?{choice}" if cell["count"] else ""
    per_class = sections.per_class(material)
    for row in per_class["rows"]:
        row["href"] = f"{url}/photos?{urlencode({'true': place[row['class']]})}"
    wrong = int(sum(map(sum, material.judged["confusion"])))
    wrong -= sum(material.judged["confusion"][i][i] for i in range(len(material.classes)))
    return {
        "headline": sections.headline(material),
        "confusion": confusion,
        "per_class": per_class,
        "curves": curves(material.log, over=True),
        "wrong": wrong,
        "report": (path / "report.html").is_file(),
        "glue": glued,
    }


def told_photos(studio: Studio, name: str, true: str, said: str, only: str, order: str, page: int) -> dict[str, Any]:
    """Out-of-fold photos by label and by what the model said, a page of them. RunError: no such class."""
    material = studio.library.material(name)
    table, classes = predicted(material), material.classes

    def chosen(number: str) -> str:
        if not number:
            return ""
        if not number.isdecimal() or len(number) > 6 or int(number) >= len(classes):
            raise RunError(f"{name}: no class has the number {number[:20]}.")
        return classes[int(number)]

    label, called = chosen(true), chosen(said)
    if label:
        table = table[table["label"] == label]
    if called:
        table = table[table["said"] == called]
    if only == "wrong":
        table = table[table["said"] != table["label"]]
    order = order if order in ORDERS else "sure"
    by = {"sure": ("sure", False), "unsure": ("sure", True), "path": ("path", True)}[order]
    table = table.sort_values(by[0], ascending=by[1], kind="stable")
    url = run_url(name)
    choice = {"true": true, "said": said, "only": only if only == "wrong" else "", "order": order}
    choice["order"] = "" if order == "sure" else order
    told = paged(len(table), page, f"{url}/photos", **choice)
    some = table.iloc[told["first"] : told["last"]]
    addresses = photo_urls(f"{url}/photo", material.photos["path"])
    shots = [
        {
            **row,
            "src": addresses[row["row"]],
            "large": addresses[row["row"]].replace("small.jpg", "large.jpg"),
            "right": row["label"] == row["said"],
        }
        for row in some.to_dict("records")
    ]
    what = " ".join(filter(None, [f"labelled “{label}”" if label else "", f"taken for “{called}”" if called else ""]))
    wrong = int((table["said"] != table["label"]).sum())
    every = only == "wrong"
    finding = f"{plots.number(len(table), 'wrong photo' if every else 'photo')}{' ' + what if what else ''}"
    finding += "." if every or (called and label) else f", {wrong:,} of them wrong."
    return {
        "finding": finding,
        "shots": shots,
        "pager": told,
        "classes": list(enumerate(classes)),
        "true": true,
        "said": said,
        "only": only,
        "order": order,
        "orders": ORDERS,
    }
