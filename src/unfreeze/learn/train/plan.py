"""How a network trains fastest on this machine: precision, memory format and micro-batch, timed on its own photos."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from unfreeze.core.cache import cache_root, fingerprint
from unfreeze.core.files import read_json, write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_sections import Train
from unfreeze.core.work import cores
from unfreeze.learn.train.losses import Loss
from unfreeze.learn.train.memory import (
    Inputs,
    MicroBatch,
    Moment,
    Need,
    free_memory,
    measure_need,
    retried,
    rows,
    trains_batchnorm,
    undisturbed,
)
from unfreeze.model.engines import machine

_VERSION = 1
_FABRIC: dict[str, Any] = {"f32": "32-true", "bf16": "bf16-mixed", "f16": "16-mixed"}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# All trials together take about this long. Photos at a time: few, but enough that a core's caches do not hold them.
_SECONDS, _PHOTOS, _ROUNDS = 6.0, 16, 3
# A candidate this much slower than the best so far in its first timed step is not timed again.
_HOPELESS = 1.5
# What a plainer candidate may be slower and still be kept: noise should not choose.
_TIE = 0.95
# A gradient in lower precision counts as safe within about 26 degrees of the f32 one: the gradients of two batches of
# a real set are further apart than that, so the rounding is the smaller noise.
SAFE_COSINE = 0.9
# Compiling takes a minute or so; tried where training would take ten times that.
_WORTH_COMPILING = 600.0


@dataclass(frozen=True)
class Plan:
    """How to train. precision: f32, bf16 or f16 (mixed). memory_format: contiguous or channels_last.

    micro_batch: photos at once. speeds: photos a second of each candidate, 'dropped' ones with their reason in place.
    need: measured memory, None where the recipe names the micro-batch.
    """

    precision: str = "f32"
    memory_format: str = "contiguous"
    compile: bool = False
    micro_batch: int = 32
    speeds: dict[str, float | str] = field(default_factory=dict)
    need: Need | None = None

    @property
    def identity(self) -> list[Any]:
        """What another plan's training cannot go on from; not the micro-batch, which memory may lower at any time."""
        return [self.precision, self.memory_format, self.compile]

    def fabric(self) -> Fabric:
        """Lightning Fabric for one device in this precision: a GPU where there is one."""
        return make_fabric(self.precision)

    def arranged(self, model: nn.Module) -> nn.Module:
        """The network with its 4-D weights in the memory format."""
        return model.to(memory_format=_FORMATS[self.memory_format])

    def placed(self, inputs: Inputs, device: torch.device) -> Inputs:
        """A piece of a batch on the device: float32, 4-D tensors in the memory format."""
        if not isinstance(inputs, torch.Tensor):
            return tuple(self.placed(one, device) for one in inputs)
        kept = _FORMATS[self.memory_format] if inputs.ndim == 4 else torch.preserve_format
        dtype = torch.float32 if inputs.is_floating_point() else inputs.dtype
        return inputs.to(device, dtype, non_blocking=True, memory_format=kept)


def make_fabric(precision: str) -> Fabric:
    """Lightning Fabric for one device, a GPU where there is one."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells its precision each time
    return Fabric(accelerator="cuda" if torch.cuda.is_available() else "cpu", devices=1, precision=_FABRIC[precision])


def make_plan(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    loss: Loss,
    settings: Train,
    key: dict[str, Any],
    *,
    photos: int = 0,
    reporter: Reporter | None = None,
) -> Plan:
    """The fastest safe way to train this network on photos like these; taken from the cache where it is known.

    model: as in its hungriest epoch, everything unfrozen that will be. Its weights, buffers and the random state
    stay as they are. inputs, targets: a real batch of full size, 2 photos at least. key: JSON that names the network,
    what of it trains, and the photos' size. photos: how many steps are ahead, in photos, all epochs together.
    EngineError where not one photo fits.
    """
    reporter = reporter or Reporter()
    device = make_fabric("f32").device
    full_key = {
        **key,
        "version": _VERSION,
        "machine": [machine() if device.type == "cpu" else torch.cuda.get_device_name(device), cores()],
        "torch": torch.__version__,
        "train": [settings.precision, settings.memory_format, settings.compile, settings.micro_batch, settings.batch],
    }
    path = cache_root() / "plans" / f"{fingerprint(full_key)}.json"
    plan = _read(path)
    if plan is None:
        started = time.perf_counter()
        plan = _Trials(model, inputs, targets, loss, settings, device, reporter).plan(photos)
        write_json(path, {"key": full_key, "plan": asdict(plan)})
        reporter.say(f"Plan: {_told(plan)}, measured once on this machine in {time.perf_counter() - started:.1f} s.")
    return _fitted(plan, settings, device, reporter)


def _fitted(plan: Plan, settings: Train, device: torch.device, reporter: Reporter) -> Plan:
    """The plan, with a smaller micro-batch where there is less free memory today."""
    if plan.need is None:
        return plan
    micro = plan.need.fitting(plan.micro_batch, free_memory(device))
    if micro == plan.micro_batch:
        return plan
    reporter.say(f"Plan: memory is short now; {micro} photos at once in place of {plan.micro_batch}.")
    return replace(plan, micro_batch=micro)


def _told(plan: Plan) -> str:
    speeds = ", ".join(f"{n} {v:.0f}/s" if isinstance(v, float) else f"{n} {v}" for n, v in plan.speeds.items())
    how = f"{plan.precision}, {plan.memory_format}{', compiled' if plan.compile else ''}"
    return f"{how}, {plan.micro_batch} photos at once" + (f" ({speeds})" if speeds else "")


def _read(path: Path) -> Plan | None:
    """The kept plan, or None where there is none or it is damaged."""
    try:
        values = read_json(path)["plan"]
        need = values.pop("need")
        plan = Plan(**values, need=Need(**need) if need else None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = plan.precision in _FABRIC and plan.memory_format in _FORMATS
    return plan if known and isinstance(plan.micro_batch, int) and plan.micro_batch > 0 else None


class _Trials:
    """Real steps of the user's network on the user's photos, timed; nothing is learnt from them."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: torch.Tensor,
        loss: Loss,
        settings: Train,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.model, self.loss, self.settings = model.to(device), loss, settings
        self.device, self.reporter = device, reporter
        self.inputs = _at_least(inputs, _PHOTOS)
        self.targets: Any = _at_least(targets.to(device), _PHOTOS)
        self.micro = MicroBatch(4, 2 if trains_batchnorm(model) else 1, reporter)
        self.speeds: dict[str, float | str] = {}

    def plan(self, photos: int) -> Plan:
        """Times the candidates, then measures the winner's memory."""
        try:
            with undisturbed(self.model):
                best = self._fastest(self._candidates(), photos)
            return self._with_memory(best)
        finally:
            self.model.to(memory_format=torch.contiguous_format)

    def _candidates(self) -> list[Plan]:
        """Plainest first: of two that are equally fast the plainer one is kept."""
        wish, on_gpu = self.settings, self.device.type == "cuda"
        half = "bf16" if not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False) else "f16"
        precisions = ["f32", half] if wish.precision == "auto" else [wish.precision]
        if not on_gpu and "f16" in precisions:
            self.reporter.say("Plan: train.precision = f16 needs a GPU; f32 here.")
            precisions = ["f32"]
        formats = list(_FORMATS) if wish.memory_format == "auto" else [wish.memory_format]
        tensors = [self.inputs] if isinstance(self.inputs, torch.Tensor) else self.inputs
        if not any(tensor.ndim == 4 for tensor in tensors):
            formats = ["contiguous"]
        return [Plan(p, f, on_gpu and wish.compile == "on") for p, f in product(precisions, formats)]

    def _fastest(self, candidates: list[Plan], photos: int) -> Plan:
        if len(candidates) == 1 and self.settings.compile != "auto":
            return candidates[0]
        seconds: dict[str, float] = {}
        steps = {_name(plan): self._stepper(plan) for plan in candidates}
        start, reference = Moment(self.model), None
        self._choose_count(next(iter(steps.values())), len(candidates))
        halved = len(self.micro.halved)
        for name, step in steps.items():
            start.restore()  # the same dropout, so that gradients can be compared
            value, _ = self._survived(step)  # not timed: a first step makes kernels and buffers
            if len(self.micro.halved) > halved:
                return self._fastest(candidates, photos)  # times and gradients of fewer photos: all anew
            gradient = self._gradient()
            if reference is None:
                reference = gradient
            cosine = _cosine(reference, gradient)
            if not math.isfinite(value) or not math.isfinite(cosine):
                self.speeds[name] = "not finite"
            elif cosine < SAFE_COSINE:
                self.speeds[name] = f"unsafe (its gradient's cosine to the first is {cosine:.2f})"
            else:
                self._survived(step)
                seconds[name] = self._survived(step)[1]
        if not seconds:
            return candidates[0]  # training will say what is wrong with the loss
        for _ in range(_ROUNDS - 1):  # in turn, so that what else runs on the machine meets all of them
            best = min(seconds.values())
            for name, before in seconds.items():
                if before < _HOPELESS * best:
                    seconds[name] = min(before, self._survived(steps[name])[1])
        best = min(seconds.values())
        self.speeds |= {name: round(self.micro.size / taken, 2) for name, taken in seconds.items()}
        chosen = next(c for c in candidates if seconds.get(_name(c), math.inf) * _TIE <= best)
        return self._compiled(chosen, photos, seconds[_name(chosen)])

    def _choose_count(self, step: Callable[[int], tuple[float, float]], candidates: int) -> None:
        """As many photos a step as the trials' time allows."""
        self._survived(step)
        a_photo = self._survived(step)[1] / self.micro.size
        most = int(_SECONDS / (candidates * (_ROUNDS + 2) * a_photo))
        if not self.micro.halved:
            self.micro.size = max(self.micro.size, min(_PHOTOS, most))

    def _compiled(self, plan: Plan, photos: int, taken: float) -> Plan:
        """The plan compiled, on a GPU, where training is long enough to earn the time that compiling takes."""
        long = photos * taken / self.micro.size > _WORTH_COMPILING
        if self.device.type != "cuda" or plan.compile or self.settings.compile != "auto" or not long:
            return plan
        other = replace(plan, compile=True)
        try:
            step = self._stepper(other)
            again = min(self._survived(step)[1] for _ in range(_ROUNDS + 1))
        except Exception as error:  # compilers raise nearly anything
            self.speeds[_name(other)] = f"failed ({type(error).__name__})"
            return plan
        self.speeds[_name(other)] = round(self.micro.size / again, 2)
        return other if again < _TIE * taken else plan

    def _with_memory(self, plan: Plan) -> Plan:
        """The plan with its micro-batch: the recipe's, or the largest that fits by two measured sizes."""
        wish, effective = self.settings, max(1, self.settings.batch)
        if wish.micro_batch:
            return replace(plan, micro_batch=min(wish.micro_batch, effective), speeds=self.speeds)
        # Adam keeps two moments, SGD one; an average is kept once and swapped once; the best weights are kept once.
        copies = (2 if wish.optimiser == "adamw" else 1) + (2 if wish.ema else 0) + 1
        step, least = self._stepper(plan), self.micro.least
        sizes = (4, 8) if self.device.type == "cuda" else (2, 4)
        two = MicroBatch(sizes[1], 2 * least, self.reporter)
        need = retried(
            lambda: measure_need(self.model, step, (max(least, two.size // 2), two.size), self.device, copies),
            lambda: None,
            two.size,
            two,
            "Plan",
        )
        micro = need.fitting(effective, free_memory(self.device))
        return replace(plan, micro_batch=micro, speeds=self.speeds, need=need)

    def _stepper(self, plan: Plan) -> Callable[[int], tuple[float, float]]:
        """Function: number of photos -> loss and seconds of a forward and a backward pass, as the loop runs them."""
        fabric = plan.fabric()
        runner = fabric.setup_module(torch.compile(self.model) if plan.compile else self.model)
        # A fresh scaler of f16 starts so high that the first steps overflow, which is no fault of the network.
        share = 1 / 64 if plan.precision == "f16" else 1.0

        def step(count: int) -> tuple[float, float]:
            plan.arranged(self.model)
            self.model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            inputs = plan.placed(rows(self.inputs, slice(0, count)), self.device)
            value = self.loss(runner(inputs), self.targets[:count])
            fabric.backward(value * share)
            return value.item(), self._since(started)

        return step

    def _since(self, started: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def _survived(self, step: Callable[[int], tuple[float, float]]) -> tuple[float, float]:
        count = self.micro.size
        return retried(lambda: step(self.micro.size), self.model.zero_grad, count, self.micro, "Plan")

    def _gradient(self) -> torch.Tensor:
        """The gradient of all that trains, float32, one vector."""
        parts = [p.grad.float().flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(parts) if parts else torch.zeros(1)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine between two gradients; 1 where both are zero, NaN where one is not finite."""
    if not a.any() and not b.any():
        return 1.0
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def _name(plan: Plan) -> str:
    return f"{plan.precision} {plan.memory_format}{' compiled' if plan.compile else ''}"


def _at_least(inputs: Inputs, count: int) -> Inputs:
    """The first `count` photos, repeated where there are fewer."""
    if not isinstance(inputs, torch.Tensor):
        return tuple(_at_least(one, count) for one in inputs)
    return torch.cat([inputs] * -(-count // len(inputs)))[:count]
