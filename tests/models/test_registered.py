"""Networks that the user has registered with timm: with no configuration, with parts of one, and changed on the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ownnetworks import Small, known, plain, resnet
from unfreeze.core.errors import BackboneError
from unfreeze.models.architectures import build, defined_outside, registered, resolve
from unfreeze.models.model_info import Preprocessing, anatomy_of, model_info
from unfreeze.models.registry import find_backbone, search_models
from unfreeze.models.weight_sources import origin

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("make", [resnet, plain])
@pytest.mark.parametrize(
    "stated", [{}, {"stated": {}}, {"stated": {"input_size": None, "mean": None, "std": None, "crop_pct": None}}]
)
def test_what_is_not_stated_is_taken_as_timm_takes_it(make, stated, fresh_cache):
    with known(make, **stated):
        assert defined_outside("own") and defined_outside("timm/own") and registered() == ("own",)
        made = model_info("own")
        assert made.preprocessing == Preprocessing(224, 0.875, *IMAGENET)
        assert made.name == resolve("own") == "timm/own"
        assert len(made.stages) >= 3
        assert find_backbone("own", "none").build(4)(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    with pytest.raises(BackboneError, match="no backbone 'own'"):
        model_info("own")


def test_what_is_stated_holds(fresh_cache):
    half = (0.5, 0.5, 0.5)
    stated = {"input_size": (3, 96, 96), "num_classes": 0, "mean": half, "std": half, "crop_pct": 1.0}
    with known(resnet, stated={**stated, "interpolation": "bilinear"}):
        assert model_info("own").preprocessing == Preprocessing(96, 1.0, half, half, "bilinear")
        assert [s.channels for s in anatomy_of("timm/own", 16).stages] == [64, 8, 16, 24, 32]


def test_a_network_of_one_size_has_that_size(fresh_cache):
    with known(lambda **k: Small(k["num_classes"], side=32)):
        assert model_info("own").preprocessing.size == 32
        with pytest.raises(
            BackboneError, match=r"cannot take images of 64 px; set image.size to 32 \(takes 32 px only"
        ):
            anatomy_of("timm/own", 64)


def test_a_network_that_is_registered_again_is_another_one(fresh_cache):
    with known(plain):
        before = model_info("own"), anatomy_of("timm/own", 64)
    with known(lambda **k: Small(k["num_classes"], width=16)):
        after = model_info("own"), anatomy_of("timm/own", 64)
    assert [s.channels for s in before[0].stages] == [s.channels for s in before[1].stages] == [8, 16, 24]
    assert [s.channels for s in after[0].stages] == [s.channels for s in after[1].stages] == [16, 32, 48]


def test_it_has_no_pretrained_weights_and_is_listed_while_it_is_known(fresh_cache):
    with known(plain):
        assert origin("timm/own").names == ()
        with pytest.raises(BackboneError, match="its library has no pretrained weights"):
            find_backbone("own").build()
        assert [entry.name for entry in search_models("timm/own")] == ["timm/own"]
    assert search_models("timm/own") == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda **_: Small(10), "no layer of it follows num_classes"),
        (lambda wrong: Small(10), "the function that you have registered fails .*unexpected keyword argument"),
        (lambda **k: nn.Linear(3, k["num_classes"]), "cannot be used here"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(make, said, fresh_cache):
    with known(make), pytest.raises(BackboneError, match=rf"^timm/own: .*{said}") as caught:
        model_info("own")
    assert "\n" not in str(caught.value)


def test_library_networks_are_not_the_user_s():
    build("timm/resnet10t", 3, meta=True)
    assert not defined_outside("timm/resnet10t") and not defined_outside("torchvision/resnet18")
    assert not defined_outside("nothing") and registered() == ()
