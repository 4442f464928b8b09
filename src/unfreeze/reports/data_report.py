"""HTML report of a data set before training.

The report covers class balance, image statistics, duplicates, shortcuts and findings, and optionally faces and the
shift to a test set. Each section function returns the template context of its section; most also return the paths of
the images to show. `write_data_report` writes the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd

from unfreeze.core.dataset import SEVERITIES, ImageDataset
from unfreeze.core.errors import join_names
from unfreeze.core.files import atomic_write
from unfreeze.core.format import clipped, format_estimate, format_score, pluralize
from unfreeze.core.progress import Reporter
from unfreeze.data.checks import crosstab, run_checks
from unfreeze.data.decode import MAX_PIXELS
from unfreeze.data.image_checks import OUTLIER, image_stats_table, outliers
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.data.scan import MEASURES, ImageScan, scan_images
from unfreeze.data.shortcuts import Shortcut, shortcuts
from unfreeze.reports import svg
from unfreeze.reports.html import stylesheet, templates
from unfreeze.reports.svg import heat_map, histogram, mean_photo
from unfreeze.reports.thumbnails import thumbnails

if TYPE_CHECKING:
    from unfreeze.analysis.dataset_shift import DatasetComparison
    from unfreeze.data.face_stats import FaceStats


Context = dict[str, Any]

SAMPLES = 60  # sample images over all classes
ODD = 6  # outliers shown per measure and side
PAIRS = 18
CLASSES = 30  # listed before the rest is collapsed
CASES = 12


@dataclass(frozen=True)
class DataReportData:
    """Input of the report's sections.

    Attributes:
        photos: Checked data set.
        looks: Scan of the images.
        table: Measures of each image, from `image_stats_table`.
        shortcuts: Shortcuts found in the data set.
    """

    photos: ImageDataset
    looks: ImageScan
    table: pd.DataFrame
    shortcuts: list[Shortcut]

    @property
    def grouped(self) -> bool:
        """Whether any group has more than one image."""
        return bool(self.photos.table["group"].duplicated().any())


def findings_section(m: DataReportData) -> tuple[Context, list[str]]:
    """Findings grouped by check, errors first, and paths of the images shown."""
    rows: list[Context] = []
    wanted: list[str] = []
    known = set(m.photos.table["path"])
    kinds: dict[tuple[str, str, str], list[Any]] = {}
    for f in m.photos.findings:
        kinds.setdefault((f.check, f.severity, f.fix), []).append(f)
    for (check, severity, fix), own in kinds.items():
        shown = [f.path for f in own[:3] if f.path in known]
        rows.append(
            {
                "check": check.replace("_", " ").replace("-", " "),
                "severity": severity,
                "word": "note" if severity == "info" else severity,
                "fix": fix,
                "count": len(own),
                "cases": [{"path": f.path, "message": f.message} for f in own[:CASES]],
                "shown": shown,
            }
        )
        wanted += shown
    rows.sort(key=lambda row: -SEVERITIES.index(row["severity"]))
    counts = {s: sum(row["count"] for row in rows if row["severity"] == s) for s in SEVERITIES}
    words = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("note", "notes")}
    format_measure = [pluralize(counts[s], *words[s]) for s in reversed(SEVERITIES) if counts[s]]
    first = next((row for row in rows if row["severity"] != "info"), None)
    sentence = f"The checks found {join_names(format_measure)}." if format_measure else "The checks found no problems."
    if first:
        sentence = f"{sentence[:-1]}; the most severe: {clipped(first['cases'][0]['message'], 140)}."
    return {"finding": sentence, "rows": rows}, wanted


def classes_section(m: DataReportData) -> tuple[Context, list[str]]:
    """Images and groups per class, classes by attribute and group sizes, and paths of sample images."""
    photos, names = m.photos.table, list(m.photos.classes)
    counts = photos["label"].value_counts().reindex(names, fill_value=0)
    each = max(1, min(5, SAMPLES // len(names)))
    of_label = dict(list(photos[m.looks.readable].groupby("label", sort=False)))
    rows: list[Context] = []
    wanted: list[str] = []
    for name in sorted(names, key=lambda c: -counts[c]):
        own = of_label.get(name, photos.iloc[:0])
        first = own.drop_duplicates("group")["path"].tolist()
        picked = [first[i] for i in np.linspace(0, len(first) - 1, min(each, len(first))).astype(int)]
        picked = picked[: max(0, SAMPLES - len(wanted))]
        wanted += picked
        rows.append(
            {
                "name": name,
                "count": int(counts[name]),
                "groups": int(photos.loc[photos["label"] == name, "group"].nunique()),
                "bar": svg.bar(counts[name] / max(int(counts.max()), 1)),
                "samples": picked,
            }
        )
    most, least = int(counts.max()), int(counts.min())
    sentence = f"{pluralize(len(photos), 'photo')} of {pluralize(len(names), 'class', 'classes')}"
    sentence += f" in {pluralize(photos['group'].nunique(), 'group')}" if m.grouped else ", each its own group"
    if most == least:
        sentence += f"; every class has {most:,}."
    else:
        times = f"{most / least:.1f} times as many as" if least else "against none of"
        sentence += f"; “{counts.idxmax()}” has {most:,}, {times} “{counts.idxmin()}”" + (
            f" ({least:,})." * bool(least)
        )
    if not least and most != least:
        sentence = sentence.rstrip(".") + "."
    crossed = [
        {
            "name": name,
            "columns": [str(c) for c in table.columns],
            "rows": [
                (str(label), [int(n) for n in row]) for label, row in zip(table.index, table.to_numpy(), strict=True)
            ],
        }
        for name, table in crosstab(m.photos).items()
        if len(table.columns) <= 12
    ]
    return {
        "finding": sentence,
        "rows": rows[:CLASSES],
        "more": rows[CLASSES:],
        "many": each == 1,
        "crossed": crossed,
        "attributes": _attributes(m),
        "groups": _group_sizes(photos) if m.grouped else "",
        "held": int((photos["split"] == "test").sum()),
    }, wanted


def _attributes(m: DataReportData) -> list[Context]:
    names = [name for name in m.photos.attributes if name in m.photos.table.columns]
    found = []
    for i, name in enumerate(names if len(names) > 1 else []):
        counts = m.photos.table[name].astype(str).value_counts()
        rows = [(str(value), float(n), f"{n:,}") for value, n in counts.head(12).items()]
        found.append({"name": name, "plot": svg.bars(f"attribute-{i}", f"Photos by {name}", rows, left=40)})
    return found


def _group_sizes(photos: pd.DataFrame) -> Any:
    sizes = photos.groupby("group").size().to_numpy()
    rows, low = [], 1
    while low <= sizes.max():
        high = low if low <= 2 else 2 * (low - 1)
        inside = int(((sizes >= low) & (sizes <= high)).sum())
        label = f"{low:,}" if low == high else f"{low:,}–{high:,}"
        rows.append((f"{label} photo{'s' if high > 1 else ''}", float(inside), pluralize(inside, "group")))
        low = high + 1
    while rows and not rows[0][1]:
        rows.pop(0)
    return svg.bars("groups", "How many photos the groups hold", rows)


def measures_section(m: DataReportData) -> tuple[Context, list[str]]:
    """Distribution, outliers and per-class medians of each measure, and paths of the outliers shown."""
    rows, wanted, far = [], [], 0
    for name, measure in MEASURES.items():
        low, high = outliers(m.table, name)
        far += len(low) + len(high)
        odd = []
        for side, word in ((low, measure.low), (high, measure.high)):
            paths = m.table["path"].iloc[side[:ODD]].tolist()
            wanted += paths
            if paths:
                values = [format_measure(name, v) for v in m.table[name].iloc[side[:ODD]]]
                odd.append({"word": word, "count": len(side), "photos": list(zip(paths, values, strict=True))})
        rows.append(
            {
                "title": measure.title,
                "unit": measure.unit,
                "same": format_measure(name, low_) if (low_ := m.table[name].min()) == m.table[name].max() else "",
                "plot": histogram(
                    f"measure-{name}",
                    f"Distribution of {measure.title.lower()}",
                    m.table[name].to_numpy(float),
                    measure.logarithmic,
                    lambda value, name=name: format_measure(name, value),  # type: ignore[misc]
                ),
                "odd": odd,
            }
        )
    medians = m.table.groupby("label")[list(MEASURES)].median().reindex(list(m.photos.classes))
    formats = m.table.loc[m.looks.readable, "format"].value_counts()
    sizes = m.table["size"].dropna()
    sentence = "No photo could be read."
    if len(sizes):
        same = (
            "All photos have one size"
            if sizes.nunique() == 1
            else f"Half of the photos have a side of {_quartiles(sizes)} pixels"
        )
        off = (
            f"{pluralize(far, 'value lies', 'values lie')} far from the rest"
            if far
            else "none lies far from the rest in any measure"
        )
        sentence = f"{same}; {off}."
    return {
        "finding": sentence,
        "rows": rows,
        "limit": OUTLIER,
        "titles": [measure.title for measure in MEASURES.values()],
        "medians": [
            (label, [format_measure(name, row[name]) if row[name] == row[name] else "–" for name in MEASURES])
            for label, row in medians.iterrows()
        ],
        "formats": [(str(kind) or "?", int(n)) for kind, n in formats.items()],
        "turned": int((m.table["orientation"] > 1).sum()),
        "grey": int((m.table["mode"] == "grey").sum()),
        "alpha": int((m.table["mode"] == "alpha").sum()),
    }, wanted


def _quartiles(values: pd.Series) -> str:
    low, high = values.quantile(0.25), values.quantile(0.75)
    return f"about {low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"


def format_measure(name: str, value: float) -> str:
    """Format the value of a measure."""
    if name == "bytes":
        return f"{value / 1000:,.0f} kB" if value >= 10_000 else f"{value / 1000:.1f} kB"
    return f"{value:.2f}" if name == "aspect" else f"{value:,.0f}"


def means_section(m: DataReportData) -> Context:
    """Mean image of each class."""
    rows: list[Context] = []
    for name in m.photos.classes[:CLASSES]:
        own = np.flatnonzero((m.photos.table["label"] == name).to_numpy() & m.looks.readable)
        if not len(own):
            continue
        aspect = float(np.exp(np.log(np.maximum(m.table["aspect"].to_numpy(float)[own], 0.05)).mean()))
        source, wide, tall = mean_photo(m.looks.grey[own], m.looks.thumb[own], min(max(aspect, 0.3), 3.0))
        kept = float(m.looks.grey[own].mean(0).std())
        rows.append({"name": name, "count": len(own), "source": source, "width": wide, "height": tall, "kept": kept})
    if not rows:
        return {"finding": "No photo could be read.", "rows": []}
    best = max(rows, key=lambda row: row["kept"])
    sentence = (
        f"On average “{best['name']}” keeps the most of a picture (deviation {best['kept']:.0f} of 255): "
        "its photos agree most in where light and dark are."
        if len(rows) > 1
        else "The mean of all photos."
    )
    return {"finding": sentence, "rows": rows, "more": len(m.photos.classes) - len(rows)}


def copies_section(m: DataReportData) -> tuple[Context, list[str]]:
    """Duplicate pairs, those with different labels or splits first, and their paths."""
    table = m.photos.table
    pairs = []
    for kind, found in zip(("exact", "near"), m.looks.duplicates, strict=True):
        for i, j in found.tolist():
            a, b = table.iloc[i], table.iloc[j]
            pairs.append(
                {
                    "kind": kind,
                    "paths": (a["path"], b["path"]),
                    "labels": (a["label"], b["label"]),
                    "groups": (a["group"], b["group"]),
                    "disagree": a["label"] != b["label"],
                    "across": a["split"] != b["split"],
                    "between": m.grouped and a["group"] != b["group"],
                }
            )
    pairs.sort(key=lambda p: (-p["disagree"], -p["across"], -p["between"], p["kind"] == "near"))
    if not pairs:
        return {"finding": "No photo is there twice, neither exactly nor nearly.", "pairs": [], "more": 0}, []
    format_measure = {
        "with two labels": sum(p["disagree"] for p in pairs),
        "in training and test": sum(p["across"] for p in pairs),
        "in two groups": sum(p["between"] for p in pairs),
    }
    exact = sum(p["kind"] == "exact" for p in pairs)
    sentence = f"{pluralize(len(pairs), 'pair')} of photos are the same ({exact:,} byte for byte)"
    parts = [f"{n:,} {what}" for what, n in format_measure.items() if n]
    sentence += f": {join_names(parts)}." if parts else ", and none contradicts the other."
    shown = pairs[:PAIRS]
    return {"finding": sentence, "pairs": shown, "more": len(pairs) - len(shown)}, [
        x for p in shown for x in p["paths"]
    ]


def tells_section(m: DataReportData) -> Context:
    """Properties that predict the class (shortcuts), strongest first."""
    rows = [
        {
            "title": s.title,
            "interval": {"value": s.accuracy, "low": s.low, "high": s.high},
            "skill": format_score(max(s.skill, 0), 2),
            "word": ("warning" if s.severity == "warning" else "note") if s.raised else "",
            "severity": s.severity,
        }
        for s in m.shortcuts
    ]
    if not rows:
        return {"finding": "Too few groups, or nothing that varies: no shortcut could be looked for.", "rows": []}
    best = m.shortcuts[0]
    value = f"balanced accuracy {format_score(best.accuracy, 2)}, where chance has {format_score(best.chance, 2)}"
    if any(s.raised for s in m.shortcuts):
        sentence = f"{best.title[0].upper()}{best.title[1:]} alone predicts the class better than chance: {value}."
    else:
        sentence = f"No property of file or light predicts the class well; the best, {best.title}, has {value}."
    return {"finding": sentence, "rows": rows, "chance": best.chance, "bar": svg.interval_bar}


_SIDE = 128
_STRANGERS = 8


def write_data_report(
    photos: ImageDataset | str | Path | pd.DataFrame,
    out: str | Path = "eda.html",
    *,
    faces: FaceStats | None = None,
    against: DatasetComparison | None = None,
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> Path:
    """Write the report of a data set as a self-contained HTML page, atomically.

    The number of thumbnails is limited, so that the page of 20,000 images is about one megabyte.

    Args:
        photos: Result of `uf.check` or `uf.read`, or what `uf.read` accepts; unchecked data sets are checked here.
        out: Target path.
        faces: Result of `uf.face_stats`.
        against: Result of `uf.compare_datasets`.
        max_pixels: Images with more pixels are not decoded.
        reporter: Receives progress.
        **given: Keyword arguments of `uf.read`.

    Returns:
        The path.

    Raises:
        StorageError: The file cannot be written.
    """
    photos, _ = photos_of("write_data_report", photos, None, given)
    if "unit" not in photos.table:
        photos, _ = run_checks(photos, max_pixels, reporter, slow=True)
    page = render_data_report(photos, faces=faces, against=against, max_pixels=max_pixels, reporter=reporter)
    data = page.encode("utf-8", "replace")
    return atomic_write(Path(out), lambda temporary: temporary.write_bytes(data))


def render_data_report(
    photos: ImageDataset,
    *,
    faces: FaceStats | None = None,
    against: DatasetComparison | None = None,
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
) -> str:
    """Render the report's HTML for a checked data set."""
    looks = scan_images(photos, max_pixels, reporter).with_labels(photos.table["label"])
    m = DataReportData(photos, looks, image_stats_table(photos, looks), shortcuts(photos, looks))
    found, shown = findings_section(m)
    classes, samples = classes_section(m)
    measures, odd = measures_section(m)
    copies, twice = copies_section(m)
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
            means=means_section(m),
            copies=copies,
            tells=tells_section(m),
            faces=_faces(faces),
            shift=strangers,
            thumbs=thumbnails(photos.root, wanted, side=_SIDE),
            css=stylesheet(),
        )
    )


def _faces(found: FaceStats | None) -> Context | None:
    if found is None:
        return None
    every: list[dict[Any, Any]] = [*found.classes.to_dict("records"), found.total]
    rows = [
        {
            "name": row["label"] or "all",
            "photos": f"{row['photos']:,}",
            "without": f"{row['without']:,}",
            "share": f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]" if row["photos"] else "–",
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


def _shift(found: DatasetComparison | None) -> Context | None:
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
        rows = [(path, pictures[path], format_score(p, 2)) for path, p in zip(some["path"], chance, strict=True)]
        sides.append({"title": title, "rows": rows, "mean": mean})
    auc = {"value": found.result.auc, "low": found.result.low, "high": found.result.high}
    copies = pluralize(len(found.copies), "test photo is also a training photo", "test photos are also training photos")
    return {
        "finding": found.sentence,
        "sides": sides,
        "auc": f"{format_estimate(auc, 2)}",
        "copies": copies if len(found.copies) else "No test photo is also a training photo.",
        "pairs": [(c.training, c.test, c.kind) for c in found.copies.head(12).itertuples()],
    }
