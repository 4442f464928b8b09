"""A run's whole chain as one torch module: preprocessing, networks, every fold's voice; and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.learn.classifier import Classifier
from unfreeze.learn.probe.heads import LinearHead
from unfreeze.learn.tta import LOOKS
from unfreeze.model.backbones import Backbone
from unfreeze.model.cards import Preprocessing
from unfreeze.model.graphs import Graph
from unfreeze.model.taps import Taps

if TYPE_CHECKING:
    from torch import nn

    from unfreeze.learn.train.tuned_models import TunedModels

FORMAT = 2
OUTPUT = "probabilities"
# What a program must do before it calls the file, by whether the photo is cropped or squashed.
_RESAMPLING = (
    "the upright photo's centre square, side `crop` times its short side, resized to `size` x `size`",
    "the centre `crop` of both sides of the upright photo, pressed into `size` x `size`",
)


@dataclass(frozen=True)
class Trunk:
    """A network as it was pretrained, which runs once whoever reads it.

    lens: number of the preprocessing that it sees. taps: blocks that heads read of it. cuts: first stages, with the
    taps, of fine-tuned networks that go on from its activations (strategy late): their frozen front, there once.
    """

    backbone: Backbone
    lens: int
    taps: tuple[Taps, ...] = ()
    cuts: tuple[tuple[int, Taps | None], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a file takes, and who speaks in it.

    names: its inputs, one for each way a photo becomes pixels. lenses: the preprocessings; feeds: which input each
    sees. trunks: pretrained networks, each once. graphs: what heads read, by number, and `read`: its trunk and place
    there. heads: with inputs numbered so. tuned: fine-tuned networks by their lens. shares: float64
    (speakers, heads and tuned networks), the rows sum to 1: a speaker is a fold, or all of them together.
    """

    classes: tuple[str, ...]
    views: tuple[str, ...]
    names: tuple[str, ...]
    lenses: tuple[Preprocessing, ...]
    feeds: tuple[int, ...]
    trunks: tuple[Trunk, ...]
    graphs: tuple[Graph, ...]
    read: tuple[tuple[int, int], ...]
    heads: tuple[LinearHead, ...]
    tuned: tuple[tuple[TunedModels, int], ...]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, speakers: Classifier | Sequence[Classifier], views: str | None) -> Plan:
        """The plan of a run, or of its folds apart. Inputs of one size and crop share their pixels."""
        speakers = [speakers] if isinstance(speakers, Classifier) else list(speakers)
        graphs, lenses = list[Graph](), list[Preprocessing]()
        trunks: list[Trunk] = []
        heads, tuned = list[LinearHead](), list[tuple["TunedModels", int]]()
        head_shares: list[tuple[int, float]] = []
        tuned_shares: list[tuple[int, float]] = []
        for number, speaker in enumerate(speakers):
            for graph in speaker.graphs:
                _number(graph, graphs)
                _number(graph.preprocessing, lenses)
            heard = speaker.heard or (1,) * len(speaker.tuned)
            total = len(speaker.heads) + sum(t * len(m.files) for m, t in zip(speaker.tuned, heard, strict=True))
            for head in speaker.heads:
                heads.append(replace(head, inputs=tuple(graphs.index(speaker.graphs[i]) for i in head.inputs)))
                head_shares.append((number, 1 / total))
            for models, times in zip(speaker.tuned, heard, strict=True):
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
        for voice, (number, share) in enumerate((*head_shares, *tuned_shares)):
            shares[number, voice] = share
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
        """How a photo becomes each input, in the order of `names`."""
        return [self.lenses[self.feeds.index(i)] for i in range(len(self.names))]

    def networks(self) -> int:
        """How many networks the file holds, a frozen front that is shared counted once."""
        return len(self.trunks) + sum(len(models.files) for models, _ in self.tuned)

    def tokens(self) -> bool:
        """Whether any of its networks is made of tokens: of attention."""
        backbones = [t.backbone for t in self.trunks] + [m.setting.backbone for m, _ in self.tuned]
        return any(stage.layout == "NLC" for b in backbones for stage in b.anatomy().stages)

    def titles(self, frame: int) -> list[str]:
        """What reads an input, for people."""
        seeing = [i for i, feed in enumerate(self.feeds) if feed == frame]
        found = [g.title() for g in self.graphs if self.lenses.index(g.preprocessing) in seeing]
        found += [f"{m.setting.backbone.title}, fine-tuned" for m, lens in self.tuned if lens in seeing]
        return list(dict.fromkeys(found))

    def backbones(self) -> list[Backbone]:
        """Every distinct one."""
        every = [t.backbone for t in self.trunks] + [m.setting.backbone for m, _ in self.tuned]
        return list({b.name: b for b in every}.values())


def folded(plan: Plan, apart: bool = False) -> nn.Module:
    """The whole chain as one torch module: uint8 (N, S, S, 3), one for each input -> float32 (N, C) probabilities.

    All heads stand side by side in one matrix a network, so that a prediction is one pass and one product. apart: gives
    a tuple, the mean over the plan's speakers and then each speaker's own answer.
    """
    from unfreeze.deliver.chain import Chain

    return Chain(plan, apart).eval().requires_grad_(False)


def metadata(classifier: Classifier, plan: Plan, fold: int | None = None) -> dict[str, str]:
    """What the file says of itself: text by key, JSON where it is a list. fold: the only one that speaks in it."""
    from unfreeze import __version__

    run = classifier.run
    weights = {b.name: b.describe() for b in plan.backbones()}
    who = f"mean of {run.recipe.folds.count} folds" if fold is None else f"fold {fold} alone"
    about = {
        "name": run.path.resolve().name,
        "identity": run.info.get("identity", ""),
        "finished": run.info.get("finished", ""),
        "strategy": run.recipe.strategy,
        **({} if fold is None else {"fold": fold}),
    }
    return {
        "made_by": f"unfreeze {__version__}",
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


def inputs_of(plan: Plan) -> list[dict[str, Any]]:
    """How a photo becomes each input of the file, and what the file does with it, as JSON."""
    found = []
    for i, (name, p) in enumerate(zip(plan.names, plan.frames(), strict=True)):
        inside = ["the network turns the colours gray (ITU-R 601)"] if p.gray else []
        inside.append("value / 255, less mean, by std, for each channel")
        seen = [q for q, feed in zip(plan.lenses, plan.feeds, strict=True) if feed == i]
        found.append(
            {
                "name": name,
                "type": "uint8",
                "layout": "NHWC",
                "shape": ["N", p.size, p.size, 3],
                "colours": "RGB",
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
    """What must be cut outside the file where the run sees faces."""
    return {
        "detector": p.face,
        "square": "to be cut before the file is called: centred on the largest face, side its longer side times "
        "(1 + 2 x margin), moved inside the photo, at most its short side; see `unfreeze.faces`",
        "without_a_face": "the centre square as `resampling` says",
    }


def _names(sizes: list[int]) -> tuple[str, ...]:
    if len(sizes) == 1:
        return ("pixels",)
    return tuple(
        f"pixels_{size}" if sizes.count(size) == 1 else f"pixels_{size}_{chr(97 + sizes[:i].count(size))}"
        for i, size in enumerate(sizes)
    )


def _number(entry: Any, known: list[Any]) -> int:
    """Its place among those known; a new one is added."""
    if entry not in known:
        known.append(entry)
    return known.index(entry)


def _trunk(trunks: list[Trunk], backbone: Backbone, lens: int) -> int:
    for i, trunk in enumerate(trunks):
        if (trunk.backbone, trunk.lens) == (backbone, lens):
            return i
    trunks.append(Trunk(backbone, lens))
    return len(trunks) - 1
