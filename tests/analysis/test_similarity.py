"""Like the pretraining or not: real parts on drawn photos; the distance against BatchNorm's own statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import unfreeze as uf
from photosets import class_folders
from unfreeze.analysis.batchnorm_distance import (
    gaussian_divergence,
    layer_stats,
    mahalanobis_distance,
    noise,
    pretraining_distance,
)
from unfreeze.analysis.pretraining_similarity import NEAR, Similarity, similarity
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.models.model_info import Preprocessing
from unfreeze.models.registry import find_backbone
from unfreeze.training.crossval import prepare

LITE = "tf_efficientnet_lite0"
RECIPE = Recipe().replace(
    **{
        "image.size": 64,
        "engine": "torch",
        "folds.n_splits": 3,
        "probe.stages": "last:2",
        "probe.pool_size": 1,
        "probe.Cs": [1.0, 30.0],
    }
)
SEEN = Preprocessing(32, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def small_network(seed=0):
    """Two convolutions with BatchNorm, in eval mode."""
    from torch import nn

    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
    ).eval()


def pictures(n=40, low=60, high=200, seed=0, size=32):
    draw = np.random.default_rng(seed)
    return draw.integers(low, high, (n, size, size, 3)).astype(np.uint8)


def test_distance_is_nothing_on_the_photos_that_the_statistics_are_of():
    network, pixels = small_network(), pictures()
    network.train()
    for layer in network:
        if hasattr(layer, "momentum"):
            layer.momentum = None  # a plain mean over batches
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        network(x)
        network[4].reset_running_stats()
        network.eval()
        network[4].train()  # its statistics behind a first layer that is as it will be
        network(x)
    before = {name: value.clone() for name, value in network.eval().state_dict().items()}
    layers = layer_stats(network, pixels, SEEN)
    assert layers is not None and len(layers.known) == 2
    assert layers.divergence() == pytest.approx(np.zeros(2), abs=1e-5)
    assert layers.shift() == pytest.approx(0, abs=1e-3)
    darker = pictures(low=0, high=60)
    other = layer_stats(network, darker, SEEN)
    assert other is not None and (other.divergence() > 0.5).all()
    found = pretraining_distance(network, pixels, SEEN, 0)
    assert found is not None and found.value < 0.01 < found.noise and len(found.draws) > 20
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[1]._forward_hooks


def test_networks_without_batchnorm_have_no_distance():
    assert pretraining_distance(torch.nn.Conv2d(3, 4, 3), pictures(), SEEN, 0) is None


def test_noise_has_the_spectrum_of_photos():
    found = noise(64, 4, 0)
    assert found.shape == (4, 64, 64, 3) and found.dtype == np.uint8
    assert (found == noise(64, 4, 0)).all()
    power = (np.abs(np.fft.fft2(found.mean(3) - found.mean((1, 2, 3))[:, None, None])) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    inside = (frequency > 0.03) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return uf.read(class_folders(tmp_path_factory.mktemp("photos"), groups=8, each=2))


def measured(photos, tmp_path, labels=None, **changes) -> Similarity:
    work = prepare(photos, RECIPE.replace(**changes), tmp_path / "work", Reporter(), {})
    own = work.labels if labels is None else labels(work.labels)
    return similarity(work.photos, work.looks, own, work.units, work.folds, work.recipe, tmp_path / "scratch")


@pytest.fixture(scope="module")
def found(photos, tmp_path_factory):
    return measured(photos, tmp_path_factory.mktemp("work"))


def test_all_measures_of_drawn_photos(found):
    assert found.photos == 48 and 0 <= found.low <= found.position <= found.high <= 1
    assert found.high - found.low >= 0.1
    for name in ("pretrained", "untrained"):  # colours: anything tells them
        one = found.measure(f"separability_{name}")
        assert 0.7 < one.low <= one.value <= one.high <= 1
    distance, far = found.measure("pretraining_distance"), found.measure("noise_distance")
    assert distance.value > NEAR and distance.vote == found.position
    assert distance.low <= distance.high and far.value > NEAR
    assert found.measure("owed_to_pretraining").value < 0.3  # pretraining adds nothing to colors
    assert found.position < 0.5 and "EfficientNet-Lite0" in found.sentence
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["measures"]


def test_labels_at_random_are_predicted_by_nothing(photos, found, tmp_path):
    before = found
    found = measured(photos, tmp_path, labels=lambda own: np.random.default_rng(3).permutation(own))
    for name in ("pretrained", "untrained"):
        one = found.measure(f"separability_{name}")
        assert one.low <= 0.05 and one.value < 0.25
    # The distance knows no labels, and is the same again.
    assert found.measure("pretraining_distance") == before.measure("pretraining_distance")
    assert found.measure("owed_to_pretraining").value is None or found.measure("owed_to_pretraining").value < 0.5


def test_an_untrained_network_and_one_without_batchnorm(photos, tmp_path):
    found = measured(photos, tmp_path, weights="none")
    distance = found.measure("pretraining_distance")
    assert distance.value is None and "untrained" in distance.why
    assert found.high - found.low >= 0.35 and "rough" in found.sentence


def test_real_looking_pictures_lie_nearer_than_noise_for_the_embedded_network():
    backbone = find_backbone(LITE)
    p = backbone.preprocessing.resolved(64, 1.0)
    found = pretraining_distance(backbone.build(size=64), noise(64, 12, 7), p, 0)
    assert found is not None and found.value == pytest.approx(found.noise, rel=0.15)


def test_divergence_of_normal_distributions():
    mean, variance = np.array([0.3, -1.0, 2.0]), np.array([0.5, 2.0, 1.0])
    other_mean, other_variance = np.array([0.0, -1.0, 1.0]), np.array([1.0, 2.0, 4.0])
    draw = np.random.default_rng(0)
    x = mean + np.sqrt(variance) * draw.normal(size=(400_000, 3))

    def log_density(m, v):
        return -0.5 * (np.log(2 * np.pi * v) + (x - m) ** 2 / v)

    wanted = (log_density(mean, variance) - log_density(other_mean, other_variance)).mean(0)
    found = gaussian_divergence(mean, variance, other_mean, other_variance)
    assert found == pytest.approx(wanted, abs=0.01)
    assert found[1] == 0
    assert np.isfinite(gaussian_divergence(mean, np.zeros(3), other_mean, np.zeros(3))).all()


def test_mahalanobis_distance():
    other = np.array([0.0, 0.0])
    assert mahalanobis_distance(np.array([2.0, 3.0]), other, np.array([4.0, 9.0])) == pytest.approx(1)
