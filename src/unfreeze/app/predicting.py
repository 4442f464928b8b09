"""The command that answers for new photos: predict."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import emit_json, reporter, say, show, then, warn
from unfreeze.app.fitting import Json, PathColumn, Root
from unfreeze.core.errors import TemplateError
from unfreeze.core.recipe_sections import Source

RunsArgument = Annotated[
    str, typer.Argument(help="A finished run folder, or several as RUN+RUN.", metavar="RUN[+RUN...]")
]


def predict(
    run: RunsArgument,
    images: Annotated[
        Path,
        typer.Argument(help="A folder of photos, one photo, or a table that names them.", metavar="IMAGES"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Predictions as .csv or .parquet (default predictions.csv), or the submission.", metavar="FILE"
        ),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Write a submission in this CSV's order and header.", metavar="CSV")
    ] = None,
    tta: Annotated[
        str | None,
        typer.Option(
            help="Views to average: plain, flip, and further ones, as `flip,rotate+5,rotate-5,crop-10`; by default the "
            "views of training.",
            metavar="NAMES",
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Column of IMAGES, a table, that names each photo's group; photos of a group then agree on what "
            "groups share in training.",
            metavar="COL",
        ),
    ] = None,
    group_regex: Annotated[
        str | None,
        typer.Option(help="The same from the path: a regular expression with `(?P<group>...)`.", metavar="REGEX"),
    ] = None,
    path: PathColumn = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Predict new photos with the blended folds, or several runs as RUN+RUN; with a template, write the submission.

    Weights of several runs are chosen on their out-of-fold predictions. Whether a blend, further views or the vote of
    a group help is told by `unfreeze scores` with the same options.

    Example: `unfreeze predict runs/masks eval/images --template eval/info.csv --out submission.csv`
    """
    from unfreeze.core.cells import write_csv
    from unfreeze.core.files import write_whole
    from unfreeze.data.grouping import groups_of
    from unfreeze.data.listing import list_images
    from unfreeze.deliver.submission import check_template, write_submission
    from unfreeze.learn.blend import Blend, load

    target = out or Path("submission.csv" if template else "predictions.csv")
    if target.suffix.lower() not in (".csv", ".parquet") or (template and target.suffix.lower() != ".csv"):
        raise TemplateError(f"--out {target}: write it as .csv" + ("." if template else " or .parquet."))
    if any(given and target.resolve() == given.resolve() for given in (template, images)):
        raise TemplateError(f"--out {target}: would overwrite its own input; choose another name.")
    classifier = load(run)
    answers = tuple(classifier.run.info["answers"])
    # What cannot work is said before the photos are predicted, which may take minutes.
    base, names = list_images(images, Source(path_column=path or "", root=root or ""))
    if template:
        check_template(template, names, answers)
    groups = groups_of(images, names, group, group_regex)
    voice = reporter(json)
    if isinstance(classifier, Blend):
        voice.say(f"Blended, by weights that their out-of-fold predictions have chosen: {classifier.told()}.")
    table = classifier.predict([base / name for name in names], tta=tta, groups=groups, reporter=voice)
    table["path"] = names
    failed = table[table["error"] != ""]
    if template:
        common = str(classifier.run.photos()["label"].value_counts().index[0])
        write_submission(table, template, target, classifier.run.classes, answers, common)
        if len(failed):
            warn(f"{len(failed):,} photo(s) could not be read; their answer is the commonest class, '{common}'.")
    elif target.suffix.lower() == ".parquet":
        write_whole(target, lambda p: table.to_parquet(p, index=False))
    else:
        write_csv(target, table)
    counted = table["label"].value_counts()
    if json:
        emit_json({"out": str(target), "photos": len(table), "errors": len(failed), "labels": counted.to_dict()})
        return
    show(
        "Predicted",
        ["label", "photos", "share"],
        [[k, f"{v:,}", f"{v / len(table):.1%}"] for k, v in counted.items()],
        ["photos", "share"],
    )
    for row in failed.head(5).itertuples():
        say(f"Not predicted: {row.path}: {row.error}")
    if len(failed) > 5:
        say(f"... and {len(failed) - 5:,} more" + ("." if template else ", in the column 'error'."))
    said = f", {len(failed):,} of them could not be read" if len(failed) else ""
    by = f"{len(classifier.classifiers)} runs" if isinstance(classifier, Blend) else ""
    by = by or f"{classifier.run.recipe.folds.count} folds"
    say(f"{len(table):,} photos predicted by {by}{said}. Written: {target}")
    tried = "".join([f" --tta {shlex.quote(tta)}" if tta else "", " --vote" if groups else ""])
    then(f"unfreeze scores {shlex.quote(run)}{tried}")
