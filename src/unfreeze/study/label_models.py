"""One head over the combinations of several labels, or one for each? Both and their average, on the same folds."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.attributes import Part, parts_of
from unfreeze.core.errors import RecipeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Labels
from unfreeze.core.tables import Photos
from unfreeze.judge.many import accuracy, macro, many_differences
from unfreeze.judge.parts import marginal
from unfreeze.learn.balance import check_balance
from unfreeze.learn.probe.inputs import graphs_of
from unfreeze.learn.probe.parts import check_labels, unseen_combinations
from unfreeze.study.compared import Compared, Figure
from unfreeze.study.same_folds import fit_each

_BASE, _PARTS, _BOTH = get_args(Labels.model_fields["model"].annotation)


@dataclass(frozen=True)
class LabelModel:
    """One word of `labels.model`: scores of the whole out of fold, what each is more than that of `joint`, its parts.

    log_loss: mean over the photos. parts: macro F1 of each part by name; part_differences: what that is more than
    joint's. The intervals of a difference hold for `parts` and `both` at once.
    """

    name: str
    macro_f1: Figure
    accuracy: Figure
    log_loss: float
    parts: dict[str, Figure]
    difference: Figure
    accuracy_difference: Figure
    part_differences: dict[str, Figure]
    seconds: float


@dataclass(frozen=True)
class LabelComparison:
    """models: joint, parts, both. attributes: values by part. unseen: combinations that some fold's training photos
    lack. sentence: the finding in plain words. strategy: what was fitted."""

    models: tuple[LabelModel, ...]
    strategy: str
    attributes: dict[str, tuple[str, ...]]
    combinations: int
    unseen: tuple[str, ...]
    photos: int
    groups: int
    sentence: str
    seconds: float

    @property
    def best(self) -> LabelModel:
        """The one with the highest macro F1 of the whole; of equals the first."""
        return max(self.models, key=lambda model: model.macro_f1.value)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def compare_labels(photos: Photos, recipe: Recipe | None = None, reporter: Reporter | None = None) -> LabelComparison:
    """Fits `labels.model` joint and parts on the same folds, and scores them and their average out of fold.

    photos: with several label columns. recipe: strategy probe (the default here); all but `labels.model` is used for
    each. Nothing is left behind. The average is that of the two probabilities, which is what `both` is.

    Differences to joint are of paired resamples of groups, with simultaneous 95 % intervals (see
    `judge.many.many_differences`). Raises what `fit` raises, and RecipeError where there is one label column only or
    the strategy is another.
    """
    recipe, reporter, started = recipe or Recipe(strategy="probe"), reporter or Reporter(), time.perf_counter()
    if recipe.strategy != "probe":
        raise RecipeError(
            f"strategy = '{recipe.strategy}': heads apart are fitted by strategy probe only; compare with "
            "--strategy probe."
        )
    recipes = {name: recipe.replace(**{"labels.model": name}) for name in (_BASE, _PARTS)}
    check_labels(recipes[_PARTS], photos)
    check_balance(recipe)
    graphs_of(recipe)
    found = fit_each(photos, recipes, reporter)
    joint, parts = (found.probabilities[name] for name in recipes)
    probabilities = {**found.probabilities, _BOTH: (joint + parts) / 2}
    seconds = {**found.seconds, _BOTH: round(sum(found.seconds.values()), 3)}
    attributes = parts_of(found.photos)
    models = _models(found, probabilities, seconds, attributes, recipe.seed)
    unseen = unseen_combinations(found.labels, found.folds, recipe.folds.count, found.photos.classes)
    return LabelComparison(
        models=models,
        strategy=recipe.strategy,
        attributes={part.name: part.values for part in attributes},
        combinations=len(photos.classes),
        unseen=tuple(unseen),
        photos=len(found.inside),
        groups=len(np.unique(found.units[found.inside])),
        sentence=_sentence(models),
        seconds=round(time.perf_counter() - started, 3),
    )


def _models(
    found: Compared,
    probabilities: dict[str, NDArray[np.float64]],
    seconds: dict[str, float],
    attributes: tuple[Part, ...],
    seed: int,
) -> tuple[LabelModel, ...]:
    rows = found.inside
    labels, units = found.labels[rows], found.units[rows]
    told = {name: proba[rows] for name, proba in probabilities.items()}

    def judged(truth: NDArray[np.int64], predicted: dict[str, NDArray[np.int64]], classes: int) -> dict[str, Any]:
        others = {name: p for name, p in predicted.items() if name != _BASE}
        metrics = {"macro_f1": macro, "accuracy": accuracy}
        scores = many_differences(truth, predicted[_BASE], others, units, classes, metrics, seed=seed)
        return {name or _BASE: score for name, score in scores.items()}

    whole = judged(labels, {name: p.argmax(1) for name, p in told.items()}, len(found.photos.classes))
    by_part = {
        part.name: judged(
            part.of(labels), {name: marginal(p, part).argmax(1) for name, p in told.items()}, len(part.values)
        )
        for part in attributes
    }
    return tuple(
        LabelModel(
            name=name,
            macro_f1=Figure(**whole[name]["macro_f1"]["score"]),
            accuracy=Figure(**whole[name]["accuracy"]["score"]),
            log_loss=float(-np.log(np.maximum(proba[np.arange(len(rows)), labels], 1e-15)).mean()),
            parts={part: Figure(**scores[name]["macro_f1"]["score"]) for part, scores in by_part.items()},
            difference=Figure(**whole[name]["macro_f1"]["difference"]),
            accuracy_difference=Figure(**whole[name]["accuracy"]["difference"]),
            part_differences={
                part: Figure(**scores[name]["macro_f1"]["difference"]) for part, scores in by_part.items()
            },
            seconds=seconds[name],
        )
        for name, proba in told.items()
    )


def _sentence(models: tuple[LabelModel, ...]) -> str:
    base, others = models[0], models[1:]
    best = max(others, key=lambda model: model.macro_f1.value)
    d = best.difference
    told = f"{d.value:+.3f} (between {d.low:+.3f} and {d.high:+.3f})"
    worst, figure = min(base.parts.items(), key=lambda item: item[1].value)
    hardest = f"Hardest to tell is {worst}: macro F1 {figure.value:.3f} with joint"
    apart = next(model for model in models if model.name == _PARTS)
    hardest += f", {apart.parts[worst].value:.3f} with parts."
    if d.value <= 0:
        how = "more than chance" if d.told else "which may be chance"
        return (
            f"One head over the combinations is best by macro F1 ({base.macro_f1.value:.3f}); '{best.name}' is next, "
            f"{told}, {how}. {hardest}"
        )
    sure = "more than chance" if d.told else "which may be chance"
    return (
        f"Best by macro F1 is '{best.name}' with {best.macro_f1.value:.3f}: {told} on one head over the combinations, "
        f"{sure}. {hardest}"
    )
