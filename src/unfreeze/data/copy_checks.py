"""Checks for copies: the same photo twice, in two groups, with two labels, in training and test."""

from __future__ import annotations

import numpy as np

from unfreeze.core.errors import listed
from unfreeze.core.tables import Finding, Photos
from unfreeze.data.looks import Looks
from unfreeze.data.registry import register


@register("duplicates")
def _duplicates(photos: Photos, looks: Looks) -> list[Finding]:
    findings = []
    table = photos.table
    # Where each photo is its own group, every pair lies across groups: not worth a word.
    grouped = table["group"].duplicated().any()
    for kind, pairs in zip(("exact", "near"), looks.duplicates, strict=True):
        if not len(pairs):
            continue
        first, second = table.iloc[pairs[:, 0]], table.iloc[pairs[:, 1]]
        named = np.array([f"{a} = {b}" for a, b in zip(first["path"], second["path"], strict=True)], object)
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
        between = first["group"].to_numpy() != second["group"].to_numpy()
        if grouped and between.any():
            findings.append(
                Finding(
                    f"{kind}-duplicates-across-groups",
                    "warning",
                    f"{int(between.sum())} of {len(pairs)} {kind} duplicate pair(s) lie in two groups: "
                    f"{listed(named[between], 3)}",
                    "look whether the groups are one (then give them one name); until then they share a fold",
                )
            )
        split = first["split"].to_numpy() != second["split"].to_numpy()
        if split.any():
            findings.append(
                Finding(
                    f"{kind}-duplicates-across-splits",
                    "warning",
                    f"{int(split.sum())} {kind} duplicate(s) of training photos in the test split: "
                    f"{listed(named[split], 3)}",
                    "remove them from one side: the test score is flattered",
                )
            )
    return findings
