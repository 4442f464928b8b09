"""The feature pass, decoding included: ours against plain timm with a DataLoader, eager float32, same weights."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import image_sets
import numpy as np

if TYPE_CHECKING:
    from unfreeze.models.feature_extractor import FeatureExtractor

COUNT, PEER_COUNT = 1_360, 160
BACKBONE = "tf_efficientnet_lite0"
# name -> stages, grid
PASSES = {"last layer": ("last", 1), "five blocks, 3x3": ("last:5", 3)}
HEADLINE = ("pass", "images_s", "peer_images_s", "ratio", "cpu_ratio", "lowest_cosine", "load")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a pass: images a second of both, medians over interleaved repeats, and how far the features agree."""
    files = image_sets.flat_set(data, scratch / "photos", COUNT)
    graphs = {name: _graph(*how) for name, how in PASSES.items()}
    for graph in graphs.values():  # converted once on a machine; not part of a pass
        _ours(graph, files[:64], scratch / "engines")
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in PASSES}
    costs: dict[str, list[float]] = {name: [] for name in PASSES}
    cosines: dict[str, float] = {}
    loads = []
    for repeat in range(repeats):
        for name, graph in graphs.items():
            loads.append(os.getloadavg()[0])
            cache = scratch / f"cache-{len(loads)}"
            shutil.copytree(scratch / "engines" / "engines", cache / "engines")
            started = _cpu_seconds()
            ours, mine = _ours(graph, files, cache)
            between = _cpu_seconds()
            peer, theirs = _peer(graph, files[:PEER_COUNT])
            cpu = (between - started) / len(files), (_cpu_seconds() - between) / PEER_COUNT
            costs[name].append(cpu[1] / cpu[0])
            speeds[name].append((len(files) / ours, PEER_COUNT / peer))
            cosines[name] = _cosine(mine[:PEER_COUNT], theirs)
            print(
                f"  {name}, repeat {repeat + 1}: {len(files) / ours:.0f}/s against {PEER_COUNT / peer:.0f}/s, "
                f"CPU {costs[name][-1]:.1f}x, load {loads[-1]:.1f}",
                flush=True,
            )
    for name, pairs in speeds.items():
        yield {
            "pass": name,
            "photos": COUNT,
            "peer_photos": PEER_COUNT,
            "images_s": round(median(ours for ours, _ in pairs), 1),
            "peer_images_s": round(median(peer for _, peer in pairs), 1),
            "ratio": round(median(ours / peer for ours, peer in pairs), 2),
            "lowest_ratio": round(min(ours / peer for ours, peer in pairs), 2),
            "cpu_ratio": round(median(costs[name]), 2),
            "lowest_cosine": round(cosines[name], 5),
            "repeats": len(pairs),
            "load": round(median(loads), 2),
        }


def _graph(stages: str, grid: int) -> FeatureExtractor:
    from unfreeze.models.feature_extractor import FeatureExtractor
    from unfreeze.models.pooling import FeatureSpec
    from unfreeze.models.registry import find_backbone

    backbone = find_backbone(BACKBONE)
    return FeatureExtractor(backbone, backbone.preprocessing, FeatureSpec.parse(stages, grid))


def _ours(graph: FeatureExtractor, files: list[Path], cache: Path) -> tuple[float, np.ndarray]:
    """Seconds and features of `compute_features` on a cache that knows the engine and no photo."""
    from unfreeze.core.cache import content_hash
    from unfreeze.features.extract import compute_features

    os.environ["UNFREEZE_CACHE"] = str(cache)
    keys = np.array([content_hash(file.read_bytes()) for file in files], np.uint64)
    started = time.perf_counter()
    features = compute_features(files, keys, np.ones(len(files), bool), graph, ("plain",))
    seconds = time.perf_counter() - started
    return seconds, features.read(np.arange(len(files)))


def _peer(graph: FeatureExtractor, files: list[Path]) -> tuple[float, np.ndarray]:
    """Seconds and features of the usual script: timm's transform, two loader processes, batches of 32."""
    import timm.data
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    network = graph.backbone.build()
    module = graph.module() if graph.taps.grid > 1 else network
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))

    class Photos(Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> torch.Tensor:
            with Image.open(files[i]) as image:
                return transform(image.convert("RGB"))

    network.reset_classifier(0)
    started = time.perf_counter()
    with torch.inference_mode():
        parts = [module(batch) for batch in DataLoader(Photos(), batch_size=32, num_workers=2)]
    return time.perf_counter() - started, torch.cat(parts).numpy()


def _cpu_seconds() -> float:
    """Core-seconds of this process and of the loader processes that have ended: little changed by busy neighbours."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest cosine between two sets of features of the same photos."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
