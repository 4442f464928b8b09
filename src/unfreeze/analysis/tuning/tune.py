"""Hyperparameter search with an unbiased estimate of its gain by nested cross-validation."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.analysis.fit import fit_runs
from unfreeze.analysis.splits import search_splits
from unfreeze.analysis.tuning.folder import (
    BEST,
    NESTED,
    RECORD,
    cleanup,
    clear_run,
    folder_of,
    open_folder,
    record,
    search_key,
)
from unfreeze.analysis.tuning.search import Search, Searched
from unfreeze.analysis.tuning.space import Dimension, space_of
from unfreeze.core.arrays import F64
from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import ImageDataset, probability_columns, read_parquet
from unfreeze.core.errors import MissingExtraError
from unfreeze.core.files import atomic_write, regular_file, write_json, write_text
from unfreeze.core.format import format_estimate, format_score
from unfreeze.core.messages import Brief
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Tune
from unfreeze.core.runs import SELECTION, Run
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.metrics.classification import score_predictions
from unfreeze.metrics.differences import paired_difference
from unfreeze.metrics.intervals import Estimate
from unfreeze.training.context import FitContext
from unfreeze.training.crossval import detect_faces, prepare
from unfreeze.training.fold_strategies import run_strategy


@dataclass(frozen=True, repr=False)
class Tuning(Brief):
    """Result of `tune`.

    Attributes:
        folder: Folder of the search.
        best: Best recipe of the search on all images.
        changes: Its differences to the given recipe.
        base: Out-of-fold macro F1 of the given recipe.
        nested: Out-of-fold macro F1 of the search procedure: each fold is predicted by the recipe whose search used no
            image of that fold.
        gain: `nested` minus `base`, paired.
        searched: Macro F1 of `best` in its own search; optimistic due to the selection.
        shown: Out-of-fold macro F1 of `best`, as its run reports it; optimistic as well.
        chosen: Changes selected for each half of the outer folds.
        searches: All tried recipes, by side.
        importance: Key -> share of the variance of the score; empty if too few recipes were tried.
        space: The dimensions, as text.
        photos: Number of images.
        groups: Number of their groups.
        seconds: Duration.
    """

    folder: str
    best: Recipe
    changes: dict[str, Any]
    base: Estimate
    nested: Estimate
    gain: Estimate
    searched: float
    shown: Estimate
    chosen: tuple[dict[str, Any], ...]
    searches: tuple[Searched, ...]
    importance: dict[str, float]
    space: tuple[str, ...]
    photos: int
    groups: int
    seconds: float

    @property
    def tried(self) -> int:
        """Number of distinct recipes tried on all images, including the given one."""
        return len(self.searches[0].distinct)

    @property
    def sentence(self) -> str:
        """The result in words."""
        gain, low, high = (100 * v for v in (self.gain.value, self.gain.low, self.gain.high))
        between = f"95% interval [{low:+.1f}, {high:+.1f}]"
        if self.tried == 1:
            return "Only the recipe given was tried: there was no time for another."
        if not self.changes:
            return f"None of {self.tried - 1} other recipes was better in the search than the one given."
        if self.gain.low > 0:
            return f"Searching {self.tried} recipes gains {gain:.1f} points on held-out images, {between}."
        if self.gain.high < 0:
            return (
                f"Searching {self.tried} recipes costs {-gain:.1f} points on held-out images, {between}: "
                "keep the recipe given."
            )
        return (
            f"Searching {self.tried} recipes makes no significant difference to the given recipe on held-out images: "
            f"{gain:+.1f} points, {between}."
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values; `searches` as rows."""
        out = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("best", "searches")}
        out |= {key: asdict(value) for key, value in out.items() if isinstance(value, Estimate)}
        out["searches"] = {
            one.side.name: {
                "photos": one.side.photos,
                "chosen_for": list(one.side.chosen_for),
                "best": one.best.number,
                "trials": [asdict(row) for row in one.rows],
            }
            for one in self.searches
        }
        return {"sentence": self.sentence, **out, "recipe": self.best.model_dump(mode="json")}


def tune(
    photos: ImageDataset | str | Path | pd.DataFrame,
    recipe: Recipe | None = None,
    folder: str | Path | None = None,
    *,
    force: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> Tuning:
    """Search the space `recipe.tune.search_space` around a recipe, and estimate the gain by nested cross-validation.

    Three searches run in turn: one on all images, whose best recipe is the result, and one on the images of each half
    of the outer folds, whose best recipe is evaluated on the other half.

    The folder receives search.db (an Optuna database), best.toml, tune.json, and the runs `base` and `best`. The same
    call resumes an unfinished search and extends a finished one with more trials. Several processes may work on the
    same search.

    Args:
        photos: An ImageDataset, or any source that `uf.read` accepts.
        recipe: Base recipe, by default a probe. Its section `tune` sets the number of trials, the time budget and the
            space.
        folder: Folder of the search; by default runs/tune-<source>-<hash>.
        force: Clear another search in the folder.
        command: Command to record in the runs.
        reporter: Receives progress messages.
        **given: Keywords of `uf.read`.

    Returns:
        The result.

    Raises:
        MissingExtraError: If Optuna is not installed.
        RecipeError: If the search space is invalid.
        FoldError: If there are too few groups.
        RunError: If the folder belongs to something else.
        UnfreezeError: Any other error of fitting.

    References:
        Cawley & Talbot 2010, "On Over-fitting in Model Selection and Subsequent Selection Bias in Performance
        Evaluation", JMLR 11.
    """
    if find_spec("optuna") is None:
        raise MissingExtraError("tune needs optuna: pip install 'unfreeze[tune]'.")
    photos, recipe = photos_of("tune", photos, recipe, given, Recipe(strategy="probe"))
    reporter = reporter or Reporter()
    started = time.perf_counter()
    seconds = _seconds(recipe.tune.budget)
    space = space_of(recipe, photos)
    folder = Path(folder) if folder else folder_of(recipe, space)
    begun = prepare(photos, recipe, folder, reporter)
    sides = search_splits(begun, recipe.tune.n_splits)
    open_folder(folder, search_key(begun, space), force)
    work = replace(begun)
    detect_faces(work)
    with Search(work, sides, space, folder) as search:
        search.run(seconds)
        # The final fits are made by one process; other processes of the search wait here and reuse them.
        with search.alone():
            cleanup(folder, BEST, RECORD)
            found = _answer(photos, begun, space, folder, search.found(), command)
            found = replace(found, importance=search.importance(), seconds=round(time.perf_counter() - started, 1))
            score_text = {"identity": record(folder).get("identity", ""), "status": "finished", **found.to_json()}
            write_text(folder / BEST, _as_toml(found))
            write_json(folder / RECORD, score_text)
            return found


def _seconds(budget: str) -> float:
    if not budget:
        return 0.0
    from unfreeze.training.fine_tune.settings import seconds_of  # deferred: imports torch, which a probe does not need

    return seconds_of(budget, "tune.budget")


def _answer(
    photos: ImageDataset,
    work: FitContext,
    space: tuple[Dimension, ...],
    folder: Path,
    searches: tuple[Searched, ...],
    command: str,
) -> Tuning:
    """Fit the given and the best recipe, and compare the nested estimate with the given recipe."""
    base = work.recipe.model_copy(update={"tune": Tune()})
    changes = searches[0].best.changes
    recipes = {folder / "base": base} | ({folder / "best": base.replace(**changes)} if changes else {})
    # An extended search may have found another best recipe, whose run replaces the previous one.
    for place in (folder / "base", folder / "best"):
        clear_run(place, recipes.get(place))
    runs = fit_runs(photos, recipes, work.reporter, command=command, begun=work)
    given, best = runs[0], runs[-1]
    nested = _nested(work, base, folder, searches, {stable_hash({}): given, stable_hash(changes): best})
    before = _of_run(work, given, probability_columns(work.photos.classes))
    rows = np.flatnonzero(np.isfinite(nested[:, 0]) & np.isfinite(before[:, 0]))
    labels, units, seed = work.labels[rows], work.units[rows], work.recipe.seed

    def figure(proba: F64) -> Estimate:
        return Estimate(**score_predictions(labels, proba, units, work.photos.classes, seed=seed)["macro_f1"])

    shown = Estimate(**best.scores()["out_of_fold"]["macro_f1"])
    # The run was selected by its own score, so that the nested estimate is shown next to it everywhere.
    if changes:
        selection = {"by": "tune", "among": len(searches[0].distinct), "estimate": asdict(figure(nested[rows]))}
        write_json(best.path / SELECTION, selection)
    return Tuning(
        folder=str(folder),
        best=best.recipe,
        changes=changes,
        base=figure(before[rows]),
        nested=figure(nested[rows]),
        gain=_gain(labels, before[rows], nested[rows], units, seed),
        searched=searches[0].best.value,
        shown=shown,
        chosen=tuple(one.best.changes for one in searches[1:]),
        searches=searches,
        importance={},
        space=tuple(one.describe() for one in space),
        photos=len(rows),
        groups=len(np.unique(units)),
        seconds=0.0,
    )


def _gain(labels: NDArray[np.int64], before: F64, after: F64, units: NDArray[np.int64], seed: int) -> Estimate:
    """Gain in macro F1; exactly 0 if the search kept the given recipe."""
    if np.array_equal(before, after):
        return Estimate(0.0, 0.0, 0.0)
    return Estimate(**paired_difference(labels, before, after, units, seed=seed))


def _as_toml(found: Tuning) -> str:
    """The best recipe as TOML, with its estimated score in the header comments."""
    score_text = f"macro F1 {format_estimate(asdict(found.nested))}"
    lines = [
        f"# Found by unfreeze tune among {found.tried} recipes, {found.photos} photos.",
        f"# {found.sentence}",
        f"# Expected score: {score_text}; a fit on the same images shows {format_score(found.shown.value)}, which is "
        "optimistic.",
    ]
    return "\n".join(lines) + "\n\n" + found.best.to_toml()


def _of_run(work: FitContext, run: Run, names: list[str]) -> F64:
    """Out-of-fold probabilities of the run in the row order of the context, float64 (n, C); NaN where it has none."""
    table = run.predictions()
    place = {path: i for i, path in enumerate(work.photos.table["path"])}
    proba = np.full((len(work.labels), work.classes), np.nan)
    proba[[place[path] for path in table["path"]]] = table[names].to_numpy()
    return proba


def _nested(
    work: FitContext, base: Recipe, folder: Path, searches: tuple[Searched, ...], runs: Mapping[str, Run]
) -> F64:
    """Out-of-fold probabilities of the search procedure: each fold by the recipe whose search used no image of it.

    Args:
        work: Prepared context.
        base: The given recipe.
        folder: Folder of the search.
        searches: Results of the sides.
        runs: Hash of the changes -> finished run, to be reused.

    Returns:
        float64 (n, C).
    """
    names = probability_columns(work.photos.classes)
    proba = np.full((len(work.labels), work.classes), np.nan)
    for one in searches[1:]:
        changes, folds = one.best.changes, one.side.chosen_for
        rows = np.isin(work.folds, folds)
        run = runs.get(stable_hash(changes))
        found = _of_run(work, run, names) if run else _learnt(work, base.replace(**changes), folds, folder, names)
        proba[rows] = found[rows]
    return proba


def _learnt(work: FitContext, recipe: Recipe, folds: tuple[int, ...], folder: Path, names: list[str]) -> F64:
    """Out-of-fold probabilities of these folds for one recipe, trained on the other folds. Cached, and resumable."""
    place = folder / NESTED / stable_hash([recipe.model_dump(mode="json"), folds])[:12]
    kept = place.with_suffix(".parquet")
    try:
        return read_parquet(regular_file(kept))[names].to_numpy(np.float64)
    except (OSError, ValueError, KeyError):  # absent or damaged
        pass
    work.reporter.say(f"Fitting: folds {', '.join(map(str, folds))} by the recipe chosen without them")
    part = replace(work, recipe=recipe, which=folds, folder=place, folds=work.folds.copy(), trial=True)
    part = replace(part, failed=dict(work.failed), squares=None)
    detect_faces(part)
    outcome, _ = run_strategy(part, time.perf_counter())
    table = pd.DataFrame(outcome.proba, columns=names)
    atomic_write(kept, lambda p: table.to_parquet(p, index=False))
    shutil.rmtree(place, ignore_errors=True)
    return outcome.proba
