"""Fine-tuning from the command line on the four real sets, against the `good` probe of the same photos and folds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child
import sets

# The defaults of `partial` were chosen by looking at these; the others are what the choice is judged by.
CHOSEN_ON = ("masks", "clothing")
# set -> strategies
STRATEGIES: dict[str, tuple[str, ...]] = dict.fromkeys(sets.SETS, ("partial",)) | {"clothing": ("partial", "full")}
HEADLINE = ("set", "strategy", "macro_f1", "probe_macro_f1", "gain", "gain_low", "gain_high", "training_s", "first_s")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a set and strategy, each once and with an empty cache; defaults throughout."""
    if data is None:
        print("tuned: skipped, the real photos are absent (--data DIR).")
        return
    for name, strategies in STRATEGIES.items():
        for strategy in strategies:
            yield compared(data, scratch / f"{name}-{strategy}", name, strategy)


def compared(data: Path, place: Path, name: str, strategy: str) -> dict[str, Any]:
    """The whole command; `gain` is its macro F1 less its own probe's, the interval by resampling groups."""
    source, options = sets.SETS[name]
    tuned = child.fit(data / source, place / strategy, place / "cache", *options, "--strategy", strategy)
    scores = json.loads((place / strategy / "scores.json").read_text("utf-8"))
    found, before = scores["out_of_fold"], scores["components"]["probe"]
    alone, spent = scores["components"]["network alone"], child.stages(place / strategy)
    row: dict[str, Any] = {
        "set": name,
        "defaults_chosen_on_it": name in CHOSEN_ON,
        "strategy": strategy,
        "photos": found["photos"],
        "classes": len(found["classes"]),
        "groups": found["groups"],
    }
    for score in ("macro_f1", "log_loss", "accuracy"):
        row |= {score: round(found[score]["value"], 4)}
        row |= {f"{what}_{score}": round(s[score]["value"], 4) for what, s in (("probe", before), ("alone", alone))}
    row |= {
        f"gain{end}": round(scores["gain"][key], 4) for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    row |= {"first_s": tuned.seconds, "first_cpu_s": tuned.cpu_seconds}
    row |= {f"{stage}_s": seconds for stage, seconds in spent.items()}
    return {**row, "peak_mb": tuned.peak_mb, "repeats": 1, "load": tuned.load}
