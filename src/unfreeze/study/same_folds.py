"""Several recipes on the same photos and folds: what each predicts out of fold, from the same features where it can."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from unfreeze.core.cluster import cluster, engine
from unfreeze.core.errors import RunError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import Photos
from unfreeze.learn.crossval import begins_alike, fit, look_for_faces, prepare
from unfreeze.learn.fitting import Work
from unfreeze.learn.members import Choose
from unfreeze.learn.probe.probing import fit_probe
from unfreeze.study.compared import Compared, aligned


def fit_each(photos: Photos, recipes: Mapping[str, Recipe], reporter: Reporter, place: Path | None = None) -> Compared:
    """Fits recipes that differ in what is learnt, not in photos or folds.

    Under strategy probe the features are computed once, or come from the cache, and nothing is left behind. Other
    strategies leave a run for each recipe in the folder `place`; finished ones are taken as they are. Raises what
    `fit` raises.
    """
    if all(recipe.strategy == "probe" for recipe in recipes.values()):
        return _probes(photos, recipes, reporter)
    assert place is not None
    return _runs(photos, recipes, place, reporter)


def _probes(photos: Photos, recipes: Mapping[str, Recipe], reporter: Reporter) -> Compared:
    found, seconds, like = {}, {}, None
    with tempfile.TemporaryDirectory(prefix="unfreeze-compare-") as place:
        # The last of them asks for all that any asks for: what is wrong with it is told at once.
        work = prepare(photos, list(recipes.values())[-1], Path(place), reporter)
        look_for_faces(work)
        for name, recipe in recipes.items():
            started = time.perf_counter()
            part = replace(work, recipe=recipe, folder=Path(place) / name)
            reporter.say(f"Fitting: {name}")
            like = fit_probe(part, like)
            found[name], seconds[name] = like.out_of_fold(part), round(time.perf_counter() - started, 3)
            work.folds, work.photos = part.folds, part.photos  # what could not be read is out for all
    return Compared(work.photos, work.labels, work.units, work.folds, found, seconds)


def _runs(photos: Photos, recipes: Mapping[str, Recipe], place: Path, reporter: Reporter) -> Compared:
    seconds: dict[str, float] = {}
    finished = fit_runs(photos, {place / name: one for name, one in recipes.items()}, reporter, seconds=seconds)
    found = aligned(dict(zip(recipes, finished, strict=True)), dict(zip(recipes, seconds.values(), strict=True)))
    return replace(found, photos=photos.with_table(found.photos.table))


def fit_runs(
    photos: Photos,
    recipes: Mapping[Path, Recipe],
    reporter: Reporter,
    *,
    force: bool = False,
    command: str = "",
    seconds: dict[str, float] | None = None,
    begun: Work | None = None,
) -> list[Run]:
    """A finished run for each recipe, in the folder that it goes to.

    Runs of the same recipe that are there are gone on with, and finished ones taken as they are; with `force` all are
    fitted anew. The photos are looked at and cut into folds once for all recipes that agree in that. seconds: filled
    with what each took now. begun: as of `prepare`. Raises what `fit` raises, and RunError for a finished run of other
    photos.
    """
    (place, first), *others = recipes.items()
    begun = prepare(photos, first, place, reporter, begun=begun)
    for folder, recipe in others:  # what does not fit these photos is told before the first is fitted
        if begins_alike(first, recipe):
            prepare(photos, recipe, folder, reporter, begun=begun)
    took: dict[Path, float] = {}
    left: list[Asked] = []
    where = cluster() if len(others) > 1 else None
    for folder, recipe in recipes.items():
        asked = Asked(photos, recipe, folder, force, command)
        run = None if force else _finished(folder, recipe)
        if run is not None:
            _refuse_other_photos(run, begun)
            took[folder] = 0.0
        elif where and took:  # the first has filled the cache for the others, which are fitted side by side
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
class Asked:
    """A recipe to fit on these photos, in a folder of its own."""

    photos: Photos
    recipe: Recipe
    folder: Path
    force: bool
    command: str

    def fit(self, reporter: Reporter, begun: Work | None = None) -> float:
        """Leaves the finished run; the seconds that it took."""
        started = time.perf_counter()
        fit(
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


def fit_there(task: tuple[Asked, Path]) -> float:
    """The same as a task of a cluster, whose own tasks are the recipe's features and folds.

    The path is where it was asked for: paths that start nowhere else start there.
    """
    asked, place = task
    with contextlib.chdir(place), engine("ray"):
        return asked.fit(Reporter())


def chooser(recipe: Recipe) -> Choose | None:
    """What strategy auto asks for each fold's recipe."""
    if recipe.strategy != "auto":
        return None
    from unfreeze.study.advise import choose

    return choose


def _finished(folder: Path, recipe: Recipe) -> Run | None:
    """The finished run of that recipe in the folder, if there is one."""
    try:
        run = open_run(folder)
    except RunError:
        return None
    return run if run.recipe == recipe else None


def _refuse_other_photos(run: Run, begun: Work) -> None:
    """A finished run stands for today's photos only if it was fitted on them."""
    columns = ["path", "hash", "group", "split"]
    before, now = run.photos()[columns], begun.photos.table[columns]
    if not before.reset_index(drop=True).equals(now.reset_index(drop=True)):
        raise RunError(
            f"{run.path}: holds a finished run of other photos than are there now; --force fits it anew, or choose "
            "another --run folder."
        )
