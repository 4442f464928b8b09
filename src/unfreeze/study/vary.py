"""Recipes that differ in some keys: a grid of values, or a file of named changes; all checked before any work."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RecipeError, listed
from unfreeze.core.recipe import Recipe, parse_assignments, parse_toml

# More recipes than this take long, and their intervals, which hold for all at once, grow wide.
MOST = 24
_MOST_BYTES = 1 << 20
_LONGEST = 60
_OPEN, _CLOSE = "[{", "]}"


def vary(recipe: Recipe, keys: Mapping[str, Sequence[Any]]) -> dict[str, Recipe]:
    """The recipe with each value of a key, or each combination of several keys: name -> Recipe, the first ones first.

    keys: dotted recipe key -> its values, two at least. Raises RecipeError for an unknown key or a value that it does
    not take, a value that is named twice, keys of `source`, and more than MOST recipes.
    """
    for key, values in keys.items():
        if key == "source" or key.startswith("source."):
            raise RecipeError(
                f"{key}: says which photos are read, and recipes are compared on the same ones; fit two runs and "
                "compare these."
            )
        if len(values) < 2:
            raise RecipeError(
                f"{key}: one value is nothing to compare; name two or more, as {key}=A,B, or fix it with --set {key}=A."
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
            raise RecipeError(f"{name}: is named twice among the values of {listed(keys)}.")
        found[name] = one
    return found


def parse_vary(assignments: Iterable[str]) -> dict[str, list[Any]]:
    """`["image.color=rgb,gray"]` -> `{"image.color": ["rgb", "gray"]}`; each value is read as --set reads it.

    A comma within quotes or brackets belongs to its value: `probe.views=["plain"],["plain","flip"]`.
    """
    keys: dict[str, list[Any]] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key or not text.strip():
            raise RecipeError(f"--vary {item}: write it as key=value,value, for example --vary image.color=rgb,gray.")
        if key in keys:
            raise RecipeError(f"--vary {key}: is given twice; name all its values at once, as {key}=A,B.")
        keys[key] = [parse_assignments([f"{key}={part}"])[key] for part in _pieces(text, item)]
    return keys


def read_recipes(path: Path, base: Recipe) -> dict[str, Recipe]:
    """Named recipes from a TOML file: each table is a recipe, of the keys in which it differs from `base`.

    The first is what the others are held against. Raises RecipeError where the file cannot be read, holds fewer than
    two or more than MOST recipes, or two that are the same, or a key or value is none.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecipeError(f"{path}: larger than {_MOST_BYTES >> 20} MiB; that is no list of recipes.")
        written = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file of recipes.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not valid TOML ({error}).") from None
    loose = [name for name, table in written.items() if not isinstance(table, dict)]
    if loose:
        raise RecipeError(f"{path}: '{loose[0]}' stands in no table; write [a name] over each recipe's keys.")
    if not 2 <= len(written) <= MOST:
        raise RecipeError(f"{path}: holds {len(written)} recipe(s); a comparison takes 2 to {MOST}.")
    found: dict[str, Recipe] = {}
    for name, table in written.items():
        changes = _flat(table)
        if any(key.startswith("source.") for key in changes):
            raise RecipeError(f"{path}: [{name}] changes which photos are read; recipes are compared on the same ones.")
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
    """Dotted keys in which `other` differs from `base`, with its values as JSON; where the photos are is left out."""
    mine, theirs = _flat(base.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    return {key: value for key, value in theirs.items() if value != mine.get(key) and key != "source.path"}


def folder_names(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """A folder's name for each recipe: its own, as far as file systems take it, else with a mark behind."""
    found: dict[str, str] = {}
    for name, recipe in recipes.items():
        plain = re.sub(r"[^\w.+=,-]+", "-", name).strip("-.")
        if not plain or len(plain) > _LONGEST or plain.casefold() in {other.casefold() for other in found.values()}:
            plain = f"{plain[:_LONGEST]}-{mark(recipe)}".lstrip("-")
        found[name] = plain
    return found


def mark(recipe: Recipe) -> str:
    """Six letters that stand for a recipe."""
    return fingerprint(recipe.model_dump(mode="json", exclude={"tune"}))[:6]


def compare_folder(recipes: Mapping[str, Recipe], parent: Path = Path("runs")) -> Path:
    """Where the runs of a comparison go: named by the source and by what its recipes have in common.

    A value that joins the others later finds their runs there.
    """
    flat = [_flat(recipe.model_dump(mode="json")) for recipe in recipes.values()]
    varied = sorted(key for key in flat[0] if any(one.get(key) != flat[0][key] for one in flat))
    common = {key: value for key, value in flat[0].items() if key not in varied}
    source = Path(next(iter(recipes.values())).source.path).resolve()
    name = source.stem if source.is_file() else source.name
    return parent / f"compare-{name or 'photos'}-{fingerprint([common, varied])[:6]}"


def _pieces(text: str, item: str) -> list[str]:
    """The text cut at commas that stand in no quotes and no brackets."""
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
        raise RecipeError(f"--vary {item}: a quote or bracket is open at the end.")
    pieces = [piece.strip() for piece in [*pieces, text[start:]]]
    if not all(pieces):
        raise RecipeError(f"--vary {item}: there is no value between two commas; write '' for an empty one.")
    return pieces


def _written(value: Any) -> str:
    """A value as people write it: `gray`, `3`, `true`, `plain,flip`."""
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return ",".join(value)
    return json.dumps(value, ensure_ascii=False)


def _short(keys: Iterable[str]) -> dict[str, str]:
    """Each key's last word, or the whole key where two end alike."""
    every = list(keys)
    ends = [key.rpartition(".")[2] for key in every]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(every, ends, strict=True)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
