"""The report's section on combined labels: how well each part is told, and which of them costs the whole most."""

from __future__ import annotations

from typing import Any

from unfreeze.deliver.plots import gain_bars, interval_bar, score

Row = dict[str, Any]


def parts(told: Row | None, whole: Row) -> Row | None:
    """The section's context, or None where the label has no parts.

    told: `parts` of scores.json. whole: its `out_of_fold`.
    """
    if not told:
        return None
    rows = [
        {
            "name": str(name),
            "values": len(found["classes"]),
            "macro_f1": found["macro_f1"],
            "accuracy": found["accuracy"],
            "chance": score(found["chance"]["accuracy"], 2),
            "always": str(found["chance"]["class"]),
            "if_right": found["if_right"]["macro_f1"],
            "gain": found["if_right"]["gain"],
            "classes": found["per_class"],
        }
        for name, found in told.items()
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
    first = rows[0]
    gain, right = first["gain"], first["if_right"]["value"]
    if gain["low"] <= 0:
        return f"No part is told to cost the whole more than chance (macro F1 {score(whole)})."
    return (
        f"The part “{first['name']}” costs most: were it always right, macro F1 of the whole would be {score(right)} "
        f"in place of {score(whole)}."
    )
