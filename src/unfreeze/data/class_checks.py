"""Checks for classes: how many photos and groups each has, and which attributes never meet."""

from __future__ import annotations

import pandas as pd

from unfreeze.core.errors import listed
from unfreeze.core.tables import Finding, Photos
from unfreeze.data.looks import Looks
from unfreeze.data.registry import register

FEW_GROUPS = 5
IMBALANCE = 5
# From this ratio on, the smallest class is likely to be passed over.
GREAT_IMBALANCE = 20


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
        if count < FEW_GROUPS
    ]


@register("imbalance")
def _imbalance(photos: Photos, looks: Looks) -> list[Finding]:
    counts = photos.table.loc[photos.table["split"] == "train", "label"].value_counts()
    largest, smallest = counts.index[0], counts.index[-1]
    most, least = int(counts.iloc[0]), int(counts.iloc[-1])
    if most < IMBALANCE * least:
        return []
    return [
        Finding(
            "imbalance",
            "info" if most < GREAT_IMBALANCE * least else "warning",
            f"'{largest}' has {most:,} photos, '{smallest}' {least:,}: {most / least:.0f} times as many",
            "judge by macro F1; `unfreeze compare-balance` tries what helps the small ones",
        )
    ]


@register("empty-combinations")
def _empty_combinations(photos: Photos, looks: Looks) -> list[Finding]:
    names = list(photos.attributes)
    if len(names) < 2 or not set(names) <= set(photos.table.columns):
        return []
    train = photos.table[photos.table["split"] == "train"]
    there = set(train[names].astype(str).itertuples(index=False, name=None))
    every = pd.MultiIndex.from_product([sorted(set(map(str, train[name]))) for name in names])
    absent = [combination for combination in every if combination not in there]
    if not absent:
        return []
    return [
        Finding(
            "empty-combinations",
            "info",
            f"{len(absent)} of {len(every)} combinations of {', '.join(names)} have no photo: "
            f"{listed(('/'.join(one) for one in absent), 3)}",
            "a class without photos is never predicted; predict the attributes apart if it can occur",
        )
    ]


def class_by_attribute(photos: Photos) -> dict[str, pd.DataFrame]:
    """Photos of each class (rows) by each value of an attribute (columns), int64; empty for a single label column."""
    names = [name for name in photos.attributes if name in photos.table.columns]
    if len(names) < 2:
        return {}
    table = photos.table
    return {
        name: pd.crosstab(table["label"], table[name].astype(str)).reindex(list(photos.classes), fill_value=0)
        for name in names
    }
