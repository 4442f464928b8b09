"""The command that tells scores: of a run, of its groups, and of ways to answer."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import changed, emit_json, number, reporter, say, scored, show, then
from unfreeze.app.fitting import Json
from unfreeze.app.judged import show_parts
from unfreeze.app.predicting import RunsArgument
from unfreeze.core.errors import RunError

_SHOWN = 20


def scores(
    run: RunsArgument,
    tta: Annotated[
        str | None,
        typer.Option(
            help="Do these views help, as `flip,rotate+5,crop-10`? Each fold's photos are predicted anew.",
            metavar="NAMES",
        ),
    ] = None,
    vote: Annotated[
        bool, typer.Option("--vote", help="Does it help if photos of a group agree on what groups share?")
    ] = False,
    by_group: Annotated[bool, typer.Option("--by-group", help="The scores of each group, the worst first.")] = False,
    json: Json = False,
) -> None:
    """The scores of a run, class by class, each with its interval.

    With RUN+RUN, --tta or --vote: whether a blend, further views or the vote of a group help, out of fold.

    Example: `unfreeze scores runs/masks --vote`
    """
    from unfreeze.core.runs import open_run
    from unfreeze.learn.blend import named_runs

    runs = named_runs(run)
    if by_group and len(runs) > 1:
        raise RunError(f"{run}: --by-group tells of one run.")
    if len(runs) > 1 or tta or vote:
        _helps(run, tta, vote, json)
        return
    if by_group:
        _groups(runs[0], json)
        return
    found = open_run(run).scores()
    if json:
        emit_json(found)
        return
    for title, key in (("Out of fold", "out_of_fold"), ("Test split", "test")):
        if key not in found:
            continue
        score, chance = found[key], found[key]["chance"]
        rows = [[name, scored(score[k]), number(chance[k]) if k in chance else ""] for name, k in _NAMES]
        heading = f"{title}: {score['photos']:,} photos, {score['groups']:,} groups, 95 % intervals over groups"
        show(
            heading,
            ["score", "value", f"always '{chance['class']}'"],
            rows,
            ["value", f"always '{chance['class']}'"],
        )
        per_class = sorted(score["per_class"], key=lambda c: c["f1"]["value"])
        rows = [
            [
                c["class"],
                f"{c['support']:,}",
                scored(c["f1"]),
                *(number(c[k]["value"]) for k in ("precision", "recall")),
            ]
            for c in per_class
        ]
        columns = ["class", "photos", "F1 (95 %)", "precision", "recall"]
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
    from unfreeze.study.helps import helps

    found = helps(run, tta=tta, vote=vote, reporter=reporter(json))
    if json:
        emit_json(found.described())
        return
    rows = [
        [
            way.name,
            *(scored(way.scores[k]) for k in ("macro_f1", "accuracy", "log_loss")),
            changed(**way.difference) if way.difference else "",
        ]
        for way in found.ways
    ]
    columns = ["out of fold", "macro F1", "accuracy", "log loss", "macro F1 changes by"]
    show(f"{found.photos:,} photos, {found.groups:,} groups, 95 % intervals over groups", columns, rows, columns[1:])
    if found.weights:
        say("Weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items()) + ".")
    say(found.sentence)
    options = (f" --tta {shlex.quote(tta)}" if tta else "") + (" --group COL" if vote else "")
    then(f"unfreeze predict {shlex.quote(run)} NEW_PHOTOS{options}")


def _groups(run: Path, json: bool) -> None:
    from unfreeze.study.helps import by_group

    table = by_group(run)
    if json:
        emit_json({"run": str(run), "groups": table.to_dict("records")})
        return
    rows = [
        [r["group"], r["photos"], r["right"], number(r["accuracy"]), r["mistake"]]
        for r in table.head(_SHOWN).to_dict("records")
    ]
    columns = ["group", "photos", "right", "accuracy", "commonest mistake"]
    show(f"{len(table):,} groups, out of fold, the worst first", columns, rows, columns[1:4])
    if len(table) > _SHOWN:
        say(f"... and {len(table) - _SHOWN:,} more: --json lists all.")
    whole = float((table["accuracy"] == 1).mean())
    say(f"All photos are right in {whole:.0%} of groups; of an average group {table['accuracy'].mean():.0%} are.")
    then(f"unfreeze scores {shlex.quote(str(run))} --vote")
