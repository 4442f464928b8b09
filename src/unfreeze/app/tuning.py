"""The command that searches for parameters: tune."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    SourceArgument,
    Split,
    Weights,
    make_recipe,
    source_options,
    working_on,
)

if TYPE_CHECKING:
    from unfreeze.study.tune import Tuning

_SHOWN = 10


def tune(
    source: SourceArgument,
    trials: Annotated[
        int | None, typer.Option(help="Recipes that each search tries (default 30).", metavar="N")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for the searches: 90s, 10m, 1h; then no recipe is begun.", metavar="TIME")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space", help="A key and its range or values; by default the strategy's own.", metavar="KEY=A..B"
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Where the search goes; by default `runs/tune-<source>-<mark>`.", metavar="DIR"),
    ] = None,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    split: Split = None,
    reader: ReaderName = None,
    strategy: Annotated[
        str | None, typer.Option(help="probe, late, full or scratch; probe if nothing says another.", metavar="NAME")
    ] = None,
    quality: Annotated[str | None, typer.Option(help="fast or good, as of fit.", metavar="NAME")] = None,
    backbone: Backbone = None,
    weights: Weights = None,
    folds: FoldCount = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One recipe key, the same for all: `--set image.size=192`.", metavar="KEY=VALUE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Begin anew over another search.")] = False,
    engine: EngineName = "local",
    json: Json = False,
) -> None:
    """Which parameters? A search that is judged on photos which had no part in it.

    Resumes: the same command goes on, and with more --trials searches on. Run in several terminals it shares the work.

    Example: `unfreeze tune photos/ --trials 30 --budget 1h`
    """
    named = source_options(source, label, group, group_regex, path, root, split, reader) | {
        "strategy": strategy,
        "backbone": backbone,
        "folds.count": folds,
        "seed": seed,
        "tune.trials": trials,
        "tune.budget": budget,
        "tune.space": tuple(space) if space else None,
    }
    if weights:
        named["weights"] = "none" if weights == "none" else str(Path(weights).expanduser().absolute())
    said = {one.partition("=")[0].strip() for one in set_ or []}
    if strategy is None and recipe is None and "strategy" not in said:
        named["strategy"] = "probe"
    whole = make_recipe(recipe, quality, set_, named)
    from unfreeze.data.readers import read
    from unfreeze.deliver.tune_page import write_tuning
    from unfreeze.study.tune import tune as search

    voice, typed = reporter(json), "unfreeze " + shlex.join(sys.argv[1:])
    work = working_on(engine)
    photos = read(source, whole.source)
    voice.say(photos.choice)
    with work:
        found = search(photos, whole, run, force=force, command=typed, reporter=voice)
    page = write_tuning(found, typed)
    if json:
        emit_json({**found.to_json(), "page": str(page)})
        return
    _print(found)
    say(f"Page: {page}   ({found.seconds:.1f} s in all)")
    then(f"unfreeze report {shlex.quote(str(Path(found.folder) / ('best' if found.changes else 'base')))}")


def _print(found: Tuning) -> None:
    search = found.searches[0]
    ranked = sorted((r for r in search.distinct if r.state == "complete"), key=lambda r: (-r.value, r.number))
    rows = [[str(r.number), number(r.value), _told(r.changes), f"{r.seconds:,.1f}"] for r in ranked[:_SHOWN]]
    pruned = sum(r.state == "pruned" for r in search.distinct)
    failed = sum(r.state == "failed" for r in search.distinct)
    ended = f", {pruned} given up early" * bool(pruned) + f", {failed} could not be fitted" * bool(failed)
    show(
        f"Searched on all {search.side.photos:,} photos: {found.tried} recipes{ended}; the best",
        ["", "macro F1 in the search", "changes", "seconds"],
        rows,
        ["", "macro F1 in the search", "seconds"],
    )
    if found.importance:
        shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in list(found.importance.items())[:5])
        say(f"What mattered: {shares} of the variance among the recipes tried (fANOVA).")
    show(
        f"{found.photos:,} photos, {found.groups:,} groups, out of fold",
        ["", "macro F1 (95 %)"],
        [
            ["the recipe given", scored(vars(found.base))],
            ["searched, judged on photos without part in it", scored(vars(found.nested))],
            ["the difference, paired", changed(**vars(found.gain))],
        ],
        ["macro F1 (95 %)"],
    )
    say(
        f"Too good to believe: the best recipe scored {number(found.searched)} in the search and "
        f"{scored(vars(found.shown))} over the folds: it was chosen by these photos."
    )
    say(found.sentence)
    say(f"Best recipe: {Path(found.folder) / 'best.toml'}")


def _told(changes: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "none: the recipe given"
