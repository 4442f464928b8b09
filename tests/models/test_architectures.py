"""Names: what a full, bare, tagged, ambiguous, unknown or hostile one becomes."""

from __future__ import annotations

import pytest
import torch

from unfreeze.core.errors import BackboneError
from unfreeze.models.architectures import architectures, build, load_tensors, resolve


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("torchvision/densenet161", "torchvision/densenet161"),
        ("timm/densenet161", "timm/densenet161"),
        ("resnet10t", "timm/resnet10t"),
        ("swin_t", "torchvision/swin_t"),
        ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("resnet50.a1_in1k", "timm/resnet50.a1_in1k"),  # only timm has tags
        ("tf_efficientnet_lite0", "timm/tf_efficientnet_lite0"),
    ],
)
def test_a_name_becomes_the_full_name(name, full):
    assert resolve(name) == full
    assert resolve(full) == full


@pytest.mark.parametrize("name", ["resnet50", "vgg19", "inception_v3"])
def test_a_name_in_both_libraries_lists_both(name):
    with pytest.raises(BackboneError, match=rf"choose between timm/{name} and torchvision/{name}\.$"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("convnext_tinny", "convnext_tiny"),
        ("ResNet50d", "resnet50d"),
        ("timm/densnet161", "timm/densenet161"),
        ("torchvision/vgg19bn", "torchvision/vgg19_bn"),
        ("torchvision/resnet50.a1_in1k", "torchvision/resnet50"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, suggestion):
    with pytest.raises(BackboneError, match=rf"no backbone '{name}'\. Did you mean '{suggestion}'\?"):
        resolve(name)


@pytest.mark.parametrize("name", ["timm/resnet50.nix", "timm/resnet50.", "resnet50.a1_in1kk"])
def test_an_unknown_tag_lists_those_there_are(name):
    with pytest.raises(BackboneError, match=r"timm/resnet50: no weights are tagged '.*'; its tags are a1_in1k, "):
        resolve(name)


def test_a_tag_of_a_network_without_weights():
    with pytest.raises(BackboneError, match=r"no weights are tagged 'x'; it has no pretrained weights"):
        resolve(f"timm/{_without_weights()}.x")


def _without_weights():
    import timm

    trained = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    return next(name for name in architectures("timm") if name not in trained)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "timm/",
        ".",
        "timm/..",
        "../../secret",
        "timm/../resnet50",
        "hf-hub:timm/resnet50",
        "timm/hf-hub:resnet50",
        "resnet*",
        "timm/resnet50.a1_in1k/x",
        "timm/resnet50.\n\x1b[31m",
        "a\nb\x00\x1b[31m",
        "x" * 100_000,
        "timm/resnet50." + "x" * 100_000,
        "__class__",
    ],
    ids=lambda n: repr(n[:24]),
)
def test_a_hostile_name_is_refused_in_one_short_printable_line(name):
    with pytest.raises(BackboneError) as caught:
        resolve(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_network_on_meta_takes_no_memory_and_has_the_same_shapes():
    shapes, real = build("timm/resnet10t", 5, meta=True), build("timm/resnet10t", 5)
    assert all(p.is_meta for p in shapes.parameters())
    assert {n: p.shape for n, p in shapes.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_a_size_reaches_networks_that_are_built_for_one():
    with torch.inference_mode():
        for full in ("timm/test_vit", "torchvision/vit_b_32", "timm/levit_128s"):
            network = build(full, 4, size=96, meta=True).eval()
            device = next(network.parameters()).device
            assert network(torch.zeros(1, 3, 96, 96, device=device)).shape == (1, 4)


@pytest.mark.parametrize(
    ("full", "size"), [("torchvision/maxvit_t", 100), ("torchvision/vit_b_32", 70), ("timm/nest_tiny", 100)]
)
def test_a_size_it_cannot_be_built_for_is_one_line(full, size):
    with pytest.raises(BackboneError, match=rf"{full}: .* {size}\b") as caught:
        build(full, 4, size=size, meta=True)
    assert "\n" not in str(caught.value)


def test_tensors_without_a_version_are_loaded():
    """MNASNet refuses a state dict that torch did not write itself."""
    one, other = (build("torchvision/mnasnet0_5", 3) for _ in range(2))
    tensors = dict(one.state_dict())
    with pytest.raises(ValueError, match="version"):
        other.load_state_dict(tensors)
    load_tensors(other, tensors)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_tensors(other, {k: v for k, v in tensors.items() if "classifier" not in k})
