"""Commands that analyze a dataset or a run: `recommend`, `diagnose` and `tune`.

`recommend` recommends a training strategy, `diagnose` explains a drop between validation and test, and `tune`
searches for
hyperparameters.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.cli.console import changed, emit_json, reporter, say, show, then
from unfreeze.cli.data import RunArgument
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
    SourceArgument,
    Split,
    Weights,
    make_recipe,
    source_options,
    working_on,
)
from unfreeze.core.errors import StorageError
from unfreeze.core.format import format_difference, format_estimate, format_interval, format_score, pluralize
from unfreeze.core.messages import option

if TYPE_CHECKING:
    from unfreeze.analysis.diagnose.diagnose import Diagnosis
    from unfreeze.analysis.recommendation import StrategyRecommendation
    from unfreeze.analysis.tuning.tune import Tuning


def recommend(
    source: SourceArgument,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    encoding: Encoding = None,
    split: Split = None,
    reader: ReaderName = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            help="Compare these backbones first, at equal cost: comma-separated names, or available.", metavar="NAMES"
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for the race: 90s, 10m (default: a tenth of a full fit).", metavar="TIME"),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Outer folds of the later fit (default 5).", metavar="N")] = None,
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
    """Recommend a training strategy: amount of data, similarity to the pretraining, and a race of probe, partial,
    full and scratch.

    The race runs on a group-safe split nested in the training photos; test images are not used.

    Example: `unfreeze recommend photos/ --budget 5m`
    """
    options = source_options(source, label, group, group_regex, path, root, split, reader, encoding)
    options |= {"recommend.budget": budget, "folds.n_splits": folds, "seed": seed}
    chosen = make_recipe(recipe, None, set_, options)
    from unfreeze.analysis.recommend import recommend as recommend_on
    from unfreeze.data.readers import read

    progress = reporter(json)
    photos = read(source, chosen.source)
    progress.say(photos.choice)
    names = tuple(name.strip() for name in (backbones or "").split(",") if name.strip())
    with working_on(engine):
        found = recommend_on(photos, chosen, backbones=names, reporter=progress)
    if report:
        from unfreeze.reports.run_report import write_recommendation

        write_recommendation(found, report, source)
    if json:
        emit_json(found.to_json())
        return
    _print_recommendation(found)
    if report:
        say(f"Written: {report}")
    # The suggested fit has to read the source in the same way.
    given = {key: value for key, value in options.items() if value is not None and key.startswith("source.")}
    words = [shlex.quote(source), *_read_as(given)]
    plain = ("strategy", "backbone")
    words += [f"--{key} {value}" if key in plain else f"--set {key}={value}" for key, value in found.changes.items()]
    words += [f"--recipe {shlex.quote(str(recipe))}"] if recipe else []
    words += [f"--folds {folds}"] if folds else []
    words += [f"--set {shlex.quote(item)}" for item in set_ or []]
    if len(found.table) > 1:
        also = ", but not the backbone" if len(found.backbones) > 1 else ""
        say(
            "The score of a fit with these settings is optimistic, because the same images chose them. "
            f"{option('strategy', 'auto')} chooses the strategy inside the folds instead{also}."
        )
    then(f"unfreeze fit {' '.join(words)}")


def _print_recommendation(found: StrategyRecommendation) -> None:
    if found.backbones:
        show(
            "Backbones, each with the same probe on the same photos",
            ["backbone", "macro F1", "GMACs", "seconds"],
            [[r.name, format_estimate(r.macro_f1), r.gmacs, r.seconds] for r in found.backbones],
            ["macro F1", "GMACs", "seconds"],
        )
    if found.similar and found.enough and found.cell:
        for axis in (found.enough.sentence, found.similar.sentence):
            say(axis)
        place = ("enough" if found.cell[0] else "little") + ", " + ("similar" if found.cell[1] else "different")
        say(f"The courses' table for ({place}): {found.taught}. Measured instead:")
    rows = []
    for row in found.table:
        against = "" if row.name == "probe" else format_difference(row.difference["value"])
        between = "" if row.name == "probe" else format_interval(row.difference, signed=True)
        rows.append(
            [
                *(
                    row.name,
                    format_estimate(row.macro_f1),
                    against,
                    between,
                    format_difference(row.expected),
                    f"{row.photos:,}",
                ),
                *(_seconds(row.seconds), _seconds(row.full_seconds), row.out),
            ]
        )
    columns = ["strategy", "macro F1", "to probe", "95%", "expected", "photos", "tried", "full run", ""]
    show(
        f"Raced on {pluralize(found.photos, 'photo')}, {pluralize(found.groups, 'group')}", columns, rows, columns[1:-1]
    )
    for line in found.left_out:
        say(f"Not tried: {line}")
    say(f"Recommended: {found.recommended}. {found.reason}")
    say(f"Runner-up: {found.runner_up}. What would change this: {found.would_change}")


def _read_as(given: dict[str, Any]) -> list[str]:
    """Command-line options for recipe keys of the section `source`."""
    words = []
    for key, value in given.items():
        name = {"path_column": "path", "group_regex": "group-regex"}.get(key.removeprefix("source."), key[7:])
        if key == "source.path":
            continue
        every = value if isinstance(value, tuple) else (value,)
        words += [f"--{name} {shlex.quote(str(one))}" for one in every]
    return words


def _seconds(value: float) -> str:
    from unfreeze.analysis.recommendation import approximate_duration

    return approximate_duration(value) if value >= 1 else f"{format_score(value)} s"


def diagnose(
    run: RunArgument,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Test images: a folder or a table; if they have labels, their score is reported too. "
            "By default the run's own test split.",
            metavar="IMAGES|CSV",
        ),
    ] = None,
    exported: Annotated[
        Path | None,
        typer.Option(
            help="A file of `unfreeze export`, whose predictions are compared with those of the run.", metavar="FILE"
        ),
    ] = None,
    path: PathColumn = None,
    root: Root = None,
    encoding: Encoding = None,
    json: Json = False,
) -> None:
    """Measure why test is worse than validation: leakage, overfitting, shift, preprocessing, calibration, labels.

    Each cause is listed with its effect on macro F1 and a remedy, the most severe first.

    Example: `unfreeze diagnose runs/masks --test new/`
    """
    from unfreeze.analysis.diagnose.diagnose import diagnose as measure
    from unfreeze.reports.run_report import write_report

    progress = reporter(json)
    source = {"path": path or "", "root": root or "", "encoding": encoding or ""}
    found = measure(run, test, **source, exported=exported, reporter=progress)
    try:
        write_report(run)
    except StorageError as error:  # a read-only run can still be diagnosed
        progress.say(f"The report was not updated: {error}")
    if json:
        emit_json(found.to_json())
        return
    _print_diagnosis(found)
    first = found.causes[0]
    command = first.command if found.first and first.command else ""
    then(command or f"unfreeze report {shlex.quote(str(run))}")


def _print_diagnosis(found: Diagnosis) -> None:
    rows = [
        [
            cause.severity if cause.measured else "-",
            cause.name,
            "" if cause.cost is None else format_difference(cause.cost["value"]),
            "" if cause.cost is None else format_interval(cause.cost, signed=True),
            cause.evidence,
        ]
        for cause in found.causes
    ]
    columns = ["", "cause", "macro F1", "95%", "what was measured"]
    show(
        "Possible causes of the gap between validation and test, most severe first", columns, rows, ["macro F1", "95%"]
    )
    for note in found.notes:
        say(note)
    for cause in found.causes:
        if cause.severity in ("error", "warning") and cause.remedy:
            say(f"{cause.name}: {cause.remedy}")
    say(f"{found.sentence} ({found.seconds:.1f} s)")


_SHOWN = 10


def tune(
    source: SourceArgument,
    trials: Annotated[
        int | None, typer.Option(help="Recipes that each search tries (default 30).", metavar="N")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for the searches: 90s, 10m, 1h; no recipe is started after it.", metavar="TIME"),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space", help="A key and its range or values; by default those of the strategy.", metavar="KEY=A..B"
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of the search; by default `runs/tune-<source>-<mark>`.", metavar="DIR"),
    ] = None,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    encoding: Encoding = None,
    split: Split = None,
    reader: ReaderName = None,
    strategy: Annotated[
        str | None, typer.Option(help="probe, partial, full or scratch (default probe).", metavar="NAME")
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
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing search.")] = False,
    engine: EngineName = "local",
    json: Json = False,
) -> None:
    """Search hyperparameters, and evaluate the result on images that were not used in the search.

    Resumes: the same command continues, and more --trials extend the search. Several terminals share the work.

    Example: `unfreeze tune photos/ --trials 30 --budget 1h`
    """
    named = source_options(source, label, group, group_regex, path, root, split, reader, encoding) | {
        "strategy": strategy,
        "backbone": backbone,
        "folds.n_splits": folds,
        "seed": seed,
        "tune.trials": trials,
        "tune.budget": budget,
        "tune.search_space": tuple(space) if space else None,
    }
    if weights:
        named["weights"] = "none" if weights == "none" else str(Path(weights).expanduser().absolute())
    said = {one.partition("=")[0].strip() for one in set_ or []}
    if strategy is None and recipe is None and "strategy" not in said:
        named["strategy"] = "probe"
    whole = make_recipe(recipe, quality, set_, named)
    from unfreeze.analysis.tuning.tune import tune as search
    from unfreeze.data.readers import read
    from unfreeze.reports.tuning_page import write_tuning

    progress, typed = reporter(json), "unfreeze " + shlex.join(sys.argv[1:])
    work = working_on(engine)
    photos = read(source, whole.source)
    progress.say(photos.choice)
    with work:
        found = search(photos, whole, run, force=force, command=typed, reporter=progress)
    page = write_tuning(found, typed)
    if json:
        emit_json({**found.to_json(), "page": str(page)})
        return
    _print_search(found)
    say(f"Page: {page}   ({found.seconds:.1f} s in all)")
    then(f"unfreeze report {shlex.quote(str(Path(found.folder) / ('best' if found.changes else 'base')))}")


def _print_search(found: Tuning) -> None:
    search = found.searches[0]
    ranked = sorted((r for r in search.distinct if r.state == "complete"), key=lambda r: (-r.value, r.number))
    rows = [[str(r.number), format_score(r.value), _told(r.changes), f"{r.seconds:,.1f}"] for r in ranked[:_SHOWN]]
    pruned = sum(r.state == "pruned" for r in search.distinct)
    failed = sum(r.state == "failed" for r in search.distinct)
    ended = f", {pruned} pruned" * bool(pruned) + f", {failed} could not be fitted" * bool(failed)
    show(
        f"Searched on all {pluralize(search.side.photos, 'photo')}: {pluralize(found.tried, 'recipe')}{ended}; "
        "the best",
        ["", "macro F1 in the search", "changes", "seconds"],
        rows,
        ["", "macro F1 in the search", "seconds"],
    )
    if found.importance:
        shares = ", ".join(f"{key} {100 * share:.0f}%" for key, share in list(found.importance.items())[:5])
        say(f"Importance: {shares} of the variance among the recipes tried (fANOVA).")
    show(
        f"{pluralize(found.photos, 'photo')}, {pluralize(found.groups, 'group')}, out of fold",
        ["", "macro F1 (95%)"],
        [
            ["the recipe given", format_estimate(vars(found.base))],
            ["searched, evaluated on images not used for it", format_estimate(vars(found.nested))],
            ["the difference, paired", changed(**vars(found.gain))],
        ],
        ["macro F1 (95%)"],
    )
    say(
        f"Optimistic: the best recipe scored {format_score(found.searched)} in the search and "
        f"{format_estimate(vars(found.shown))} over the folds, but it was selected on these images."
    )
    say(found.sentence)
    say(f"Best recipe: {Path(found.folder) / 'best.toml'}")


def _told(changes: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "none: the recipe given"
