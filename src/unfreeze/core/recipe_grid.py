"""Recipes that differ in some keys: a grid of values, or a file of named recipes.

All recipes are validated before any of them is fitted.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import RecipeError, join_names, wrong_type
from unfreeze.core.messages import setting, wording
from unfreeze.core.recipe import Recipe, checked_recipe, parse_overrides, parse_toml

# Maximum number of recipes: more take long to fit, and their simultaneous confidence intervals widen.
MOST = 24
_MOST_BYTES = 1 << 20
_LONGEST = 60
_OPEN, _CLOSE = "[{", "]}"


def recipe_grid(recipe: Recipe, keys: Mapping[str, Sequence[Any]]) -> dict[str, Recipe]:
    """Combine the values of one or more recipe keys.

    Args:
        recipe: Base recipe.
        keys: Dotted recipe key -> its values, at least two each.

    Returns:
        Name -> recipe for each combination; the first one has the first value of every key.

    Raises:
        RecipeError: A key is unknown or belongs to `source`, a value is invalid or occurs twice, or there are more than
            MOST recipes.
        ArgumentTypeError: An argument has the wrong type.
    """
    checked_recipe(recipe)
    if not isinstance(keys, Mapping):
        raise wrong_type("keys", keys, "a dict of recipe key to its values")
    for key, values in keys.items():
        if key == "source" or key.startswith("source."):
            raise RecipeError(
                f"{key}: cannot be varied, because recipes are compared on the same images; fit two runs and "
                "compare these."
            )
        if len(values) < 2:
            raise RecipeError(
                f"{key}: at least two values are required; give them, as {key}=A,B, or fix it with {setting(key, 'A')}."
            )
    count = 1
    for values in keys.values():
        count *= len(values)
    if count > MOST:
        product = " x ".join(str(len(values)) for values in keys.values())
        raise RecipeError(f"{product} = {count:,} recipes are more than {MOST}; vary fewer keys or values at a time.")
    short = _short(keys)
    found: dict[str, Recipe] = {}
    for chosen in itertools.product(*keys.values()):
        changes = dict(zip(keys, chosen, strict=True))
        one = recipe.replace(**changes)
        name = " ".join(
            _written(value) if len(keys) == 1 else f"{short[key]}={_written(value)}" for key, value in changes.items()
        )
        if name in found or one in found.values():
            raise RecipeError(f"{name}: is named twice among the values of {join_names(keys)}.")
        found[name] = one
    return found


def parse_vary(assignments: Iterable[str]) -> dict[str, list[Any]]:
    """Parse lists of values: `["image.color=rgb,gray"]` becomes `{"image.color": ["rgb", "gray"]}`.

    Each value is parsed as by `parse_overrides`. A comma within quotes or brackets belongs to the value:
    `probe.views=["plain"],["plain","flip"]`.

    Raises:
        RecipeError: An item is not of the form key=value,value, or a key occurs twice.
    """
    keys: dict[str, list[Any]] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key or not text.strip():
            raise RecipeError(
                f"{wording('--grid ', '')}{item}: write it as key=value,value, for example "
                f"{wording('--grid ', '')}image.color=rgb,gray."
            )
        if key in keys:
            raise RecipeError(
                f"{wording('--grid ', '')}{key}: is given twice; name all its values at once, as {key}=A,B."
            )
        keys[key] = [parse_overrides([f"{key}={part}"])[key] for part in _pieces(text, item)]
    return keys


def read_recipes(path: Path, base: Recipe) -> dict[str, Recipe]:
    """Read named recipes from a TOML file. Each table holds the keys in which a recipe differs from `base`.

    The first recipe is the baseline of the comparison.

    Raises:
        RecipeError: The file cannot be read, has fewer than two or more than MOST recipes, two of them are equal, or a
            key or value is invalid.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecipeError(f"{path}: larger than {_MOST_BYTES >> 20} MiB, the limit of a file of recipes.")
        written = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file of recipes.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not valid TOML ({error}).") from None
    loose = [name for name, table in written.items() if not isinstance(table, dict)]
    if loose:
        raise RecipeError(f"{path}: '{loose[0]}' is outside of a table; put the keys of each recipe under [NAME].")
    if not 2 <= len(written) <= MOST:
        raise RecipeError(f"{path}: holds {len(written)} recipe(s); a comparison takes 2 to {MOST}.")
    found: dict[str, Recipe] = {}
    for name, table in written.items():
        changes = _flat(table)
        if any(key.startswith("source.") for key in changes):
            raise RecipeError(
                f"{path}: [{name}] changes which images are read, but recipes are compared on the same images."
            )
        try:
            one = base.replace(**changes)
        except RecipeError as error:
            raise RecipeError(f"{path}: [{name}]: {error}") from None
        twin = next((other for other, known in found.items() if known == one), None)
        if twin:
            raise RecipeError(f"{path}: [{name}] is the same recipe as [{twin}].")
        found[name] = one
    return found


def changes_between(base: Recipe, other: Recipe) -> dict[str, Any]:
    """Dotted keys in which `other` differs from `base`, with the JSON values of `other`; without `source.path`."""
    mine, theirs = _flat(base.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    return {key: value for key, value in theirs.items() if value != mine.get(key) and key != "source.path"}


def folder_names(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Unique folder name for each recipe.

    Characters that file systems do not accept are replaced. Names that are too long or not unique end in a hash of the
    recipe.
    """
    found: dict[str, str] = {}
    for name, recipe in recipes.items():
        plain = re.sub(r"[^\w.+=,-]+", "-", name).strip("-.")
        if not plain or len(plain) > _LONGEST or plain.casefold() in {other.casefold() for other in found.values()}:
            plain = f"{plain[:_LONGEST]}-{mark(recipe)}".lstrip("-")
        found[name] = plain
    return found


def mark(recipe: Recipe) -> str:
    """First six hexadecimal digits of the recipe's hash, without the section `tune`."""
    return stable_hash(recipe.model_dump(mode="json", exclude={"tune"}))[:6]


def compare_folder(recipes: Mapping[str, Recipe], parent: Path = Path("runs")) -> Path:
    """Default folder for the runs of a comparison.

    The name is derived from the source, the varied keys and the settings that all recipes share. It does not change
    when a further value of a varied key is added, so the runs that exist are reused.
    """
    flat = [_flat(recipe.model_dump(mode="json")) for recipe in recipes.values()]
    varied = sorted(key for key in flat[0] if any(one.get(key) != flat[0][key] for one in flat))
    common = {key: value for key, value in flat[0].items() if key not in varied}
    source = Path(next(iter(recipes.values())).source.path).resolve()
    name = source.stem if source.is_file() else source.name
    return parent / f"compare-{name or 'photos'}-{stable_hash([common, varied])[:6]}"


def _pieces(text: str, item: str) -> list[str]:
    """Split text at commas outside of quotes and brackets."""
    pieces, depth, quote, start = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == "," and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    if quote or depth:
        raise RecipeError(f"{wording('--grid ', '')}{item}: a quote or bracket is open at the end.")
    pieces = [piece.strip() for piece in [*pieces, text[start:]]]
    if not all(pieces):
        raise RecipeError(
            f"{wording('--grid ', '')}{item}: there is no value between two commas; write '' for an empty one."
        )
    return pieces


def _written(value: Any) -> str:
    """Format a value for names: `gray`, `3`, `true`, `plain,flip`."""
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return ",".join(value)
    return json.dumps(value, ensure_ascii=False)


def _short(keys: Iterable[str]) -> dict[str, str]:
    """Last component of each key, or the whole key if the last component is not unique."""
    every = list(keys)
    ends = [key.rpartition(".")[2] for key in every]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(every, ends, strict=True)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
