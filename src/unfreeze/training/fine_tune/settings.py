"""Resolved training settings and setup of the fine-tuning strategies 'partial', 'full' and 'scratch'.

`resolve_settings` fills in the options that a recipe leaves open. `TrainSetup` describes the network, its trainable
stages and its input. `predict_proba` predicts with a trained network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfreeze.core.errors import BackboneError, RecipeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Train
from unfreeze.data.pixel_cache import CropSpec
from unfreeze.features.activations import training_views
from unfreeze.features.crops import preprocessing_of
from unfreeze.models.architectures import build
from unfreeze.models.backbone_split import TrainableBack
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.fine_tune_model import FineTuneModel
from unfreeze.models.freezing import first_stage_at_last_resolution, parse_trainable
from unfreeze.models.model_info import Preprocessing
from unfreeze.models.pooling import FeatureSpec
from unfreeze.models.registry import Backbone, find_backbone
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.batches import Batch, Batches
from unfreeze.training.fine_tune.distributed import ProcessGroup
from unfreeze.training.fine_tune.memory import MicroBatch
from unfreeze.training.fine_tune.trainer import batch_of_one, predict, size_at
from unfreeze.training.linear_probe.solver import softmax

_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600}

# Defaults of each strategy. 'partial' and 'full' start from a probe that is already good: few epochs, small steps, and
# weights that are interpolated a quarter of the way back to the start (measurements in docs/method.md).
DEFAULTS: dict[str, dict[str, Any]] = {
    "partial": {
        "trainable": "",
        "epochs": 6,
        "lr": 3e-3,
        "wise_ft_alpha": 0.75,
        "cached_views": 2,
        "weight_decay": 0.0,
        "layer_decay": 1.0,
    },
    "full": {
        "trainable": "all",
        "epochs": 3,
        "lr": 3e-3,
        "wise_ft_alpha": 0.75,
        "cached_views": 0,
        "weight_decay": 0.0,
        "layer_decay": 0.8,
    },
    "scratch": {
        "trainable": "all",
        "epochs": 30,
        "lr": 1e-3,
        "wise_ft_alpha": 1.0,
        "cached_views": 0,
        "weight_decay": 0.05,
        "layer_decay": 1.0,
    },
}


def seconds_of(budget: str, key: str = "train.time_budget") -> float:
    """Parse a duration such as `90s`, `10m` or `1h30m`; empty text yields 0.

    Raises:
        RecipeError: If the text is not a valid duration.
    """
    text = budget.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = sum(float(number) * _TIMES[unit] for number, unit in parts)
    whole = "".join(a + b for a, b in parts) == text and (len(parts) < 2 or all(b for _, b in parts))
    if text and not (whole and 0 < seconds < float("inf")):
        raise RecipeError(f"{key} = '{budget}': write it as 90s, 10m or 1h30m.")
    return seconds


def resolve_settings(recipe: Recipe, photos: int) -> Train:
    """Return `recipe.train` with all defaults resolved.

    Args:
        recipe: The recipe.
        photos: Number of training images.

    Returns:
        The resolved settings.

    Raises:
        RecipeError: If options contradict each other.
    """
    wish, chosen = recipe.train, DEFAULTS[recipe.strategy]
    changes: dict[str, Any] = {
        "trainable": wish.trainable or chosen["trainable"],
        "epochs": wish.epochs or chosen["epochs"],
        "lr": wish.lr or chosen["lr"],
        "weight_decay": chosen["weight_decay"] if wish.weight_decay < 0 else wish.weight_decay,
        "cached_views": wish.cached_views or chosen["cached_views"],
        "layer_decay": wish.layer_decay or chosen["layer_decay"],
        "batch_size": wish.batch_size or (32 if photos >= 256 else 16),
    }
    if recipe.strategy == "scratch":
        changes |= {
            "head": "classifier",
            "head_init": "random",
            "average_with_probe": False,
            "bn_stats": "train",
            "layer_decay": 1.0,
        }
    if recipe.strategy == "partial" and wish.cutmix_alpha:
        raise RecipeError(
            "train.cutmix_alpha needs pixels, and strategy partial trains from activations; use train.mixup_alpha."
        )
    if recipe.strategy == "partial" and wish.progressive_resizing:
        raise RecipeError(
            "train.progressive_resizing needs pixels, and strategy partial trains from activations; leave it out."
        )
    if wish.head == "classifier" and wish.head_init == "probe":
        changes |= {"head_init": "random", "average_with_probe": False}
    from_probe = changes.get("head_init", wish.head_init) == "probe"
    alone = wish.trainable in ("head", "none") and recipe.strategy != "scratch"
    if alone and (wish.trainable == "none" or wish.head_lr_mult == 0):
        raise RecipeError(f"train.trainable = '{wish.trainable}' trains nothing here; strategy probe keeps all frozen.")
    # Interpolating toward a randomly initialized head would be meaningless.
    keep = chosen["wise_ft_alpha"] if from_probe else 1.0
    changes |= {
        "wise_ft_alpha": keep if wish.wise_ft_alpha < 0 else wish.wise_ft_alpha,
        "lr_scaling": ("on" if from_probe else "off") if wish.lr_scaling == "auto" else wish.lr_scaling,
        "head_lr_mult": (0.0 if from_probe and not alone else 1.0) if wish.head_lr_mult < 0 else wish.head_lr_mult,
    }
    if not from_probe and not wish.lr:
        changes |= {"lr": 1e-3}
    return wish.model_copy(update=changes)


def views_seen(recipe: Recipe) -> tuple[str, ...]:
    """Return the views whose probabilities are averaged in prediction."""
    return tuple(recipe.probe.views)


@cache
def _check_network(backbone: Backbone, size: int, auxiliary: bool, cut: int) -> None:
    """Decompose the network and, if `cut` is positive, cut it before that stage. Cached for repeated checks."""
    anatomy = backbone.anatomy(size, auxiliary)
    if cut:
        TrainableBack(backbone.build(0, size), anatomy, cut, size)


def _can_be_cut(backbone: Backbone, size: int, first: int) -> bool:
    """Return whether the stages from `first` on depend only on the output of the last earlier stage."""
    try:
        _check_network(backbone, size, False, first)
    except BackboneError:
        return False
    return True


@dataclass(frozen=True)
class TrainSetup:
    """The network to train, its trainable part and its input.

    Attributes:
        backbone: The backbone.
        preprocessing: Its preprocessing.
        taps: Features that the head reads, or None for the network's own classifier.
        first: Index of the first trainable stage.
        cut: Whether the stages before it run only once (strategy 'partial', unless the network cannot be cut there).
        views: Views whose activations are cached, the plain one first.
        drawn: Training draws from the first `drawn` views.
        engine: Requested inference engine for the frozen stages.
        auxiliary: Whether auxiliary heads are trained.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    taps: FeatureSpec | None
    first: int
    cut: bool
    views: tuple[str, ...]
    drawn: int
    engine: str
    auxiliary: bool

    @classmethod
    def of(cls, recipe: Recipe, settings: Train) -> TrainSetup:
        """Return the setup for a recipe.

        Args:
            recipe: The recipe.
            settings: Resolved `recipe.train`.

        Returns:
            The setup.

        Raises:
            RecipeError: If the backbone does not have the requested stages, or no stage would be trained or frozen.
        """
        weights = "none" if recipe.strategy == "scratch" else recipe.weights
        backbone = find_backbone(recipe.backbone, weights, recipe.seed)
        preprocessing = preprocessing_of(backbone, recipe)
        names = tuple(stage.name for stage in backbone.stages)
        cut = recipe.strategy == "partial"
        if settings.trainable:
            first = parse_trainable(settings.trainable, names)
            cut = cut and settings.cached_views > 0  # 0: `settled` has determined that the network cannot be cut there
        else:
            first = first_stage_at_last_resolution(backbone.anatomy(preprocessing.size))
            cut = _can_be_cut(backbone, preprocessing.size, first)
        if cut and first == 0:
            raise RecipeError("train.trainable = 'all' leaves no frozen front for strategy partial; use strategy full.")
        if cut and first == len(names):
            raise RecipeError(f"train.trainable = '{settings.trainable}' trains no stage; that is strategy probe.")
        probe = recipe.probe
        taps = (
            FeatureSpec.of(probe.stages, probe.pool_size, backbone.name, names) if settings.head == "blocks" else None
        )
        drawn = training_views(settings.augment, settings.cached_views, recipe.seed) if cut else ()
        # Prediction needs the flipped view regardless of what training draws from.
        views = tuple(dict.fromkeys((*drawn, *recipe.probe.views))) if cut else ()
        aux = _wants_auxiliary(settings) and backbone.trains_auxiliary(_smallest(preprocessing.size, settings))
        return cls(backbone, preprocessing, taps, first, cut, views, len(drawn), recipe.engine, aux)

    @property
    def size(self) -> int:
        """Side of the input in pixels."""
        return self.preprocessing.size

    def settled(self, settings: Train) -> Train:
        """Return the settings with the stages that strategy 'partial' has chosen.

        Later processes use them instead of choosing again.
        """
        if settings.trainable:
            return settings
        unfreeze = f"{self.backbone.stages[self.first].name}-"
        return settings.model_copy(
            update={"trainable": unfreeze, "cached_views": settings.cached_views if self.cut else 0}
        )

    def notice(self, settings: Train) -> str:
        """Return a message if the network's auxiliary heads stay unused because images are too small, or ''."""
        if self.auxiliary or not _wants_auxiliary(settings):
            return ""
        seen = _smallest(self.size, settings)
        least = self.backbone.auxiliary_size(seen)
        if not least:
            return ""
        return (
            f"The auxiliary heads of {self.backbone.name} stay off: they need images of {least} px or more, and "
            f"training shows images of {seen} px."
        )

    def check(self, progressive: bool) -> None:
        """Check that the network can be cut as required, and that it accepts smaller images if `progressive`.

        Raises:
            BackboneError: If the network cannot be cut.
            RecipeError: If the network does not accept smaller images.
        """
        _check_network(self.backbone, self.size, self.auxiliary, self.first if self.cut else 0)
        small = size_at(0.0, self.size) if progressive else 0
        if small and self.auxiliary and not self.backbone.trains_auxiliary(small):
            raise RecipeError(
                f"train.progressive_resizing: auxiliary heads of {self.backbone.name} cannot take images of "
                f"{small} px; leave "
                "it out, or set train.aux_loss_weight to 0."
            )
        if small:
            try:
                self._on_meta()(torch.zeros(2, 3, small, small, device="meta"))
            except Exception:  # networks with a fixed input size raise all kinds of exceptions
                raise RecipeError(
                    f"train.progressive_resizing: {self.backbone.name} takes photos of {self.size} px only; "
                    "leave it out."
                ) from None

    def check_batch(self, settings: Train) -> None:
        """Check that BatchNorm can compute its statistics if a process may get a batch of one image.

        Raises:
            RecipeError: If a batch of one image has only one value per channel.
        """
        if settings.bn_stats != "train" or settings.batch_size // settings.processes_per_fold > 1:
            return
        network, side = self._on_meta(), _smallest(self.size, settings)
        network.prepare(0.0, settings.epochs)
        try:
            network(torch.zeros(1, 3, side, side, device="meta"))
        except ValueError as error:
            each = (
                ""
                if settings.processes_per_fold == 1
                else f" and train.processes_per_fold = {settings.processes_per_fold}"
            )
            raise batch_of_one(error, f"train.batch_size = {settings.batch_size}{each}") or error from None

    def _on_meta(self) -> FineTuneModel:
        """Return the uncut network on the meta device, in eval mode."""
        anatomy = self.backbone.anatomy(self.size, self.auxiliary)
        bare = build(self.backbone.name, 2, auxiliary=self.auxiliary, size=self.size, meta=True)
        return FineTuneModel(bare, anatomy, 2, taps=self.taps, first=self.first, size=self.size).to("meta").eval()

    def seeing(self, views: tuple[str, ...]) -> TrainSetup:
        """Return the setup for prediction over the given views; other views need not be cached."""
        return replace(self, views=tuple(dict.fromkeys(("plain", *views))), drawn=1) if self.cut else self

    @property
    def frame(self) -> CropSpec:
        """Specification of the cached pixels."""
        p = self.preprocessing
        return CropSpec(p.size, p.crop, p.resample, p.squash, p.face, p.gray)

    @property
    def added_views(self) -> tuple[str, ...]:
        """Cached variants of an extra sample's view: plain, and flipped if training draws the flipped view."""
        return ("plain", "flip") if "flip" in self.views[: self.drawn] else ("plain",)

    @property
    def front(self) -> FeatureExtractor:
        """The frozen layers as a feature extractor."""
        return FeatureExtractor(self.backbone, self.preprocessing, self.taps or FeatureSpec(1, 1), self.first)

    def front_or_whole(self) -> dict[str, Any]:
        """Return the description of the trained network for run.json."""
        p = self.preprocessing
        shown = {**({"face": p.face} if p.face else {}), **({"gray": True} if p.gray else {})}
        return {**self.key(), "weights": self.backbone.weights.identity(), "views": list(self.views), **shown}

    def key(self) -> dict[str, Any]:
        """Return what training speed depends on, as JSON: the network, its trainable part and its input."""
        taps = [self.taps.last, self.taps.grid] if self.taps else []
        return {
            "backbone": self.backbone.name,
            "size": self.size,
            "first": self.first,
            "cut": self.cut,
            "taps": taps,
            "auxiliary": self.auxiliary,
        }

    def network(self, classes: int) -> FineTuneModel:
        """Build the network to train. Weights that are not pretrained come from torch's global random generator."""
        anatomy = self.backbone.anatomy(self.size, self.auxiliary)
        network = self.backbone.build(0 if self.taps else classes, self.size, self.auxiliary)
        return FineTuneModel(network, anatomy, classes, taps=self.taps, first=self.first, cut=self.cut, size=self.size)


def _smallest(size: int, settings: Train) -> int:
    """Return the side in pixels of the smallest images that training uses."""
    return (size_at(0.0, size) if settings.progressive_resizing else 0) or size


def _wants_auxiliary(settings: Train) -> bool:
    """Return whether auxiliary heads are trained if the network has them."""
    return settings.head == "classifier" and settings.aux_loss_weight != 0


def auxiliary_weight(model: FineTuneModel, settings: Train) -> float:
    """Return the weight of each auxiliary head's loss: the recipe's, or that of the network's paper."""
    own = model.anatomy.auxiliary.values()
    if not own or model.head is not None:
        return 0.0
    return max(own) if settings.aux_loss_weight < 0 else settings.aux_loss_weight


class _Mirrored:
    """The same images, flipped horizontally."""

    def __init__(self, photos: Batches) -> None:
        self.photos, self.count = photos, photos.count

    def epoch(self, number: int, batch: int, size: int = 0) -> Iterator[Batch]:
        return self.photos.epoch(number, batch, size)

    def plain(self, batch: int, flip: bool = False) -> Iterator[Batch]:
        return self.photos.plain(batch, not flip)


def predict_proba(
    model: FineTuneModel,
    photos: Batches,
    views: tuple[str, ...],
    batch: int,
    plan: Plan,
    reporter: Reporter | None = None,
    crew: ProcessGroup | None = None,
) -> NDArray[np.float64]:
    """Predict class probabilities, averaged over the views.

    Runs in float32 so that predictions do not depend on the precision of training.

    Args:
        model: The network.
        photos: The images.
        views: 'plain', 'flip', or both.
        batch: Batch size.
        plan: Execution plan.
        reporter: Progress reporter.
        crew: Process group.

    Returns:
        float64 (n, C).
    """
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
