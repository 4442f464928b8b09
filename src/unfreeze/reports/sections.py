"""Sections of the run report.

Each function takes the run's data and returns the template context of its section, with a one-sentence finding; some
also return the paths of the images to show. `parts` is the section on combined labels: how well each part of the label
is predicted, and whose errors cost the most.
"""

from __future__ import annotations

from collections import Counter
from math import hypot
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.dataset import SEVERITIES, probability_columns
from unfreeze.core.errors import join_names
from unfreeze.core.format import clipped, format_estimate, format_interval, format_percent, format_score, pluralize
from unfreeze.core.messages import HEADLINES, caveats
from unfreeze.metrics.classification import reliability
from unfreeze.reports import svg
from unfreeze.reports.report_data import Context, ReportData
from unfreeze.reports.svg import ScoreRow, gain_bars, interval_bar

MATRIX_LIMIT = 30  # classes; with more, pairs are listed instead of drawing the matrix
PAIRS = 20
WRONG = 24
WRONG_ALIKE = 6  # maximum per pair of classes, unless too few pairs are left
SAMPLES = 72  # thumbnails over all classes
ROWS = 30  # classes and findings listed before the rest is collapsed


def headline(m: ReportData) -> Context:
    """Scores next to chance, the test split and a split that ignores groups."""
    judged, chance = m.judged, m.judged["chance"]
    corrections = m.scores.get("corrections")
    names = [(name, corrections[key]) for key, name in HEADLINES] if corrections else []
    shown = names or [("delivered model", m.scores), ("one fold’s model", judged)]
    f1, accuracy = shown[0][1]["macro_f1"], shown[0][1]["accuracy"]
    by = {"macro_f1": "by chance", "accuracy": f"always “{clipped(chance['class'], 20)}”"}
    rows = [
        ScoreRow(f"{title}, {name}", found[key], chance[key], by[key], quiet=found is judged)
        for key, title in (("macro_f1", "Macro F1"), ("accuracy", "Accuracy"))
        for name, found in shown
    ]
    test = m.scores.get("test")
    if test:
        for key, name in (("macro_f1", "Macro F1"), ("accuracy", "Accuracy")):
            rows.append(ScoreRow(f"{name}, test split", test[key], test["chance"][key], "by chance"))
    careless = m.scores.get("random_split")
    if careless:
        rows.append(ScoreRow("Macro F1, image-level split", careless["macro_f1"], quiet=True))
    return {
        "finding": f"On {m.unseen} it has not seen, the model reaches macro F1 {format_estimate(f1, 2)} "
        f"(95% interval) and accuracy {format_estimate(accuracy, 2)}"
        f"{_by_corrected(corrections) if corrections else ''}; "
        f"chance is {format_score(chance['macro_f1'], 2)} ({chance['macro_f1_of']}) and "
        f"{format_score(chance['accuracy'], 2)} (always “{chance['class']}”).",
        "plot": svg.score_rows("scores", rows),
        "careless": careless
        and f"An image-level split would have reported {format_score(careless['macro_f1']['value'], 2)}; "
        f"on unseen {m.unseen} it is {format_score(f1['value'], 2)}.",
        "test": test
        and f"On the test split ({pluralize(test['photos'], 'photo')}, {pluralize(test['groups'], 'group')}, "
        f"never trained on) macro F1 is {format_estimate(test['macro_f1'], 2)}, "
        f"{_against(test['macro_f1'], f1)}.",
        "judged": judged,
        "caveats": caveats(m.scores, m.selection),
        "repeats": len(m.scores["repeats"]),
        "delivered": m.scores,
    }


def _by_corrected(corrections: Context) -> str:
    f1 = corrections["corrected"]["macro_f1"]
    return f" by the labels as given, macro F1 {format_estimate(f1, 2)} by the corrected labels"


def _against(test: dict[str, float], own: dict[str, float]) -> str:
    """Difference between the test score and the out-of-fold score, with its interval.

    The interval is computed from those of the two independent scores (MOVER, Zou & Donner 2008). Whether the two
    intervals overlap is not a valid test (Schenker & Gentleman 2001).
    """
    gap = test["value"] - own["value"]
    low = gap - hypot(test["value"] - test["low"], own["high"] - own["value"])
    high = gap + hypot(test["high"] - test["value"], own["value"] - own["low"])
    side = "above" if gap > 0 else "below"
    found = "significantly" if low > 0 or high < 0 else "not significantly"
    return (
        f"{format_score(abs(gap), 2)} {side} the out-of-fold score, {found} (95% interval of the difference "
        f"{format_interval({'low': low, 'high': high}, 2, signed=True)}; "
        "the test split is predicted by the mean of all folds' models)"
    )


def trained_on(m: ReportData) -> tuple[Context, list[str]]:
    """Images, classes, groups and findings, and paths of sample images."""
    photos, classes = m.trained, m.classes
    counts = photos["label"].value_counts().reindex(classes, fill_value=0)
    per_class = max(1, min(6, SAMPLES // len(classes)))
    by_label = dict(list(photos.groupby("label", sort=False)))
    rows: list[Context] = []
    wanted: list[str] = []
    for name in sorted(classes, key=lambda c: -counts[c]):
        own = by_label.get(name, photos.iloc[:0])
        first = own.drop_duplicates("unit")["path"].tolist()
        picked = [first[i] for i in np.linspace(0, len(first) - 1, min(per_class, len(first))).astype(int)]
        if len(wanted) >= SAMPLES + WRONG:
            picked = []
        wanted += picked
        rows.append(
            {
                "name": name,
                "count": int(counts[name]),
                "groups": int(own["unit"].nunique()),
                "bar": svg.bar(counts[name] / max(counts.max(), 1)),
                "samples": picked,
            }
        )
    units = photos["unit"].nunique()
    given = photos["group"].nunique()
    held = len(m.photos) - len(photos)
    context = {
        "finding": _data_finding(len(photos), len(classes), int(units), counts, m.grouped),
        "rows": rows[:ROWS],
        "more": rows[ROWS:],
        "many": per_class == 1,
        "joined": f"{pluralize(given, 'group')} as given became {units:,}, because duplicates were joined."
        if units < given
        else "",
        "held": f"{pluralize(held, 'photo')} outside the folds (a given test split) never trained." if held else "",
        "groups": _group_sizes(photos) if m.grouped else "",
        "attributes": _attributes(m, photos),
        "findings": _findings(m.findings),
        "found": _found(m.findings),
    }
    return context, wanted


def _data_finding(photos: int, classes: int, units: int, counts: pd.Series, grouped: bool) -> str:
    least, most = counts.min(), counts.max()
    opening = f"{pluralize(photos, 'photo')} of {pluralize(classes, 'class', 'classes')}"
    opening += f" in {pluralize(units, 'group')}" if grouped else ", each photo its own group"
    if least == most:
        return f"{opening}; every class has {pluralize(int(most), 'photo')}."
    if most < 1.05 * least:
        return f"{opening}; every class has {least:,} or more, none over {most:,}."
    ratio = f"{most / least:.1f} times as many as" if least else "against"
    return f"{opening}; “{counts.idxmax()}” has {most:,}, {ratio} “{counts.idxmin()}” ({least:,})."


def _group_sizes(photos: pd.DataFrame) -> Any:
    sizes = photos.groupby("unit").size().to_numpy()
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


def _attributes(m: ReportData, photos: pd.DataFrame) -> list[Context]:
    names = [name for name in m.info.get("attributes", []) if name in photos.columns]
    if len(names) < 2:
        return []
    found = []
    for i, name in enumerate(names):
        counts = photos[name].astype(str).value_counts()
        rows = [(value, float(n), f"{n:,}") for value, n in counts.head(12).items()]
        rest = len(counts) - len(rows)
        found.append(
            {
                "name": name,
                "plot": svg.bars(f"attribute-{i}", f"Photos by {name}", rows, left=40),
                "rest": rest,
            }
        )
    return found


def _findings(findings: pd.DataFrame) -> list[Context]:
    rows = []
    for (check, severity, fix), own in findings.groupby(["check", "severity", "fix"], sort=False):
        cases = [{"path": path, "message": text} for path, text in zip(own["path"], own["message"], strict=True)]
        rows.append(
            {
                "check": check,
                "severity": severity,
                "fix": fix,
                "first": cases[0],
                "cases": cases[:PAIRS],
                "count": len(cases),
            }
        )
    return sorted(rows, key=lambda row: -SEVERITIES.index(row["severity"]) if row["severity"] in SEVERITIES else 1)


def _found(findings: pd.DataFrame) -> str:
    if findings.empty:
        return "The checks found no problems."
    counts = findings["severity"].value_counts()
    words = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("note", "notes")}
    return f"The checks found {join_names(pluralize(int(counts[k]), *words[k]) for k in words if k in counts)}."


def folds(m: ReportData) -> Context:
    """Spread of the scores over folds, and whether groups are split over folds."""
    folds, photos = m.scores["folds"], m.trained
    values = [fold["macro_f1"] for fold in folds]
    if m.straddling:
        groups = pluralize(m.straddling, "group is", "groups are")
        safe = f"but {groups} split across folds, so the score is optimistic"
    else:
        safe = "and no group is split across folds" if m.grouped else "and no image is in two folds"
    table = pd.crosstab(photos["label"], photos["fold"]).reindex(m.classes, fill_value=0)
    absent = int((table == 0).to_numpy().sum())
    return {
        "finding": f"Over {len(folds)} folds macro F1 runs from {format_score(min(values), 2)} "
        f"to {format_score(max(values), 2)}, {safe}.",
        "plot": svg.fold_dots("folds", folds, m.judged["macro_f1"]),
        "folds": folds,
        "judged": m.judged,
        "numbers": [int(fold) for fold in table.columns],
        "counts": [(name, [int(n) for n in row]) for name, row in zip(table.index, table.to_numpy(), strict=True)],
        "absent": f"{pluralize(absent, 'class is', 'classes are')} missing from a fold (marked 0)." if absent else "",
    }


def per_class(m: ReportData) -> Context:
    """Precision, recall and F1 of each class, worst first."""
    rows = sorted(m.judged["per_class"], key=lambda row: (row["f1"]["value"], row["recall"]["value"]))
    scored = [row for row in rows if row["support"]]
    if not scored:
        return {"finding": "No class has photos.", "rows": rows}
    worst, best = scored[0], scored[-1]
    f1 = worst["f1"]
    finding = (
        f"The weakest class is “{worst['class']}” with F1 {format_estimate(f1, 2)} "
        f"({pluralize(worst['support'], 'photo')}); "
        f"the strongest, “{best['class']}”, has {format_score(best['f1']['value'], 2)}."
    )
    if f1["value"] == best["f1"]["value"]:
        finding = f"All classes have the same F1, {format_score(f1['value'], 2)}."
    return {"finding": finding, "rows": rows, "bar": svg.interval_bar}


def confused_pairs(confusion: np.ndarray) -> list[tuple[int, int]]:
    """(true, predicted) pairs that occur, worst first by the lower Wilson bound of their share."""
    support = confusion.sum(1)
    pairs = [(int(i), int(j)) for i, j in np.argwhere(confusion) if i != j]
    return sorted(pairs, key=lambda p: (-svg.wilson(int(confusion[p]), int(support[p[0]]))[0], p))


def confusion(m: ReportData, shown: Counter[tuple[int, int]]) -> Context:
    """Confusion matrix. `shown` is the number of images of each pair of classes in the next section."""
    counts, classes = np.asarray(m.judged["confusion"]), m.classes
    pairs, support = confused_pairs(counts), counts.sum(1)
    finding = "No photo was taken for another class."
    if pairs:
        i, j = pairs[0]
        of = pluralize(int(support[i]), "photo")
        finding = f"“{classes[i]}” is taken for “{classes[j]}” in {counts[i, j]:,} of {of}."

    def cell(i: int, j: int) -> Context:
        share = counts[i, j] / support[i] if support[i] else 0.0
        return {
            "true": classes[i],
            "said": classes[j],
            "count": int(counts[i, j]),
            "support": int(support[i]),
            "share": format_percent(share) if counts[i, j] == 0 or share >= 0.005 else "<1%",
            "step": 0 if not counts[i, j] else max(1, round(10 * share)),
            "href": f"#pair-{i}-{j}" if shown[i, j] else "",
            "shown": shown[i, j],
            "right": i == j,
        }

    small = len(classes) <= MATRIX_LIMIT
    return {
        "finding": finding,
        "classes": classes,
        "matrix": [[cell(i, j) for j in range(len(classes))] for i in range(len(classes))] if small else [],
        "pairs": [] if small else [cell(i, j) for i, j in pairs[:PAIRS]],
        "shares": len(classes) <= 10,
    }


def wrong(m: ReportData) -> tuple[Context, list[str]]:
    """The most confident mistakes, and their paths."""
    probabilities = m.oof[probability_columns(m.classes)].to_numpy(np.float64)
    index = {name: i for i, name in enumerate(m.classes)}
    true = m.oof["label"].map(index).to_numpy()
    said, sure = probabilities.argmax(1), probabilities.max(1)
    errors = np.flatnonzero(said != true)
    ranked = errors[np.argsort(-sure[errors], kind="stable")]
    worst = confused_pairs(np.asarray(m.judged["confusion"]))[:1]
    first: list[int] = []
    rest: list[int] = []
    alike: Counter[tuple[int, int]] = Counter()
    for r in sorted(ranked, key=lambda r: [(true[r], said[r])] != worst):  # the worst confusion is always included
        alike[true[r], said[r]] += 1
        (first if alike[true[r], said[r]] <= WRONG_ALIKE else rest).append(r)
    picked = sorted([*first, *sorted(rest, key=lambda r: -sure[r])][:WRONG], key=lambda r: -sure[r])
    shots = [
        {
            "path": str(m.oof["path"].iloc[r]),
            "true": m.classes[true[r]],
            "said": m.classes[said[r]],
            "sure": format_score(sure[r], 2),
            "own": format_score(probabilities[r, true[r]], 2),
            "pair": (int(true[r]), int(said[r])),
        }
        for r in picked
    ]
    finding = "No photo is wrong out of fold."
    if shots:
        very = int((sure[errors] >= 0.9).sum())
        look = "look there first, for the label itself may be what is wrong" if very else "the surest come first"
        finding = (
            f"{len(errors):,} of {pluralize(len(true), 'photo')} {'is' if len(errors) == 1 else 'are'} wrong, "
            f"{f'{very:,}' if very else 'none'} of them at a probability of 0.90 or more: {look}."
        )
    return {"finding": finding, "shots": shots, "pairs": sorted({shot["pair"] for shot in shots})}, [
        s["path"] for s in shots
    ]


def calibration(m: ReportData) -> Context:
    """Calibration of the out-of-fold probabilities."""
    probabilities = m.oof[probability_columns(m.classes)].to_numpy(np.float64)
    true = m.oof["label"].map({name: i for i, name in enumerate(m.classes)}).to_numpy()
    sure, right = probabilities.max(1), probabilities.argmax(1) == true
    ece, confidence, share = m.judged["ece"], float(sure.mean()), float(right.mean())
    lean = "neither overconfident nor underconfident overall"
    if abs(confidence - share) >= 0.01:
        lean = "overconfident" if confidence > share else "underconfident"
        lean += f", with mean confidence {format_score(confidence, 2)} and accuracy {format_score(share, 2)}"
    return {
        "finding": f"The expected calibration error is {format_estimate(ece, 2)}: the model is {lean}.",
        "plot": svg.reliability_plot("reliability", reliability(sure, right)),
        "rows": reliability(sure, right),
        "judged": m.judged,
    }


Row = dict[str, Any]


def parts(columns: Row | None, whole: Row) -> Row | None:
    """Section on combined labels; None if the label has no parts.

    Args:
        columns: `parts` of scores.json.
        whole: `out_of_fold` of scores.json.
    """
    if not columns:
        return None
    rows = [
        {
            "name": str(name),
            "values": len(found["classes"]),
            "macro_f1": found["macro_f1"],
            "accuracy": found["accuracy"],
            "chance": format_score(found["chance"]["accuracy"], 2),
            "always": str(found["chance"]["class"]),
            "if_right": found["if_right"]["macro_f1"],
            "gain": found["if_right"]["gain"],
            "more_than": found["if_right"]["more_than"],
            "classes": found["per_class"],
        }
        for name, found in columns.items()
    ]
    rows.sort(key=lambda row: -row["gain"]["value"])
    return {
        "finding": _finding(rows, whole["macro_f1"]["value"]),
        "plot": gain_bars("parts", [(row["name"], row["gain"]) for row in rows]),
        "rows": rows,
        "bar": interval_bar,
        "judged": whole,
    }


def _finding(rows: list[Row], whole: float) -> str:
    """The part whose errors cost the most, and which other parts it differs from significantly."""
    first, others = rows[0], [row["name"] for row in rows[1:]]
    if not first["gain"]["value"]:
        return f"Correcting a single part would not change the macro F1 of the whole ({format_score(whole)})."
    more = [name for name in others if first["more_than"][name]["low"] > 0]
    rest = [name for name in others if name not in more]
    sides = [
        *([f"significantly more than {join_names(more)}"] if more else []),
        *([f"not significantly more than {join_names(rest)}"] if rest else []),
    ]
    return (
        f"Errors in “{first['name']}” cost most: if it were always right, macro F1 of the whole would be "
        f"{format_score(first['if_right']['value'])} instead of {format_score(whole)}; {', '.join(sides)}."
    )
