"""CHECKS: what is wrong with the photos, each check a function from photos and looks to findings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from unfreeze.core.errors import listed
from unfreeze.core.progress import Reporter
from unfreeze.core.tables import Finding, Photos
from unfreeze.data.duplicates import joined_groups
from unfreeze.data.images import MAX_PIXELS
from unfreeze.data.looks import Looks, look, with_looks

Check = Callable[[Photos, Looks], list[Finding]]
CHECKS: dict[str, Check] = {}


def check(photos: Photos, reporter: Reporter | None = None) -> Photos:
    """The photos with everything the checks found in `findings`, and `unit`, `hash`, `width`, `height` in the table."""
    return run_checks(photos, reporter=reporter)[0]


def register(name: str) -> Callable[[Check], Check]:
    """Registers a check under `name`; a second one of that name is a mistake and raises ValueError."""

    def add(function: Check) -> Check:
        if name in CHECKS:
            raise ValueError(f"check '{name}' is registered twice")
        CHECKS[name] = function
        return function

    return add


def run_checks(photos: Photos, max_pixels: int = MAX_PIXELS, reporter: Reporter | None = None) -> tuple[Photos, Looks]:
    """Looks at all photos and runs CHECKS; they come back with `hash`, `width`, `height`, `unit` and all findings.

    `unit` is the group after joining duplicates: what folds must keep together, int64.
    """
    looks = look(photos, max_pixels, reporter)
    photos = with_looks(photos, looks)
    unit = joined_groups(photos.table["group"].to_numpy(), *looks.duplicates)
    photos = photos.with_table(photos.table.assign(unit=unit))
    return photos.with_table(photos.table, *(f for run in CHECKS.values() for f in run(photos, looks))), looks


@register("duplicates")
def _duplicates(photos: Photos, looks: Looks) -> list[Finding]:
    findings = []
    table = photos.table
    for kind, pairs in zip(("exact", "near"), looks.duplicates, strict=True):
        if not len(pairs):
            continue
        first, second = table.iloc[pairs[:, 0]], table.iloc[pairs[:, 1]]
        named = [f"{a} = {b}" for a, b in zip(first["path"], second["path"], strict=True)]
        findings.append(
            Finding(
                f"{kind}-duplicates",
                "info",
                f"{len(pairs)} {kind} duplicate pair(s): {listed(named, 3)}",
                "none needed: duplicates share a fold; remove the copies if they are not meant",
            )
        )
        labels = first["label"].to_numpy() != second["label"].to_numpy()
        findings += [
            Finding(
                f"{kind}-duplicates-disagree",
                "error" if kind == "exact" else "warning",
                f"the same photo is labelled '{a.label}' here and '{b.label}' in {b.path}",
                "decide which label is right and remove the other copy",
                str(a.path),
            )
            for a, b in zip(first[labels].itertuples(), second[labels].itertuples(), strict=True)
        ]
        split = first["split"].to_numpy() != second["split"].to_numpy()
        if split.any():
            crossing = [n for n, s in zip(named, split, strict=True) if s]
            findings.append(
                Finding(
                    f"{kind}-duplicates-across-splits",
                    "warning",
                    f"{len(crossing)} {kind} duplicate(s) of training photos in the test split: {listed(crossing, 3)}",
                    "remove them from one side: the test score is flattered",
                )
            )
    return findings


@register("few-groups")
def _few_groups(photos: Photos, looks: Looks) -> list[Finding]:
    table = photos.table[(photos.table["split"] == "train") & looks.readable]
    counts = table.groupby("label")["unit"].nunique().reindex(list(photos.classes), fill_value=0)
    return [
        Finding(
            "few-groups",
            "error" if count < 2 else "warning",
            f"class '{name}' has {count} group(s) to learn from" + ("" if count else " that can be read"),
            "add photos of other groups, or leave the class out" if count < 2 else "use at most that many folds",
        )
        for name, count in counts.items()
        if count < 5
    ]


@register("imbalance")
def _imbalance(photos: Photos, looks: Looks) -> list[Finding]:
    counts = photos.table.loc[photos.table["split"] == "train", "label"].value_counts()
    largest, smallest = counts.index[0], counts.index[-1]
    most, least = int(counts.iloc[0]), int(counts.iloc[-1])
    if most < 5 * least:
        return []
    return [
        Finding(
            "imbalance",
            "info",
            f"'{largest}' has {most:,} photos, '{smallest}' {least:,}: {most / least:.0f} times as many",
            "judge by macro F1; probe.class_weight says how much the small classes count",
        )
    ]


@register("small-photos")
def _small(photos: Photos, looks: Looks) -> list[Finding]:
    short = np.minimum(looks.width, looks.height)
    small = looks.readable & (short < 32)
    if not small.any():
        return []
    return [
        Finding(
            "small-photos",
            "info",
            f"{int(small.sum()):,} photo(s) have a side under 32 pixels: {listed(photos.table.loc[small, 'path'], 3)}",
            "look whether they still show what their label says",
        )
    ]


@register("huge-group")
def _group_size(photos: Photos, looks: Looks) -> list[Finding]:
    sizes: pd.Series = photos.table.groupby("unit").size()
    largest = int(sizes.max())
    if largest * 2 < len(photos) or len(photos) < 20:
        return []
    return [
        Finding(
            "huge-group",
            "warning",
            f"one group holds {largest:,} of {len(photos):,} photos",
            "look whether the group column means what you think; a fold cannot be smaller than its largest group",
        )
    ]
