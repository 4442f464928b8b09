"""Fine-tuning model: a backbone, whole or without its frozen front, with a classification head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unfreeze.models.architectures import load_tensors
from unfreeze.models.backbone_split import TrainableBack, side_features
from unfreeze.models.freezing import LrScaling, freeze_before, parameter_groups
from unfreeze.models.pooling import FeatureSpec, pool_stage
from unfreeze.models.stages import NetworkLayout

# Lower bound on |x| in the gradient: the derivative of the root is infinite at 0, a common value after ReLU and
# pooling.
_LEAST = 2e-2


class SignedRoot(torch.autograd.Function):
    """Signed square root, sign(x) * sqrt(abs(x)), with a gradient that is bounded near 0."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.copysign(x.abs().sqrt(), x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (2 * x.abs().clamp_min(_LEAST).sqrt())


class FineTuneModel(nn.Module):
    """Classifier on images or on the cached output of the frozen front.

    There are two kinds of heads. With `taps`, the head is the linear map of a probe on the signed square roots of
    pooled stages, so that a model initialized from a probe equals it before the first step. Without, the head is the
    network's own classifier for `classes` classes, with auxiliary logits if the network has auxiliary heads.

    The input is either images (B, 3, S, S) or, if `cut` is set, a tuple of the front's activation and the pooled
    features of earlier tapped stages (B, P) or None. The output is logits (B, C), or the output of the network itself.

    Args:
        network: Whole network; changed in place if `cut` is set.
        anatomy: Its stages.
        classes: Number of classes.
        taps: Stages that the head reads, or None for the network's own classifier.
        first: Number of the first stage that trains.
        cut: Split the network before stage `first` and train only the back.
        size: Side of the square input in pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        anatomy: NetworkLayout,
        classes: int,
        *,
        taps: FeatureSpec | None,
        first: int = 0,
        cut: bool = False,
        size: int = 224,
    ) -> None:
        super().__init__()
        self.anatomy, self.taps, self.first = anatomy, taps, first
        stages = anatomy.stages
        self.read = stages[-taps.last :] if taps else ()
        self.side_stages = side_features(anatomy, first, taps) if cut and taps else ()
        self.network = network  # before `rest`: shared parameters are listed under their first name
        self.rest = TrainableBack(network, anatomy, first, size) if cut else None
        self.head = nn.Linear(sum(s.width(taps.grid) for s in self.read), classes) if taps else None
        self.seen: dict[str, Any] = {}
        for stage in self.read:
            if stage not in self.side_stages and not (cut and stage is stages[first - 1]):
                module = network.get_submodule(stage.output)
                module.register_forward_hook(lambda _m, _i, out, name=stage.name: self.keep(name, out))

    def keep(self, name: str, output: Any) -> None:
        self.seen[name] = output

    def forward(self, inputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> Any:
        self.seen.clear()
        if isinstance(inputs, torch.Tensor):
            kept, output = None, self.network(inputs)
        else:
            assert self.rest is not None
            activation, kept = inputs
            output = self.rest(activation)
            if self.first:
                self.seen[self.anatomy.stages[self.first - 1].name] = activation
        if self.head is None or self.taps is None:
            return output
        parts = [] if kept is None else [kept]
        parts += [pool_stage(self.seen[s.name], s, self.taps.grid) for s in self.read if s not in self.side_stages]
        self.seen.clear()
        return self.head(SignedRoot.apply(torch.cat(parts, 1)))

    def start_from(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Copy the linear map of a probe into the head.

        Args:
            weight: float32 (D, C).
            bias: float32 (C,).
        """
        assert self.head is not None
        with torch.no_grad():
            self.head.weight.copy_(weight.T)
            self.head.bias.copy_(bias)

    def prepare(self, gradual: float, epoch: int, batchnorm: bool = True) -> None:
        """Set which parameters train in an epoch, and the training mode of the modules.

        Args:
            gradual: Gradual unfreezing: number of epochs between the unfreezing of a stage and of the one before it
                (Howard and Ruder 2018, arXiv 1801.06146); 0 to unfreeze all at once.
            epoch: Number of the epoch, from 0.
            batchnorm: Update BatchNorm statistics in the stages that train. If false, they keep their values, but scale
                and shift still train.
        """
        first, last = self.first, len(self.anatomy.stages)
        if gradual:
            first = max(first, last - 1 - int(epoch / gradual))
        self.train()
        freeze_before(self.network, self.anatomy, first)
        if not batchnorm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False

    def groups(self, rates: LrScaling) -> list[dict[str, Any]]:
        """Optimizer parameter groups of everything that may train (see `freezing.parameter_groups`)."""
        found = parameter_groups(self.network, self.anatomy, rates, self.first)
        if self.head is None:
            return found
        if not rates.head:
            self.head.requires_grad_(False)
        # The network's own classifier is unused if there is a head on pooled stages.
        last = len(self.anatomy.stages)
        found = [group for group in found if group["stage"] < last]
        for name, parameter in self.head.named_parameters() if rates.head else ():
            decay = rates.weight_decay if parameter.ndim > 1 else 0.0
            group = {"params": [parameter], "names": [f"head.{name}"], "stage": last}
            found.append({**group, "scale": rates.scale(parameter, rates.head), "weight_decay": decay})
        return found

    def trained_state(self) -> dict[str, torch.Tensor]:
        """State dict of the parts that may train; a run stores it next to the name of the pretrained weights."""
        return {name: tensor for name, tensor in self.state_dict().items() if self._kept()(name)}

    def load_trained(self, state: dict[str, torch.Tensor]) -> None:
        """Load a state dict from `trained_state`.

        Raises:
            KeyError: If the names are not those of this model.
            RuntimeError: If a shape does not match.
        """
        own = {name for name in self.state_dict() if self._kept()(name)}
        if own != set(state):
            raise KeyError(", ".join(sorted(own ^ set(state))[:3]))
        load_tensors(self, state, strict=False)

    def _kept(self) -> Callable[[str], bool]:
        frozen = {m for stage in self.anatomy.stages[: self.first] for m in stage.modules}
        names = {n for stage in self.anatomy.stages[: self.first] for n in stage.parameters}

        def kept(name: str) -> bool:
            if name.startswith("rest."):
                return False  # the same modules under another name
            inner = name.removeprefix("network.")
            if inner == name:
                return True
            parts = inner.split(".")
            return inner not in names and not any(".".join(parts[:end]) in frozen for end in range(1, len(parts)))

        return kept
