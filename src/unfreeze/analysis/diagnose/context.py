"""Inputs of a diagnosis: a finished run, its images as they are now, and the test images.

Also provides predictions by the models of a single fold, and a context in which the cache of images is bypassed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import F64, Rows
from unfreeze.core.cache import cache_root
from unfreeze.core.dataset import ImageDataset, probability_columns
from unfreeze.core.errors import RunError, SourceError, join_names
from unfreeze.core.messages import option
from unfreeze.core.names import matching
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_schema import Source
from unfreeze.core.runs import Run
from unfreeze.data.duplicates import connected_groups
from unfreeze.data.list_images import list_images
from unfreeze.data.readers import read
from unfreeze.data.scan import ImageScan, scan_images
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.classification import confusion_matrix, macro_f1

# Maximum number of test images; more barely narrow the intervals.
MOST = 5000


@dataclass(frozen=True)
class TestSet:
    """Test images.

    Attributes:
        photos: The images, m in total.
        labels: int64 (m,), class indices; -1 throughout if unknown.
        looks: Scan of the images.
        name: Display name.
    """

    __test__ = False  # prevents collection by pytest

    photos: ImageDataset
    labels: Rows
    looks: ImageScan
    name: str

    @property
    def labelled(self) -> bool:
        """Whether the labels are known."""
        return bool(len(self.labels)) and bool((self.labels >= 0).all())

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """int64 (m,), group of each image, with groups joined that share near duplicates."""
        return connected_groups(self.photos.table["group"].to_numpy(str), *self.looks.duplicates)


@dataclass(frozen=True)
class FoldPredictions:
    """Predictions of the run for the test images.

    Attributes:
        mean: float64 (m, C), mean over all folds, the prediction of the run.
        by_fold: float64 (m, C), each image predicted by the models of a single fold, in rotation, comparable with
            out-of-fold predictions.
    """

    mean: F64
    by_fold: F64


@dataclass
class DiagnosisContext:
    """Images, labels, groups, folds and out-of-fold predictions of a run, aligned by row.

    Attributes:
        run: The run.
        photos: Its images, n in total.
        labels: int64 (n,), class indices.
        units: int64 (n,), groups.
        folds: int64 (n,), folds; -1 for rows to ignore.
        proba: float64 (n, C), out-of-fold probabilities; NaN outside the folds.
        scratch: Folder for temporary files.
        reporter: Receives progress messages.
        test: Test images; None if there are none.
        answers: Predictions for the test images, or the reason why there are none.
        notes: What was left out.
    """

    run: Run
    photos: ImageDataset
    labels: Rows
    units: Rows
    folds: Rows
    proba: F64
    scratch: Path
    reporter: Reporter
    test: TestSet | None = None
    answers: FoldPredictions | str = f"no test photos; give them with {option('test')}"
    notes: list[str] = field(default_factory=list)

    @property
    def inside(self) -> Rows:
        """Indices of the rows with an out-of-fold prediction."""
        return np.flatnonzero((self.folds >= 0) & np.isfinite(self.proba).all(1))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.run.classes)

    @property
    def limit(self) -> int:
        """Maximum number of pixels of an image."""
        return int(self.run.recipe.image.max_megapixels * 1e6)

    @cached_property
    def looks(self) -> ImageScan:
        """Scan of the images as they are now."""
        return scan_images(self.photos, self.limit, self.reporter)

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """bool (n,), images that exist and are unchanged since the fit."""
        written = self.photos.table["hash"].to_numpy(object)
        return (np.array(self.looks.hashes(), object) == written) & (written != "") & self.looks.readable

    @property
    def gone(self) -> str:
        """Reason why measurements on the images are not possible; empty if at most 10% are missing or changed."""
        lost = int((~self.same[self.inside]).sum())
        if lost <= 0.1 * len(self.inside):
            return ""
        root = self.photos.root
        return f"{lost:,} of {len(self.inside):,} photos in {root} are gone or have changed since the fit"

    @cached_property
    def score(self) -> float:
        """Out-of-fold macro F1."""
        rows = self.inside
        return float(macro_f1(confusion_matrix(self.labels[rows], self.proba[rows].argmax(1), self.classes)))

    @property
    def source(self) -> str:
        """Source argument with the options that read it as this run did, for use in a command."""
        given = self.run.recipe.source
        named = [("--label", name) for name in given.label]
        named += [("--group", given.group), ("--group-regex", given.group_regex), ("--path", given.path_column)]
        named += [("--root", given.root), ("--split", given.split), ("--reader", given.reader)]
        named += [("--encoding", given.encoding)]
        words = [given.path or "SOURCE", *(word for pair in named if pair[1] for word in pair)]
        return shlex.join(words)

    @property
    def again(self) -> str:
        """Start of a command that fits the source with the recipe of the run."""
        path, recipe = self.run.recipe.source.path or "SOURCE", self.run.path / "recipe.toml"
        return f"unfreeze fit {shlex.quote(path)} --recipe {shlex.quote(str(recipe))}"

    def run_option(self, mark: str) -> str:
        """Option `--run DIR` for a new run next to this one."""
        return f"--run {shlex.quote(f'{self.run.path}-{mark}')}"

    @property
    def grouped(self) -> bool:
        """Whether the table defines groups of several images."""
        given = self.photos.table["group"].to_numpy()[self.inside]
        return len(set(given.tolist())) < len(given)


def open_case(run: Run, test: str | Path | None, asked: Source, scratch: Path, reporter: Reporter) -> DiagnosisContext:
    """Read the tables of a run and its test images.

    Args:
        run: A finished run.
        test: Folder or table of test images; by default the test split of the run.
        asked: Path column, root and encoding of a test table, as far as given.
        scratch: Folder for temporary files.
        reporter: Receives progress messages.

    Returns:
        The context.

    Raises:
        RunError: If the run has no out-of-fold predictions.
        SourceError: If the test images cannot be read.
    """
    table = run.photos()
    names = tuple(str(a) for a in run.info["attributes"]) or ("label",)
    photos = ImageDataset(table, Path(run.info["root"]), run.classes, tuple(run.info["answers"]), names, "", "")
    number = {name: i for i, name in enumerate(run.classes)}
    labels = np.array([number[label] for label in table["label"]], np.int64)
    oof = run.predictions().set_index("path")
    proba = oof[probability_columns(run.classes)].reindex(table["path"]).to_numpy(np.float64)
    units, folds = table["unit"].to_numpy(np.int64), table["fold"].to_numpy(np.int64)
    case = DiagnosisContext(run, photos, labels, units, folds, proba, scratch, reporter)
    if len(case.inside) < 2:
        raise RunError(
            f"{run.path}: has no out-of-fold predictions to diagnose; fit the run again with {option('force', True)}."
        )
    case.test = _given(case, Path(test), asked) if test is not None else _own(case)
    return case


def _own(case: DiagnosisContext) -> TestSet | None:
    """The test split of the run, if its source has one."""
    rows = np.flatnonzero((case.photos.table["split"] == "test").to_numpy())
    rows = _drawn(rows, case.run.recipe.seed)
    if not len(rows):
        return None
    part = case.photos.with_table(case.photos.table.iloc[rows].reset_index(drop=True))
    return _readable(case, part, case.labels[rows], "the run's own test split")


def _given(case: DiagnosisContext, path: Path, asked: Source) -> TestSet:
    """The test images given by --test, with labels if all of them are classes of the run."""
    labelled = _labelled(case, path, asked)
    if labelled is not None:
        photos, labels = labelled
    else:
        root, names = _listed(case, path, asked)
        table = pd.DataFrame({"path": names, "label": case.run.classes[0], "group": names, "split": "test"})
        table = table.drop_duplicates("path").reset_index(drop=True)
        photos = ImageDataset(table, root, case.run.classes, tuple(case.run.info["answers"]), (), "list", "")
        labels = np.full(len(table), -1, np.int64)
    rows = _drawn(np.arange(len(photos)), case.run.recipe.seed)
    part = photos.with_table(photos.table.iloc[rows].reset_index(drop=True))
    return _readable(case, part, labels[rows], str(path))


def _roots(case: DiagnosisContext, path: Path, asked: Source) -> tuple[str, ...]:
    """Candidate roots of the paths in a table: the given one, else the folder of the table and the run's root."""
    return (asked.root,) if asked.root or path.is_dir() else ("", str(case.run.info["root"]))


def _listed(case: DiagnosisContext, path: Path, asked: Source) -> tuple[Path, list[str]]:
    """Images without labels, under the first root where they exist. Otherwise raises the error for the first root."""
    first, *others = _roots(case, path, asked)
    try:
        return list_images(path, asked.model_copy(update={"root": first}))
    except SourceError:
        for root in others:
            with contextlib.suppress(SourceError):
                return list_images(path, asked.model_copy(update={"root": root}))
        raise


def _labelled(case: DiagnosisContext, path: Path, asked: Source) -> tuple[ImageDataset, Rows] | None:
    """Images and labels of a source whose labels are all classes (or answers) of the run, else None."""
    source, strange = case.run.recipe.source, set[str]()
    groups = dict.fromkeys(((source.group, source.group_regex), ("", source.group_regex), ("", "")))
    columns = dict.fromkeys((asked.path_column,) if asked.path_column else (source.path_column, ""))
    for root, column, (group, regex) in itertools.product(_roots(case, path, asked), columns, groups):
        changes = {
            "path": str(path),
            "split": "none",
            "root": root,
            "corrections": "",
            "reader": "",
            "encoding": asked.encoding,
        }
        options = source.model_copy(update={**changes, "path_column": column, "group": group, "group_regex": regex})
        try:
            found = read(path, options)
        except SourceError:
            continue
        for names in (case.run.classes, tuple(map(str, case.run.info["answers"]))):
            meant = {label: matching(label, names) for label in set(found.table["label"])}
            number = {label: names.index(name) for label, name in meant.items() if name is not None}
            if len(number) == len(meant):
                return found, np.array([number[label] for label in found.table["label"]], np.int64)
        strange |= set(found.table["label"]) - set(case.run.classes)
    if strange:
        unknown = join_names([f"'{name}'" for name in sorted(strange)])
        case.notes.append(f"Labels of {path} are not used, for the run has no class {unknown}.")
    return None


def _readable(case: DiagnosisContext, photos: ImageDataset, labels: Rows, name: str) -> TestSet:
    """The images that can be decoded. The number of unreadable images is noted."""
    looks = scan_images(photos, case.limit, case.reporter)
    good = np.flatnonzero(looks.readable)
    if len(good) < len(photos):
        case.notes.append(f"{len(photos) - len(good):,} of {len(photos):,} test photos cannot be read.")
    if not len(good):
        raise SourceError(f"{name}: none of {len(photos):,} test photos can be read ({looks.problem[0]}).")
    if len(good) == len(photos):
        return TestSet(photos, labels, looks, name)
    part = photos.with_table(photos.table.iloc[good].reset_index(drop=True))
    return TestSet(part, labels[good], scan_images(part, case.limit, case.reporter), name)


def _drawn(rows: Rows, seed: int) -> Rows:
    return rows if len(rows) <= MOST else np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))


# Parts of the cache that depend on networks and the machine, but not on images.
_OF_NETWORKS = ("engines", "cards")


def fold_predictions(run: Run, files: list[Path], folds: Rows, reporter: Reporter) -> F64:
    """Predict each file with the models of a single fold.

    Views and the ensemble parts within a fold are averaged as in prediction; folds are not.

    Args:
        run: A finished run.
        files: Image files.
        folds: int64 (n,), fold whose models predict each file.
        reporter: Receives progress messages.

    Returns:
        Probabilities float64 (n, C); NaN for unreadable files.
    """
    whole = Classifier.load(run)
    if whole.heads:  # one forward pass for all files: the folds then read the features from the cache
        replace(whole, tuned=(), tuned_weights=()).predict(list(files), reporter=reporter)
    out = np.full((len(files), len(run.classes)), np.nan)
    for fold in np.unique(folds).tolist():
        rows = np.flatnonzero(folds == fold)
        one = Classifier.load(run, folds=[fold])
        found = one.predict([files[i] for i in rows], reporter=Reporter())
        out[rows] = found[probability_columns(run.classes)].to_numpy(np.float64)
    return out


@contextmanager
def bypass_cache() -> Iterator[None]:
    """Context manager that hides everything cached from images, so that images are decoded and processed again.

    Cached conversions of networks remain available. Applies to this process and its children.
    """
    real, before = cache_root(), os.environ.get("UNFREEZE_CACHE")
    with tempfile.TemporaryDirectory(prefix="unfreeze-cache-") as folder:
        for name in _OF_NETWORKS:
            if (real / name).is_dir():
                (Path(folder) / name).symlink_to((real / name).resolve(), target_is_directory=True)
        os.environ["UNFREEZE_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["UNFREEZE_CACHE"]
            else:
                os.environ["UNFREEZE_CACHE"] = before
