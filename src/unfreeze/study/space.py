"""What a search may vary: keys of a recipe, each with a range or a few values; by strategy where nothing is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import RecipeError, UnfreezeError
from unfreeze.core.recipe import Recipe
from unfreeze.learn.crossval import check_recipe
from unfreeze.study.vary import parse_vary

if TYPE_CHECKING:
    from optuna import Trial

    from unfreeze.core.tables import Photos

# What a search cannot vary, and why: a score is comparable only on the same photos, folds and classes.
_FIXED = {
    "source": "says which photos are read",
    "folds": "cuts the folds that recipes are compared on",
    "seed": "is chance, and the luckiest draw is no better recipe",
    "advise": "is of strategy auto's race",
    "tune": "is of the search itself",
    "image.max_megapixels": "says which photos are read",
    "train.budget": "would pay for a score in time",
    "probe.race": "is a search of its own",
}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})(\s+log)?")

# What is searched where the recipe names nothing. The steps of `late` and `full` are relative ones (train.relative),
# and both start from a good probe: their ranges lie around defaults that were measured (docs/method.md).
SPACES: dict[str, tuple[str, ...]] = {
    "probe": (
        # Each size, crop and grid costs a pass over the photos, and the heads on it next to nothing.
        "probe.grid=2,3",
        "image.size=224,288,320",
        "image.crop=0.875,1.0",
        "balance.power=0.0..1.0",
    ),
    "late": (
        "train.unfreeze=last:1,last:2,last:3",
        "train.rate=5e-4..2e-2 log",
        "train.epochs=3..12",
        "train.keep=0.4..1.0",
        "train.augment=flip,light,standard,strong",
        "train.label_smoothing=0.0..0.2",
        "train.mixup=0.0,0.2",
        "train.weight_decay=0.0,0.01,0.05",
    ),
    "full": (
        "train.rate=5e-4..2e-2 log",
        "train.layer_decay=0.5..1.0",
        "train.epochs=2..8",
        "train.keep=0.4..1.0",
        "train.augment=flip,light,standard,strong",
        "train.label_smoothing=0.0..0.2",
        "train.mixup=0.0,0.2",
        "train.weight_decay=0.0,0.01,0.05",
    ),
    "scratch": (
        "train.rate=2e-4..5e-3 log",
        "train.epochs=15..60",
        "train.augment=flip,light,standard,strong",
        "train.label_smoothing=0.0..0.2",
        "train.mixup=0.0,0.2,0.8",
        "train.weight_decay=1e-3..0.2 log",
    ),
}


@dataclass(frozen=True)
class Dimension:
    """One key: a range from `low` to `high` (whole numbers where both are), evenly or by its logarithm; or values."""

    key: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    values: tuple[Any, ...] = ()

    def suggest(self, trial: Trial) -> Any:
        """A value for this trial of an Optuna study."""
        if self.values:  # as text: a study keeps only plain values, and some keys take lists
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(value) for value in self.values]))
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return self._rounded(trial.suggest_float(self.key, self.low, self.high, log=self.log))

    def value_of(self, written: Any) -> Any:
        """The recipe's value of what Optuna has kept of a trial."""
        if self.values:
            return json.loads(written)
        return written if isinstance(self.low, int) and isinstance(self.high, int) else self._rounded(written)

    def _rounded(self, value: float) -> float:
        """Three digits say all that a search can find out; the ends stay as they are written."""
        assert self.low is not None and self.high is not None
        return float(min(max(float(f"{value:.3g}"), self.low), self.high))

    def told(self) -> str:
        """As one writes it."""
        if self.values:
            return f"{self.key}={','.join(v if isinstance(v, str) else json.dumps(v) for v in self.values)}"
        return f"{self.key}={self.low}..{self.high}{' log' if self.log else ''}"


def space_of(recipe: Recipe, photos: Photos) -> tuple[Dimension, ...]:
    """The recipe's space, `tune.space` or its strategy's own, checked at each value and both ends of each range.

    Raises RecipeError for a key that is unknown, fixed or named twice, a value that it does not take, a range that is
    none; and what the recipe would raise with a value of it, before anything is fitted.
    """
    if recipe.strategy == "auto":
        raise RecipeError("strategy = 'auto': a search is within one strategy; name probe, late, full or scratch.")
    if recipe.train.budget:
        raise RecipeError(
            f"train.budget = '{recipe.train.budget}': how far a recipe trains would hang on the machine's load; "
            "leave it out, the search has tune.budget."
        )
    if recipe.probe.race:
        raise RecipeError("--quality best races inputs within each fold, a search of its own; tune fast or good.")
    if not recipe.tune.space:
        return _usual(recipe, photos)
    found: list[Dimension] = []
    for written in recipe.tune.space:
        one = parse_dimension(written)
        if any(one.key == other.key for other in found):
            raise RecipeError(f"--space {one.key}: is named twice; put all its values into one.")
        for value in one.values or (one.low, one.high):
            try:
                check_recipe(recipe.replace(**{one.key: value}), photos)
            except UnfreezeError as error:
                raise type(error)(f"--space {one.told()}: {error}") from None
        found.append(one)
    return tuple(found)


def _usual(recipe: Recipe, photos: Photos) -> tuple[Dimension, ...]:
    """The strategy's own space, less what this recipe has fixed by a value that is not the default's, and values that
    it does not take, as a size that its backbone has not."""
    check_recipe(recipe, photos)
    found, default = list[Dimension](), Recipe()
    for one in map(parse_dimension, SPACES[recipe.strategy]):
        if _value(recipe, one.key) != _value(default, one.key):
            continue
        good = [value for value in one.values if _takes(recipe, one.key, value, photos)]
        if one.values and len(good) > 1:
            found.append(Dimension(one.key, values=tuple(good)))
        elif not one.values and all(_takes(recipe, one.key, end, photos) for end in (one.low, one.high)):
            found.append(one)
    if not found:
        raise RecipeError("nothing of the strategy's usual space fits this recipe; name what to search with --space.")
    return tuple(found)


def _takes(recipe: Recipe, key: str, value: Any, photos: Photos) -> bool:
    try:
        check_recipe(recipe.replace(**{key: value}), photos)
    except UnfreezeError:
        return False
    return True


def _value(recipe: Recipe, key: str) -> Any:
    """The recipe's value of a dotted key, as JSON has it."""
    found: Any = recipe.model_dump(mode="json")
    for word in key.split("."):
        found = found[word]
    return found


def parse_dimension(written: str) -> Dimension:
    """`train.rate=1e-3..1e-2 log`, `train.epochs=3..12` or `probe.grid=1,2,3`. RecipeError for anything else."""
    key, equals, text = written.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key or not text:
        raise RecipeError(f"--space {written}: write it as train.rate=1e-3..1e-2 log, or probe.grid=1,2,3.")
    for fixed, why in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise RecipeError(f"--space {key}: {why}; a search does not vary it.")
    if key == "strategy":
        raise RecipeError("--space strategy: `unfreeze advise` and `unfreeze compare` hold strategies side by side.")
    if match := _RANGE.fullmatch(text):
        whole = all(re.fullmatch(r"[+-]?\d+", end) for end in match.group(1, 2))
        low, high = (int(end) if whole else float(end) for end in match.group(1, 2))
        if low >= high:
            raise RecipeError(f"--space {written}: a range goes from its lower end to its upper one.")
        if match.group(3) and low <= 0:
            raise RecipeError(f"--space {written}: a logarithm needs a lower end above 0.")
        return Dimension(key, low, high, bool(match.group(3)))
    values = parse_vary([f"{key}={text}"])[key]
    if len(values) < 2:
        raise RecipeError(f"--space {written}: one value is nothing to search; name two, or a range as 1e-3..1e-2.")
    if any(not isinstance(value, str | int | float | list | dict) for value in values):
        raise RecipeError(f"--space {written}: no key takes a date or a time.")
    if len({json.dumps(value, default=str) for value in values}) < len(values):
        raise RecipeError(f"--space {written}: a value is named twice.")
    return Dimension(key, values=tuple(values))


def changes_of(space: Iterable[Dimension], recipe: Recipe, kept: dict[str, Any]) -> dict[str, Any]:
    """Where the recipe of a trial differs from the one that was given, by what Optuna has kept of it: {key: value}."""
    found = {one.key: one.value_of(kept[one.key]) for one in space if one.key in kept}
    return {key: value for key, value in found.items() if value != _value(recipe, key)}
