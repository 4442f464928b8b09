"""Comparison of label models for several label columns: one joint head, one head per column, or their average.

All models are evaluated out of fold on the same folds.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.analysis.aligned_runs import AlignedRuns
from unfreeze.analysis.fit import fit_each
from unfreeze.core.dataset import ImageDataset, LabelColumn, label_columns
from unfreeze.core.errors import RecipeError
from unfreeze.core.format import format_interval, format_score
from unfreeze.core.messages import Brief, setting
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Labels
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.features.inputs import feature_extractors
from unfreeze.metrics.differences import Exchanges, Metrics, accuracy, differences, macro, score_intervals, simultaneous
from unfreeze.metrics.intervals import Estimate
from unfreeze.metrics.label_columns import marginalize
from unfreeze.metrics.log_loss import log_loss
from unfreeze.training.class_balance import check_balance
from unfreeze.training.linear_probe.heads import check_labels, unseen_combinations

_BASE, _PARTS, _BOTH = get_args(Labels.model_fields["model"].annotation)


@dataclass(frozen=True)
class LabelModel:
    """Out-of-fold scores of one value of `labels.model`, and their differences to `joint`.

    The intervals of all differences, for the combined label and for its parts, hold simultaneously. A part is one label
    column.

    Attributes:
        name: Value of `labels.model`.
        macro_f1: Macro F1 of the combined label.
        accuracy: Accuracy of the combined label.
        log_loss: Mean log loss over the images.
        parts: Part name -> macro F1.
        difference: Difference in macro F1 to `joint`.
        accuracy_difference: Difference in accuracy to `joint`.
        part_differences: Part name -> difference in macro F1 to `joint`.
        seconds: Duration of the fit.
    """

    name: str
    macro_f1: Estimate
    accuracy: Estimate
    log_loss: float
    parts: dict[str, Estimate]
    difference: Estimate
    accuracy_difference: Estimate
    part_differences: dict[str, Estimate]
    seconds: float


@dataclass(frozen=True, repr=False)
class LabelComparison(Brief):
    """Result of `compare_labels`.

    Attributes:
        models: `joint`, `parts` and `both`.
        strategy: Strategy that was fitted.
        attributes: Part name -> its values.
        combinations: Number of combinations of values, that is, of classes.
        unseen: Combinations that are absent from the training images of at least one fold.
        photos: Number of images.
        groups: Number of their groups.
        sentence: The result in words.
        seconds: Duration of the comparison.
    """

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
        """The model with the highest macro F1 of the combined label; the first one in case of ties."""
        return max(self.models, key=lambda model: model.macro_f1.value)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


def compare_labels(
    photos: ImageDataset | str | Path | pd.DataFrame,
    recipe: Recipe | None = None,
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> LabelComparison:
    """Fit `labels.model` joint and parts on the same folds, and score both and their average out of fold.

    The average of the two probabilities is what `labels.model = "both"` predicts. Differences to joint are paired.
    Their 95% intervals hold simultaneously for both other models, for macro F1 and accuracy of the combined label and
    macro F1 of each part (`metrics.differences.simultaneous`). No runs are written.

    Args:
        photos: Images with several label columns: an ImageDataset, or any source that `uf.read` accepts.
        recipe: Recipe of strategy probe (the default) whose `labels.model` is replaced.
        reporter: Receives progress messages.
        **given: Keywords of `uf.read`.

    Returns:
        The comparison.

    Raises:
        RecipeError: If there is only one label column, or for another strategy.
        UnfreezeError: Any other error of `fit`.
    """
    photos, recipe = photos_of("compare_labels", photos, recipe, given, Recipe(strategy="probe"))
    reporter, started = reporter or Reporter(), time.perf_counter()
    if recipe.strategy != "probe":
        raise RecipeError(
            f"strategy = '{recipe.strategy}': heads apart are fitted by strategy probe only; compare with "
            f"{setting('strategy', 'probe', 'strategy')}."
        )
    recipes = {name: recipe.replace(**{"labels.model": name}) for name in (_BASE, _PARTS)}
    check_labels(recipes[_PARTS], photos)
    check_balance(recipe)
    feature_extractors(recipe)
    found = fit_each(photos, recipes, reporter)
    joint, parts = (found.probabilities[name] for name in recipes)
    probabilities = {**found.probabilities, _BOTH: (joint + parts) / 2}
    seconds = {**found.seconds, _BOTH: round(sum(found.seconds.values()), 3)}
    attributes = label_columns(found.photos)
    models = _models(found, probabilities, seconds, attributes, recipe.seed)
    unseen = unseen_combinations(found.labels, found.folds, recipe.folds.n_splits, found.photos.classes)
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
    found: AlignedRuns,
    probabilities: dict[str, NDArray[np.float64]],
    seconds: dict[str, float],
    attributes: tuple[LabelColumn, ...],
    seed: int,
) -> tuple[LabelModel, ...]:
    rows = found.inside
    labels, units = found.labels[rows], found.units[rows]
    own = {name: proba[rows] for name, proba in probabilities.items()}
    pairs = {name: _BASE for name in own if name != _BASE}

    def judged(
        truth: NDArray[np.int64], predicted: dict[str, NDArray[np.int64]], classes: int, metrics: Metrics
    ) -> tuple[dict[str, dict[str, dict[str, float]]], Exchanges]:
        scores = score_intervals(truth, predicted, units, classes, metrics, seed=seed)
        return scores, differences(truth, predicted, pairs, units, classes, metrics, seed=seed)

    predicted = {name: proba.argmax(1) for name, proba in own.items()}
    metrics: Metrics = {"macro_f1": macro, "accuracy": accuracy}
    sheets = [judged(labels, predicted, len(found.photos.classes), metrics)]
    for part in attributes:
        of_part = {name: marginalize(proba, part).argmax(1) for name, proba in own.items()}
        sheets.append(judged(part.of(labels), of_part, len(part.values), {"macro_f1": macro}))
    whole, *by_part = (scores for scores, _ in sheets)
    more, *more_by_part = simultaneous([family for _, family in sheets])
    places = {name: p for p, name in enumerate(pairs)}
    nothing = Estimate(0.0, 0.0, 0.0)
    return tuple(
        LabelModel(
            name=name,
            macro_f1=Estimate(**whole[name]["macro_f1"]),
            accuracy=Estimate(**whole[name]["accuracy"]),
            log_loss=log_loss(labels, proba),
            parts={
                part.name: Estimate(**scores[name]["macro_f1"])
                for part, scores in zip(attributes, by_part, strict=True)
            },
            difference=Estimate(**more.at(places[name], 0)) if name in places else nothing,
            accuracy_difference=Estimate(**more.at(places[name], 1)) if name in places else nothing,
            part_differences={
                part.name: Estimate(**own_more.at(places[name])) if name in places else nothing
                for part, own_more in zip(attributes, more_by_part, strict=True)
            },
            seconds=seconds[name],
        )
        for name, proba in own.items()
    )


def _sentence(models: tuple[LabelModel, ...]) -> str:
    """Significance of the differences, followed by the highest score and the part with the lowest score."""
    base, others = models[0], models[1:]
    said = []
    for model in others:
        d = model.difference
        between = f"95% interval {format_interval(asdict(d), signed=True)}"
        if d.significant:
            side = "higher" if d.value > 0 else "lower"
            said.append(f"'{model.name}' has a significantly {side} macro F1 than '{base.name}' ({between}).")
        else:
            said.append(f"'{model.name}' does not differ significantly from '{base.name}' in macro F1 ({between}).")
    best = max(models, key=lambda model: model.macro_f1.value)
    said.append(f"Highest macro F1 of {len(models)}: '{best.name}', {format_score(best.macro_f1.value)}.")
    worst, figure = min(base.parts.items(), key=lambda item: item[1].value)
    apart = next(model for model in models if model.name == _PARTS)
    said.append(
        f"The part with the lowest macro F1 is {worst}: {format_score(figure.value)} with '{base.name}', "
        f"{format_score(apart.parts[worst].value)} with '{_PARTS}'."
    )
    return " ".join(said)
