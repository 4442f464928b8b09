"""Cards: what the library says of a network, kept so that a later run needs no torch to know it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from unfreeze.core.errors import BackboneError
from unfreeze.models.architectures import architectures
from unfreeze.models.model_info import Preprocessing, StageInfo, _trained_with, anatomy_of, model_info
from unfreeze.models.registry import BACKBONES


def test_a_card_of_torchvision(fresh_cache):
    """Independent source: torchvision's documentation of ResNet18_Weights.IMAGENET1K_V1."""
    made = model_info("torchvision/resnet18")
    assert made.parameters == 11_689_512
    assert made.gmacs == pytest.approx(1.814, abs=0.01)
    assert made.preprocessing == Preprocessing(224, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
    assert made.stages == tuple(
        StageInfo(n, c) for n, c in [("stem", 64), ("layer1", 64), ("layer2", 128), ("layer3", 256), ("layer4", 512)]
    )


def test_a_tag_has_its_own_preprocessing(fresh_cache):
    one, other = model_info("timm/resnet50.a1_in1k"), model_info("timm/resnet50.tv_in1k")
    assert (one.preprocessing.crop, other.preprocessing.crop) == (0.95, 0.875)
    assert (one.name, other.name) == ("timm/resnet50.a1_in1k", "timm/resnet50.tv_in1k")
    assert one.stages == other.stages


def test_class_tokens_and_flat_stages_are_reported(fresh_cache):
    made = model_info("timm/test_vit")
    assert {s.classes for s in made.stages} == {1}
    assert made.stages[-1].width(3) == 64 * (9 + 1)
    assert model_info("torchvision/mobilenet_v3_small").stages[-1] == StageInfo("classifier.0", 1024, flat=True)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_the_short_lists_cards_are_those_that_would_be_made(fresh_cache, name):
    """They are written out so that no torch is needed; each must be what the network itself says."""
    made, written = model_info(name), BACKBONES[name].card
    assert made.stages == written.stages
    assert made.parameters == written.parameters
    assert (made.preprocessing.size, made.preprocessing.mean, made.preprocessing.std) == (
        written.preprocessing.size,
        written.preprocessing.mean,
        written.preprocessing.std,
    )
    assert made.preprocessing.crop == pytest.approx(written.preprocessing.crop, abs=0.002)


def test_every_network_of_both_libraries_says_what_it_was_trained_with():
    for library in ("timm", "torchvision"):
        for name in architectures(library):
            told, licence = _trained_with(f"{library}/{name}")
            assert told.size >= 32, name
            assert 0 < told.crop <= 1, name
            assert len(told.mean) == len(told.std) == 3, name
            assert licence


def test_a_kept_card_is_read_without_torch(fresh_cache):
    made = model_info("timm/resnet10t")
    code = (
        "import sys\n"
        "from unfreeze.models.model_info import model_info\n"
        "print(model_info('timm/resnet10t'))\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(made)


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"name": "timm/resnet10t"}', "{"])
def test_a_damaged_card_is_made_again(fresh_cache, damage):
    made = model_info("timm/resnet10t")
    (file,) = (fresh_cache / "cards").iterdir()
    file.write_text(damage, "utf-8")
    assert model_info("timm/resnet10t") == made
    assert json.loads(file.read_text("utf-8"))["parameters"] == made.parameters


@pytest.mark.parametrize("name", ["timm/resnet50.nix", "resnet50", "no_such_network", "timm/coat_mini", "\x00"])
def test_a_name_that_is_none_leaves_nothing_behind(fresh_cache, name):
    with pytest.raises(BackboneError):
        model_info(name)
    assert not (fresh_cache / "cards").exists()


def test_an_anatomy_is_of_the_asked_size():
    assert [s.side for s in anatomy_of("timm/resnet10t", 128).stages] == [32, 32, 16, 8, 4]
    assert anatomy_of("timm/test_vit", 64).stages[-1].side == 4
