"""A full fine-tuning step by the clock: ours, in one process and as folds side by side, against fastai's Learner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import child
import image_sets
import whole_job

BATCH = 32
# backbone -> recipe's weights, photos of an epoch (10 and 4 steps), speed-up that was asked for
BACKBONES: dict[str, tuple[str, int, float]] = {
    "timm/tf_efficientnet_lite0": ("", 320, 1.8),
    "timm/resnet50": ("none", 128, 3.0),
}
HEADLINE = ("backbone", "ours", "photos_s", "peer_photos_s", "ratio", "cpu_ratio", "plan", "asked", "load")
# How ours trains: one process with all cores, or as many folds side by side as there are cores, a thread each.
WAYS = {"one process": 1, "folds side by side": len(os.sched_getaffinity(0))}


@dataclass(frozen=True)
class Speed:
    """Photos a second by the wall clock and by the CPU seconds of the whole process tree, of one warm epoch."""

    photos_s: float
    photos_cpu_s: float
    load: float


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a backbone and way; runs of ours and of the peer take turns, so that a busy minute hits them all."""
    for backbone, (weights, count, asked) in BACKBONES.items():
        files = image_sets.flat_set(data, scratch / backbone / "photos", count)
        table = write_table(scratch / backbone / "table.csv", files)
        ours: dict[str, list[Speed]] = {way: [] for way in WAYS}
        peers: list[Speed] = []
        words = {"strategy": "full", "backbone": backbone, "weights": weights, "train.batch_size": BATCH}
        first = prepared(files, words, scratch / backbone)
        for repeat in range(repeats):
            for way, workers in WAYS.items():
                ours[way].append(our_epoch(scratch / backbone, f"{way}-{repeat}", workers))
                print(f"  {backbone}, {way}: {ours[way][-1]}", flush=True)
            peers.append(peer_epoch(table, scratch, backbone))
            print(f"  {backbone}, fastai: {peers[-1]}", flush=True)
        # Two threads that share their cores with other programs spend much of their time waiting for each other: what
        # the peer could do with one is told beside.
        alone = peer_epoch(table, scratch, backbone, threads=1)
        for way, found in ours.items():
            yield {
                "backbone": backbone,
                "ours": way,
                "batch": BATCH,
                "photos": count,
                **compared(found, peers),
                "peer_one_thread_photos_s": round(alone.photos_s, 2),
                "peer_one_thread_photos_cpu_s": round(alone.photos_cpu_s, 2),
                "asked": asked,
                "plan": plan_of(scratch / backbone, WAYS[way]),
                **first,
                "repeats": repeats,
            }


def compared(ours: list[Speed], peers: list[Speed]) -> dict[str, Any]:
    """Medians, and the medians and least of the ratios of neighbouring runs."""
    ratios = [a.photos_s / b.photos_s for a, b in zip(ours, peers, strict=True)]
    cpu = [a.photos_cpu_s / b.photos_cpu_s for a, b in zip(ours, peers, strict=True)]
    return {
        "photos_s": round(median(s.photos_s for s in ours), 2),
        "photos_cpu_s": round(median(s.photos_cpu_s for s in ours), 2),
        "peer_photos_s": round(median(s.photos_s for s in peers), 2),
        "peer_photos_cpu_s": round(median(s.photos_cpu_s for s in peers), 2),
        "ratio": round(median(ratios), 2),
        "lowest_ratio": round(min(ratios), 2),
        "cpu_ratio": round(median(cpu), 2),
        "lowest_cpu_ratio": round(min(cpu), 2),
        "load": round(median(s.load for s in (*ours, *peers)), 2),
    }


def write_table(table: Path, files: list[Path]) -> Path:
    """CSV of path, label and split: two classes in turn, the last 32 photos for validation as well."""
    lines = ["path,label,split"]
    for i, file in enumerate([*files, *files[-BATCH:]]):
        lines.append(f"{file.relative_to(table.parent)},{'ab'[i % 2]},{'train' if i < len(files) else 'test'}")
    table.write_text("\n".join(lines) + "\n", "utf-8")
    return table


def prepared(files: list[Path], words: dict[str, Any], place: Path) -> dict[str, Any]:
    """Fills the cache, and trains once in both ways to have their plans: none of it is timed.

    Gives what it took, for it is paid once a set of photos.
    """
    about = {"files": [str(f) for f in files], "words": words}
    (place / "about.json").write_text(json.dumps(about), "utf-8")
    taken = child.run([sys.executable, __file__, "prepare", place], environment(place))
    found = taken.json()
    for workers in sorted(set(WAYS.values())):
        our_epoch(place, f"plan-{workers}", workers)
    return {f"once_{name}": value for name, value in found.items()}


def our_epoch(place: Path, name: str, workers: int) -> Speed:
    """The last of two epochs of `workers` folds that train at once, each as the product's worker trains one."""
    load = os.getloadavg()[0]
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    folds = [
        subprocess.Popen(
            [sys.executable, __file__, "fold", place, name.replace(" ", "-"), str(fold), str(threads), str(workers)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment(place), "OMP_NUM_THREADS": str(threads)},
        )
        for fold in range(workers)
    ]
    found = []
    for fold in folds:
        out, _ = fold.communicate()
        if fold.returncode:
            raise RuntimeError(f"{place.name}, {name}: exit {fold.returncode}")
        found.append(json.loads(out.strip().splitlines()[-1]))
    # From the first fold's start to the last one's end: not flattered where they do not overlap.
    seconds = max(f["end"] for f in found) - min(f["start"] for f in found)
    photos = sum(f["photos"] for f in found)
    return Speed(round(photos / seconds, 3), round(photos / sum(f["cpu_s"] for f in found), 3), round(load, 2))


def peer_epoch(table: Path, scratch: Path, backbone: str, threads: int = 0) -> Speed:
    """fastai's unfrozen epoch: a Learner with its defaults, photos decoded by its loader processes."""
    name = backbone.partition("/")[2]
    weights = whole_job.lite0_weights(scratch) if name == "tf_efficientnet_lite0" else "none"
    command = [whole_job.peer_python(), whole_job.PEER, "epoch", table, weights, name, str(BATCH), str(threads)]
    taken = child.run(command)
    found = taken.json()
    return Speed(round(found["photos"] / found["seconds"], 3), round(found["photos"] / found["cpu_s"], 3), taken.load)


def plan_of(place: Path, workers: int) -> str:
    """The plan of the first fold with that number of workers."""
    plan = json.loads((place / "jobs" / f"plan-{workers}-0" / "plan.json").read_text("utf-8"))["plan"]
    return f"{plan['precision']} {plan['memory_format']}, {plan['micro_batch']} at once"


def environment(place: Path) -> dict[str, str]:
    """The cache of a measurement."""
    return {"UNFREEZE_CACHE": str(place / "cache")}


def _job(place: Path, fold: int) -> Any:
    """A fold's job on all photos: two classes in turn, a head of small random numbers in place of a probe's."""
    import numpy as np

    from unfreeze.core.cache import content_hash
    from unfreeze.core.recipe import Recipe
    from unfreeze.training.fine_tune.fold_job import FoldJob
    from unfreeze.training.fine_tune.settings import TrainSetup, resolve_settings

    about = json.loads((place / "about.json").read_text("utf-8"))
    files = [Path(f) for f in about["files"]]
    recipe = Recipe().replace(**about["words"])
    settings = resolve_settings(recipe, len(files)).model_copy(update={"epochs": 2})
    width = TrainSetup.of(recipe, settings).network(2).head.in_features
    weight = np.random.default_rng(0).normal(0, 1e-3, (width, 2)).astype(np.float32)
    every, none = np.arange(len(files)), np.zeros(0, np.int64)
    keys = np.array([content_hash(f.read_bytes()) for f in files], np.uint64)
    readable, start = np.ones(len(files), bool), (weight, np.zeros(2, np.float32))
    return files, FoldJob(recipe, settings, 2, fold, every, none, every[:2], every % 2, keys, readable, start)


def _prepare(place: Path) -> None:
    import time

    from unfreeze.core.progress import Reporter
    from unfreeze.training.fine_tune.inputs import cache_inputs
    from unfreeze.training.fine_tune.settings import TrainSetup

    files, job = _job(place, 0)
    setting = TrainSetup.of(job.recipe, job.settings)
    started, cpu = time.perf_counter(), time.process_time()
    cache_inputs(setting, files, job.keys, job.readable, 1 << 30, Reporter())
    kept = {"cache_s": round(time.perf_counter() - started, 2), "cache_cpu_s": round(time.process_time() - cpu, 2)}
    print(json.dumps(kept))


def _fold(place: Path, name: str, fold: int, threads: int, workers: int) -> None:
    import time

    import torch

    from unfreeze.core.progress import Reporter
    from unfreeze.training.fine_tune import checkpoints
    from unfreeze.training.fine_tune.fold_job import run_fold_job
    from unfreeze.training.fine_tune.memory import share_memory

    torch.set_num_threads(threads)
    share_memory(workers)
    _, job = _job(place, fold)
    # An epoch goes from the row of the one before to the first checkpoint after its last step: both write 12 bytes a
    # weight, which is nothing beside an epoch of a real set, and much beside a dozen steps.
    starts, ends = [], []

    def marked(write: Any) -> Any:
        def marking(*given: Any) -> Any:
            if len(ends) == len(starts):
                ends.append((time.time(), time.process_time()))
            return write(*given)

        return marking

    checkpoints.save_best, checkpoints.save = marked(checkpoints.save_best), marked(checkpoints.save)

    def tell(row: dict[str, Any]) -> None:
        starts.append((time.time(), time.process_time(), row["photos"]))

    here = place / "jobs" / f"{name}-{fold}"
    run_fold_job(job, here, here / "model.safetensors", tell, Reporter())
    (start, cpu_start, photos), (end, cpu_end) = starts[0], ends[1]
    print(json.dumps({"start": start, "end": end, "cpu_s": cpu_end - cpu_start, "photos": photos}))


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        _prepare(Path(sys.argv[2]))
    else:
        _fold(Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:7]))
