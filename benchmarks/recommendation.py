"""Does the recommended strategy turn out best? Every strategy fitted in full on eight sets, what auto chose, its cost.

Real sets are cut to about 420 photos, whole groups, three folds: in full size they would take days. `scratch` trains at
64 px: at 224 it takes twelve times as long and does no better with so few photos.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import child
import far_sets
import numpy as np
import pandas as pd

import unfreeze as uf
from unfreeze.core.recipe_schema import Source

PHOTOS, PEOPLE, FOLDS = 420, 60, "3"
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "masks": ("masks/faces.csv", {"label": ("label",), "group": "photo"}),
    "clothing": ("clothing/groups.csv", {"label": ("label",), "group": "sender_id", "split": "none"}),
    "trash": ("trash", {}),
    "grocery": ("grocery", {"split": "none"}),
}
STRATEGIES: dict[str, tuple[str, ...]] = {
    "probe": (),
    "partial": (),
    "full": (),
    "scratch": ("--set", "image.size=64"),
}
HEADLINE = (
    "set",
    *STRATEGIES,
    "chosen",
    "auto",
    "regret",
    "race_cpu_s",
    "all_cpu_s",
    "race_share",
)


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a set. A fit that is in `scratch` already is taken from there."""
    for name, (source, options) in made_sets(data, scratch).items():
        taken: dict[str, dict[str, Any]] = {}
        for strategy, more in STRATEGIES.items():
            words = ("--strategy", strategy, "--folds", FOLDS, *more)
            taken[strategy] = fitted(
                source, scratch / "runs" / f"{name}-{strategy}", scratch / "cache", *options, *words
            )
            print(f"  {name} {strategy}: {taken[strategy]['macro_f1']['value']:.3f}", flush=True)
        words = ("--strategy", "auto", "--folds", FOLDS)
        auto = fitted(source, scratch / "runs" / f"{name}-auto", scratch / "cache-auto" / name, *options, *words)
        yield _row(name, taken, auto)


def _row(name: str, taken: dict[str, dict[str, Any]], auto: dict[str, Any]) -> dict[str, Any]:
    best = max(taken, key=lambda s: taken[s]["macro_f1"]["value"])
    chosen = auto["strategies"]
    # What the choice led to: the chosen strategy's own run, or the run itself where the folds differ.
    reached = taken[chosen[0]]["macro_f1"]["value"] if len(chosen) == 1 else auto["macro_f1"]["value"]
    all_of_it = sum(one["cpu_seconds"] for one in taken.values())
    row: dict[str, Any] = {"set": name, "photos": auto["photos"], "groups": auto["groups"]}
    for strategy, one in taken.items():
        row |= {
            strategy: round(one["macro_f1"]["value"], 4),
            f"{strategy}_low": round(one["macro_f1"]["low"], 4),
            f"{strategy}_high": round(one["macro_f1"]["high"], 4),
            f"{strategy}_cpu_s": round(one["cpu_seconds"], 1),
        }
    return row | {
        "chosen": " and ".join(chosen),
        "auto": round(auto["macro_f1"]["value"], 4),
        "best": best,
        "regret": round(taken[best]["macro_f1"]["value"] - reached, 4),
        "auto_cpu_s": round(auto["cpu_seconds"], 1),
        "race_cpu_s": round(auto["cpu_seconds"] - taken[chosen[0]]["cpu_seconds"], 1),
        "all_cpu_s": round(all_of_it, 1),
        "race_share": round((auto["cpu_seconds"] - taken[chosen[0]]["cpu_seconds"]) / all_of_it, 3),
    }


def fitted(source: Path, run: Path, cache: Path, *options: str) -> dict[str, Any]:
    """Scores and cost of a fit; one that was finished earlier is not done again."""
    note = run / "taken.json"
    if not note.exists():
        found = asdict(child.fit(source, run, cache, *options))
        note.write_text(json.dumps(found), "utf-8")
    known = json.loads(note.read_text("utf-8"))
    done = uf.open_run(run)
    scores = done.scores()["out_of_fold"]
    return {
        "macro_f1": scores["macro_f1"],
        "photos": scores["photos"],
        "groups": scores["groups"],
        "strategies": list(done.strategies),
        "cpu_seconds": float(known["cpu_seconds"]),
    }


def made_sets(data: Path | None, scratch: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """name -> source and options: cut real sets, drawn people, characters, spectra, photos made tiny."""
    sets: dict[str, tuple[Path, tuple[str, ...]]] = {}
    for name, (path, words) in REAL.items() if data else ():
        assert data is not None
        file = scratch / f"{name}.csv"
        if not file.exists():
            cut(data / path, words).to_csv(file, index=False)
        sets[name] = (file, ("--root", "/", "--label", "label", "--group", "group"))
    by_name = ("--group-regex", far_sets.GROUP)
    if data:
        tiny = scratch / "tiny"
        sets["tiny"] = (tiny if tiny.exists() else far_sets.tiny(tiny, data / "trash"), by_name)
    people = scratch / "people"
    if not people.exists():
        uf.make_demo(people, PEOPLE, 5, 0)
    sets["people"] = (people, ())
    for name, make in far_sets.FAR.items():
        folder = scratch / name
        sets[name] = (folder if folder.exists() else make(folder), by_name)
    return sets


def cut(path: Path, words: dict[str, Any]) -> pd.DataFrame:
    """About PHOTOS photos of a set, whole groups, drawn by a fixed seed; absolute paths."""
    photos = uf.read(str(path), Source(path=str(path), **words))
    sizes = photos.table.groupby("group").size()
    taken, count = [], 0
    for group in np.random.default_rng(0).permutation(sorted(sizes.index)):
        if count >= PHOTOS:
            break
        taken.append(group)
        count += sizes[group]
    table = photos.table[photos.table["group"].isin(taken)]
    paths = [str((photos.root / p).resolve()) for p in table["path"]]
    return pd.DataFrame({"path": paths, "label": table["label"], "group": table["group"]})
