"""The report's section on labels: which are likely wrong, and what verdicts on them did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfreeze.core.files import read_json
from unfreeze.deliver.plots import number, score

Row = dict[str, Any]
FILE = "suspects.json"
SHOWN = 24
MAX_BYTES = 200_000_000


def read_suspects(run: Path) -> Row | None:
    """What `unfreeze suspects` left in the run folder; None if it left nothing whole."""
    try:
        if (run / FILE).stat().st_size > MAX_BYTES:
            return None
        read = read_json(run / FILE)
        return read if isinstance(read.get("table"), list) and "photos" in read and "expected" in read else None
    except (OSError, ValueError, AttributeError):
        return None


def labels(suspects: Row | None, verdicts: Row | None) -> tuple[Row | None, list[str]]:
    """The section's context, or None where there is nothing to tell; and the paths of the photos it shows.

    suspects: as `read_suspects` gives them. verdicts: those of scores.json.
    """
    if suspects is None and verdicts is None:
        return None, []
    shots = [
        {
            "path": str(row["path"]),
            "label": str(row["label"]),
            "suggested": str(row["suggested"]),
            "reason": str(row["reason"]),
            "score": score(float(row["score"]), 2),
        }
        for row in (suspects["table"] if suspects else [])[:SHOWN]
    ]
    grouped = [name for name, by_group in (suspects or {}).get("attributes", {}).items() if by_group]
    return {
        "finding": _changed(verdicts) if verdicts else _suspected(suspects or {}),
        "also": _suspected(suspects) if verdicts and suspects else "",
        "truth": _truth((suspects or {}).get("truth")),
        "shots": shots,
        "more": len(suspects["table"]) - len(shots) if suspects else 0,
        "grouped": ", ".join(grouped),
        "looked": (suspects or {}).get("looked", ""),
        "rows": _rows(verdicts) if verdicts and "gain" in verdicts else [],
        "moves": (verdicts or {}).get("moves", [])[:SHOWN],
        "file": (verdicts or {}).get("file", ""),
        "unchanged": (verdicts or {}).get("photos", 0),
        "groups": (verdicts or {}).get("groups", 0),
    }, [shot["path"] for shot in shots]


def _suspected(found: Row) -> str:
    if not found["table"]:
        return f"Nothing speaks against the label of any of {number(found['photos'], 'photo')}."
    first = found["table"][0]
    return (
        f"About {found['expected']:.0f} of {number(found['photos'], 'label')} are likely wrong; the most suspicious is "
        f"labelled “{first['label']}” and looks like “{first['suggested']}”."
    )


def _changed(v: Row) -> str:
    done = f"Verdicts relabelled {number(v['relabel'], 'photo')} and excluded {v['exclude']:,}"
    if "gain" not in v:
        return f"{done}; what that changed was not measured."
    gain = v["gain"]
    sure = "" if gain["low"] > 0 or gain["high"] < 0 else ", which may be chance"
    return (
        f"{done}: macro F1 on the unchanged photos went from {score(v['before']['macro_f1']['value'])} to "
        f"{score(v['after']['macro_f1']['value'])} ({_signed(gain['value'])}, 95 % interval {_signed(gain['low'])} to "
        f"{_signed(gain['high'])}{sure})."
    )


def _truth(t: Row | None) -> str:
    if not t or not t.get("planted"):
        return ""
    return (
        f"The truth is known here: {t['planted']:,} labels are wrong. Of the first {t['planted']:,} suspects "
        f"{t['found_at_k']:,} are ({score(t['precision_at_k'], 2)}); the first {2 * t['planted']:,} hold "
        f"{t['found_at_2k']:,} of them ({score(t['recall_at_2k'], 2)})."
    )


def _rows(v: Row) -> list[Row]:
    names = (("without the verdicts", "before"), ("with them", "after"))
    keys = ("macro_f1", "accuracy", "log_loss")
    return [{"name": name, **{k: v[which][k] for k in keys}} for name, which in names]


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{score(abs(value))}"
