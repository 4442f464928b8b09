"""The torch module behind an exported file: preprocessing, networks, heads and the mean over folds.

`ExportPlan` describes the inputs, the networks and their weights in the mean; `build_export_module` turns it into a
module; `metadata` and `inputs_of` describe it for the consumer. The module uses plain operations only, so that all
exporters support it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unfreeze.core.version import VERSION
from unfreeze.features.views import LOOKS
from unfreeze.inference.predictor import Classifier
from unfreeze.models.backbone_split import side_features, split_module
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.fine_tune_model import FineTuneModel
from unfreeze.models.model_info import Preprocessing
from unfreeze.models.pooling import FeatureSpec, pool_stage
from unfreeze.models.registry import Backbone
from unfreeze.models.tracing import main_tensor
from unfreeze.training.linear_probe.heads import LinearHead

if TYPE_CHECKING:
    from torch import nn

    from unfreeze.inference.networks import FineTunedNetworks


FORMAT = 2
OUTPUT = "probabilities"
# Resizing that the caller of the file has to do, indexed by `squash`.
_RESAMPLING = (
    "the upright photo's center square, side `crop` times its short side, resized to `size` x `size`",
    "the center `crop` of both sides of the upright photo, pressed into `size` x `size`",
)


@dataclass(frozen=True)
class SharedBackbone:
    """A pretrained network that runs once for all of its consumers.

    Attributes:
        backbone: The network.
        lens: Index of its preprocessing.
        taps: Feature blocks that linear heads read from it.
        cuts: First trainable stage and taps of the fine-tuned networks (strategy partial) that continue from its
            activations.
    """

    backbone: Backbone
    lens: int
    taps: tuple[FeatureSpec, ...] = ()
    cuts: tuple[tuple[int, FeatureSpec | None], ...] = ()


@dataclass(frozen=True)
class ExportPlan:
    """Inputs, networks and weights of an exported model.

    A speaker is one fold, or all folds together.

    Attributes:
        classes: Class names.
        views: Views that are averaged.
        names: Names of the inputs, one for each way an image becomes pixels.
        lenses: The distinct preprocessings.
        feeds: Index of the input of each preprocessing.
        trunks: The distinct pretrained networks.
        graphs: The distinct feature extractors that heads read.
        read: For each feature extractor, index of its trunk and of its features there.
        heads: Linear heads; their inputs are indices into `graphs`.
        tuned: Fine-tuned networks with the index of their preprocessing.
        shares: float64 (speakers, heads + fine-tuned networks), weights in the mean; rows sum to 1.
    """

    classes: tuple[str, ...]
    views: tuple[str, ...]
    names: tuple[str, ...]
    lenses: tuple[Preprocessing, ...]
    feeds: tuple[int, ...]
    trunks: tuple[SharedBackbone, ...]
    graphs: tuple[FeatureExtractor, ...]
    read: tuple[tuple[int, int], ...]
    heads: tuple[LinearHead, ...]
    tuned: tuple[tuple[FineTunedNetworks, int], ...]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, speakers: Classifier | Sequence[Classifier], views: str | None) -> ExportPlan:
        """Plan the export of one classifier, or of one classifier per fold.

        Preprocessings with the same size and crop share an input.
        """
        speakers = [speakers] if isinstance(speakers, Classifier) else list(speakers)
        graphs, lenses = list[FeatureExtractor](), list[Preprocessing]()
        trunks: list[SharedBackbone] = []
        heads, tuned = list[LinearHead](), list[tuple["FineTunedNetworks", int]]()
        head_shares: list[tuple[int, float]] = []
        tuned_shares: list[tuple[int, float]] = []
        for number, speaker in enumerate(speakers):
            for graph in speaker.graphs:
                _number(graph, graphs)
                _number(graph.preprocessing, lenses)
            weights = speaker.tuned_weights
            total = len(speaker.heads) + sum(t * len(m.files) for m, t in zip(speaker.tuned, weights, strict=True))
            for head in speaker.heads:
                heads.append(replace(head, inputs=tuple(graphs.index(speaker.graphs[i]) for i in head.inputs)))
                head_shares.append((number, 1 / total))
            for models, times in zip(speaker.tuned, weights, strict=True):
                tuned.append((models, _number(models.setting.preprocessing, lenses)))
                tuned_shares += [(number, times / total)] * len(models.files)
        read = []
        for graph in graphs:
            place = _trunk(trunks, graph.backbone, lenses.index(graph.preprocessing))
            if graph.taps not in trunks[place].taps:
                trunks[place] = replace(trunks[place], taps=(*trunks[place].taps, graph.taps))
            read.append((place, trunks[place].taps.index(graph.taps)))
        for models, lens in tuned:
            s = models.setting
            if s.cut:
                place = _trunk(trunks, s.backbone, lens)
                if (s.first, s.taps) not in trunks[place].cuts:
                    trunks[place] = replace(trunks[place], cuts=(*trunks[place].cuts, (s.first, s.taps)))
        shares = np.zeros((len(speakers), len(heads) + len(tuned_shares)))
        for index, (number, share) in enumerate((*head_shares, *tuned_shares)):
            shares[number, index] = share
        shapes = [(p.size, p.crop, p.resample, p.squash, p.face) for p in lenses]
        distinct = list(dict.fromkeys(shapes))
        run = speakers[0].run
        return cls(
            classes=run.classes,
            views=LOOKS[views] if views else tuple(run.recipe.probe.views),
            names=_names([size for size, *_ in distinct]),
            lenses=tuple(lenses),
            feeds=tuple(distinct.index(shape) for shape in shapes),
            trunks=tuple(trunks),
            graphs=tuple(graphs),
            read=tuple(read),
            heads=tuple(heads),
            tuned=tuple(tuned),
            shares=shares,
        )

    def frames(self) -> list[Preprocessing]:
        """Preprocessing of each input, in the order of `names`."""
        return [self.lenses[self.feeds.index(i)] for i in range(len(self.names))]

    def networks(self) -> int:
        """Number of networks in the file; a shared frozen front counts once."""
        return len(self.trunks) + sum(len(models.files) for models, _ in self.tuned)

    def tokens(self) -> bool:
        """Whether any network is a transformer, that is, has token stages."""
        backbones = [t.backbone for t in self.trunks] + [m.setting.backbone for m, _ in self.tuned]
        return any(stage.layout == "NLC" for b in backbones for stage in b.anatomy().stages)

    def titles(self, frame: int) -> list[str]:
        """Human-readable names of the networks that read an input."""
        seeing = [i for i, feed in enumerate(self.feeds) if feed == frame]
        found = [g.title() for g in self.graphs if self.lenses.index(g.preprocessing) in seeing]
        found += [f"{m.setting.backbone.title}, fine-tuned" for m, lens in self.tuned if lens in seeing]
        return list(dict.fromkeys(found))

    def backbones(self) -> list[Backbone]:
        """The distinct backbones."""
        every = [t.backbone for t in self.trunks] + [m.setting.backbone for m, _ in self.tuned]
        return list({b.name: b for b in every}.values())


def build_export_module(plan: ExportPlan, apart: bool = False) -> nn.Module:
    """Build the complete model: uint8 (N, S, S, 3) per input -> probabilities float32 (N, C).

    The weights of all linear heads are stacked into one matrix per feature extractor, so that a prediction takes one
    forward pass and one matrix product.

    Args:
        plan: What to build.
        apart: Return a tuple: the mean over the speakers, then the probabilities of each speaker.
    """

    return ExportedModel(plan, apart).eval().requires_grad_(False)


def metadata(classifier: Classifier, plan: ExportPlan, fold: int | None = None) -> dict[str, str]:
    """Metadata of the file as strings; lists are JSON.

    Args:
        classifier: The exported run.
        plan: Its plan.
        fold: The only fold in the file; None for all folds.
    """
    run = classifier.run
    weights = {b.name: b.describe() for b in plan.backbones()}
    who = f"mean of {run.recipe.folds.n_splits} folds" if fold is None else f"fold {fold} alone"
    about = {
        "name": run.path.resolve().name,
        "identity": run.info.get("identity", ""),
        "finished": run.info.get("finished", ""),
        "strategy": run.recipe.strategy,
        **({} if fold is None else {"fold": fold}),
    }
    return {
        "made_by": f"unfreeze {VERSION}",
        "format": str(FORMAT),
        "classes": json.dumps(list(run.classes), ensure_ascii=False),
        "answers": json.dumps(list(run.info["answers"]), ensure_ascii=False),
        "inputs": json.dumps(inputs_of(plan), ensure_ascii=False),
        "output": f"{OUTPUT}: float32 (N, {len(run.classes)}), {who}, rows sum to 1",
        "views": json.dumps(list(plan.views)),
        "backbones": json.dumps(weights, ensure_ascii=False),
        "licence": "; ".join(dict.fromkeys(f"weights of {w['title']}: {w['licence']}" for w in weights.values())),
        "run": json.dumps(about, ensure_ascii=False),
    }


def inputs_of(plan: ExportPlan) -> list[dict[str, Any]]:
    """JSON-serializable description of each input: what the caller has to do to an image, and what the file does."""
    found = []
    for i, (name, p) in enumerate(zip(plan.names, plan.frames(), strict=True)):
        inside = ["the network turns the colors gray (ITU-R 601)"] if p.gray else []
        inside.append("value / 255, less mean, by std, for each channel")
        seen = [q for q, feed in zip(plan.lenses, plan.feeds, strict=True) if feed == i]
        found.append(
            {
                "name": name,
                "type": "uint8",
                "layout": "NHWC",
                "shape": ["N", p.size, p.size, 3],
                "colours": "RGB",
                "image": "upright, 8 bits a channel, sRGB: EXIF orientation applied, embedded ICC profile converted "
                "(perceptual; Pillow: ImageCms), transparency on white, deeper values scaled (see docs/photos.md)",
                "size": p.size,
                "crop": p.crop,
                "squash": p.squash,
                "resample": p.resample,
                "resampling": f"{_RESAMPLING[p.squash]}; {p.resample}, antialiased (Pillow: Image.resize with box)",
                **({"face": _face(p)} if p.face else {}),
                "inside": "; ".join(inside),
                "normalising": [{"mean": list(q.mean), "std": list(q.std)} for q in seen],
                "read_by": plan.titles(i),
            }
        )
    return found


def _face(p: Preprocessing) -> dict[str, str]:
    """Description of the face crop that the caller has to make."""
    return {
        "detector": p.face,
        "square": "to be cut before the file is called: centered on the largest face, side its longer side times "
        "(1 + 2 x margin), moved inside the photo, at most its short side; see `unfreeze.face_stats`",
        "without_a_face": "the center square as `resampling` says",
    }


def _names(sizes: list[int]) -> tuple[str, ...]:
    if len(sizes) == 1:
        return ("pixels",)
    return tuple(
        f"pixels_{size}" if sizes.count(size) == 1 else f"pixels_{size}_{chr(97 + sizes[:i].count(size))}"
        for i, size in enumerate(sizes)
    )


def _number(entry: Any, known: list[Any]) -> int:
    """Index of `entry` in `known`, appended if it is new."""
    if entry not in known:
        known.append(entry)
    return known.index(entry)


def _trunk(trunks: list[SharedBackbone], backbone: Backbone, lens: int) -> int:
    for i, trunk in enumerate(trunks):
        if (trunk.backbone, trunk.lens) == (backbone, lens):
            return i
    trunks.append(SharedBackbone(backbone, lens))
    return len(trunks) - 1


Started = tuple[torch.Tensor, torch.Tensor | None]


class ExportedModel(nn.Module):
    """Complete model: uint8 (N, S, S, 3) per input in `plan.names` -> float32 (N, C), mean over the speakers.

    Args:
        plan: What to build.
        apart: Return a tuple: the mean, then the probabilities of each speaker.
    """

    def __init__(self, plan: ExportPlan, apart: bool = False) -> None:
        super().__init__()
        self.plan, self.apart = plan, apart
        self.lenses = nn.ModuleList(_Lens(p, plan.views) for p in plan.lenses)
        self.trunks = nn.ModuleList(_Reader(t, plan.lenses[t.lens]) for t in plan.trunks)
        self.heads = _Heads(plan, [self._width(i) for i in range(len(plan.graphs))]) if plan.heads else None
        self.tuned = nn.ModuleList(_Voice(models.network(file)) for models, _ in plan.tuned for file in models.files)

    def _width(self, graph: int) -> int:
        """Number of features of a feature extractor, by a forward pass."""
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
        answers: list[torch.Tensor] = []  # one per head or fine-tuned network, in the order of plan.shares
        if self.heads is not None:
            # As in a run, features are averaged over the views before the signed root.
            read = [blocks[trunk][place] for trunk, place in plan.read]
            answers += self.heads([f.reshape(views, -1, f.shape[1]).mean(0) for f in read]).unbind(1)
        networks = iter(self.tuned)
        for models, lens in plan.tuned:
            setting = models.setting
            inputs = seen[lens]
            if setting.cut:
                place = next(i for i, t in enumerate(plan.trunks) if (t.backbone, t.lens) == (setting.backbone, lens))
                inputs = starts[place][plan.trunks[place].cuts.index((setting.first, setting.taps))]
            for _ in models.files:
                each = torch.softmax(next(networks)(inputs), 1)
                answers.append(each.reshape(views, -1, each.shape[1]).mean(0))
        together = _mean(answers, plan.shares.mean(0))
        return (together, *(_mean(answers, row) for row in plan.shares)) if self.apart else together


def _mean(answers: list[torch.Tensor], shares: Any) -> torch.Tensor:
    """Weighted mean; models of weight zero are skipped, so that they are not part of a speaker's graph."""
    chosen = [i for i, share in enumerate(shares) if share]
    if len({float(shares[i]) for i in chosen}) == 1:
        return torch.stack([answers[i] for i in chosen]).mean(0)
    return torch.stack([answers[i] * float(shares[i]) for i in chosen]).sum(0)


class _Lens(nn.Module):
    """Normalized pixels of all views in one batch, float32 (views x N, 3, S, S)."""

    def __init__(self, preprocessing: Preprocessing, views: tuple[str, ...]) -> None:
        super().__init__()
        self.gray, self.views = preprocessing.gray, views
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.permute(0, 3, 1, 2).float()
        if self.gray:  # as data.decode.to_grayscale; integers below 2^24 are exact in float32
            total = 19595 * images[:, 0:1] + 38470 * images[:, 1:2] + 7471 * images[:, 2:3]
            images = torch.floor((total + 32768) / 65536).expand(-1, 3, -1, -1)
        images = (images - self.mean) / self.std
        return torch.cat([images.flip(3) if view == "flip" else images for view in self.views])


class _Reader(nn.Module):
    """A pretrained network: feature blocks for the heads, and activations for the fine-tuned stages."""

    def __init__(self, trunk: SharedBackbone, preprocessing: Preprocessing) -> None:
        super().__init__()
        size = preprocessing.size
        self.network = trunk.backbone.build(size=size)
        anatomy = trunk.backbone.anatomy(size)
        self.read = [(anatomy.stages[-taps.last :], taps.grid) for taps in trunk.taps]
        self.cuts = [
            (
                split_module(self.network, anatomy, first),
                side_features(anatomy, first, taps) if taps else (),
                taps.grid if taps else 1,
            )
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
        blocks = [
            torch.cat([pool_stage(self.seen[s.output], s, grid) for s in stages], 1) for stages, grid in self.read
        ]
        starts: list[Started] = []
        for end, stages, grid in self.cuts:
            kept = torch.cat([pool_stage(self.seen[s.output], s, grid) for s in stages], 1) if stages else None
            starts.append((main_tensor(self.seen[end]), kept))
        self.seen.clear()
        return blocks, starts


class _Heads(nn.Module):
    """All linear heads: signed-root features of each feature extractor -> probabilities (N, heads, C)."""

    def __init__(self, plan: ExportPlan, widths: list[int]) -> None:
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
    """Logits of a fold's fine-tuned network.

    The head is detached from the `FineTuneModel`, whose signed root is not a plain operation.
    """

    def __init__(self, tuned: FineTuneModel) -> None:
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
        parts += [pool_stage(tuned.seen[s.name], s, tuned.taps.grid) for s in tuned.read if s not in tuned.side_stages]
        tuned.seen.clear()
        return self.head(_rooted(torch.cat(parts, 1)))


def _rooted(features: torch.Tensor) -> torch.Tensor:
    return torch.sign(features) * torch.sqrt(torch.abs(features))
