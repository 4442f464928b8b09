"""Fine-tuned networks of a run in memory: crops of pixels, or activations of a frozen front, to probabilities.

A file of its own, so that predictions of a probe do not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.data.decode import Pixels
from unfreeze.features.augment import AUGMENTS
from unfreeze.inference.networks import FineTunedNetworks
from unfreeze.models.fine_tune_model import FineTuneModel
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.losses import logits_of
from unfreeze.training.fine_tune.memory import Inputs, MicroBatch, map_micro_batches
from unfreeze.training.linear_probe.solver import softmax


@dataclass(frozen=True)
class LoadedNetworks:
    """The fine-tuned networks of all folds, loaded. Not thread-safe.

    Attributes:
        models: Description of the networks.
        networks: One network per fold, in evaluation mode.
        plan: Execution plan (device, memory format, precision).
        micro: Number of images per forward pass; reduced when memory runs out.
    """

    models: FineTunedNetworks
    networks: tuple[FineTuneModel, ...]
    plan: Plan
    micro: MicroBatch

    @classmethod
    def of(cls, models: FineTunedNetworks) -> LoadedNetworks:
        """Load the weights of all folds.

        Raises:
            RunError: If the weights do not fit the network.
        """
        plan = Plan(memory_format="channels_last")
        device = plan.fabric().device
        networks = []
        for file in models.files:
            network = models.network(file).to(device).eval()
            plan.arranged(network)
            networks.append(network.requires_grad_(False))
        return cls(models, tuple(networks), plan, MicroBatch(min(plan.micro_batch, models.settings.batch_size)))

    def of_pixels(self, squares: Pixels, looks: Sequence[str]) -> NDArray[np.float64]:
        """Predict from square crops, averaged over folds and views.

        Args:
            squares: uint8 (n, S, S, 3), crops in the frame of the pixel cache.
            looks: Views, "plain" and optionally "flip".

        Returns:
            float64 (n, C).
        """
        p, frame = self.models.setting.preprocessing, self.models.setting.frame
        stored = torch.from_numpy(squares).permute(0, 3, 1, 2)
        images = AUGMENTS["off"](stored, frame.size, frame.margin, np.zeros((len(squares), 0)))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (p.mean, p.std))
        images = images.sub_(mean).mul_(1 / std)
        return self._mean([images.flip(-1) if view == "flip" else images for view in looks])

    def of_activations(self, rows: Sequence[NDArray[np.float16]]) -> NDArray[np.float64]:
        """Predict from activations of the frozen front, averaged over folds and views.

        Args:
            rows: For each view float16 (n, D), pooled blocks first, then the flattened activation.

        Returns:
            float64 (n, C).
        """
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

                def look(
                    piece: Inputs, network: FineTuneModel = network, device: torch.device = device
                ) -> torch.Tensor:
                    return logits_of(network(self.plan.placed(piece, device))).cpu()

                for inputs in views:
                    logits = map_micro_batches(look, inputs, self.micro)
                    total = total + softmax(logits.float().numpy())
        return np.asarray(total / (len(self.networks) * len(views)), np.float64)
