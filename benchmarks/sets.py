"""The four real sets through the command line: time of the first and second run, scores with their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import child

# name -> what to read, and its options
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "masks": ("masks/faces.csv", ("--label", "label", "--group", "photo")),
    "clothing": ("clothing/groups.csv", ("--label", "label", "--group", "sender_id", "--split", "none")),
    "trash": ("trash", ()),
    "grocery": ("grocery", ("--split", "none")),
}
# `last` is the usual probe, the last layer of two views: what `good` is to cost at most half more than.
KINDS: dict[str, tuple[str, ...]] = {
    "fast": ("--quality", "fast"),
    "last": ("--quality", "fast", "--set", 'probe.views=["plain","flip"]'),
    "good": ("--quality", "good"),
    "best": ("--quality", "best"),
}

HEADLINE = ("set", "kind", "photos", "first_s", "second_s", "cpu_to_last", "accuracy", "macro_f1", "ece")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a set and kind. The first run starts with an empty cache, the second finds it full."""
    if data is None:
        print("sets: skipped, the real photos are absent (--data DIR).")
        return
    for name, (source, options) in SETS.items():
        taken: dict[str, list[tuple[child.Taken, child.Taken]]] = {kind: [] for kind in KINDS}
        for repeat in range(repeats):
            for kind, words in KINDS.items():  # kinds interleaved, so that a busy minute hits them all
                if kind == "best" and repeat:  # minutes each: once
                    continue
                place = scratch / name / f"{kind}-{repeat}"
                first, second = (
                    child.fit(data / source, place / run, place / "cache", *options, *words)
                    for run in ("first", "second")
                )
                taken[kind].append((first, second))
        usual = median(first.cpu_seconds for first, _ in taken["last"])
        for kind, pairs in taken.items():
            yield _row(name, kind, pairs, scratch / name / f"{kind}-0", usual)


def _row(
    name: str, kind: str, pairs: list[tuple[child.Taken, child.Taken]], place: Path, usual: float
) -> dict[str, Any]:
    found = pairs[0][0].json()["out_of_fold"]
    row: dict[str, Any] = {
        "set": name,
        "kind": kind,
        "photos": found["photos"],
        "classes": len(found["classes"]),
        "groups": found["groups"],
        "first_s": median(first.seconds for first, _ in pairs),
        "second_s": median(second.seconds for _, second in pairs),
        "second_to_first": round(median(second.seconds / first.seconds for first, second in pairs), 3),
        "second_to_first_cpu": round(median(second.cpu_seconds / first.cpu_seconds for first, second in pairs), 3),
        "first_cpu_s": median(first.cpu_seconds for first, _ in pairs),
        "second_cpu_s": median(second.cpu_seconds for _, second in pairs),
        "cpu_to_last": round(median(first.cpu_seconds for first, _ in pairs) / usual, 2),
    }
    for score in ("accuracy", "macro_f1", "ece"):
        row |= {score: round(found[score]["value"], 4)}
        row |= {f"{score}_{end}": round(found[score][end], 4) for end in ("low", "high")}
    row |= {"repeats": len(pairs)}
    for run in ("first", "second"):
        row |= {f"{run}_{stage}_s": seconds for stage, seconds in child.stages(place / run).items()}
    return {**row, "load": round(median(t.load for pair in pairs for t in pair), 2)}
