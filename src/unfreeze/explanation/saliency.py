"""Grad-CAM for networks with spatial feature maps, attention rollout for plain vision transformers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from unfreeze.core.arrays import F64
from unfreeze.models.fine_tune_model import FineTuneModel
from unfreeze.models.stages import Stage
from unfreeze.models.tracing import main_tensor
from unfreeze.training.fine_tune.losses import logits_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# Coarser maps do not localize; Grad-CAM uses the last stage with at least this many cells per side.
LEAST_SIDE = 6


def target_stage(network: FineTuneModel) -> Stage | None:
    """The stage whose feature map Grad-CAM uses.

    This is the last stage with at least LEAST_SIDE cells per side, or else the stage with the most cells. If the head
    reads several stages, only stages up to the first of them qualify: features read from an earlier stage do not pass
    through a later one.

    Returns:
        None if no stage has a map with at least 2 cells per side.
    """
    stages = network.anatomy.stages
    until = stages.index(network.read[0]) if network.read else len(stages) - 1
    able = [stage for stage in stages[: until + 1] if stage.layout != "NC" and stage.side >= 2]
    if not able:
        return None
    fine = [stage for stage in able if stage.side >= LEAST_SIDE]
    return fine[-1] if fine else max(able, key=lambda stage: stage.side)


def grad_cam(
    network: FineTuneModel, images: torch.Tensor, label: int, runner_up: int, stage: Stage | None = None
) -> tuple[F64, F64]:
    """Grad-CAM maps of the margin between two classes.

    The channels of the feature map are weighted by the mean gradient of the margin and summed. There are two
    differences to the paper. Negative values are kept, since they are evidence for `runner_up`. If the head reads a
    grid of cells, the gradient is averaged per grid cell, since such a head has different weights in every cell and a
    mean over the image would mix them (see HiResCAM). For a head that pools the whole map, this is plain Grad-CAM.

    Args:
        network: A complete network (frozen front not split off); it is set to eval mode.
        images: float32 (B, 3, S, S), normalized.
        label: Class index.
        runner_up: Class index.
        stage: By default `target_stage(network)`.

    Returns:
        Maps float64 (B, h, w), and margins float64 (B,): logit of `label` minus logit of `runner_up`. Positive values
        are evidence for `label`, negative values for `runner_up`. The scale depends on the network and the image, so
        values are not comparable between them.

    Raises:
        ValueError: The network has no spatial feature map.

    References:
        Selvaraju et al. 2017, Grad-CAM (arXiv 1610.02391).
        Draelos and Carin 2020, HiResCAM (arXiv 2011.08891).
    """
    stage = stage or target_stage(network)
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
            # The input requires a gradient, so that autograd records the graph although all parameters are frozen.
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


def supports_rollout(network: FineTuneModel) -> bool:
    """Whether attention rollout is valid: every block mixes all tokens by attention only and keeps them.

    This holds for timm's plain vision transformers (ViT, DeiT, DINOv2, CLIP, SigLIP). It does not hold for networks
    with windowed attention, token pooling or merging between blocks, or additional convolutions.
    """
    blocks = getattr(network.network, "blocks", None)
    stages = [stage for stage in network.anatomy.stages if stage.layout != "NC"]
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not stages or not len(blocks):
        return False
    plain = all(_attention(block) is not None for block in blocks)
    same = all(s.layout == "NLC" and not s.order and s.side == stages[-1].side for s in stages[-len(blocks) :])
    names = {type(module).__name__ for block in blocks for module in block.modules()}
    return plain and same and not any("Conv" in name for name in names)


def attention_rollout(network: FineTuneModel, images: torch.Tensor) -> F64:
    """Attention rollout: the share of the attention that comes from each patch.

    In each block, the attention is averaged over the heads and mixed in equal parts with the identity, for the residual
    connection. The matrices are multiplied from the first block to the last. The result is the row of the class token
    if the head reads it, otherwise the mean over the rows of the patches. It shows where information can come from. It
    is independent of the class, and ignores the values and the layers between the attention layers.

    Args:
        network: A complete network for which `supports_rollout` is true; it is set to eval mode.
        images: float32 (B, 3, S, S), normalized.

    Returns:
        float64 (B, h, w), nonnegative; each map sums to 1.

    References:
        Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers (arXiv 2005.00928), section 3.
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
    """The block's timm `Attention` module, whose weights are visible as the input of its dropout; None otherwise."""
    attention = getattr(block, "attn", None)
    able = all(hasattr(attention, name) for name in ("fused_attn", "attn_drop", "qkv", "num_heads"))
    return attention if able and type(attention).__name__ == "Attention" else None


@contextmanager
def _attention_told(network: nn.Module, attended: list[torch.Tensor]) -> Iterator[None]:
    """Context manager that records the attention (B, heads, N, N) of each block in every forward pass."""
    handles, fused = [], []
    blocks: Any = network.blocks
    for attention in (_attention(block) for block in blocks):
        assert attention is not None
        fused.append((attention, attention.fused_attn))
        attention.fused_attn = False  # the fused kernel does not materialize the attention weights
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
    """Convert a stage's output to NCHW: (B, C, h, w)."""
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
