"""An epoch of strategy partial, from activations in the cache, against fastai's unfrozen epoch on the same photos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import image_sets

import training

# 6 steps; the defaults of strategy partial, with one of two views drawn for each photo and epoch.
BACKBONE, COUNT, ASKED = "timm/tf_efficientnet_lite0", 192, 8.0
HEADLINE = ("ours", "photos_s", "peer_photos_s", "ratio", "cpu_ratio", "once_cache_s", "asked", "load")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a way of ours; `once` is the pass that fills the cache, both views, and is no part of an epoch."""
    files = image_sets.flat_set(data, scratch / "photos", COUNT)
    table = training.write_table(scratch / "table.csv", files)
    words = {"strategy": "partial", "backbone": BACKBONE, "train.batch_size": training.BATCH}
    once = training.prepared(files, words, scratch)
    ours: dict[str, list[training.Speed]] = {way: [] for way in training.WAYS}
    peers: list[training.Speed] = []
    for repeat in range(repeats):
        for way, workers in training.WAYS.items():
            ours[way].append(training.our_epoch(scratch, f"{way}-{repeat}", workers))
            print(f"  {way}: {ours[way][-1]}", flush=True)
        peers.append(training.peer_epoch(table, scratch, BACKBONE))
        print(f"  fastai: {peers[-1]}", flush=True)
    for way, found in ours.items():
        yield {
            "backbone": BACKBONE,
            "ours": way,
            "batch": training.BATCH,
            "photos": COUNT,
            **training.compared(found, peers),
            "asked": ASKED,
            "plan": training.plan_of(scratch, training.WAYS[way]),
            **once,
            "repeats": repeats,
        }
