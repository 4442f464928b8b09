"""What each section of the page about the photos says: a finding in one sentence and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.errors import listed
from unfreeze.core.tables import SEVERITIES, Photos
from unfreeze.data.class_checks import class_by_attribute
from unfreeze.data.file_checks import OUTLIER, outliers
from unfreeze.data.looks import Looks
from unfreeze.data.measures import MEASURES
from unfreeze.data.shortcuts import Shortcut
from unfreeze.deliver import plots
from unfreeze.deliver.eda_plots import histogram, mean_photo
from unfreeze.deliver.plots import number, score

Context = dict[str, Any]

SAMPLES = 60  # photos of all classes together
ODD = 6  # outliers of a measure and side
PAIRS = 18
CLASSES = 30  # listed before the rest is folded away
CASES = 12


@dataclass(frozen=True)
class Material:
    """Checked photos, what was seen of each, its measures (`measures_table`) and the shortcuts among them."""

    photos: Photos
    looks: Looks
    table: pd.DataFrame
    shortcuts: list[Shortcut]

    @property
    def grouped(self) -> bool:
        """Whether photos come in groups at all."""
        return bool(self.photos.table["group"].duplicated().any())


def findings(m: Material) -> tuple[Context, list[str]]:
    """All findings, errors first, those of a kind together; and the paths shown."""
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
    told = [number(counts[s], *words[s]) for s in reversed(SEVERITIES) if counts[s]]
    first = next((row for row in rows if row["severity"] != "info"), None)
    sentence = f"The checks left {listed(told)}." if told else "The checks found nothing to mend."
    if first:
        sentence = f"{sentence[:-1]}; the gravest: {plots.clipped(first['cases'][0]['message'], 140)}."
    return {"finding": sentence, "rows": rows}, wanted


def classes(m: Material) -> tuple[Context, list[str]]:
    """Photos and groups of each class, classes by attribute, sizes of groups; and the paths of sample photos."""
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
                "bar": plots.bar(counts[name] / max(int(counts.max()), 1)),
                "samples": picked,
            }
        )
    most, least = int(counts.max()), int(counts.min())
    sentence = f"{number(len(photos), 'photo')} of {number(len(names), 'class', 'classes')}"
    sentence += f" in {number(photos['group'].nunique(), 'group')}" if m.grouped else ", each its own group"
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
        for name, table in class_by_attribute(m.photos).items()
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


def _attributes(m: Material) -> list[Context]:
    names = [name for name in m.photos.attributes if name in m.photos.table.columns]
    found = []
    for i, name in enumerate(names if len(names) > 1 else []):
        counts = m.photos.table[name].astype(str).value_counts()
        rows = [(str(value), float(n), f"{n:,}") for value, n in counts.head(12).items()]
        found.append({"name": name, "plot": plots.bars(f"attribute-{i}", f"Photos by {name}", rows, left=40)})
    return found


def _group_sizes(photos: pd.DataFrame) -> Any:
    sizes = photos.groupby("group").size().to_numpy()
    rows, low = [], 1
    while low <= sizes.max():
        high = low if low <= 2 else 2 * (low - 1)
        inside = int(((sizes >= low) & (sizes <= high)).sum())
        label = f"{low:,}" if low == high else f"{low:,}–{high:,}"
        rows.append((f"{label} photo{'s' if high > 1 else ''}", float(inside), number(inside, "group")))
        low = high + 1
    while rows and not rows[0][1]:
        rows.pop(0)
    return plots.bars("groups", "How many photos the groups hold", rows)


def measures(m: Material) -> tuple[Context, list[str]]:
    """How each measure is spread, the photos far off, and each class's median; and the paths of the odd photos."""
    rows, wanted, far = [], [], 0
    for name, measure in MEASURES.items():
        low, high = outliers(m.table, name)
        far += len(low) + len(high)
        odd = []
        for side, word in ((low, measure.low), (high, measure.high)):
            paths = m.table["path"].iloc[side[:ODD]].tolist()
            wanted += paths
            if paths:
                values = [told(name, v) for v in m.table[name].iloc[side[:ODD]]]
                odd.append({"word": word, "count": len(side), "photos": list(zip(paths, values, strict=True))})
        rows.append(
            {
                "title": measure.title,
                "unit": measure.unit,
                "same": told(name, low_) if (low_ := m.table[name].min()) == m.table[name].max() else "",
                "plot": histogram(
                    f"measure-{name}",
                    f"Distribution of {measure.title.lower()}",
                    m.table[name].to_numpy(float),
                    measure.logarithmic,
                    lambda value, name=name: told(name, value),  # type: ignore[misc]
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
            f"{number(far, 'value lies', 'values lie')} far from the rest"
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
            (label, [told(name, row[name]) if row[name] == row[name] else "–" for name in MEASURES])
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


def told(name: str, value: float) -> str:
    """A measure as people write it."""
    if name == "bytes":
        return f"{value / 1000:,.0f} kB" if value >= 10_000 else f"{value / 1000:.1f} kB"
    return f"{value:.2f}" if name == "aspect" else f"{value:,.0f}"


def means(m: Material) -> Context:
    """The mean photo of each class."""
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


def copies(m: Material) -> tuple[Context, list[str]]:
    """Duplicates as pairs, those that contradict or straddle first; and their paths."""
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
    told = {
        "with two labels": sum(p["disagree"] for p in pairs),
        "in training and test": sum(p["across"] for p in pairs),
        "in two groups": sum(p["between"] for p in pairs),
    }
    exact = sum(p["kind"] == "exact" for p in pairs)
    sentence = f"{number(len(pairs), 'pair')} of photos are the same ({exact:,} byte for byte)"
    parts = [f"{n:,} {what}" for what, n in told.items() if n]
    sentence += f": {listed(parts)}." if parts else ", and none contradicts the other."
    shown = pairs[:PAIRS]
    return {"finding": sentence, "pairs": shown, "more": len(pairs) - len(shown)}, [
        x for p in shown for x in p["paths"]
    ]


def tells(m: Material) -> Context:
    """The properties that tell the class, the strongest first."""
    rows = [
        {
            "title": s.title,
            "interval": {"value": s.accuracy, "low": s.low, "high": s.high},
            "skill": score(max(s.skill, 0), 2),
            "word": ("warning" if s.severity == "warning" else "note") if s.raised else "",
            "severity": s.severity,
        }
        for s in m.shortcuts
    ]
    if not rows:
        return {"finding": "Too few groups, or nothing that varies: no shortcut could be looked for.", "rows": []}
    best = m.shortcuts[0]
    value = f"balanced accuracy {score(best.accuracy, 2)}, where chance has {score(best.chance, 2)}"
    if any(s.raised for s in m.shortcuts):
        sentence = f"{best.title[0].upper()}{best.title[1:]} alone tells the class at {value}."
    else:
        sentence = f"No property of file or light tells the class well; the best, {best.title}, has {value}."
    return {"finding": sentence, "rows": rows, "chance": best.chance, "bar": plots.interval_bar}
