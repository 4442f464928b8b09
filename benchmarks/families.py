"""Each family's pooled blocks in OpenVINO against eager float32 torch: cosine and speed, untrained, small photos."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import record

# name -> side of the photos, pixels
FAMILIES = {
    "torchvision/resnet18": 128,
    "torchvision/densenet121": 128,
    "torchvision/inception_v3": 139,
    "timm/tf_efficientnet_lite0": 128,
    "torchvision/regnet_y_400mf": 128,
    "torchvision/vgg11": 64,
    "torchvision/swin_t": 96,
    "torchvision/vit_b_32": 96,
    "timm/convnext_atto": 128,
    "timm/mobilenetv3_small_050": 128,
    "timm/test_maxvit": 160,
    "timm/deit_tiny_distilled_patch16_224": 112,
    "timm/eva02_tiny_patch14_224": 112,
    "timm/hiera_tiny_224": 64,
    "timm/mixer_s32_224": 224,
}
STAGES, GRID, COUNT = 3, 2, 8
HEADLINE = ("name", "size", "stages", "width", "cosine_f32", "cosine_bf16", "engine", "load")


@dataclass(frozen=True)
class Settled:
    """Random weights with the norms' statistics of a few pictures: without them, deep outputs are nearly nothing."""

    seed: int
    side: int
    licence: str = ""
    remedy: str = ""

    def here(self) -> bool:
        return True

    def identity(self) -> str:
        return f"settled-{self.seed}-{self.side}"

    def network(self, full: str, classes: int, size: int, auxiliary: bool) -> Any:
        import torch

        from unfreeze.models.weights import UntrainedWeights

        network = UntrainedWeights(self.seed).network(full, classes, size, auxiliary).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train()
                module.momentum = None  # the statistics of this pass, not mixed with those it began with
        images = torch.from_numpy(pictures(self.side)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            network(images)
        return network.eval()


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a family. The lowest cosine of a photo's features, and the chosen engine's images a second."""
    from unfreeze.models.engines import _folder, _read_record, open_engine
    from unfreeze.models.feature_extractor import FeatureExtractor
    from unfreeze.models.pooling import FeatureSpec
    from unfreeze.models.registry import BACKBONES, find_backbone

    os.environ["UNFREEZE_CACHE"] = str(scratch)
    for name, size in FAMILIES.items():
        started = time.perf_counter()
        # An untrained EfficientNet amplifies rounding until even float32 differs from float64: a trained one is taken.
        backbone = find_backbone(name, "" if name in BACKBONES else "none", 0)
        if name not in BACKBONES:
            backbone = replace(backbone, weights=Settled(0, size))
        graph = FeatureExtractor(backbone, backbone.preprocessing.resolved(size, 0), FeatureSpec(STAGES, GRID))
        row: dict[str, Any] = {
            "family": name.rpartition("/")[2].removeprefix("tf_").removeprefix("test_").partition("_")[0],
            "name": name,
            "size": size,
            "stages": len(backbone.stages),
            "width": graph.width(),
        }
        try:
            open_engine(graph)
            found = _read_record(_folder(graph)) or {}
            row |= {f"cosine_{k.rpartition('-')[2]}": round(v, 6) for k, v in found["parity"].items()}
            row |= {"engine": found["choice"]}
        except Exception as error:  # a family that no engine takes is a result too
            row |= {"engine": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
        yield row | {"seconds": round(time.perf_counter() - started, 1), "load": round(os.getloadavg()[0], 2)}


def pictures(size: int) -> Any:
    """Smooth ones, uint8 (COUNT, size, size, 3)."""
    coarse = np.random.default_rng(0).uniform(0, 255, (COUNT, 9, 9, 3))
    cell = -(-size // 9)
    return np.repeat(np.repeat(coarse, cell, 1), cell, 2)[:, :size, :size].astype(np.uint8)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    begun, kept = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="unfreeze-bench-") as folder:
        for measured in rows(None, Path(folder), 1):
            kept.append(measured)
            record.write_rows("families", kept)
            print(", ".join(f"{k} {v}" for k, v in measured.items()), flush=True)
    record.write_machine("families", time.perf_counter() - begun)
    record.show("families", kept, HEADLINE)
