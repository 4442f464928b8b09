"""What helps the small classes: every word of `recipe.balance` on the same folds, each against doing nothing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.core.errors import RecipeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Balance
from unfreeze.core.runs import default_folder
from unfreeze.core.tables import Photos
from unfreeze.judge.many import accuracy, macro, many_differences, recall_of
from unfreeze.learn.added import minority
from unfreeze.learn.balance import check_balance
from unfreeze.learn.probe.inputs import graphs_of
from unfreeze.study.compared import Figure
from unfreeze.study.same_folds import fit_each

# Name -> what it sets; all else of recipe.balance is as in Balance(). `none` is what the others are held against.
WORDS: dict[str, dict[str, Any]] = {
    "none": {"loss": "ce"},
    "sqrt": {"sampling": "sqrt"},
    "over": {"sampling": "over"},
    "under": {"sampling": "under"},
    "weighted": {"loss": "weighted"},
    "logit-adjusted": {"loss": "logit-adjusted"},
    "focal": {"loss": "focal"},
}
_BASE = "none"
_ADD = "add"


@dataclass(frozen=True)
class Word:
    """One way to treat small classes: scores out of fold, and what each is more than that of `none`.

    smallest: recall of the smallest class. minority: mean recall of the classes with fewer photos than the median one
    (of the smallest class where there is none). The intervals of the differences hold for all words at once.
    """

    name: str
    settings: dict[str, Any]
    macro_f1: Figure
    accuracy: Figure
    smallest: Figure
    minority: Figure
    difference: Figure
    accuracy_difference: Figure
    smallest_difference: Figure
    minority_difference: Figure
    seconds: float


@dataclass(frozen=True)
class BalanceComparison:
    """words: `none` first. counts: training photos of each class. smallest: name of the smallest class. sentence: the
    finding in plain words. strategy: what was fitted."""

    words: tuple[Word, ...]
    strategy: str
    counts: dict[str, int]
    smallest: str
    minority: tuple[str, ...]
    photos: int
    groups: int
    sentence: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def compare_balance(
    photos: Photos, recipe: Recipe | None = None, folder: str | Path | None = None, reporter: Reporter | None = None
) -> BalanceComparison:
    """Fits each word of WORDS on the same folds and scores it out of fold, against `none`.

    recipe: all but `balance` is used for every word; if `balance.add` names rows, `add` joins the words: those rows and
    nothing else. Under strategy probe the features are computed once, or come from the cache, and nothing is left
    behind. Other strategies leave a run for each word in `folder` (by default next to where a fit of the recipe
    would go); finished ones are taken as they are, so that a comparison that was cut off goes on.

    Differences are of paired resamples of groups, with simultaneous 95 % intervals for all words (see
    `judge.many.many_differences`). Raises what `fit` raises, and RecipeError for strategy auto.
    """
    recipe, reporter, started = recipe or Recipe(strategy="probe"), reporter or Reporter(), time.perf_counter()
    if recipe.strategy == "auto":
        raise RecipeError("strategy = 'auto': balance is compared within one strategy; name it, as --strategy probe.")
    words = {name: Balance(**settings) for name, settings in WORDS.items()}
    if recipe.balance.add:
        words[_ADD] = Balance(loss="ce", add=recipe.balance.add)
    recipes = {name: recipe.model_copy(update={"balance": balance}) for name, balance in words.items()}
    for one in recipes.values():
        check_balance(one)
    graphs_of(recipe)
    beside = default_folder(recipe)
    place = Path(folder) if folder else beside.with_name(f"{beside.name}-balance")
    found = fit_each(photos, recipes, reporter, place)
    labels, units, inside, classes = found.labels, found.units, found.inside, found.photos.classes
    predicted = {name: proba[inside].argmax(1) for name, proba in found.probabilities.items()}
    counts = np.bincount(labels[inside], minlength=len(classes))
    present = np.flatnonzero(counts)
    smallest = int(present[counts[present].argmin()])
    small = minority(counts) or [smallest]
    judged = many_differences(
        labels[inside],
        predicted[_BASE],
        {name: p for name, p in predicted.items() if name != _BASE},
        units[inside],
        len(classes),
        {"macro_f1": macro, "accuracy": accuracy, "smallest": recall_of([smallest]), "minority": recall_of(small)},
        seed=recipe.seed,
    )
    rows = tuple(_word(name, words[name], judged["" if name == _BASE else name], found.seconds[name]) for name in words)
    return BalanceComparison(
        words=rows,
        strategy=recipe.strategy,
        counts={classes[i]: int(counts[i]) for i in present},
        smallest=classes[smallest],
        minority=tuple(classes[i] for i in small),
        photos=len(inside),
        groups=len(np.unique(units[inside])),
        sentence=_sentence(rows, classes[smallest], int(counts[smallest])),
        seconds=round(time.perf_counter() - started, 3),
    )


def _word(name: str, balance: Balance, judged: dict[str, dict[str, dict[str, float]]], seconds: float) -> Word:
    scores = {metric: Figure(**both["score"]) for metric, both in judged.items()}
    more = {metric: Figure(**both["difference"]) for metric, both in judged.items()}
    return Word(
        name=name,
        settings=balance.model_dump(mode="json", exclude_defaults=True),
        **scores,
        difference=more["macro_f1"],
        accuracy_difference=more["accuracy"],
        smallest_difference=more["smallest"],
        minority_difference=more["minority"],
        seconds=seconds,
    )


def _sentence(words: tuple[Word, ...], smallest: str, count: int) -> str:
    base, others = words[0], words[1:]
    best = max(others, key=lambda w: w.macro_f1.value)
    caught = max(words, key=lambda w: w.smallest.value)
    if best.difference.value <= 0:
        first = f"Nothing beats doing nothing by macro F1 ({base.macro_f1.value:.3f})."
    else:
        sure = "more than chance" if best.difference.told else "which may be chance"
        first = (
            f"Best by macro F1 is '{best.name}' with {best.macro_f1.value:.3f}: {best.difference.value:+.3f} on doing "
            f"nothing (between {best.difference.low:+.3f} and {best.difference.high:+.3f}), {sure}; {len(others)} were "
            "tried."
        )
    if caught is base:
        return f"{first} None finds more of '{smallest}' ({count:,} photos) than doing nothing."
    return (
        f"{first} Most of '{smallest}' ({count:,} photos) is found with '{caught.name}': {caught.smallest.value:.0%} "
        f"in place of {base.smallest.value:.0%}, at {caught.accuracy_difference.value:+.3f} accuracy."
    )
