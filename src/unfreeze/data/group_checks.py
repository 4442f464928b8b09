"""Checks for groups: one that is too large, and those that break a rule which nearly all others keep."""

from __future__ import annotations

from collections import defaultdict

import pandas as pd

from unfreeze.core.tables import Finding, Photos
from unfreeze.data.looks import Looks
from unfreeze.data.registry import register

# A rule is one that this share of the groups keeps, of at least so many groups of two photos or more.
KEPT = 0.95
LEAST_GROUPS = 20


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


@register("group-conflicts")
def _conflicts(photos: Photos, looks: Looks) -> list[Finding]:
    """Groups with two values of an attribute that is constant in nearly all groups: a person of two genders."""
    table = _grouped(photos)
    findings = []
    for name in _columns(photos) if len(table) else []:
        values = table[name].astype(str)
        if values.nunique() < 2:
            continue
        different: pd.Series = values.groupby(table["group"]).nunique()
        if (different == 1).mean() < KEPT:
            continue
        for group in different.index[different > 1]:
            counts = values[table["group"] == group].value_counts()
            told = ", ".join(f"'{value}' {count}" for value, count in counts.items())
            odd = table.index[(table["group"] == group) & (values == counts.index[-1])][0]
            findings.append(
                Finding(
                    "group-conflicts",
                    "warning",
                    f"group '{group}' has more than one {name} ({told}); "
                    f"{(different == 1).mean():.1%} of the groups have one",
                    "look whether a label is wrong, or whether the group is two",
                    str(table.loc[odd, "path"]),
                )
            )
    return findings


@register("group-pattern")
def _pattern(photos: Photos, looks: Looks) -> list[Finding]:
    """Groups that have another number of photos of a value than nearly all groups have: two `normal` for one."""
    table = _grouped(photos)
    broken: dict[str, list[str]] = defaultdict(list)
    rules: dict[str, set[str]] = defaultdict(set)
    for name in _columns(photos) if len(table) else []:
        counts = pd.crosstab(table["group"], table[name].astype(str))
        for value in counts.columns:
            usual = int(counts[value].mode().iloc[0])
            kept = counts[value] == usual
            if not usual or kept.mean() < KEPT:
                continue
            for group, count in counts.loc[~kept, value].items():
                broken[str(group)].append(f"{count} photo(s) of {name} '{value}' instead of {usual}")
                rules[str(group)].add(str(table.loc[table["group"] == group, "path"].iloc[0]))
    return [
        Finding(
            "group-pattern",
            "warning",
            f"group '{group}' has {'; '.join(said)}, as at least {KEPT:.0%} of the groups have",
            "look whether a label is wrong, or a photo is missing or too many",
            min(rules[group]),
        )
        for group, said in broken.items()
    ]


def _grouped(photos: Photos) -> pd.DataFrame:
    """The rows of groups of two photos or more; none where those are too few to see a rule."""
    table = photos.table
    rows = table[table.groupby("group")["path"].transform("size") > 1]
    return rows if rows["group"].nunique() >= LEAST_GROUPS else rows.iloc[:0]


def _columns(photos: Photos) -> list[str]:
    names = [name for name in photos.attributes if name in photos.table.columns]
    return names or ["label"]
