"""The rules for precision and memory format against the stopwatch: what they choose, and how fast the best would be.

A row of kind `train` is a network and a strategy: images a second of a training step in each precision and memory
format, one thread on a core of its own, and the share of depthwise outputs that `training/fine_tune/autotune.py`
decides by.
A row of kind `features` is a frozen network in OpenVINO. Untrained weights where no package carries trained ones: speed
does not depend on them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child

IMAGES = 8
PRECISIONS, FORMATS = ("f32", "bf16"), ("channels_last", "contiguous")
# Network, and the sides of the images that it was measured on, by strategy.
TRAINED = (
    ("timm/tf_efficientnet_lite0", {"full": 224, "partial": 224}),
    ("timm/mobilenetv2_100", {"full": 224, "partial": 224}),
    ("timm/resnet18", {"full": 160, "partial": 224}),
    ("timm/resnet50", {"full": 160, "partial": 224}),
    ("timm/densenet121", {"full": 160, "partial": 224}),
    ("torchvision/inception_v3", {"full": 160, "partial": 224}),
    ("torchvision/vgg11", {"full": 128}),
    ("timm/convnext_atto", {"full": 160, "partial": 224}),
    ("timm/regnety_004", {"full": 160, "partial": 224}),
    ("timm/efficientnet_b0", {"full": 160, "partial": 224}),
    ("timm/mobilenetv3_large_100", {"full": 160}),
    ("torchvision/shufflenet_v2_x1_0", {"full": 160}),
    ("timm/vit_tiny_patch16_224", {"full": 224, "partial": 224}),
    ("timm/swin_tiny_patch4_window7_224", {"partial": 224}),
)
FROZEN = (
    "tf_efficientnet_lite0",
    "timm/mobilenetv2_100",
    "timm/resnet50",
    "timm/densenet121",
    "torchvision/inception_v3",
    "timm/convnext_atto",
    "timm/regnety_004",
    "timm/vit_tiny_patch16_224",
)
HEADLINE = ("kind", "backbone", "strategy", "size", "depthwise", "chosen", "best", "chosen_of_best")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a network and strategy, the steps' fastest of `repeats`."""
    here = {"UNFREEZE_CACHE": str(scratch)}
    for name, sizes in TRAINED:
        for strategy, size in sizes.items():
            found = child.run([sys.executable, __file__, "train", name, strategy, size, repeats], here).json()
            yield judged({"kind": "train", "backbone": name, "strategy": strategy, "size": size}, found)
    for name in FROZEN:
        found = child.run([sys.executable, __file__, "features", name, repeats], here).json()
        yield judged({"kind": "features", "backbone": name, "strategy": "probe", "size": 224}, found)


def judged(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The row with speeds, the rule's choice, the fastest way, and the former's speed as a share of the latter's."""
    speeds, chosen = found["speeds"], found["chosen"]
    best = max(speeds, key=lambda name: speeds[name])
    ratio = round(speeds[chosen] / speeds[best], 2)
    row = {**row, "depthwise": found["depthwise"], "chosen": chosen, "best": best, "chosen_of_best": ratio}
    return {**row, **{f"{name.replace(' ', '_')}_s": speed for name, speed in speeds.items()}}


def _train(name: str, strategy: str, size: int, repeats: int) -> dict[str, Any]:
    import torch

    from unfreeze.core.recipe import Recipe
    from unfreeze.models.freezing import LrScaling
    from unfreeze.training.fine_tune import autotune
    from unfreeze.training.fine_tune.autotune import Plan
    from unfreeze.training.fine_tune.losses import make_loss
    from unfreeze.training.fine_tune.memory import tune_malloc
    from unfreeze.training.fine_tune.settings import TrainSetup, resolve_settings

    torch.set_num_threads(1)
    tune_malloc()
    recipe = Recipe(strategy=strategy, backbone=name, weights="none")
    recipe = recipe.replace(**{"image.size": size, "probe.stages": "last:4"})
    settings = resolve_settings(recipe, 1000)
    setting = TrainSetup.of(recipe, settings)
    model = setting.network(5)
    model.groups(LrScaling(settings.layer_decay, settings.head_lr_mult, settings.weight_decay, True))
    model.prepare(0.0, settings.epochs, False)
    inputs: Any = torch.rand(IMAGES, 3, size, size)
    if setting.cut:
        beside = sum(width for _, width in setting.front.blocks()[:-1])
        inputs = (torch.rand(IMAGES, *setting.front.activation()), torch.rand(IMAGES, beside))
    targets, loss, cpu = torch.arange(IMAGES) % 5, make_loss("ce", [1] * 5), torch.device("cpu")
    speeds = {}
    for precision in PRECISIONS:
        for shape in FORMATS:
            plan = Plan(precision, shape)
            fabric = plan.fabric()
            runner = fabric.setup_module(plan.arranged(model))
            taken = []
            for _ in range(repeats + 1):  # the first makes kernels and buffers
                model.zero_grad(set_to_none=True)
                started = time.perf_counter()
                fabric.backward(loss(runner(plan.placed(inputs, cpu)), targets))
                taken.append(time.perf_counter() - started)
            speeds[f"{precision} {shape}"] = round(IMAGES / min(taken[1:]), 2)
    chosen = f"{autotune.fast_precision(model, inputs, cpu)} {autotune.memory_format(inputs)}"
    return {"speeds": speeds, "chosen": chosen, "depthwise": round(autotune.depthwise_share(model, inputs), 3)}


def _features(name: str, repeats: int) -> dict[str, Any]:
    import numpy as np

    from unfreeze.models import engines
    from unfreeze.models.feature_extractor import FeatureExtractor
    from unfreeze.models.pooling import FeatureSpec
    from unfreeze.models.registry import BACKBONES, find_backbone

    # What the rule chooses depends on the weights: those that a package carries are taken.
    backbone = find_backbone(name, "" if name in BACKBONES else "none", 0)
    graph = FeatureExtractor(backbone, backbone.preprocessing.resolved(224, 0), FeatureSpec(4, 3))
    chosen, folder = engines.open_engine(graph).name, engines._folder(graph)
    images = np.resize(engines.reference_images(224), (16 * engines.BATCH, 224, 224, 3))
    speeds = {}
    for engine in json.loads((folder / "engine.json").read_text("utf-8"))["parity"]:
        opened = engines._openvino_engine(folder, engine, graph.blocks())
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            engines._outputs(opened, images)
            taken.append(time.perf_counter() - started)
        speeds[engine] = round(len(images) / min(taken), 1)
    return {"speeds": speeds, "chosen": chosen, "depthwise": ""}


if __name__ == "__main__":
    if sys.argv[1] == "train":
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(_train(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:6]))))
    else:
        print(json.dumps(_features(sys.argv[2], int(sys.argv[3]))))
