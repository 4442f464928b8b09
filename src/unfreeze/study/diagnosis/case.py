"""What a diagnosis looks at: a finished run, its photos as they are now, and the photos that it is to be judged on."""

from __future__ import annotations

import contextlib
import itertools
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import RunError, SourceError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_sections import Source
from unfreeze.core.runs import Run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.data.listing import list_images
from unfreeze.data.looks import Looks, look
from unfreeze.data.readers import read
from unfreeze.judge.metrics import confusion_matrix, macro_f1

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]

# Test photos that are looked at; more change the intervals little.
MOST = 5000


@dataclass(frozen=True)
class TestSet:
    """Photos to be judged on. labels: int64 (m,), -1 throughout where they are not known. name: what people call it."""

    __test__ = False  # not a test class, whatever its name

    photos: Photos
    labels: Rows
    looks: Looks
    name: str

    @property
    def labelled(self) -> bool:
        """Whether the labels are known."""
        return bool(len(self.labels)) and bool((self.labels >= 0).all())

    @property
    def groups(self) -> NDArray[np.str_]:
        """(m,) the group of each photo."""
        return self.photos.table["group"].to_numpy(str)


@dataclass(frozen=True)
class Answers:
    """What the run says of the test photos: float64 (m, C) each.

    mean: of all folds, which is its prediction. voices: of one fold's model each, in turn, as out of fold.
    """

    mean: F64
    voices: F64


@dataclass
class Case:
    """A run's photos, labels, groups, folds and out-of-fold predictions, row by row.

    labels, units, folds: int64 (n,), -1 in folds for rows that take no part. proba: float64 (n, C), NaN outside.
    scratch: a folder for what is thrown away. test: None where there is none. answers: what the run says of the test
    photos, or why it says nothing.
    """

    run: Run
    photos: Photos
    labels: Rows
    units: Rows
    folds: Rows
    proba: F64
    scratch: Path
    reporter: Reporter
    test: TestSet | None = None
    answers: Answers | str = "no test photos; give them with --test"
    notes: list[str] = field(default_factory=list)

    @property
    def inside(self) -> Rows:
        """Rows with an out-of-fold prediction."""
        return np.flatnonzero((self.folds >= 0) & np.isfinite(self.proba).all(1))

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.run.classes)

    @property
    def limit(self) -> int:
        """Pixels that a photo may have."""
        return int(self.run.recipe.image.max_megapixels * 1e6)

    @cached_property
    def looks(self) -> Looks:
        """The photos as they are now."""
        return look(self.photos, self.limit, self.reporter)

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """bool (n,): photos that are there and hold what the fit saw."""
        written = self.photos.table["hash"].to_numpy(object)
        return (np.array(self.looks.hashes(), object) == written) & (written != "") & self.looks.readable

    @property
    def gone(self) -> str:
        """Why what needs the photos is not measured; '' where nearly all of them are there."""
        lost = int((~self.same[self.inside]).sum())
        if lost <= 0.1 * len(self.inside):
            return ""
        root = self.photos.root
        return f"{lost:,} of {len(self.inside):,} photos in {root} are gone or have changed since the fit"

    @cached_property
    def score(self) -> float:
        """Macro F1 out of fold."""
        rows = self.inside
        return float(macro_f1(confusion_matrix(self.labels[rows], self.proba[rows].argmax(1), self.classes)))

    @property
    def source(self) -> str:
        """SOURCE and the options that read it as this run did, to be put into a command."""
        given = self.run.recipe.source
        named = [("--label", name) for name in given.label]
        named += [("--group", given.group), ("--group-regex", given.group_regex), ("--path", given.path_column)]
        named += [("--root", given.root), ("--split", given.split), ("--reader", given.reader)]
        words = [given.path or "SOURCE", *(word for pair in named if pair[1] for word in pair)]
        return shlex.join(words)

    @property
    def again(self) -> str:
        """The start of a command that fits SOURCE by the run's own recipe."""
        path, recipe = self.run.recipe.source.path or "SOURCE", self.run.path / "recipe.toml"
        return f"unfreeze fit {shlex.quote(path)} --recipe {shlex.quote(str(recipe))}"

    def beside(self, mark: str) -> str:
        """`--run DIR` for a run beside this one."""
        return f"--run {shlex.quote(f'{self.run.path}-{mark}')}"

    @property
    def grouped(self) -> bool:
        """Whether the table names groups of several photos."""
        given = self.photos.table["group"].to_numpy()[self.inside]
        return len(set(given.tolist())) < len(given)


def open_case(run: Run, test: str | Path | None, asked: Source, scratch: Path, reporter: Reporter) -> Case:
    """Reads the run's tables. RunError where they are not whole; SourceError for test photos that cannot be read.

    asked: path column and root of a table `test`, as far as they are named.
    """
    table = run.photos()
    names = tuple(str(a) for a in run.info["attributes"]) or ("label",)
    photos = Photos(table, Path(run.info["root"]), run.classes, tuple(run.info["answers"]), names, "", "")
    number = {name: i for i, name in enumerate(run.classes)}
    labels = np.array([number[label] for label in table["label"]], np.int64)
    oof = run.predictions().set_index("path")
    proba = oof[probability_columns(run.classes)].reindex(table["path"]).to_numpy(np.float64)
    units, folds = table["unit"].to_numpy(np.int64), table["fold"].to_numpy(np.int64)
    case = Case(run, photos, labels, units, folds, proba, scratch, reporter)
    if len(case.inside) < 2:
        raise RunError(f"{run.path}: has no out-of-fold predictions to diagnose; fit the run again with --force.")
    case.test = _given(case, Path(test), asked) if test is not None else _own(case)
    return case


def _own(case: Case) -> TestSet | None:
    """The run's own test split, if the source gave one."""
    rows = np.flatnonzero((case.photos.table["split"] == "test").to_numpy())
    rows = _drawn(rows, case.run.recipe.seed)
    if not len(rows):
        return None
    part = case.photos.with_table(case.photos.table.iloc[rows].reset_index(drop=True))
    return _readable(case, part, case.labels[rows], "the run's own test split")


def _given(case: Case, path: Path, asked: Source) -> TestSet:
    """Photos that --test names, with their labels if it gives any that the run knows."""
    labelled = _labelled(case, path, asked)
    if labelled is not None:
        photos, labels = labelled
    else:
        root, names = _listed(case, path, asked)
        table = pd.DataFrame({"path": names, "label": case.run.classes[0], "group": names, "split": "test"})
        table = table.drop_duplicates("path").reset_index(drop=True)
        photos = Photos(table, root, case.run.classes, tuple(case.run.info["answers"]), (), "list", "")
        labels = np.full(len(table), -1, np.int64)
    rows = _drawn(np.arange(len(photos)), case.run.recipe.seed)
    part = photos.with_table(photos.table.iloc[rows].reset_index(drop=True))
    return _readable(case, part, labels[rows], str(path))


def _roots(case: Case, path: Path, asked: Source) -> tuple[str, ...]:
    """Where a table's paths may start: where it is said; else at the table, or where the run's own paths start."""
    return (asked.root,) if asked.root or path.is_dir() else ("", str(case.run.info["root"]))


def _listed(case: Case, path: Path, asked: Source) -> tuple[Path, list[str]]:
    """Photos without labels, by the first root under which they are found; the first root's error where none is."""
    first, *others = _roots(case, path, asked)
    try:
        return list_images(path, Source(path_column=asked.path_column, root=first))
    except SourceError:
        for root in others:
            with contextlib.suppress(SourceError):
                return list_images(path, Source(path_column=asked.path_column, root=root))
        raise


def _labelled(case: Case, path: Path, asked: Source) -> tuple[Photos, Rows] | None:
    """The photos of a labelled source whose labels are all classes (or answers) of the run, else None."""
    source, strange = case.run.recipe.source, set[str]()
    groups = dict.fromkeys(((source.group, source.group_regex), ("", source.group_regex), ("", "")))
    columns = dict.fromkeys((asked.path_column,) if asked.path_column else (source.path_column, ""))
    for root, column, (group, regex) in itertools.product(_roots(case, path, asked), columns, groups):
        changes = {"path": str(path), "split": "none", "root": root, "verdicts": "", "reader": ""}
        options = source.model_copy(update={**changes, "path_column": column, "group": group, "group_regex": regex})
        try:
            found = read(path, options)
        except SourceError:
            continue
        for names in (case.run.classes, tuple(map(str, case.run.info["answers"]))):
            number = {name: i for i, name in enumerate(names)}
            if set(found.table["label"]) <= set(number):
                return found, np.array([number[label] for label in found.table["label"]], np.int64)
        strange |= set(found.table["label"]) - set(case.run.classes)
    if strange:
        unknown = listed([f"'{name}'" for name in sorted(strange)])
        case.notes.append(f"Labels of {path} are not used, for the run has no class {unknown}.")
    return None


def _readable(case: Case, photos: Photos, labels: Rows, name: str) -> TestSet:
    """The photos that decode, and a note of how many do not."""
    looks = look(photos, case.limit, case.reporter)
    good = np.flatnonzero(looks.readable)
    if len(good) < len(photos):
        case.notes.append(f"{len(photos) - len(good):,} of {len(photos):,} test photos cannot be read.")
    if not len(good):
        raise SourceError(f"{name}: none of {len(photos):,} test photos can be read ({looks.problem[0]}).")
    if len(good) == len(photos):
        return TestSet(photos, labels, looks, name)
    part = photos.with_table(photos.table.iloc[good].reset_index(drop=True))
    return TestSet(part, labels[good], look(part, case.limit, case.reporter), name)


def _drawn(rows: Rows, seed: int) -> Rows:
    return rows if len(rows) <= MOST else np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
