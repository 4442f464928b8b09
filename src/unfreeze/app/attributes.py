"""The command that compares how combined labels are learnt."""

from __future__ import annotations

import shlex
import sys
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


def compare_labels(
    source: SourceArgument,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    split: Split = None,
    reader: ReaderName = None,
    quality: Annotated[str | None, typer.Option(help="fast, good or best, as of fit.", metavar="NAME")] = None,
    folds: FoldCount = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One recipe key: `--set image.size=192`.", metavar="KEY=VALUE"),
    ] = None,
    json: Json = False,
) -> None:
    """Labels of several columns: one head over the combinations, a head for each, or both, on the same folds.

    Example: `unfreeze compare-labels photos.csv --label mask --label gender --label age --group person`
    """
    options = source_options(source, label, group, group_regex, path, root, split, reader)
    options |= {"strategy": "probe", "folds.count": folds, "seed": seed}
    chosen = make_recipe(recipe, quality, set_, options)
    from unfreeze.data.readers import read
    from unfreeze.study.label_models import compare_labels as compare

    voice = reporter(json)
    photos = read(source, chosen.source)
    voice.say(photos.choice)
    found = compare(photos, chosen, voice)
    if json:
        emit_json(found.to_json())
        return
    columns = ["", "macro F1", "against joint", "accuracy", "log loss", *(f"{name} alone" for name in found.attributes)]
    rows = [
        [
            model.name,
            number(model.macro_f1.value),
            changed(**vars(model.difference)) if model is not found.models[0] else "",
            number(model.accuracy.value),
            number(model.log_loss),
            *(number(figure.value) for figure in model.parts.values()),
        ]
        for model in found.models
    ]
    show(
        f"{found.photos:,} photos, {found.groups:,} groups, {found.combinations} combinations of "
        f"{' x '.join(str(len(values)) for values in found.attributes.values())} values",
        columns,
        rows,
        columns[1:],
    )
    say(
        "Macro F1 of the whole, and of each part alone; out of fold, groups resampled, 95 % intervals that hold for "
        "parts and both at once (max-t); ? may be chance."
    )
    if found.unseen:
        say(
            f"{len(found.unseen)} combination(s) lack training photos in some fold, as '{found.unseen[0]}': joint "
            "cannot tell them there, parts can."
        )
    say(f"{found.sentence} ({found.seconds:.1f} s)")
    named = [] if "--strategy" in sys.argv else ["--strategy", "probe"]
    then(shlex.join(["unfreeze", "fit", *sys.argv[2:], *named, "--set", f"labels.model={found.best.name}"]))
