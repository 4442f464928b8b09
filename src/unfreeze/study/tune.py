"""Which parameters? A search over recipes, and what it is worth on photos that had no part in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import MissingExtraError
from unfreeze.core.files import write_json, write_text, write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Tune
from unfreeze.core.runs import Run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.judge.metrics import out_of_fold_scores
from unfreeze.judge.paired import paired_difference
from unfreeze.learn.crossval import look_for_faces, prepare
from unfreeze.learn.fitting import Work
from unfreeze.learn.members import learn_one
from unfreeze.study.compared import Figure
from unfreeze.study.same_folds import fit_runs
from unfreeze.study.search import Search
from unfreeze.study.sides import sides_of
from unfreeze.study.space import Dimension, space_of
from unfreeze.study.trials import Searched
from unfreeze.study.tune_folder import BEST, NESTED, RECORD, folder_of, make_way, mark_of, open_folder, record, sweep

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Tuning:
    """What a search has found.

    best: the recipe found on all photos; changes: what it changes. base, nested: macro F1 out of fold, of the recipe as
    it was given and of recipes searched without a photo of the fold that they are judged on; gain: nested less base,
    paired. searched: macro F1 of `best` in its own search; shown: out of fold, as its run will tell it. Both were
    chosen by, and are too good. chosen: for each half of the folds, what was chosen for it. searches: every tried
    recipe. importance: key -> share of the score's variance; empty where too few were tried.
    """

    folder: str
    best: Recipe
    changes: dict[str, Any]
    base: Figure
    nested: Figure
    gain: Figure
    searched: float
    shown: Figure
    chosen: tuple[dict[str, Any], ...]
    searches: tuple[Searched, ...]
    importance: dict[str, float]
    space: tuple[str, ...]
    photos: int
    groups: int
    seconds: float

    @property
    def tried(self) -> int:
        """How many different recipes the search on all photos has tried, the one that was given among them."""
        return len(self.searches[0].distinct)

    @property
    def sentence(self) -> str:
        """The finding in plain words."""
        gain, low, high = (100 * v for v in (self.gain.value, self.gain.low, self.gain.high))
        between = f"95 % between {low:+.1f} and {high:+.1f}"
        if self.tried == 1:
            return "Only the recipe given was tried: there was no time for another."
        if not self.changes:
            return f"None of {self.tried - 1} other recipes was better in the search than the one given."
        if self.gain.low > 0:
            return f"Searching {self.tried} recipes gains {gain:.1f} points on photos without part in it, {between}."
        if self.gain.high < 0:
            return (
                f"Searching {self.tried} recipes costs {-gain:.1f} points on photos without part in it, {between}: "
                "keep the recipe given."
            )
        return (
            f"What a search of {self.tried} recipes finds cannot be told apart from the recipe given on photos without "
            f"part in it: {gain:+.1f} points, {between}."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `searches` as rows."""
        out = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("best", "searches")}
        out |= {key: asdict(value) for key, value in out.items() if isinstance(value, Figure)}
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
    photos: Photos,
    recipe: Recipe | None = None,
    folder: str | Path | None = None,
    *,
    force: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Tuning:
    """Searches `recipe.tune.space` around the recipe, and judges the search on photos that had no part in it.

    recipe: by default a probe. Its section `tune` says how many recipes, for how long, what is searched.
    folder: what the search leaves, by default runs/tune-<source>-<mark>: search.db (an Optuna database), best.toml,
        tune.json, the runs `base` and `best`. The same call goes on with an unfinished search there, or with a finished
        one that is asked for more trials; several processes may work on it at once.

    Three searches take turns: on all photos, whose best recipe is the answer, and on the photos of each half of the
    outer folds, whose best recipe is judged on the other half: nested, as Cawley & Talbot 2010 (JMLR 11) ask for.
    Raises MissingExtraError without Optuna, RecipeError for a space that is none, FoldError for too few groups,
    RunError for a folder of something else, and what fitting raises.
    """
    if find_spec("optuna") is None:
        raise MissingExtraError("tune needs optuna: pip install 'unfreeze[tune]'.")
    recipe, reporter = recipe or Recipe(strategy="probe"), reporter or Reporter()
    started = time.perf_counter()
    seconds = _seconds(recipe.tune.budget)
    space = space_of(recipe, photos)
    folder = Path(folder) if folder else folder_of(recipe, space)
    begun = prepare(photos, recipe, folder, reporter)
    sides = sides_of(begun, recipe.tune.parts)
    open_folder(folder, mark_of(begun, space), force)
    work = replace(begun)
    look_for_faces(work)
    with Search(work, sides, space, folder) as search:
        search.run(seconds)
        # The fits that follow are for one process; another one that searched beside waits here and takes them.
        with search.alone():
            sweep(folder, BEST, RECORD)
            found = _answer(photos, begun, space, folder, search.found(), command)
            found = replace(found, importance=search.importance(), seconds=round(time.perf_counter() - started, 1))
            told = {"identity": record(folder).get("identity", ""), "status": "finished", **found.to_json()}
            write_text(folder / BEST, _as_toml(found))
            write_json(folder / RECORD, told)
            return found


def _seconds(budget: str) -> float:
    if not budget:
        return 0.0
    from unfreeze.learn.train.tuning import seconds_of  # torch, which a probe may do without

    return seconds_of(budget, "tune.budget")


def _answer(
    photos: Photos, work: Work, space: tuple[Dimension, ...], folder: Path, searches: tuple[Searched, ...], command: str
) -> Tuning:
    """Fits what the searches have found, and holds it against the recipe as it was given."""
    base = work.recipe.model_copy(update={"tune": Tune()})
    changes = searches[0].best.changes
    recipes = {folder / "base": base} | ({folder / "best": base.replace(**changes)} if changes else {})
    # A search that went on may have found another best: its run takes the place of the one before.
    for place in (folder / "base", folder / "best"):
        make_way(place, recipes.get(place))
    runs = fit_runs(photos, recipes, work.reporter, command=command, begun=work)
    given, best = runs[0], runs[-1]
    nested = _nested(work, base, folder, searches, {fingerprint({}): given, fingerprint(changes): best})
    before = _of_run(work, given, probability_columns(work.photos.classes))
    rows = np.flatnonzero(np.isfinite(nested[:, 0]) & np.isfinite(before[:, 0]))
    labels, units, seed = work.labels[rows], work.units[rows], work.recipe.seed

    def figure(proba: F64) -> Figure:
        return Figure(**out_of_fold_scores(labels, proba, units, work.photos.classes, seed=seed)["macro_f1"])

    return Tuning(
        folder=str(folder),
        best=best.recipe,
        changes=changes,
        base=figure(before[rows]),
        nested=figure(nested[rows]),
        gain=Figure(**paired_difference(labels, before[rows], nested[rows], units, seed=seed)),
        searched=searches[0].best.value,
        shown=Figure(**best.scores()["macro_f1"]),
        chosen=tuple(one.best.changes for one in searches[1:]),
        searches=searches,
        importance={},
        space=tuple(one.told() for one in space),
        photos=len(rows),
        groups=len(np.unique(units)),
        seconds=0.0,
    )


def _as_toml(found: Tuning) -> str:
    """The best recipe, with what it is worth in comments on top."""
    told = f"macro F1 {found.nested.value:.3f} ({found.nested.low:.3f} to {found.nested.high:.3f})"
    lines = [
        f"# Found by unfreeze tune among {found.tried} recipes, {found.photos} photos.",
        f"# {found.sentence}",
        f"# Expect {told} of it; a fit of it on the same photos shows {found.shown.value:.3f}, which it was chosen by.",
    ]
    return "\n".join(lines) + "\n\n" + found.best.to_toml()


def _of_run(work: Work, run: Run, names: list[str]) -> F64:
    """The run's out-of-fold probabilities in the order of the photos here; float64 (n, C), NaN where it has none."""
    table = run.predictions()
    place = {path: i for i, path in enumerate(work.photos.table["path"])}
    proba = np.full((len(work.labels), work.classes), np.nan)
    proba[[place[path] for path in table["path"]]] = table[names].to_numpy()
    return proba


def _nested(work: Work, base: Recipe, folder: Path, searches: tuple[Searched, ...], runs: Mapping[str, Run]) -> F64:
    """Out-of-fold probabilities float64 (n, C): each fold by the recipe whose search has seen no photo of it.

    runs: finished runs of recipes, by the mark of their changes: what they have learnt is not learnt again.
    """
    names = probability_columns(work.photos.classes)
    proba = np.full((len(work.labels), work.classes), np.nan)
    for one in searches[1:]:
        changes, folds = one.best.changes, one.side.chosen_for
        rows = np.isin(work.folds, folds)
        run = runs.get(fingerprint(changes))
        found = _of_run(work, run, names) if run else _learnt(work, base.replace(**changes), folds, folder, names)
        proba[rows] = found[rows]
    return proba


def _learnt(work: Work, recipe: Recipe, folds: tuple[int, ...], folder: Path, names: list[str]) -> F64:
    """The same of these folds by one recipe, learnt from the others. Kept; interrupted, it goes on."""
    place = folder / NESTED / fingerprint([recipe.model_dump(mode="json"), folds])[:12]
    kept = place.with_suffix(".parquet")
    try:
        return pd.read_parquet(kept)[names].to_numpy(np.float64)
    except (OSError, ValueError, KeyError):  # not there, or damaged
        pass
    work.reporter.say(f"Fitting: folds {', '.join(map(str, folds))} by the recipe chosen without them")
    part = replace(work, recipe=recipe, which=folds, folder=place, folds=work.folds.copy(), trial=True)
    part = replace(part, failed=dict(work.failed), squares=None)
    look_for_faces(part)
    outcome, _ = learn_one(part, time.perf_counter())
    table = pd.DataFrame(outcome.proba, columns=names)
    write_whole(kept, lambda p: table.to_parquet(p, index=False))
    shutil.rmtree(place, ignore_errors=True)
    return outcome.proba
