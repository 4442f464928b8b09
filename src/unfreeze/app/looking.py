"""The commands that look around: check, scores, report, runs, cache."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.app.console import complain, emit_json, reporter, say, scored, show, size, then
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
from unfreeze.core.errors import RecipeError, RunError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from unfreeze.study.against import Against

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
        str | None,
        typer.Option(help="Exit 1 if there is a finding this severe: error, warning or info.", metavar="NAME"),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--report", help="Write all of it as one HTML page with the photos it names.", metavar="FILE"),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Photos to be judged on: can a classifier tell them from SOURCE's?", metavar="TEST"),
    ] = None,
    faces: Annotated[
        bool, typer.Option("--faces", help="Look for faces: in how many photos none is found, how large, where.")
    ] = False,
    detector: Annotated[
        str | None,
        typer.Option(
            help="What finds faces: retinaface (default), or an .onnx file like it. Asks for --faces.",
            metavar="NAME|FILE",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check the photos: unreadable, odd, duplicated, contradicting, too few; what else than the object tells the class.

    Example: `unfreeze check photos/ --report eda.html --fail-on error`
    """
    from unfreeze.core.tables import SEVERITIES, findings_table

    if fail_on is not None and fail_on not in SEVERITIES:
        raise RecipeError(f"--fail-on {fail_on}: known are {', '.join(SEVERITIES)}.{nearest(fail_on, SEVERITIES)}")
    from unfreeze.data.checks import run_checks
    from unfreeze.data.readers import read

    started = time.perf_counter()
    given = source_options(source, label, group, group_regex, path, root, split, reader)
    chosen = make_recipe(None, None, None, given)
    voice = reporter(json)
    by = detector or ("retinaface" if faces else "")
    if by:
        from unfreeze.data.detectors import find_detector

        find_detector(by).open()  # so that what is missing is said before the work
    if page and page.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"--report {page}: the page is HTML; give a name that ends in .html.")
    photos, looks = run_checks(read(source, chosen.source), reporter=voice, slow=True)
    compared = None
    if against:
        from unfreeze.study.against import against as compare

        compared = compare(photos, against, chosen, voice)
        photos = photos.with_table(photos.table, *compared.findings())
    found = None
    if by:
        from unfreeze.data.faces import faces_of

        found = faces_of(photos, looks, by, reporter=voice)
    if page:
        from unfreeze.deliver.eda import write_eda

        write_eda(photos, page, faces=found, against=compared, reporter=voice)
    table = findings_table(photos.findings)
    if json:
        told = {"photos": len(photos), "choice": photos.choice, "findings": table.to_dict("records")}
        told |= {"faces": found.described()} if found else {}
        told |= {"against": compared.json()} if compared else {}
        emit_json(told | ({"report": str(page)} if page else {}))
    else:
        say(photos.choice)
        list_findings(table)
        if found:
            from unfreeze.app.facing import show_faces

            show_faces(found)
        if compared:
            show_against(compared)
        if page:
            say(f"Page: {page}")
        say(f"{len(photos):,} photos checked in {time.perf_counter() - started:.1f} s.")
        then(_fit_command(source, given))
    if fail_on and table["severity"].map(SEVERITIES.index).ge(SEVERITIES.index(fail_on)).any():
        complain(f"found what --fail-on {fail_on} asks to fail on.")
        raise typer.Exit(1)


def _fit_command(source: str, given: dict[str, Any]) -> str:
    """The fit that reads the source as this check has read it."""
    parts = ["unfreeze", "fit", source]
    for key, value in given.items():
        name = {"source.path_column": "path"}.get(key, key.removeprefix("source.").replace("_", "-"))
        if key != "source.path" and value:
            for one in value if isinstance(value, tuple) else (str(value),):
                parts += [f"--{name}", str(one)]
    return shlex.join(parts)


def show_against(found: Against) -> None:
    """The photos least like the other set, on both sides, and the sentence."""
    for side, table in (("Training", found.training), ("Test", found.test)):
        rows = [[row.path, f"{row.probability:.2f}"] for row in table.head(5).itertuples()]
        show(f"{side} photos least like the other set", ["path", "probability of test"], rows, ["probability of test"])
    say(found.sentence)


def list_findings(table: pd.DataFrame) -> None:
    """Findings one under the other, those of a kind together: what, where, what to do."""
    if not len(table):
        say("Nothing found.")
    for kind, some in table.groupby(["severity", "check"], sort=False):
        say("")
        say(": ".join(map(str, kind)) + (f" ({len(some):,})" if len(some) > 1 else ""))
        for path, message in zip(some["path"].head(5), some["message"].head(5), strict=True):
            say(f"  {path}: {message}" if path else f"  {message}")
        if len(some) > 5:
            say(f"  ... and {len(some) - 5:,} more: --json lists all")
        say(f"  What to do: {some['fix'].iloc[0]}")
    say("")


def report(
    run: RunArgument,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="With maps of trained networks over the surest mistakes, which takes time."),
    ] = False,
) -> None:
    """Write the run's report anew: one HTML file that needs no network.

    Example: `unfreeze report runs/masks`
    """
    from unfreeze.core.runs import open_run
    from unfreeze.deliver.report import write_report

    say(f"Report: {write_report(open_run(run).path, explain=explain, reporter=reporter(False))}")
    then(f"unfreeze scores {shlex.quote(str(run))}")


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"), json: Json = False
) -> None:
    """List the runs in a folder, with their scores.

    Example: `unfreeze runs`
    """
    from unfreeze.core.runs import list_runs

    if not folder.is_dir() and folder != Path(
        "runs"
    ):  # before the first fit there is no `runs`, and that is no mistake
        raise RunError(f"{folder}: no such folder. Give one that holds runs.")
    found = list_runs(folder)
    if json:
        emit_json(found)
        return
    rows = [
        [
            r["run"],
            f"{r['photos']:,}" if r.get("photos") else "",
            scored(r["macro_f1"]) if r.get("macro_f1") else "",
            scored(r["accuracy"]) if r.get("accuracy") else "",
            (r.get("finished") or r["status"])[:16].replace("T", " "),
        ]
        for r in found
    ]
    columns = ["run", "photos", "macro F1", "accuracy", "finished (UTC)"]
    show(f"{len(rows)} run(s) in {folder}", columns, rows, columns[1:])
    whole = [r["run"] for r in found if r["status"] == "finished"]
    then(f"unfreeze scores {shlex.quote(whole[-1])}" if whole else "unfreeze fit SOURCE")


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
        if json:
            emit_json({"folder": str(cache_root()), "freed": freed})
        else:
            say(f"{size(freed)} freed in {cache_root()}.")
        return
    found = cache_table()
    if json:
        emit_json({"folder": str(cache_root()), "stores": found})
        return
    rows = [
        [
            s["kind"],
            _cached_what(s["about"]),
            f"{s['rows']:,}" if s["rows"] else "",
            size(s["bytes"]),
            f"{s['bytes'] / s['rows']:,.0f}" if s["rows"] else "",
        ]
        for s in found
    ]
    show(
        f"{cache_root()}: {size(sum(s['bytes'] for s in found))}",
        ["kind", "what", "photos", "size", "bytes a photo"],
        rows,
        ["photos", "size", "bytes a photo"],
    )
    say("All of it is made again where it is needed: `unfreeze cache --clear` frees the space.")


def _cached_what(about: dict[str, Any]) -> str:
    """`tf_efficientnet_lite0 last:5 3x3 224px flip f32`, or what the store says of itself."""
    shapes = {"backbone": "{}", "stages": "{}", "grid": "{0}x{0}", "size": "{}px", "view": "{}", "precision": "{}"}
    return " ".join(shape.format(about[k]) for k, shape in shapes.items() if k in about) or str(about.get("what", ""))
