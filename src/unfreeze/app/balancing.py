"""The command that compares what is done for small classes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import changed, emit_json, number, reporter, say, show, then
from unfreeze.app.fitting import (
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
    make_recipe,
    source_options,
)

_COLUMNS = ["", "macro F1", "against none", "recall, smallest class", "recall, small classes", "accuracy"]


def compare_balance(
    source: SourceArgument,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    split: Split = None,
    reader: ReaderName = None,
    strategy: Annotated[
        str, typer.Option(help="probe, or late, full, scratch: then each word is a run of its own.", metavar="NAME")
    ] = "probe",
    quality: Annotated[str | None, typer.Option(help="fast, good or best, as of fit.", metavar="NAME")] = None,
    folds: FoldCount = None,
    seed: Seed = None,
    run: Annotated[
        Path | None, typer.Option(help="Where the runs of late, full and scratch go.", metavar="DIR")
    ] = None,
    recipe: RecipeFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One recipe key; `balance.add=...` adds a row to the table.", metavar="KEY=VALUE"),
    ] = None,
    json: Json = False,
) -> None:
    """Over-sampling, under-sampling, weights or other losses: what helps the small classes, on the same folds.

    Example: `unfreeze compare-balance photos/ --set balance.add=minority:3:rotate-10,rotate+10`
    """
    options = source_options(source, label, group, group_regex, path, root, split, reader)
    options |= {"strategy": strategy, "folds.count": folds, "seed": seed}
    chosen = make_recipe(recipe, quality, set_, options)
    from unfreeze.data.readers import read
    from unfreeze.study.balancing import compare_balance as compare

    voice = reporter(json)
    photos = read(source, chosen.source)
    voice.say(photos.choice)
    found = compare(photos, chosen, run, voice)
    if json:
        emit_json(found.to_json())
        return
    rows = [
        [
            word.name,
            number(word.macro_f1.value),
            changed(**vars(word.difference)) if word is not found.words[0] else "",
            number(word.smallest.value),
            number(word.minority.value),
            number(word.accuracy.value),
        ]
        for word in found.words
    ]
    show(
        f"{found.photos:,} photos, {found.groups:,} groups, the smallest class '{found.smallest}' with "
        f"{found.counts[found.smallest]:,}",
        _COLUMNS,
        rows,
        _COLUMNS[1:],
    )
    say(
        "Against none: out of fold, groups resampled, 95 % intervals that hold for all words at once (max-t); "
        "? may be chance."
    )
    say(f"{found.sentence} ({found.seconds:.1f} s)")
    best = max(found.words, key=lambda word: word.macro_f1.value)
    words = [
        part
        for key, value in best.settings.items()
        if isinstance(value, str)
        for part in ("--set", f"balance.{key}={value}")
    ]
    named = [] if "--strategy" in sys.argv else ["--strategy", strategy]
    then(shlex.join(["unfreeze", "fit", *sys.argv[2:], *named, *words]))
