"""Commands about label issues: `suspects` lists them, `review` opens a page to correct them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.cli.console import emit_json, reporter, say, show, then
from unfreeze.cli.data import RunArgument
from unfreeze.cli.fit import Json
from unfreeze.core.errors import StorageError
from unfreeze.core.format import format_score, pluralize

if TYPE_CHECKING:
    from unfreeze.analysis.label_issues import LabelIssues

_SHOWN = 20


def label_issues(
    run: RunArgument,
    limit: Annotated[
        int, typer.Option(help="Rows to print; the file and --json have all.", min=1, metavar="N")
    ] = _SHOWN,
    truth: Annotated[
        Path | None, typer.Option(help="A table with path and true label, to see how many are found.", metavar="FILE")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the whole table as .csv.", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """List the labels that out-of-fold predictions contradict, most suspicious first, and estimate how many are wrong.

    The demo's truth file is found by itself. The run's report then shows them too.

    Example: `unfreeze label-issues runs/masks --out label_issues.csv`
    """
    from unfreeze.analysis.label_issues import find_run_label_issues
    from unfreeze.core.files import write_csv
    from unfreeze.reports.run_report import write_report

    if out and (out.suffix.lower() != ".csv" or out.is_dir()):
        raise StorageError(f"--out {out}: is a table; name a file {out.stem or 'label_issues'}.csv.")
    progress = reporter(json)
    found = find_run_label_issues(run, truth, progress)
    if out:
        write_csv(out, found.table)
    try:
        write_report(run)
    except StorageError as error:  # suspects of a read-only run can still be listed
        progress.say(f"The report was not updated: {error}")
    if json:
        emit_json({"run": str(run), **found.described()})
        return
    _print(found, limit)
    if out:
        say(f"Written: {out}, {len(found.table):,} rows")
    then(f"unfreeze review {shlex.quote(str(run))}")


def _print(found: LabelIssues, limit: int) -> None:
    from unfreeze.analysis.label_issues import count_sentence

    if found.table.empty:
        say(f"Nothing contradicts the label of any of {pluralize(found.photos, 'photo')}.")
        return
    top = found.table.head(limit)
    columns: dict[str, Any] = {
        "score": [format_score(v) for v in top["score"]],
        "path": top["path"],
        "label": top["label"],
        "suggested": top["suggested"],
    }
    if "true" in top:
        columns["true"] = ["" if t == given else t for t, given in zip(top["true"], top["label"], strict=True)]
    columns["reason"] = top["reason"]
    title = f"{len(found.table):,} of {found.photos:,} labels are contradicted; highest score first"
    show(title, list(columns), zip(*columns.values(), strict=True), ["score"])
    if len(found.table) > limit:
        say(f"... and {len(found.table) - limit:,} more (--limit, --out).")
    grouped = [name for name, by_group in found.attributes.items() if by_group]
    if grouped:
        say(f"The same in nearly all photos of a group, so evaluated by group: {', '.join(grouped)}.")
    say(f"{count_sentence(found.wrong, found.photos)}.")
    say(f"Scores order the photos and are no probabilities; they rest on {found.looked}.")
    if found.truth:
        t = found.truth
        say(
            f"Compared with {t['file']}: {t['planted']} labels are wrong; of the first {t['planted']} suspects "
            f"{t['found_at_k']} are ({format_score(t['precision_at_k'])}), the first {2 * t['planted']} hold "
            f"{t['found_at_2k']} of them ({format_score(t['recall_at_2k'])})."
        )


def review(
    run: RunArgument,
    corrections: Annotated[
        Path | None, typer.Option(help="Where corrections go; by default corrections.csv in the run.", metavar="FILE")
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            help="Images to review, most suspicious first; 0: about twice as many as are wrong, at least 20.",
            min=0,
            metavar="N",
        ),
    ] = 0,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; another one opens the page to that network.", metavar="ADDRESS"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535, metavar="N")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address; open no browser.")] = False,
) -> None:
    """Open a page that shows the suspects one by one; each decision goes to corrections.csv at once.

    Photos and labels are never changed. A later `unfreeze fit SOURCE --corrections FILE` applies the decisions.

    Example: `unfreeze review runs/masks`
    """
    from unfreeze.server.app import serve_review

    file = corrections or run / "corrections.csv"

    announced = False

    def ready(address: str) -> None:
        nonlocal announced
        if announced:
            say(f"For another browser: {address}")
            return
        announced = True
        say(f"Review: {address}")
        say(f"Corrections: {file}   (Ctrl-C ends; nothing is lost)")

    judged, command = serve_review(
        run, file, limit=limit, host=host, port=port, open_browser=not no_open, ready=ready, reporter=reporter()
    )
    say(f"{judged:,} correction(s) in {file}.")
    then(command)
