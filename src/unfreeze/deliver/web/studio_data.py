"""The pages about photos: what there is of each class and group, what the checks found, and the photos themselves."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from fastapi.responses import Response

from unfreeze.core.errors import RunError, UnfreezeError
from unfreeze.core.tables import SEVERITIES, Photos
from unfreeze.deliver import plots
from unfreeze.deliver.web.studio_library import DataSource, photo_urls
from unfreeze.deliver.web.studio_shell import Studio, paged, photo_answer, written_page

_STRIP = 6  # sample photos of a class
_CLASSES = 40  # classes that are shown with samples
_GROUPS = 200  # groups that the filter offers


def pages(studio: Studio) -> APIRouter:
    """The routes of photos."""
    router, library = APIRouter(), studio.library

    @router.get("/data")
    def listing() -> Response:
        return studio.page("studio_data.html", here="data", sources=list(library.sources().values()))

    @router.get("/data/{key}")
    def one(key: str, again: bool = False) -> Response:
        source = library.source(key)
        try:
            context = overview(studio, source, library.photos(source, again))
        except UnfreezeError as error:  # the page still offers to read them in another way
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


def overview(studio: Studio, source: DataSource, photos: Photos) -> dict[str, Any]:
    """Classes with samples, groups, attributes, findings."""
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
                "bar": plots.bar(counts[name] / most),
                "samples": [addresses[row] for row in one_each[::step][:_STRIP]] if i < _CLASSES else [],
                "href": f"{base}/photos?{urlencode({'label': i})}",
            }
        )
    groups = int(table["group"].nunique())
    grouped = groups < len(table)
    sentence = f"{plots.number(len(table), 'photo')} of {plots.number(len(photos.classes), 'class', 'classes')}"
    sentence += f" in {plots.number(groups, 'group')}." if grouped else ", each photo its own group."
    runs = [row for row in studio.library.rows() if row["name"] == source.run]
    found = studio.library.findings(source)
    return {
        "sentence": sentence,
        "choice": photos.choice,
        "rows": sorted(rows, key=lambda row: -row["count"]),
        "findings": None if found is None else summed(found, photos),
        "eda": studio.library.eda(source).exists(),
        "runs": runs,
    }


def summed(found: list[dict[str, Any]], photos: Photos) -> list[dict[str, Any]]:
    """Findings by check, errors first; `photos` counts those that name a photo that is there."""
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
    """The photos of a class, of a group, of a finding, or all; a page of them. RunError: there is no such class."""
    photos = studio.library.photos(source)
    table, base, what = photos.table, f"/data/{source.key}", []
    said: dict[str, str] = {}
    if label:
        if not label.isdecimal() or len(label) > 6 or int(label) >= len(photos.classes):
            raise RunError(f"{source.name}: no class has the number {label[:20]}.")
        table = table[table["label"] == photos.classes[int(label)]]
        what.append(f"of the class “{photos.classes[int(label)]}”")
    if group:
        table = table[table["group"] == group]
        what.append(f"of the group “{plots.clipped(group, 40)}”")
    found = studio.library.findings(source) or []
    if finding:
        said = {one["path"]: one["message"] for one in found if one["check"] == finding and one["path"]}
        table = table[table["path"].isin(said)]
        what.append(f"named by the check “{plots.clipped(finding, 40)}”")
    told = paged(len(table), page, f"{base}/photos", label=label, group=group, finding=finding)
    addresses = photo_urls(f"{base}/photo", photos.table["path"])
    some = table.iloc[told["first"] : told["last"]]
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
        "finding_said": f"{plots.number(len(table), 'photo')} {' '.join(what)}".strip() + ".",
        "shots": shots,
        "pager": told,
        "classes": list(enumerate(photos.classes)),
        "groups": groups.head(_GROUPS).tolist() if len(groups) < len(photos.table) else [],
        "checks": sorted({one["check"] for one in found if one["path"]}),
        "label": label,
        "group": group,
        "finding": finding,
        "grouped": len(groups) < len(photos.table),
    }
