"""How a strategy trains a network: which stages, on what input, with every choice that a recipe left open made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.errors import RecipeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Train
from unfreeze.data.pixels import Frame
from unfreeze.learn.probe.softmax import softmax
from unfreeze.learn.sight import preprocessing_of
from unfreeze.learn.train.activations import training_views
from unfreeze.learn.train.batches import Batch, Batches
from unfreeze.learn.train.memory import MicroBatch
from unfreeze.learn.train.plan import Plan
from unfreeze.learn.train.schedule import size_at
from unfreeze.learn.train.steps import predict
from unfreeze.learn.train.together import Crew
from unfreeze.model.architectures import build
from unfreeze.model.backbones import Backbone, find_backbone
from unfreeze.model.cards import Preprocessing
from unfreeze.model.cuts import Rest
from unfreeze.model.freezing import first_trained, last_maps
from unfreeze.model.graphs import Graph
from unfreeze.model.taps import Taps
from unfreeze.model.tuned import Tuned

Rows = NDArray[np.int64]
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600}

# What each strategy does where the recipe says nothing. `late` and `full` start from a probe that is good already: few
# epochs, small steps, and a quarter of the way back (see docs/method.md for what was measured).
DEFAULTS: dict[str, dict[str, Any]] = {
    "late": {
        "unfreeze": "",
        "epochs": 6,
        "rate": 3e-3,
        "keep": 0.75,
        "views": 2,
        "weight_decay": 0.0,
        "layer_decay": 1.0,
    },
    "full": {
        "unfreeze": "all",
        "epochs": 3,
        "rate": 3e-3,
        "keep": 0.75,
        "views": 0,
        "weight_decay": 0.0,
        "layer_decay": 0.8,
    },
    "scratch": {
        "unfreeze": "all",
        "epochs": 30,
        "rate": 1e-3,
        "keep": 1.0,
        "views": 0,
        "weight_decay": 0.05,
        "layer_decay": 1.0,
    },
}


def seconds_of(budget: str, key: str = "train.budget") -> float:
    """Seconds of `90s`, `10m` or `1h30m`; 0 of an empty text. RecipeError if it is none of these."""
    text = budget.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = sum(float(number) * _TIMES[unit] for number, unit in parts)
    whole = "".join(a + b for a, b in parts) == text and (len(parts) < 2 or all(b for _, b in parts))
    if text and not (whole and 0 < seconds < float("inf")):
        raise RecipeError(f"{key} = '{budget}': write it as 90s, 10m or 1h30m.")
    return seconds


def settle(recipe: Recipe, photos: int) -> Train:
    """recipe.train with nothing left to choose, for that many training photos.

    Raises RecipeError where keys contradict each other.
    """
    wish, chosen = recipe.train, DEFAULTS[recipe.strategy]
    changes: dict[str, Any] = {
        "unfreeze": wish.unfreeze or chosen["unfreeze"],
        "epochs": wish.epochs or chosen["epochs"],
        "rate": wish.rate or chosen["rate"],
        "weight_decay": chosen["weight_decay"] if wish.weight_decay < 0 else wish.weight_decay,
        "views": wish.views or chosen["views"],
        "layer_decay": wish.layer_decay or chosen["layer_decay"],
        "batch": wish.batch or (32 if photos >= 256 else 16),
    }
    if recipe.strategy == "scratch":
        changes |= {
            "head": "classifier",
            "start": "random",
            "ensemble": False,
            "batchnorm": "train",
            "layer_decay": 1.0,
        }
    if recipe.strategy == "late" and wish.cutmix:
        raise RecipeError("train.cutmix needs pixels, and strategy late trains from activations; use train.mixup.")
    if recipe.strategy == "late" and wish.progressive:
        raise RecipeError("train.progressive needs pixels, and strategy late trains from activations; leave it out.")
    if wish.head == "classifier" and wish.start == "probe":
        changes |= {"start": "random", "ensemble": False}
    from_probe = changes.get("start", wish.start) == "probe"
    alone = wish.unfreeze in ("head", "none") and recipe.strategy != "scratch"
    if alone and (wish.unfreeze == "none" or wish.head_rate == 0):
        raise RecipeError(f"train.unfreeze = '{wish.unfreeze}' trains nothing here; strategy probe keeps all frozen.")
    # Half the way back from a head at random would be half at random.
    keep = chosen["keep"] if from_probe else 1.0
    changes |= {
        "keep": keep if wish.keep < 0 else wish.keep,
        "relative": ("on" if from_probe else "off") if wish.relative == "auto" else wish.relative,
        "head_rate": (0.0 if from_probe and not alone else 1.0) if wish.head_rate < 0 else wish.head_rate,
    }
    if not from_probe and not wish.rate:
        changes |= {"rate": 1e-3}
    return wish.model_copy(update=changes)


def views_seen(recipe: Recipe) -> tuple[str, ...]:
    """The views whose probabilities are averaged in prediction."""
    return tuple(recipe.probe.views)


@cache
def _check_network(backbone: Backbone, size: int, auxiliary: bool, cut: int) -> None:
    """Takes the network apart, and cuts it before that stage if it is one, once in a process: a search asks often."""
    anatomy = backbone.anatomy(size, auxiliary)
    if cut:
        Rest(backbone.build(0, size), anatomy, cut, size)


@dataclass(frozen=True)
class Setting:
    """A network, what of it trains, and what it is fed.

    first: number of the first stage that trains. cut: the stages before it run once (strategy late).
    taps: of the head on blocks, None for the network's own classifier. views: whose activations are kept, the plain
    one first; training draws from the first `drawn` of them.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    taps: Taps | None
    first: int
    cut: bool
    views: tuple[str, ...]
    drawn: int
    engine: str
    auxiliary: bool

    @classmethod
    def of(cls, recipe: Recipe, settings: Train) -> Setting:
        """Of a recipe and its settled recipe.train. RecipeError for stages that the backbone does not have."""
        weights = "none" if recipe.strategy == "scratch" else recipe.weights
        backbone = find_backbone(recipe.backbone, weights, recipe.seed)
        preprocessing = preprocessing_of(backbone, recipe)
        names = tuple(stage.name for stage in backbone.stages)
        cut = recipe.strategy == "late"
        if settings.unfreeze:
            first = first_trained(settings.unfreeze, names)
        else:
            first = last_maps(backbone.anatomy(preprocessing.size))
        if cut and first == 0:
            raise RecipeError("train.unfreeze = 'all' leaves no frozen front for strategy late; use strategy full.")
        if cut and first == len(names):
            raise RecipeError(f"train.unfreeze = '{settings.unfreeze}' trains no stage; that is strategy probe.")
        taps = Taps.parse(recipe.probe.stages, recipe.probe.grid) if settings.head == "blocks" else None
        drawn = training_views(settings.augment, settings.views, recipe.seed)
        # The mirrored photo is needed for prediction whatever is trained on.
        views = tuple(dict.fromkeys((*drawn, *recipe.probe.views))) if cut else ()
        aux = settings.head == "classifier" and settings.auxiliary != 0
        return cls(backbone, preprocessing, taps, first, cut, views, len(drawn), recipe.engine, aux)

    @property
    def size(self) -> int:
        """Side of the input, pixels."""
        return self.preprocessing.size

    def check(self, progressive: bool) -> None:
        """Raises BackboneError or RecipeError where the network cannot be cut, or cannot take smaller photos."""
        _check_network(self.backbone, self.size, self.auxiliary, self.first if self.cut else 0)
        small = size_at(0.0, self.size) if progressive else 0
        if small:
            bare = build(self.backbone.name, size=self.size, meta=True)
            network = Tuned(bare, self.backbone.anatomy(self.size), 2, taps=self.taps, size=self.size).to("meta").eval()
            try:
                network(torch.zeros(2, 3, small, small, device="meta"))
            except Exception:  # networks of one size say nearly anything
                raise RecipeError(
                    f"train.progressive: {self.backbone.name} takes photos of {self.size} px only; leave it out."
                ) from None

    def seeing(self, views: tuple[str, ...]) -> Setting:
        """The same for prediction over these views; nothing else need be kept of a photo."""
        return replace(self, views=tuple(dict.fromkeys(("plain", *views))), drawn=1) if self.cut else self

    @property
    def frame(self) -> Frame:
        """The square of pixels that is kept of a photo."""
        p = self.preprocessing
        return Frame(p.size, p.crop, p.resample, p.squash, p.face, p.gray)

    @property
    def added_views(self) -> tuple[str, ...]:
        """What is kept of an added row: its view, and the mirrored one where training draws mirrored photos."""
        return ("plain", "flip") if "flip" in self.views[: self.drawn] else ("plain",)

    @property
    def front(self) -> Graph:
        """The frozen front as a graph."""
        return Graph(self.backbone, self.preprocessing, self.taps or Taps(1, 1), self.first)

    def front_or_whole(self) -> dict[str, Any]:
        """What run.json says of the network that was trained."""
        p = self.preprocessing
        shown = {**({"face": p.face} if p.face else {}), **({"gray": True} if p.gray else {})}
        return {**self.key(), "weights": self.backbone.weights.identity(), "views": list(self.views), **shown}

    def key(self) -> dict[str, Any]:
        """Names the network, what of it trains and its input, as JSON: what its speed depends on."""
        taps = [self.taps.last, self.taps.grid] if self.taps else []
        return {
            "backbone": self.backbone.name,
            "size": self.size,
            "first": self.first,
            "cut": self.cut,
            "taps": taps,
            "auxiliary": self.auxiliary,
        }

    def network(self, classes: int) -> Tuned:
        """The network before its first step; what is not pretrained comes from torch's global generator."""
        anatomy = self.backbone.anatomy(self.size, self.auxiliary)
        network = self.backbone.build(0 if self.taps else classes, self.size, self.auxiliary)
        return Tuned(network, anatomy, classes, taps=self.taps, first=self.first, cut=self.cut, size=self.size)


def auxiliary_weight(model: Tuned, settings: Train) -> float:
    """Weight of each auxiliary head's loss: the recipe's, or the paper's."""
    own = model.anatomy.auxiliary.values()
    if not own or model.head is not None:
        return 0.0
    return max(own) if settings.auxiliary < 0 else settings.auxiliary


class _Mirrored:
    """The same photos, mirrored."""

    def __init__(self, photos: Batches) -> None:
        self.photos, self.count = photos, photos.count

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        return self.photos.epoch(number, batch, size)

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        return self.photos.plain(batch, not flip)


def predicted(
    model: Tuned,
    photos: Batches,
    views: tuple[str, ...],
    batch: int,
    plan: Plan,
    reporter: Reporter | None = None,
    crew: Crew | None = None,
) -> NDArray[np.float64]:
    """Probabilities float64 (n, C), the mean over the views; in float32, so that they are the same on any day."""
    plan = replace(plan, precision="f32", compile=False)
    micro = MicroBatch(min(plan.micro_batch, batch), reporter=reporter or Reporter())
    model = plan.arranged(model)
    parts = []
    for view in views:
        seen = photos if view == "plain" else _Mirrored(photos)
        logits, _ = predict(model, model, seen, batch, plan, micro, crew=crew)
        parts.append(softmax(logits.float().numpy()))
    model.to(memory_format=torch.contiguous_format)
    return np.mean(parts, axis=0)
