"""The command that compares recipes on the same folds.

It takes finished runs, fits recipes (`--grid`, `--recipes`), or fits those of a preset: methods for small classes
(`--preset balance`), or models for several label columns (`--preset labels`).
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.cli.console import changed, emit_json, reporter, say, show, then
from unfreeze.cli.fit import (
    Backbone,
    Encoding,
    EngineName,
    FoldCount,
    Group,
    GroupRegex,
    Json,
    Label,
    PathColumn,
    ReaderName,
    RecipeFile,
    Root,
    Seed,
    Split,
    Weights,
    make_recipe,
    source_options,
    working_on,
)
from unfreeze.core.errors import RecipeError, RunError, did_you_mean, join_names
from unfreeze.core.format import format_estimate, format_score, pluralize
from unfreeze.core.progress import Reporter

if TYPE_CHECKING:
    from unfreeze.analysis.compare import Comparison
    from unfreeze.core.recipe import Recipe


def compare(
    what: Annotated[
        list[str],
        typer.Argument(help="Finished runs, two or more; or the one SOURCE to vary.", metavar="RUN...|SOURCE"),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="balance: methods for small classes. labels: joint or separate heads for several label columns.",
            metavar="NAME",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--grid", help="A recipe key and its values; several keys make a grid.", metavar="KEY=A,B"),
    ] = None,
    recipes: Annotated[
        Path | None, typer.Option("--recipes", help="Named recipes as TOML, a table each.", metavar="FILE")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs; by default `runs/compare-<source>-<mark>`.", metavar="DIR"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML page; by default compare.html in the folder of the runs.", metavar="FILE")
    ] = None,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    encoding: Encoding = None,
    split: Split = None,
    reader: ReaderName = None,
    strategy: Annotated[str | None, typer.Option(help="As in fit (default probe).", metavar="NAME")] = None,
    quality: Annotated[str | None, typer.Option(help="fast, good or best, as of fit.", metavar="NAME")] = None,
    backbone: Backbone = None,
    weights: Weights = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for training all folds of a recipe: 90s, 10m, 1h30m.", metavar="TIME")
    ] = None,
    folds: FoldCount = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One recipe key, the same for all: `--set image.size=192`.", metavar="KEY=VALUE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fit again and overwrite finished runs.")] = False,
    engine: EngineName = "local",
    json: Json = False,
) -> None:
    """Which recipe is better? Paired differences on the same photos, with intervals corrected for multiple comparisons.

    With --preset, the recipes are made here: `--preset balance` or `--preset labels`.

    Resumes: unfinished runs are continued, finished runs are reused.

    Example: `unfreeze compare photos/ --grid image.color=rgb,gray`
    """
    named = source_options("", label, group, group_regex, path, root, split, reader, encoding) | {
        "strategy": strategy,
        "backbone": backbone,
        "train.time_budget": budget,
        "folds.n_splits": folds,
        "seed": seed,
    }
    named.pop("source.path")
    typed, progress = "unfreeze " + shlex.join(sys.argv[1:]), reporter(json)
    if preset or vary or recipes:
        _refuse_what_differs(what, preset, vary, recipes, out, force)
        if weights:
            named["weights"] = "none" if weights == "none" else str(Path(weights).expanduser().absolute())
        said = {one.partition("=")[0].strip() for one in set_ or []}
        if strategy is None and recipe is None and "strategy" not in said:
            named["strategy"] = "probe"
        base = make_recipe(recipe, quality, set_, {"source.path": what[0], **named})
        with working_on(engine):
            if preset:
                _PRESETS[preset](base, run, json, progress)
                return
            found = _fitted(what[0], base, vary, recipes, run, force, typed, progress)
    else:
        _refuse_what_fits(what, [quality, weights, recipe, set_, run, *named.values()], force)
        from unfreeze.analysis.compare import compare as compare_runs

        found = compare_runs(what, reporter=progress)
    page = _page(found, out, typed)
    if json:
        emit_json({**found.to_json(), "page": str(page) if page else None})
        return
    _print(found)
    if page:
        say(f"Page: {page}   ({found.seconds:.1f} s in all)")
    best = found.named(found.best)
    then(f"unfreeze report {shlex.quote(best.run if best.difference.low > 0 else found.base.run)}")


def _fitted(
    source: str,
    base: Any,
    vary: list[str] | None,
    recipes: Path | None,
    run: Path | None,
    force: bool,
    typed: str,
    progress: Reporter,
) -> Comparison:
    from unfreeze.core.recipe_grid import parse_vary, read_recipes
    from unfreeze.core.recipe_grid import recipe_grid as varied

    chosen = read_recipes(recipes, base) if recipes else varied(base, parse_vary(vary or []))
    from unfreeze.analysis.compare import compare as compare_recipes
    from unfreeze.data.readers import read

    photos = read(source, base.source)
    progress.say(photos.choice)
    return compare_recipes(photos, chosen, run, force=force, command=typed, reporter=progress)


def _refuse_what_differs(
    what: list[str],
    preset: str | None,
    vary: list[str] | None,
    recipes: Path | None,
    out: Path | None,
    force: bool,
) -> None:
    """Raise RecipeError for arguments that do not go together where recipes are fitted."""
    if len(what) > 1:
        raise RecipeError(f"{what[1]}: recipes are compared on one SOURCE; name one, or finished runs alone.")
    given = [name for name, value in (("--preset", preset), ("--grid", vary), ("--recipes", recipes)) if value]
    if len(given) > 1:
        raise RecipeError(f"{' and '.join(given)} cannot be combined; give one of the two.")
    if not preset:
        return
    if preset not in _PRESETS:
        raise RecipeError(f"--preset {preset}: known are {join_names(_PRESETS)}.{did_you_mean(preset, _PRESETS)}")
    if (Path(what[0]) / "run.json").is_file():
        raise RecipeError("--preset fits its recipes on one SOURCE; finished runs are compared without it.")
    if out or force:
        raise RecipeError(f"{'--out' if out else '--force'} is not for --preset, which writes no page and keeps runs.")


def _refuse_what_fits(what: list[str], options: list[Any], force: bool) -> None:
    """Reject options of fit for finished runs, where they would have no effect."""
    if len(what) == 1 and (Path(what[0]) / "run.json").is_file():
        raise RunError(f"{what[0]}: a comparison needs two or more runs.")
    if len(what) == 1:
        raise RecipeError(
            f"{what[0]}: a comparison needs two or more runs, or recipe keys to vary, as in "
            f"`unfreeze compare {shlex.quote(what[0])} --grid image.color=rgb,gray`."
        )
    if force or any(option is not None for option in options):
        raise RecipeError("finished runs are compared as they are; options of fit go with one SOURCE and --grid.")


def _page(found: Comparison, out: Path | None, typed: str) -> Path | None:
    from unfreeze.reports.comparison_page import write_comparison

    target = out or (Path(found.folder) / "compare.html" if found.folder else None)
    return write_comparison(found, target, typed) if target else None


def _print(found: Comparison) -> None:
    from unfreeze.analysis.aligned_runs import counted_groups

    base = found.base
    columns = ["", "macro F1 (95%)", f"against {base.name}", "folds won", "accuracy", "log loss", "seconds"]
    rows = [
        [
            one.name,
            format_estimate(vars(one.macro_f1)),
            "" if one is base else changed(**vars(one.difference)),
            "" if one is base or one.wins is None else f"{one.wins} of {found.folds}",
            format_score(one.accuracy.value),
            format_score(one.log_loss),
            "" if math.isnan(one.seconds) else f"{one.seconds:,.1f}",
        ]
        for one in found.contenders
    ]
    if found.folds is None:
        columns.pop(3)
        rows = [row[:3] + row[4:] for row in rows]
    show(
        f"{pluralize(found.photos, 'photo')}, {counted_groups(found.groups, found.effective_groups)}, out of fold",
        columns,
        rows,
        columns[1:],
    )
    many = ", simultaneous for all recipes" if len(found.contenders) > 2 else ""
    say(f"Differences: paired, 95% intervals{many}; ? not significant. A point is 0.01 macro F1.")
    for note in found.notes:
        say(f"Note: {note}")
    for one in found.contenders[1:]:
        say(one.sentence)
    if len(found.contenders) > 2:
        say(found.sentence)


_COLUMNS = ["", "macro F1", "against none", "recall, smallest class", "recall, small classes", "accuracy"]


def _fit_words() -> list[str]:
    """The words of this command that `unfreeze fit` takes as well."""
    words, kept = iter(sys.argv[2:]), []
    for word in words:
        if word in ("--preset", "--run", "--out"):
            next(words, None)
        elif not word.startswith(("--preset=", "--run=", "--out=")) and word != "--json":
            kept.append(word)
    return kept


def _compare_balance(chosen: Recipe, run: Path | None, json: bool, progress: Reporter) -> None:
    """Oversampling, undersampling, class weights and other losses, on the same folds."""
    from unfreeze.analysis.compare_balance import compare_balance as compare
    from unfreeze.data.readers import read

    photos = read(chosen.source.path, chosen.source)
    progress.say(photos.choice)
    found = compare(photos, chosen, run, progress)
    if json:
        emit_json(found.to_json())
        return
    from unfreeze.analysis.aligned_runs import counted_groups

    rows = [
        [
            word.name,
            format_score(word.macro_f1.value),
            changed(**vars(word.difference)) if word is not found.words[0] else "",
            format_score(word.smallest.value),
            format_score(word.minority.value),
            format_score(word.accuracy.value),
        ]
        for word in found.words
    ]
    groups = counted_groups(found.groups, found.effective_groups)
    show(
        f"{pluralize(found.photos, 'photo')}, {groups}, the smallest class '{found.smallest}' "
        f"with {found.counts[found.smallest]:,}",
        _COLUMNS,
        rows,
        _COLUMNS[1:],
    )
    say(
        "Against none: out of fold, paired, 95% intervals that hold for all rows and columns at once (family-wise "
        "error 5%); ? not significant."
    )
    say(f"{found.sentence} ({found.seconds:.1f} s)")
    # A setting other than the default is suggested only if it is significantly better.
    better = [word for word in found.words if word.difference.low > 0]
    best = max(better, key=lambda word: word.macro_f1.value) if better else None
    words = [
        part
        for key, value in (best.settings.items() if best else ())
        if isinstance(value, str)
        for part in ("--set", f"balance.{key}={value}")
    ]
    named = [] if "--strategy" in sys.argv else ["--strategy", chosen.strategy]
    then(shlex.join(["unfreeze", "fit", *_fit_words(), *named, *words]))


def _compare_labels(chosen: Recipe, run: Path | None, json: bool, progress: Reporter) -> None:
    """One head over the combinations of several label columns, one head for each column, or both, on the same folds."""
    if run is not None:
        raise RecipeError("--preset labels compares probes and leaves no runs; leave --run out.")
    from unfreeze.analysis.compare_label_models import compare_labels as compare
    from unfreeze.data.readers import read

    photos = read(chosen.source.path, chosen.source)
    progress.say(photos.choice)
    found = compare(photos, chosen, progress)
    if json:
        emit_json(found.to_json())
        return
    columns = ["", "macro F1", "against joint", "accuracy", "log loss", *(f"{name} alone" for name in found.attributes)]
    rows = [
        [
            model.name,
            format_score(model.macro_f1.value),
            changed(**vars(model.difference)) if model is not found.models[0] else "",
            format_score(model.accuracy.value),
            format_score(model.log_loss),
            *(format_score(figure.value) for figure in model.parts.values()),
        ]
        for model in found.models
    ]
    show(
        f"{pluralize(found.photos, 'photo')}, {pluralize(found.groups, 'group')}, {found.combinations} combinations of "
        f"{' x '.join(str(len(values)) for values in found.attributes.values())} values",
        columns,
        rows,
        columns[1:],
    )
    say(
        "Macro F1 of the whole, and of each part alone; out of fold, paired, 95% intervals that hold for both models, "
        "the whole and all parts at once (family-wise error 5%); ? not significant."
    )
    if found.unseen:
        say(
            f"{len(found.unseen)} combination(s) lack training photos in some fold, as '{found.unseen[0]}': joint "
            "cannot predict them there, parts can."
        )
    say(f"{found.sentence} ({found.seconds:.1f} s)")
    named = [] if "--strategy" in sys.argv else ["--strategy", "probe"]
    then(shlex.join(["unfreeze", "fit", *_fit_words(), *named, "--set", f"labels.model={found.best.name}"]))


_PRESETS = {"balance": _compare_balance, "labels": _compare_labels}
