"""How the terminal tells what verdicts did, and how well each part of a combined label is told."""

from __future__ import annotations

from typing import Any

from unfreeze.app.console import changed, number, say, scored, show


def verdicts_said(found: dict[str, Any]) -> str:
    """One line: what was obeyed, and what it changed on the unchanged photos."""
    done = f"Verdicts: {found['relabel']:,} relabelled, {found['exclude']:,} excluded, {found['keep']:,} kept."
    if "gain" not in found:
        return f"{done} What they changed is not known: no fit without them on the same folds."
    gain, before, after = found["gain"], found["before"]["macro_f1"]["value"], found["after"]["macro_f1"]["value"]
    sure = "" if gain["low"] > 0 or gain["high"] < 0 else ", so it may be chance"
    return (
        f"{done} On the {found['photos']:,} unchanged photos and the same folds macro F1 went from {before:.3f} to "
        f"{after:.3f}: {gain['value']:+.3f} (95 % between {gain['low']:+.3f} and {gain['high']:+.3f}{sure})."
    )


def show_parts(parts: dict[str, Any]) -> None:
    """The table of a combined label's parts, the costliest first, and a sentence."""
    columns = ["part", "macro F1 (95 %)", "accuracy", "whole, were it right", "more than now"]
    costs = sorted(parts, key=lambda name: -parts[name]["if_right"]["gain"]["value"])
    rows = [
        [
            name,
            scored(parts[name]["macro_f1"]),
            number(parts[name]["accuracy"]["value"]),
            number(parts[name]["if_right"]["macro_f1"]["value"]),
            changed(**parts[name]["if_right"]["gain"]),
        ]
        for name in costs
    ]
    show("Each part of the label, and macro F1 of the whole if that part were always right", columns, rows, columns[1:])
    gain = parts[costs[0]]["if_right"]["gain"]
    if gain["low"] > 0:
        say(f"'{costs[0]}' costs the whole most: {gain['value']:+.3f} macro F1 if it were always right.")
    else:
        say("No part is told to cost the whole more than chance.")
