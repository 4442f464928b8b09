"""The networks of a fine-tuned run held in memory: squares of pixels, or a front's activations, to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.data.images import Pixels
from unfreeze.learn.probe.softmax import softmax
from unfreeze.learn.train.augment import AUGMENTS
from unfreeze.learn.train.losses import logits_of
from unfreeze.learn.train.memory import Inputs, MicroBatch, in_pieces
from unfreeze.learn.train.plan import Plan
from unfreeze.learn.train.tuned_models import TunedModels
from unfreeze.model.tuned import Tuned


@dataclass(frozen=True)
class HeldNetworks:
    """Each fold's network, ready; only one thread may ask it. micro: how many photos pass at once."""

    models: TunedModels
    networks: tuple[Tuned, ...]
    plan: Plan
    micro: MicroBatch

    @classmethod
    def of(cls, models: TunedModels) -> HeldNetworks:
        """Loads every fold's weights. RunError where they do not fit."""
        plan = Plan(memory_format="channels_last")
        device = plan.fabric().device
        networks = []
        for file in models.files:
            network = models.network(file).to(device).eval()
            plan.arranged(network)
            networks.append(network.requires_grad_(False))
        return cls(models, tuple(networks), plan, MicroBatch(min(plan.micro_batch, models.settings.batch)))

    def of_pixels(self, squares: Pixels, looks: Sequence[str]) -> NDArray[np.float64]:
        """float64 (n, C) of stored squares uint8 (n, S, S, 3), the mean over folds and views."""
        p, frame = self.models.setting.preprocessing, self.models.setting.frame
        stored = torch.from_numpy(squares).permute(0, 3, 1, 2)
        images = AUGMENTS["off"](stored, frame.size, frame.margin, np.zeros((len(squares), 0)))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (p.mean, p.std))
        images = images.sub_(mean).mul_(1 / std)
        return self._mean([images.flip(-1) if view == "flip" else images for view in looks])

    def of_activations(self, rows: Sequence[NDArray[np.float16]]) -> NDArray[np.float64]:
        """float64 (n, C) of what the frozen front gives: for each view float16 (n, D), pooled blocks first."""
        shape = self.models.setting.front.activation()
        pooled = rows[0].shape[1] - int(np.prod(shape))
        inputs: list[Inputs] = []
        for view in rows:
            flat = torch.from_numpy(view)
            inputs.append((flat[:, pooled:].float().unflatten(1, shape), flat[:, :pooled].float()))
        return self._mean(inputs)

    def _mean(self, views: Sequence[Inputs]) -> NDArray[np.float64]:
        total: NDArray[np.float64] | float = 0.0
        with torch.inference_mode():
            for network in self.networks:
                device = next(network.parameters()).device

                def look(piece: Inputs, network: Tuned = network, device: torch.device = device) -> torch.Tensor:
                    return logits_of(network(self.plan.placed(piece, device))).cpu()

                for inputs in views:
                    logits = in_pieces(look, inputs, self.micro)
                    total = total + softmax(logits.float().numpy())
        return np.asarray(total / (len(self.networks) * len(views)), np.float64)
