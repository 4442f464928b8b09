"""Looking into a network: counts, shapes, what is frozen, parameters beside buffers."""

from __future__ import annotations

import pytest
import torch

import unfreeze as uf
from unfreeze.core.errors import BackboneError, RecipeError
from unfreeze.models.architectures import build


def test_a_tree_is_the_networks_own():
    found = uf.inspect("torchvision/resnet18", unfreeze="last:1")
    network = build("torchvision/resnet18")
    rows = {row.path: row for row in found.tree}
    assert list(rows) == [name for name, _ in network.named_modules()]
    assert found.parameters == sum(p.numel() for p in network.parameters()) == 11_689_512
    assert rows["layer2"].output == (128, 28, 28)
    assert rows["layer2"].parameters == sum(p.numel() for p in network.layer2.parameters())
    assert found.gmacs == pytest.approx(1.814, abs=0.001)  # torchvision's own count for these weights
    assert rows["conv1"].gmacs == pytest.approx(64 * 3 * 49 * 112 * 112 / 1e9)
    assert found.stages == ("stem", "layer1", "layer2", "layer3", "layer4")
    assert found.trained_stages == ("layer4",)
    assert rows["layer4"].frozen == rows["fc"].frozen == 0
    assert rows["layer3"].frozen == rows["layer3"].parameters
    assert rows["fc"].stage == "classifier"
    assert found.classifier == ("fc.weight", "fc.bias")


def test_parameters_are_distinguished_from_buffers():
    found = uf.inspect("torchvision/resnet18", size=64)
    network = build("torchvision/resnet18")
    assert list(found.entries) == list(network.state_dict())
    assert {n for n, kind in found.entries.items() if kind == "buffer"} == {n for n, _ in network.named_buffers()}
    assert found.buffers == sum(b.numel() for b in network.buffers())
    assert found.trained == found.parameters


def test_auxiliary_heads_stand_apart():
    found = uf.inspect("torchvision/inception_v3", unfreeze="head")
    assert found.auxiliary == {"AuxLogits": 0.4}
    assert found.parameters == 27_161_264 - found.auxiliary_parameters
    assert {row.stage for row in found.tree if row.path.startswith("AuxLogits")} == {"auxiliary"}


def test_parameters_that_are_a_modules_input_are_no_obstacle():
    """SigLIP's pooling asks a learned query: the counter of multiply-adds must not stumble over it."""
    network = build("timm/vit_base_patch16_siglip_224", meta=True)
    from unfreeze.models.inspect import _run

    shapes, macs = _run(network, 224)
    assert shapes["attn_pool"] == (768,)
    assert macs[""] > 10


def test_a_weights_file_is_held_against_it(tmp_path):
    tensors = build("timm/test_resnet", 3).state_dict()
    tensors.pop("layer1.0.conv1.weight")
    torch.save(tensors, tmp_path / "w.pth")
    found = uf.inspect("test_resnet", weights=tmp_path / "w.pth")
    assert found.fit.missing == ("layer1.0.conv1.weight",)
    assert found.classes == found.fit.classes == 3


def test_wrong_wishes_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="stages are stem, layer1"):
        uf.inspect("torchvision/resnet18", unfreeze="layer9-")
    with pytest.raises(BackboneError, match="no backbone"):
        uf.inspect("resnet99")
