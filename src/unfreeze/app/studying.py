"""The command that opens the studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import say


def studio(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs; it need not be there yet.")] = Path(
        "runs"
    ),
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Photos to show and work on, beside those of the runs; again.", metavar="SOURCE"),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; another one opens the studio to that network.", metavar="ADDRESS"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535, metavar="N")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address; open no browser.")] = False,
) -> None:
    """Open one local page over all runs: photos, scores, curves, review, prediction, and jobs that it starts.

    Ctrl-C ends it and interrupts its jobs; unfinished runs can be resumed.

    Example: `unfreeze studio runs --data photos/`
    """
    from unfreeze.deliver.web.studio import studio as open_studio

    def ready(address: str) -> None:
        say(f"Studio: {address}")
        say(f"Runs: {folder}   (Ctrl-C ends it; its jobs are interrupted, and can be resumed)")

    open_studio(folder, data or (), host=host, port=port, open_browser=not no_open, ready=ready)
