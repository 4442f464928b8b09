"""Where a trained network looked: Grad-CAM for maps of channels, attention rollout for plain vision transformers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from unfreeze.learn.train.losses import logits_of
from unfreeze.model.stages import Stage, main_tensor
from unfreeze.model.tuned import Tuned

if TYPE_CHECKING:
    from collections.abc import Iterator

F64 = NDArray[np.float64]
# A map of fewer cells a side tells no place; the last stage that has as many is looked into.
LEAST_SIDE = 6


def stage_of(network: Tuned) -> Stage | None:
    """The stage whose map is looked into; None where no stage of the network has a map of at least 2 cells a side.

    The last one with LEAST_SIDE cells a side, or the largest there is, and, under a head that reads several stages,
    none later than the first of them: what is read of an earlier stage does not pass through a later one.
    """
    stages = network.anatomy.stages
    until = stages.index(network.read[0]) if network.read else len(stages) - 1
    able = [stage for stage in stages[: until + 1] if stage.layout != "NC" and stage.side >= 2]
    if not able:
        return None
    fine = [stage for stage in able if stage.side >= LEAST_SIDE]
    return fine[-1] if fine else max(able, key=lambda stage: stage.side)


def grad_cam(
    network: Tuned, images: torch.Tensor, label: int, runner_up: int, stage: Stage | None = None
) -> tuple[F64, F64]:
    """Maps float64 (B, h, w), and the margins float64 (B,): logit of `label` less that of `runner_up`.

    network: whole (not cut), in eval mode. images: float32 (B, 3, S, S), normalised. stage: as of `stage_of`, which is
    the default. Above 0 speaks for `label`, below for `runner_up`; the scale is the network's own, so that numbers of
    two networks, or two photos, are not to be compared. Raises ValueError for a network without maps.

    Method: Selvaraju et al. 2017, Grad-CAM (arXiv 1610.02391): channels of the map, each weighted by the mean of the
    margin's gradient over it. Two things differ, for two reasons. Negative values stay, for they are the runner-up's.
    And under a head that reads a grid of cells, the gradient is averaged cell by cell of that grid, for such a head
    has other weights in every cell, which a mean over the whole photo would mix (Draelos and Carin 2020, arXiv
    2011.08891); for a head that pools the whole map into one, that is the paper's.
    """
    stage = stage or stage_of(network)
    if stage is None:
        raise ValueError("this network has no map of channels to look into")
    seen: list[torch.Tensor] = []
    handle = network.network.get_submodule(stage.output).register_forward_hook(
        lambda _module, _inputs, output: seen.append(main_tensor(output))
    )
    was = [parameter.requires_grad for parameter in network.parameters()]
    try:
        network.eval().requires_grad_(False)
        with torch.enable_grad():
            # A leaf of its own, so that the graph begins at the pixels though no weight asks for a gradient.
            logits = logits_of(network(images.detach().clone().requires_grad_(True)))
            margin = logits[:, label] - logits[:, runner_up]
            (slope,) = torch.autograd.grad(margin.sum(), seen[-1])
    finally:
        handle.remove()
        for parameter, asked in zip(network.parameters(), was, strict=True):
            parameter.requires_grad_(asked)
    activation, slope = _laid_out(seen[-1].detach(), stage), _laid_out(slope, stage)
    if stage.relu:
        activation = functional.relu(activation)
    grid = min(network.taps.grid, stage.side) if network.taps else 1
    weight = functional.interpolate(functional.adaptive_avg_pool2d(slope, grid), activation.shape[-2:], mode="nearest")
    return _numbers((weight * activation).sum(1)), _numbers(margin.detach())


def can_roll(network: Tuned) -> bool:
    """Whether rollout is sound here: every block mixes all tokens by attention alone, and none is lost or merged.

    So it is in timm's plain vision transformers (ViT, DeiT, DINOv2, CLIP, SigLIP), and not in those that attend within
    windows, pool tokens between blocks, or mix them by convolutions too.
    """
    blocks = getattr(network.network, "blocks", None)
    stages = [stage for stage in network.anatomy.stages if stage.layout != "NC"]
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not stages or not len(blocks):
        return False
    plain = all(_attention(block) is not None for block in blocks)
    same = all(s.layout == "NLC" and not s.order and s.side == stages[-1].side for s in stages[-len(blocks) :])
    names = {type(module).__name__ for block in blocks for module in block.modules()}
    return plain and same and not any("Conv" in name for name in names)


def attention_rollout(network: Tuned, images: torch.Tensor) -> F64:
    """Maps float64 (B, h, w), never negative, each of sum 1: how much of what is read came from each patch.

    network: one of which `can_roll` holds, whole, in eval mode. images: float32 (B, 3, S, S), normalised.

    Method: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers (arXiv 2005.00928), section 3: per block
    the mean over heads of the attention, with the residual connection as half of it, multiplied from the first block
    to the last. The row taken is the class token's, where a head reads it, else the mean over the patches'. It says
    where information can have come from; it knows nothing of classes, nor of what the values and the layers between
    made of it.
    """
    attended: list[torch.Tensor] = []
    with _attention_told(network.network, attended), torch.inference_mode():
        network.eval()(images)
    size = attended[0].shape[-1]
    flow = torch.eye(size, device=images.device).expand(len(images), size, size)
    for attention in attended:
        mixed = (attention.float().mean(1) + torch.eye(size, device=images.device)) / 2
        flow = (mixed / mixed.sum(-1, keepdim=True)) @ flow
    stage = network.anatomy.stages[-1]
    rows = flow[:, : stage.classes] if stage.classes else flow[:, stage.prefix :]
    patches = rows.mean(1)[:, stage.prefix :]
    patches = patches / patches.sum(1, keepdim=True).clamp_min(1e-12)
    return _numbers(patches.unflatten(1, (stage.side, -1)))


def _attention(block: nn.Module) -> nn.Module | None:
    """A block's attention if its weights can be told: timm's `Attention`, whose dropout takes them as they are."""
    attention = getattr(block, "attn", None)
    able = all(hasattr(attention, name) for name in ("fused_attn", "attn_drop", "qkv", "num_heads"))
    return attention if able and type(attention).__name__ == "Attention" else None


@contextmanager
def _attention_told(network: nn.Module, attended: list[torch.Tensor]) -> Iterator[None]:
    """While it lasts, every forward pass appends each block's attention (B, heads, N, N), in order."""
    handles, fused = [], []
    blocks: Any = network.blocks
    for attention in (_attention(block) for block in blocks):
        assert attention is not None
        fused.append((attention, attention.fused_attn))
        attention.fused_attn = False  # the fused kernel never has the weights as a tensor
        drop: Any = attention.attn_drop
        handles.append(drop.register_forward_hook(lambda _m, _i, output: attended.append(output.detach())))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for attention, before in fused:
            attention.fused_attn = before


def _laid_out(tensor: torch.Tensor, stage: Stage) -> torch.Tensor:
    """A stage's output as maps (B, C, h, w), whatever its layout."""
    if stage.layout == "NCHW":
        return tensor
    if stage.layout == "NHWC":
        return tensor.permute(0, 3, 1, 2)
    tokens = tensor[:, stage.prefix :].transpose(1, 2)
    if stage.order:
        tokens = tokens[:, :, list(stage.order)]
    return tokens.unflatten(2, (stage.side, stage.side))


def _numbers(tensor: torch.Tensor) -> F64:
    found: F64 = tensor.double().cpu().numpy()
    return found
