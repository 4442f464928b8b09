"""What each section of the report says: tables in, a finding in one sentence and what it rests on out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.errors import listed
from unfreeze.core.tables import SEVERITIES, probability_columns
from unfreeze.deliver import plots
from unfreeze.deliver.material import Context, Material
from unfreeze.deliver.plots import ScoreRow, number, score, span
from unfreeze.judge.calibration import reliability

MATRIX_LIMIT = 30  # classes; above it the pairs are listed, not drawn
PAIRS = 20
WRONG = 24
WRONG_ALIKE = 6  # of one pair, while other pairs remain
SAMPLES = 72  # thumbnails over all classes
ROWS = 30  # classes and findings listed before the rest is folded away


def headline(m: Material) -> Context:
    """How good the model is, beside chance, the test split and what a careless split would have told."""
    judged, chance = m.judged, m.judged["chance"]
    f1, accuracy = judged["macro_f1"], judged["accuracy"]
    always = f"always “{plots.clipped(chance['class'], 20)}”"
    rows = [
        ScoreRow("Macro F1, out of fold", f1, chance["macro_f1"], always),
        ScoreRow("Accuracy, out of fold", accuracy, chance["accuracy"], always),
    ]
    test = m.scores.get("test")
    if test:
        for key, name in (("macro_f1", "Macro F1"), ("accuracy", "Accuracy")):
            rows.append(ScoreRow(f"{name}, test split", test[key], test["chance"][key], "the largest class"))
    careless = m.scores.get("random_split")
    if careless:
        rows.append(ScoreRow("Macro F1, if split by photo", careless["macro_f1"], quiet=True))
    return {
        "finding": f"On {m.unseen} it has never seen, the model reaches macro F1 {score(f1['value'], 2)} "
        f"(95 % interval {span(f1, 2)}) and accuracy {score(accuracy['value'], 2)} ({span(accuracy, 2)}); "
        f"always answering “{chance['class']}” would score "
        f"{score(chance['macro_f1'], 2)} and {score(chance['accuracy'], 2)}.",
        "plot": plots.score_rows("scores", rows),
        "careless": careless
        and f"A split by photo would have told {score(careless['macro_f1']['value'], 2)}; "
        f"on unseen {m.unseen} it is {score(f1['value'], 2)}.",
        "test": test
        and f"On the test split ({number(test['photos'], 'photo')}, {number(test['groups'], 'group')}, "
        f"never trained on) macro F1 is {score(test['macro_f1']['value'], 2)} ({span(test['macro_f1'], 2)}), "
        f"{_against(test['macro_f1'], f1)}.",
        "judged": judged,
    }


def _against(test: dict[str, float], own: dict[str, float]) -> str:
    gap = score(abs(test["value"] - own["value"]), 2)
    if test["low"] <= own["high"] and own["low"] <= test["high"]:
        return f"{gap} away from the out-of-fold score, and the intervals overlap"
    side = "above" if test["value"] > own["value"] else "below"
    return f"{gap} {side} the out-of-fold score: more than chance"


def trained_on(m: Material) -> tuple[Context, list[str]]:
    """The photos, their classes, groups and findings; and the paths of the sample photos."""
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
                "bar": plots.bar(counts[name] / max(counts.max(), 1)),
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
        "joined": f"{number(given, 'group')} as given became {units:,}, because duplicates were joined."
        if units < given
        else "",
        "held": f"{number(held, 'photo')} outside the folds (a given test split) never trained." if held else "",
        "groups": _group_sizes(photos) if m.grouped else "",
        "attributes": _attributes(m, photos),
        "findings": _findings(m.findings),
        "found": _found(m.findings),
    }
    return context, wanted


def _data_finding(photos: int, classes: int, units: int, counts: pd.Series, grouped: bool) -> str:
    least, most = counts.min(), counts.max()
    opening = f"{number(photos, 'photo')} of {number(classes, 'class', 'classes')}"
    opening += f" in {number(units, 'group')}" if grouped else ", each photo its own group"
    if least == most:
        return f"{opening}; every class has {number(int(most), 'photo')}."
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
        rows.append((f"{label} photo{'s' if high > 1 else ''}", float(inside), number(inside, "group")))
        low = high + 1
    while rows and not rows[0][1]:
        rows.pop(0)
    return plots.bars("groups", "How many photos the groups hold", rows)


def _attributes(m: Material, photos: pd.DataFrame) -> list[Context]:
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
                "plot": plots.bars(f"attribute-{i}", f"Photos by {name}", rows, left=40),
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
        return "The checks found nothing to mend."
    counts = findings["severity"].value_counts()
    words = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("note", "notes")}
    return f"The checks left {listed(number(int(counts[k]), *words[k]) for k in words if k in counts)}."


def folds(m: Material) -> Context:
    """How far the folds agree, and whether a group sits in two of them."""
    told, photos = m.scores["folds"], m.trained
    values = [fold["macro_f1"] for fold in told]
    if m.straddling:
        groups = number(m.straddling, "group sits", "groups sit")
        safe = f"but {groups} in more than one fold, which flatters the score"
    else:
        safe = "and no group sits in two of them" if m.grouped else "and no photo sits in two of them"
    table = pd.crosstab(photos["label"], photos["fold"]).reindex(m.classes, fill_value=0)
    absent = int((table == 0).to_numpy().sum())
    return {
        "finding": f"Over {len(told)} folds macro F1 runs from {score(min(values), 2)} "
        f"to {score(max(values), 2)}, {safe}.",
        "plot": plots.fold_dots("folds", told, m.judged["macro_f1"]),
        "folds": told,
        "judged": m.judged,
        "numbers": [int(fold) for fold in table.columns],
        "counts": [(name, [int(n) for n in row]) for name, row in zip(table.index, table.to_numpy(), strict=True)],
        "absent": f"{number(absent, 'class is', 'classes are')} missing from a fold (marked 0)." if absent else "",
    }


def per_class(m: Material) -> Context:
    """Precision, recall and F1 of each class, the worst first."""
    rows = sorted(m.judged["per_class"], key=lambda row: (row["f1"]["value"], row["recall"]["value"]))
    scored = [row for row in rows if row["support"]]
    if not scored:
        return {"finding": "No class has photos.", "rows": rows}
    worst, best = scored[0], scored[-1]
    f1 = worst["f1"]
    finding = (
        f"The weakest class is “{worst['class']}” with F1 {score(f1['value'], 2)} "
        f"(95 % interval {span(f1, 2)}, {number(worst['support'], 'photo')}); "
        f"the strongest, “{best['class']}”, has {score(best['f1']['value'], 2)}."
    )
    if f1["value"] == best["f1"]["value"]:
        finding = f"All classes have the same F1, {score(f1['value'], 2)}."
    return {"finding": finding, "rows": rows, "bar": plots.interval_bar}


def confused_pairs(confusion: np.ndarray) -> list[tuple[int, int]]:
    """(true, predicted) pairs that occur, worst first: by the low end of the share's Wilson interval."""
    support = confusion.sum(1)
    pairs = [(int(i), int(j)) for i, j in np.argwhere(confusion) if i != j]
    return sorted(pairs, key=lambda p: (-plots.wilson(int(confusion[p]), int(support[p[0]]))[0], p))


def confusion(m: Material, shown: set[tuple[int, int]]) -> Context:
    """What is taken for what; `shown` are the pairs whose photos stand in the next section."""
    counts, classes = np.asarray(m.judged["confusion"]), m.classes
    pairs, support = confused_pairs(counts), counts.sum(1)
    finding = "No photo was taken for another class."
    if pairs:
        i, j = pairs[0]
        finding = f"“{classes[i]}” is taken for “{classes[j]}” in {counts[i, j]:,} of {support[i]:,} photos."

    def cell(i: int, j: int) -> Context:
        share = counts[i, j] / support[i] if support[i] else 0.0
        return {
            "true": classes[i],
            "said": classes[j],
            "count": int(counts[i, j]),
            "support": int(support[i]),
            "share": f"{100 * share:.0f} %" if counts[i, j] == 0 or share >= 0.005 else "<1 %",
            "step": 0 if not counts[i, j] else max(1, round(10 * share)),
            "href": f"#pair-{i}-{j}" if (i, j) in shown else "",
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


def wrong(m: Material) -> tuple[Context, list[str]]:
    """The photos the model was surest about and wrong; and their paths."""
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
    for r in sorted(ranked, key=lambda r: [(true[r], said[r])] != worst):  # the worst confusion is never crowded out
        alike[true[r], said[r]] += 1
        (first if alike[true[r], said[r]] <= WRONG_ALIKE else rest).append(r)
    picked = sorted([*first, *sorted(rest, key=lambda r: -sure[r])][:WRONG], key=lambda r: -sure[r])
    shots = [
        {
            "path": str(m.oof["path"].iloc[r]),
            "true": m.classes[true[r]],
            "said": m.classes[said[r]],
            "sure": score(sure[r], 2),
            "own": score(probabilities[r, true[r]], 2),
            "pair": (int(true[r]), int(said[r])),
        }
        for r in picked
    ]
    finding = "No photo is wrong out of fold."
    if shots:
        very = int((sure[errors] >= 0.9).sum())
        look = "look there first, for the label itself may be what is wrong" if very else "the surest come first"
        finding = (
            f"{len(errors):,} of {number(len(true), 'photo')} {'is' if len(errors) == 1 else 'are'} wrong, "
            f"{f'{very:,}' if very else 'none'} of them at a probability of .90 or more: {look}."
        )
    return {"finding": finding, "shots": shots, "pairs": sorted({shot["pair"] for shot in shots})}, [
        s["path"] for s in shots
    ]


def calibration(m: Material) -> Context:
    """Whether the probabilities mean what they say."""
    probabilities = m.oof[probability_columns(m.classes)].to_numpy(np.float64)
    true = m.oof["label"].map({name: i for i, name in enumerate(m.classes)}).to_numpy()
    sure, right = probabilities.max(1), probabilities.argmax(1) == true
    ece, told, share = m.judged["ece"], float(sure.mean()), float(right.mean())
    lean = "neither too sure nor too modest overall"
    if abs(told - share) >= 0.01:
        lean = "too sure" if told > share else "too modest"
        lean += f", telling {score(told, 2)} where {score(share, 2)} are right"
    return {
        "finding": f"Probabilities miss by {score(ece['value'], 2)} on average "
        f"(ECE, 95 % interval {span(ece, 2)}): the model is {lean}.",
        "plot": plots.reliability_plot("reliability", reliability(sure, right)),
        "rows": reliability(sure, right),
        "judged": m.judged,
    }
