"""Commands that apply a run: `predict`, `explain` and `export`.

`predict` writes predictions or a submission, `explain` shows which regions of an image determine its class, and
`export` converts a run to a network for other programs.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unfreeze.cli.console import complain, emit_json, lines, reporter, say, show, size, then, warn
from unfreeze.cli.data import RunArgument
from unfreeze.cli.fit import Encoding, Json, PathColumn, Root
from unfreeze.core.errors import StorageError, TemplateError
from unfreeze.core.format import pluralize
from unfreeze.core.recipe_schema import Source

if TYPE_CHECKING:
    import pandas as pd

    from unfreeze.inference.ensemble import Ensemble
    from unfreeze.inference.predictor import Classifier


RunsArgument = Annotated[
    str, typer.Argument(help="A finished run folder, or several as RUN+RUN.", metavar="RUN[+RUN...]")
]

ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Photos, folders of photos, tables that name them, or patterns in quotes as `'new/**/*.jpg'`.",
        metavar="IMAGES...",
    ),
]
# Up to this number, images are listed one by one.
_FEW = 20


def predict(
    run: RunsArgument,
    images: ImagesArgument,
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
    encoding: Encoding = None,
    json: Json = False,
) -> None:
    """Predict new photos with the blended folds, or several runs as RUN+RUN; with a template, write the submission.

    Weights of several runs are chosen on their out-of-fold predictions. Whether a blend, further views or the vote of
    a group help is content by `unfreeze scores` with the same options.

    Example: `unfreeze predict runs/masks eval/images --template eval/info.csv --out submission.csv`
    """
    from unfreeze.core.files import atomic_write, write_csv
    from unfreeze.data.groups import groups_from_table
    from unfreeze.data.list_images import Listing, expand, list_all
    from unfreeze.inference.ensemble import Ensemble, load
    from unfreeze.inference.submission import check_template, write_submission

    target = out or Path("submission.csv" if template else "predictions.csv")
    if target.suffix.lower() not in (".csv", ".parquet") or (template and target.suffix.lower() != ".csv"):
        raise TemplateError(f"--out {target}: write it as .csv" + ("." if template else " or .parquet."))
    sources = expand(images)
    if any(given and target.resolve() == given.resolve() for given in (template, *sources)):
        raise TemplateError(f"--out {target}: would overwrite its own input; choose another name.")
    classifier = load(run)
    answers = tuple(classifier.run.info["answers"])
    # Check all inputs before the prediction, which may take minutes.
    progress = reporter(json)
    options = Source(path_column=path or "", root=root or "", group=group or "", encoding=encoding or "")
    base, names = list_all(sources, options, progress.say)
    if template and (special := check_template(template, names, answers, classifier.run.classes, encoding or "")):
        progress.say(special)
    groups = groups_from_table(sources, names, group, group_regex, options, progress.say)
    if isinstance(classifier, Ensemble):
        progress.say(f"Blended, by weights that their out-of-fold predictions have chosen: {classifier.describe()}.")
    table = classifier.predict(Listing(base, names), tta=tta, groups=groups, reporter=progress)
    failed = table[table["error"] != ""]
    none_read = len(failed) == len(table)
    if template and none_read:
        complain(f"{_none_read(table)} {target} was not written.")
        raise typer.Exit(1)
    if template:
        common = str(classifier.run.photos()["label"].value_counts().index[0])
        write_submission(table, template, target, classifier.run.classes, answers, common, encoding or "")
        if len(failed):
            answer = f"the commonest class, '{common}', or where probabilities are asked for, the same for all classes"
            warn(f"{pluralize(len(failed), 'photo')} could not be read; their answer is {answer}.")
    elif target.suffix.lower() == ".parquet":
        atomic_write(target, lambda p: table.to_parquet(p, index=False))
    else:
        write_csv(target, table)
    labels = table["label"].value_counts()
    if json:
        content = {"out": str(target), "root": str(base), "photos": len(table), "errors": len(failed)}
        emit_json({**content, "labels": labels.to_dict()})
    else:
        _show(table, failed, labels, target, classifier, bool(template))
    if none_read:
        complain(f"{_none_read(table)} The reasons are in {target}, in the column 'error'.")
        raise typer.Exit(1)
    if not json:
        if not template and base.resolve() != target.resolve().parent:
            say(f"Its paths start from {base}: where they are read again, give --root {shlex.quote(str(base))}.")
        tried = "".join([f" --tta {shlex.quote(tta)}" if tta else "", " --group-vote" if groups else ""])
        then(f"unfreeze scores {shlex.quote(run)}{tried}")


def _none_read(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    return f"none of {pluralize(len(table), 'photo')} could be read; first: {first['path']}: {first['error']}."


def _show(
    table: pd.DataFrame,
    failed: pd.DataFrame,
    labels: pd.Series[int],
    target: Path,
    classifier: Classifier | Ensemble,
    submission: bool,
) -> None:
    """Print up to 20 images one by one; for more, print the count of each class and the images that failed."""
    from unfreeze.inference.ensemble import Ensemble

    if len(table) <= _FEW:
        tell_each(table, classifier.run.classes)
    else:
        if len(labels):
            show(
                "Predicted",
                ["label", "photos", "share"],
                [[k, f"{v:,}", f"{v / len(table):.1%}"] for k, v in labels.items()],
                ["photos", "share"],
            )
        for row in failed.head(5).itertuples():
            say(f"Not predicted: {row.path}: {row.error}")
        if len(failed) > 5:
            say(f"... and {len(failed) - 5:,} more" + ("." if submission else ", in the column 'error'."))
    runs = len(classifier.classifiers) if isinstance(classifier, Ensemble) else 0
    by = pluralize(runs, "run") if runs else pluralize(classifier.run.recipe.folds.n_splits, "fold")
    said = f"; {len(failed):,} more could not be read" if len(failed) else ""
    say(f"{pluralize(len(table) - len(failed), 'photo')} predicted by {by}{said}. Written: {target}")


def tell_each(table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Print one line per image: path, class and its probability, second class and its probability; or the error."""
    from unfreeze.core.dataset import probability_columns

    probabilities = table[probability_columns(classes)].to_numpy()
    rows = []
    for row, (path, label, error) in enumerate(zip(table["path"], table["label"], table["error"], strict=True)):
        if error:
            rows.append([path, f"not predicted: {error}"])
            continue
        # After group voting, the label is still the most probable class.
        second = max((k for k, name in enumerate(classes) if name != label), key=lambda k: probabilities[row, k])
        own = probabilities[row, classes.index(label)]
        rows.append([path, label, f"{own:.3f}", classes[second], f"{probabilities[row, second]:.3f}"])
    lines(rows)


def explain(
    run: RunsArgument,
    images: ImagesArgument,
    out: Annotated[Path | None, typer.Option(help="The page (by default explain.html).", metavar="FILE")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="auto, cells, grad-cam, rollout or occlusion; auto takes what the run's networks have.", metavar="NAME"
        ),
    ] = "auto",
    json: Json = False,
) -> None:
    """Show which regions of images determine their class, and the most similar training images.

    Cells are exact (probes); Grad-CAM and attention rollout look into trained networks; occlusion is for every run and
    for several as RUN+RUN. With --json a page is written only if --out names one.

    Example: `unfreeze explain runs/masks new/face.jpg new/other.jpg --out why.html`
    """
    target = out or (None if json else Path("explain.html"))
    if target and (target.suffix.lower() not in (".html", ".htm") or target.is_dir()):
        raise StorageError(f"--out {target}: is an HTML page; name a file {target.stem or 'explain'}.html.")
    from unfreeze.data.list_images import Listing, list_all
    from unfreeze.explanation.method_text import WORDS, format_margin, region_name
    from unfreeze.reports.explanation_page import explain as find

    found = find(run, Listing(*list_all(images)), target, method=method, reporter=reporter(json))
    if json:
        emit_json(found.described())
        return
    good = [photo for photo in found.photos if not photo.error]
    show(
        f"{len(good):,} photo(s) explained",
        ["photo", "class", "against", "map", "strongest", "apart"],
        [
            [p.path, p.label, p.runner_up, h.method, region_name(h) or "none", format_margin(h)]
            for p in good
            for h in p.heat
        ],
        ["apart"],
    )
    for photo in found.photos:
        if photo.error:
            say(f"Not explained: {photo.path}: {photo.error}")
    for way in found.methods:
        say(f"{WORDS[way].name} ({WORDS[way].paper}) shows {WORDS[way].says} {WORDS[way].says_not}")
    if found.note:
        say(found.note)
    say(f"Page: {target}")
    then(f"unfreeze report {shlex.quote(str(found.lead.path))}")


def export(
    run: RunArgument,
    to: Annotated[
        str, typer.Option(help="openvino (.xml and .bin), onnx (.onnx) or torchscript (.pt).", metavar="KIND")
    ] = "openvino",
    out: Annotated[
        Path | None, typer.Option(help="Where to write (by default the run's name, here).", metavar="FILE")
    ] = None,
    tta: Annotated[
        str | None, typer.Option(help="plain or flip; by default the views of training.", metavar="NAME")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(help="Export only the model of this fold, for a smaller file.", metavar="K")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize to 8-bit integers, if that costs no more than --max-f1-drop.")
    ] = False,
    max_f1_drop: Annotated[
        float, typer.Option(help="Points of macro F1, out of fold, that --int8 may cost.", metavar="POINTS")
    ] = 0.5,
    photos: Annotated[
        Path | None, typer.Option(help="Photos to check the file on, instead of the run's own.", metavar="IMAGES")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Json = False,
) -> None:
    """Export the run as one network for other programs, and verify it against the run.

    Example: `unfreeze export runs/masks --to onnx --out masks.onnx`
    """
    from unfreeze.exporters.export import export as write

    progress = reporter(json)
    found = write(
        run,
        to,
        out,
        tta=tta,
        photos=photos,
        fold=fold,
        int8=int8,
        max_f1_drop=max_f1_drop,
        force=force,
        reporter=progress,
    )
    if json:
        emit_json(found.described())
        return
    allowed = "" if found.int8 else f" ({found.tolerance:g} is allowed)"
    say(
        f"In {found.runtime} its probabilities differ from the run's by at most {found.difference:.1g}{allowed}, "
        f"{found.mean_difference:.1g} on average, on {pluralize(found.photos, 'photo')}; the class is the same in "
        f"{found.same} of them. {found.images_per_second:.0f} images/s here."
    )
    if found.int8:
        cost, speed, held = found.int8["macro_f1"], found.int8["images_per_second"], found.int8["bytes"]
        difference = {key: 100 * value for key, value in cost["difference"].items()}
        say(
            f"int8 against float32 on {found.int8['photos']:,} out-of-fold photos: macro F1 {cost['int8']:.3f} against "
            f"{cost['float32']:.3f}, {difference['value']:+.2f} points ({difference['low']:+.2f} to "
            f"{difference['high']:+.2f}; {-max_f1_drop:g} is allowed); {speed['int8']:.0f} against "
            f"{speed['float32']:.0f} images/s; {size(held['int8'])} against {size(held['float32'])}."
        )
    many = f"{found.networks} networks, " if found.networks > 1 else ""
    say(f"Takes {', '.join(found.inputs)}: uint8 RGB, (N, size, size, 3); how to fill it: {found.about}")
    say(f"Written: {found.path}, {many}{size(found.bytes)}")
    then(f"unfreeze explain {shlex.quote(str(run))} PHOTO")
