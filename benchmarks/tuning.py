"""What a search is worth: `unfreeze tune` with its usual space, judged on photos that had no part in it.

A row is a set: macro F1 of the recipe given, of the search (nested), and the two figures of the best recipe that are
too good, in its search and over the folds; all from an empty cache. A head's trial is one whose features were there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from sets import SETS as WORDS

import unfreeze as uf
from unfreeze.analysis.tuning.search import Searched

# Set -> what to read and recipe.source.
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "clothing": (
        WORDS["clothing"][0],
        {"source.label": ["label"], "source.group": "sender_id", "source.split": "none"},
    ),
    "trash": (WORDS["trash"][0], {}),
}
TRIALS = 20
HEADLINE = ("set", "tried", "base", "nested", "gain", "gain_low", "gain_high", "searched", "shown", "seconds", "load")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a set, once: a search takes its time. Skipped without the real photos."""
    if data is None:
        print("tuning: skipped, the real photos are absent (--data DIR).")
        return
    for name, (source, words) in SETS.items():
        os.environ["UNFREEZE_CACHE"] = str(scratch / "cache" / name)
        changes = {**words, "source.path": str(data / source), "tune.trials": TRIALS}
        recipe = uf.Recipe().replace(strategy="probe", **changes)
        loads, started, cpu = [os.getloadavg()[0]], time.perf_counter(), time.process_time()
        found = uf.tune(uf.read(data / source, recipe.source), recipe, scratch / name)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        loads.append(os.getloadavg()[0])
        row: dict[str, Any] = {"set": name, "strategy": "probe", "photos": found.photos, "groups": found.groups}
        row |= {"trials": TRIALS, "tried": found.tried}
        row |= {"pruned": sum(r.state == "pruned" for r in found.searches[0].distinct)}
        for key in ("base", "nested", "gain", "shown"):
            figure = getattr(found, key)
            row |= {key: round(figure.value, 4)}
            row |= {f"{key}_{end}": round(getattr(figure, end), 4) for end in ("low", "high")}
        row |= {"searched": round(found.searched, 4), "best": json.dumps(found.changes)}
        row |= {f"chosen_{i}": json.dumps(changes) for i, changes in enumerate(found.chosen)}
        row |= {"importance": json.dumps({key: round(share, 2) for key, share in found.importance.items()})}
        row |= {"head_trial_seconds": _head_seconds(found.searches[0]), "seconds": round(seconds)}
        yield row | {"cpu_seconds": round(cpu_seconds), "load": " to ".join(f"{load:.1f}" for load in loads)}


def _head_seconds(searched: Searched) -> float | str:
    """Median seconds of learning of whole trials whose features an earlier one has read; '' where there is none."""
    seen, seconds = set[str](), list[float]()
    for row in searched.rows:
        about = json.dumps({key: value for key, value in row.changes.items() if not key.startswith("balance.")})
        if about in seen and row.state == "complete":
            seconds.append(row.seconds)
        seen.add(about)
    return round(median(seconds), 2) if seconds else ""
