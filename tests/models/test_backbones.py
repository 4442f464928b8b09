"""BACKBONES: names, preprocessing, and what an unknown one says."""

from __future__ import annotations

import pytest

from unfreeze.core.errors import BackboneError
from unfreeze.models.model_info import Preprocessing
from unfreeze.models.registry import BACKBONES, find_backbone, register


def test_a_second_backbone_of_a_name_is_a_mistake():
    with pytest.raises(ValueError, match="registered twice"):
        register(BACKBONES["timm/tf_efficientnet_lite0"])


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(BackboneError, match=r"no backbone .*Did you mean '(timm/)?tf_efficientnet_lite1'"):
        find_backbone("tf_eficientnet_lite1")
    assert find_backbone("tf_efficientnet_lite2") is BACKBONES["timm/tf_efficientnet_lite2"]


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda b: b.name)
def test_preprocessing_is_what_timm_says_it_was_trained_with(backbone):
    """An independent source of size, crop, mean and deviation."""
    import timm

    config = timm.get_pretrained_cfg(backbone.name.removeprefix("timm/"))
    assert config.input_size == (3, backbone.preprocessing.size, backbone.preprocessing.size)
    assert config.crop_pct == pytest.approx(backbone.preprocessing.crop, abs=0.002)
    assert (config.mean, config.std) == (backbone.preprocessing.mean, backbone.preprocessing.std)
    assert config.interpolation == "bicubic"


def test_zero_keeps_what_the_backbone_was_trained_with():
    own = Preprocessing(224, 0.875, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert own.resolved(0, 0) == own
    assert own.resolved(192, 0) == Preprocessing(192, 0.875, own.mean, own.std)
    assert own.resolved(0, 1.0) == Preprocessing(224, 1.0, own.mean, own.std)


def test_a_report_states_licence_and_source():
    about = find_backbone("tf_efficientnet_lite0").describe()
    assert about["licence"] == "Apache-2.0"
    assert about["parameters"] == 4_652_008
    assert about["input_size"] == 224


@pytest.mark.parametrize("name", list(BACKBONES))
def test_stages_and_channels_are_the_networks(name):
    """The registry tells stages and channels without loading a network; they must be those of the network."""
    from unfreeze.models.model_info import anatomy_of

    backbone = BACKBONES[name]
    found = anatomy_of(name, backbone.preprocessing.size).stages
    assert [(s.name, s.channels) for s in found] == [(s.name, s.channels) for s in backbone.stages]


def test_both_libraries_share_one_name_space():
    with pytest.raises(BackboneError, match="choose between timm/resnet18 and torchvision/resnet18"):
        find_backbone("resnet18", "none")
    with pytest.raises(BackboneError, match="name spaces are timm/ and torchvision/"):
        find_backbone("keras/resnet18", "none")
    assert find_backbone("torchvision/resnet18", "none").name == "torchvision/resnet18"
