"""How many planted wrong labels `suspects` finds and counts, and what correcting them does.

Planted: the demo's own wrong labels; 3% of the masks' and of the trash photos' labels, changed to any other class or
to the class that a model of the right labels takes for the likeliest other one (confusable). All seeds of a set are the
same photos with other planted labels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SHARE = 0.03
SEEDS = {"any class": 4, "confusable": 2}
DEMOS = 2
CHOSEN_ON = 4  # how suspects are ranked was chosen by looking at the first masks and demos; no trash photo had a part
HEADLINE = (
    "set",
    "planted_as",
    "seed",
    "planted",
    "precision_at_k",
    "recall_at_2k",
    "estimated",
    "estimated_low",
    "estimated_high",
    "gain",
    "flattered",
    "seconds",
)


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a set and seed: precision at k and recall at 2k (k planted), and what correcting those found first did."""
    os.environ["UNFREEZE_CACHE"] = str(scratch / "cache")
    import unfreeze as uf

    for name, true, keys in _sets(data) if data is not None else ():
        for way, seeds in SEEDS.items():
            towards = _likeliest_others(true, keys, scratch / f"{name}-clean") if way == "confusable" else None
            for seed in range(seeds):
                table, truth = planted(true, seed, scratch / f"{name}-{way.split()[0]}-{seed}.csv", towards)
                recipe = uf.Recipe().replace(strategy="probe", **keys, **{"source.path": str(table)})
                yield _row(name, way, seed, recipe, scratch, truth)
    for seed in range(DEMOS):
        photos = scratch / f"demo-{seed}" / "photos"
        uf.make_demo(photos, 60, 2, seed)
        found = uf.check(uf.read(photos)).table
        folds = min(5, int(found.groupby("label")["unit"].nunique().min()))
        keys = {"source.path": str(photos), "folds.n_splits": folds}
        recipe = uf.Recipe().replace(strategy="probe", **keys)
        yield _row("demo, 60 people", "a person, or any class", seed, recipe, scratch, None)


def planted(true: pd.DataFrame, seed: int, table: Path, towards: dict[str, str] | None = None) -> tuple[Path, Path]:
    """A table of the photos with SHARE of the labels changed, to any other class or `towards` one, and the true one."""
    draw = np.random.default_rng(seed)
    labels = true["label"].to_numpy(copy=True)
    classes = sorted(set(labels))
    for i in draw.choice(len(labels), round(SHARE * len(labels)), replace=False):
        other = draw.choice([c for c in classes if c != labels[i]])
        labels[i] = towards[true["path"].iloc[i]] if towards else other
    truth = table.with_name(f"{table.stem}-truth.csv")
    true.assign(label=labels).to_csv(table, index=False)
    true.to_csv(truth, index=False)
    return table, truth


def _sets(data: Path) -> Iterator[tuple[str, pd.DataFrame, dict[str, str]]]:
    faces = pd.read_csv(data / "masks" / "faces.csv")
    table = pd.DataFrame({"path": faces["file"], "label": faces["label"], "photo": faces["photo"]})
    yield "masks", table, {"source.root": str(data / "masks"), "source.group": "photo"}
    paths = sorted(p.relative_to(data / "trash").as_posix() for p in (data / "trash").glob("*/*.jpg"))
    table = pd.DataFrame({"path": paths, "label": [p.split("/")[0] for p in paths]})
    yield "trash", table, {"source.root": str(data / "trash")}


def _likeliest_others(true: pd.DataFrame, keys: dict[str, str], place: Path) -> dict[str, str]:
    """The class that a probe of the right labels takes for the likeliest other one, out of fold, of each photo."""
    import unfreeze as uf

    table = place.with_suffix(".csv")
    true.to_csv(table, index=False)
    recipe = uf.Recipe().replace(strategy="probe", **keys, **{"source.path": str(table)})
    run = uf.fit(uf.read(table, recipe.source), recipe, place)
    oof, classes = run.predictions(), np.array(run.classes)
    proba: NDArray[np.float64] = oof.iloc[:, -len(classes) :].to_numpy(float).copy()
    proba[oof["label"].to_numpy()[:, None] == classes[None]] = -1
    known = dict(zip(oof["path"], classes[proba.argmax(1)], strict=True))
    return {path: known.get(path, classes[0]) for path in true["path"]}


def _row(name: str, way: str, seed: int, recipe: Any, scratch: Path, truth: Path | None) -> dict[str, Any]:
    import unfreeze as uf
    from unfreeze.analysis.label_issues import find_run_label_issues
    from unfreeze.core.corrections import Correction, append_correction

    place = scratch / f"{name.split(',')[0]}-{way.split()[0]}-{seed}-run"
    photos = uf.read(recipe.source.path, recipe.source)
    run = uf.fit(photos, recipe, place)
    started = time.perf_counter()
    found = find_run_label_issues(run, truth)
    seconds = time.perf_counter() - started
    t = found.truth
    assert t is not None
    file, hashes = place / "corrections.csv", run.photos().set_index("path")["hash"]
    for row in found.table.head(2 * t["planted"]).itertuples():  # a person who knows, and looks at 2k photos
        wrong = row.true != row.label
        word, label = ("relabel", row.true) if wrong else ("keep", "")
        append_correction(file, Correction(row.path, hashes[row.path], word, label))
    corrected = uf.fit(photos, recipe.replace(**{"source.corrections": str(file)}), scratch / f"{place.name}-corrected")
    did = corrected.scores()["corrections"]
    figures: dict[str, Any] = {"estimated": found.wrong, "cost": found.cost, "gain": did.get("gain")}
    return {
        "set": name,
        "planted_as": way,
        "seed": seed,
        "chosen_on_it": name != "trash" and way != "confusable" and seed < CHOSEN_ON,
        "photos": found.photos,
        "planted": t["planted"],
        "found_at_k": t["found_at_k"],
        "precision_at_k": round(t["precision_at_k"], 3),
        "found_at_2k": t["found_at_2k"],
        "recall_at_2k": round(t["recall_at_2k"], 3),
        "suggested_right": t["suggested_right"],
        "by_class_at_2k": "; ".join(f"{c['class']} {c['found_at_2k']}/{c['planted']}" for c in t["per_class"]),
        **{
            f"{key}{end}": round(figure[k], 4) if figure else ""
            for key, figure in figures.items()
            for end, k in (("", "value"), ("_low", "low"), ("_high", "high"))
        },
        **{
            f"{key}_macro_f1": round(did[key]["macro_f1"]["value"], 4)
            for key in ("before", "given", "corrected")
            if key in did
        },
        "flattered": round(did["gain"]["value"] + did["optimism"]["value"], 4) if "gain" in did else "",
        "applied": did.get("applied", ""),
        "corrections": did.get("corrections", ""),
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
    }
