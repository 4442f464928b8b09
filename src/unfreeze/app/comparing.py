"""The command that compares recipes: finished runs, or recipes that are fitted for it on the same folds."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.app.console import changed, emit_json, number, reporter, say, scored, show, then
from unfreeze.app.fitting import (
    Backbone,
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
from unfreeze.core.errors import RecipeError, RunError
from unfreeze.core.progress import Reporter

if TYPE_CHECKING:
    from unfreeze.study.compare import Comparison


def compare(
    what: Annotated[
        list[str],
        typer.Argument(help="Finished runs, two or more; or the one SOURCE to vary.", metavar="RUN...|SOURCE"),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", help="A recipe key and its values; several keys make a grid.", metavar="KEY=A,B"),
    ] = None,
    recipes: Annotated[
        Path | None, typer.Option("--recipes", help="Named recipes as TOML, a table each.", metavar="FILE")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Where the runs go; by default `runs/compare-<source>-<mark>`.", metavar="DIR"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page; by default compare.html beside the runs.", metavar="FILE")
    ] = None,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    split: Split = None,
    reader: ReaderName = None,
    strategy: Annotated[
        str | None, typer.Option(help="As of fit; probe if nothing says another.", metavar="NAME")
    ] = None,
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
    force: Annotated[bool, typer.Option("--force", help="Fit anew over finished runs.")] = False,
    engine: EngineName = "local",
    json: Json = False,
) -> None:
    """Which recipe is better? Paired differences on the same photos, with intervals corrected for many comparisons.

    Resumes: runs that are there are gone on with, or taken as they are.

    Example: `unfreeze compare photos/ --vary image.color=rgb,gray`
    """
    named = source_options("", label, group, group_regex, path, root, split, reader) | {
        "strategy": strategy,
        "backbone": backbone,
        "train.budget": budget,
        "folds.count": folds,
        "seed": seed,
    }
    named.pop("source.path")
    typed, voice = "unfreeze " + shlex.join(sys.argv[1:]), reporter(json)
    if vary or recipes:
        if len(what) > 1:
            raise RecipeError(f"{what[1]}: recipes are compared on one SOURCE; name one, or finished runs alone.")
        if vary and recipes:
            raise RecipeError("--recipes names whole recipes and --vary makes them; give one of the two.")
        if weights:
            named["weights"] = "none" if weights == "none" else str(Path(weights).expanduser().absolute())
        said = {one.partition("=")[0].strip() for one in set_ or []}
        if strategy is None and recipe is None and "strategy" not in said:
            named["strategy"] = "probe"
        base = make_recipe(recipe, quality, set_, {"source.path": what[0], **named})
        with working_on(engine):
            found = _fitted(what[0], base, vary, recipes, run, force, typed, voice)
    else:
        _refuse_what_fits(what, [quality, weights, recipe, set_, run, *named.values()], force)
        from unfreeze.study.compare import compare as compare_runs

        found = compare_runs(what, reporter=voice)
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
    voice: Reporter,
) -> Comparison:
    from unfreeze.study.vary import parse_vary, read_recipes
    from unfreeze.study.vary import vary as varied

    chosen = read_recipes(recipes, base) if recipes else varied(base, parse_vary(vary or []))
    from unfreeze.data.readers import read
    from unfreeze.study.compare import compare as compare_recipes

    photos = read(source, base.source)
    voice.say(photos.choice)
    return compare_recipes(photos, chosen, run, force=force, command=typed, reporter=voice)


def _refuse_what_fits(what: list[str], options: list[Any], force: bool) -> None:
    """Finished runs were fitted as they were: an option that says how to fit would be passed over."""
    if len(what) == 1 and (Path(what[0]) / "run.json").is_file():
        raise RunError(f"{what[0]}: one run is nothing to compare; name two or more.")
    if len(what) == 1:
        raise RecipeError(
            f"{what[0]}: nothing to compare it with; name two runs or more, or what to vary, as in "
            f"`unfreeze compare {shlex.quote(what[0])} --vary image.color=rgb,gray`."
        )
    if force or any(option is not None for option in options):
        raise RecipeError("finished runs are compared as they are; options of fit go with one SOURCE and --vary.")


def _page(found: Comparison, out: Path | None, typed: str) -> Path | None:
    from unfreeze.deliver.compare_page import write_comparison

    target = out or (Path(found.folder) / "compare.html" if found.folder else None)
    return write_comparison(found, target, typed) if target else None


def _print(found: Comparison) -> None:
    base = found.base
    columns = ["", "macro F1 (95 %)", f"against {base.name}", "folds won", "accuracy", "log loss", "seconds"]
    rows = [
        [
            one.name,
            scored(vars(one.macro_f1)),
            "" if one is base else changed(**vars(one.difference)),
            "" if one is base or one.wins is None else f"{one.wins} of {found.folds}",
            number(one.accuracy.value),
            number(one.log_loss),
            "" if math.isnan(one.seconds) else f"{one.seconds:,.1f}",
        ]
        for one in found.contenders
    ]
    if found.folds is None:
        columns.pop(3)
        rows = [row[:3] + row[4:] for row in rows]
    show(f"{found.photos:,} photos, {found.groups:,} groups, out of fold", columns, rows, columns[1:])
    many = " that hold for all at once (max-t)" if len(found.contenders) > 2 else ""
    say(f"Differences: paired, groups resampled, 95 % intervals{many}; ? may be chance. A point is .01 macro F1.")
    for note in found.notes:
        say(f"Note: {note}")
    for one in found.contenders[1:]:
        say(one.sentence)
    if len(found.contenders) > 2:
        say(found.sentence)
