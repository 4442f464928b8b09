"""A network that is fine-tuned: a backbone, whole or without its frozen front, and a head for the user's classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unfreeze.model.cuts import Rest, beside
from unfreeze.model.freezing import Rates, parameter_groups, train_from
from unfreeze.model.stages import Anatomy
from unfreeze.model.taps import Taps, pooled

# The slope of a root is infinite at 0, where a pooled cell of a rectified map often lies.
_LEAST = 2e-2


class SignedRoot(torch.autograd.Function):
    """sign(x) * sqrt(|x|); backwards, the slope is bounded near 0."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.copysign(x.abs().sqrt(), x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (2 * x.abs().clamp_min(_LEAST).sqrt())


class Tuned(nn.Module):
    """Logits of photos, or of the front's kept output.

    Two heads: `blocks`, the probe's linear map on the signed roots of pooled stages, so that a network which starts
    from a probe equals it before its first step; and `classifier`, the network's own last layer, replaced for
    the user's classes (with auxiliary logits, where the network has such heads).

    network: whole; cut in place if `first` is positive and `cut` is asked for. first: number of the first stage that
    trains. size: side of the input, pixels. Takes images (B, 3, S, S), or, when cut, (activation, features beside).
    """

    def __init__(
        self,
        network: nn.Module,
        anatomy: Anatomy,
        classes: int,
        *,
        taps: Taps | None,
        first: int = 0,
        cut: bool = False,
        size: int = 224,
    ) -> None:
        super().__init__()
        self.anatomy, self.taps, self.first = anatomy, taps, first
        stages = anatomy.stages
        self.read = stages[-taps.last :] if taps else ()
        self.beside = beside(anatomy, first, taps) if cut and taps else ()
        self.network = network  # before `rest`, which holds it too: parameters are told by their first name
        self.rest = Rest(network, anatomy, first, size) if cut else None
        self.head = nn.Linear(sum(s.width(taps.grid) for s in self.read), classes) if taps else None
        self.seen: dict[str, Any] = {}
        for stage in self.read:
            if stage not in self.beside and not (cut and stage is stages[first - 1]):
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
        parts += [pooled(self.seen[s.name], s, self.taps.grid) for s in self.read if s not in self.beside]
        self.seen.clear()
        return self.head(SignedRoot.apply(torch.cat(parts, 1)))

    def start_from(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Takes a probe's linear map: weight (D, C), bias (C,)."""
        assert self.head is not None
        with torch.no_grad():
            self.head.weight.copy_(weight.T)
            self.head.bias.copy_(bias)

    def prepare(self, gradual: float, epoch: int, batchnorm: bool = True) -> None:
        """Sets what trains in this epoch.

        gradual: epochs between a stage's unfreezing and that of the one before (Howard and Ruder 2018, arXiv
        1801.06146); 0: all at once. batchnorm: false keeps its statistics in stages that train too; its scale and shift
        train all the same.
        """
        first, last = self.first, len(self.anatomy.stages)
        if gradual:
            first = max(first, last - 1 - int(epoch / gradual))
        self.train()
        train_from(self.network, self.anatomy, first)
        if not batchnorm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False

    def groups(self, rates: Rates) -> list[dict[str, Any]]:
        """Optimiser groups of all that may train."""
        found = parameter_groups(self.network, self.anatomy, rates, self.first)
        if self.head is None:
            return found
        if not rates.head:
            self.head.requires_grad_(False)
        # The network's own classifier answers nobody here.
        last = len(self.anatomy.stages)
        found = [group for group in found if group["stage"] < last]
        for name, parameter in self.head.named_parameters() if rates.head else ():
            decay = rates.weight_decay if parameter.ndim > 1 else 0.0
            group = {"params": [parameter], "names": [f"head.{name}"], "stage": last}
            found.append({**group, "scale": rates.scale(parameter, rates.head), "weight_decay": decay})
        return found

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of what may train: what a run keeps beside the name of the pretrained weights."""
        return {name: tensor for name, tensor in self.state_dict().items() if self._kept()(name)}

    def load_trained(self, state: dict[str, torch.Tensor]) -> None:
        """The reverse of `trained_state`. KeyError or RuntimeError where the tensors are not those of this network."""
        own = {name for name in self.state_dict() if self._kept()(name)}
        if own != set(state):
            raise KeyError(", ".join(sorted(own ^ set(state))[:3]))
        self.load_state_dict(state, strict=False)

    def _kept(self) -> Callable[[str], bool]:
        frozen = {m for stage in self.anatomy.stages[: self.first] for m in stage.modules}
        names = {n for stage in self.anatomy.stages[: self.first] for n in stage.parameters}

        def kept(name: str) -> bool:
            if name.startswith("rest."):
                return False  # the same modules by another way
            inner = name.removeprefix("network.")
            if inner == name:
                return True
            parts = inner.split(".")
            return inner not in names and not any(".".join(parts[:end]) in frozen for end in range(1, len(parts)))

        return kept
