"""Validation of the files of a run when they are read.

A file that is missing, damaged or of an unexpected structure raises a RunError that says how to repair the run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.dataset import PHOTO_COLUMNS, probability_columns, read_parquet
from unfreeze.core.errors import RunError, join_names
from unfreeze.core.files import read_json, regular_file
from unfreeze.core.messages import option


def read_run_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        RunError: The file is missing or cannot be read.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        raise RunError(
            f"{path}: is missing; the run is incomplete, fit it again with {option('force', True)}."
        ) from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with {option('force', True)}.") from None
    except ValueError as error:
        raise RunError(
            f"{path}: cannot be read: not valid JSON ({error}); fit the run again with {option('force', True)}."
        ) from None


def check_entries(run: Path, names: Iterable[str]) -> None:
    """Check that the entries of a run folder are regular files or folders, not links, FIFOs, sockets or devices.

    A run folder may come from someone else. A link in it would let a command read or overwrite any file of the user.

    Args:
        run: Run folder, which itself may be a link.
        names: Files and folders of a run. Folders are checked one level deep. Other entries belong to the user.

    Raises:
        RunError: An entry is neither a regular file nor a folder.
    """
    for name in names:
        for file in (run / name, *(run / name).glob("*")):
            try:
                mode = file.lstat().st_mode
            except OSError:
                continue
            if stat.S_ISLNK(mode):
                raise RunError(f"{file}: is a symbolic link, which a run folder may not hold. Remove it.")
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise RunError(f"{file}: is neither a file nor a folder. Remove it.")


def validation_error(info: dict[str, Any]) -> str:
    """Find the first key of run.json whose value is invalid.

    Args:
        info: Content of run.json of a finished run, with the keys `root`, `classes`, `answers` and `attributes`.

    Returns:
        The key, or an empty string if all are valid.
    """
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


def read_scores(path: Path) -> dict[str, Any]:
    """Read scores.json and check that it has all scores that commands and pages show.

    Raises:
        RunError: The file is missing or damaged.
    """
    found = read_run_json(path)
    checked = [found[key] for key in ("out_of_fold", "test") if key in found] if isinstance(found, dict) else []
    if not checked or "out_of_fold" not in found or not all(map(_is_score, checked)) or not _has_headline(found):
        raise RunError(f"{path}: is damaged (no whole scores in it); fit the run again with {option('force', True)}.")
    return dict(found)


def _has_headline(found: dict[str, Any]) -> bool:
    """Whether the scores of the delivered model are present."""
    try:
        ends = [found[name][end] for name in ("accuracy", "macro_f1", "log_loss") for end in ("value", "low", "high")]
    except (KeyError, TypeError):
        return False
    return all(isinstance(end, int | float) for end in ends)


def _is_score(score: Any) -> bool:
    """Whether a value has the structure of `metrics.classification.score_predictions`, as far as it is displayed."""
    try:
        rows, chance = score["per_class"], score["chance"]
        checked = [score[name] for name in ("accuracy", "macro_f1", "log_loss", "ece")]
        checked += [row[name] for row in rows for name in ("f1", "precision", "recall")]
        numbers = [one[end] for one in checked for end in ("value", "low", "high")]
        numbers += [score["photos"], score["groups"], score["log_loss_clipped"], chance["accuracy"], chance["macro_f1"]]
        numbers += [row["support"] for row in rows]
        names = [chance["class"], chance["macro_f1_of"], *(row["class"] for row in rows)]
    except (KeyError, TypeError, IndexError):
        return False
    alike = all(isinstance(n, int | float) for n in numbers) and all(isinstance(n, str) for n in names)
    return alike and len(names) > 2


def read_predictions(run: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Read the out-of-fold predictions of a run (oof.parquet).

    Args:
        run: Run folder.
        classes: Classes of the run.

    Returns:
        Table with the columns path, fold, label and `p_<class>`.

    Raises:
        RunError: The file is missing or damaged, or has an unknown class or an image that is not in photos.parquet.
    """
    there = (run / "photos.parquet").exists()
    return _predictions(run, classes, _parquet(run / "photos.parquet", ["path"]) if there else None)


def read_images(run: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Read the image table of a run (photos.parquet).

    Raises:
        RunError: The file is missing or damaged, or has an unknown class.
    """
    return _photos(run, classes, "hash")


def read_run_tables(run: Path, classes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read photos.parquet, without requiring the column `hash`, and oof.parquet, each once.

    Raises:
        RunError: As by `read_images` and `read_predictions`.
    """
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
        wrong = "images that are not in photos.parquet"
    _refuse(run / "oof.parquet", wrong)
    return table


def _refuse(path: Path, wrong: str) -> None:
    if wrong:
        raise RunError(f"{path}: is damaged ({wrong}); fit the run again with {option('force', True)}.")


def _unlike_predictions(table: pd.DataFrame, classes: Sequence[str]) -> str:
    """Describe what is invalid in out-of-fold predictions; empty if they are valid."""
    checked = probability_columns(list(classes))
    wrong = _unlike_table(table, ("path", "label"), ("fold", *checked))
    if not wrong and not set(table["label"]) <= set(classes):
        return "labels that are not classes"
    return wrong or ("" if np.isfinite(table[checked].to_numpy(float)).all() else "probabilities that are not numbers")


def _unlike_photos(table: pd.DataFrame, classes: Sequence[str], *more: str) -> str:
    """Describe what is invalid in the image table of a run; empty if it is valid. `more` names further text columns."""
    wrong = "no column unit" if "unit" not in table else _unlike_table(table, (*PHOTO_COLUMNS, *more), ("fold",))
    if not wrong and any(map(_leads_outside, table["path"])):
        return "paths that lead outside of the data folder"
    return wrong or ("" if set(table["label"]) <= set(classes) else "labels that are not classes")


def _leads_outside(path: str) -> bool:
    """Whether a path, joined to the data folder, could name a file outside of it."""
    # Drives and backslashes are special on Windows only; elsewhere they are ordinary characters of a name.
    away = os.name == "nt" and bool(PureWindowsPath(path).anchor or PureWindowsPath(path).drive or ".." in path)
    return away or path.startswith("/") or (".." in path and ".." in path.split("/"))


def _unlike_table(table: pd.DataFrame, texts: Sequence[str], numbers: Sequence[str]) -> str:
    lacks = [name for name in (*texts, *numbers) if name not in table.columns]
    if lacks:
        return f"no column {join_names(lacks)}"
    if table.empty:
        return "no rows"
    strange = [n for n in texts if table[n].isna().any() or not pd.api.types.is_string_dtype(table[n])]
    strange += [n for n in numbers if not pd.api.types.is_numeric_dtype(table[n].dtype)]
    if strange:
        return f"strange values in {join_names(strange)}"
    return "a photo named twice" if table["path"].duplicated().any() else ""


def _parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    try:
        return read_parquet(regular_file(path), columns)
    except FileNotFoundError:
        raise RunError(
            f"{path}: is missing; the run is incomplete, fit it again with {option('force', True)}."
        ) from None
    except Exception as error:  # the exceptions of pyarrow have no common base class
        raise RunError(f"{path}: cannot be read ({error}); fit the run again with {option('force', True)}.") from None
