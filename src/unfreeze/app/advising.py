"""The command that says which strategy: advise."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.app.console import emit_json, number, reporter, say, scored, show, then
from unfreeze.app.fitting import (
    EngineName,
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
    working_on,
)

if TYPE_CHECKING:
    from unfreeze.study.advice import Advice


def advise(
    source: SourceArgument,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    split: Split = None,
    reader: ReaderName = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            help="Compare these first, at equal cost: names with commas between them, or available.", metavar="NAMES"
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for the race: 90s, 10m (default: a tenth of a full fit).", metavar="TIME"),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Outer folds of the fit to come (default 5).", metavar="N")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One recipe key: `--set image.size=192`.", metavar="KEY=VALUE"),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the evidence as an HTML page.", metavar="FILE")] = None,
    engine: EngineName = "local",
    json: Json = False,
) -> None:
    """Which strategy for these photos: enough of them? like the pretraining? And a race of probe, late, full, scratch.

    The race runs on a group-safe split nested in the training photos; test photos are not looked at.

    Example: `unfreeze advise photos/ --budget 5m`
    """
    options = source_options(source, label, group, group_regex, path, root, split, reader)
    options |= {"advise.budget": budget, "folds.count": folds, "seed": seed}
    chosen = make_recipe(recipe, None, set_, options)
    from unfreeze.data.readers import read
    from unfreeze.study.advise import advise as advise_on

    voice = reporter(json)
    photos = read(source, chosen.source)
    voice.say(photos.choice)
    names = tuple(name.strip() for name in (backbones or "").split(",") if name.strip())
    with working_on(engine):
        found = advise_on(photos, chosen, backbones=names, reporter=voice)
    if report:
        from unfreeze.deliver.advice_page import write_advice

        write_advice(found, report, source)
    if json:
        emit_json(found.to_json())
        return
    _print(found)
    if report:
        say(f"Written: {report}")
    # What says how to read the photos goes for the fit as well.
    given = {key: value for key, value in options.items() if value is not None and key.startswith("source.")}
    words = [shlex.quote(source), *_read_as(given)]
    plain = ("strategy", "backbone")
    words += [f"--{key} {value}" if key in plain else f"--set {key}={value}" for key, value in found.changes.items()]
    words += [f"--recipe {shlex.quote(str(recipe))}"] if recipe else []
    words += [f"--folds {folds}"] if folds else []
    words += [f"--set {shlex.quote(item)}" for item in set_ or []]
    then(f"unfreeze fit {' '.join(words)}")


def _print(found: Advice) -> None:
    if found.backbones:
        show(
            "Backbones, each with the same probe on the same photos",
            ["backbone", "macro F1", "LogME", "GMACs", "seconds"],
            [
                [r.name, scored(r.macro_f1) if r.macro_f1 else "not probed", f"{r.log_me:.2f}", r.gmacs, r.seconds]
                for r in found.backbones
            ],
            ["macro F1", "LogME", "GMACs", "seconds"],
        )
    if found.similar and found.enough and found.cell:
        for axis in (found.enough.sentence, found.similar.sentence):
            say(axis)
        place = ("enough" if found.cell[0] else "little") + ", " + ("similar" if found.cell[1] else "different")
        say(f"The courses' table for ({place}): {found.taught}. Measured instead:")
    rows = []
    for row in found.table:
        against = "" if row.name == "probe" else f"{row.difference['value']:+.3f}"
        between = "" if row.name == "probe" else f"{row.difference['low']:+.3f} to {row.difference['high']:+.3f}"
        rows.append(
            [
                *(row.name, scored(row.macro_f1), against, between, f"{row.expected:+.3f}", f"{row.photos:,}"),
                *(_seconds(row.seconds), _seconds(row.full_seconds), row.out),
            ]
        )
    columns = ["strategy", "macro F1", "to probe", "95 %", "expected", "photos", "tried", "full run", ""]
    show(f"Raced on {found.photos:,} photos, {found.groups:,} groups", columns, rows, columns[1:-1])
    for line in found.left_out:
        say(f"Not tried: {line}")
    say(f"Recommended: {found.recommended}. {found.reason}")
    say(f"Runner-up: {found.runner_up}. What would change this: {found.would_change}")


def _read_as(given: dict[str, Any]) -> list[str]:
    """The options that say how to read a source, as they are typed."""
    words = []
    for key, value in given.items():
        name = {"path_column": "path", "group_regex": "group-regex"}.get(key.removeprefix("source."), key[7:])
        if key == "source.path":
            continue
        every = value if isinstance(value, tuple) else (value,)
        words += [f"--{name} {shlex.quote(str(one))}" for one in every]
    return words


def _seconds(value: float) -> str:
    from unfreeze.study.advice import time

    return time(value) if value >= 1 else f"{number(value)} s"
