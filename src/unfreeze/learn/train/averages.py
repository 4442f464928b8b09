"""An average of the weights over the steps, which is often better than the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

State = dict[str, torch.Tensor]


class WeightAverage:
    """Exponential moving average of a network's parameters and buffers.

    Polyak & Juditsky 1992; with Tarvainen & Valpola 2017, arXiv 1703.01780, the decay starts low, (1 + t) / (10 + t),
    so that the first weights are soon forgotten. Counters (integer buffers) are copied. Kept beside the weights, on
    their device, in their dtype. One entry a tensor, however many names it has.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._live = dict((*model.named_parameters(), *model.named_buffers()))
        self._mean = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, mean in self._mean.items():
            live = self._live[name].detach()
            if mean.is_floating_point():
                mean.lerp_(live, 1 - decay)
            else:
                mean.copy_(live)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the averages into the network for a while: evaluation and keeping them."""
        with torch.no_grad():
            own = {name: tensor.detach().clone() for name, tensor in self._live.items()}
            self.put(self._mean)
            try:
                yield
            finally:
                self.put(own)

    @torch.no_grad()
    def put(self, state: State | None = None) -> None:
        """Writes a state, or else the averages, into the network."""
        for name, tensor in (self._mean if state is None else state).items():
            self._live[name].copy_(tensor)

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"steps": self.steps, "mean": self._mean}

    def load(self, state: dict[str, object]) -> None:
        """From a checkpoint."""
        mean = state["mean"]
        assert isinstance(mean, dict) and isinstance(state["steps"], int)
        self.steps = state["steps"]
        for name, tensor in mean.items():
            self._mean[name].copy_(tensor)
