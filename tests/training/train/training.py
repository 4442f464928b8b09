"""Tiny sets and networks for the tests of training."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from unfreeze.core.recipe_schema import Train

SETTINGS = Train(epochs=4, batch_size=16, lr=0.01, warmup_fraction=0.1, weight_decay=0.01)


@dataclass(frozen=True)
class Part:
    inputs: torch.Tensor
    targets: torch.Tensor
    rows: np.ndarray


@dataclass
class Blobs:
    """Small pictures (n, 3, 8, 8) of three classes, told apart by their color."""

    count: int = 48
    seed: int = 0
    noise: float = 0.5
    pause: float = 0.0

    def __post_init__(self):
        draw = torch.Generator().manual_seed(self.seed)
        self.targets = torch.arange(self.count) % 3
        self.inputs = torch.randn(self.count, 3, 8, 8, generator=draw) * self.noise
        self.inputs += nn.functional.one_hot(self.targets, 3).float()[:, :, None, None]
        self.sizes = []

    def epoch(self, number, batch, size=0):
        import time

        self.sizes.append(size)
        order = np.random.default_rng((self.seed, number)).permutation(self.count)
        for start in range(0, self.count, batch):
            time.sleep(self.pause)
            rows = order[start : start + batch]
            yield Part(self.inputs[rows], self.targets[rows], rows)

    def plain(self, batch):
        for start in range(0, self.count, batch):
            yield Part(self.inputs[start : start + batch], self.targets[start : start + batch], np.arange(start, batch))


class Net(nn.Module):
    """A convolution and a linear layer; `norm` puts BatchNorm between them, `drop` dropout."""

    def __init__(self, norm=False, drop=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, stride=2)
            self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
            self.drop = nn.Dropout(drop)
            self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.stem(x)).relu().mean((2, 3))))


class Hungry(Net):
    """Out of memory above `most` photos at once, after `first` training calls; in training, evaluation or both."""

    def __init__(self, most=5, first=0, training=True, evaluation=False, error=None, **options):
        super().__init__(**options)
        self.most, self.first, self.calls = most, first, 0
        self.modes = {True: training, False: evaluation}
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.largest = []

    def forward(self, x):
        self.calls += self.training
        out = super().forward(x)  # so that buffers have moved and random numbers are drawn before it fails
        if self.modes[self.training] and self.calls > self.first and len(x) > self.most:
            raise self.error
        self.largest.append(len(x))
        return out


class Told:
    """A reporter that remembers."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@contextlib.contextmanager
def one_thread():
    """Tiny tensors gain nothing from threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**changes):
    return Train(**{**SETTINGS.model_dump(), **changes})


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
