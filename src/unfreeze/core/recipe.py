"""Recipe: every choice of a run, frozen, checked once, kept as TOML in the run folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError

from unfreeze.core.errors import RecipeError, nearest
from unfreeze.core.recipe_sections import (
    Advise,
    Balance,
    Folds,
    Image,
    Labels,
    Probe,
    Section,
    Source,
    Train,
    Tune,
)

_SHOWN = 200  # characters of a value that an error repeats
MOST_SEED = 2**32 - 1  # numpy's and scikit-learn's generators take no larger one


class Recipe(Section):
    """Every choice of a run. `Recipe()` is a sane default; `replace` makes a changed copy."""

    strategy: Literal["auto", "probe", "late", "full", "scratch"] = Field(
        default="auto",
        description="what trains: a head, the last stages, everything, or everything from nothing; auto: what a race "
        "inside the training folds has shown to be best",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="a name from `unfreeze models`")
    weights: str = Field(default="", description="'': pretrained; 'none': untrained; else a .pth or .safetensors file")
    engine: Literal["auto", "openvino-f32", "openvino-bf16", "torch"] = Field(
        default="auto", description="what runs the frozen network; auto: the fastest that agrees with float32"
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="of everything random")
    source: Source = Source()
    image: Image = Image()
    folds: Folds = Folds()
    probe: Probe = Probe()
    train: Train = Train()
    balance: Balance = Balance()
    labels: Labels = Labels()
    advise: Advise = Advise()
    tune: Tune = Tune()

    def replace(self, **changes: Any) -> Recipe:
        """A copy with dotted keys changed: `recipe.replace(**{"image.size": 192, "seed": 1})`."""
        return from_mapping(_merged(self.model_dump(), changes))

    def to_toml(self) -> str:
        """The complete recipe, defaults resolved, as TOML text."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def from_mapping(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """A Recipe from nested dicts. RecipeError names the key, its value, and the nearest known key."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_explained(error)}") from None


def read_recipe(path: Path) -> Recipe:
    """The Recipe in a TOML file. RecipeError if it cannot be read or does not validate."""
    try:
        return from_mapping(parse_toml(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not valid TOML ({error}).") from None


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text as nested dicts. ValueError where it is none, too deeply nested, or has a number of too many digits."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["image.size=192"]` -> `{"image.size": 192}`; values are read as TOML, else as text."""
    values: dict[str, Any] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {item}: write it as key=value, for example --set folds.count=10.")
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
                raise RecipeError(f"recipe: unknown key '{dotted}'.{nearest(dotted, _keys(Recipe))}")
        if last not in at:
            raise RecipeError(f"recipe: unknown key '{dotted}'.{nearest(dotted, _keys(Recipe))}")
        at[last] = value
    return base


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        nested: Any = info.annotation
        is_section = isinstance(nested, type) and issubclass(nested, BaseModel)
        keys += _keys(nested, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return keys


def _explained(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'.{nearest(key, _keys(Recipe))}"
    return f"{key} = {_shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "(a number of too many digits)"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
