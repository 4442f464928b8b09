"""Command `scores`: scores of a run, of its groups, and of ensembles, test-time augmentation and group voting."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.cli.console import changed, emit_json, reporter, say, show, show_parts, then
from unfreeze.cli.fit import Json
from unfreeze.cli.predict import RunsArgument
from unfreeze.core.errors import RunError
from unfreeze.core.format import format_estimate, format_score, pluralize
from unfreeze.core.messages import caveats

_SHOWN = 20


def scores(
    run: RunsArgument,
    tta: Annotated[
        str | None,
        typer.Option(
            help="Do these views help, as `flip,rotate+5,crop-10`? Each fold's images are predicted again.",
            metavar="NAMES",
        ),
    ] = None,
    vote: Annotated[
        bool, typer.Option("--group-vote", help="Does it help if photos of a group agree on what groups share?")
    ] = False,
    by_group: Annotated[bool, typer.Option("--by-group", help="The scores of each group, the worst first.")] = False,
    json: Json = False,
) -> None:
    """The scores of a run, class by class, each with its interval.

    With RUN+RUN, --tta or --group-vote: whether a blend, further views or the vote of a group help, out of fold.

    Example: `unfreeze scores runs/masks --group-vote`
    """
    from unfreeze.core.runs import open_run, selection_of
    from unfreeze.inference.ensemble import parse_run_spec

    runs = parse_run_spec(run)
    if by_group and len(runs) > 1:
        raise RunError(f"{run}: --by-group takes a single run.")
    if len(runs) > 1 or tta or vote:
        _helps(run, tta, vote, json)
        return
    if by_group:
        _groups(runs[0], json)
        return
    opened = open_run(run)
    found = opened.scores()
    if json:
        emit_json(found)
        return
    rows = [[name, format_estimate(found[key])] for name, key in _NAMES[:3]]
    show("Delivered model, estimated for new images", ["score", "value"], rows, ["value"])
    for caveat in caveats(found, selection_of(opened.path)):
        say(caveat)
    for title, key in (("Out of fold", "out_of_fold"), ("Test split", "test")):
        if key not in found:
            continue
        score, chance = found[key], found[key]["chance"]
        rows = [[name, format_estimate(score[k]), format_score(chance[k]) if k in chance else ""] for name, k in _NAMES]
        counts = f"{pluralize(score['photos'], 'photo')}, {pluralize(score['groups'], 'group')}"
        heading = f"{title}: {counts}, 95% intervals over groups"
        show(
            heading,
            ["score", "value", "chance"],
            rows,
            ["value", "chance"],
        )
        say(f"Chance: macro F1 of {chance['macro_f1_of']}, accuracy of always '{chance['class']}'.")
        if few := score["log_loss_clipped"]:
            say(
                f"{pluralize(few, 'photo')}: the true class has a probability below 1.2e-7, of which log loss "
                "makes 15.9."
            )
        per_class = sorted(score["per_class"], key=lambda c: c["f1"]["value"])
        rows = [
            [
                c["class"],
                f"{c['support']:,}",
                format_estimate(c["f1"]),
                *(format_score(c[k]["value"]) for k in ("precision", "recall")),
            ]
            for c in per_class
        ]
        columns = ["class", "photos", "F1 (95%)", "precision", "recall"]
        show("Worst first", columns, rows, columns[1:])
        say(
            f"Right in {score['accuracy']['value']:.1%} of photos, where always saying '{chance['class']}' is in "
            f"{chance['accuracy']:.1%}; hardest is '{per_class[0]['class']}'."
        )
    if parts := found.get("parts"):
        show_parts(parts)
    then(f"unfreeze report {shlex.quote(run)}")


_NAMES = (
    ("macro F1", "macro_f1"),
    ("accuracy", "accuracy"),
    ("log loss", "log_loss"),
    ("calibration error", "ece"),
)


def _helps(run: str, tta: str | None, vote: bool, json: bool) -> None:
    from unfreeze.analysis.compare_variants import compare_variants

    found = compare_variants(run, tta=tta, vote=vote, reporter=reporter(json))
    if json:
        emit_json(found.described())
        return
    rows = [
        [
            way.name,
            *(format_estimate(way.scores[k]) for k in ("macro_f1", "accuracy", "log_loss")),
            changed(**way.difference) if way.difference else "",
        ]
        for way in found.ways
    ]
    columns = ["out of fold", "macro F1", "accuracy", "log loss", "macro F1 changes by"]
    counts = f"{pluralize(found.photos, 'photo')}, {pluralize(found.groups, 'group')}"
    show(f"{counts}, 95% intervals over groups", columns, rows, columns[1:])
    if found.weights:
        say("Weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items()) + ".")
    say(found.sentence)
    options = (f" --tta {shlex.quote(tta)}" if tta else "") + (" --group COL" if vote else "")
    then(f"unfreeze predict {shlex.quote(run)} NEW_PHOTOS{options}")


def _groups(run: Path, json: bool) -> None:
    from unfreeze.analysis.compare_variants import by_group

    table = by_group(run)
    if json:
        emit_json({"run": str(run), "groups": table.to_dict("records")})
        return
    rows = [
        [r["group"], r["photos"], r["right"], format_score(r["accuracy"]), r["mistake"]]
        for r in table.head(_SHOWN).to_dict("records")
    ]
    columns = ["group", "photos", "right", "accuracy", "commonest mistake"]
    show(f"{len(table):,} groups, out of fold, the worst first", columns, rows, columns[1:4])
    if len(table) > _SHOWN:
        say(f"... and {len(table) - _SHOWN:,} more: --json lists all.")
    whole = float((table["accuracy"] == 1).mean())
    say(f"All photos are right in {whole:.0%} of groups; of an average group {table['accuracy'].mean():.0%} are.")
    then(f"unfreeze scores {shlex.quote(str(run))} --group-vote")
