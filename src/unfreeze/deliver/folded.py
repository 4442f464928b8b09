"""A run's whole chain as one torch module: preprocessing, networks, all folds' heads; and what it says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.learn.classifier import Classifier
from unfreeze.learn.tta import LOOKS
from unfreeze.model.cards import Preprocessing
from unfreeze.model.graphs import Graph

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
OUTPUT = "probabilities"
# What a program must do before it calls the file, by whether the photo is cropped or squashed.
_RESAMPLING = (
    "the upright photo's centre square, side `crop` times its short side, resized to `size` x `size`",
    "the centre `crop` of both sides of the upright photo, pressed into `size` x `size`",
)


@dataclass(frozen=True)
class Plan:
    """What the file takes. names: its inputs, one for each way a photo becomes pixels. feeds: which a graph reads."""

    graphs: tuple[Graph, ...]
    feeds: tuple[int, ...]
    names: tuple[str, ...]
    views: tuple[str, ...]

    @classmethod
    def of(cls, classifier: Classifier, views: str | None) -> Plan:
        """The plan of a run; inputs of one size and crop share their pixels."""
        shapes = [(p.size, p.crop, p.resample, p.squash) for p in (g.preprocessing for g in classifier.graphs)]
        distinct = list(dict.fromkeys(shapes))
        sizes = [size for size, *_ in distinct]
        names = [
            f"pixels_{size}" if sizes.count(size) == 1 else f"pixels_{size}_{chr(97 + sizes[:i].count(size))}"
            for i, size in enumerate(sizes)
        ]
        return cls(
            classifier.graphs,
            tuple(distinct.index(shape) for shape in shapes),
            tuple(names) if len(names) > 1 else ("pixels",),
            LOOKS[views] if views else tuple(classifier.run.recipe.probe.views),
        )

    def frames(self) -> list[Preprocessing]:
        """How a photo becomes each input, in the order of `names`."""
        return [self.graphs[self.feeds.index(i)].preprocessing for i in range(len(self.names))]


def folded(classifier: Classifier, plan: Plan) -> nn.Module:
    """The whole chain as one torch module: uint8 (N, S, S, 3), one for each input -> float32 (N, C) probabilities.

    All folds' heads stand side by side in one matrix a network, so that a prediction is one pass and one product.
    """
    import torch
    from torch import nn

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(graph.module() for graph in plan.graphs)
            weights = _stacked([_width(net, g) for net, g in zip(self.networks, plan.graphs, strict=True)], classifier)
            for i, graph in enumerate(plan.graphs):
                mean, std = (
                    torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (graph.preprocessing.mean, graph.preprocessing.std)
                )
                self.register_buffer(f"mean_{i}", mean)
                self.register_buffer(f"std_{i}", std)
                self.register_buffer(f"weight_{i}", torch.from_numpy(weights[i]))
            self.register_buffer("bias", torch.from_numpy(np.concatenate([h.bias for h in classifier.heads])))

        def forward(self, *pixels: torch.Tensor) -> torch.Tensor:
            logits = self.bias
            for i, network in enumerate(self.networks):
                images = pixels[plan.feeds[i]].permute(0, 3, 1, 2).float()
                if plan.graphs[i].preprocessing.gray:  # as images.grayed: whole numbers under 2^24, so that it is exact
                    total = 19595 * images[:, 0:1] + 38470 * images[:, 1:2] + 7471 * images[:, 2:3]
                    images = torch.floor((total + 32768) / 65536).expand(-1, 3, -1, -1)
                images = (images - getattr(self, f"mean_{i}")) / getattr(self, f"std_{i}")
                # All views in one pass. Features are averaged over the views before the root is taken, as in a run.
                seen = torch.cat([images.flip(3) if view == "flip" else images for view in plan.views])
                features = network(seen)
                features = features.reshape(len(plan.views), -1, features.shape[1]).mean(0)
                rooted = torch.sign(features) * torch.sqrt(torch.abs(features))
                logits = logits + rooted @ getattr(self, f"weight_{i}")
            each = logits.reshape(-1, len(classifier.heads), len(classifier.run.classes))
            return torch.softmax(each, 2).mean(1)

    return Folded().eval().requires_grad_(False)


def metadata(classifier: Classifier, plan: Plan) -> dict[str, str]:
    """What the file says of itself: text by key, JSON where it is a list."""
    from unfreeze import __version__

    run = classifier.run
    inputs = [
        {
            "name": name,
            "type": "uint8",
            "layout": "NHWC",
            "colours": "RGB",
            "size": p.size,
            "crop": p.crop,
            "squash": p.squash,
            "resampling": f"{_RESAMPLING[p.squash]}; {p.resample} with antialiasing (Pillow: Image.resize with box)",
            **({"inside": "the network turns the colours gray (ITU-R 601)"} if p.gray else {}),
            "read_by": [g.title() for g, feed in zip(plan.graphs, plan.feeds, strict=True) if feed == i],
        }
        for i, (name, p) in enumerate(zip(plan.names, plan.frames(), strict=True))
    ]
    weights = {g.backbone.name: g.backbone.describe() for g in plan.graphs}
    return {
        "made_by": f"unfreeze {__version__}",
        "format": str(FORMAT),
        "classes": json.dumps(list(run.classes), ensure_ascii=False),
        "answers": json.dumps(list(run.info["answers"]), ensure_ascii=False),
        "inputs": json.dumps(inputs, ensure_ascii=False),
        "output": f"{OUTPUT}: float32 (N, {len(run.classes)}), mean of {run.recipe.folds.count} folds, rows sum to 1",
        "views": json.dumps(list(plan.views)),
        "backbones": json.dumps(weights, ensure_ascii=False),
        "licence": "; ".join(dict.fromkeys(f"weights of {w['title']}: {w['licence']}" for w in weights.values())),
        "run": json.dumps(
            {
                "name": run.path.resolve().name,
                "identity": run.info.get("identity", ""),
                "finished": run.info.get("finished", ""),
                "strategy": run.recipe.strategy,
            },
            ensure_ascii=False,
        ),
    }


def _stacked(widths: list[int], classifier: Classifier) -> list[NDArray[np.float32]]:
    """For each graph (D, folds x C): the folds' weights side by side, zero where a fold does not read it."""
    classes = len(classifier.run.classes)
    stacked = [np.zeros((width, len(classifier.heads) * classes), np.float32) for width in widths]
    for k, head in enumerate(classifier.heads):
        starts = np.cumsum([0, *(widths[i] for i in head.inputs)])
        for i, start in zip(head.inputs, starts, strict=False):
            stacked[i][:, k * classes : (k + 1) * classes] = head.weight[start : start + widths[i]]
    return stacked


def _width(network: Any, graph: Graph) -> int:
    """Number of features that the network gives for a photo."""
    import torch

    with torch.inference_mode():
        return int(network(torch.zeros(1, 3, graph.preprocessing.size, graph.preprocessing.size)).shape[1])
