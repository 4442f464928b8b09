"""Freezing by stage: wishes, what frozen means for each kind of layer, and the optimiser's groups."""

from __future__ import annotations

import pytest
import torch

from unfreeze.core.errors import RecipeError
from unfreeze.models.architectures import build
from unfreeze.models.freezing import LrScaling, freeze_before, parameter_groups, parse_trainable
from unfreeze.models.model_info import anatomy_of

NAMES = ("stem", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
    ("wish", "first"),
    [
        ("all", 0),
        ("head", 5),
        ("none", 5),
        ("last:1", 4),
        ("last:5", 0),
        ("stem-", 0),
        ("layer3-", 3),
    ],
)
def test_wishes(wish, first):
    assert parse_trainable(wish, NAMES) == first


@pytest.mark.parametrize(
    "wish", ["", "last", "last:", "last:0", "last:6", "last:-1", "last:٣", "layer3", "layer9-", "-", "All", "first:2"]
)
def test_other_wishes_are_refused_with_the_stages(wish):
    with pytest.raises(RecipeError, match=r"write all, head, none, last:N or NAME-.*stem, layer1, layer2, layer3"):
        parse_trainable(wish, NAMES)


def test_a_misspelled_stage_suggests_the_nearest():
    with pytest.raises(RecipeError, match=r"Did you mean 'layer3'\?"):
        parse_trainable("layr3-", NAMES)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("timm/test_efficientnet", 3), anatomy_of("timm/test_efficientnet", 64)


def test_frozen_norms_and_dropped_paths_stay_as_in_evaluation(network):
    """The frozen front gives a photo the same map each time, whatever its batch mates; what trains does not."""
    net, anatomy = network
    seen = {}
    for stage in anatomy.stages[:3]:
        net.get_submodule(stage.output).register_forward_hook(lambda _m, _i, o, n=stage.name: seen.update({n: o}))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        net.eval()(images)
        expected = {n: o[:2] for n, o in seen.items()}
        freeze_before(net, anatomy, 2)
        for count in (2, 4):
            net(images[:count])
            for stage in anatomy.stages[:2]:
                torch.testing.assert_close(seen[stage.name][:2], expected[stage.name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(seen[anatomy.stages[2].name][:2], expected[anatomy.stages[2].name], rtol=1e-2)


def test_frozen_dropout_is_off_and_the_classifiers_is_on():
    """ViT with dropout everywhere: after the position embedding, in attention, in the feed-forward layers."""
    import timm

    torch.manual_seed(0)
    net = timm.create_model(
        "test_vit",
        num_classes=3,
        pos_drop_rate=0.5,
        proj_drop_rate=0.5,
        attn_drop_rate=0.5,
        drop_path_rate=0.5,
        drop_rate=0.5,
    )
    anatomy = anatomy_of("timm/test_vit", 160)
    images = torch.randn(2, 3, 160, 160)
    outputs = []
    net.get_submodule(anatomy.stages[-1].output).register_forward_hook(lambda _m, _i, o: outputs.append(o))
    with torch.no_grad():
        freeze_before(net, anatomy, len(anatomy.stages))
        first, second = net(images), net(images)
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(first, second)
        freeze_before(net, anatomy, len(anatomy.stages) - 1)
        net(images)
        assert not torch.equal(outputs[0], outputs[2])


def test_frozen_stages_can_be_thawed_again(network):
    net, anatomy = network
    freeze_before(net, anatomy, len(anatomy.stages))
    freeze_before(net, anatomy, 0)
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())


def test_groups_hold_every_trained_parameter_once(network):
    net, anatomy = network
    count = len(anatomy.stages)
    for first in (0, 2, count):
        groups = parameter_groups(net, anatomy, LrScaling(0.5, 10.0, 0.05), first)
        names = [name for group in groups for name in group["names"]]
        frozen = {n for stage in anatomy.stages[:first] for n in stage.parameters}
        assert sorted(names) == sorted(n for n, _ in net.named_parameters() if n not in frozen)
        own = dict(net.named_parameters())
        for group in groups:
            assert all(own[n] is p for n, p in zip(group["names"], group["params"], strict=True))
            assert group["scale"] == (10.0 if group["stage"] == count else 0.5 ** (count - 1 - group["stage"]))
            assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
        assert {g["stage"] for g in groups} == set(range(first, count + 1))


def test_a_step_moves_what_trains_and_nothing_else(network):
    net, anatomy = network
    freeze_before(net, anatomy, 2)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    groups = parameter_groups(net, anatomy, LrScaling(0.7, 1.0, 0.05), 2)
    optimiser = torch.optim.AdamW([{**g, "lr": 1e-3 * g["scale"]} for g in groups])
    torch.nn.functional.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimiser.step()
    frozen = {m for stage in anatomy.stages[:2] for m in stage.modules}
    for name, tensor in net.state_dict().items():
        assert torch.equal(before[name], tensor) == (name.rpartition(".")[0] in frozen), name
