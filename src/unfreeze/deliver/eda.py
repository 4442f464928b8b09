"""The photos in one HTML file, before any model: classes, measures, duplicates, shortcuts, what to mend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.files import write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.tables import Photos
from unfreeze.data.checks import run_checks
from unfreeze.data.file_checks import measures_table
from unfreeze.data.images import MAX_PIXELS
from unfreeze.data.looks import look
from unfreeze.data.shortcuts import shortcuts
from unfreeze.deliver import eda_sections as sections
from unfreeze.deliver.eda_plots import heat_map
from unfreeze.deliver.eda_sections import Context, Material
from unfreeze.deliver.pages import stylesheet, templates
from unfreeze.deliver.plots import number, score, span
from unfreeze.deliver.thumbnails import thumbnails

if TYPE_CHECKING:
    from unfreeze.data.faces import Faces
    from unfreeze.study.against import Against

_SIDE = 128
_STRANGERS = 8


def write_eda(
    photos: Photos,
    out: str | Path = "eda.html",
    *,
    faces: Faces | None = None,
    against: Against | None = None,
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
) -> Path:
    """Writes the page about the photos and returns its path; it loads nothing, and appears whole or not at all.

    photos: from `uf.check` (or from `uf.read`: then they are checked here). faces: from `uf.faces`. against: from
    `uf.against`. Thumbnails are limited, so that 20,000 photos make a page of about one megabyte too.
    Raises StorageError where it cannot be written.
    """
    if "unit" not in photos.table:
        photos, _ = run_checks(photos, max_pixels, reporter, slow=True)
    page = render(photos, faces=faces, against=against, max_pixels=max_pixels, reporter=reporter)
    data = page.encode("utf-8", "replace")
    return write_whole(Path(out), lambda temporary: temporary.write_bytes(data))


def render(
    photos: Photos,
    *,
    faces: Faces | None = None,
    against: Against | None = None,
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
) -> str:
    """The page's HTML; photos have been checked."""
    looks = look(photos, max_pixels, reporter)
    m = Material(photos, looks, measures_table(photos, looks), shortcuts(photos, looks))
    found, shown = sections.findings(m)
    classes, samples = sections.classes(m)
    measures, odd = sections.measures(m)
    copies, twice = sections.copies(m)
    strangers = _shift(against)
    wanted = [*shown, *samples, *odd, *twice]
    return (
        templates()
        .get_template("eda.html")
        .render(
            name=photos.root.resolve().name or str(photos.root),
            choice=photos.choice,
            findings=found,
            classes=classes,
            measures=measures,
            means=sections.means(m),
            copies=copies,
            tells=sections.tells(m),
            faces=_faces(faces),
            shift=strangers,
            thumbs=thumbnails(photos.root, wanted, side=_SIDE),
            css=stylesheet(),
        )
    )


def _faces(found: Faces | None) -> Context | None:
    if found is None:
        return None
    every: list[dict[Any, Any]] = [*found.classes.to_dict("records"), found.total]
    rows = [
        {
            "name": row["label"] or "all",
            "photos": f"{row['photos']:,}",
            "without": f"{row['without']:,}",
            "share": f"{row['share']:.1%} ({row['low']:.1%}–{row['high']:.1%})" if row["photos"] else "–",
            "several": f"{row['several']:,}",
            "side": _share(row["side_median"]),
            "x": _share(row["x_mean"]),
            "y": _share(row["y_mean"]),
        }
        for row in every
    ]
    plot = heat_map("faces", "Where the largest face of a photo lies", found.heat)
    return {"finding": found.sentence(), "rows": rows, "plot": plot, "detector": found.detector}


def _share(value: float) -> str:
    return f"{value:.0%}" if value == value else "–"


def _shift(found: Against | None) -> Context | None:
    if found is None:
        return None
    sides: list[dict[str, Any]] = []
    for title, table, root, mean in (
        ("Training photos least like the test photos", found.training, found.root, "not a test photo"),
        ("Test photos least like the training photos", found.test, found.test_root, "a test photo"),
    ):
        some = table.head(_STRANGERS)
        pictures = thumbnails(root, some["path"], side=_SIDE)
        chance = some["probability"] if mean == "a test photo" else 1 - some["probability"]
        rows = [(path, pictures[path], score(p, 2)) for path, p in zip(some["path"], chance, strict=True)]
        sides.append({"title": title, "rows": rows, "mean": mean})
    auc = {"value": found.result.auc, "low": found.result.low, "high": found.result.high}
    copies = number(len(found.copies), "test photo is also a training photo", "test photos are also training photos")
    return {
        "finding": found.sentence,
        "sides": sides,
        "auc": f"{score(auc['value'], 2)} ({span(auc, 2)})",
        "copies": copies if len(found.copies) else "No test photo is also a training photo.",
        "pairs": [(c.training, c.test, c.kind) for c in found.copies.head(12).itertuples()],
    }
