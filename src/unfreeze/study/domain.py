"""How far photos lie from what a network was pretrained on, by its own BatchNorm statistics; no labels are used.

A BatchNorm layer keeps the mean and variance of each of its channels over the pretraining photos: the one record of
these photos that travels with the weights (so used by AdaBN, Li et al. 2016, arXiv 1603.04779, and DeepInversion, Yin
et al. 2020, arXiv 1912.08795). The same channels on the user's photos lie near them or far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unfreeze.judge.transfer import gaussian_divergence, mahalanobis_distance
from unfreeze.model.cards import Preprocessing

F64 = NDArray[np.float64]
Pixels = NDArray[np.uint8]

_BATCH = 16
_RESAMPLES = 60
# Pictures with the spectrum of photos and nothing in them: what is farthest from any photo, for the scale.
NOISE = 16


@dataclass(frozen=True)
class Layers:
    """Statistics of the channels that go into each BatchNorm layer, over some photos, and those of the pretraining.

    means, squares: for each layer float64 (n, channels), a photo's mean and mean square over its pixels. known: for
    each layer the running mean and variance, (channels,).
    """

    means: tuple[F64, ...]
    squares: tuple[F64, ...]
    known: tuple[tuple[F64, F64], ...]

    def divergence(self, weight: F64 | None = None) -> F64:
        """Median over channels of the divergence from pretraining, each layer, float64 (layers,). weight: of photos."""
        return np.array(
            [np.median(gaussian_divergence(*self._moments(i, weight), *self.known[i])) for i in range(len(self.known))]
        )

    def shift(self) -> float:
        """Distance of the channels' means in deviations of the pretraining, averaged over layers."""
        return float(np.mean([mahalanobis_distance(self._moments(i)[0], *own) for i, own in enumerate(self.known)]))

    def _moments(self, layer: int, weight: F64 | None = None) -> tuple[F64, F64]:
        w = np.full(len(self.means[layer]), 1.0) if weight is None else weight
        w = w / w.sum()
        mean = w @ self.means[layer]
        return mean, np.maximum(w @ self.squares[layer] - mean**2, 0)


def read_layers(network: nn.Module, pixels: Pixels, preprocessing: Preprocessing) -> Layers | None:
    """The layers' statistics over uint8 (n, S, S, 3); None for a network without BatchNorm."""
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
    return Layers(
        tuple(np.concatenate([mean for mean, _ in seen[layer]]) for layer in used),
        tuple(np.concatenate([square for _, square in seen[layer]]) for layer in used),
        tuple((_array(layer.running_mean), _array(layer.running_var)) for layer in used),
    )


def _array(values: Any) -> F64:
    return np.asarray(values.detach().double().cpu().numpy(), np.float64)


@dataclass(frozen=True)
class Distance:
    """value: mean over layers of the median divergence, nats. noise: the same of pictures with nothing in them.

    draws: (resamples,), value under resampling of photos and layers. shift: see `Layers.shift`. photos: how many.
    """

    value: float
    noise: float
    draws: F64
    shift: float
    photos: int


def pretraining_distance(
    network: nn.Module, pixels: Pixels, preprocessing: Preprocessing, seed: int
) -> Distance | None:
    """How far the photos, uint8 (n, S, S, 3), lie from the pretraining; None for a network without BatchNorm."""
    own = read_layers(network, pixels, preprocessing)
    if own is None or not own.known:
        return None
    empty = read_layers(network, noise(preprocessing.size, NOISE, 0), preprocessing)
    assert empty is not None
    draws = np.random.default_rng(seed)
    n, layers = len(pixels), len(own.known)
    found = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        by_layer = own.divergence(np.bincount(draws.integers(0, n, n), minlength=n).astype(np.float64))
        found[i] = by_layer[draws.integers(0, layers, layers)].mean()
    return Distance(float(own.divergence().mean()), float(empty.divergence().mean()), found, own.shift(), n)


def noise(size: int, count: int, seed: int) -> Pixels:
    """Pictures of random colour, power falling as 1/f^2 as that of photos (Field 1987): uint8 (count, S, S, 3)."""
    draws = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    field = np.fft.fft2(draws.normal(size=(count, 3, size, size))) / frequency
    image = np.fft.ifft2(field).real
    image *= 50 / image.std((2, 3), keepdims=True)
    return np.asarray(np.clip(image + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
