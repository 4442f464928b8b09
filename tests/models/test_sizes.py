"""Backbones at other sizes than their own: the same stages at any size, or a refusal that names a size that works."""

from __future__ import annotations

import re

import pytest
import torch

from backbonefamilies import ALL
from unfreeze.core.errors import BackboneError
from unfreeze.models.model_info import anatomy_of, model_info
from unfreeze.models.registry import find_backbone

SIZES = (1, 8, 16, 24, 32)


def structure(stage):
    """What of a stage does not depend on the images' size."""
    kept = (stage.name, stage.output, stage.parameters, stage.channels, stage.layout, stage.prefix, stage.classes)
    return (*kept, stage.width(3))


def check(full, size):
    """Either the stages are those of the network's own size, or each size that the refusal names works."""
    own = anatomy_of(full, model_info(full).preprocessing.size)
    try:
        found = anatomy_of(full, size)
    except BackboneError as error:
        named = re.search(
            r"cannot take images of \d+ px; set image\.size to (\d+)(?: or (\d+)| or more)? \(", str(error)
        )
        assert named, error
        assert "\n" not in str(error)
        assert len(str(error)) < 300
        for other in filter(None, named.groups()):
            assert int(other) > size
            anatomy_of(full, int(other))
        return
    assert [structure(s) for s in found.stages] == [structure(s) for s in own.stages]
    assert (found.classifier, found.auxiliary) == (own.classifier, own.auxiliary)
    assert [s.width(3) for s in found.stages] == [s.width(3) for s in model_info(full).stages]


@pytest.mark.parametrize(
    ("full", "size"),
    [
        ("timm/resnet10t", 1),  # all maps have a single cell
        ("timm/resnet10t", 16),
        ("torchvision/convnext_tiny", 32),  # what follows the last map is no part of it
        ("timm/tf_efficientnet_lite0", 8),
        ("timm/tiny_vit_5m_224", 24),
        ("timm/cait_xxs24_224", 16),  # a single patch beside the class token
        ("timm/vgg11", 64),
        ("timm/test_vit", 24),
        ("timm/hiera_tiny_224", 1),
        ("timm/vit_small_patch14_reg4_dinov2", 14),  # one patch beside five tokens
        ("timm/vit_small_patch14_reg4_dinov2", 28),
    ],
)
def test_small_images_have_the_stages_of_large_ones(full, size):
    check(full, size)


@pytest.mark.soak
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("full", ALL)
def test_every_family_at_every_small_size(full, size):
    check(full, size)


@pytest.mark.parametrize("full", ["timm/resnet10t", "timm/test_vit"])
@pytest.mark.parametrize("grid", [1, 3])
def test_features_of_one_cell_are_that_cell_s(full, grid):
    from unfreeze.models.feature_extractor import FeatureExtractor
    from unfreeze.models.pooling import FeatureSpec

    backbone = find_backbone(full, "none")
    graph = FeatureExtractor(backbone, backbone.preprocessing.resolved(16, 0), FeatureSpec(3, grid))
    module = graph.module()
    with torch.inference_mode():
        found = module(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert found.shape == (2, graph.width())
    stage = anatomy_of(full, 16).stages[-1]
    last = found[:, -stage.width(grid) :][:, : stage.channels * grid**2].reshape(2, stage.channels, grid**2)
    assert torch.equal(last, last[:, :, :1].expand_as(last))


def test_a_size_that_works_is_looked_for_once(fresh_cache, monkeypatch):
    backbone = find_backbone("timm/resnet10t", "none")
    backbone.check_size(40)
    monkeypatch.setattr("unfreeze.models.model_info.anatomy_of", lambda *_: pytest.fail("looked for again"))
    backbone.check_size(40)
    backbone.check_size(backbone.preprocessing.size)


def test_the_least_size_is_the_size_itself_where_it_works():
    backbone = find_backbone("torchvision/inception_v3", "none")
    assert backbone.workable_size(96) == 96
    assert backbone.workable_size(64) == 75


@pytest.mark.parametrize(
    ("full", "size", "trains", "least"),
    [
        ("torchvision/inception_v3", 299, True, 299),
        ("torchvision/inception_v3", 298, False, 299),
        ("torchvision/googlenet", 64, True, 64),  # its auxiliary heads pool to 4 x 4 first
        ("timm/resnet10t", 64, False, 0),
    ],
)
def test_auxiliary_heads_have_a_least_size(full, size, trains, least):
    backbone = find_backbone(full, "none")
    assert backbone.trains_auxiliary(size) is trains
    assert backbone.auxiliary_size(size) == least
