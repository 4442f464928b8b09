"""A network in the middle of training: one step, one look at held photos, and the state that a checkpoint keeps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import nn

from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe_sections import Train
from unfreeze.judge.metrics import confusion_matrix, macro_f1
from unfreeze.learn.train.averages import WeightAverage
from unfreeze.learn.train.losses import Loss, cross_entropy, logits_of, soft_targets
from unfreeze.learn.train.memory import (
    MicroBatch,
    Moment,
    count_of,
    in_pieces,
    retried,
    rows,
    trains_batchnorm,
)
from unfreeze.learn.train.plan import Plan
from unfreeze.learn.train.schedule import rate_at
from unfreeze.learn.train.together import Crew

if TYPE_CHECKING:
    from unfreeze.learn.train.batches import Batch, Batches


def make_optimiser(groups: list[dict[str, Any]], settings: Train, precision: str = "f32") -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) or SGD with Nesterov's momentum of 0.9.

    Fused: one pass over the weights and no copies of them, so that no memory can run out half-way through an update.
    Not in f16, where gradients have to be unscaled for clipping before the step.
    """
    groups = [{"weight_decay": settings.weight_decay, "scale": 1.0, **group} for group in groups]
    fused = precision != "f16"
    if settings.optimiser == "adamw":
        # A second moment over 100 steps, not 1,000: most runs here have a few hundred.
        return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.99), fused=fused)
    return torch.optim.SGD(groups, lr=settings.rate, momentum=0.9, nesterov=True, fused=fused)


@dataclass
class Steps:
    """The parts of a training that change from step to step."""

    fabric: Fabric
    model: nn.Module
    runner: Any  # the same network as Fabric runs it: on the device, in the plan's precision
    optimiser: torch.optim.Optimizer
    loss: Loss
    micro: MicroBatch
    looking: MicroBatch  # the same for evaluation, which needs less
    plan: Plan
    settings: Train
    average: WeightAverage | None
    classes: int
    crew: Crew

    def __post_init__(self) -> None:
        self.stepper: Any = self.fabric.setup_optimizers(self.optimiser)

    def set_rate(self, progress: float) -> float:
        """Sets each group's rate for a progress of 0..1 and gives that of scale 1."""
        rate = self.settings.rate * rate_at(progress, self.settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        return rate

    def step(self, batch: Batch, where: str) -> float:
        """One step on an effective batch; its mean loss."""
        before = Moment(self.model)

        def undo() -> None:
            self.optimiser.zero_grad(set_to_none=True)
            before.restore()

        self.micro.least = 2 if trains_batchnorm(self.model) else 1
        part = self.crew.share(count_of(batch.inputs))
        value = retried(lambda: self._backward(batch, part), undo, part.stop - part.start, self.micro, where)
        value = self.crew.total(value)
        self.crew.sum_gradients(self.model.parameters())
        # Also without clipping, for the norm tells whether the gradient is a number.
        norm = self.fabric.clip_gradients(
            self.runner, self.stepper, max_norm=self.settings.clip or math.inf, error_if_nonfinite=False
        )
        # In f16 too large gradients are the scaler's to skip.
        if self.plan.precision != "f16" and norm is not None and not math.isfinite(norm.item()):
            value = math.nan
        self.check(value, where)
        self.stepper.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()
        return value

    def _backward(self, batch: Batch, part: slice) -> float:
        """Gradients of a part of the effective batch, piece by piece, each by its share of the photos; and the loss,
        that of the whole batch where the part is all of it."""
        count, total = count_of(batch.inputs), 0.0
        for piece in self.micro.pieces(part.stop - part.start) if part.stop > part.start else []:
            piece = slice(part.start + piece.start, part.start + piece.stop)
            inputs = self.plan.placed(rows(batch.inputs, piece), self.fabric.device)
            targets = batch.targets[piece].to(self.fabric.device)
            value = self.loss(self.runner(inputs), targets) * ((piece.stop - piece.start) / count)
            self.fabric.backward(value)
            total += value.item()
        return total

    def check(self, value: float, where: str) -> None:
        """RecipeError where a loss or a gradient is no number."""
        if math.isfinite(value):
            return
        tries = [f"a lower train.rate than {self.settings.rate:g}"]
        tries += ["train.precision = f32"] if self.plan.precision != "f32" else []
        tries += ["train.clip = 1"] if not 0 < self.settings.clip <= 1 else []
        tries += ["a longer train.warmup"] if self.settings.warmup < 0.1 else []
        raise RecipeError(f"{where}: the loss or its gradient is not a finite number. Try {', or '.join(tries)}.")

    def evaluate(self, valid: Batches, where: str) -> tuple[float, float]:
        """Log loss and macro F1 of the photos as they are."""
        looking, batch = self.looking, self.settings.batch
        logits, targets = predict(self.model, self.runner, valid, batch, self.plan, looking, where, self.crew)
        truth = (targets if targets.ndim == 1 else targets.argmax(1)).numpy()
        value = float(cross_entropy(logits, soft_targets(targets, self.classes), torch.ones(self.classes)))
        self.check(value, where)
        return value, float(macro_f1(confusion_matrix(truth, logits.argmax(1).numpy(), self.classes)))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, the network has the averaged weights, where they are kept."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, but for its own random numbers."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "average": self.average.state() if self.average else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a state."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.average:
            self.average.load(state["average"])


def predict(
    model: nn.Module,
    runner: Callable[[Any], Any],
    photos: Batches,
    batch: int,
    plan: Plan,
    micro: MicroBatch,
    what: str = "Prediction",
    crew: Crew | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 (n, C) and targets of every photo in order, on the CPU; the model is in eval mode after it.

    runner: the model, or the model as Fabric runs it. Running out of memory makes pieces smaller, as in training.
    crew: processes that each look at their part of every batch; all get all rows.
    """
    crew = crew or Crew()
    model.eval()
    device = next(model.parameters()).device

    def look(piece: Any) -> torch.Tensor:
        return logits_of(runner(plan.placed(piece, device))).cpu()

    logits, targets = [], []
    with torch.inference_mode():
        for part in photos.plain(batch):
            count = count_of(part.inputs)
            these = crew if count >= crew.size else Crew()  # with fewer photos than processes all look at all
            own = in_pieces(look, rows(part.inputs, these.share(count)), micro, what)
            logits.append(these.gathered(own, count))
            targets.append(part.targets.cpu())
    return torch.cat(logits), torch.cat(targets)
