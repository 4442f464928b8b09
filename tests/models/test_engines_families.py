"""Converted networks of three kinds give the features of eager torch: channels first, channels last, tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unfreeze.models.engines import open_engine, parity
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.pooling import FeatureSpec
from unfreeze.models.registry import find_backbone


@pytest.mark.parametrize(
    ("name", "size"), [("timm/test_resnet", 64), ("timm/test_mambaout", 64), ("timm/test_vit", 64)]
)
def test_openvino_equals_eager_torch(fresh_cache, name, size):
    backbone = find_backbone(name, "none", 3)
    graph = FeatureExtractor(backbone, backbone.preprocessing.resolved(size, 0), FeatureSpec(len(backbone.stages), 2))
    coarse = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 3))
    pixels = np.repeat(np.repeat(coarse, size // 8, 1), size // 8, 2).astype(np.uint8)
    p = graph.preprocessing
    values = torch.from_numpy(((pixels.astype(np.float64) / 255 - p.mean) / p.std).astype(np.float32))
    with torch.inference_mode():
        eager = graph.module()(values.permute(0, 3, 1, 2)).numpy()
    engine = open_engine(graph, "openvino-f32")
    found = np.concatenate(list(engine.run([pixels[:4], pixels[4:]])))
    assert found.shape == (5, graph.width())
    assert engine.blocks == graph.blocks()
    assert parity(found, eager) > 0.9999
    # Each block for itself: the largest would hide the others in one cosine.
    start = 0
    for _, width in engine.blocks:
        assert parity(found[:, start : start + width], eager[:, start : start + width]) > 0.9999
        start += width
