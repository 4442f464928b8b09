"""Which labels are likely wrong: a run's out-of-fold predictions, its groups and duplicates, in one ranked table."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RunError, SourceError, StorageError, listed
from unfreeze.core.files import read_json, write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.data.looks import Looks, look
from unfreeze.data.planted import read_truth, truth_beside
from unfreeze.judge import labels as judging
from unfreeze.judge.labels import SUSPECT_COLUMNS, Attribute
from unfreeze.learn.second_look import look_again

VERSION = 2
FILE = "suspects.json"
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Suspects:
    """The suspects of a run.

    table: SUSPECT_COLUMNS, best first; with a truth file also `true`. photos: how many were judged. expected: about how
    many wrong labels there are, the sum of all scores. looked: what the scores rest on, in a few words. attributes: for
    each, whether it belongs to groups. truth: precision and recall at k where the truth is known, else None.
    """

    table: pd.DataFrame
    photos: int
    expected: float
    looked: str
    attributes: dict[str, bool]
    truth: dict[str, Any] | None = None

    def described(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {**asdict(self), "table": self.table.to_dict("records")}


def suspects(run: str | Path | Run, truth: str | Path | None = None, reporter: Reporter | None = None) -> pd.DataFrame:
    """The photos of a run whose label is likely wrong, most suspicious first.

    run: a finished run or its folder. truth: a table with `path` and the true `label`; the demo's own is found.
    Returns columns path, label, suggested, score (about how likely the label is wrong, 0 to 1) and reason, with a truth
    file also true. Raises RunError, SourceError.
    """
    return find_suspects(run, truth, reporter).table


def find_suspects(run: str | Path | Run, truth: str | Path | None = None, reporter: Reporter | None = None) -> Suspects:
    """The same with what was measured beside it. Kept in the run folder, so that a second call costs nothing."""
    run, reporter = run if isinstance(run, Run) else open_run(run), reporter or Reporter()
    photos = run.photos()
    file = Path(truth) if truth else truth_beside(Path(run.info["root"]))
    known = read_truth(file, run.classes, run.info["answers"]) if file else None
    mark = fingerprint([VERSION, run.info.get("finished"), photos["hash"].tolist(), photos["fold"].tolist()])
    found = _kept(run.path, mark)
    if found is None:
        found = _searched(run, photos, reporter)
        _keep(run.path, mark, found, reporter)
    if known is None:
        return found
    held = _held_against(found, photos[photos["fold"] >= 0], known, file)
    if held.truth != found.truth:  # the report tells it too
        _keep(run.path, mark, replace(found, truth=held.truth), reporter)
    return held


def kept_suspects(run: Path) -> Suspects | None:
    """What an earlier `find_suspects` left in the run folder, whoever asked; None if there is nothing whole."""
    return _kept(run, None)


def _searched(run: Run, table: pd.DataFrame, reporter: Reporter) -> Suspects:
    names = tuple(str(a) for a in run.info["attributes"]) or ("label",)
    photos = Photos(table, Path(run.info["root"]), run.classes, tuple(run.info["answers"]), names, "", "")
    oof = run.predictions().set_index("path")
    proba = oof[probability_columns(run.classes)].reindex(table["path"]).to_numpy(np.float64)
    rows = np.flatnonzero((table["fold"] >= 0).to_numpy() & np.isfinite(proba).all(1))
    if len(rows) < 2:
        raise RunError(f"{run.path}: has no out-of-fold predictions to hold labels against.")
    looks = look(photos, int(run.recipe.image.max_megapixels * 1e6), reporter)
    same = np.array(looks.hashes(), object) == table["hash"].to_numpy(object)
    probed = run.recipe.strategy in ("probe", "auto")
    again = probed and bool((same & looks.readable)[rows].all())
    if probed and not again:
        reporter.say("Photos have changed or are gone since the fit: its own predictions are all that is used.")
    inside, units = table.iloc[rows], table["unit"].to_numpy()[rows]
    attributes, class_values = [], []
    for name in names:
        values = tuple(sorted(table[name].unique())) if len(names) > 1 else run.classes
        column = table[name] if len(names) > 1 else table["label"]
        given = column.map({v: i for i, v in enumerate(values)}).to_numpy(np.int64)
        of_class = _of_classes(table["label"], column, run.classes, values)
        first = proba if len(names) == 1 else None
        if again:
            judged = look_again(photos, looks, run.recipe, given, values, judging.likely_wrong, reporter, first)
        else:
            judged = np.stack([proba[:, of_class == v].sum(1) for v in range(len(values))], 1)
        attributes.append(Attribute(name if len(names) > 1 else "label", values, given[rows], judged[rows]))
        class_values.append(of_class)
    doubts = [judging.doubt(attribute, units) for attribute in attributes]
    ranked = judging.suspects(
        inside["path"].tolist(),
        np.array([run.classes.index(label) for label in inside["label"]], np.int64),
        run.classes,
        doubts,
        np.stack(class_values, 1),
        units,
        _duplicates(looks, rows),
    )
    expected = float(np.max([d.score for d in doubts], 0).sum())
    told = "two looks at each attribute, out of fold" if again else "the run's out-of-fold predictions"
    return Suspects(ranked, len(rows), expected, told, {d.attribute.name: d.by_group for d in doubts})


def _of_classes(labels: pd.Series, column: pd.Series, classes: tuple[str, ...], values: tuple[str, ...]) -> Rows:
    """The attribute's value of each class, int64 (C,); -1 for a class that no photo has."""
    value_of = dict(zip(labels, column, strict=True))
    return np.array([values.index(value_of[c]) if c in value_of else -1 for c in classes], np.int64)


def _duplicates(looks: Looks, rows: Rows) -> dict[str, Rows]:
    """Pairs of duplicates among `rows`, by their place in it."""
    place = np.full(len(looks.problem), -1)
    place[rows] = np.arange(len(rows))
    found = {}
    for kind, pairs in zip(("the same", "nearly the same"), looks.duplicates, strict=True):
        mapped = place[pairs].reshape(-1, 2)
        found[kind] = mapped[(mapped >= 0).all(1)]
    return found


def _held_against(found: Suspects, inside: pd.DataFrame, known: dict[str, str], file: Path | None) -> Suspects:
    labels = dict(zip(inside["path"], inside["label"], strict=True))
    missing = set(known) - set(labels)
    if known and len(missing) == len(known):
        raise SourceError(f"{file}: names none of the run's photos (first: {listed(sorted(missing), 1)}).")
    wrong = {path: true for path, true in known.items() if path in labels and true != labels[path]}
    table = found.table.assign(true=[known.get(p, own) for p, own in found.table[["path", "label"]].to_numpy()])
    hits = found.table["path"].isin(wrong).to_numpy()
    score = judging.found_at(hits, len(wrong))
    twice = Counter(wrong[p] for p in found.table["path"].head(2 * len(wrong)) if p in wrong)
    rows = [{"class": c, "planted": n, "found_at_2k": twice[c]} for c, n in sorted(Counter(wrong.values()).items())]
    right = sum(wrong[p] == s for p, s in found.table[["path", "suggested"]].to_numpy() if p in wrong)
    truth = {**score, "suggested_right": right, "per_class": rows, "file": str(file)}
    return Suspects(table, found.photos, found.expected, found.looked, found.attributes, truth)


def _keep(run: Path, mark: str, found: Suspects, reporter: Reporter) -> None:
    try:
        write_json(run / FILE, {"mark": mark, **found.described()})
    except StorageError as error:  # a run that may only be read is still worth reading
        reporter.say(f"The table is not kept: {error}")


def _kept(run: Path, mark: str | None) -> Suspects | None:
    try:
        read = read_json(run / FILE)
        if mark not in (None, read.pop("mark")):
            return None
        read.pop("mark", None)
        return Suspects(**{**read, "table": pd.DataFrame(read["table"], columns=list(SUSPECT_COLUMNS))})
    except (OSError, ValueError, KeyError, TypeError):
        return None
