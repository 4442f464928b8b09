"""Fitting of recipes: `fit` for one recipe, `fit_each` and `fit_runs` for several on the same images and folds.

`fit` resolves strategy auto with a race of strategies (`analysis.recommend`). Several recipes share the scan of the
images, the folds, and features where possible.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import pandas as pd

from unfreeze.analysis.aligned_runs import AlignedRuns, align_runs
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import RunError
from unfreeze.core.messages import option
from unfreeze.core.parallel import cluster, use_backend
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, default_run_dir, open_run
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.training import crossval
from unfreeze.training.context import FitContext
from unfreeze.training.crossval import cross_validate, detect_faces, prepare, same_preparation
from unfreeze.training.fold_strategies import StrategyChooser
from unfreeze.training.linear_probe.strategy import fit_probe
from unfreeze.training.tracking import Listener, check_trackers, tracked


def fit(
    photos: ImageDataset | str | Path | pd.DataFrame,
    recipe: Recipe | None = None,
    run: str | Path | None = None,
    *,
    force: bool = False,
    random_split_baseline: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    timings: dict[str, float] | None = None,
    track: Sequence[str | Listener] = (),
    **given: Unpack[ReadOptions],
) -> Run:
    """Cross-validate a recipe on images and write a finished run folder.

    Strategy auto (the default) first races strategies within the training folds: the choice for a fold depends on no
    image of that fold. The evidence is stored as recommendation.json in the run folder.

    Args:
        photos: An ImageDataset, or a folder, path of a table or DataFrame. Sources are read according to the section
            `source` of the recipe and the keywords.
        recipe: The recipe; the default recipe if None.
        run: Run folder; by default `runs/<source>-<strategy>-<hash of the recipe>`. An unfinished run of the same
            recipe is resumed.
        force: Fit again over an existing run.
        random_split_baseline: Also score a random split that ignores groups, to show its optimism (probes only).
        command: Command to record in the run.
        reporter: Receives progress messages.
        timings: Filled with the seconds per stage.
        track: "mlflow" or "tensorboard" (see `training.tracking`), or callables that receive each row of the log.
        **given: Keywords of `uf.read`: label, group, path, root, split, group_regex, reader.

    Returns:
        The finished run.

    Raises:
        RunError: If the run folder cannot be used.
        FoldError: If the images cannot be split into folds.
        SourceError: If the images cannot be read.
        BackboneError: If the backbone cannot be used.
        EngineError: If no inference engine runs on this machine.
        StorageError: If files cannot be written.
    """
    photos, recipe = photos_of("fit", photos, recipe, given)
    choose = None
    if recipe.strategy == "auto":
        from unfreeze.analysis import recommend  # deferred: imports torch, which a probe does not need

        recommend.check_recommendation(recipe)
        choose = recommend.choose_strategies
    check_trackers(track)
    folder = Path(run) if run else default_run_dir(recipe)
    with tracked(folder, recipe, track, reporter or Reporter()) as whole:
        done = crossval.cross_validate(
            photos,
            recipe,
            run,
            force=force,
            random_split_baseline=random_split_baseline,
            command=command,
            reporter=reporter,
            timings=timings,
            choose=choose,
        )
        whole(done)
    return done


def fit_each(
    photos: ImageDataset, recipes: Mapping[str, Recipe], reporter: Reporter, place: Path | None = None
) -> AlignedRuns:
    """Fit recipes that share images and folds, and return their aligned out-of-fold predictions.

    Under strategy probe the features are computed once, or read from the cache, and no files are left behind. Other
    strategies leave one run per recipe in `place`; finished runs are reused.

    Args:
        photos: Images.
        recipes: Name -> recipe.
        reporter: Receives progress messages.
        place: Parent folder of the runs; required unless all recipes are probes.

    Returns:
        The aligned predictions.

    Raises:
        UnfreezeError: Any error of `fit`.
    """
    if all(recipe.strategy == "probe" for recipe in recipes.values()):
        return _probes(photos, recipes, reporter)
    assert place is not None
    return _runs(photos, recipes, place, reporter)


def _probes(photos: ImageDataset, recipes: Mapping[str, Recipe], reporter: Reporter) -> AlignedRuns:
    found, seconds, like = {}, {}, None
    with tempfile.TemporaryDirectory(prefix="unfreeze-compare-") as place:
        # The last recipe has the most requirements, so that preparing it first reports all errors up front.
        work = prepare(photos, list(recipes.values())[-1], Path(place), reporter)
        detect_faces(work)
        for name, recipe in recipes.items():
            started = time.perf_counter()
            part = replace(work, recipe=recipe, folder=Path(place) / name)
            reporter.say(f"Fitting: {name}")
            like = fit_probe(part, like)
            found[name], seconds[name] = like.out_of_fold(part), round(time.perf_counter() - started, 3)
            work.folds, work.photos = part.folds, part.photos  # exclude images that failed to decode for all recipes
    return AlignedRuns(work.photos, work.labels, work.units, work.folds, found, seconds)


def _runs(photos: ImageDataset, recipes: Mapping[str, Recipe], place: Path, reporter: Reporter) -> AlignedRuns:
    seconds: dict[str, float] = {}
    finished = fit_runs(photos, {place / name: one for name, one in recipes.items()}, reporter, seconds=seconds)
    found = align_runs(dict(zip(recipes, finished, strict=True)), dict(zip(recipes, seconds.values(), strict=True)))
    return replace(found, photos=photos.with_table(found.photos.table))


def fit_runs(
    photos: ImageDataset,
    recipes: Mapping[Path, Recipe],
    reporter: Reporter,
    *,
    force: bool = False,
    command: str = "",
    seconds: dict[str, float] | None = None,
    begun: FitContext | None = None,
) -> list[Run]:
    """Fit each recipe into its own run folder.

    Unfinished runs of the same recipe are resumed and finished ones reused. Images are scanned and split into folds
    once for all recipes that agree on these steps. With a cluster backend, all recipes but the first are fitted in
    parallel.

    Args:
        photos: Images.
        recipes: Run folder -> recipe.
        reporter: Receives progress messages.
        force: Fit all recipes again.
        command: Command to record in the runs.
        seconds: Filled with run folder -> duration of the fit in this call.
        begun: Prepared context to continue from, as for `prepare`.

    Returns:
        The finished runs, in order.

    Raises:
        RunError: If a finished run was fitted on other images.
        UnfreezeError: Any other error of `fit`.
    """
    (place, first), *others = recipes.items()
    begun = prepare(photos, first, place, reporter, begun=begun)
    for folder, recipe in others:  # report recipes that do not fit these images before the first fit
        if same_preparation(first, recipe):
            prepare(photos, recipe, folder, reporter, begun=begun)
    took: dict[Path, float] = {}
    left: list[FitRequest] = []
    where = cluster() if len(others) > 1 else None
    for folder, recipe in recipes.items():
        asked = FitRequest(photos, recipe, folder, force, command)
        run = None if force else _finished(folder, recipe)
        if run is not None:
            _refuse_other_photos(run, begun)
            took[folder] = 0.0
        elif where and took:  # deferred: the first fit fills the cache for the others
            left.append(asked)
        else:
            reporter.say(f"Fitting: {folder.name}")
            took[folder] = asked.fit(reporter, begun)
    if left and where:
        reporter.say(f"Fitting on the cluster: {', '.join(asked.folder.name for asked in left)}")
        found = where.run(fit_there, [(asked, Path.cwd()) for asked in left])
        took |= zip((asked.folder for asked in left), found, strict=True)
    if seconds is not None:
        seconds |= {str(folder): took[folder] for folder in recipes}
    return [open_run(folder) for folder in recipes]


@dataclass(frozen=True)
class FitRequest:
    """A recipe to fit on images, in its own run folder."""

    photos: ImageDataset
    recipe: Recipe
    folder: Path
    force: bool
    command: str

    def fit(self, reporter: Reporter, begun: FitContext | None = None) -> float:
        """Fit the recipe and write the run.

        Returns:
            The duration in seconds.
        """
        started = time.perf_counter()
        cross_validate(
            self.photos,
            self.recipe,
            self.folder,
            force=self.force,
            command=self.command,
            reporter=reporter,
            choose=chooser(self.recipe),
            begun=begun,
        )
        return round(time.perf_counter() - started, 3)


def fit_there(task: tuple[FitRequest, Path]) -> float:
    """Run a `FitRequest` as a cluster task, which distributes its features and folds as tasks of its own.

    Args:
        task: The request, and the working directory of the caller, against which relative paths are resolved.
    """
    asked, place = task
    with contextlib.chdir(place), use_backend("ray"):
        return asked.fit(Reporter())


def chooser(recipe: Recipe) -> StrategyChooser | None:
    """Strategy chooser for strategy auto; None for other strategies."""
    if recipe.strategy != "auto":
        return None
    from unfreeze.analysis.recommend import choose_strategies

    return choose_strategies


def _finished(folder: Path, recipe: Recipe) -> Run | None:
    """The finished run of this recipe in the folder, or None."""
    try:
        run = open_run(folder)
    except RunError:
        return None
    return run if run.recipe == recipe else None


def _refuse_other_photos(run: Run, begun: FitContext) -> None:
    """Raise RunError if the finished run was fitted on images, groups or splits other than the current ones."""
    columns = ["path", "hash", "group", "split"]
    before, now = run.photos()[columns], begun.photos.table[columns]
    if not before.reset_index(drop=True).equals(now.reset_index(drop=True)):
        raise RunError(
            f"{run.path}: holds a finished run of other images than are there now; {option('force', True)} overwrites "
            f"it, or choose another {option('folder', metavar='DIR', command='run')}."
        )
