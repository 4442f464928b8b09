"""The command that makes a run: fit."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.app.console import emit_json, number, reporter, say, scored, show, then
from unfreeze.app.judged import verdicts_said
from unfreeze.core.errors import RecipeError, UnfreezeError, nearest
from unfreeze.core.qualities import QUALITIES
from unfreeze.core.recipe import Recipe, parse_assignments, read_recipe

if TYPE_CHECKING:
    from unfreeze.core.runs import Run

SourceArgument = Annotated[
    str,
    typer.Argument(help="A folder of class folders, a CSV, .tar shards, or the competition's root.", metavar="SOURCE"),
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="Label column; several make a combined label.", metavar="COL"),
]
Group = Annotated[
    str | None, typer.Option(help="Column of what must stay together: person, patient, plant.", metavar="COL")
]
GroupRegex = Annotated[
    str | None,
    typer.Option(help="The group from the path: a regular expression with `(?P<group>...)`.", metavar="REGEX"),
]
PathColumn = Annotated[
    str | None, typer.Option("--path", "--path-column", help="Column with the photos' paths.", metavar="COL")
]
Root = Annotated[str | None, typer.Option(help="Folder that the CSV's paths start from.", metavar="DIR")]
Split = Annotated[str | None, typer.Option(help="Split column; 'none' pools the given splits.", metavar="COL")]
ReaderName = Annotated[
    str | None,
    typer.Option("--reader", help="Read SOURCE as this kind instead of recognising it.", metavar="NAME"),
]
Backbone = Annotated[str | None, typer.Option(help="A name from `unfreeze models`.", metavar="NAME")]
Weights = Annotated[
    str | None, typer.Option(help="A weights file for the backbone, or none: untrained.", metavar="FILE|none")
]
FoldCount = Annotated[int | None, typer.Option(help="Number of outer folds (default 5).", metavar="N")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random (default 0).", metavar="N")]
RecipeFile = Annotated[Path | None, typer.Option(help="A recipe as TOML; options go over it.", metavar="FILE")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Where folds, trials and features are computed: local, ray or ray://HOST:PORT.",
        metavar="NAME",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The answer as JSON on stdout, nothing else.")]


def make_recipe(
    recipe_file: Path | None, quality: str | None, assignments: list[str] | None, options: dict[str, Any]
) -> Recipe:
    """File, then quality, then --set, then options: the later word counts. RecipeError names what is wrong."""
    recipe = read_recipe(recipe_file) if recipe_file else Recipe()
    if quality is not None:
        if quality not in QUALITIES:
            raise RecipeError(f"--quality {quality}: known are {', '.join(QUALITIES)}.{nearest(quality, QUALITIES)}")
        recipe = recipe.replace(**QUALITIES[quality])
    changes = parse_assignments(assignments or [])
    changes |= {key: value for key, value in options.items() if value is not None}
    return recipe.replace(**changes) if changes else recipe


def working_on(engine: str) -> AbstractContextManager[None]:
    """Where the work of a `with` block runs. RecipeError or MissingExtraError at once for a name that cannot be."""
    from unfreeze.core.cluster import check_engine
    from unfreeze.core.cluster import engine as opened

    check_engine(engine)
    return opened(engine)


def source_options(
    source: str,
    label: list[str] | None,
    group: str | None,
    group_regex: str | None,
    path: str | None,
    root: str | None,
    split: str | None,
    reader: str | None,
) -> dict[str, Any]:
    """The options that say how to read SOURCE, as recipe keys."""
    return {
        "source.path": source,
        "source.label": tuple(label) if label else None,
        "source.group": group,
        "source.group_regex": group_regex,
        "source.path_column": path,
        "source.root": root,
        "source.split": split,
        "source.reader": reader,
    }


def fit(
    source: SourceArgument,
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder; by default `runs/<source>-<strategy>-<mark>`.", metavar="DIR"),
    ] = None,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    split: Split = None,
    reader: ReaderName = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="auto (default): what a race inside the training folds shows to be best. probe: frozen backbone, "
            "linear head. late: its last stages train too. full: all trains. scratch: from nothing.",
            metavar="NAME",
        ),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            help="fast: last layer, one view. good (default): five blocks, two views. best: several inputs race.",
            metavar="NAME",
        ),
    ] = None,
    backbone: Backbone = None,
    weights: Weights = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="Obey what `unfreeze review` wrote: relabel, exclude.", metavar="FILE")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for training all folds: 90s, 10m, 1h30m.", metavar="TIME")
    ] = None,
    folds: FoldCount = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One recipe key: `--set image.size=192`.", metavar="KEY=VALUE"),
    ] = None,
    compare_random: Annotated[
        bool, typer.Option("--compare-random", help="Also show what a split photo by photo would have promised.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Tell rows and scores to mlflow or tensorboard as well; may be given twice.", metavar="NAME"),
    ] = None,
    engine: EngineName = "local",
    force: Annotated[bool, typer.Option("--force", help="Fit anew over a finished run.")] = False,
    json: Json = False,
) -> None:
    """Group-safe cross-validation: out-of-fold predictions, scores with intervals, a model and a report.

    Resumes if the run folder is unfinished.

    Example: `unfreeze fit photos/ --group-regex '(?P<group>[^/]+)/[^/]+$'`
    """
    started = time.perf_counter()
    options = source_options(source, label, group, group_regex, path, root, split, reader)
    options |= {"strategy": strategy, "backbone": backbone, "folds.count": folds, "seed": seed, "train.budget": budget}
    if weights:  # the recipe's file is to be found from any folder
        options["weights"] = "none" if weights == "none" else str(Path(weights).expanduser().absolute())
    if verdicts:
        options["source.verdicts"] = str(verdicts.expanduser().absolute())
    chosen = make_recipe(recipe, quality, set_, options)
    work = working_on(engine)
    from unfreeze.core.runs import default_folder
    from unfreeze.data.readers import read
    from unfreeze.deliver.report import write_report
    from unfreeze.study.auto import fit as fit_photos

    voice = reporter(json)
    photos = read(source, chosen.source)
    voice.say(photos.choice)
    read_seconds = round(time.perf_counter() - started, 3)
    done = None if force else _unreported(run or default_folder(chosen), chosen)
    if done:
        voice.say(f"{done.path}: was finished before; only its report was missing.")
    else:
        with work:
            done = fit_photos(
                photos,
                chosen,
                run,
                force=force,
                compare_random=compare_random,
                command=_typed(),
                reporter=voice,
                timings={"read": read_seconds},
                track=track or (),
            )
    page = write_report(done.path)
    scores = done.scores()
    if json:
        emit_json({"run": str(done.path), "report": str(page), **scores})
        return
    _print_scores(scores)
    say(f"Report: {page}   ({time.perf_counter() - started:.1f} s in all)")
    then(f"unfreeze predict {shlex.quote(str(done.path))} NEW_PHOTOS")


def _unreported(folder: Path, recipe: Recipe) -> Run | None:
    """The recipe's finished run, if its report is missing: cut off there, the same command has to end it."""
    from unfreeze.core.runs import open_run

    if (folder / "report.html").exists():
        return None
    with contextlib.suppress(UnfreezeError):  # none, unfinished or damaged: fitting says what to do
        found = open_run(folder)
        return found if found.recipe == recipe else None
    return None


def _print_scores(scores: dict[str, Any]) -> None:
    oof, chance = scores["out_of_fold"], scores["out_of_fold"]["chance"]
    columns = ["", "macro F1", "accuracy", "log loss"]
    rows = [["out of fold", *(scored(oof[k]) for k in ("macro_f1", "accuracy", "log_loss"))]]
    others = [("test split", scores.get("test")), ("split photo by photo", scores.get("random_split"))]
    others += [("the probe it began from", scores.get("beside", {}).get("probe"))]
    others += [(f"its {name} alone", found) for name, found in scores.get("parts", {}).items()]
    for name, found in others:
        if found:
            rows.append([name, *(scored(found[k]) for k in ("macro_f1", "accuracy", "log_loss"))])
    rows.append(
        [
            f"always '{chance['class']}'",
            *(number(chance[k]) for k in ("macro_f1", "accuracy", "log_loss")),
        ]
    )
    show(
        f"{oof['photos']:,} photos, {oof['groups']:,} groups, {len(scores['folds'])} folds",
        columns,
        rows,
        columns[1:],
    )
    if gain := scores.get("gain"):
        sure = "" if gain["low"] > 0 or gain["high"] < 0 else ", so it may be chance"
        say(
            f"Training changed macro F1 by {gain['value']:+.3f} against the probe "
            f"(95 % between {gain['low']:+.3f} and {gain['high']:+.3f}{sure})."
        )
    if judged := scores.get("verdicts"):
        say(verdicts_said(judged))
    worst = min(oof["per_class"], key=lambda c: c["f1"]["value"])
    say(
        f"On groups it has not seen it is right in {oof['accuracy']['value']:.1%} of photos; "
        f"hardest is '{worst['class']}' (F1 {scored(worst['f1'])}, {worst['support']:,} photos)."
    )


def _typed() -> str:
    """The command as it was typed: what the report says to repeat."""
    return "unfreeze " + shlex.join(sys.argv[1:])
