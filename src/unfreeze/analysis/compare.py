"""Comparison of recipes or finished runs on the same images, with paired differences.

The first run is the baseline. Every other run is compared with it by macro F1 and accuracy, with simultaneous 95%
confidence intervals, per run and per class.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.analysis.aligned_runs import AlignedRuns, align_runs, require_enough
from unfreeze.analysis.fit import chooser, fit_runs
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import RecipeError, RunError, join_names, wrong_type
from unfreeze.core.files import write_json
from unfreeze.core.format import format_score
from unfreeze.core.messages import Brief, option
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe, checked_recipe
from unfreeze.core.recipe_grid import MOST, changes_between, compare_folder, folder_names, mark
from unfreeze.core.runs import SELECTION, Run, as_run
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.metrics.bootstrap import effective_groups
from unfreeze.metrics.classification import chance_scores, confusion_matrix
from unfreeze.metrics.differences import accuracy, class_differences, macro, macro_of_present, simultaneous_differences
from unfreeze.metrics.ensembling import score_of_the_best
from unfreeze.metrics.intervals import Estimate
from unfreeze.metrics.log_loss import log_loss
from unfreeze.training.crossval import check_recipe


@dataclass(frozen=True)
class ComparedRun:
    """Out-of-fold scores of one run of a comparison, and their differences to the baseline.

    The intervals of `difference` hold simultaneously for all runs, and so do those of `accuracy_difference`.

    Attributes:
        name: Display name.
        run: Path of the run folder.
        changes: Dotted recipe keys in which the run differs from the baseline, with their values.
        macro_f1: Macro F1.
        accuracy: Accuracy.
        log_loss: Log loss.
        difference: Macro F1 minus that of the baseline.
        accuracy_difference: Accuracy minus that of the baseline.
        wins: Number of folds in which macro F1 is above that of the baseline; None if the folds differ.
        losses: Number of folds in which macro F1 is below that of the baseline; None if the folds differ.
        same: Whether the predicted class equals that of the baseline for every image.
        seconds: Duration of the fit; NaN if unknown.
        sentence: The result in words; empty for the baseline.
    """

    name: str
    run: str
    changes: dict[str, Any]
    macro_f1: Estimate
    accuracy: Estimate
    log_loss: float
    difference: Estimate
    accuracy_difference: Estimate
    wins: int | None
    losses: int | None
    same: bool
    seconds: float
    sentence: str


@dataclass(frozen=True)
class ClassDifference:
    """F1 of one class, for the baseline and for the best other run.

    Attributes:
        name: Class name.
        photos: Number of images of the class.
        base: F1 of the baseline.
        best: F1 of the best other run.
        difference: `best` minus `base`. The interval holds simultaneously for all classes of all runs, so that it
            remains valid for the run that was selected.
    """

    name: str
    photos: int
    base: float
    best: float
    difference: Estimate


@dataclass(frozen=True)
class Baseline:
    """Chance-level scores: predictions without knowledge of the images (`metrics.classification.chance_scores`).

    Attributes:
        name: The most frequent class.
        macro_f1: Highest expected macro F1 of the chance strategies.
        accuracy: Accuracy of always predicting the most frequent class.
        macro_f1_of: Name of the strategy that attains `macro_f1`.
    """

    name: str
    macro_f1: float
    accuracy: float
    macro_f1_of: str


@dataclass(frozen=True, repr=False)
class Comparison(Brief):
    """Result of `compare`.

    Attributes:
        contenders: The runs in the given order; the first is the baseline.
        best: Name of the best run other than the baseline.
        highest: Name of the run with the highest macro F1.
        corrected: Expected macro F1 of `highest`, corrected for its selection among all runs on these images
            (`metrics.ensembling.score_of_the_best`).
        classes: Per-class comparison of `best` with the baseline.
        photos: Number of compared images.
        groups: Number of their groups.
        effective_groups: Number of equally sized groups with the same information.
        folds: Number of folds; None if the runs were fitted on different folds.
        chance: Chance-level scores.
        notes: Differences between the runs other than the recipe.
        sentence: The result in words.
        folder: Folder of the runs if they were fitted for this comparison, otherwise empty.
        seconds: Duration of the comparison.
    """

    contenders: tuple[ComparedRun, ...]
    best: str
    highest: str
    corrected: float
    classes: tuple[ClassDifference, ...]
    photos: int
    groups: int
    effective_groups: float
    folds: int | None
    chance: Baseline
    notes: tuple[str, ...]
    sentence: str
    folder: str
    seconds: float

    @property
    def base(self) -> ComparedRun:
        """The baseline."""
        return self.contenders[0]

    def named(self, name: str) -> ComparedRun:
        """Return the run with this name.

        Raises:
            KeyError: If there is no such run.
        """
        return {one.name: one for one in self.contenders}[name]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values. Unknown durations become None."""
        content = asdict(self)
        for one in content["contenders"]:
            one["seconds"] = None if np.isnan(one["seconds"]) else one["seconds"]
        return content


def compare(
    what: ImageDataset | str | Path | pd.DataFrame | Sequence[str | Path | Run],
    recipes: Mapping[str, Recipe] | None = None,
    folder: str | Path | None = None,
    *,
    force: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> Comparison:
    """Compare runs of the same images with the first of them, by paired differences of macro F1 and accuracy.

    Only images that all runs have predicted out of fold are compared; they are matched by path and content. The 95%
    intervals are simultaneous (`metrics.differences.simultaneous`) within three families: macro F1 of all runs,
    accuracy of all runs, and F1 of all their classes.

    With `recipes`, each recipe is fitted into its own run. The run with the highest macro F1 then records in
    selection.json among how many it was selected, and its corrected score.

    Args:
        what: List of finished runs, or the images to fit `recipes` on: an ImageDataset, or any source that `uf.read`
            accepts.
        recipes: Name -> recipe, as returned by `uf.recipe_grid`. Only with images.
        folder: Folder of the runs; by default runs/compare-<source>-<hash>. Finished runs in it are reused and
            unfinished ones resumed.
        force: Fit all recipes again.
        command: Command to record in the runs.
        reporter: Receives progress messages.
        **given: Keywords of `uf.read`.

    Returns:
        The comparison.

    Raises:
        RunError: If classes or labels differ, or too few images are shared.
        RecipeError: If a recipe cannot be fitted; raised before any fit starts.
        UnfreezeError: Any other error of `fit`.
    """
    reporter, started = reporter or Reporter(), time.perf_counter()
    place = ""
    if isinstance(what, ImageDataset | str | os.PathLike | pd.DataFrame):
        photos, recipes = _read(what, recipes, given)
        named, place = _fitted(photos, recipes, folder, force, command, reporter)
    else:
        if recipes or given:
            raise RecipeError("compare takes photos and recipes, or finished runs, not both.")
        if not isinstance(what, Sequence) or not all(isinstance(one, str | os.PathLike | Run) for one in what):
            raise wrong_type("what", what, "an ImageDataset, a path or a DataFrame with recipes, or a list of runs")
        named = _opened(what)
    found = align_runs(named)
    require_enough(found)
    contenders = _contenders(found, named)
    best = max(contenders[1:], key=lambda one: one.macro_f1.value)
    highest = max(contenders, key=lambda one: one.macro_f1.value)
    rows = found.inside
    corrected = score_of_the_best(
        found.labels[rows],
        [proba[rows].argmax(1) for proba in found.probabilities.values()],
        found.units[rows],
        len(found.photos.classes),
        seed=_seed(named),
    )
    if place:
        _mark_selected(named, highest, corrected)
    return Comparison(
        contenders=contenders,
        best=best.name,
        highest=highest.name,
        corrected=corrected,
        classes=_classes(found, contenders[0].name, best.name, _seed(named)),
        photos=len(rows),
        groups=len(np.unique(found.units[rows])),
        effective_groups=round(effective_groups(found.units[rows]), 1),
        folds=len(np.unique(found.folds[rows])) if found.same_folds else None,
        chance=_chance(found),
        notes=found.notes,
        sentence=_sentence(contenders, highest, corrected),
        folder=place,
        seconds=round(time.perf_counter() - started, 3),
    )


def _read(
    what: ImageDataset | str | Path | pd.DataFrame, recipes: Mapping[str, Recipe] | None, given: ReadOptions
) -> tuple[ImageDataset, dict[str, Recipe]]:
    """Read the images once, and set the source section of every recipe accordingly."""
    if recipes is not None and not isinstance(recipes, Mapping):
        raise wrong_type("recipes", recipes, "a dict of name to Recipe, as uf.recipe_grid makes it")
    if not recipes:
        raise RecipeError(
            f"no recipes to compare; name 2 to {MOST}, as uf.recipe_grid makes them, or give a list of runs."
        )
    named = {name: checked_recipe(recipe) for name, recipe in recipes.items()}
    photos, first = photos_of("compare", what, next(iter(named.values())), given)
    return photos, {name: recipe.model_copy(update={"source": first.source}) for name, recipe in named.items()}


def _fitted(
    photos: ImageDataset,
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
        raise RunError(f"{place}: is a file; choose another {option('folder', metavar='DIR', command='run')}.")
    if (place / "run.json").exists():
        raise RunError(
            f"{place}: is a run itself; choose another {option('folder', metavar='DIR', command='run')} for the runs "
            "of the comparison."
        )
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
    """Folder for the run of a recipe; a suffix is added if the folder holds a run of another recipe."""
    from unfreeze.core.recipe import read_recipe

    try:
        other = read_recipe(place / name / "recipe.toml") != recipe
    except RecipeError:
        other = False
    return place / (f"{name}-{mark(recipe)}" if other else name)


def _opened(what: Sequence[str | Path | Run]) -> dict[str, Run]:
    runs = [as_run(one) for one in what]
    if len(runs) < 2:
        raise RunError("a comparison needs two or more runs.")
    paths = [run.path.resolve() for run in runs]
    twice = [str(run.path) for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise RunError(f"{twice[0]}: is given twice; compare different runs.")
    short = [path.name for path in paths]
    return {name if short.count(name) == 1 else str(run.path): run for name, run in zip(short, runs, strict=True)}


def _seed(runs: Mapping[str, Run]) -> int:
    return next(iter(runs.values())).recipe.seed


def _contenders(found: AlignedRuns, runs: Mapping[str, Run]) -> tuple[ComparedRun, ...]:
    rows, classes = found.inside, len(found.photos.classes)
    labels, units, folds = found.labels[rows], found.units[rows], found.folds[rows]
    proba_of = {name: proba[rows] for name, proba in found.probabilities.items()}
    predicted = {name: proba.argmax(1) for name, proba in proba_of.items()}
    first, *others = predicted

    def judged_by(metric: str, of: Any) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        rest = {name: predicted[name] for name in others}
        return simultaneous_differences(labels, predicted[first], rest, units, classes, {metric: of}, seed=_seed(runs))

    # Two separate families, because all conclusions in sentences and plots are about macro F1 alone.
    by_macro, by_accuracy = judged_by("macro_f1", macro), judged_by("accuracy", accuracy)
    by_fold = {name: _by_fold(labels, p, folds, classes) for name, p in predicted.items()}
    made = []
    for name, run in runs.items():
        own = "" if name == first else name
        scores = by_macro[own] | by_accuracy[own]
        more = Estimate(**scores["macro_f1"]["difference"])
        same = bool(np.array_equal(predicted[name], predicted[first]))
        made.append(
            ComparedRun(
                name=name,
                run=str(run.path),
                changes=changes_between(runs[first].recipe, run.recipe),
                macro_f1=Estimate(**scores["macro_f1"]["score"]),
                accuracy=Estimate(**scores["accuracy"]["score"]),
                log_loss=log_loss(labels, proba_of[name]),
                difference=more,
                accuracy_difference=Estimate(**scores["accuracy"]["difference"]),
                wins=int((by_fold[name] > by_fold[first]).sum()) if found.same_folds else None,
                losses=int((by_fold[name] < by_fold[first]).sum()) if found.same_folds else None,
                same=same,
                seconds=found.seconds[name],
                sentence="" if name == first else _difference_sentence(name, first, more, same),
            )
        )
    return tuple(made)


def _by_fold(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], folds: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Macro F1 of each fold, over the classes present in it.

    Scores are computed from confusion counts, so that equal predictions give exactly equal scores.
    """
    tables = [confusion_matrix(labels[folds == k], predicted[folds == k], classes) for k in np.unique(folds)]
    return np.array([macro_of_present(table) for table in tables])


def _classes(found: AlignedRuns, base: str, best: str, seed: int) -> tuple[ClassDifference, ...]:
    rows, classes = found.inside, found.photos.classes
    others = {name: proba[rows].argmax(1) for name, proba in found.probabilities.items()}
    mine = others.pop(base)
    every = class_differences(found.labels[rows], mine, others, found.units[rows], len(classes), seed=seed)[best]
    return tuple(
        ClassDifference(classes[row["class"]], row["support"], row["base"], row["other"], Estimate(**row["difference"]))
        for row in every
    )


def _chance(found: AlignedRuns) -> Baseline:
    labels, classes = found.labels[found.inside], found.photos.classes
    # Computed from the label counts alone, so that the chance level is the same for all recipes.
    scores = chance_scores(np.diag(np.bincount(labels, minlength=len(classes))), classes)
    return Baseline(scores["class"], scores["macro_f1"], scores["accuracy"], scores["macro_f1_of"])


def _difference_sentence(name: str, base: str, more: Estimate, same: bool) -> str:
    """Sentence of one run. One point is 0.01 of macro F1."""
    if same:
        return f"{name} predicts the same class as {base} for every image."
    between = f"95% interval [{100 * more.low:+.1f}, {100 * more.high:+.1f}]"
    if not more.significant:
        return f"{name} does not differ significantly from {base} ({between}, points of macro F1)."
    return f"{name} scores {100 * abs(more.value):.1f} points {_side(more)} than {base} ({between})."


def _side(more: Estimate) -> str:
    return "higher" if more.value > 0 else "lower"


def _sentence(contenders: tuple[ComparedRun, ...], highest: ComparedRun, corrected: float) -> str:
    base, others = contenders[0], contenders[1:]
    if len(others) == 1:
        return others[0].sentence
    found: list[str] = []
    for side in ("higher", "lower"):
        names = [one.name for one in others if one.difference.significant and _side(one.difference) == side]
        said = f"{len(names)} of {len(others)} recipes" if names else f"None of {len(others)} recipes"
        verb = "score" if len(names) > 1 else "scores"
        if side == "higher" or names:
            scope = f" than {base.name} (family-wise error 5%)" if not found else ""
            found.append(f"{said} {verb} significantly {side}{scope}{': ' + join_names(names) if names else ''}.")
    if not any(one.difference.significant for one in others):
        low, high = min(one.difference.low for one in others), max(one.difference.high for one in others)
        found.append(f"All differences lie between {100 * low:+.1f} and {100 * high:+.1f} points.")
    found.append(
        f"Highest macro F1: {highest.name}, {format_score(highest.macro_f1.value)}; {format_score(corrected)} after "
        f"correction for being chosen among {len(contenders)} on these images."
    )
    return " ".join(found)


def _mark_selected(runs: Mapping[str, Run], highest: ComparedRun, corrected: float) -> None:
    """Write selection.json to the run with the highest score, and delete it from the other runs."""
    for name, run in runs.items():
        file = run.path / SELECTION
        if name != highest.name:
            file.unlink(missing_ok=True)
            continue
        write_json(file, {"by": "compare", "among": len(runs), "estimate": {"value": corrected}})
