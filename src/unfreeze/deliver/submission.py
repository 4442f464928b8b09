"""Predictions -> the competition's CSV, in the template's order and header, held against it first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from unfreeze.core.cells import write_csv
from unfreeze.core.errors import TemplateError, listed
from unfreeze.data.sheet import read_sheet

# What a template may call a photo; the first spelling that fits any of its ids is taken for all.
_SPELLINGS: tuple[Callable[[PurePosixPath], str], ...] = (
    str,
    lambda path: str(path.with_suffix("")),
    lambda path: path.name,
    lambda path: path.stem,
)


@dataclass(frozen=True)
class _Template:
    """A template as read: its two column names, its ids and the answers it holds, all text, in its order."""

    path: Path
    id_column: str
    answer_column: str
    ids: list[str]
    given: list[str]


def write_submission(
    predictions: pd.DataFrame,
    template: str | Path,
    out: str | Path,
    classes: tuple[str, ...],
    answers: tuple[int | str, ...],
    fallback: str = "",
) -> pd.DataFrame:
    """Writes the submission whole and returns it: the template's header, ids and order, with answers filled in.

    predictions: `path` and `label` as `Classifier.predict` gives them. template: a CSV of two columns, ids (paths or
    file names, with or without suffix) and answers; where its answers differ from one another, they are taken as the
    range that answers may lie in. classes, answers: the run's. fallback: class for photos that could
    not be read; without one they are an error.
    Raises TemplateError for ids missing, surplus or repeated, and for answers outside the template's range;
    StorageError where it cannot be written.
    """
    sheet = _read(Path(template))
    ids = _match(sheet, predictions["path"])
    _refuse_strangers(sheet, answers)
    answer_of = dict(zip(classes, answers, strict=True))
    if fallback and fallback not in answer_of:
        raise TemplateError(f"fallback '{fallback}': the run has no such class; it has {listed(classes, 20)}.")
    labels = [fallback or None if pd.isna(label) else str(label) for label in predictions["label"]]
    unread = [i for i, label in zip(ids, labels, strict=True) if label is None]
    _refuse("photo(s) that could not be read have no answer", unread, "Mend them, or give a fallback class")
    unknown = sorted({label for label in labels if label is not None and label not in answer_of})
    _refuse("predicted label(s) that are no class of the run", unknown, "Give the classes of the run that predicted")
    by_id = {i: answer_of[label] for i, label in zip(ids, labels, strict=True) if label is not None}
    submission = pd.DataFrame({sheet.id_column: sheet.ids, sheet.answer_column: [by_id[i] for i in sheet.ids]})
    write_csv(Path(out), submission, exact=True)  # ids and answers are the template's, to the letter
    return submission


def check_template(template: str | Path, paths: Iterable[str], answers: tuple[int | str, ...]) -> None:
    """Raises the TemplateError that `write_submission` would, before anything is predicted."""
    sheet = _read(Path(template))
    _match(sheet, paths)
    _refuse_strangers(sheet, answers)


def _read(path: Path) -> _Template:
    if not path.is_file():
        raise TemplateError(f"{path}: no such template file. Give the CSV that the competition hands out.")
    frame = read_sheet(path).frame
    if frame.shape[1] != 2:
        raise TemplateError(
            f"{path}: has {frame.shape[1]} column(s), {listed(frame.columns)}; a template needs two: id and answer."
        )
    if frame.empty:
        raise TemplateError(f"{path}: has no rows. Give the CSV that the competition hands out.")
    ids, given = (frame.iloc[:, k].astype(str) for k in (0, 1))
    _refuse(f"{path}: repeats id(s)", ids[ids.duplicated()].unique().tolist(), "Keep one row of each")
    return _Template(path, str(frame.columns[0]), str(frame.columns[1]), ids.tolist(), given.tolist())


def _match(template: _Template, paths: Iterable[str]) -> list[str]:
    """The template's id of each path. TemplateError unless they are the same photos, each once."""
    files, wanted = [PurePosixPath(Path(path).as_posix()) for path in paths], set(template.ids)
    ids = [file.name for file in files]
    for spelling in _SPELLINGS:
        spelled = [spelling(file) for file in files]
        if wanted & set(spelled):
            ids = spelled
            break
    seen: set[str] = set()
    twice = [i for i in ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
    _refuse(
        f"{template.path}: cannot tell apart photos of one id",
        sorted(set(twice)),
        "Predict the folder that holds each once",
    )
    _refuse(
        f"{template.path}: asks for photo(s) that are not among the images",
        sorted(wanted - seen),
        "Give the folder that holds them all",
    )
    _refuse(
        f"{template.path}: does not ask for image(s) that are there",
        sorted(seen - wanted),
        "Give the folder, or a table, of only those it asks for",
    )
    return ids


def _refuse_strangers(template: _Template, answers: tuple[int | str, ...]) -> None:
    """The template's answers are a placeholder if all alike; if they differ, they say what is allowed."""
    allowed = {text.strip() for text in template.given}
    whole = all(_is_whole(text) for text in allowed)
    words = [answer for answer in answers if not _is_whole(str(answer))]
    if len(allowed) < 2:
        if whole and words:
            raise TemplateError(
                f"{template.path}: wants whole numbers (it holds '{template.given[0]}'), but the run's classes are "
                f"{listed(words)}; label the training photos with the numbers."
            )
    elif whole:
        low, high = (f(int(text) for text in allowed) for f in (min, max))
        strange = [a for a in answers if not _is_whole(str(a)) or not low <= int(a) <= high]
        _refuse(
            f"{template.path}: its answers range from {low} to {high}; outside are the run's class(es)",
            strange,
            "Label the training photos as it does, or blank its answers",
        )
    else:
        _refuse(
            f"{template.path}: does not know the run's class(es)",
            [a for a in answers if str(a) not in allowed],
            "Label the training photos as it does, or blank its answers",
        )


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _refuse(what: str, items: Sequence[object], remedy: str) -> None:
    if items:
        raise TemplateError(f"{what}: {listed(items)} ({len(items):,} in all). {remedy}.")
