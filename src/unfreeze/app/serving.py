"""The command that answers over HTTP: serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unfreeze.app.console import emit_json, reporter, say
from unfreeze.app.fitting import Json
from unfreeze.app.predicting import RunsArgument

if TYPE_CHECKING:
    from unfreeze.deliver.web.serving import Address


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
    body: Annotated[int, typer.Option(help="Megabytes of one request.", min=1, metavar="MB")] = 32,
    files: Annotated[int, typer.Option(help="Photos in one request.", min=1, metavar="N")] = 64,
    megapixels: Annotated[
        int, typer.Option(help="Of one photo; never more than the run's own limit.", min=1, metavar="N")
    ] = 50,
    seconds: Annotated[
        int,
        typer.Option(help="From a request's head to its answer; then it is refused, or cut off.", min=1, metavar="N"),
    ] = 20,
    waiting: Annotated[
        int, typer.Option(help="Photos held at once; more are told to come again.", min=1, metavar="N")
    ] = 256,
    memory: Annotated[int, typer.Option(help="Megabytes of photos held at once.", min=1, metavar="MB")] = 256,
    connections: Annotated[
        int, typer.Option(help="Connections answered at once; more are told to come again.", min=1, metavar="N")
    ] = 128,
    batch: Annotated[
        int, typer.Option(help="Photos that pass the networks together at most.", min=1, metavar="N")
    ] = 16,
    json: Json = False,
) -> None:
    """Answer over HTTP with a run's predictions: POST /predict, a page at /, /healthz, /metrics, /docs.

    Several runs as RUN+RUN answer together. Photos are held in memory only; none is written or logged.

    Example: `unfreeze serve runs/masks --port 8000`
    """
    from unfreeze.deliver.web.serving import Limits
    from unfreeze.deliver.web.serving import serve as answer

    limits = Limits(
        body_mb=body,
        files=files,
        megapixels=megapixels,
        seconds=seconds,
        waiting=waiting,
        waiting_mb=memory,
        connections=connections,
        batch=batch,
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

    answer(run, host, port, token, limits, ready=ready, reporter=reporter(json))


def _tell(address: Address) -> None:
    """What is served, where, and what it takes at most."""
    runs = ", ".join(
        one["name"] + (f" ({one['weight']:.2f})" if len(address.about["runs"]) > 1 else "")
        for one in address.about["runs"]
    )
    say(f"Serves: {runs}, {len(address.about['classes'])} classes")
    say(f"Page: {address.url}")
    header = f" -H 'Authorization: Bearer {address.token}'" if address.token else ""
    say(f"API: curl{header} -F file=@photo.jpg {address.base}/predict   (described at {address.base}/docs)")
    say(f"Limits: {address.limits.told()}")
    say("Ctrl-C ends it.")
