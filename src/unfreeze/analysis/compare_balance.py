"""Comparison of class-balancing methods (`recipe.balance`) on the same folds, each against no balancing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from unfreeze.analysis.fit import fit_each
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import RecipeError, join_names
from unfreeze.core.format import format_score
from unfreeze.core.messages import Brief, setting
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Balance
from unfreeze.core.runs import default_run_dir
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.features.extra_samples import minority
from unfreeze.features.inputs import feature_extractors
from unfreeze.metrics.bootstrap import effective_groups
from unfreeze.metrics.differences import accuracy, macro, mean_recall, simultaneous_differences
from unfreeze.metrics.ensembling import score_of_the_best
from unfreeze.metrics.intervals import Estimate
from unfreeze.training.class_balance import check_balance

# Name -> settings; other keys of recipe.balance keep the defaults of Balance(). `none` is the baseline.
BALANCE_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {"loss": "ce"},
    "sqrt": {"sampling": "sqrt"},
    "over": {"sampling": "over"},
    "under": {"sampling": "under"},
    "weighted": {"loss": "weighted"},
    "logit-adjusted": {"loss": "logit-adjusted"},
    "focal": {"loss": "focal"},
}
_BASE = "none"
_ADD = "extra_views"


@dataclass(frozen=True)
class BalanceOption:
    """Out-of-fold scores of one balancing method, and their differences to `none`.

    The intervals of the differences hold simultaneously for all methods and all four metrics.

    Attributes:
        name: Name of the method.
        settings: Settings of recipe.balance that differ from the defaults.
        macro_f1: Macro F1.
        accuracy: Accuracy.
        smallest: Recall of the smallest class.
        minority: Mean recall of the classes with fewer images than the median class; of the smallest class if there are
            none.
        difference: Difference in macro F1.
        accuracy_difference: Difference in accuracy.
        smallest_difference: Difference in `smallest`.
        minority_difference: Difference in `minority`.
        seconds: Duration of the fit.
    """

    name: str
    settings: dict[str, Any]
    macro_f1: Estimate
    accuracy: Estimate
    smallest: Estimate
    minority: Estimate
    difference: Estimate
    accuracy_difference: Estimate
    smallest_difference: Estimate
    minority_difference: Estimate
    seconds: float


@dataclass(frozen=True, repr=False)
class BalanceComparison(Brief):
    """Result of `compare_balance`.

    Attributes:
        words: The methods, `none` first.
        strategy: Strategy that was fitted.
        counts: Class name -> number of images that are in a fold.
        smallest: Name of the smallest class.
        minority: Names of the classes whose mean recall is reported as `minority`.
        photos: Number of images.
        groups: Number of their groups.
        effective_groups: Number of equally sized groups with the same information.
        corrected: Expected macro F1 of the method with the highest score, corrected for its selection on these images
            (`metrics.ensembling.score_of_the_best`).
        sentence: The result in words.
        seconds: Duration of the comparison.
    """

    words: tuple[BalanceOption, ...]
    strategy: str
    counts: dict[str, int]
    smallest: str
    minority: tuple[str, ...]
    photos: int
    groups: int
    effective_groups: float
    corrected: float
    sentence: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


def compare_balance(
    photos: ImageDataset | str | Path | pd.DataFrame,
    recipe: Recipe | None = None,
    folder: str | Path | None = None,
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> BalanceComparison:
    """Fit each method of `BALANCE_OPTIONS` on the same folds and compare it out of fold with `none`.

    Differences are paired, with simultaneous 95% intervals over all methods and metrics
    (`metrics.differences.simultaneous`).

    Args:
        photos: An ImageDataset, or any source that `uf.read` accepts.
        recipe: Recipe whose section `balance` is replaced by each method; by default a probe. If
        `balance.extra_views` is set,
            the method `add` is compared as well: the added rows with plain cross entropy.
        folder: Folder of the runs, by default next to the default run folder of the recipe. Strategy probe writes no
            runs: features are computed once, or read from the cache. Other strategies leave one run per method, and
            finished runs are reused, so that an interrupted comparison can be resumed.
        reporter: Receives progress messages.
        **given: Keywords of `uf.read`.

    Returns:
        The comparison.

    Raises:
        RecipeError: For strategy auto.
        UnfreezeError: Any other error of `fit`.
    """
    photos, recipe = photos_of("compare_balance", photos, recipe, given, Recipe(strategy="probe"))
    reporter, started = reporter or Reporter(), time.perf_counter()
    if recipe.strategy == "auto":
        raise RecipeError(
            "strategy = 'auto': balance is compared within one strategy; name it, as "
            f"{setting('strategy', 'probe', 'strategy')}."
        )
    words = {name: Balance(**settings) for name, settings in BALANCE_OPTIONS.items()}
    if recipe.balance.extra_views:
        words[_ADD] = Balance(loss="ce", extra_views=recipe.balance.extra_views)
    recipes = {name: recipe.model_copy(update={"balance": balance}) for name, balance in words.items()}
    for one in recipes.values():
        check_balance(one)
    feature_extractors(recipe)
    default = default_run_dir(recipe)
    place = Path(folder) if folder else default.with_name(f"{default.name}-balance")
    found = fit_each(photos, recipes, reporter, place)
    labels, units, inside, classes = found.labels, found.units, found.inside, found.photos.classes
    predicted = {name: proba[inside].argmax(1) for name, proba in found.probabilities.items()}
    counts = np.bincount(labels[inside], minlength=len(classes))
    present = np.flatnonzero(counts)
    smallest = int(present[counts[present].argmin()])
    small = minority(counts) or [smallest]
    judged = simultaneous_differences(
        labels[inside],
        predicted[_BASE],
        {name: p for name, p in predicted.items() if name != _BASE},
        units[inside],
        len(classes),
        {"macro_f1": macro, "accuracy": accuracy, "smallest": mean_recall([smallest]), "minority": mean_recall(small)},
        seed=recipe.seed,
    )
    corrected = score_of_the_best(labels[inside], [*predicted.values()], units[inside], len(classes), seed=recipe.seed)
    rows = tuple(_word(name, words[name], judged["" if name == _BASE else name], found.seconds[name]) for name in words)
    return BalanceComparison(
        words=rows,
        strategy=recipe.strategy,
        counts={classes[i]: int(counts[i]) for i in present},
        smallest=classes[smallest],
        minority=tuple(classes[i] for i in small),
        photos=len(inside),
        groups=len(np.unique(units[inside])),
        effective_groups=round(effective_groups(units[inside]), 1),
        corrected=corrected,
        sentence=_sentence(rows, corrected, classes[smallest], int(counts[smallest])),
        seconds=round(time.perf_counter() - started, 3),
    )


def _word(name: str, balance: Balance, judged: dict[str, dict[str, dict[str, float]]], seconds: float) -> BalanceOption:
    scores = {metric: Estimate(**both["score"]) for metric, both in judged.items()}
    more = {metric: Estimate(**both["difference"]) for metric, both in judged.items()}
    return BalanceOption(
        name=name,
        settings=balance.model_dump(mode="json", exclude_defaults=True),
        **scores,
        difference=more["macro_f1"],
        accuracy_difference=more["accuracy"],
        smallest_difference=more["smallest"],
        minority_difference=more["minority"],
        seconds=seconds,
    )


def _sentence(words: tuple[BalanceOption, ...], corrected: float, smallest: str, count: int) -> str:
    """Significant differences, followed by the highest score and its value corrected for selection."""
    others = words[1:]
    said = [
        _significant("macro F1", [(word.name, word.difference) for word in others]),
        _significant(
            f"recall of the smallest class, '{smallest}' ({count:,} images)",
            [(word.name, word.smallest_difference) for word in others],
        ),
    ]
    best = max(words, key=lambda word: word.macro_f1.value)
    said.append(
        f"Highest macro F1: '{best.name}', {format_score(best.macro_f1.value)}; {format_score(corrected)} after "
        f"correction for being chosen among {len(words)} on these images."
    )
    return " ".join(said)


def _significant(what: str, differences: list[tuple[str, Estimate]]) -> str:
    higher = [f"'{name}'" for name, more in differences if more.low > 0]
    lower = [f"'{name}'" for name, more in differences if more.high < 0]
    sides = [
        f"significantly {side} with {join_names(names)}"
        for side, names in (("higher", higher), ("lower", lower))
        if names
    ]
    if not sides:
        return f"{what[0].upper()}{what[1:]}: no significant difference to '{_BASE}' among {len(differences)}."
    return f"{what[0].upper()}{what[1:]}, compared with '{_BASE}': {' and '.join(sides)}."
