"""Search space of a hyperparameter search: recipe keys with a range or a list of values.

Without `tune.search_space`, the default space of the strategy is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import RecipeError, UnfreezeError
from unfreeze.core.messages import wording
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_grid import parse_vary
from unfreeze.training.crossval import check_recipe

if TYPE_CHECKING:
    from optuna import Trial

    from unfreeze.core.dataset import ImageDataset

# Keys that a search cannot vary, and why: scores are comparable only on the same images, folds and classes.
_FIXED = {
    "source": "selects the images",
    "folds": "defines the folds that recipes are compared on",
    "seed": "sets the random state, and choosing the best seed overfits",
    "recommend": "applies to strategy auto only",
    "tune": "configures the search itself",
    "image.max_megapixels": "selects the images",
    "train.time_budget": "would trade time for score",
    "probe.input_candidates": "is a search itself",
}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})(\s+log)?")

# Default spaces. Learning rates of `partial` and `full` are relative (train.lr_scaling), and both start from a good
# probe;
# their ranges lie around measured defaults (docs/method.md).
SPACES: dict[str, tuple[str, ...]] = {
    "probe": (
        # Each size, crop and grid costs one pass over the images; the heads on top are almost free.
        "probe.pool_size=2,3",
        "image.size=224,288,320",
        "image.crop=0.875,1.0",
        "balance.class_weight_power=0.0..1.0",
    ),
    "partial": (
        "train.trainable=last:1,last:2,last:3",
        "train.lr=5e-4..2e-2 log",
        "train.epochs=3..12",
        "train.wise_ft_alpha=0.4..1.0",
        "train.augment=flip,light,standard,strong",
        "train.label_smoothing=0.0..0.2",
        "train.mixup_alpha=0.0,0.2",
        "train.weight_decay=0.0,0.01,0.05",
    ),
    "full": (
        "train.lr=5e-4..2e-2 log",
        "train.layer_decay=0.5..1.0",
        "train.epochs=2..8",
        "train.wise_ft_alpha=0.4..1.0",
        "train.augment=flip,light,standard,strong",
        "train.label_smoothing=0.0..0.2",
        "train.mixup_alpha=0.0,0.2",
        "train.weight_decay=0.0,0.01,0.05",
    ),
    "scratch": (
        "train.lr=2e-4..5e-3 log",
        "train.epochs=15..60",
        "train.augment=flip,light,standard,strong",
        "train.label_smoothing=0.0..0.2",
        "train.mixup_alpha=0.0,0.2,0.8",
        "train.weight_decay=1e-3..0.2 log",
    ),
}


@dataclass(frozen=True)
class Dimension:
    """One key with a range or a list of values.

    Attributes:
        key: Dotted recipe key.
        low: Lower end of the range; the range is integer if both ends are.
        high: Upper end of the range.
        log: Whether the range is sampled on a logarithmic scale.
        values: Values of a categorical dimension; empty for a range.
    """

    key: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    values: tuple[Any, ...] = ()

    def suggest(self, trial: Trial) -> Any:
        """Sample a value for an Optuna trial."""
        if self.values:  # as JSON: a study stores only scalars, and some keys take lists
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(value) for value in self.values]))
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return self._rounded(trial.suggest_float(self.key, self.low, self.high, log=self.log))

    def value_of(self, written: Any) -> Any:
        """Convert a value stored by Optuna to the value of the recipe."""
        if self.values:
            return json.loads(written)
        return written if isinstance(self.low, int) and isinstance(self.high, int) else self._rounded(written)

    def _rounded(self, value: float) -> float:
        """Round to three significant digits, within the range."""
        assert self.low is not None and self.high is not None
        return float(min(max(float(f"{value:.3g}"), self.low), self.high))

    def describe(self) -> str:
        """Format as accepted by `parse_dimension`."""
        if self.values:
            return f"{self.key}={','.join(v if isinstance(v, str) else json.dumps(v) for v in self.values)}"
        return f"{self.key}={self.low}..{self.high}{' log' if self.log else ''}"


def _option() -> str:
    """Name of the option that sets the space, for messages."""
    return wording("--space", "tune.search_space")


def space_of(recipe: Recipe, photos: ImageDataset) -> tuple[Dimension, ...]:
    """Search space of a recipe: `tune.search_space`, or the default of its strategy.

    Each value and both ends of each range are checked against the recipe before anything is fitted.

    Raises:
        RecipeError: For an unknown, fixed or repeated key, an invalid value or range, or strategy auto.
        UnfreezeError: Any error that `check_recipe` raises for the recipe with one of the values.
    """
    if recipe.strategy == "auto":
        raise RecipeError("strategy = 'auto': a search covers one strategy; set probe, partial, full or scratch.")
    if recipe.train.time_budget:
        raise RecipeError(
            f"train.time_budget = '{recipe.train.time_budget}': the number of epochs would depend on the "
            "load of the machine; remove it and set tune.budget."
        )
    if recipe.probe.input_candidates:
        raise RecipeError(
            f"{wording('--quality best', 'probe.input_candidates')} is a search itself; use quality fast or good."
        )
    if not recipe.tune.search_space:
        return _usual(recipe, photos)
    found: list[Dimension] = []
    for written in recipe.tune.search_space:
        one = parse_dimension(written)
        if any(one.key == other.key for other in found):
            raise RecipeError(f"{_option()} {one.key}: is named twice; put all its values into one.")
        for value in one.values or (one.low, one.high):
            try:
                check_recipe(recipe.replace(**{one.key: value}), photos)
            except UnfreezeError as error:
                raise type(error)(f"{_option()} {one.describe()}: {error}") from None
        found.append(one)
    return tuple(found)


def _usual(recipe: Recipe, photos: ImageDataset) -> tuple[Dimension, ...]:
    """Default space of the strategy, without keys set to a non-default value and without invalid values."""
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
        raise RecipeError(f"the strategy's default search space does not fit this recipe; define one with {_option()}.")
    return tuple(found)


def _takes(recipe: Recipe, key: str, value: Any, photos: ImageDataset) -> bool:
    try:
        check_recipe(recipe.replace(**{key: value}), photos)
    except UnfreezeError:
        return False
    return True


def _value(recipe: Recipe, key: str) -> Any:
    """Value of a dotted key, in its JSON form."""
    found: Any = recipe.model_dump(mode="json")
    for word in key.split("."):
        found = found[word]
    return found


def parse_dimension(written: str) -> Dimension:
    """Parse `train.lr=1e-3..1e-2 log`, `train.epochs=3..12` or `probe.pool_size=1,2,3`.

    Raises:
        RecipeError: For any other form, and for keys that a search cannot vary.
    """
    key, equals, text = written.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key or not text:
        raise RecipeError(f"{_option()} {written}: write it as train.lr=1e-3..1e-2 log, or probe.pool_size=1,2,3.")
    for fixed, why in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise RecipeError(f"{_option()} {key}: {why}; a search cannot vary it.")
    if key == "strategy":
        raise RecipeError(
            f"{_option()} strategy: `unfreeze recommend` and `unfreeze compare` compare strategies; a search cannot."
        )
    if match := _RANGE.fullmatch(text):
        whole = all(re.fullmatch(r"[+-]?\d+", end) for end in match.group(1, 2))
        low, high = (int(end) if whole else float(end) for end in match.group(1, 2))
        if low >= high:
            raise RecipeError(f"{_option()} {written}: the lower end of a range must be below its upper end.")
        if match.group(3) and low <= 0:
            raise RecipeError(f"{_option()} {written}: a log range needs a lower end above 0.")
        return Dimension(key, low, high, bool(match.group(3)))
    values = parse_vary([f"{key}={text}"])[key]
    if len(values) < 2:
        raise RecipeError(f"{_option()} {written}: a search needs two values, or a range as 1e-3..1e-2.")
    if any(not isinstance(value, str | int | float | list | dict) for value in values):
        raise RecipeError(f"{_option()} {written}: no key takes a date or a time.")
    if len({json.dumps(value, default=str) for value in values}) < len(values):
        raise RecipeError(f"{_option()} {written}: a value is named twice.")
    return Dimension(key, values=tuple(values))


def changes_of(space: Iterable[Dimension], recipe: Recipe, kept: dict[str, Any]) -> dict[str, Any]:
    """Differences of a trial's recipe to the given recipe.

    Args:
        space: Dimensions of the search.
        recipe: The given recipe.
        kept: Parameters of the trial, as stored by Optuna.

    Returns:
        Dotted key -> value.
    """
    found = {one.key: one.value_of(kept[one.key]) for one in space if one.key in kept}
    return {key: value for key, value in found.items() if value != _value(recipe, key)}
