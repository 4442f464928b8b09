"""What a fine-tuned network keeps, what it starts from, and what trains when."""

from __future__ import annotations

import pytest
import torch

from unfreeze.models.fine_tune_model import FineTuneModel, SignedRoot
from unfreeze.models.freezing import LrScaling
from unfreeze.models.pooling import FeatureSpec, feature_module
from unfreeze.models.registry import find_backbone

TAPS = FeatureSpec(2, 2)


def make(name="timm/test_resnet", taps=TAPS, first=3, cut=False, size=64, auxiliary=False, seed=0):
    backbone = find_backbone(name, "none")
    torch.manual_seed(seed)
    network = backbone.build(0 if taps else 3, size, auxiliary)
    return FineTuneModel(network, backbone.anatomy(size, auxiliary), 3, taps=taps, first=first, cut=cut, size=size)


def moved(model):
    """Every tensor that may train is changed, as training would."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.trained_state().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=draw))
    return model


CASES = {
    "whole": {"first": 0},
    "part": {"first": 3},
    "cut": {"first": 3, "cut": True},
    "classifier": {"taps": None},
    "classifier cut": {"taps": None, "cut": True},
    "auxiliary": {"name": "torchvision/googlenet", "taps": None, "first": 0, "auxiliary": True},
    "tokens": {"name": "timm/test_vit", "size": 160, "first": 4, "cut": True},
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_makes_the_network_whole_again(case):
    model = moved(make(**CASES[case]))
    state = {name: tensor.clone() for name, tensor in model.trained_state().items()}
    again = make(**CASES[case], seed=9)
    again.load_trained(state)
    one, two = model.state_dict(), again.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_cut_networks_weights_fit_the_whole_one():
    state = moved(make(cut=True)).trained_state()
    whole = make(seed=9)
    whole.load_trained(state)
    found = whole.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert any(name.startswith("network.layer4") for name in state)
    assert not any(name.startswith(("rest.", "network.layer1", "network.conv1")) for name in state)


def test_frozen_parts_are_not_kept_and_others_are_refused():
    model = make()
    state = model.trained_state()
    assert len(state) < len(model.state_dict())
    with pytest.raises(KeyError):
        make(first=4).load_trained(state)
    with pytest.raises(KeyError):
        model.load_trained({})
    with pytest.raises(RuntimeError):
        model.load_trained({**state, "head.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_it_starts_as_the_probe(name):
    size = 160 if "vit" in name else 64
    backbone = find_backbone(name, "none")
    anatomy = backbone.anatomy(size)
    blocks = feature_module(backbone.build(size=size), anatomy.stages, TAPS)
    width = sum(stage.width(TAPS.grid) for stage in anatomy.stages[-2:])
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(width, 3, generator=draw), torch.randn(3, generator=draw)
    model = make(name, size=size, first=1)
    model.start_from(weight, bias)
    images = torch.randn(2, 3, size, size, generator=draw)
    with torch.no_grad():
        features = blocks(images)
        expected = torch.copysign(features.abs().sqrt(), features) @ weight + bias
        found = model.eval()(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_roots_slope_is_right_and_bounded():
    x = torch.tensor([-4.0, -0.25, 0.25, 9.0], requires_grad=True)
    y = SignedRoot.apply(x)
    assert torch.allclose(y, torch.tensor([-2.0, -0.5, 0.5, 3.0]))
    y.sum().backward()
    assert torch.allclose(x.grad, torch.tensor([0.25, 1.0, 1.0, 1 / 6]))
    zero = torch.zeros(1, requires_grad=True)
    SignedRoot.apply(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_gradual_unfreezing_takes_one_stage_more_at_a_time():
    model = make(first=1)
    model.groups(LrScaling(1.0, 0.0, 0.0))
    stages = model.anatomy.stages
    for epoch, expected in ((0, {4}), (1, {4}), (2, {3, 4}), (4, {2, 3, 4}), (20, {1, 2, 3, 4})):
        model.prepare(2.0, epoch)
        trains = {n for n, p in model.network.named_parameters() if p.requires_grad}
        assert {i for i, stage in enumerate(stages) if set(stage.parameters) & trains} == expected
        for i, stage in enumerate(stages):
            norms = [m for m in stage.modules if isinstance(model.network.get_submodule(m), torch.nn.BatchNorm2d)]
            assert norms and all(model.network.get_submodule(m).training == (i in expected) for m in norms)


def test_batchnorm_can_keep_its_statistics_where_it_trains():
    model = make()
    model.prepare(0.0, 0, batchnorm=False)
    norms = [m for m in model.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(m.training for m in norms)
    assert any(m.weight.requires_grad for m in norms)


def test_the_unused_classifier_is_in_no_group():
    model = make("torchvision/resnet18", first=0)
    names = {name for group in model.groups(LrScaling(0.8, 1.0, 0.1)) for name in group["names"]}
    assert "head.weight" in names and "fc.weight" not in names
    frozen = make("torchvision/resnet18", first=0)
    names = {name for group in frozen.groups(LrScaling(0.8, 0.0, 0.1)) for name in group["names"]}
    assert "head.weight" not in names and not frozen.head.weight.requires_grad
