"""What helps small classes: every word of `recipe.balance` against doing nothing, on the same folds.

A row is a set, a strategy, a seed of the folds and a word; the rows of seed -1 are the means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import unfreeze as uf
from unfreeze.analysis.compare_balance import BalanceComparison

# Set -> what to read, recipe.source, folds, and the rows that are added: photos of the smallest classes, turned.
SETS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "masks": (
        "masks/faces.csv",
        {"source.label": ["label"], "source.group": "photo"},
        5,
        "minority:0:rotate-10,rotate+10",
    ),
    "clothing": (
        "clothing/groups.csv",
        {"source.label": ["label"], "source.group": "sender_id", "source.split": "none"},
        5,
        "minority:0:rotate-10,rotate+10",
    ),
}
# The demo's people wear masks in five of seven photos: the wrong ones, the bare faces and the old are few.
PEOPLE, DEMO_ADD = 120, "minority:3:rotate-10,rotate+10"
SEEDS = 3
FIGURES = ("macro_f1", "difference", "smallest", "smallest_difference", "minority", "accuracy", "accuracy_difference")
HEADLINE = (
    "set",
    "strategy",
    "seed",
    "word",
    "macro_f1",
    "difference",
    "difference_low",
    "difference_high",
    "smallest",
)


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Real sets where they are, then the demo."""
    places = {name: (data / path, *more) for name, (path, *more) in SETS.items()} if data else {}
    uf.make_demo(scratch / "people", PEOPLE, 10, 0)
    places["demo"] = (scratch / "people", {}, 5, DEMO_ADD)
    for name, (source, words, folds, add) in places.items():
        every: list[dict[str, Any]] = []
        for seed in range(SEEDS):
            changes = {
                **words,
                "source.path": str(source),
                "seed": seed,
                "folds.n_splits": folds,
                "balance.extra_views": add,
            }
            recipe = uf.Recipe().replace(strategy="probe", **changes)
            found = uf.compare_balance(uf.read(source, recipe.source), recipe)
            some = list(_rows(name, seed, found))
            every += some
            yield from some
        for word in dict.fromkeys(row["word"] for row in every):
            own = [row for row in every if row["word"] == word]
            blank = {f"{key}_{end}": "" for key in FIGURES for end in ("low", "high")}
            means = {key: round(mean(row[key] for row in own), 4) for key in (*FIGURES, "seconds")}
            better = sum(row["difference_low"] > 0 for row in own)
            yield {**own[0], "seed": -1, **blank, **means, "told_better": better}


def _rows(name: str, seed: int, found: BalanceComparison) -> Iterator[dict[str, Any]]:
    for word in found.words:
        row: dict[str, Any] = {
            "set": name,
            "strategy": found.strategy,
            "photos": found.photos,
            "groups": found.groups,
            "smallest_photos": found.counts[found.smallest],
            "seed": seed,
            "word": word.name,
        }
        for key in FIGURES:
            figure = getattr(word, key)
            row |= {key: round(figure.value, 4)}
            row |= {f"{key}_{end}": round(getattr(figure, end), 4) for end in ("low", "high")}
        yield {**row, "seconds": round(word.seconds, 2), "told_better": ""}
