"""Data set checks: class, group and duplicate checks, and the entry points that run every registered check.

`check` is the public entry point. `run_checks` scans every image once, joins the groups of duplicate images, and passes
the data set and the scan to each function in `CHECKS`. This module defines three families of checks:

- Classes: too few groups, labels with similar spelling, class imbalance, attribute combinations without images.
- Groups: a group that dominates the data set, similar spelling, and groups that break a rule that nearly all other
  groups follow.
- Duplicates: exact and near duplicates, across groups, across splits or with conflicting labels, and look-alikes.

Checks of single images are in `image_checks`, checks for shortcut features in `shortcuts`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import join_names
from unfreeze.core.format import pluralize
from unfreeze.core.messages import option, setting, wording
from unfreeze.core.names import look_alike, look_alikes, visible
from unfreeze.core.progress import Reporter
from unfreeze.data import image_checks, shortcuts  # noqa: F401 - registers their checks
from unfreeze.data.check_registry import CHECKS, SLOW, register
from unfreeze.data.decode import MAX_PIXELS
from unfreeze.data.duplicates import Pairs, connected_groups
from unfreeze.data.look_alikes import LARGE, LookAlikes
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.data.scan import ImageScan, add_scan_columns, scan_images

FEW_GROUPS = 5
IMBALANCE = 5
# From this ratio on, a model is likely to ignore the smallest class.
GREAT_IMBALANCE = 20


@register("few-groups")
def _few_groups(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
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


@register("similar-labels")
def _similar_labels(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    """Report label values that differ only in spelling, such as `cat` and `Cat`, or `cat` with a zero-width space."""
    findings = []
    for name in [name for name in photos.attributes if name in photos.table.columns] or ["label"]:
        counts = photos.table[name].astype(str).value_counts()
        sets = look_alikes(counts.index)
        sets += [[value] for value in counts.index if not look_alike(value)]  # no visible character
        for some in sets:
            listed = " and ".join(f"{visible(value)} ({counts[value]:,} photos)" for value in some)
            findings.append(
                Finding(
                    "similar-labels",
                    "warning",
                    f"{name}s {listed} differ only in case, spaces, invisible characters, Unicode "
                    "compatibility forms or "
                    "the writing of a number, and are classes of their own"
                    if len(some) > 1
                    else f"{name} {listed} has no visible character",
                    "if they mean one class, rename the folders or the values to one spelling; otherwise none needed",
                )
            )
    return findings


@register("imbalance")
def _imbalance(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    counts = photos.table.loc[photos.table["split"] == "train", "label"].value_counts()
    largest, smallest = counts.index[0], counts.index[-1]
    most, least = int(counts.iloc[0]), int(counts.iloc[-1])
    if most < IMBALANCE * least:
        return []
    return [
        Finding(
            "imbalance",
            "info" if most < GREAT_IMBALANCE * least else "warning",
            f"'{largest}' has {pluralize(most, 'photo')}, '{smallest}' {least:,}: {most / least:.0f} times as many",
            f"evaluate by macro F1; {wording('`unfreeze compare --preset balance`', '`uf.compare_balance`')} compares "
            "methods for small classes",
        )
    ]


@register("empty-combinations")
def _empty_combinations(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
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
            f"{join_names(('/'.join(one) for one in absent), 3)}",
            "a class without photos is never predicted; predict the attributes separately if it can occur",
        )
    ]


def crosstab(photos: ImageDataset) -> dict[str, pd.DataFrame]:
    """Count the images of each class per value of each attribute.

    Args:
        photos: Data set with its table.

    Returns:
        For each attribute, an int64 table with one row per class and one column per attribute value. Empty if there
        are fewer than two label columns.
    """
    names = [name for name in photos.attributes if name in photos.table.columns]
    if len(names) < 2:
        return {}
    table = photos.table
    return {
        name: pd.crosstab(table["label"], table[name].astype(str)).reindex(list(photos.classes), fill_value=0)
        for name in names
    }


# A rule is a property that at least this share of the groups has. It is only tested with at least LEAST_GROUPS groups
# of two or more images.
KEPT = 0.95
LEAST_GROUPS = 20


@register("huge-group")
def _group_size(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    sizes: pd.Series = photos.table.groupby("unit").size()
    largest = int(sizes.max())
    if largest * 2 < len(photos) or len(photos) < 20:
        return []
    return [
        Finding(
            "huge-group",
            "warning",
            f"one group holds {largest:,} of {len(photos):,} photos",
            "check that the group column is the intended one; a fold cannot be smaller than its largest group",
        )
    ]


@register("similar-groups")
def _similar_groups(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    """Report group names that differ only in spelling: the images of one person could end up in two folds."""
    table = photos.table
    names = table.loc[table["group"] != table["path"], "group"].astype(str).unique()
    sets = look_alikes(names)
    if not sets:
        return []
    listed = join_names((" = ".join(map(visible, some)) for some in sets), 5)
    return [
        Finding(
            "similar-groups",
            "warning",
            f"{len(sets):,} set(s) of groups differ only in case, spaces, invisible characters, Unicode compatibility "
            f"forms or the writing of a number: {listed}",
            "if they are one person or thing, give them one spelling: as they are, their photos may be in two folds",
        )
    ]


@register("group-conflicts")
def _conflicts(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    """Report groups with several values of an attribute that is constant in nearly all groups, such as gender."""
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
            listed = ", ".join(f"'{value}' {count}" for value, count in counts.items())
            odd = table.index[(table["group"] == group) & (values == counts.index[-1])][0]
            findings.append(
                Finding(
                    "group-conflicts",
                    "warning",
                    f"group '{group}' has more than one {name} ({listed}); "
                    f"{(different == 1).mean():.1%} of the groups have one",
                    "check for a wrong label, or for two groups under one name",
                    str(table.loc[odd, "path"]),
                )
            )
    return findings


@register("group-pattern")
def _pattern(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    """Report groups whose image count for a label value differs from that of nearly all groups."""
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
            "check for a wrong label, or a missing or surplus image",
            min(rules[group]),
        )
        for group, said in broken.items()
    ]


def _grouped(photos: ImageDataset) -> pd.DataFrame:
    """Return the rows of groups with two or more images; empty if there are fewer than LEAST_GROUPS such groups."""
    table = photos.table
    rows = table[table.groupby("group")["path"].transform("size") > 1]
    return rows if rows["group"].nunique() >= LEAST_GROUPS else rows.iloc[:0]


def _columns(photos: ImageDataset) -> list[str]:
    names = [name for name in photos.attributes if name in photos.table.columns]
    return names or ["label"]


# Report a group above this share of the images if it results from joining duplicates.
LARGE_JOINED = 0.1
_EXAMPLES = 3


@register("duplicates")
def _duplicates(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    found = [
        finding
        for kind, pairs in (("exact", looks.copies.exact), ("near", looks.copies.near))
        if len(pairs)
        for finding in _of_kind(kind, pairs, photos.table)
    ]
    found += [_look_alikes(some, photos.table) for some in looks.copies.look_alikes]
    return [*found, *_large_group(photos.table)]


def _of_kind(kind: str, pairs: Pairs, table: pd.DataFrame) -> list[Finding]:
    """Build the findings for the duplicate pairs of one kind, "exact" or "near"; pairs: int64 (m, 2)."""
    first, second = table.iloc[pairs[:, 0]], table.iloc[pairs[:, 1]]
    named = np.array([f"{a} = {b}" for a, b in zip(first["path"], second["path"], strict=True)], object)
    images = len(np.unique(pairs))
    found = [
        Finding(
            f"{kind}-duplicates",
            "info",
            f"{len(pairs):,} {kind} duplicate pair(s): {join_names(named, _EXAMPLES)}; {images:,} of "
            f"{len(table):,} images "
            "are joined with their copies",
            "none needed: duplicates share a fold; remove the copies if they are not meant",
        )
    ]
    labels = first["label"].to_numpy() != second["label"].to_numpy()
    if labels.any():
        found.append(_disagreement(kind, first[labels], second[labels], len(pairs)))
    between = first["group"].to_numpy() != second["group"].to_numpy()
    # If each image is its own group, every pair lies across groups, so the finding would be redundant.
    if table["group"].duplicated().any() and between.any():
        found.append(
            Finding(
                f"{kind}-duplicates-across-groups",
                "warning",
                f"{int(between.sum())} of {len(pairs)} {kind} duplicate pair(s) lie in two groups: "
                f"{join_names(named[between], _EXAMPLES)}",
                "check whether the groups are the same, and if so give them one name; until then they share a fold",
            )
        )
    split = first["split"].to_numpy() != second["split"].to_numpy()
    if split.any():
        found.append(
            Finding(
                f"{kind}-duplicates-across-splits",
                "warning",
                f"{int(split.sum())} {kind} duplicate(s) of training photos in the test split: "
                f"{join_names(named[split], _EXAMPLES)}",
                "remove them from one side: the test score is optimistic",
            )
        )
    return found


def _disagreement(kind: str, first: pd.DataFrame, second: pd.DataFrame, pairs: int) -> Finding:
    """Build one finding for all pairs with conflicting labels.

    Args:
        kind: "exact" or "near".
        first: Table rows of the first image of each conflicting pair.
        second: Table rows of the second image of each conflicting pair.
        pairs: Total number of duplicate pairs of this kind.
    """
    examples = [
        f"{a.path} ('{a.label}') = {b.path} ('{b.label}')"
        for a, b in zip(first[:_EXAMPLES].itertuples(), second[:_EXAMPLES].itertuples(), strict=True)
    ]
    more = f" and {len(first) - len(examples):,} more" if len(first) > len(examples) else ""
    return Finding(
        f"{kind}-duplicates-disagree",
        "error" if kind == "exact" else "warning",
        f"{len(first):,} of {pairs:,} {kind} duplicate pair(s) have two labels: {join_names(examples)}{more}",
        "decide which label is right and remove the other copy",
        str(first["path"].iloc[0]),
    )


def _look_alikes(some: LookAlikes, table: pd.DataFrame) -> Finding:
    """Build the finding for images that look alike but were not joined as duplicates."""
    one, two = (str(table["path"].iloc[i]) for i in some.example)
    labels = (
        f"; labels differ in {some.disagree:.0%} of them, and in {some.chance:.0%} of any two images"
        if np.isfinite(some.disagree)
        else ""
    )
    return Finding(
        "look-alikes",
        "info",
        f"{len(some.images):,} of {len(table):,} images look alike: {some.pairs:,} pairs are near, and {some.kept:,} "
        f"of them are joined as copies, because they are closer than other images{labels}; not joined: "
        f"{one}, {two}",
        "If such images show one thing or scene, name the groups: "
        f"{option('group_regex', metavar='PATTERN')}, or a column.",
        one,
    )


def _large_group(table: pd.DataFrame) -> list[Finding]:
    """Warn if joining duplicates produced a group above LARGE_JOINED of the images."""
    sizes: pd.Series = table.groupby("unit").size()
    largest = int(sizes.max())
    if largest < LARGE or largest <= LARGE_JOINED * len(table):
        return []
    rows: NDArray[np.bool_] = (table["unit"] == sizes.idxmax()).to_numpy()
    if table.loc[rows, "group"].nunique() < 2:
        return []
    return [
        Finding(
            "large-joined-group",
            "warning",
            f"{largest:,} of {len(table):,} images ({largest / len(table):.0%}) are one group, because their copies "
            f"were joined: {join_names(table.loc[rows, 'path'], _EXAMPLES)}",
            f"Check whether they are copies; if not: {setting('folds.group_duplicates', False)}.",
            str(table.loc[rows, "path"].iloc[0]),
        )
    ]


# The order of the findings; checks that a caller registers come last.
_ORDER = (
    *("few-groups", "similar-labels", "imbalance", "empty-combinations"),
    "duplicates",
    *("small-photos", "outliers", "misnamed", "rotated", "grey", "formats", "few-levels", "value-range"),
    *("huge-group", "similar-groups", "group-conflicts", "group-pattern", "shortcuts"),
)
__all__ = ["CHECKS", "SLOW", "check", "register", "run_checks"]


def check(
    photos: ImageDataset | str | Path | pd.DataFrame, reporter: Reporter | None = None, **given: Unpack[ReadOptions]
) -> ImageDataset:
    """Run all checks, including the slow ones.

    Args:
        photos: An `ImageDataset`, or a folder, the path of a table or a DataFrame, which is read with `uf.read`.
        reporter: Receives progress and messages.
        **given: Keyword arguments of `uf.read`; only allowed if `photos` is a source.

    Returns:
        The data set with the results of the checks added to `findings`, and the columns `unit`, `hash`, `width` and
        `height` added to its table (see `run_checks`).

    Raises:
        ArgumentTypeError: `photos` has another type.
        SourceError: The source cannot be read, or keywords are given for a data set that is already read.
    """
    photos, _ = photos_of("check", photos, None, given)
    return run_checks(photos, reporter=reporter, slow=True)[0]


def run_checks(
    photos: ImageDataset, max_pixels: int = MAX_PIXELS, reporter: Reporter | None = None, slow: bool = False
) -> tuple[ImageDataset, ImageScan]:
    """Scan all images and run the registered checks.

    Args:
        photos: Data set to check.
        max_pixels: Images with more pixels are not decoded.
        reporter: Receives progress and messages.
        slow: Whether to run the checks in `SLOW` too.

    Returns:
        The data set with all findings and the columns `hash`, `width`, `height` and `unit` in its table, and the scan.
        `unit` (int64) numbers the groups after joining duplicates; images of one unit must stay in the same fold.
    """
    looks = scan_images(photos, max_pixels, reporter).with_labels(photos.table["label"])
    photos = add_scan_columns(photos, looks)
    unit = connected_groups(photos.table["group"].to_numpy(), *looks.duplicates)
    photos = photos.with_table(photos.table.assign(unit=unit))
    names = sorted(CHECKS, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    run = [CHECKS[name] for name in names if slow or name not in SLOW]
    return photos.with_table(photos.table, *(f for one in run for f in one(photos, looks))), looks
