"""A cut network answers what the whole one does, from what its front has put out."""

from __future__ import annotations

import pytest
import torch

from unfreeze.core.errors import BackboneError
from unfreeze.models.backbone_split import FrozenFront, TrainableBack, activation_shape, split_module
from unfreeze.models.fine_tune_model import FineTuneModel
from unfreeze.models.freezing import LrScaling
from unfreeze.models.pooling import FeatureSpec
from unfreeze.models.registry import find_backbone

# Small ones of each kind of map: convolutions, a classifier with hidden layers, channels last, tokens, windows.
FAMILIES = [
    ("timm/test_resnet", 64, 1),
    ("timm/test_resnet", 64, 4),
    ("timm/test_convnext", 64, 2),
    ("timm/test_vit", 160, 1),
    ("timm/test_vit", 64, 4),
    ("torchvision/vgg11_bn", 32, 5),
    ("torchvision/densenet121", 32, 3),
    ("torchvision/swin_t", 32, 3),
    ("torchvision/mobilenet_v3_small", 32, 6),
]
TAPS = FeatureSpec(3, 2)


def pair(name, size, first, taps=TAPS):
    """The front, the whole network, the cut one with the same head."""
    backbone = find_backbone(name, "none")
    anatomy = backbone.anatomy(size)
    front = FrozenFront(backbone.build(size=size), anatomy, first, taps or FeatureSpec(1, 1)).eval()
    torch.manual_seed(1)
    whole = FineTuneModel(backbone.build(size=size), anatomy, 3, taps=taps, first=first, size=size).eval()
    cut = FineTuneModel(backbone.build(size=size), anatomy, 3, taps=taps, first=first, cut=True, size=size).eval()
    if taps:
        cut.head.load_state_dict(whole.head.state_dict())
    return front, whole, cut


def divided(front, cut, images):
    """The front's row as the two tensors that the cut network takes."""
    with torch.no_grad():
        row = front(images)
    shape = cut.rest.shape
    beside = row.shape[1] - torch.Size(shape).numel()
    return row[:, beside:].reshape(len(images), *shape), row[:, :beside]


@pytest.mark.parametrize(("name", "size", "first"), FAMILIES)
def test_cut_equals_whole(name, size, first):
    front, whole, cut = pair(name, size, first)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    inputs = divided(front, cut, images)
    with torch.no_grad():
        expected, found = whole(images), cut(inputs)
    assert expected.std() > 0
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert set(cut.trained_state()) == set(whole.trained_state())


def test_gradients_of_cut_and_whole_are_the_same():
    front, whole, cut = pair("timm/test_resnet", 64, 3)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    inputs = divided(front, cut, images)
    for model, what in ((whole, images), (cut, inputs)):
        model.groups(LrScaling(1.0, 1.0, 0.0))
        model.prepare(0.0, 0, batchnorm=True)
        torch.nn.functional.cross_entropy(model(what), torch.tensor([0, 1, 2, 0])).backward()
    one, two = (
        {n: p.grad for n, p in m.named_parameters() if p.grad is not None and not n.startswith("rest.")}
        for m in (whole, cut)
    )
    assert one.keys() == two.keys() and any("layer4" in n for n in one) and not any("layer2" in n for n in one)
    # Deep ReLU networks amplify rounding: a share of the largest gradient.
    assert all(torch.allclose(one[n], two[n], rtol=1e-3, atol=1e-4 * float(one[n].abs().max())) for n in one)


def test_the_networks_own_classifier_behind_a_cut():
    front, whole, cut = pair("torchvision/vgg11_bn", 32, 3, taps=None)
    images = torch.randn(2, 3, 32, 32)
    inputs = divided(front, cut, images)
    with torch.no_grad():
        assert torch.allclose(cut(inputs), whole(images), rtol=1e-4, atol=1e-5)
    assert inputs[1].shape == (2, 0)


def test_branches_that_need_more_than_one_map_are_refused():
    backbone = find_backbone("timm/hrnet_w18_small", "none")
    anatomy = backbone.anatomy(64)
    TrainableBack(backbone.build(size=64), anatomy, 2, 64)  # before they branch
    for first in range(3, len(anatomy.stages)):
        with pytest.raises(BackboneError, match=r"cannot be cut after .*; use strategy full"):
            TrainableBack(backbone.build(size=64), anatomy, first, 64)


def test_shape_is_known_without_weights():
    from unfreeze.models.architectures import build

    backbone = find_backbone("timm/test_resnet", "none")
    anatomy = backbone.anatomy(64)
    for first in range(1, len(anatomy.stages)):
        network = build(backbone.name, size=64, meta=True)
        shape = activation_shape(network, anatomy, first, 64)
        assert shape == TrainableBack(backbone.build(size=64), anatomy, first, 64).shape
        assert network.get_submodule(split_module(network, anatomy, first)) is not None
