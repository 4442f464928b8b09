"""Distance of images from the pretraining data of a network, from its BatchNorm statistics. No labels are used.

The running mean and variance of a BatchNorm layer summarize the channel activations on the pretraining images; they are
the only record of these images that is distributed with the weights. `pretraining_distance` compares them with the
statistics of the same channels on the user's images.

References:
    Li et al. 2016, "Revisiting Batch Normalization For Practical Domain Adaptation" (AdaBN), arXiv:1603.04779.
    Yin et al. 2020, "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", arXiv:1912.08795.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unfreeze.core.arrays import F64
from unfreeze.models.model_info import Preprocessing

Pixels = NDArray[np.uint8]

_BATCH = 16
_RESAMPLES = 60
# Number of content-free images with the power spectrum of natural images; their distance marks similarity 0.
NOISE = 16


@dataclass(frozen=True)
class LayerStats:
    """Per-image channel statistics of the BatchNorm inputs, with the running statistics from pretraining.

    Attributes:
        means: For each layer float64 (n, channels), mean over the spatial positions of each image.
        squares: For each layer float64 (n, channels), mean square over the spatial positions of each image.
        known: For each layer the running mean and variance from pretraining, float64 (channels,) each.
    """

    means: tuple[F64, ...]
    squares: tuple[F64, ...]
    known: tuple[tuple[F64, F64], ...]

    def divergence(self, weight: F64 | None = None) -> F64:
        """Median over channels of the Kullback-Leibler divergence from the pretraining statistics, per layer.

        Args:
            weight: float64 (n,), weight of each image; uniform by default.

        Returns:
            float64 (layers,), in nats.
        """
        return np.array(
            [np.median(gaussian_divergence(*self._moments(i, weight), *self.known[i])) for i in range(len(self.known))]
        )

    def shift(self) -> float:
        """Distance of channel means in pretraining standard deviations (RMS over channels), averaged over layers."""
        return float(np.mean([mahalanobis_distance(self._moments(i)[0], *own) for i, own in enumerate(self.known)]))

    def _moments(self, layer: int, weight: F64 | None = None) -> tuple[F64, F64]:
        w = np.full(len(self.means[layer]), 1.0) if weight is None else weight
        w = w / w.sum()
        mean = w @ self.means[layer]
        return mean, np.maximum(w @ self.squares[layer] - mean**2, 0)


def layer_stats(network: nn.Module, pixels: Pixels, preprocessing: Preprocessing) -> LayerStats | None:
    """Collect the BatchNorm input statistics of a network over images.

    Args:
        network: Network with pretrained weights. It is switched to evaluation mode and moved to the GPU if there is
            one.
        pixels: uint8 (n, S, S, 3).
        preprocessing: Mean and standard deviation for the normalization of the pixels.

    Returns:
        The statistics of the layers that see each image exactly once per forward pass, or None for a network without
        BatchNorm or an empty batch.
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None
    ]
    if not layers or not len(pixels):
        return None
    seen: dict[nn.Module, list[tuple[F64, F64]]] = {layer: [] for layer in layers}

    def keep(module: nn.Module, inputs: Any, _output: Any) -> None:
        spread, mean = torch.var_mean(inputs[0].float(), (2, 3), correction=0)
        seen[module].append((mean.double().cpu().numpy(), (spread + mean**2).double().cpu().numpy()))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    ready = network.eval().to(device=device, memory_format=torch.channels_last)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (preprocessing.mean, preprocessing.std))
    try:
        with torch.inference_mode():
            for start in range(0, len(pixels), _BATCH):
                batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _BATCH])).to(device)
                ready((batch.permute(0, 3, 1, 2).float() - mean) / std)
    finally:
        for hook in hooks:
            hook.remove()
    used = [layer for layer in layers if sum(len(mean) for mean, _ in seen[layer]) == len(pixels)]
    return LayerStats(
        tuple(np.concatenate([mean for mean, _ in seen[layer]]) for layer in used),
        tuple(np.concatenate([square for _, square in seen[layer]]) for layer in used),
        tuple((_array(layer.running_mean), _array(layer.running_var)) for layer in used),
    )


def _array(values: Any) -> F64:
    return np.asarray(values.detach().double().cpu().numpy(), np.float64)


@dataclass(frozen=True)
class Distance:
    """Distance of a set of images from the pretraining data.

    Attributes:
        value: Mean over layers of the median channel divergence, in nats.
        noise: The same distance for content-free noise images.
        draws: float64 (resamples,), `value` under resampling of images and layers.
        shift: See `LayerStats.shift`.
        photos: Number of images.
    """

    value: float
    noise: float
    draws: F64
    shift: float
    photos: int


def pretraining_distance(
    network: nn.Module, pixels: Pixels, preprocessing: Preprocessing, seed: int
) -> Distance | None:
    """Estimate the distance of images from the pretraining data, with bootstrap draws over images and layers.

    Args:
        network: Network with pretrained weights.
        pixels: uint8 (n, S, S, 3).
        preprocessing: Preprocessing of the network.
        seed: Seed of the bootstrap.

    Returns:
        The distance, or None for a network without BatchNorm.
    """
    own = layer_stats(network, pixels, preprocessing)
    if own is None or not own.known:
        return None
    empty = layer_stats(network, noise(preprocessing.size, NOISE, 0), preprocessing)
    assert empty is not None
    draws = np.random.default_rng(seed)
    n, layers = len(pixels), len(own.known)
    found = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        by_layer = own.divergence(np.bincount(draws.integers(0, n, n), minlength=n).astype(np.float64))
        found[i] = by_layer[draws.integers(0, layers, layers)].mean()
    return Distance(float(own.divergence().mean()), float(empty.divergence().mean()), found, own.shift(), n)


def noise(size: int, count: int, seed: int) -> Pixels:
    """Random color images whose power spectrum falls as 1/f^2, as that of natural images (Field 1987).

    Returns:
        uint8 (count, size, size, 3).
    """
    draws = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    field = np.fft.fft2(draws.normal(size=(count, 3, size, size))) / frequency
    image = np.fft.ifft2(field).real
    image *= 50 / image.std((2, 3), keepdims=True)
    return np.asarray(np.clip(image + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def gaussian_divergence(mean: F64, variance: F64, other_mean: F64, other_variance: F64) -> F64:
    """Kullback-Leibler divergence of univariate normal distributions by channel, in nats: float64 (channels,).

    KL(N(mean, variance) || N(other_mean, other_variance)) responds to shifts and to changes of scale, is independent of
    units, and is 0 only for equal distributions. Variances are at least 1e-8 times the other's.

    Args:
        mean: float64 (channels,).
        variance: float64 (channels,).
        other_mean: float64 (channels,).
        other_variance: float64 (channels,).
    """
    own = np.maximum(other_variance, 1e-12)
    ratio = np.maximum(variance / own, 1e-8)
    return np.asarray(0.5 * (ratio + (mean - other_mean) ** 2 / own - 1 - np.log(ratio)))


def mahalanobis_distance(mean: F64, other_mean: F64, other_variance: F64) -> float:
    """Root mean square over channels of the difference of means, in units of the other's standard deviations.

    All arguments are float64 (channels,).
    """
    return float(np.sqrt(((mean - other_mean) ** 2 / np.maximum(other_variance, 1e-12)).mean()))
