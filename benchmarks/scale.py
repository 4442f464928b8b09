"""What tables of 10,000 to 1,000,000 photos take, stage by stage: seconds, peak memory, and how both grow.

python scale.py STAGE PLACE COUNT     one stage in a process of its own, its figures as JSON

Files: COUNT names (hard links) of 20,000 generated photos, as class folders, CSV, Parquet and WebDataset shards. What
needs no files is given generated rows: hashes with planted copies, groups of five photos, wrong labels.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import child
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

COUNTS = (10_000, 100_000, 1_000_000)
CONTENTS, CLASSES, SIDE, SHARD = 20_000, 18, 48, 10_000
HEADLINE = ("stage", "rows", "seconds", "cpu_s", "us_a_row", "peak_mb", "anon_mb", "growth", "found", "load")
Figures = dict[str, Any]
_started = 0.0, 0.0


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[Figures]:
    """A row a stage and count. us_a_row: microseconds of CPU. growth: CPU seconds against those of a tenth of the rows,
    over what n log n allows: up to 1 is n log n or better.
    """
    contents = [_photo(i) for i in range(CONTENTS)]
    before: dict[str, float] = {}
    for count in COUNTS:
        place = scratch / str(count)
        _files(place, contents, count)
        for stage in STAGES:
            command = [sys.executable, __file__, stage, place, str(count)]
            taken = child.run(command, {"UNFREEZE_CACHE": str(place / "cache")})
            told = taken.json()
            allowed = 10 * math.log(count) / math.log(count / 10)
            yield {
                "stage": stage,
                "rows": count,
                **told,
                "us_a_row": round(1e6 * told["cpu_s"] / count, 2),
                "peak_mb": taken.peak_mb,
                "anon_mb": taken.anon_mb,
                "growth": round(told["cpu_s"] / max(before[stage], 0.05) / allowed, 2) if stage in before else "",
                "load": taken.load,
            }
            before[stage] = told["cpu_s"]


def _photo(number: int) -> bytes:
    """A small JPEG of its own: a smooth field of colours, tinted by its class."""
    draws = np.random.default_rng([7, number])
    field = draws.normal(0, 60, (6, 6, 3)) + np.random.default_rng(number % CLASSES).integers(40, 216, 3)
    held = io.BytesIO()
    small = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(held, "JPEG", quality=85)
    return held.getvalue()


def _files(place: Path, contents: list[bytes], count: int) -> None:
    """The four sources: class folders of links, tables that name these, and shards with the bytes themselves."""
    store, photos, shards = place / "store", place / "photos", place / "shards"
    for folder in (store, photos, shards):
        folder.mkdir(parents=True)
    own = min(count, CONTENTS)
    for i in range(own):
        (store / f"{i}.jpg").write_bytes(contents[i])
    for c in range(CLASSES):
        (photos / f"class-{c:02d}").mkdir()
    names = []
    for i in range(count):
        names.append(f"photos/class-{i % own % CLASSES:02d}/{i:07d}.jpg")
        os.link(store / f"{i % own}.jpg", place / names[-1])
    table = pd.DataFrame(
        {"path": names, "label": [n.split("/")[1] for n in names], "group": [n[-14:-5] for n in names]}
    )
    table.to_csv(place / "table.csv", index=False)
    table.to_parquet(place / "table.parquet")
    for start in range(0, count, SHARD):
        with tarfile.open(shards / f"{start // SHARD:05d}.tar", "w") as archive:
            for i in range(start, min(start + SHARD, count)):
                for ending, told in (("jpg", contents[i % own]), ("cls", names[i].split("/")[1].encode())):
                    member = tarfile.TarInfo(f"{i:07d}.{ending}")
                    member.size = len(told)
                    archive.addfile(member, io.BytesIO(told))


def _begin() -> None:
    """What was done before is preparation, and not counted."""
    global _started
    _started = time.perf_counter(), time.process_time()


def _read(source: str) -> Callable[[Path, int], str]:
    def read_source(place: Path, count: int) -> str:
        from unfreeze.data.readers import read

        photos = read(place / source)
        assert len(photos) == count
        return f"{len(photos):,} photos"

    return read_source


def _look(place: Path, count: int) -> str:
    from unfreeze.data.readers import read
    from unfreeze.data.scan import scan_images

    photos = read(place / "photos")
    _begin()
    looks = scan_images(photos)
    return f"{int(looks.readable.sum()):,} readable"


def _duplicates(place: Path, count: int) -> str:
    """Generated looks: each its own, and one in a hundred a planted copy (the same bytes, or re-encoded)."""
    from unfreeze.data.duplicates import connected_groups, exact_duplicates, near_duplicates

    draws = np.random.default_rng(0)
    keys = draws.integers(1, 1 << 63, (count, 2), np.uint64)
    dhash = draws.integers(0, 1 << 63, (count, 4), np.uint64)
    thumb = draws.integers(0, 256, (count, 8, 8, 3), np.uint8)
    copies, originals = _planted(count, draws)
    half = len(copies) // 2
    keys[copies[:half]] = keys[originals[:half]]
    dhash[copies], thumb[copies] = dhash[originals], thumb[originals]
    for bit in range(6):  # re-encoded: six bits of 256 differ
        dhash[copies[half:], bit % 4] ^= np.uint64(1) << draws.integers(0, 63, len(copies) - half).astype(np.uint64)
    usable = np.ones(count, bool)
    _begin()
    exact, near = exact_duplicates(keys, usable), near_duplicates(dhash, thumb, usable)
    groups = connected_groups(np.arange(count), exact, near)
    return f"{count - len(np.unique(groups)):,} of {len(copies):,} copies"


def _cropped(place: Path, count: int) -> str:
    """Generated 32 x 32 greys: one in a hundred a planted copy, cropped by 3% and brightened."""
    from unfreeze.data.crop_duplicates import find_cropped_duplicates

    draws = np.random.default_rng(1)
    grey = np.empty((count, 32, 32), np.uint8)
    spread = np.maximum(1.0, np.hypot(*np.meshgrid(np.arange(32), np.arange(32)))) ** -1.2
    waves = np.cos(np.pi * (np.arange(32) + 0.5) / 32 * np.arange(32)[:, None])
    for start in range(0, count, 10_000):  # spectra that fall off as those of photos do
        size = min(10_000, count - start)
        field = waves.T @ (draws.normal(0, 1, (size, 32, 32)) * spread) @ waves
        field = 128 + 45 * (field - field.mean((1, 2), keepdims=True)) / field.std((1, 2), keepdims=True)
        grey[start : start + size] = field.clip(0, 255)
    copies, originals = _planted(count, draws)
    for copy, original in zip(copies.tolist(), originals.tolist(), strict=True):
        image = Image.fromarray(grey[original]).resize((32, 32), Image.Resampling.BILINEAR, box=(1, 1, 31, 31))
        grey[copy] = (np.asarray(image) * 0.95 + 6).clip(0, 255)
    thumb = np.repeat(grey[:, 2::4, 2::4, None], 3, axis=3)
    _begin()
    pairs = find_cropped_duplicates(grey, thumb, np.ones(count, bool))
    found = set(map(tuple, pairs.tolist())) & {
        (min(p), max(p)) for p in zip(copies.tolist(), originals.tolist(), strict=True)
    }
    return f"{len(found):,} of {len(copies):,} copies, {len(pairs) - len(found):,} other pairs"


def _planted(count: int, draws: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that are copies, and the rows that they are copies of."""
    some = draws.permutation(count)[: 2 * (count // 100)]
    return some[::2], some[1::2]


def _folds(place: Path, count: int) -> str:
    from unfreeze.data.splits import stratified_group_kfold

    labels, groups, _ = _judged(count)
    _begin()
    folds, _ = stratified_group_kfold(labels, groups, 5, 0, tuple(map(str, range(CLASSES))))
    sizes = np.bincount(folds)
    assert len(np.unique(np.stack([groups, folds], 1), axis=0)) == len(np.unique(groups))
    return f"largest fold {sizes.max() / sizes.min() - 1:.2%} over the smallest"


def _scores(place: Path, count: int) -> str:
    from unfreeze.metrics.classification import score_predictions

    labels, groups, proba = _judged(count)
    _begin()
    told = score_predictions(labels, proba, groups, tuple(map(str, range(CLASSES))))["macro_f1"]
    return f"macro F1 {told['value']:.4f} ({told['low']:.4f} to {told['high']:.4f})"


def _suspects(place: Path, count: int) -> str:
    """Wrong labels planted in three of a hundred: how many of them are among as many first suspects."""
    from unfreeze.metrics.label_issues import LabelAxis, rank_label_issues, score_labels

    truth, groups, proba = _judged(count)
    draws = np.random.default_rng(2)
    given = truth.copy()
    wrong = draws.permutation(count)[: count * 3 // 100]
    given[wrong] = (given[wrong] + draws.integers(1, CLASSES, len(wrong))) % CLASSES
    names, paths = tuple(map(str, range(CLASSES))), [f"{i:07d}.jpg" for i in range(count)]
    _begin()
    found = rank_label_issues(
        paths,
        given,
        names,
        [score_labels(LabelAxis("label", names, given, proba), groups)],
        np.arange(CLASSES)[:, None],
        groups,
    )
    first = {int(path[:7]) for path in found["path"][: len(wrong)]}
    return f"{len(first & set(wrong.tolist())) / len(wrong):.1%} of the wrong labels among as many suspects"


def _judged(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Labels, groups of five photos, and probabilities of a fair model."""
    draws = np.random.default_rng(3)
    groups = np.arange(count) // 5
    labels = draws.integers(0, CLASSES, count)
    logits = draws.normal(0, 1, (count, CLASSES))
    logits[np.arange(count), labels] += 4
    proba = np.exp(logits, out=logits)
    proba /= proba.sum(1, keepdims=True)
    return labels, groups, proba


def _cache(place: Path, count: int) -> str:
    """A feature store of one last layer (1,280 float16): written in segments, then streamed and found again."""
    from unfreeze.core.cache import ArrayStore

    draws = np.random.default_rng(4)
    keys = draws.integers(1, 1 << 63, (count, 2), np.uint64)
    store = ArrayStore(place / "cache" / "features" / "bench", np.float16, (1280,))
    piece = draws.normal(0, 1, (1024, 1280)).astype(np.float16)
    for start in range(0, count, 1024):
        size = min(1024, count - start)
        piece[:, 0] = np.arange(start, start + 1024) % 1000
        store.append(keys[start : start + size], piece[:size])
    again = ArrayStore(store.folder, np.float16, (1280,))
    places = again.find(keys)
    total = 0.0
    for start in range(0, count, 1024):
        total += float(again.take(places[start : start + 1024])[:, 0].astype(np.float64).sum())
        again.forget_pages()
    assert total == float((np.arange(count) % 1000).sum())
    return f"{len(list(store.folder.glob('*.keys.npy'))):,} segments"


def _fit(place: Path, count: int) -> str:
    """The whole job from a table: looks, groups, folds, features, heads, scores, report's tables."""
    import unfreeze as uf
    from unfreeze.core.recipe import PRESETS

    photos = uf.read(place / "table.parquet")
    _begin()
    recipe = uf.Recipe(strategy="probe").replace(**PRESETS["fast"])
    run = uf.fit(photos, recipe, place / "run", force=True)
    told = run.scores()["macro_f1"]
    return f"macro F1 {told['value']:.3f} ({told['low']:.3f} to {told['high']:.3f})"


STAGES: dict[str, Callable[[Path, int], str]] = {
    "read class folders": _read("photos"),
    "read CSV": _read("table.csv"),
    "read Parquet": _read("table.parquet"),
    "read WebDataset": _read("shards"),
    "first look": _look,
    "look again": _look,
    "duplicates": _duplicates,
    "cropped copies": _cropped,
    "folds": _folds,
    "label issues": _suspects,
    "scores": _scores,
    "feature cache": _cache,
    "whole fit": _fit,
}


def main() -> None:
    stage, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    _begin()
    found = STAGES[stage](place, count)
    wall, cpu = time.perf_counter() - _started[0], time.process_time() - _started[1]
    print(json.dumps({"seconds": round(wall, 2), "cpu_s": round(cpu, 2), "found": found}))


if __name__ == "__main__":
    main()
