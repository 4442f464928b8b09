"""Report section on label issues: suspected labels, and the effect of corrections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfreeze.analysis.label_issues import count_sentence, is_interval
from unfreeze.core.files import read_record
from unfreeze.core.format import format_score, pluralize
from unfreeze.core.messages import effect_sentence

Row = dict[str, Any]
FILE = "label_issues.json"
SHOWN = 24
MAX_BYTES = 200_000_000


def read_label_issues(run: Path) -> Row | None:
    """Read the result of `unfreeze label-issues` from a run folder; None if there is none or it is invalid."""

    def parse(read: Row) -> Row | None:
        whole = isinstance(read.get("table"), list) and isinstance(read.get("photos"), int)
        return read if whole and is_interval(read.get("wrong")) else None

    return read_record(run / FILE, parse, MAX_BYTES)


def labels(suspects: Row | None, corrections: Row | None) -> tuple[Row | None, list[str]]:
    """Template context of the section, and the paths of the images it shows.

    Args:
        suspects: From `read_label_issues`.
        corrections: `corrections` of scores.json.

    Returns:
        (None, []) if there are neither suspects nor corrections.
    """
    if suspects is None and corrections is None:
        return None, []
    shots = [
        {
            "path": str(row["path"]),
            "label": str(row["label"]),
            "suggested": str(row["suggested"]),
            "reason": str(row["reason"]),
            "score": format_score(float(row["score"]), 2),
        }
        for row in (suspects["table"] if suspects else [])[:SHOWN]
    ]
    grouped = [name for name, by_group in (suspects or {}).get("attributes", {}).items() if by_group]
    return {
        "finding": _changed(corrections) if corrections else _suspected(suspects or {}),
        "also": _suspected(suspects) if corrections and suspects else "",
        "truth": _truth((suspects or {}).get("truth")),
        "shots": shots,
        "more": len(suspects["table"]) - len(shots) if suspects else 0,
        "grouped": ", ".join(grouped),
        "looked": (suspects or {}).get("looked", ""),
        "rows": _rows(corrections) if corrections else [],
        "moves": (corrections or {}).get("moves", [])[:SHOWN],
        "file": (corrections or {}).get("file", ""),
        "nested": bool((corrections or {}).get("nested")),
        "groups": (corrections or {}).get("groups", 0),
    }, [shot["path"] for shot in shots]


def _suspected(found: Row) -> str:
    if not found["table"]:
        return f"Nothing contradicts the label of any of {pluralize(found['photos'], 'photo')}."
    first = found["table"][0]
    return (
        f"{count_sentence(found['wrong'], found['photos'])}; the most suspicious is labeled “{first['label']}” and "
        f"looks like “{first['suggested']}”."
    )


def _changed(v: Row) -> str:
    return (
        f"Corrections relabeled {pluralize(v['relabel'], 'photo')} and excluded {v['exclude']:,}. {effect_sentence(v)}"
    )


def _truth(t: Row | None) -> str:
    if not t or not t.get("planted"):
        return ""
    return (
        f"The truth is known here: {t['planted']:,} labels are wrong. Of the first {t['planted']:,} suspects "
        f"{t['found_at_k']:,} are ({format_score(t['precision_at_k'], 2)}); the first {2 * t['planted']:,} hold "
        f"{t['found_at_2k']:,} of them ({format_score(t['recall_at_2k'], 2)})."
    )


def _rows(v: Row) -> list[Row]:
    names = {
        "before": "linear probe without the corrections, labels as given",
        "after": "linear probe with those found without the scored fold, labels as given",
        "given": "this run, labels as given",
        "corrected": "this run, corrected labels",
    }
    if v["nested"]:
        names["before"] = "the same without the corrections, labels as given"
        del names["after"]  # the same as `given`
    keys = ("macro_f1", "accuracy", "log_loss")
    return [{"name": name, **{k: v[which][k] for k in keys}} for which, name in names.items() if which in v]
