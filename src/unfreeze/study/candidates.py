"""What races: each strategy as changes to a recipe, how it is tried cheaply, and what it would cost in full."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from unfreeze.core.errors import RecipeError, UnfreezeError
from unfreeze.core.recipe import Recipe
from unfreeze.learn.balance import check_balance

Changes = dict[str, Any]
# Cost of a photo's training step in steps of the whole network: measured on EfficientNet-Lite0 and ResNet-50, from
# activations in the cache (benchmarks/results/late.csv, training.csv).
_LATE = 0.25
# A network from nothing is tried on small photos and for fewer epochs: enough to see that it is far behind. Small
# photos cost more than their share of pixels: a step at 64 px was measured at a third of one at 224.
_SCRATCH_SIDE, _SCRATCH_EPOCHS = 64, 6


@dataclass(frozen=True)
class Prior:
    """Macro F1 that a strategy has over the probe, mean and standard deviation over sets that it was measured on."""

    mean: float
    deviation: float


# benchmarks/results/advice.csv: about 420 photos of each set, three folds; for late also late.csv's four whole sets.
PRIORS = {"probe": Prior(0.0, 0.0), "late": Prior(0.013, 0.02), "full": Prior(0.005, 0.04), "scratch": Prior(-0.5, 0.2)}


@dataclass(frozen=True)
class Candidate:
    """name: what the table calls it. changes: to the recipe, for the full run. tried: further ones for the race.

    step: cost of one photo's step, in steps of the whole network at the recipe's size. epochs: of the full run.
    tried_step, tried_epochs: of a try.
    """

    name: str
    strategy: str
    changes: Changes
    tried: Changes
    step: float
    epochs: int
    tried_step: float
    tried_epochs: int

    @property
    def prior(self) -> Prior:
        """What is known of the strategy before it is tried."""
        return PRIORS[self.strategy]

    def recipe(self, base: Recipe) -> Recipe:
        """The recipe of the full run."""
        return base.replace(**self.changes)

    def trial(self, base: Recipe) -> Recipe:
        """The recipe of a try."""
        return base.replace(**self.changes, **self.tried)

    def full_cost(self, folds: int, photos: int) -> float:
        """Of a run of `folds` folds over `photos` photos, in steps of the whole network."""
        return self.step * self.epochs * photos * (folds - 1)


def candidates_of(recipe: Recipe, photos: int) -> tuple[list[Candidate], list[str]]:
    """The recipe's candidates that can be had here, the probe first; and why the others cannot.

    photos: that a fold learns from.
    """
    found, left_out = [], []
    asked = dict.fromkeys(("probe", *recipe.advise.candidates))
    further = [("late", boundary) for boundary in recipe.advise.boundaries if "late" in asked]
    for strategy, boundary in [*((strategy, "") for strategy in asked), *further]:
        name = f"late from {boundary}" if boundary else strategy
        try:
            own = recipe.replace(**{"train.unfreeze": boundary}) if boundary else recipe
            candidate = _candidate(own, strategy, photos)
            if boundary:
                changes = {**candidate.changes, "train.unfreeze": boundary}
                candidate = replace(candidate, name=name, changes=changes)
            found.append(candidate)
        except UnfreezeError as error:
            if strategy == "probe":
                raise
            left_out.append(f"{name}: {error}")
    return found, left_out


def _candidate(recipe: Recipe, strategy: str, photos: int) -> Candidate:
    changes: Changes = {"strategy": strategy}
    if strategy == "probe":
        check_balance(recipe.replace(**changes))  # what a probe cannot do, a race beside a probe cannot
        return Candidate(strategy, strategy, changes, {}, 0.0, 0, 0.0, 0)
    if recipe.probe.race:
        raise RecipeError("--quality best races inputs of probes; its training would be of one network.")
    from unfreeze.learn.train.tuned_folds import check_training
    from unfreeze.learn.train.tuning import Setting, settle

    own = recipe.replace(**changes)
    check_training(own)
    settings = settle(own, photos)
    step = {"late": _LATE, "full": 1.0, "scratch": 1.0}[strategy]
    if strategy != "scratch":
        return Candidate(
            strategy, strategy, changes, {"train.budget": ""}, step, settings.epochs, step, settings.epochs
        )
    size = Setting.of(own, settings).size
    side, epochs = min(size, _SCRATCH_SIDE), min(settings.epochs, _SCRATCH_EPOCHS)
    tried = {"image.size": side, "train.epochs": epochs, "train.budget": ""}
    return Candidate(strategy, strategy, changes, tried, step, settings.epochs, min(1.0, 1.2 * side / size), epochs)
