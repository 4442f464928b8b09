"""Commands about datasets, run folders and the cache: `check`, `report`, `runs` and `cache`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.cli.console import complain, emit_json, reporter, say, show, size, then
from unfreeze.cli.fit import (
    Encoding,
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
from unfreeze.core.errors import RecipeError, RunError, did_you_mean
from unfreeze.core.format import format_estimate, pluralize

if TYPE_CHECKING:
    import pandas as pd

    from unfreeze.analysis.dataset_shift import DatasetComparison
    from unfreeze.data.face_stats import FaceStats


RunArgument = Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN")]


def check(
    source: SourceArgument,
    label: Label = None,
    group: Group = None,
    group_regex: GroupRegex = None,
    path: PathColumn = None,
    root: Root = None,
    encoding: Encoding = None,
    split: Split = None,
    reader: ReaderName = None,
    fail_on: Annotated[
        str | None,
        typer.Option(help="Exit 1 if there is a finding this severe: error, warning or info.", metavar="NAME"),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Write the result as one HTML page, with the images of the findings.", metavar="FILE"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--compare-to",
            help="Images to compare with: can a classifier tell them from those of SOURCE?",
            metavar="TEST",
        ),
    ] = None,
    faces: Annotated[
        bool, typer.Option("--faces", help="Detect faces: images without a face, size and position.")
    ] = False,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Face detector: retinaface (default), or an .onnx file with the same outputs. Implies --faces.",
            metavar="NAME|FILE",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check the images: unreadable files, outliers, duplicates, contradicting labels, small classes, shortcuts.

    Example: `unfreeze check photos/ --report eda.html --fail-on error`
    """
    from unfreeze.core.dataset import SEVERITIES, findings_frame

    if fail_on is not None and fail_on not in SEVERITIES:
        raise RecipeError(f"--fail-on {fail_on}: known are {', '.join(SEVERITIES)}.{did_you_mean(fail_on, SEVERITIES)}")
    from unfreeze.data.checks import run_checks
    from unfreeze.data.readers import read

    started = time.perf_counter()
    given = source_options(source, label, group, group_regex, path, root, split, reader, encoding)
    chosen = make_recipe(None, None, None, given)
    progress = reporter(json)
    by = detector or ("retinaface" if faces else "")
    if by:
        from unfreeze.data.face_detectors import find_detector

        find_detector(by).open()  # report a missing detector before any work
    if page and page.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"--report {page}: the page is HTML; give a name that ends in .html.")
    photos, looks = run_checks(read(source, chosen.source), reporter=progress, slow=True)
    compared = None
    if against:
        from unfreeze.analysis.dataset_shift import compare_datasets as compare

        compared = compare(photos, against, chosen, progress)
        photos = photos.with_table(photos.table, *compared.findings())
    found = None
    if by:
        from unfreeze.data.face_stats import faces_of

        found = faces_of(photos, looks, by, reporter=progress)
    if page:
        from unfreeze.reports.data_report import write_data_report

        write_data_report(photos, page, faces=found, against=compared, reporter=progress)
    table = findings_frame(photos.findings)
    if json:
        content = {"photos": len(photos), "choice": photos.choice, "findings": table.to_dict("records")}
        content |= {"faces": found.described()} if found else {}
        content |= {"against": compared.json()} if compared else {}
        emit_json(content | ({"report": str(page)} if page else {}))
    else:
        say(photos.choice)
        list_findings(table)
        if found:
            show_faces(found)
        if compared:
            show_against(compared)
        if page:
            say(f"Page: {page}")
        say(f"{pluralize(len(photos), 'photo')} checked in {time.perf_counter() - started:.1f} s.")
        then(_fit_command(source, given))
    if fail_on and table["severity"].map(SEVERITIES.index).ge(SEVERITIES.index(fail_on)).any():
        complain(f"there are findings at or above --fail-on {fail_on}.")
        raise typer.Exit(1)


def _fit_command(source: str, given: dict[str, Any]) -> str:
    """Command that fits the source with the options that this check has read it with."""
    parts = ["unfreeze", "fit", source]
    for key, value in given.items():
        name = {"source.path_column": "path"}.get(key, key.removeprefix("source.").replace("_", "-"))
        if key != "source.path" and value:
            for one in value if isinstance(value, tuple) else (str(value),):
                parts += [f"--{name}", str(one)]
    return shlex.join(parts)


def show_against(found: DatasetComparison) -> None:
    """Print the images of both datasets that are least like the other dataset, and a summary."""
    for side, table in (("Training", found.training), ("Test", found.test)):
        rows = [[row.path, f"{row.probability:.2f}"] for row in table.head(5).itertuples()]
        show(f"{side} photos least like the other set", ["path", "probability of test"], rows, ["probability of test"])
    say(found.sentence)


def list_findings(table: pd.DataFrame) -> None:
    """Print findings grouped by check: what was found, where, and what to do."""
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
        typer.Option("--explain", help="Add heatmaps of trained networks to the most confident errors (slow)."),
    ] = False,
) -> None:
    """Write the report of a run again: one HTML file that works offline.

    Example: `unfreeze report runs/masks`
    """
    from unfreeze.core.runs import open_run
    from unfreeze.reports.run_report import write_report

    say(f"Report: {write_report(open_run(run).path, explain=explain, reporter=reporter(False))}")
    then(f"unfreeze scores {shlex.quote(str(run))}")


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"), json: Json = False
) -> None:
    """List the runs in a folder, with their scores.

    Example: `unfreeze runs`
    """
    from unfreeze.core.runs import list_runs

    if not folder.is_dir() and folder != Path("runs"):  # before the first fit there is no folder `runs`
        raise RunError(f"{folder}: no such folder. Give one that holds runs.")
    found = list_runs(folder)
    if json:
        emit_json(found)
        return
    rows = [
        [
            r["run"],
            f"{r['photos']:,}" if r.get("photos") else "",
            format_estimate(r["macro_f1"]) if r.get("macro_f1") else "",
            format_estimate(r["accuracy"]) if r.get("accuracy") else "",
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
    """Show the cache: features, image statistics, converted networks; bytes per image.

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
    say("Everything is recomputed when needed: `unfreeze cache --clear` frees the space.")


def _cached_what(about: dict[str, Any]) -> str:
    """Describe a store: `tf_efficientnet_lite0 last:5 3x3 224px flip f32`, or the description in its metadata."""
    shapes = {"backbone": "{}", "stages": "{}", "grid": "{0}x{0}", "size": "{}px", "view": "{}", "precision": "{}"}
    return " ".join(shape.format(about[k]) for k, shape in shapes.items() if k in about) or str(about.get("what", ""))


def show_faces(found: FaceStats) -> None:
    """Print the face statistics per class and in total, and a summary."""
    rows: list[dict[Any, Any]] = [*found.classes.to_dict("records"), found.total]
    columns = ["class", "photos", "no face", "share (95%)", "several", "area", "side", "x", "y"]
    cells = [
        [
            row["label"] or "all",
            f"{row['photos']:,}",
            f"{row['without']:,}",
            f"{100 * row['share']:.1f}% [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row["photos"] else "",
            f"{row['several']:,}",
            _quartiles(row, "area"),
            _quartiles(row, "side"),
            _spread(row, "x"),
            _spread(row, "y"),
        ]
        for row in rows
    ]
    title = (
        "Faces. Of the largest in each photo, in %: its area of the photo's and its side of the photo's short side, as "
        "median (quartiles); its center from the left (x) and the top (y), as mean ± deviation"
    )
    show(title, columns, cells, columns[1:])
    say(found.sentence())
    unread = len(found.photos) - found.total["photos"]
    if unread:
        say(f"{unread:,} photo(s) could not be read and are in none of these figures.")
    say("")


def _quartiles(row: dict[str, Any], what: str) -> str:
    low, middle, high = (100 * row[f"{what}_{q}"] for q in ("q25", "median", "q75"))
    return "" if middle != middle else f"{middle:.0f} ({low:.0f}–{high:.0f})"


def _spread(row: dict[str, Any], what: str) -> str:
    mean, deviation = 100 * row[f"{what}_mean"], 100 * row[f"{what}_sd"]
    return "" if mean != mean else f"{mean:.0f} ± {deviation:.0f}"
