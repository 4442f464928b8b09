"""Report section on the strategy recommendation: the choice, the race that decided it, and the axes behind it."""

from __future__ import annotations

from math import hypot
from pathlib import Path
from typing import Any

from unfreeze.analysis.recommendation import CELLS
from unfreeze.core.errors import RunError
from unfreeze.core.files import read_json
from unfreeze.core.format import (
    format_difference,
    format_estimate,
    format_interval,
    format_score,
    format_seconds,
    pluralize,
)
from unfreeze.reports.strategy_plots import curve_plot, predicted, quadrant_plot, race_plot

Row = dict[str, Any]
FILE = "recommendation.json"
MAX_BYTES = 20_000_000
CLASSES = 60  # classes listed; those that need more images first
BASE = "probe"  # the baseline
# Rule of thumb from courses: (enough images, similar to the pretraining) -> strategy. The fourth cell names none.
_TAUGHT: dict[tuple[bool, bool], str] = {(True, True): "probe", (True, False): "full", (False, True): "probe"}
_MEASURES = {
    "pretraining_distance": "Distance from the pretraining",
    "noise_distance": "Distance of noise images",
    "separability_pretrained": "Separability, pretrained features",
    "separability_untrained": "Separability, untrained copy",
    "owed_to_pretraining": "Due to pretraining",
    "channel_shift": "Channel shift",
}


def read_recommendation(run: Path) -> Row | None:
    """Section context of the recommendation stored in a run of strategy auto; None for other runs.

    Raises:
        RunError: The file is damaged.
    """
    file = run / FILE
    if not file.exists():
        return None
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES:,} bytes")
        found = read_json(file)["recommendation"]
        return strategy_section(found) if found else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(
            f"{file}: not recommendation as a run writes it ({what}); move it away and report again."
        ) from None


def strategy_section(found: Row) -> Row:
    """Template context of the section.

    Args:
        found: `StrategyRecommendation.to_json()`, possibly read from a file; its table is not empty.
    """
    table, blocks = found["table"], found["blocks"]
    for_run = any(block["folds"] for block in blocks)
    judged = sum(block["judged"] for block in blocks)
    rows = [_candidate(row) for row in table]
    partly = {row["photos"] for row in rows}
    similar, enough = found["similar"], found["enough"]
    return {
        "finding": _finding(found, blocks if for_run else []),
        "reason": found["reason"],
        "runner_up": found["runner_up"],
        "would_change": found["would_change"],
        "rows": rows,
        "unequal": len(partly) > 1,
        "race": race_plot("race", [row for row in table if row["name"] != BASE], BASE) if len(table) > 1 else "",
        "raced": _raced(table),
        "backbones": [_backbone(row) for row in found["backbones"]],
        "place": _place(found),
        "square": _square(found),
        "similar": _similar(similar) if similar else None,
        "enough": _enough(enough) if enough else None,
        "blocks": [{**block, "folds": _folds(block["folds"])} for block in blocks],
        "for_run": for_run,
        "judged": judged,
        "left_out": list(found["left_out"]),
        "photos": found["photos"],
        "groups": found["groups"],
        "spent": format_seconds(found["seconds"]),
    }


def _finding(found: Row, halves: list[Row]) -> str:
    """One sentence: what is recommended, and by which margin."""
    best, others = found["table"][0], found["table"][1:]
    chosen = dict.fromkeys(block["recommended"] for block in halves)
    if len(chosen) > 1:
        parts = [
            f"{name} for {_folds(k for block in halves if block['recommended'] == name for k in block['folds'])}"
            for name in chosen
        ]
        opening = f"The races chose {_and(parts)}; over both of them {best['name']} is"
    elif halves:
        opening = f"The races chose {best['name']} for every fold:"
    else:
        opening = f"Recommended: {best['name']},"
    if not others:
        return f"{opening.rstrip(':,')}, and nothing else was tried."
    rival = others[0]
    gap = best["expected"] - rival["expected"]
    chance = "" if abs(gap) > 1.96 * hypot(best["doubt"], rival["doubt"]) else " (not significant)"
    if rival["name"] == BASE:
        return f"{opening} expected {_above(gap)} the probe in macro F1{chance}."
    if best["name"] == BASE:
        return f"{opening} expected {_above(gap)} {rival['name']}, the runner-up, in macro F1{chance}."
    return (
        f"{opening} expected {_above(best['expected'])} the probe in macro F1 "
        f"and {_above(gap)} {rival['name']}, the runner-up{chance}."
    )


def _above(gap: float) -> str:
    return f"{format_score(abs(gap))} {'above' if gap >= 0 else 'below'}"


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _folds(numbers: Any) -> str:
    some = sorted(numbers)
    return f"{'fold' if len(some) == 1 else 'folds'} {_and([str(k) for k in some])}"


def _candidate(row: Row) -> Row:
    base = row["name"] == BASE
    of = row.get("of", row["photos"])
    return {
        "name": row["name"],
        "macro_f1": row["macro_f1"],
        "difference": "" if base else format_difference(row["difference"]["value"]),
        "between": "" if base else format_interval(row["difference"], signed=True),
        "expected": "" if base else format_difference(row["expected"]),
        "doubt": "" if base else f"± {format_score(1.96 * row['doubt'])}",
        "photos": row["photos"],
        "of": of if of > row["photos"] else 0,
        "seconds": format_seconds(row["seconds"]),
        "full_seconds": format_seconds(row["full_seconds"]),
        "out": row["out"],
    }


def _raced(table: list[Row]) -> str:
    """One sentence on the race plot."""
    others = [row for row in table if row["name"] != BASE]
    if not others:
        return ""
    ahead = [row["name"] for row in others if row["difference"]["low"] > 0]
    behind = [row["name"] for row in others if row["difference"]["high"] < 0]
    open_ = [row["name"] for row in others if row["name"] not in (*ahead, *behind)]
    said = [
        *([f"{_and(ahead)} scored higher than the probe"] if ahead else []),
        *([f"{_and(open_)} did not differ significantly from it"] if open_ and ahead else []),
        *([f"{_and(open_)} did not differ significantly from the probe"] if open_ and not ahead else []),
        *([f"{_and(behind)} scored lower"] if behind else []),
    ]
    return "On equal photos, each with its own 95% interval: " + "; ".join(said) + "."


def _backbone(row: Row) -> Row:
    return {
        "name": row["name"],
        "macro_f1": row["macro_f1"],
        "gmacs": f"{row['gmacs']:.2f}",
        "seconds": format_seconds(row["seconds"]),
    }


def _place(found: Row) -> str:
    """Position of the data set in the rule-of-thumb table, its uncertainty, and whether the race agrees."""
    if not found["cell"]:
        missing = [name for name in ("similar", "enough") if not found[name]]
        what = {"similar": "similarity to the pretraining images", "enough": "whether there are enough images"}
        return f"Not measured here: {' and '.join(what[name] for name in missing)}." if missing else ""
    is_enough, is_similar = found["cell"]
    words = f"({'enough' if is_enough else 'little'}, {'similar' if is_similar else 'different'})"
    enough, similar = found["enough"]["position"], found["similar"]
    open_ = [
        name
        for name, axis in (("enough", enough), ("similar", similar))
        if min(axis["low"], axis["value" if name == "enough" else "position"]) < 0.5 <= axis["high"]
    ]
    unsure = f", though the interval of “{open_[0]}” crosses the middle" if len(open_) == 1 else ""
    unsure = ", though both intervals cross the middle" if len(open_) == 2 else unsure
    own = _TAUGHT.get((is_enough, is_similar), "scratch")
    agrees = (
        f"the race found the same, {own}"
        if found["recommended"] == own
        else f"the race found {found['recommended']} instead"
    )
    return f"The rule of thumb for {words}{unsure}: {found['taught']}; {agrees}."


def _square(found: Row) -> Any:
    if not found["cell"]:
        return ""
    similar, enough = found["similar"], found["enough"]["position"]
    place = {"value": similar["position"], "low": similar["low"], "high": similar["high"]}
    is_enough, is_similar = found["cell"]
    return quadrant_plot("square", CELLS, place, enough, (bool(is_enough), bool(is_similar)))


def _similar(found: Row) -> Row:
    measures = [
        {
            "name": _MEASURES.get(row["name"], row["name"]),
            "value": "–" if row["value"] is None else format_score(row["value"]),
            "between": "" if row["low"] is None else format_interval(row),
            "vote": "" if row["vote"] is None else f"{row['vote']:.2f}",
            "says": row["says"],
            "why": row["why"],
        }
        for row in found["measures"]
    ]
    return {
        "sentence": found["sentence"],
        "measures": measures,
        "photos": found["photos"],
        "groups": found["groups"],
        "notes": list(found["notes"]),
    }


def _enough(found: Row) -> Row:
    classes = sorted(found["classes"], key=lambda row: (row["gain"] is not None, -(row["gain"] or {}).get("value", 0)))
    return {
        "sentence": found["sentence"],
        "plot": curve_plot("curve", found) if found["points"] else "",
        "law": [f"{part:.3f}" for part in found["law"]] if found["law"] else [],
        "banded": bool(found["doubled"]) and found["doubled"]["macro_f1"]["low"] is not None,
        "fourfold": f"with four times as many {predicted(found['fourfold'])}" if found["fourfold"] else "",
        "classes": [
            {
                "name": row["name"],
                "groups": row["groups"],
                "photos": row["photos"],
                "f1": f"{format_estimate(row['f1'], 2)}" if row["f1"] else "–",
                "gain": _gained(row["gain"]),
            }
            for row in classes[:CLASSES]
        ],
        "more": max(0, len(classes) - CLASSES),
        "notes": list(found["notes"]),
        "photos": pluralize(found["points"][-1]["photos"], "photo") if found["points"] else "",
    }


def _gained(gain: Row | None) -> str:
    if gain is None:
        return "too few"
    return format_difference(gain["value"], 2) if gain["low"] is None else format_estimate(gain, 2, signed=True)
