"""Which recipe is better? Runs on the same folds, each held against the first: paired differences and a sentence."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import RecipeError, RunError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import Photos
from unfreeze.judge.many import accuracy, class_differences, macro, many_differences
from unfreeze.judge.metrics import confusion_matrix, macro_f1
from unfreeze.learn.crossval import check_recipe
from unfreeze.study.compared import Compared, Figure, aligned, refuse_few
from unfreeze.study.same_folds import chooser, fit_runs
from unfreeze.study.vary import MOST, changes_between, compare_folder, folder_names, mark


@dataclass(frozen=True)
class Contender:
    """One run of a comparison: its scores out of fold, and what each is more than the first's.

    changes: dotted recipe keys in which it differs from the first. The intervals of the differences hold for all
    contenders at once. wins, losses: folds in which its macro F1 is above, or below, the first's; None where the folds
    are not the same. same: whether it gives every photo the class that the first gives. seconds: that the fit took when
    it was done; NaN if not known.
    """

    name: str
    run: str
    changes: dict[str, Any]
    macro_f1: Figure
    accuracy: Figure
    log_loss: float
    difference: Figure
    accuracy_difference: Figure
    wins: int | None
    losses: int | None
    same: bool
    seconds: float
    sentence: str


@dataclass(frozen=True)
class ClassDifference:
    """F1 of a class by the first and by the best of the others; the interval holds for all classes at once."""

    name: str
    photos: int
    base: float
    best: float
    difference: Figure


@dataclass(frozen=True)
class Chance:
    """What always guessing the largest class scores."""

    name: str
    macro_f1: float
    accuracy: float


@dataclass(frozen=True)
class Comparison:
    """contenders: in the order they were named; all are held against the first. best: name of the best of the others.

    classes: the best of the others against the first, class by class. folds: how many, None where they are not the
    same. notes: what differs beside the recipes.
    sentence: the finding in plain words. folder: where the runs are, if they were fitted for this.
    """

    contenders: tuple[Contender, ...]
    best: str
    classes: tuple[ClassDifference, ...]
    photos: int
    groups: int
    folds: int | None
    chance: Chance
    notes: tuple[str, ...]
    sentence: str
    folder: str
    seconds: float

    @property
    def base(self) -> Contender:
        """What the others are held against."""
        return self.contenders[0]

    def named(self, name: str) -> Contender:
        """The contender of that name; KeyError if there is none."""
        return {one.name: one for one in self.contenders}[name]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON; seconds that are not known are None."""
        told = asdict(self)
        for one in told["contenders"]:
            one["seconds"] = None if np.isnan(one["seconds"]) else one["seconds"]
        return told


def compare(
    what: Photos | Sequence[str | Path | Run],
    recipes: Mapping[str, Recipe] | None = None,
    folder: str | Path | None = None,
    *,
    force: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Comparison:
    """Runs of the same photos, each against the first: paired differences of macro F1 and accuracy with intervals.

    what: finished runs, or photos to fit `recipes` on (name -> Recipe, as `uf.vary` makes them). Each recipe leaves a
    run in `folder`, by default runs/compare-<source>-<mark>, and is gone on with, or taken as it is, when the same is
    asked for again; `force` fits all anew.

    Compared are the photos that all have predicted out of fold, the same by path and content. Differences are of paired
    resamples of groups, with simultaneous 95 % intervals (see `judge.many.many_differences`). Raises RunError where
    classes or labels differ or fewer photos are shared than say anything, RecipeError for recipes that cannot be
    fitted, before any work is done for them, and what `fit` raises.
    """
    reporter, started = reporter or Reporter(), time.perf_counter()
    place = ""
    if isinstance(what, Photos):
        named, place = _fitted(what, recipes or {}, folder, force, command, reporter)
    else:
        if recipes:
            raise RecipeError("compare takes photos and recipes, or finished runs, not both.")
        named = _opened(what)
    found = aligned(named)
    refuse_few(found)
    contenders = _contenders(found, named)
    best = max(contenders[1:], key=lambda one: one.macro_f1.value)
    rows = found.inside
    return Comparison(
        contenders=contenders,
        best=best.name,
        classes=_classes(found, contenders[0].name, best.name, _seed(named)),
        photos=len(rows),
        groups=len(np.unique(found.units[rows])),
        folds=len(np.unique(found.folds[rows])) if found.same_folds else None,
        chance=_chance(found),
        notes=found.notes,
        sentence=_sentence(contenders, best),
        folder=place,
        seconds=round(time.perf_counter() - started, 3),
    )


def _fitted(
    photos: Photos,
    recipes: Mapping[str, Recipe],
    folder: str | Path | None,
    force: bool,
    command: str,
    reporter: Reporter,
) -> tuple[dict[str, Run], str]:
    if not 2 <= len(recipes) <= MOST:
        raise RecipeError(f"{len(recipes)} recipe(s) to compare; name 2 to {MOST}.")
    for recipe in recipes.values():
        check_recipe(recipe, photos, chooser(recipe))
    place = Path(folder) if folder else compare_folder(recipes)
    if place.exists() and not place.is_dir():
        raise RunError(f"{place}: is a file; choose another --run folder.")
    if (place / "run.json").exists():
        raise RunError(f"{place}: is a run itself; choose another --run folder for the runs of the comparison.")
    folders = {name: _folder(place, short, recipes[name]) for name, short in folder_names(recipes).items()}
    done = fit_runs(
        photos,
        {folders[name]: recipe for name, recipe in recipes.items()},
        reporter,
        force=force,
        command=command or "uf.compare(photos, recipes)",
    )
    return dict(zip(recipes, done, strict=True)), str(place)


def _folder(place: Path, name: str, recipe: Recipe) -> Path:
    """Where a recipe's run goes: beside a run of the same name that is of another recipe, not over it."""
    from unfreeze.core.recipe import read_recipe

    try:
        other = read_recipe(place / name / "recipe.toml") != recipe
    except RecipeError:
        other = False
    return place / (f"{name}-{mark(recipe)}" if other else name)


def _opened(what: Sequence[str | Path | Run]) -> dict[str, Run]:
    runs = [one if isinstance(one, Run) else open_run(one) for one in what]
    if len(runs) < 2:
        raise RunError("one run is nothing to compare; name two or more.")
    paths = [run.path.resolve() for run in runs]
    twice = [str(run.path) for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise RunError(f"{twice[0]}: is named twice; a run is no better than itself.")
    short = [path.name for path in paths]
    return {name if short.count(name) == 1 else str(run.path): run for name, run in zip(short, runs, strict=True)}


def _seed(runs: Mapping[str, Run]) -> int:
    return next(iter(runs.values())).recipe.seed


def _contenders(found: Compared, runs: Mapping[str, Run]) -> tuple[Contender, ...]:
    rows, classes = found.inside, len(found.photos.classes)
    labels, units, folds = found.labels[rows], found.units[rows], found.folds[rows]
    told = {name: proba[rows] for name, proba in found.probabilities.items()}
    predicted = {name: proba.argmax(1) for name, proba in told.items()}
    first, *others = predicted
    judged = many_differences(
        labels,
        predicted[first],
        {name: predicted[name] for name in others},
        units,
        classes,
        {"macro_f1": macro, "accuracy": accuracy},
        seed=_seed(runs),
    )
    by_fold = {name: _by_fold(labels, p, folds, classes) for name, p in predicted.items()}
    made = []
    for name, run in runs.items():
        scores = judged["" if name == first else name]
        more = Figure(**scores["macro_f1"]["difference"])
        same = bool(np.array_equal(predicted[name], predicted[first]))
        made.append(
            Contender(
                name=name,
                run=str(run.path),
                changes=changes_between(runs[first].recipe, run.recipe),
                macro_f1=Figure(**scores["macro_f1"]["score"]),
                accuracy=Figure(**scores["accuracy"]["score"]),
                log_loss=float(-np.log(np.clip(told[name][np.arange(len(rows)), labels], 1e-15, 1)).mean()),
                difference=more,
                accuracy_difference=Figure(**scores["accuracy"]["difference"]),
                wins=int((by_fold[name] > by_fold[first]).sum()) if found.same_folds else None,
                losses=int((by_fold[name] < by_fold[first]).sum()) if found.same_folds else None,
                same=same,
                seconds=found.seconds[name],
                sentence="" if name == first else _told(name, first, more, same),
            )
        )
    return tuple(made)


def _by_fold(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], folds: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Macro F1 in each fold; equal scores come out equal, for they are the same sum."""
    return np.array(
        [macro_f1(confusion_matrix(labels[folds == k], predicted[folds == k], classes)) for k in np.unique(folds)]
    )


def _classes(found: Compared, base: str, best: str, seed: int) -> tuple[ClassDifference, ...]:
    rows = found.inside
    mine, theirs = (found.probabilities[name][rows].argmax(1) for name in (base, best))
    classes = found.photos.classes
    every = class_differences(found.labels[rows], mine, theirs, found.units[rows], len(classes), seed=seed)
    return tuple(
        ClassDifference(classes[row["class"]], row["support"], row["base"], row["other"], Figure(**row["difference"]))
        for row in every
    )


def _chance(found: Compared) -> Chance:
    labels, classes = found.labels[found.inside], found.photos.classes
    largest = int(np.bincount(labels, minlength=len(classes)).argmax())
    confusion = confusion_matrix(labels, np.full(len(labels), largest), len(classes))
    return Chance(classes[largest], float(macro_f1(confusion)), float((labels == largest).mean()))


def _told(name: str, base: str, more: Figure, same: bool) -> str:
    """A row's sentence. A point is a hundredth of macro F1."""
    if same:
        return f"{name} gives every photo the class that {base} gives."
    low, high = 100 * more.low, 100 * more.high
    if not more.told:
        return f"{name} cannot be told apart from {base}: between {low:+.1f} and {high:+.1f} points."
    if more.value > 0:
        return f"{name} gains {100 * more.value:.1f} points, 95 % between {low:.1f} and {high:.1f}."
    return f"{name} costs {-100 * more.value:.1f} points, 95 % between {-high:.1f} and {-low:.1f}."


def _sentence(contenders: tuple[Contender, ...], best: Contender) -> str:
    base, others = contenders[0], contenders[1:]
    if len(others) == 1:
        return best.sentence
    better = [one.name for one in others if one.difference.low > 0]
    worse = [one.name for one in others if one.difference.high < 0]
    if better:
        more = best.sentence.removeprefix(f"{best.name} ")
        told = f"Best of {len(others)} against {base.name} is {best.name}: it {more}"
        if not best.difference.told:
            told = (
                f"Highest is {best.name}, which may be chance; better than {base.name} more surely: {listed(better)}."
            )
    elif worse:
        told = f"None of {len(others)} is told to be better than {base.name}; told to be worse: {listed(worse)}."
    else:
        wide = (min(one.difference.low for one in others), max(one.difference.high for one in others))
        return (
            f"None of {len(others)} can be told apart from {base.name}: all differences lie between "
            f"{100 * wide[0]:+.1f} and {100 * wide[1]:+.1f} points."
        )
    rest = [one.name for one in others if not one.difference.told]
    if better and worse:
        told += f" Told to be worse: {listed(worse)}."
    return told + (f" Not told apart: {listed(rest)}." if rest else "")
