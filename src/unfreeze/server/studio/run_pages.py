"""Pages about runs and data sets.

Runs: the list, one run with its progress or result, its report, and its images by label and prediction. Data sets:
classes, groups, findings of the checks, and images.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response

from unfreeze.core.dataset import SEVERITIES, ImageDataset
from unfreeze.core.errors import RunError, UnfreezeError
from unfreeze.core.format import clipped, pluralize
from unfreeze.core.names import nfc
from unfreeze.core.runs import read_log
from unfreeze.reports import sections, svg
from unfreeze.reports.run_report import no_break
from unfreeze.server.studio.compare_pages import curves
from unfreeze.server.studio.layout import Studio, paged, photo_answer, written_page
from unfreeze.server.studio.library import DataSource, MissingError, photo_urls, predicted, run_url

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


def run_pages(studio: Studio) -> APIRouter:
    """Create the routes of the runs."""
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
        if status == "finished":  # load the page of the finished run
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
        context = predicted_images(studio, name, true, said, only, order, page)
        return studio.page("studio_run_photos.html", name=name, url=run_url(name), here="runs", **context)

    @router.get("/runs/{name}/photo/{row}/{size}.jpg")
    def photo(name: str, row: int, size: str) -> Response:
        material = library.material(name)
        return photo_answer(library, material.root, material.photos["path"].array, row, size)

    return router


def runs_table(studio: Studio, sort: str, down: bool) -> dict[str, Any]:
    """Rows of the list, sorted; runs without a value are last if sorted by a number."""
    sort = sort if sort in COLUMNS else "when"
    empty = dict.fromkeys((*COLUMNS, "finished", "selection"))
    rows = [
        {**empty, **row, "status": studio.status(row), "url": run_url(row["name"])} for row in studio.library.rows()
    ]

    def number(row: dict[str, Any]) -> Any:
        return row[sort]["value"] if isinstance(row[sort], dict) else row[sort]

    if sort in NUMBERS:
        there = sorted((row for row in rows if number(row) is not None), key=number, reverse=down)
        rows = there + [row for row in rows if number(row) is None]
    elif sort == "when":  # active runs count as the newest
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
        "bar": svg.interval_bar,
        "again": again,
        "busy": busy,
        "done": sum(row["status"] == "finished" for row in rows),
    }


def live(studio: Studio, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """Template context of an unfinished run: training curves so far, its job and the last lines of output."""
    path = studio.library.run(name)
    job = studio.job_of(path)
    return {
        "curves": curves(read_log(path)),
        "job": job,
        "resumable": job is not None and not job.active and studio.jobs.is_own(job),
        "lines": studio.jobs.lines(job, 12) if job else [],
        "command": str(info.get("command", "unfreeze fit")),
    }


def finished(studio: Studio, name: str) -> dict[str, Any]:
    """Template context of a finished run: scores, confusion matrix, classes and training curves."""
    path = studio.library.run(name)
    material = studio.library.material(name)
    url = run_url(name)
    confusion = sections.confusion(material, Counter())
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
        "glue": no_break,
    }


def predicted_images(
    studio: Studio, name: str, true: str, said: str, only: str, order: str, page: int
) -> dict[str, Any]:
    """Out-of-fold predictions filtered by label and predicted class, one page of them.

    Raises:
        RunError: There is no such class.
    """
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
    pager = paged(len(table), page, f"{url}/photos", **choice)
    some = table.iloc[pager["first"] : pager["last"]]
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
    what = " ".join(filter(None, [f"labeled “{label}”" if label else "", f"taken for “{called}”" if called else ""]))
    wrong = int((table["said"] != table["label"]).sum())
    every = only == "wrong"
    finding = f"{pluralize(len(table), 'wrong photo' if every else 'photo')}{' ' + what if what else ''}"
    finding += "." if every or (called and label) else f", {wrong:,} of them wrong."
    return {
        "finding": finding,
        "shots": shots,
        "pager": pager,
        "classes": list(enumerate(classes)),
        "true": true,
        "said": said,
        "only": only,
        "order": order,
        "orders": ORDERS,
    }


_STRIP = 6  # sample images per class
_CLASSES = 40  # classes shown with samples
_GROUPS = 200  # groups listed in the filter


def data_pages(studio: Studio) -> APIRouter:
    """Create the routes of the data sets."""
    router, library = APIRouter(), studio.library

    @router.get("/data")
    def listing() -> Response:
        return studio.page("studio_data.html", here="data", sources=list(library.sources().values()))

    @router.get("/data/{key}")
    def one(key: str, again: bool = False) -> Response:
        source = library.source(key)
        try:
            context = overview(studio, source, library.photos(source, again))
        except UnfreezeError as error:  # the page still offers to read the data set differently
            return studio.page("studio_source.html", here="data", source=source, problem=str(error), runs=[])
        return studio.page("studio_source.html", here="data", source=source, problem="", **context)

    @router.get("/data/{key}/photos")
    def photos(key: str, label: str = "", group: str = "", finding: str = "", page: int = 1) -> Response:
        source = library.source(key)
        context = chosen_photos(studio, source, label, group, finding, page)
        return studio.page("studio_source_photos.html", here="data", source=source, **context)

    @router.get("/data/{key}/photo/{row}/{size}.jpg")
    def photo(key: str, row: int, size: str) -> Response:
        found = library.photos(library.source(key))
        return photo_answer(library, found.root, found.table["path"].array, row, size)

    @router.get("/data/{key}/eda")
    def eda(key: str) -> Response:
        return written_page(library.eda(library.source(key)), studio.environment)

    return router


def overview(studio: Studio, source: DataSource, photos: ImageDataset) -> dict[str, Any]:
    """Template context of a data set: classes with samples, groups and findings."""
    table, base = photos.table, f"/data/{source.key}"
    addresses = photo_urls(f"{base}/photo", table["path"])
    counts = table["label"].value_counts().reindex(list(photos.classes), fill_value=0)
    most, rows = max(int(counts.max()), 1), []
    for i, name in enumerate(photos.classes):
        own = table[table["label"] == name]
        one_each = own.drop_duplicates("group").index
        step = max(1, len(one_each) // _STRIP)
        rows.append(
            {
                "name": name,
                "count": int(counts[name]),
                "groups": int(own["group"].nunique()),
                "bar": svg.bar(counts[name] / most),
                "samples": [addresses[row] for row in one_each[::step][:_STRIP]] if i < _CLASSES else [],
                "href": f"{base}/photos?{urlencode({'label': i})}",
            }
        )
    groups = int(table["group"].nunique())
    grouped = groups < len(table)
    sentence = f"{pluralize(len(table), 'photo')} of {pluralize(len(photos.classes), 'class', 'classes')}"
    sentence += f" in {pluralize(groups, 'group')}." if grouped else ", each photo its own group."
    runs = [row for row in studio.library.rows() if row["name"] == source.run]
    found = studio.library.findings(source)
    return {
        "sentence": sentence,
        "choice": photos.choice,
        "rows": sorted(rows, key=lambda row: -row["count"]),
        "findings": None if found is None else summarize_findings(found, photos),
        "eda": studio.library.eda(source).exists(),
        "runs": runs,
    }


def summarize_findings(found: list[dict[str, Any]], photos: ImageDataset) -> list[dict[str, Any]]:
    """Findings by check, errors first. `photos` counts those about an existing image."""
    there = set(photos.table["path"])
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found:
        row = rows.setdefault(
            (one["check"], one["severity"]),
            {
                "check": one["check"],
                "severity": one["severity"],
                "message": one["message"],
                "fix": one["fix"],
                "count": 0,
                "photos": 0,
            },
        )
        row["count"] += 1
        row["photos"] += one["path"] in there
    return sorted(rows.values(), key=lambda row: -SEVERITIES.index(row["severity"]))


def chosen_photos(
    studio: Studio, source: DataSource, label: str, group: str, finding: str, page: int
) -> dict[str, Any]:
    """Images filtered by class, group or finding, one page of them.

    Raises:
        RunError: There is no such class.
    """
    photos = studio.library.photos(source)
    table, base, what = photos.table, f"/data/{source.key}", []
    said: dict[str, str] = {}
    if label:
        if not label.isdecimal() or len(label) > 6 or int(label) >= len(photos.classes):
            raise RunError(f"{source.name}: no class has the number {label[:20]}.")
        table = table[table["label"] == photos.classes[int(label)]]
        what.append(f"of the class “{photos.classes[int(label)]}”")
    if group:
        own = table["group"] == group
        table = table[own if own.any() else table["group"] == nfc(group)]
        what.append(f"of the group “{clipped(group, 40)}”")
    found = studio.library.findings(source) or []
    if finding:
        said = {one["path"]: one["message"] for one in found if one["check"] == finding and one["path"]}
        table = table[table["path"].isin(said)]
        what.append(f"named by the check “{clipped(finding, 40)}”")
    pager = paged(len(table), page, f"{base}/photos", label=label, group=group, finding=finding)
    addresses = photo_urls(f"{base}/photo", photos.table["path"])
    some = table.iloc[pager["first"] : pager["last"]]
    shots = [
        {
            **{name: row[name] for name in ("path", "label", "group", "split")},
            "src": addresses[at],
            "large": addresses[at].replace("small.jpg", "large.jpg"),
            "group_href": f"{base}/photos?{urlencode({'group': row['group']})}",
            "message": said.get(row["path"], ""),
        }
        for at, row in zip(some.index.tolist(), some.to_dict("records"), strict=True)
    ]
    groups = photos.table["group"].drop_duplicates()
    return {
        "finding_said": f"{pluralize(len(table), 'photo')} {' '.join(what)}".strip() + ".",
        "shots": shots,
        "pager": pager,
        "classes": list(enumerate(photos.classes)),
        "groups": groups.head(_GROUPS).tolist() if len(groups) < len(photos.table) else [],
        "checks": sorted({one["check"] for one in found if one["path"]}),
        "label": label,
        "group": group,
        "finding": finding,
        "grouped": len(groups) < len(photos.table),
    }
