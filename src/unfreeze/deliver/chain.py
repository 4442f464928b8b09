"""The torch module behind an exported file; plain operations only, so that every exporter can follow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from unfreeze.deliver.folded import Plan, Trunk
from unfreeze.model.cards import Preprocessing
from unfreeze.model.cuts import beside, boundary
from unfreeze.model.stages import main_tensor
from unfreeze.model.taps import pooled
from unfreeze.model.tuned import Tuned

Started = tuple[torch.Tensor, torch.Tensor | None]


class Chain(nn.Module):
    """uint8 (N, S, S, 3), one for each of `plan.names` -> float32 (N, C), the mean over the plan's speakers.

    apart: a tuple, that mean and then each speaker's own probabilities.
    """

    def __init__(self, plan: Plan, apart: bool = False) -> None:
        super().__init__()
        self.plan, self.apart = plan, apart
        self.lenses = nn.ModuleList(_Lens(p, plan.views) for p in plan.lenses)
        self.trunks = nn.ModuleList(_Reader(t, plan.lenses[t.lens]) for t in plan.trunks)
        self.heads = _Heads(plan, [self._width(i) for i in range(len(plan.graphs))]) if plan.heads else None
        self.tuned = nn.ModuleList(_Voice(models.network(file)) for models, _ in plan.tuned for file in models.files)

    def _width(self, graph: int) -> int:
        """Number of features that heads read of a graph, by asking for them."""
        trunk, place = self.plan.read[graph]
        size = self.plan.graphs[graph].preprocessing.size
        with torch.inference_mode():
            return int(self.trunks[trunk](torch.zeros(1, 3, size, size))[0][place].shape[1])

    def forward(self, *pixels: torch.Tensor) -> Any:
        plan, views = self.plan, len(self.plan.views)
        seen = [lens(pixels[feed]) for lens, feed in zip(self.lenses, plan.feeds, strict=True)]
        blocks, starts = [], []
        for trunk, module in zip(plan.trunks, self.trunks, strict=True):
            features, started = module(seen[trunk.lens])
            blocks.append(features)
            starts.append(started)
        answers: list[torch.Tensor] = []  # one a voice, in the order of plan.shares
        if self.heads is not None:
            # Features are averaged over the views before the root is taken, as in a run.
            read = [blocks[trunk][place] for trunk, place in plan.read]
            answers += self.heads([f.reshape(views, -1, f.shape[1]).mean(0) for f in read]).unbind(1)
        voices = iter(self.tuned)
        for models, lens in plan.tuned:
            setting = models.setting
            inputs = seen[lens]
            if setting.cut:
                place = next(i for i, t in enumerate(plan.trunks) if (t.backbone, t.lens) == (setting.backbone, lens))
                inputs = starts[place][plan.trunks[place].cuts.index((setting.first, setting.taps))]
            for _ in models.files:
                each = torch.softmax(next(voices)(inputs), 1)
                answers.append(each.reshape(views, -1, each.shape[1]).mean(0))
        together = _mean(answers, plan.shares.mean(0))
        return (together, *(_mean(answers, row) for row in plan.shares)) if self.apart else together


def _mean(answers: list[torch.Tensor], shares: Any) -> torch.Tensor:
    """Weighted; a voice of no share is not asked, so that an answer's part of the graph holds no more than it needs."""
    chosen = [i for i, share in enumerate(shares) if share]
    if len({float(shares[i]) for i in chosen}) == 1:
        return torch.stack([answers[i] for i in chosen]).mean(0)
    return torch.stack([answers[i] * float(shares[i]) for i in chosen]).sum(0)


class _Lens(nn.Module):
    """Pixels as a network was trained to see them, all views in one batch: float32 (views x N, 3, S, S)."""

    def __init__(self, preprocessing: Preprocessing, views: tuple[str, ...]) -> None:
        super().__init__()
        self.gray, self.views = preprocessing.gray, views
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.permute(0, 3, 1, 2).float()
        if self.gray:  # as images.grayed: whole numbers under 2^24, so that it is exact
            total = 19595 * images[:, 0:1] + 38470 * images[:, 1:2] + 7471 * images[:, 2:3]
            images = torch.floor((total + 32768) / 65536).expand(-1, 3, -1, -1)
        images = (images - self.mean) / self.std
        return torch.cat([images.flip(3) if view == "flip" else images for view in self.views])


class _Reader(nn.Module):
    """A pretrained network, run once: the blocks that heads read, and what later stages start from."""

    def __init__(self, trunk: Trunk, preprocessing: Preprocessing) -> None:
        super().__init__()
        size = preprocessing.size
        self.network = trunk.backbone.build(size=size)
        anatomy = trunk.backbone.anatomy(size)
        self.read = [(anatomy.stages[-taps.last :], taps.grid) for taps in trunk.taps]
        self.cuts = [
            (boundary(anatomy, first), beside(anatomy, first, taps) if taps else (), taps.grid if taps else 1)
            for first, taps in trunk.cuts
        ]
        self.seen: dict[str, Any] = {}
        wanted = {stage.output for stages, _ in self.read for stage in stages}
        wanted |= {stage.output for _, stages, _ in self.cuts for stage in stages} | {end for end, _, _ in self.cuts}
        for name in sorted(wanted):
            self.network.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: self.keep(name, out))

    def keep(self, name: str, output: Any) -> None:
        self.seen[name] = output

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[Started]]:
        self.seen.clear()
        self.network(images)
        blocks = [torch.cat([pooled(self.seen[s.output], s, grid) for s in stages], 1) for stages, grid in self.read]
        starts: list[Started] = []
        for end, stages, grid in self.cuts:
            kept = torch.cat([pooled(self.seen[s.output], s, grid) for s in stages], 1) if stages else None
            starts.append((main_tensor(self.seen[end]), kept))
        self.seen.clear()
        return blocks, starts


class _Heads(nn.Module):
    """Every linear head at once: features of each graph -> probabilities (N, heads, C)."""

    def __init__(self, plan: Plan, widths: list[int]) -> None:
        super().__init__()
        self.shape = (len(plan.heads), len(plan.classes))
        stacked = [np.zeros((width, len(plan.heads) * len(plan.classes)), np.float32) for width in widths]
        for k, head in enumerate(plan.heads):
            starts = np.cumsum([0, *(widths[i] for i in head.inputs)])
            for i, start in zip(head.inputs, starts, strict=False):
                own = head.weight[start : start + widths[i]]
                stacked[i][:, k * len(plan.classes) : (k + 1) * len(plan.classes)] = own
        for i, weight in enumerate(stacked):
            self.register_buffer(f"weight_{i}", torch.from_numpy(weight))
        self.register_buffer("bias", torch.from_numpy(np.concatenate([h.bias for h in plan.heads])))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        logits: Any = self.bias
        for i, block in enumerate(features):
            logits = logits + _rooted(block) @ getattr(self, f"weight_{i}")
        return torch.softmax(logits.reshape(-1, *self.shape), 2)


class _Voice(nn.Module):
    """A fold's fine-tuned network: logits. Its head is taken out of `Tuned`, whose root is no plain operation."""

    def __init__(self, tuned: Tuned) -> None:
        super().__init__()
        self.head, tuned.head = tuned.head, None
        self.tuned = tuned

    def forward(self, inputs: Any) -> torch.Tensor:
        tuned = self.tuned
        output = main_tensor(tuned(inputs))
        if self.head is None or tuned.taps is None:
            return output
        kept = None if isinstance(inputs, torch.Tensor) else inputs[1]
        parts = [] if kept is None else [kept]
        parts += [pooled(tuned.seen[s.name], s, tuned.taps.grid) for s in tuned.read if s not in tuned.beside]
        tuned.seen.clear()
        return self.head(_rooted(torch.cat(parts, 1)))


def _rooted(features: torch.Tensor) -> torch.Tensor:
    return torch.sign(features) * torch.sqrt(torch.abs(features))
