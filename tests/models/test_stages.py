"""Stages of known networks, written out by hand from their papers' tables; how they are told apart."""

from __future__ import annotations

import pytest
import torch

from unfreeze.core.errors import BackboneError
from unfreeze.models.architectures import build
from unfreeze.models.model_info import anatomy_of
from unfreeze.models.stages import classifier_of, find_stages
from unfreeze.models.tracing import main_tensor

# name, size -> name, output, channels and side of each stage
KNOWN = {
    ("torchvision/resnet18", 224): [
        ("stem", "maxpool", 64, 56),
        ("layer1", "layer1", 64, 56),
        ("layer2", "layer2", 128, 28),
        ("layer3", "layer3", 256, 14),
        ("layer4", "layer4", 512, 7),
    ],
    ("torchvision/densenet161", 224): [
        ("stem", "features.pool0", 96, 56),
        ("features.denseblock1", "features.transition1", 192, 28),
        ("features.denseblock2", "features.transition2", 384, 14),
        ("features.denseblock3", "features.transition3", 1056, 7),
        ("features.denseblock4", "features.norm5", 2208, 7),
    ],
    ("torchvision/inception_v3", 299): [
        ("stem", "maxpool2", 192, 35),
        ("Mixed_5b", "Mixed_5d", 288, 35),
        ("Mixed_6a", "Mixed_6e", 768, 17),
        ("Mixed_7a", "Mixed_7c", 2048, 8),
    ],
    ("torchvision/vgg19", 224): [
        ("stem", "features.4", 64, 112),
        ("features.5", "features.9", 128, 56),
        ("features.10", "features.18", 256, 28),
        ("features.19", "features.27", 512, 14),
        ("features.28", "features.36", 512, 7),
        ("classifier.0", "classifier.4", 4096, 1),
    ],
    ("torchvision/swin_t", 224): [
        ("stem", "features.0", 96, 56),
        ("features.1", "features.1", 96, 56),
        ("features.2", "features.3", 192, 28),
        ("features.4", "features.5", 384, 14),
        ("features.6", "permute", 768, 7),
    ],
    ("timm/convnext_atto", 224): [
        ("stem", "stem", 40, 56),
        ("stages.0", "stages.0", 40, 56),
        ("stages.1", "stages.1", 80, 28),
        ("stages.2", "stages.2", 160, 14),
        ("stages.3", "norm_pre", 320, 7),
    ],
    ("timm/tf_efficientnet_lite0", 224): [
        ("stem", "bn1", 32, 112),
        *(
            (f"blocks.{i}", f"blocks.{i}", c, s)
            for i, (c, s) in enumerate([(16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (192, 7), (320, 7)])
        ),
        ("conv_head", "bn2", 1280, 7),
    ],
    ("timm/cait_xxs24_224", 224): [
        ("stem", "pos_drop", 192, 14),
        *((f"blocks.{i}", f"blocks.{i}", 192, 14) for i in range(24)),
        ("blocks_token_only", "norm", 192, 14),
    ],
    ("timm/pit_ti_224", 224): [
        ("stem", "pos_drop", 64, 27),
        ("transformers.0", "transformers.0", 64, 27),
        ("transformers.1", "transformers.1", 128, 14),
        ("transformers.2", "transformers.2", 256, 7),
    ],
    ("timm/coat_lite_tiny", 224): [
        ("stem", "serial_blocks1.1", 64, 56),
        ("patch_embed2", "serial_blocks2.1", 128, 28),
        ("patch_embed3", "serial_blocks3.1", 256, 14),
        ("patch_embed4", "norm4", 320, 7),
    ],
    ("timm/hrnet_w18_small", 224): [
        ("stem", "act2", 64, 56),
        ("layer1", "layer1", 128, 56),
        ("stage2", "stage2", 16, 56),
        ("stage3", "stage3", 16, 56),
        ("stage4", "stage4", 16, 56),
        ("final_layer", "final_layer", 2048, 7),
    ],
}


@pytest.mark.parametrize(("full", "size"), KNOWN, ids=str)
def test_stages_are_those_of_the_paper(full, size):
    found = [(s.name, s.output, s.channels, s.side) for s in anatomy_of(full, size).stages]
    assert found == KNOWN[full, size]


@pytest.mark.parametrize(
    ("full", "classifier"),
    [
        ("torchvision/resnet18", ("fc.weight", "fc.bias")),
        ("torchvision/squeezenet1_1", ("classifier.1.weight", "classifier.1.bias")),
        ("torchvision/maxvit_t", ("classifier.5.weight",)),
        ("timm/test_vit", ("head.weight", "head.bias")),
        (
            "timm/deit_tiny_distilled_patch16_224",
            ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"),
        ),
    ],
)
def test_the_classifier_is_what_depends_on_the_number_of_classes(full, classifier):
    assert classifier_of(build(full, 11, meta=True), build(full, 7, meta=True)) == classifier
    assert anatomy_of(full, 224).classifier == classifier


def test_the_networks_mode_and_hooks_are_left_as_they_were():
    network = build("timm/resnet10t", 3)
    network.layer1.eval()
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    find_stages("timm/resnet10t", network, ("fc.weight", "fc.bias"), 64)
    assert network.training
    assert network.layer2.training
    assert not network.layer1.training
    assert all(torch.equal(buffers[n], b) for n, b in network.named_buffers())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_real_network_has_the_stages_of_its_shapes():
    network = build("timm/test_vit", 3, size=64)
    assert find_stages("timm/test_vit", network, ("head.weight", "head.bias"), 64) == anatomy_of("timm/test_vit", 64)


def test_an_unknown_family_is_refused():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(BackboneError, match=r"torchvision/mine: is not of a family whose stages are known"):
        find_stages("torchvision/mine", network, (), 8)


def test_the_main_tensor():
    small, large = torch.zeros(2, 3), torch.zeros(2, 4)
    assert main_tensor(small) is small
    assert main_tensor((small, None, large, "x")) is large
    assert main_tensor([small, torch.ones(2, 3)]) is small  # logits before auxiliary ones
    assert main_tensor((None, ())) is None
    assert main_tensor({"x": small}) is None
