"""Commands that start a web server: `serve` and `studio`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unfreeze.cli.console import emit_json, reporter, say
from unfreeze.cli.fit import Json
from unfreeze.cli.predict import RunsArgument

if TYPE_CHECKING:
    from unfreeze.server.serve.launch import Address


def serve(
    run: RunsArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another one opens the run to that network.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535, metavar="N")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help="What callers must send as `Authorization: Bearer`, or none. Left out, one is made up where the host "
            "is not this machine. Also from $UNFREEZE_TOKEN, which other users of this machine do not see.",
            envvar="UNFREEZE_TOKEN",
            show_envvar=False,
            metavar="TEXT|none",
        ),
    ] = None,
    max_request_mb: Annotated[int, typer.Option(help="Megabytes of one request.", min=1, metavar="MB")] = 32,
    files: Annotated[int, typer.Option(help="Photos in one request.", min=1, metavar="N")] = 64,
    megapixels: Annotated[
        int, typer.Option(help="Of one photo; never more than the run's own limit.", min=1, metavar="N")
    ] = 50,
    timeout: Annotated[
        int,
        typer.Option(
            help="Seconds from the header of a request to its response; then it is rejected or closed.",
            min=1,
            metavar="N",
        ),
    ] = 20,
    queue_size: Annotated[
        int, typer.Option(help="Images held at once; further requests get status 503.", min=1, metavar="N")
    ] = 256,
    queue_mb: Annotated[int, typer.Option(help="Megabytes of photos held at once.", min=1, metavar="MB")] = 256,
    connections: Annotated[
        int, typer.Option(help="Connections answered at once; further ones get status 503.", min=1, metavar="N")
    ] = 128,
    max_batch_size: Annotated[
        int, typer.Option(help="Maximum number of images per forward pass.", min=1, metavar="N")
    ] = 16,
    public_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name of requests to accept besides this machine's, as of a proxy; repeatable; '*': any.",
            metavar="NAME",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Serve the predictions of a run over HTTP: POST /predict, a page at /, /healthz, /metrics, /docs.

    Several runs as RUN+RUN answer together. Photos are held in memory only; none is written or logged.

    Example: `unfreeze serve runs/masks --port 8000`
    """
    from unfreeze.server.serve.launch import serve as answer
    from unfreeze.server.serve.limits import Limits

    limits = Limits(
        body_mb=max_request_mb,
        files=files,
        megapixels=megapixels,
        seconds=timeout,
        waiting=queue_size,
        waiting_mb=queue_mb,
        connections=connections,
        batch=max_batch_size,
    )

    def ready(address: Address) -> None:
        if json:
            emit_json(
                {
                    "url": address.url,
                    "base": address.base,
                    "token": address.token,
                    **address.about,
                    "limits": address.limits.described(),
                }
            )
            return
        _tell(address)

    answer(
        run,
        host,
        port,
        token,
        limits,
        public_hosts=public_host or (),
        ready=ready,
        entered=None if json else lambda address: say(f"Page for another browser: {address}"),
        reporter=reporter(json),
    )


def _tell(address: Address) -> None:
    """Print the runs that are served, the addresses and the limits."""
    runs = ", ".join(
        one["name"] + (f" ({one['weight']:.2f})" if len(address.about["runs"]) > 1 else "")
        for one in address.about["runs"]
    )
    say(f"Serves: {runs}, {len(address.about['classes'])} classes")
    say(f"Page: {address.url}")
    header = f" -H 'Authorization: Bearer {address.token}'" if address.token else ""
    say(f"API: curl{header} -F file=@photo.jpg {address.base}/predict   (described at {address.base}/docs)")
    say(f"Limits: {address.limits.describe()}")
    say("Ctrl-C ends it.")


def studio(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs; it may not exist yet.")] = Path(
        "runs"
    ),
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Dataset to show, in addition to those of the runs; repeatable.", metavar="SOURCE"),
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
    from unfreeze.server.studio.app import studio as open_studio

    announced = False

    def ready(address: str) -> None:
        nonlocal announced
        if announced:
            say(f"For another browser: {address}")
            return
        announced = True
        say(f"Studio: {address}")
        say(f"Runs: {folder}   (Ctrl-C ends it; its jobs are interrupted, and can be resumed)")

    open_studio(folder, data or (), host=host, port=port, open_browser=not no_open, ready=ready)
