"""A run's files as they are read again: whole, and of the kind that all who read them rely on, or a RunError."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.errors import RunError, listed
from unfreeze.core.files import read_json
from unfreeze.core.tables import PHOTO_COLUMNS, probability_columns, read_parquet


def json_of(path: Path) -> Any:
    """A JSON file of the run. RunError where it is missing or cannot be read."""
    try:
        return read_json(path)
    except FileNotFoundError:
        raise RunError(f"{path}: is missing; the run is not whole, fit it again with --force.") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with --force.") from None
    except ValueError as error:
        raise RunError(f"{path}: cannot be read: not valid JSON ({error}); fit the run again with --force.") from None


def unlike(info: dict[str, Any]) -> str:
    """What of run.json is not as a finished run's is, in words; empty where all that others rely on is."""
    classes, answers = info["classes"], info["answers"]
    if not isinstance(info["root"], str):
        return "root"
    if not _texts(classes) or len(set(classes)) < max(2, len(classes)):
        return "classes"
    if not isinstance(answers, list) or len(answers) != len(classes):
        return "answers"
    if not all(isinstance(answer, int | str) for answer in answers):
        return "answers"
    return "" if _texts(info["attributes"]) else "attributes"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def scores_of(path: Path) -> dict[str, Any]:
    """scores.json, with all of the scores that commands and pages tell of. RunError where it is not like that."""
    found = json_of(path)
    told = [found[key] for key in ("out_of_fold", "test") if key in found] if isinstance(found, dict) else []
    if not told or "out_of_fold" not in found or not all(map(_is_score, told)):
        raise RunError(f"{path}: is damaged (no whole scores in it); fit the run again with --force.")
    return dict(found)


def _is_score(score: Any) -> bool:
    """Whether this is what `judge.metrics` tells, as far as it is told on."""
    try:
        rows, chance = score["per_class"], score["chance"]
        told = [score[name] for name in ("accuracy", "macro_f1", "log_loss", "ece")]
        told += [row[name] for row in rows for name in ("f1", "precision", "recall")]
        numbers = [one[end] for one in told for end in ("value", "low", "high")]
        numbers += [score["photos"], score["groups"], chance["accuracy"], *(row["support"] for row in rows)]
        names = [chance["class"], *(row["class"] for row in rows)]
    except (KeyError, TypeError, IndexError):
        return False
    alike = all(isinstance(n, int | float) for n in numbers) and all(isinstance(n, str) for n in names)
    return alike and len(names) > 1


def predictions_of(run: Path, classes: Sequence[str]) -> pd.DataFrame:
    """oof.parquet. RunError where it is not whole, names an unknown class, or photos that photos.parquet does not."""
    there = (run / "photos.parquet").exists()
    return _predictions(run, classes, _parquet(run / "photos.parquet", ["path"]) if there else None)


def photos_of(run: Path, classes: Sequence[str]) -> pd.DataFrame:
    """photos.parquet. RunError where it is not whole, or names an unknown class."""
    return _photos(run, classes, "hash")


def tables_of(run: Path, classes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """photos.parquet, whose hashes are not asked for, and oof.parquet: both read once. RunError as of each alone."""
    photos = _photos(run, classes)
    return photos, _predictions(run, classes, photos)


def _photos(run: Path, classes: Sequence[str], *more: str) -> pd.DataFrame:
    table = _parquet(run / "photos.parquet")
    _refuse(run / "photos.parquet", _unlike_photos(table, classes, *more))
    return table


def _predictions(run: Path, classes: Sequence[str], photos: pd.DataFrame | None) -> pd.DataFrame:
    table = _parquet(run / "oof.parquet")
    wrong = _unlike_predictions(table, classes)
    if not wrong and photos is not None and not set(photos["path"]).issuperset(table["path"]):
        wrong = "photos that photos.parquet does not know"
    _refuse(run / "oof.parquet", wrong)
    return table


def _refuse(path: Path, wrong: str) -> None:
    if wrong:
        raise RunError(f"{path}: is damaged ({wrong}); fit the run again with --force.")


def _unlike_predictions(table: pd.DataFrame, classes: Sequence[str]) -> str:
    """What of out-of-fold predictions is not as it must be, in words; empty where nothing is."""
    told = probability_columns(list(classes))
    wrong = _unlike_table(table, ("path", "label"), ("fold", *told))
    if not wrong and not set(table["label"]) <= set(classes):
        return "labels that are no class"
    return wrong or ("" if np.isfinite(table[told].to_numpy(float)).all() else "probabilities that are no numbers")


def _unlike_photos(table: pd.DataFrame, classes: Sequence[str], *more: str) -> str:
    """The same of a run's photos. more: further columns of text."""
    wrong = "no column unit" if "unit" not in table else _unlike_table(table, (*PHOTO_COLUMNS, *more), ("fold",))
    return wrong or ("" if set(table["label"]) <= set(classes) else "labels that are no class")


def _unlike_table(table: pd.DataFrame, texts: Sequence[str], numbers: Sequence[str]) -> str:
    lacks = [name for name in (*texts, *numbers) if name not in table.columns]
    if lacks:
        return f"no column {listed(lacks)}"
    if table.empty:
        return "no rows"
    strange = [n for n in texts if table[n].isna().any() or not pd.api.types.is_string_dtype(table[n])]
    strange += [n for n in numbers if not pd.api.types.is_numeric_dtype(table[n].dtype)]
    if strange:
        return f"strange values in {listed(strange)}"
    return "a photo named twice" if table["path"].duplicated().any() else ""


def _parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    try:
        return read_parquet(path, columns)
    except FileNotFoundError:
        raise RunError(f"{path}: is missing; the run is not whole, fit it again with --force.") from None
    except Exception as error:  # pyarrow's errors have no common base that is ours to name
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with --force.") from None
