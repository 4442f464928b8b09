"""Recipe: every choice of a run, frozen, checked once, kept as TOML in the run folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unfreeze.core.errors import RecipeError, nearest


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Section):
    """Where the photos come from and what their columns mean. Empty text means: find it yourself."""

    path: str = ""
    reader: str = ""
    path_column: str = ""
    label: tuple[str, ...] = ()
    group: str = ""
    group_regex: str = ""
    split: str = Field(default="", description="split column; 'none' pools every given split")
    root: str = ""


class Image(Section):
    """How a photo becomes the network's input. 0 or empty text: what the backbone was trained with."""

    size: int = Field(default=0, ge=0, le=2048, description="side of the square input, pixels")
    crop: float = Field(default=0.0, ge=0.0, le=1.0, description="share of the resized short side that is kept")
    max_megapixels: float = Field(default=178.0, gt=0, description="photos with more pixels are refused as bombs")


class Folds(Section):
    """The outer folds."""

    count: int = Field(default=5, ge=2, le=10_000)
    join_duplicates: bool = Field(default=True, description="exact and near duplicates share a group")
    by_group: bool = Field(default=True, description="false: split photo by photo, which flatters the score")


class Input(Section):
    """A candidate input of the race: 0 or empty text as in Image and Recipe."""

    backbone: str = ""
    size: int = Field(default=0, ge=0, le=2048)
    crop: float = Field(default=0.0, ge=0.0, le=1.0)


class Probe(Section):
    """The linear head on frozen features."""

    views: tuple[Literal["plain", "flip"], ...] = Field(default=("plain", "flip"), min_length=1, max_length=2)
    stages: str = Field(default="last:5", description="'last': the final pooled layer, or 'last:N': the last N blocks")
    grid: int = Field(default=3, ge=1, le=7, description="each block is averaged over grid x grid cells")
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
        min_length=1,
        description="inverse L2 penalties tried (scikit-learn's C, for features of mean square norm 1)",
    )
    class_weight: float = Field(
        default=0.5, ge=0.0, le=1.0, description="power of the inverse class frequency; 0 is off"
    )
    max_gigabytes: float = Field(
        default=0.0,
        ge=0,
        description="features may take this much on disk, else the grid shrinks; 0: half of what is free",
    )
    race: tuple[Input, ...] = Field(
        default=(), description="inputs that race inside each training fold, alone and in pairs; none: image.*"
    )
    race_minutes: float = Field(default=3.0, gt=0, description="inputs that would outlast this are left out")


# What one word of quality stands for; `good` is the default recipe.
QUALITIES: dict[str, dict[str, Any]] = {
    "fast": {"probe.stages": "last", "probe.grid": 1, "probe.views": ("plain",)},
    "good": {"probe.stages": "last:5", "probe.grid": 3, "probe.views": ("plain", "flip")},
    "best": {
        "probe.stages": "last:5",
        "probe.grid": 3,
        "probe.views": ("plain", "flip"),
        "probe.race": (
            {"backbone": "tf_efficientnet_lite0", "size": 224, "crop": 0.875},
            {"backbone": "tf_efficientnet_lite0", "size": 320, "crop": 1.0},
            {"backbone": "tf_efficientnet_lite2", "size": 260, "crop": 0.89},
            {"backbone": "tf_efficientnet_lite2", "size": 320, "crop": 1.0},
        ),
    },
}


class Recipe(Section):
    """Every choice of a run. `Recipe()` is a sane default; `replace` makes a changed copy."""

    strategy: Literal["probe"] = "probe"
    backbone: str = "tf_efficientnet_lite0"
    engine: Literal["auto", "openvino-f32", "openvino-bf16", "torch"] = "auto"
    seed: int = Field(default=0, ge=0)
    source: Source = Source()
    image: Image = Image()
    folds: Folds = Folds()
    probe: Probe = Probe()

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
        return from_mapping(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML ({error}).") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["image.size=192"]` -> `{"image.size": 192}`; values are read as TOML, else as text."""
    values: dict[str, Any] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {item}: write it as key=value, for example --set folds.count=10.")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
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
    return f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
