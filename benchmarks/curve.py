"""Macro F1 over CPU seconds on one group-safe fold: ours whole, fastai's fine_tune epoch by epoch, in one thread."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child
import numpy as np
import pandas as pd
import sets
import whole_job

from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.log_loss import log_loss

SETS = ("clothing", "masks")
# One frozen epoch and so many unfrozen ones, unless the CPU seconds are up before.
EPOCHS, CPU_S, FOLD = 3, 700, 0
OURS: dict[str, tuple[str, ...]] = {
    "fast": ("--quality", "fast"),
    "good": ("--quality", "good"),
    "partial": ("--strategy", "partial"),
    "best": ("--quality", "best"),
}
HEADLINE = ("set", "what", "epoch", "cpu_s", "seconds", "macro_f1", "log_loss", "folds_trained")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a point. Ours is charged for all five folds, from an empty cache, the peer for the one that is scored."""
    if data is None:
        print("curve: skipped, the real photos are absent (--data DIR).")
        return
    for name in SETS:
        for what in OURS:
            yield ours(data, scratch / name, name, what)
        yield from peer(data, scratch, name)


def ours(data: Path, place: Path, name: str, what: str) -> dict[str, Any]:
    """The whole command, start-up included, and its score on the photos of fold 0."""
    source, options = sets.SETS[name]
    taken = child.fit(data / source, place / what, place / f"cache-{what}", *options, *OURS[what])
    found = pd.read_parquet(place / what / "oof.parquet").query("fold == @FOLD")
    columns = [column for column in found.columns if column.startswith("p_")]
    number = {column.removeprefix("p_"): i for i, column in enumerate(columns)}
    truth, probabilities = found["label"].map(number).to_numpy(np.int64), found[columns].to_numpy()
    return {
        "set": name,
        "what": what,
        "epoch": "",
        "cpu_s": taken.cpu_seconds,
        "seconds": taken.seconds,
        "macro_f1": round(float(macro_f1(confusion_matrix(truth, probabilities.argmax(1), len(columns)))), 4),
        "log_loss": round(log_loss(truth, probabilities), 4),
        "folds_trained": 5,
        "photos": len(found),
        "load": taken.load,
    }


def peer(data: Path, scratch: Path, name: str) -> Iterator[dict[str, Any]]:
    """fastai's points on the same fold: trained on the other four, scored on this one."""
    table = scratch / f"{name}.csv"
    photos = _folds(data, scratch, name)
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *photos])
    weights = whole_job.lite0_weights(scratch)
    command = [whole_job.peer_python(), whole_job.PEER, "curve", table, weights, EPOCHS, CPU_S]
    # One thread: two that share their cores with other programs burn CPU seconds by waiting for each other.
    taken = child.run(command, {"OMP_NUM_THREADS": "1"})
    for epoch, point in enumerate(taken.json()["points"], 1):
        yield {
            "set": name,
            "what": "fastai",
            "epoch": epoch,
            **{key: point[key] for key in ("cpu_s", "seconds")},
            **{key: round(point[key], 4) for key in ("macro_f1", "log_loss")},
            "folds_trained": 1,
            "photos": sum(split == "test" for *_, split in photos),
            "load": taken.load,
        }


def _folds(data: Path, scratch: Path, name: str) -> list[tuple[str, str, str]]:
    """Path (from `scratch`, which is what fastai takes), label and split of every photo in a fold."""
    table = pd.read_parquet(scratch / name / next(iter(OURS)) / "photos.parquet").query("fold >= 0")
    source = data / sets.SETS[name][0]
    root = source if source.is_dir() else source.parent
    return [
        (os.path.relpath(root / path, scratch), label, "test" if fold == FOLD else "train")
        for path, label, fold in zip(table["path"], table["label"], table["fold"], strict=True)
    ]
