"""Competition submissions: predictions as a CSV in the header, ids and row order of a template.

The template is validated against the predictions before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import TemplateError, join_names
from unfreeze.core.files import write_csv
from unfreeze.core.messages import option
from unfreeze.core.names import matching, nfc, number_names, on_disk, positions
from unfreeze.core.recipe_schema import Source
from unfreeze.data.text_table import read_sheet

# Forms of an id in a template; the first form that matches any id is used for all.
_SPELLINGS: tuple[Callable[[PurePosixPath], str], ...] = (
    str,
    lambda path: str(path.with_suffix("")),
    lambda path: path.name,
    lambda path: path.stem,
)


_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class _Template:
    """Parsed template; all values are text, in file order.

    Attributes:
        path: Path of the template.
        id_column: Name of the id column.
        columns: Names of the answer columns.
        ids: The ids.
        given: Values of the first answer column.
        note: How the file was parsed, if that was ambiguous.
    """

    path: Path
    id_column: str
    columns: tuple[str, ...]
    ids: list[str]
    given: list[str]
    note: str = ""

    def answers(self) -> dict[str, str]:
        """Canonical form (NFC, shortest form of numbers) -> spelling of each distinct answer."""
        texts = list(dict.fromkeys(text.strip() for text in self.given))
        return dict(zip(number_names([nfc(text) for text in texts]), texts, strict=True))


def write_submission(
    predictions: pd.DataFrame,
    template: str | Path,
    out: str | Path,
    classes: tuple[str, ...],
    answers: tuple[int | str, ...],
    fallback: str = "",
    encoding: str = "",
) -> pd.DataFrame:
    """Write a submission in the format of a template.

    Args:
        predictions: `path`, `label` and `p_<class>` as returned by `Classifier.predict`.
        template: CSV with an id column (paths or file names, with or without suffix) and an answer column, or with one
            probability column per class, named after it. If the answers in it differ, they define the valid range.
        out: CSV to write, atomically.
        classes: Classes of the run.
        answers: Answers of the run, one per class.
        fallback: Class for images that could not be read (uniform probabilities in probability columns). By default
            they are an error.
        encoding: Encoding of the template; detected by default.

    Returns:
        The submission.

    Raises:
        TemplateError: For missing, surplus or repeated ids, answers outside the range of the template, or columns that
            are not the classes of the run.
        StorageError: If the file cannot be written.
    """
    sheet = _read(Path(template), encoding)
    ids = _match(sheet, predictions["path"])
    wanted = _wanted(sheet, classes, answers)
    if fallback and matching(fallback, classes) is None:
        raise TemplateError(f"fallback '{fallback}': the run has no such class; it has {join_names(classes, 20)}.")
    meant = {name: matching(name, classes) or name for name in {fallback, *map(str, predictions["label"].dropna())}}
    labels = [None if pd.isna(label) else meant[str(label)] for label in predictions["label"]]
    unread = [i for i, label in zip(ids, labels, strict=True) if label is None and not fallback]
    _refuse("image(s) that could not be read have no answer", unread, "Repair them, or give a fallback class")
    unknown = sorted({label for label in labels if label is not None and label not in classes})
    _refuse("predicted label(s) that are not classes of the run", unknown, "Pass the classes of that run")
    columns: dict[str, list[Any]] = {}
    if wanted:
        names = probability_columns(wanted)
        _refuse(
            "the predictions lack the column(s)",
            [name for name in names if name not in predictions.columns],
            "Pass the output of Classifier.predict",
        )
        for column, name in zip(sheet.columns, names, strict=True):
            columns[column] = predictions[name].astype(float).fillna(1 / len(classes)).tolist()
    else:
        own = sheet.answers()
        written = [own.get(answer, answer) if isinstance(answer, str) else answer for answer in answers]
        answer_of = dict(zip(classes, written, strict=True))
        columns[sheet.columns[0]] = [answer_of[meant[fallback] if label is None else label] for label in labels]
    place = {i: row for row, i in enumerate(ids)}
    order = [place[i] for i in sheet.ids]
    filled = {column: [values[row] for row in order] for column, values in columns.items()}
    submission = pd.DataFrame({sheet.id_column: sheet.ids, **filled})
    write_csv(Path(out), submission, exact=True)  # ids and answers exactly as in the template
    return submission


def check_template(
    template: str | Path,
    paths: Iterable[str],
    answers: tuple[int | str, ...],
    classes: tuple[str, ...] = (),
    encoding: str = "",
) -> str:
    """Validate a template before prediction.

    Args:
        template: The template.
        paths: Paths of the images to predict.
        answers: Answers of the run, one per class.
        classes: Classes of the run; by default the answers as text.
        encoding: Encoding of the template; detected by default.

    Returns:
        Remarks on the template in one line; empty if there are none.

    Raises:
        TemplateError: As `write_submission` would.
    """
    sheet = _read(Path(template), encoding)
    _match(sheet, paths)
    wanted = _wanted(sheet, classes or tuple(map(str, answers)), answers)
    said = [f"read as {sheet.note}, the submission is UTF-8"] if sheet.note else []
    if wanted:
        said.append(f"filled with the probability of {join_names(map(repr, wanted), 20)}")
    return f"{sheet.path}: {'; '.join(said)}." if said else ""


def _read(path: Path, encoding: str = "") -> _Template:
    path = on_disk(path)
    if not path.is_file():
        raise TemplateError(f"{path}: no such template file. Give the CSV that the competition hands out.")
    sheet = read_sheet(path, Source(encoding=encoding))
    frame = sheet.frame
    if "no header" in sheet.note:
        raise TemplateError(
            f"{path}: has no header; its first row is data. Add the line with the names of its columns."
        )
    if frame.shape[1] < 2:
        raise TemplateError(
            f"{path}: has {frame.shape[1]} column(s), {join_names(frame.columns)}; a template needs two: id and answer."
        )
    if frame.empty:
        raise TemplateError(f"{path}: has no rows. Give the CSV that the competition hands out.")
    ids, given = (frame.iloc[:, k].astype(str) for k in (0, 1))
    _refuse(f"{path}: repeats id(s)", ids[ids.duplicated()].unique().tolist(), "Keep one row of each")
    columns = tuple(map(str, frame.columns))
    return _Template(path, columns[0], columns[1:], ids.tolist(), given.tolist(), sheet.note)


def _wanted(template: _Template, classes: tuple[str, ...], answers: tuple[int | str, ...]) -> tuple[str, ...]:
    """Classes of the template's probability columns, in order; () if it expects one answer per image.

    Raises:
        TemplateError: If the columns are not the classes of the run, or the expected content is ambiguous.
    """
    columns = template.columns
    if len(columns) > 1:
        by_answer = dict(zip(map(str, answers), classes, strict=True))
        named = [matching(c, classes) or by_answer.get(c) or _class_of(c, classes) for c in columns]
        surplus = [column for column, name in zip(columns, named, strict=True) if name not in classes]
        _refuse(
            f"{template.path}: has {1 + len(columns)} columns, and a column that is not a class of the run",
            surplus,
            f"A template has an id and an answer, or an id and one column for each class: {join_names(classes, 20)}",
        )
        _refuse(
            f"{template.path}: has no column for the run's class(es)",
            [name for name in classes if name not in named],
            "Add them, or use a run of the template's classes",
        )
        _refuse(
            f"{template.path}: has two columns for a class",
            sorted({n for n in named if named.count(n) > 1}),
            "Keep one",
        )
        return tuple(named)
    given = {text.strip() for text in template.given}
    is_share = all(map(_NUMBER.fullmatch, given)) and not all(map(_is_whole_number, given))
    if not is_share:
        _refuse_strangers(template, answers)
        return ()
    (column,) = columns
    if (single := matching(column, classes) or _class_of(column, classes)) in classes:
        return (single,)
    if set(map(str, answers)) == {"0", "1"}:  # binary answers: by convention the probability of 1
        return tuple(name for name, answer in zip(classes, answers, strict=True) if str(answer) == "1")
    raise TemplateError(
        f"{template.path}: its column '{column}' holds {template.given[0].strip()}, so a probability is expected, but "
        f"it is unclear of which class; the run has {join_names(classes, 20)}. Name the column as the class, or "
        f"predict without {option('template')} and take the column p_<class>, as p_{classes[-1]}."
    )


def _match(template: _Template, paths: Iterable[str]) -> list[str]:
    """Id of the template for each path.

    Raises:
        TemplateError: Unless ids and paths match one to one.
    """
    files, wanted = [PurePosixPath(Path(path).as_posix()) for path in paths], set(template.ids)
    ids = [file.name for file in files]
    for spelling in _SPELLINGS:
        spelled = _as_in(template.ids, [spelling(file) for file in files])
        if wanted & set(spelled):
            ids = spelled
            break
    seen: set[str] = set()
    twice = [i for i in ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
    _refuse(
        f"{template.path}: several images match the same id",
        sorted(set(twice)),
        "Give a folder that contains each image once",
    )
    _refuse(
        f"{template.path}: lists id(s) without an image",
        sorted(wanted - seen),
        "Give a folder that contains all of them",
    )
    _refuse(
        f"{template.path}: does not list image(s)",
        sorted(seen - wanted),
        "Give a folder or a table with only the listed images",
    )
    return ids


def _class_of(column: str, classes: tuple[str, ...]) -> str:
    """Class of a column `p_<class>`; the column name itself if there is none."""
    name = column.removeprefix("p_")
    return matching(name, classes) or name


def _as_in(ids: list[str], names: list[str]) -> list[str]:
    """Replace names by ids that are equal up to Unicode normalization."""
    return [ids[i] if i >= 0 else name for i, name in zip(positions(names, ids, one_to_one=True), names, strict=True)]


def _refuse_strangers(template: _Template, answers: tuple[int | str, ...]) -> None:
    """Check the run's answers. Identical values in the template are a placeholder; others define the range."""
    allowed = set(template.answers())
    whole = all(map(_is_whole_number, allowed))
    words = [answer for answer in answers if not _is_whole(str(answer))]
    if whole and words:
        of_one = "; or, for the probability of one class, name its column as that class and fill it with 0.5"
        raise TemplateError(
            f"{template.path}: expects integers (it holds '{template.given[0]}'), but the run's classes are "
            f"{join_names(words)}; use the numbers as training labels{of_one}."
        )
    if len(allowed) < 2:
        return
    if whole:
        low, high = (f(int(_as_number(text)) for text in allowed) for f in (min, max))
        strange = [a for a in answers if not low <= int(a) <= high]
        _refuse(
            f"{template.path}: its answers range from {low} to {high}; outside are the run's class(es)",
            strange,
            "Use its answers as training labels, or clear its answers",
        )
    else:
        _refuse(
            f"{template.path}: does not contain the run's class(es)",
            [a for a in answers if str(a) not in allowed],
            "Use its answers as training labels, or clear its answers",
        )


def _is_whole_number(text: str) -> bool:
    """Whether a placeholder is an integer such as 0 or 0.0."""
    return bool(_NUMBER.fullmatch(text)) and _as_number(text).is_integer()


def _as_number(text: str) -> float:
    return float(text.replace(",", "."))


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _refuse(what: str, items: Sequence[object], remedy: str) -> None:
    if items:
        raise TemplateError(f"{what}: {join_names(items)} ({len(items):,} in all). {remedy}.")
