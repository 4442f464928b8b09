"""Weights files: what is read, what fits, what is refused, and that nothing in one is executed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors

from unfreeze.core.errors import BackboneError
from unfreeze.models.architectures import build
from unfreeze.models.checkpoints import compare_with_model, load, read_tensors, translate_keys

NAME = "torchvision/squeezenet1_1"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return build(NAME, 12).eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def saved(path, value):
    torch.save(value, path)
    return path


def state(network, change=None):
    tensors = {name: t.clone() for name, t in network.state_dict().items()}
    return tensors if change is None else change(tensors)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {f"module.{k}": v for k, v in t.items()}},
        lambda t: {f"_orig_mod.module.{k}": v for k, v in t.items()},
        lambda t: {"state_dict": {f"model.{k}": v for k, v in t.items()}, "hyper_parameters": {"lr": 0.1}},
        lambda t: {**{f"module.{k}": v for k, v in t.items()}, "n_averaged": torch.tensor(7)},
        lambda t: {"state_dict": {}, "model_ema": t},
    ],
    ids=["plain", "nested", "parallel", "compiled", "lightning", "averaged", "ema"],
)
def test_however_it_was_saved_the_outputs_are_bitwise_equal(tmp_path, network, image, wrap):
    loaded, fit = load(saved(tmp_path / "w.pth", wrap(state(network))), NAME, 0, 0, False)
    assert fit.whole
    assert fit.classes == 12
    assert not fit.untrained
    assert torch.equal(loaded.eval()(image), network(image))


def test_safetensors_are_read(tmp_path, network, image):
    safetensors.save_file(state(network), tmp_path / "w.safetensors")
    loaded, _ = load(tmp_path / "w.safetensors", NAME, 0, 0, False)
    assert torch.equal(loaded.eval()(image), network(image))


def test_another_number_of_classes_gives_a_fresh_classifier_and_says_so(tmp_path, network):
    path = saved(tmp_path / "w.pth", state(network))
    torch.manual_seed(1)
    one, fit = load(path, NAME, 5, 0, False)
    torch.manual_seed(1)
    same, _ = load(path, NAME, 5, 0, False)
    torch.manual_seed(2)
    other, _ = load(path, NAME, 5, 0, False)
    assert fit.untrained == ("classifier.1.weight", "classifier.1.bias")
    assert "the file has 12 classes" in str(fit)
    assert torch.equal(one.features[0].weight, network.features[0].weight)
    assert one.classifier[1].weight.shape[0] == 5
    assert torch.equal(one.classifier[1].weight, same.classifier[1].weight)
    assert not torch.equal(one.classifier[1].weight, other.classifier[1].weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "features.3.squeeze.bias"}, "missing: features.3.squeeze.bias"),
        (lambda t: {**t, "features.0.weight": t["features.0.weight"][:, :1]}, r"features.0.weight \(64x1x3x3 for 64x3"),
        (lambda t: {**t, "features.13.squeeze.weight": torch.zeros(3)}, "features.13 .more blocks"),
        (lambda t: {**t, "features.0.bias": t["features.0.bias"] * float("nan")}, "not finite numbers"),
    ],
    ids=["missing", "shape", "deeper", "nan"],
)
def test_a_trunk_that_does_not_fit_is_refused_by_name(tmp_path, network, change, said):
    with pytest.raises(BackboneError, match=said):
        load(saved(tmp_path / "w.pth", state(network, change)), NAME, 0, 0, False)


def test_what_is_not_used_is_said(tmp_path, network):
    fit = load(saved(tmp_path / "w.pth", {**state(network), "text.proj": torch.zeros(2)}), NAME, 0, 0, False)[1]
    assert fit.unexpected == ("text.proj",)
    assert "not used: text.proj" in str(fit)


def test_a_hostile_pickle_is_not_executed(tmp_path, network):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    for value in (Evil(), {**state(network), "x": Evil()}, {"state_dict": {"x": Evil()}}):
        for zipped in (True, False):
            torch.save(value, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
            with pytest.raises(BackboneError, match="objects other than tensors"):
                read_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def test_files_that_are_no_weights_say_what_they_are(tmp_path, network):
    safetensors.save_file(state(network), tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    cut = saved(tmp_path / "cut.pth", state(network))
    cut.write_bytes(cut.read_bytes()[:5000])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "text.safetensors").write_text("<html>not found</html>")
    (tmp_path / "folder.pth").mkdir()
    saved(tmp_path / "network.pth", network)
    saved(tmp_path / "list.pth", [1, 2])
    saved(tmp_path / "none.pth", {"epoch": 3})
    for name, said in (
        ("cut.safetensors", "not a complete safetensors"),
        ("cut.pth", "or damaged"),
        ("empty.pth", "is empty"),
        ("text.pth", "or damaged"),
        ("text.safetensors", "not a complete safetensors"),
        ("folder.pth", "is a folder"),
        ("absent.pth", "no such weights file"),
        ("network.pth", "objects other than tensors .torchvision"),
        ("list.pth", "holds a list"),
        ("none.pth", r"no tensors by name in it \(it holds epoch"),
    ):
        with pytest.raises(BackboneError, match=said) as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_a_small_file_does_not_become_a_large_one(tmp_path):
    """Compressed entries, and a tensor that repeats one number a billion times."""
    path = saved(tmp_path / "w.pth", {"w": torch.zeros(1_000_000)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(BackboneError, match="archive entries are larger than the file"):
        read_tensors(tmp_path / "bomb.pth")
    with pytest.raises(BackboneError, match="tensors are larger than the file"):
        read_tensors(saved(tmp_path / "wide.pth", {"w": torch.zeros(1).expand(1_000_000_000)}))


def test_a_library_translates_its_original_files(tmp_path):
    """DenseNet's names of 2017, and a ViT's position embedding for photos of another size."""
    net = build("torchvision/densenet121", 3, meta=True)
    now = {n: t for n, t in net.state_dict().items() if "num_batches" not in n}  # which files of that time have not
    old = {n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for n, t in now.items()}
    assert set(old) != set(now)
    assert set(translate_keys("torchvision/densenet121", net, old)) == set(now)
    small = build("timm/test_vit", 10)
    path = saved(tmp_path / "vit.pth", small.state_dict())
    large, fit = load(path, "timm/test_vit", 0, 224, False)
    assert fit.whole
    assert large.pos_embed.shape[1] > small.pos_embed.shape[1]
    assert torch.equal(large.blocks[0].attn.qkv.weight, small.blocks[0].attn.qkv.weight)


def test_auxiliary_heads_may_be_left_out_or_added(tmp_path):
    name = "torchvision/googlenet"
    with_heads = saved(tmp_path / "aux.pth", build(name, 4, auxiliary=True).state_dict())
    network, fit = load(with_heads, name, 0, 0, False)
    assert fit.whole
    assert not fit.unexpected
    assert network.transform_input  # torchvision's were trained on pixels in -1..1
    fit = load(saved(tmp_path / "bare.pth", network.state_dict()), name, 0, 0, True)[1]
    assert fit.whole
    assert {n.partition(".")[0] for n in fit.untrained} == {"aux1", "aux2"}


def test_holding_a_file_against_a_network_lists_all(tmp_path, network):
    path = saved(tmp_path / "w.pth", {k: v for k, v in state(network).items() if not k.startswith("features.0")})
    fit = compare_with_model(path, NAME, 64)
    assert fit.missing == ("features.0.weight", "features.0.bias")
    assert not fit.whole
