"""Training step, evaluation and training state of a network.

`Trainer` runs steps and holds the state that a checkpoint saves. `ModelEma` averages weights over steps. `lr_factor`,
`size_at` and `Clock` define the schedules of learning rate, image size and time budget.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import nn

from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe_schema import Train
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.models.architectures import load_tensors
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.distributed import ProcessGroup
from unfreeze.training.fine_tune.losses import Loss, cross_entropy, logits_of, soft_targets
from unfreeze.training.fine_tune.memory import (
    MicroBatch,
    TrainingSnapshot,
    count_of,
    map_micro_batches,
    retry_on_oom,
    rows,
    trains_batchnorm,
)

if TYPE_CHECKING:
    from unfreeze.training.fine_tune.batches import Batch, Batches


State = dict[str, torch.Tensor]


class ModelEma:
    """Exponential moving average (EMA) of a network's parameters and buffers.

    The decay is limited to (1 + t) / (10 + t) at step t, so that the initial weights are soon forgotten. Integer
    buffers are copied. The averages are on the same device and of the same dtype as the weights. A tensor with several
    names is averaged once.

    Args:
        model: The network.
        decay: Maximum decay.

    References:
        Polyak & Juditsky 1992.
        Tarvainen & Valpola 2017, arXiv 1703.01780.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._live = dict((*model.named_parameters(), *model.named_buffers()))
        self._mean = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after a training step."""
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
        """Swap the averages into the network for the duration of the block, for evaluation and saving."""
        with torch.no_grad():
            own = {name: tensor.detach().clone() for name, tensor in self._live.items()}
            self.put(self._mean)
            try:
                yield
            finally:
                self.put(own)

    @torch.no_grad()
    def put(self, state: State | None = None) -> None:
        """Copy a state, or the averages if None, into the network."""
        for name, tensor in (self._mean if state is None else state).items():
            self._live[name].copy_(tensor)

    def state(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {"steps": self.steps, "mean": self._mean}

    def load(self, state: dict[str, object]) -> None:
        """Load the state from a checkpoint."""
        mean = state["mean"]
        assert isinstance(mean, dict) and isinstance(state["steps"], int)
        self.steps = state["steps"]
        for name, tensor in mean.items():
            self._mean[name].copy_(tensor)


# With progressive resizing, the first 60% of training uses images of about 0.7 the side, i.e. half the pixels.
_SMALL_UNTIL, _SMALL = 0.6, 0.7
_MULTIPLE = 32


def lr_factor(progress: float, warmup: float) -> float:
    """Return the learning rate relative to its peak: linear warm-up followed by cosine decay to 0.

    Args:
        progress: Progress of training in 0..1.
        warmup: Fraction of training for warm-up.

    Returns:
        Factor in 0..1.

    References:
        Goyal et al. 2017, arXiv 1706.02677 (warm-up).
        Loshchilov & Hutter 2016, arXiv 1608.03983 (cosine decay).
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def size_at(progress: float, full: int) -> int:
    """Return the image side for progressive resizing at a progress in 0..1; 0 means full size.

    There are two stages; the side of the first is a multiple of 32 pixels.

    References:
        Tan & Le 2021, arXiv 2104.00298 (EfficientNetV2).
    """
    small = max(_MULTIPLE, round(full * _SMALL / _MULTIPLE) * _MULTIPLE)
    return small if progress < _SMALL_UNTIL and small < full else 0


@dataclass(frozen=True)
class Budget:
    """Time budget for one call of `fit`, including validation and checkpoints.

    Attributes:
        seconds: Duration in seconds.

    Raises:
        RecipeError: If the duration is not positive.
    """

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise RecipeError(f"train.time_budget = {self.seconds:g} s: give a time above 0, for example 10m.")


class Clock:
    """Tracks the progress of training by epochs or, with a budget, by time.

    With a budget, the learning rate decays to the end of the budget, which makes best use of limited time (budgeted
    training, Li et al. 2019, arXiv 1905.04753).

    Args:
        epochs: Number of epochs.
        budget: Time budget.
        spent: Seconds of the interrupted run that is resumed.
        ending: Estimated duration of the work after the last step of an epoch, in steps, used until it has been
            measured.
    """

    def __init__(self, epochs: int, budget: Budget | None, spent: float = 0.0, ending: float = 0.0) -> None:
        self.epochs, self.budget, self._ending = epochs, budget, ending
        self._started = time.perf_counter() - spent
        self._step, self._paused = 0.0, 0.0

    @property
    def spent(self) -> float:
        """Seconds since the start, including those before an interruption."""
        return time.perf_counter() - self._started

    def took(self, step: float = 0.0, pause: float = 0.0) -> None:
        """Record the duration of a step, or of the work after an epoch's last step.

        The budget reserves time for one more of each.
        """
        self._step = max(0.9 * self._step, step)
        self._paused = max(self._paused, pause)

    @property
    def _pause(self) -> float:
        return self._paused or self._ending * self._step

    def progress(self, epochs_done: float) -> float:
        """Return the fraction of epochs done or, if greater, the fraction of the budget used, in 0..1."""
        share = epochs_done / self.epochs
        if self.budget is not None:
            share = max(share, self.spent / max(1e-9, self.budget.seconds - self._pause))
        return min(1.0, share)

    def over(self) -> bool:
        """Return whether another step, and the work after the last step, would exceed the budget."""
        return self.budget is not None and self.spent + self._step + self._pause > self.budget.seconds


def make_optimizer(groups: list[dict[str, Any]], settings: Train, precision: str = "f32") -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) or SGD with Nesterov momentum of 0.9.

    The fused implementation updates the weights in one pass without copies, so memory cannot run out in the middle of
    an update. It is not used with f16, where gradients have to be unscaled for clipping before the step.

    Args:
        groups: Parameter groups; "weight_decay" and "scale" have defaults.
        settings: Training settings.
        precision: Precision of the plan.

    Returns:
        The optimizer.
    """
    groups = [{"weight_decay": settings.weight_decay, "scale": 1.0, **group} for group in groups]
    fused = precision != "f16"
    if settings.optimizer == "adamw":
        # beta2 = 0.99 averages the second moment over 100 steps instead of 1,000: most runs have only a few hundred
        # steps.
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.99), fused=fused)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True, fused=fused)


def batch_of_one(error: Exception, where: str) -> RecipeError | None:
    """Convert torch's error about BatchNorm with a single value per channel; return None for any other error."""
    if "more than 1 value per channel" not in str(error):
        return None
    return RecipeError(
        f"{where}: BatchNorm needs more than one value in each channel, and a batch of one image gives one where the "
        "map has a single cell; set train.batch_size to 2 or more, a larger image.size, or train.bn_stats=frozen."
    )


@dataclass
class Trainer:
    """State and operations of a training.

    Attributes:
        fabric: Lightning Fabric.
        model: The network.
        runner: The network wrapped by Fabric, which runs it in the plan's precision.
        optimiser: The optimizer.
        loss: The loss function.
        micro: Micro-batch size for training.
        looking: Micro-batch size for evaluation, which needs less memory.
        plan: Execution plan.
        settings: Training settings.
        average: EMA of the weights, if enabled.
        classes: Number of classes.
        crew: Process group.
        stepper: The optimizer wrapped by Fabric.
    """

    fabric: Fabric
    model: nn.Module
    runner: Any
    optimiser: torch.optim.Optimizer
    loss: Loss
    micro: MicroBatch
    looking: MicroBatch
    plan: Plan
    settings: Train
    average: ModelEma | None
    classes: int
    crew: ProcessGroup

    def __post_init__(self) -> None:
        self.stepper: Any = self.fabric.setup_optimizers(self.optimiser)

    def set_rate(self, progress: float) -> float:
        """Set the learning rate of each group for a progress in 0..1, and return that of scale 1."""
        rate = self.settings.lr * lr_factor(progress, self.settings.warmup_fraction)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        return rate

    def step(self, batch: Batch, where: str) -> float:
        """Run one step on an effective batch and return its mean loss."""
        before = TrainingSnapshot(self.model)

        def undo() -> None:
            self.optimiser.zero_grad(set_to_none=True)
            before.restore()

        self.micro.least = 2 if trains_batchnorm(self.model) else 1
        part = self.crew.share(count_of(batch.inputs))
        try:
            value = retry_on_oom(lambda: self._backward(batch, part), undo, part.stop - part.start, self.micro, where)
        except ValueError as error:
            raise batch_of_one(error, where) or error from None
        value = self.crew.total(value)
        self.crew.sum_gradients(self.model.parameters())
        # Called even without clipping, because the norm shows whether the gradient is finite.
        norm = self.fabric.clip_gradients(
            self.runner, self.stepper, max_norm=self.settings.grad_clip or math.inf, error_if_nonfinite=False
        )
        # With f16, the gradient scaler skips steps with infinite gradients.
        if self.plan.precision != "f16" and norm is not None and not math.isfinite(norm.item()):
            value = math.nan
        self.check(value, where)
        self.stepper.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()
        return value

    def _backward(self, batch: Batch, part: slice) -> float:
        """Accumulate the gradients of a part of the effective batch.

        The part is processed in pieces, each weighted by its fraction of the images.

        Returns:
            The sum of the weighted losses; with a single process, the mean loss of the batch.
        """
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
        """Raise RecipeError if a loss or gradient norm is not finite."""
        if math.isfinite(value):
            return
        tries = [f"a lower train.lr than {self.settings.lr:g}"]
        tries += ["train.precision = f32"] if self.plan.precision != "f32" else []
        tries += ["train.grad_clip = 1"] if not 0 < self.settings.grad_clip <= 1 else []
        tries += ["a longer train.warmup_fraction"] if self.settings.warmup_fraction < 0.1 else []
        raise RecipeError(f"{where}: the loss or its gradient is not a finite number. Try {', or '.join(tries)}.")

    def evaluate(self, valid: Batches, where: str) -> tuple[float, float]:
        """Return log loss and macro F1 on validation images without augmentation."""
        looking, batch = self.looking, self.settings.batch_size
        logits, targets = predict(self.model, self.runner, valid, batch, self.plan, looking, where, self.crew)
        truth = (targets if targets.ndim == 1 else targets.argmax(1)).numpy()
        value = float(cross_entropy(logits, soft_targets(targets, self.classes), torch.ones(self.classes)))
        self.check(value, where)
        return value, float(macro_f1(confusion_matrix(truth, logits.argmax(1).numpy(), self.classes)))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Use the EMA weights, if enabled, for the duration of the block."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on, except for its random numbers."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "average": self.average.state() if self.average else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load a state."""
        load_tensors(self.model, state["model"])
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
    crew: ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the logits of every image, in order. The model is in eval mode afterwards.

    If memory runs out, pieces become smaller, as in training.

    Args:
        model: The network.
        runner: The network, or the network wrapped by Fabric.
        photos: The images.
        batch: Batch size.
        plan: Execution plan.
        micro: Micro-batch size.
        what: What is being done, for messages.
        crew: Process group, each process of which predicts its part of every batch. All get all rows.

    Returns:
        Logits float32 (n, C) and targets, on the CPU.
    """
    crew = crew or ProcessGroup()
    model.eval()
    device = next(model.parameters()).device

    def look(piece: Any) -> torch.Tensor:
        return logits_of(runner(plan.placed(piece, device))).cpu()

    logits, targets = [], []
    with torch.inference_mode():
        for part in photos.plain(batch):
            count = count_of(part.inputs)
            these = crew if count >= crew.size else ProcessGroup()  # fewer images than processes: each predicts all
            own = map_micro_batches(look, rows(part.inputs, these.share(count)), micro, what)
            logits.append(these.gathered(own, count))
            targets.append(part.targets.cpu())
    return torch.cat(logits), torch.cat(targets)
