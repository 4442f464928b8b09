"""The commands about wrong labels: suspects lists them, review lets a person decide."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unfreeze.app.console import emit_json, number, reporter, say, show, then
from unfreeze.app.fitting import Json
from unfreeze.app.looking import RunArgument
from unfreeze.core.errors import StorageError

if TYPE_CHECKING:
    from unfreeze.study.suspects import Suspects

_SHOWN = 20


def suspects(
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
    """List the labels that are likely wrong, most suspicious first, each with its reason.

    The demo's truth file is found by itself. The run's report then shows them too.

    Example: `unfreeze suspects runs/masks --out suspects.csv`
    """
    from unfreeze.core.cells import write_csv
    from unfreeze.deliver.report import write_report
    from unfreeze.study.suspects import find_suspects

    if out and (out.suffix.lower() != ".csv" or out.is_dir()):
        raise StorageError(f"--out {out}: is a table; name a file {out.stem or 'suspects'}.csv.")
    voice = reporter(json)
    found = find_suspects(run, truth, voice)
    if out:
        write_csv(out, found.table)
    try:
        write_report(run)
    except StorageError as error:  # a run that may only be read still has suspects
        voice.say(f"The report stays as it was: {error}")
    if json:
        emit_json({"run": str(run), **found.described()})
        return
    _print(found, limit)
    if out:
        say(f"Written: {out}, {len(found.table):,} rows")
    then(f"unfreeze review {shlex.quote(str(run))}")


def _print(found: Suspects, limit: int) -> None:
    if found.table.empty:
        say(f"Nothing speaks against the label of any of {found.photos:,} photos.")
        return
    top = found.table.head(limit)
    columns: dict[str, Any] = {
        "score": [number(v) for v in top["score"]],
        "path": top["path"],
        "label": top["label"],
        "suggested": top["suggested"],
    }
    if "true" in top:
        columns["true"] = ["" if t == given else t for t, given in zip(top["true"], top["label"], strict=True)]
    columns["reason"] = top["reason"]
    title = f"{len(found.table):,} of {found.photos:,} labels are suspect"
    show(title, list(columns), zip(*columns.values(), strict=True), ["score"])
    if len(found.table) > limit:
        say(f"... and {len(found.table) - limit:,} more (--limit, --out).")
    grouped = [name for name, by_group in found.attributes.items() if by_group]
    if grouped:
        say(f"The same in nearly all photos of a group, so judged by group: {', '.join(grouped)}.")
    say(f"About {found.expected:.0f} labels are wrong, if the scores mean what they say ({found.looked}).")
    if found.truth:
        t = found.truth
        say(
            f"Held against {t['file']}: {t['planted']} labels are wrong; of the first {t['planted']} suspects "
            f"{t['found_at_k']} are ({number(t['precision_at_k'])}), the first {2 * t['planted']} hold "
            f"{t['found_at_2k']} of them ({number(t['recall_at_2k'])})."
        )


def review(
    run: RunArgument,
    verdicts: Annotated[
        Path | None, typer.Option(help="Where verdicts go; by default verdicts.csv in the run.", metavar="FILE")
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            help="Photos to judge, most suspicious first; 0: about twice as many as are wrong.", min=0, metavar="N"
        ),
    ] = 0,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; another one opens the page to that network.", metavar="ADDRESS"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535, metavar="N")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address; open no browser.")] = False,
) -> None:
    """Open a page that shows the suspects one by one; each decision goes to verdicts.csv at once.

    Photos and labels are never changed. A later `unfreeze fit SOURCE --verdicts FILE` obeys the decisions.

    Example: `unfreeze review runs/masks`
    """
    from unfreeze.deliver.web.server import serve_review

    file = verdicts or run / "verdicts.csv"

    def ready(address: str) -> None:
        say(f"Review: {address}")
        say(f"Verdicts: {file}   (Ctrl-C ends; nothing is lost)")

    judged, command = serve_review(
        run, file, limit=limit, host=host, port=port, open_browser=not no_open, ready=ready, reporter=reporter()
    )
    say(f"{judged:,} verdict(s) in {file}.")
    then(command)
