"""Combined labels: one head over the combinations, one for each label, and their average, on the same folds.

A row is a set of drawn people (mask x gender x age, 18 combinations), a seed of people and folds, and a word of
`labels.model`; the rows of seed -1 are the means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import unfreeze as uf
from unfreeze.analysis.compare_label_models import LabelComparison

PEOPLE, SEEDS = (60, 200), 3
HEADLINE = (
    "people",
    "seed",
    "model",
    "macro_f1",
    "difference",
    "difference_low",
    "difference_high",
    "accuracy",
    "log_loss",
    "age",
)


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Other people for each seed: what another draw of them changes is larger than what other folds change."""
    for people in PEOPLE:
        every: list[dict[str, Any]] = []
        for seed in range(SEEDS):
            source = scratch / f"people-{people}-{seed}"
            uf.make_demo(source, people, 1, seed)
            recipe = uf.Recipe().replace(strategy="probe", seed=seed, **{"source.path": str(source)})
            some = list(_rows(people, seed, uf.compare_labels(uf.read(source), recipe)))
            every += some
            yield from some
        for model in dict.fromkeys(row["model"] for row in every):
            own = [row for row in every if row["model"] == model]
            plain = {k for k, v in own[0].items() if isinstance(v, float) and not k.endswith(("_low", "_high"))}
            means = {key: round(mean(row[key] for row in own), 4) for key in plain}
            blank = {key: "" for key in own[0] if key.endswith(("_low", "_high"))}
            told = {
                "told_better": sum(row["difference_low"] > 0 for row in own),
                "told_worse": sum(row["difference_high"] < 0 for row in own),
            }
            yield {**own[0], **means, **blank, "seed": -1, **told}


def _rows(people: int, seed: int, found: LabelComparison) -> Iterator[dict[str, Any]]:
    for model in found.models:
        row: dict[str, Any] = {
            "people": people,
            "photos": found.photos,
            "groups": found.groups,
            "unseen": len(found.unseen),
            "seed": seed,
            "model": model.name,
        }
        figures = {key: getattr(model, key) for key in ("macro_f1", "difference", "accuracy", "accuracy_difference")}
        figures |= model.parts | {f"{name}_difference": d for name, d in model.part_differences.items()}
        for key, figure in figures.items():
            row |= {key: round(figure.value, 4)}
            row |= {f"{key}_{end}": round(getattr(figure, end), 4) for end in ("low", "high")}
        yield {
            **row,
            "log_loss": round(model.log_loss, 4),
            "seconds": round(model.seconds, 2),
            "told_better": "",
            "told_worse": "",
        }
