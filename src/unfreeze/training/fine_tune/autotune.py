"""Choice of precision, memory format, compilation and micro-batch size by reproducible rules.

All choices depend on the network, the recipe and the machine, not on measured speed or current load. Precision and
memory format change the last digits of every sum, so a choice by measured speed would yield different weights on a busy
machine or with different cache contents. The micro-batch size follows from the measured memory of a training step and
the total memory of the machine, not the memory that is free at the moment.

The rules for precision and memory format were derived from step times of networks of ten families
(benchmarks/precision.py, results in benchmarks/results/precision.csv):

- CPU: bf16 if the processor has native bf16 multiplication (AVX512_BF16 or AMX) and less than DEPTHWISE of the outputs
  of the network's convolutions and linear layers come from depthwise convolutions; otherwise f32. A depthwise
  convolution does few multiplications per value that it reads and writes, and torch's bf16 kernels for it are slower
  than the f32 ones.
- GPU: bf16, or f16 if the GPU does not support bf16.
- Memory format: channels_last if an input has two spatial axes, otherwise contiguous.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from unfreeze.core.files import read_record, write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_schema import Train
from unfreeze.training.fine_tune.losses import Loss
from unfreeze.training.fine_tune.memory import (
    Inputs,
    MicroBatch,
    StepMemory,
    TrainingSnapshot,
    free_memory,
    measure_need,
    memory_budget,
    retry_on_oom,
    rows,
    trains_batchnorm,
    trial_steps,
)

# Between ShuffleNetV2 (0.24; bf16 is 0.76 times as fast as f32) and ConvNeXt (0.16; 1.22 times).
DEPTHWISE = 0.2
# A gradient in lower precision is accepted within about 26 degrees of the f32 one: the gradients of two batches of real
# data are further apart, so rounding is the smaller noise.
SAFE_COSINE = 0.9
# 'auto' compiles on a GPU from this number of training images, summed over all epochs: training then takes about ten
# times as long as compilation.
COMPILED_FROM = 1_000_000


def fast_precision(model: nn.Module, inputs: Inputs, device: torch.device) -> str:
    """Return the fastest precision for this network on this kind of processor, by the rule of the module docstring.

    Args:
        model: The network in training mode, on the device.
        inputs: A batch of at least 2 images, on the device.
        device: Device to train on.

    Returns:
        'f32', 'bf16' or 'f16'.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "f16"
    if not native_bf16():
        return "f32"
    return "bf16" if depthwise_share(model, inputs) < DEPTHWISE else "f32"


def native_bf16() -> bool:
    """Return whether the CPU has instructions that multiply bfloat16."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def depthwise_share(model: nn.Module, inputs: Inputs) -> float:
    """Return the fraction of the output values of all convolutions and linear layers from depthwise convolutions."""
    depthwise = total = 0

    def count(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal depthwise, total
        if not isinstance(output, torch.Tensor):
            return
        total += output.numel()
        groups = getattr(module, "groups", 1)
        depthwise += output.numel() if groups > 1 and groups == getattr(module, "in_channels", 0) else 0

    layers = (nn.modules.conv._ConvNd, nn.Linear)
    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, layers)]
    try:
        with trial_steps(model), torch.no_grad():
            model(rows(inputs, slice(0, 2)))
    finally:
        for hook in hooks:
            hook.remove()
    return depthwise / max(1, total)


def memory_format(inputs: Inputs) -> str:
    """Return 'channels_last' if an input has two spatial axes, otherwise 'contiguous'."""
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    return "channels_last" if any(tensor.ndim == 4 for tensor in tensors) else "contiguous"


def agree(reference: torch.Tensor, gradient: torch.Tensor) -> float:
    """Return the cosine between two gradients; 1 if both are zero, 0 if it is not finite."""
    if not reference.any() and not gradient.any():
        return 1.0
    cosine = float(torch.dot(reference, gradient) / (reference.norm() * gradient.norm()))
    return cosine if math.isfinite(cosine) else 0.0


_FABRIC: dict[str, Any] = {"f32": "32-true", "bf16": "bf16-mixed", "f16": "16-mixed"}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Number of images on which gradients are compared.
_COMPARED = 8


@dataclass(frozen=True)
class Plan:
    """Execution plan of a training.

    Attributes:
        precision: 'f32', 'bf16' or 'f16' (mixed precision for the latter two).
        memory_format: 'contiguous' or 'channels_last'.
        compile: Whether to use torch.compile.
        micro_batch: Number of images per forward and backward pass.
        need: Measured memory, or None if the recipe sets the micro-batch size.
        pace: Images per second of a timed step, or 0 if none was timed. Only used for a time budget.
    """

    precision: str = "f32"
    memory_format: str = "contiguous"
    compile: bool = False
    micro_batch: int = 32
    need: StepMemory | None = None
    pace: float = 0.0

    @property
    def identity(self) -> list[Any]:
        """What must be equal to resume a training; not the micro-batch size, which can shrink at any time."""
        return [self.precision, self.memory_format, self.compile]

    def fabric(self) -> Fabric:
        """Return a Lightning Fabric for one device (a GPU if available) in this precision."""
        return make_fabric(self.precision)

    def arranged(self, model: nn.Module) -> nn.Module:
        """Convert the 4-D weights of the network to the memory format."""
        return model.to(memory_format=_FORMATS[self.memory_format])

    def placed(self, inputs: Inputs, device: torch.device) -> Inputs:
        """Move a piece of a batch to the device: floats as float32, 4-D tensors in the memory format."""
        if not isinstance(inputs, torch.Tensor):
            return tuple(self.placed(one, device) for one in inputs)
        kept = _FORMATS[self.memory_format] if inputs.ndim == 4 else torch.preserve_format
        dtype = torch.float32 if inputs.is_floating_point() else inputs.dtype
        return inputs.to(device, dtype, non_blocking=True, memory_format=kept)

    def write(self, file: Path, identity: str) -> None:
        """Save the plan of a training, so that a resumed training uses the same one.

        Args:
            file: A JSON file.
            identity: Hash of the training.
        """
        write_json(file, {"identity": identity, "plan": asdict(self)})

    @classmethod
    def read(cls, file: Path, identity: str = "") -> Plan | None:
        """Load a saved plan.

        Args:
            file: As given to `write`.
            identity: Hash of the training; empty means any.

        Returns:
            The plan, or None if it is missing, damaged, or of another training.
        """

        def parse(kept: dict[str, Any]) -> Plan | None:
            values = kept["plan"]
            need = values.pop("need")
            plan = cls(**values, need=StepMemory(**need) if need else None)
            known = plan.precision in _FABRIC and plan.memory_format in _FORMATS
            usable = known and isinstance(plan.micro_batch, int) and plan.micro_batch > 0
            return plan if usable and identity in ("", kept["identity"]) else None

        return read_record(file, parse)


def make_fabric(precision: str) -> Fabric:
    """Return a Lightning Fabric for one device, a GPU if available."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs its precision each time
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.backends.cudnn.deterministic = True  # some backward kernels are nondeterministic otherwise
    return Fabric(accelerator="cuda" if on_gpu else "cpu", devices=1, precision=_FABRIC[precision])


def make_plan(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    loss: Loss,
    settings: Train,
    *,
    photos: int = 0,
    share: int = 1,
    timed: bool = False,
    reporter: Reporter | None = None,
) -> Plan:
    """Choose the execution plan for this network and images of this kind.

    Equal arguments give equal plans on the same kind of machine, with one exception that is reported: if less memory is
    free than the plan needs, the micro-batch is smaller.

    Args:
        model: The network in the state that needs the most memory, with everything unfrozen that ever will be. Its
            weights, buffers and the random state are unchanged afterwards.
        inputs: A real batch of full image size, with at least 2 images.
        targets: Its targets.
        loss: The loss function.
        settings: The recipe's options for precision, memory format, compilation and batches.
        photos: Number of training images, summed over all epochs.
        share: Number of trainings that can run in parallel on this machine, among which the memory is divided.
        timed: Whether to time a step, for a time budget.
        reporter: Progress reporter.

    Returns:
        The plan.

    Raises:
        EngineError: If not even a single image fits in memory.
    """
    reporter = reporter or Reporter()
    maker = _Maker(model, inputs, targets, loss, settings, reporter)
    try:
        plan = maker.with_memory(maker.compiled(maker.format(), photos), share)
        if timed:
            plan = replace(plan, pace=maker.pace(plan))
    finally:
        model.to(memory_format=torch.contiguous_format)
    compiled = ", compiled" if plan.compile else ""
    reporter.say(f"Plan: {plan.precision}, {plan.memory_format}{compiled}, {plan.micro_batch} photos at once.")
    return plan


class _Maker:
    """Builds a plan by running real training steps without updating any weights."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: torch.Tensor,
        loss: Loss,
        settings: Train,
        reporter: Reporter,
    ) -> None:
        self.device = make_fabric("f32").device
        self.model, self.loss, self.settings = model.to(self.device), loss, settings
        self.inputs, self.targets = inputs, targets.to(self.device)
        self.reporter = reporter
        self.least = 2 if trains_batchnorm(model) else 1

    def format(self) -> Plan:
        """Choose precision and memory format: the recipe's, or by the rules."""
        wish = self.settings
        shape = memory_format(self.inputs)
        if shape == "channels_last" and wish.memory_format != "auto":
            shape = wish.memory_format
        plan = Plan("f32", shape)
        if wish.precision == "f16" and self.device.type != "cuda":
            self.reporter.say("Plan: train.precision = f16 needs a GPU; f32 here.")
            return plan
        if wish.precision != "auto":
            return replace(plan, precision=wish.precision)
        some = plan.placed(rows(self.inputs, slice(0, 2)), self.device)
        fast = replace(plan, precision=fast_precision(plan.arranged(self.model), some, self.device))
        if fast.precision == "f32":
            return plan
        cosine = self._agreement(plan, fast)
        if cosine >= SAFE_COSINE:
            return fast
        self.reporter.say(
            f"Plan: f32, because a gradient in {fast.precision} differs from it too much (cosine {cosine:.2f})."
        )
        return plan

    def compiled(self, plan: Plan, photos: int) -> Plan:
        """Enable compilation on a GPU if the recipe asks for it, or by the rule and if the compiler succeeds."""
        on_gpu, wish = self.device.type == "cuda", self.settings.compile
        if not on_gpu or wish == "off" or (wish == "auto" and photos < COMPILED_FROM):
            return plan
        found = replace(plan, compile=True)
        if wish == "on":
            return found
        try:
            with trial_steps(self.model):
                self._stepper(found)(min(_COMPARED, len(self.targets)))
        except Exception as error:  # compilers raise all kinds of exceptions
            self.reporter.say(f"Plan: not compiled ({type(error).__name__}).")
            return plan
        return found

    def with_memory(self, plan: Plan, share: int) -> Plan:
        """Choose the micro-batch size: the recipe's, or the largest that fits according to two measured sizes."""
        wish, effective = self.settings, max(1, self.settings.batch_size)
        if wish.micro_batch:
            return replace(plan, micro_batch=min(wish.micro_batch, effective))
        # AdamW keeps two moments and SGD one; an EMA needs one copy, and another one while it is swapped in; the best
        # weights are one more copy.
        copies = (2 if wish.optimizer == "adamw" else 1) + (2 if wish.ema_decay else 0) + 1
        step = self._stepper(plan)
        sizes = (4, 8) if self.device.type == "cuda" else (2, 4)
        two = MicroBatch(sizes[1], 2 * self.least, self.reporter)
        need = retry_on_oom(
            lambda: measure_need(self.model, step, (max(self.least, two.size // 2), two.size), self.device, copies),
            lambda: None,
            two.size,
            two,
            "Plan",
        )
        planned = need.fitting(effective, memory_budget(self.device, share))
        micro = need.fitting(planned, free_memory(self.device))
        if micro < planned:
            self.reporter.say(
                f"Plan: low memory; {micro} images at once instead of {planned}, so results differ slightly from those "
                f"with enough memory. To reproduce them, set train.micro_batch = {micro}."
            )
        return replace(plan, micro_batch=micro, need=need)

    def pace(self, plan: Plan) -> float:
        """Return images per second, of the faster of two timed steps."""
        count = min(plan.micro_batch, len(self.targets))
        micro = MicroBatch(count, self.least, self.reporter)
        step, seconds = self._stepper(plan), []
        with trial_steps(self.model):
            for _ in range(3):  # the first step allocates buffers and builds kernels
                started = time.perf_counter()
                retry_on_oom(lambda: step(micro.size), self.model.zero_grad, count, micro, "Plan")
                seconds.append((time.perf_counter() - started) / micro.size)
        return 1 / max(1e-9, min(seconds[1:]))

    def _agreement(self, plan: Plan, other: Plan) -> float:
        """Return the cosine between the gradients of both plans on the same few images, with the same dropout masks."""
        micro = MicroBatch(min(_COMPARED, len(self.targets)), self.least, self.reporter)
        start, count = TrainingSnapshot(self.model), micro.size
        while True:
            size, gradients = micro.size, []
            with trial_steps(self.model):
                for one in (plan, other):
                    start.restore()
                    step = self._stepper(one)
                    retry_on_oom(lambda step=step: step(micro.size), self.model.zero_grad, count, micro, "Plan")  # type: ignore[misc]
                    gradients.append(self._gradient())
            if micro.size == size:  # otherwise the gradients are of different images
                return agree(*gradients)

    def _stepper(self, plan: Plan) -> Callable[[int], float]:
        """Return a function that runs a forward and backward pass on a number of images and returns the loss."""
        fabric = plan.fabric()
        runner = fabric.setup_module(torch.compile(self.model) if plan.compile else self.model)
        # A new f16 gradient scaler starts with such a large scale that the first steps overflow, whatever the network.
        scale = 1 / 64 if plan.precision == "f16" else 1.0

        def step(count: int) -> float:
            plan.arranged(self.model)
            self.model.zero_grad(set_to_none=True)
            # Images are repeated if there are too few, so that larger batches can be measured.
            inputs = plan.placed(_at_least(self.inputs, count), self.device)
            value = self.loss(runner(inputs), _at_least(self.targets, count))
            fabric.backward(value * scale)
            return value.item()

        return step

    def _gradient(self) -> torch.Tensor:
        """Return the gradient of all trainable parameters as one float32 vector."""
        parts = [p.grad.float().flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(parts) if parts else torch.zeros(1)


def _at_least(inputs: Inputs, count: int) -> Inputs:
    """Return the first `count` images, repeated if there are fewer."""
    if not isinstance(inputs, torch.Tensor):
        return tuple(_at_least(one, count) for one in inputs)
    return torch.cat([inputs] * -(-count // len(inputs)))[:count]
