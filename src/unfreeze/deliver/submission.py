"""Predictions -> the competition's CSV, in the template's order and header, held against it first."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from unfreeze.core.errors import TemplateError, listed
from unfreeze.core.files import write_whole
from unfreeze.data.tabular import read_sheet


def write_submission(
    predictions: pd.DataFrame,
    template: str | Path,
    out: str | Path,
    classes: tuple[str, ...],
    answers: tuple[int | str, ...],
    fallback: str = "",
) -> pd.DataFrame:
    """Writes the submission whole and returns it.

    predictions: `path` and `label` as `Classifier.predict` gives them. template: a CSV of two columns, ids (file names,
    with or without suffix) and answers; where its answers differ from one another, they are taken as the
    range that answers may lie in. classes, answers: the run's. fallback: class for photos that could
    not be read; without one they are an error.
    Raises TemplateError for ids missing, surplus or repeated, and for answers outside the template's range.
    """
    template = Path(template)
    if not template.is_file():
        raise TemplateError(f"{template}: no such template file.")
    sheet = read_sheet(template).frame
    if sheet.shape[1] != 2:
        raise TemplateError(
            f"{template}: has {sheet.shape[1]} column(s), {listed(sheet.columns)}; two are needed: id and answer."
        )
    id_column, answer_column = sheet.columns
    ids = sheet[id_column].astype(str)
    _refuse(f"{template}: repeats the id(s)", ids[ids.duplicated()].tolist())
    names = predictions["path"].map(lambda p: PurePosixPath(Path(p).as_posix()).name)
    if not set(ids) & set(names):  # ids without the files' suffix
        names = names.map(lambda n: PurePosixPath(n).stem)
    _refuse("predicted more than once, by file name", names[names.duplicated()].tolist())
    _refuse(f"{template} asks for photo(s) that were not predicted", sorted(set(ids) - set(names)))
    _refuse(f"predicted, but not asked for by {template}", sorted(set(names) - set(ids)))
    labels = predictions["label"].copy()
    unread = labels.isna()
    if unread.any():
        if not fallback:
            _refuse("photo(s) that could not be read have no answer", names[unread].tolist())
        labels[unread] = fallback
    answer = labels.map(dict(zip(classes, answers, strict=True)))
    _refuse_strangers(sheet[answer_column].astype(str), answers, template)
    by_id = pd.Series(answer.to_numpy(), index=names)
    submission = pd.DataFrame({id_column: ids, answer_column: by_id.loc[ids].to_numpy()})
    write_whole(Path(out), lambda p: submission.to_csv(p, index=False, lineterminator="\n"))
    return submission


def _refuse_strangers(given: pd.Series, answers: tuple[int | str, ...], template: Path) -> None:
    """The template's answers are a placeholder if all alike; if they differ, they say what is allowed."""
    allowed = set(given)
    if len(allowed) < 2:
        whole = given.str.fullmatch(r"\s*-?\d+\s*").all() if len(given) else False
        words = [a for a in answers if not isinstance(a, int) and not str(a).lstrip("-").isdigit()]
        if whole and words:
            raise TemplateError(
                f"{template}: wants whole numbers (it holds '{given.iloc[0]}'), but the run's classes are {listed(words)}; "
                "label the training photos with the numbers."
            )
        return
    if all(text.lstrip("-").isdigit() for text in allowed):
        low, high = (f(int(t) for t in allowed) for f in (min, max))
        strange = [a for a in answers if not str(a).lstrip("-").isdigit() or not low <= int(a) <= high]
        _refuse(f"class(es) outside the template's range {low} to {high}", strange)
    else:
        _refuse(f"class(es) that {template} does not know", [a for a in answers if str(a) not in allowed])


def _refuse(what: str, items: list[object]) -> None:
    if items:
        raise TemplateError(f"{what}: {len(items)}, first {listed(items)}.")
