"""Command `fit`, and the arguments and options that it shares with other commands."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.cli.console import corrections_said, emit_json, headline_rows, reporter, say, show, then
from unfreeze.core.errors import RecipeError, UnfreezeError, did_you_mean
from unfreeze.core.format import format_estimate, format_percent, format_score, pluralize
from unfreeze.core.messages import caveats, unseen
from unfreeze.core.recipe import PRESETS, Recipe, parse_overrides, read_recipe

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
    str | None, typer.Option(help="Group column, never split between folds: person, patient, plant.", metavar="COL")
]
GroupRegex = Annotated[
    str | None,
    typer.Option(help="The group from the path: a regular expression with `(?P<group>...)`.", metavar="REGEX"),
]
PathColumn = Annotated[
    str | None, typer.Option("--path", "--path-column", help="Column with the photos' paths.", metavar="COL")
]
Root = Annotated[str | None, typer.Option(help="Folder that the CSV's paths start from.", metavar="DIR")]
Encoding = Annotated[
    str | None, typer.Option(help="Text encoding of a CSV, as cp949; by default detected.", metavar="NAME")
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Split column, or for a folder `train=DIR,test=DIR` (several as DIR+DIR); 'none' pools the given splits.",
        metavar="COL|DIRS",
    ),
]
ReaderName = Annotated[
    str | None,
    typer.Option("--reader", help="Reader of SOURCE, instead of detecting it.", metavar="NAME"),
]
Backbone = Annotated[str | None, typer.Option(help="A name from `unfreeze models`.", metavar="NAME")]
Weights = Annotated[
    str | None, typer.Option(help="A weights file for the backbone, or none: untrained.", metavar="FILE|none")
]
FoldCount = Annotated[int | None, typer.Option(help="Number of outer folds (default 5).", metavar="N")]
Seed = Annotated[int | None, typer.Option(help="Random seed (default 0).", metavar="N")]
RecipeFile = Annotated[Path | None, typer.Option(help="A recipe as TOML; options override it.", metavar="FILE")]
EngineName = Annotated[
    str,
    typer.Option(
        "--backend",
        help="Where folds, trials and features are computed: local, ray or ray://HOST:PORT.",
        metavar="NAME",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def make_recipe(
    recipe_file: Path | None, quality: str | None, assignments: list[str] | None, options: dict[str, Any]
) -> Recipe:
    """Build the recipe from the file, the quality level, `--set` and the options; later ones take precedence.

    Args:
        recipe_file: Recipe as TOML, or None for the default recipe.
        quality: Key of `PRESETS`.
        assignments: Values of `--set`.
        options: Recipe key -> value; None leaves the key unchanged.

    Raises:
        RecipeError: A key or value is invalid.
    """
    recipe = Recipe()
    if recipe_file:  # a file named by the user may be a link; one inside a run folder may not
        recipe = read_recipe(recipe_file.resolve() if recipe_file.is_symlink() else recipe_file)
    if quality is not None:
        if quality not in PRESETS:
            raise RecipeError(f"--quality {quality}: known are {', '.join(PRESETS)}.{did_you_mean(quality, PRESETS)}")
        recipe = recipe.replace(**PRESETS[quality])
    changes = parse_overrides(assignments or [])
    changes |= {key: value for key, value in options.items() if value is not None}
    return recipe.replace(**changes) if changes else recipe


def working_on(engine: str) -> AbstractContextManager[None]:
    """Context manager that runs work on the given backend. The name is checked immediately.

    Raises:
        RecipeError: The name is unknown.
        MissingExtraError: The backend is not installed.
    """
    from unfreeze.core.parallel import use_backend as opened
    from unfreeze.core.parallel import validate_backend

    validate_backend(engine)
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
    encoding: str | None,
) -> dict[str, Any]:
    """Recipe keys for the options that specify how to read SOURCE."""
    return {
        "source.path": source,
        "source.label": tuple(label) if label else None,
        "source.group": group,
        "source.group_regex": group_regex,
        "source.path_column": path,
        "source.root": root,
        "source.split": split,
        "source.reader": reader,
        "source.encoding": encoding,
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
    encoding: Encoding = None,
    split: Split = None,
    reader: ReaderName = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="auto (default): selected by a race inside the training folds. probe: frozen backbone, "
            "linear head. partial: its last stages train too. full: all trains. scratch: from nothing.",
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
    corrections: Annotated[
        Path | None, typer.Option(help="Apply the corrections of `unfreeze review`: relabel, exclude.", metavar="FILE")
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
    random_split_baseline: Annotated[
        bool, typer.Option("--random-split-baseline", help="Also score an image-level split, for comparison.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Log metrics and scores to mlflow or tensorboard; repeatable.", metavar="NAME"),
    ] = None,
    engine: EngineName = "local",
    force: Annotated[bool, typer.Option("--force", help="Fit again and overwrite a finished run.")] = False,
    json: Json = False,
) -> None:
    """Group-safe cross-validation: out-of-fold predictions, scores with intervals, a model and a report.

    Resumes if the run folder is unfinished.

    Example: `unfreeze fit photos/ --group-regex '(?P<group>[^/]+)/[^/]+$'`
    """
    started = time.perf_counter()
    options = source_options(source, label, group, group_regex, path, root, split, reader, encoding)
    options |= {
        "strategy": strategy,
        "backbone": backbone,
        "folds.n_splits": folds,
        "seed": seed,
        "train.time_budget": budget,
    }
    if weights:  # the recipe has to be valid in any working directory
        options["weights"] = "none" if weights == "none" else str(Path(weights).expanduser().absolute())
    if corrections:
        options["source.corrections"] = str(corrections.expanduser().absolute())
    chosen = make_recipe(recipe, quality, set_, options)
    work = working_on(engine)
    from unfreeze.analysis.fit import fit as fit_photos
    from unfreeze.core.runs import default_run_dir
    from unfreeze.data.readers import read
    from unfreeze.reports.run_report import write_report

    progress = reporter(json)
    photos = read(source, chosen.source)
    progress.say(photos.choice)
    read_seconds = round(time.perf_counter() - started, 3)
    done = None if force else _unreported(run or default_run_dir(chosen), chosen)
    if done:
        progress.say(f"{done.path}: was finished before; only its report was missing.")
    else:
        with work:
            done = fit_photos(
                photos,
                chosen,
                run,
                force=force,
                random_split_baseline=random_split_baseline,
                command=_typed(),
                reporter=progress,
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
    """Finished run of the recipe whose report is missing, because the command was interrupted before it was written."""
    from unfreeze.core.runs import open_run

    if (folder / "report.html").exists():
        return None
    with contextlib.suppress(UnfreezeError):  # missing, unfinished or damaged: handled by fit
        found = open_run(folder)
        return found if found.recipe == recipe else None
    return None


def _print_scores(scores: dict[str, Any]) -> None:
    oof, chance = scores["out_of_fold"], scores["out_of_fold"]["chance"]
    columns = ["", "macro F1", "accuracy", "log loss"]
    rows = []
    others = [*headline_rows(scores), ("test split", scores.get("test"))]
    others += [("image-level split", scores.get("random_split"))]
    others += [("initial probe", scores.get("components", {}).get("probe"))]
    others += [(f"its {name} alone", found) for name, found in scores.get("parts", {}).items()]
    for name, found in others:
        if found:
            rows.append([name, *(format_estimate(found[k]) for k in ("macro_f1", "accuracy", "log_loss"))])
    rows.append(
        [
            "chance",
            *(format_score(chance[k]) for k in ("macro_f1", "accuracy", "log_loss")),
        ]
    )
    show(
        f"{pluralize(oof['photos'], 'photo')}, {pluralize(oof['groups'], 'group')}, {len(scores['folds'])} folds",
        columns,
        rows,
        columns[1:],
    )
    if gain := scores.get("gain"):
        sure = "" if gain["low"] > 0 or gain["high"] < 0 else ", so it may be chance"
        say(
            f"Training changed macro F1 by {format_estimate(gain, signed=True)} against the probe (95% interval{sure})."
        )
    if judged := scores.get("corrections"):
        say(corrections_said(judged))
    worst = min(oof["per_class"], key=lambda c: c["f1"]["value"])
    accuracy = scores["accuracy"]
    say(
        f"On {unseen(scores)} it has not seen, the delivered model is right in "
        f"{format_percent(accuracy['value'], 1)} of cases"
        f"{' by the labels as given' if judged else ''} "
        f"(95% interval [{format_percent(accuracy['low'], 1)}, {format_percent(accuracy['high'], 1)}]); "
        f"hardest is '{worst['class']}' (F1 {format_estimate(worst['f1'])}, {pluralize(worst['support'], 'photo')})."
    )
    for caveat in caveats(scores):
        say(caveat)


def _typed() -> str:
    """The command as it was typed, which the report shows."""
    return "unfreeze " + shlex.join(sys.argv[1:])
