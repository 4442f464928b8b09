"""Recipe: the complete, immutable configuration of a run.

A recipe is validated on construction and saved as TOML in the run folder. `PRESETS` maps each quality level to changes
of the default recipe; `good` is the default.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError

from unfreeze.core.errors import RecipeError, did_you_mean, wrong_type
from unfreeze.core.files import regular_file
from unfreeze.core.messages import wording
from unfreeze.core.recipe_schema import Balance, Folds, Image, Labels, Probe, Recommend, Section, Source, Train, Tune

MAX_RECIPE_BYTES = 1 << 20
_SHOWN = 200  # maximum length of a value in an error message
MOST_SEED = 2**32 - 1  # largest seed that NumPy and scikit-learn accept


class Recipe(Section):
    """All settings of a run. `Recipe()` has the defaults; `replace` makes a changed copy.

    Raises:
        RecipeError: A key is unknown or a value is invalid.
    """

    strategy: Literal["auto", "probe", "partial", "full", "scratch"] = Field(
        default="auto",
        description="what trains: the head, the last stages, the whole network, or a new network from scratch; auto: "
        "selected inside the training folds",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="a name from `unfreeze models`")
    weights: str = Field(default="", description="'': pretrained; 'none': untrained; else a .pth or .safetensors file")
    engine: Literal["auto", "openvino-f32", "openvino-bf16", "torch"] = Field(
        default="auto",
        description="runtime of the frozen network; auto: torch on a GPU, else OpenVINO, in bfloat16 if the "
        "processor supports it and the features agree with float32",
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="random seed")
    source: Source = Source()
    image: Image = Image()
    folds: Folds = Folds()
    probe: Probe = Probe()
    train: Train = Train()
    balance: Balance = Balance()
    labels: Labels = Labels()
    recommend: Recommend = Recommend()
    tune: Tune = Tune()

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(_explained(error)) from None

    def __repr__(self) -> str:
        """Show only the settings that differ from the defaults."""
        own, usual = (_flat(one.model_dump()) for one in (self, _DEFAULT))
        changed = [f"{key}={_shown(value)}" for key, value in own.items() if value != usual[key]]
        return f"Recipe({', '.join(changed)})"

    __str__ = __repr__

    def replace(self, **changes: Any) -> Recipe:
        """Copy the recipe with dotted keys changed: `recipe.replace(**{"image.size": 192, "seed": 1})`.

        Raises:
            RecipeError: A key is unknown or a value is invalid.
        """
        return from_dict(_merged(self.model_dump(), changes))

    def to_toml(self) -> str:
        """Serialize the complete recipe, including defaults, as TOML."""
        return tomli_w.dumps(self.model_dump(mode="json"))


_DEFAULT = Recipe()


def checked_recipe(recipe: Recipe | None, default: Recipe | None = None) -> Recipe:
    """Return the recipe, or for None `default` or the default recipe.

    Raises:
        ArgumentTypeError: `recipe` is neither a Recipe nor None.
    """
    if recipe is None:
        return default or _DEFAULT
    if not isinstance(recipe, Recipe):
        raise wrong_type("recipe", recipe, "a Recipe")
    return recipe


def from_dict(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Build a Recipe from nested dicts.

    Args:
        values: Sections and keys.
        origin: Where the values come from, for error messages.

    Raises:
        RecipeError: A key is unknown or a value is invalid. The message names the key, its value and the closest known
            key.
    """
    try:
        return Recipe.model_validate(values)
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from None


def read_recipe(path: Path) -> Recipe:
    """Read a Recipe from a TOML file.

    Raises:
        RecipeError: The file cannot be read or is not a valid recipe.
    """
    try:
        return from_dict(parse_toml(regular_file(path, MAX_RECIPE_BYTES).read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not valid TOML ({error}).") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML to nested dicts.

    Raises:
        ValueError: The text is not TOML, is nested too deeply, or has a number with too many digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Parse assignments: `["image.size=192"]` becomes `{"image.size": 192}`.

    Values are parsed as TOML, and otherwise taken as text.

    Raises:
        RecipeError: An assignment is not of the form key=value.
    """
    values: dict[str, Any] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                f"{wording('--set ', '')}{item}: write it as key=value, for example "
                f"{wording('--set ', '')}folds.n_splits=10."
            )
        try:
            values[key.strip()] = parse_toml(f"value = {text}")["value"]
        except ValueError:
            values[key.strip()] = text
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        at: Any = base
        for parent in parents:
            at = at.get(parent)
            if not isinstance(at, dict):
                raise RecipeError(f"recipe: unknown key '{dotted}'.{did_you_mean(dotted, _keys(Recipe))}")
        if last not in at:
            raise RecipeError(f"recipe: unknown key '{dotted}'.{did_you_mean(dotted, _keys(Recipe))}")
        at[last] = value
    return base


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        nested: Any = info.annotation
        is_section = isinstance(nested, type) and issubclass(nested, BaseModel)
        keys += _keys(nested, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return keys


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _explained(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'.{did_you_mean(key, _keys(Recipe))}"
    return f"{key} = {_shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return "(a number of too many digits)"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"probe.stages": "last", "probe.pool_size": 1, "probe.views": ("plain",)},
    "good": {"probe.stages": "auto", "probe.pool_size": 3, "probe.views": ("plain", "flip")},
    "best": {
        "probe.stages": "auto",
        "probe.pool_size": 3,
        "probe.views": ("plain", "flip"),
        "probe.input_candidates": (
            {"backbone": "tf_efficientnet_lite0", "size": 224, "crop": 0.875},
            {"backbone": "tf_efficientnet_lite0", "size": 320, "crop": 1.0},
            {"backbone": "tf_efficientnet_lite2", "size": 260, "crop": 0.89},
            {"backbone": "tf_efficientnet_lite2", "size": 320, "crop": 1.0},
            {"backbone": "tf_efficientnet_lite0", "size": 288, "crop": 1.0, "squash": True},
            {"backbone": "here"},
        ),
    },
}
