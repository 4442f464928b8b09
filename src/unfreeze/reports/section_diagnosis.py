"""Report section on `unfreeze diagnose`: possible causes of a gap between validation and test score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from unfreeze.core.files import read_record
from unfreeze.core.format import format_estimate
from unfreeze.reports.svg_elements import hline, rect, svg, svg_text

Row = dict[str, Any]
FILE = "diagnosis.json"
MAX_BYTES = 50_000_000
_KEYS = ("name", "severity", "evidence", "cost", "remedy", "command", "measured")
_WORDS = {"error": "severe", "warning": "check", "info": "note", "none": "nothing found"}


def read_diagnosis(run: Path) -> Row | None:
    """Read the result of `unfreeze diagnose` from a run folder; None if there is none or it is invalid."""

    def parse(read: Row) -> Row | None:
        whole = all(all(key in cause for key in _KEYS) for cause in read["causes"])
        figures = [cause["cost"] for cause in read["causes"] if cause["cost"]] + [read["score"]]
        figures += [read[key] for key in ("expected", "real") if read[key]]
        whole = whole and all(isinstance(f[end], int | float) for f in figures for end in ("value", "low", "high"))
        return read if whole and isinstance(read["sentence"], str) and isinstance(read["test"], str) else None

    return read_record(run / FILE, parse, MAX_BYTES)


def diagnosis(read: Row | None) -> Row | None:
    """Template context of the section; None if the run was not diagnosed. `read` is from `read_diagnosis`."""
    if read is None or not read["causes"]:
        return None
    causes = [
        {
            "name": str(cause["name"]),
            "severity": str(cause["severity"]),
            "word": _WORDS.get(str(cause["severity"]), "") if cause["measured"] else "not measured",
            "cost": _cost(cause["cost"]),
            "evidence": str(cause["evidence"]),
            "remedy": str(cause["remedy"]),
            "command": str(cause["command"]),
        }
        for cause in read["causes"]
    ]
    grave = [cause for cause in causes if cause["severity"] in ("error", "warning")]
    sized = [
        (str(cause["name"]).partition(": ")[2] or str(cause["name"]), cause["cost"])
        for cause in read["causes"]
        if cause["cost"] and cause["severity"] != "none" and cause["cost"]["value"] > 0
    ]
    return {
        "finding": _finding(read, grave),
        "scores": _scores(read),
        "grave": grave,
        "others": [cause for cause in causes if cause not in grave],
        "plot": _bars(sized) if sized else "",
        "notes": [str(note) for note in read.get("notes", [])],
        "test": read["test"],
    }


def _finding(read: Row, grave: list[Row]) -> str:
    if not grave:
        against = " between validation and test" if read["test"] else ""
        return f"No problem found{against}."
    first = grave[0]
    cost = f", at {first['cost']} of macro F1" if first["cost"] else ""
    more = len(grave) - 1
    others = f"; {more} more to check" if more else ""
    return f"First look at {first['name']}{cost}{others}."


def _scores(read: Row) -> list[Row]:
    """Out-of-fold macro F1, and expected and actual macro F1 on the test images."""
    rows = [("out of fold", read["score"])]
    if read["expected"]:
        rows.append((f"to expect of {read['test']}", read["expected"]))
    if read["real"]:
        rows.append((f"real, of {read['test']}", read["real"]))
    return [{"name": name, **figure} for name, figure in rows]


def _bars(rows: list[tuple[str, Row]]) -> Markup:
    """Bar with interval for each cause, with its name above the bar."""
    most = max(cost["high"] for _, cost in rows)
    wide = 48  # percent; the rest is for the numbers

    def at(value: float) -> str:
        return f"{wide * max(value, 0.0) / most:.2f}%"

    body, said = [], []
    for i, (name, cost) in enumerate(rows):
        top = i * 56
        figures = _cost(cost)
        body += [
            svg_text("0", top + 16, name, "ink"),
            rect("0", top + 24, at(cost["value"]), 16, "bar"),
            hline(at(cost["low"]), at(cost["high"]), top + 44, "whisker"),
            svg_text("100%", top + 37, figures, "muted small", "end"),
        ]
        said.append(f"{name}: {figures}")
    return svg("diagnosis", "Macro F1 that each cause costs", "; ".join(said), 56 * len(rows), body)


def _cost(cost: Row | None) -> str:
    if cost is None or not any(cost[end] for end in ("value", "low", "high")):
        return ""
    return format_estimate(cost, signed=True)
