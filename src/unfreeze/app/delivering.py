"""The command that shows why photos got their class: explain."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import emit_json, reporter, say, show, then
from unfreeze.app.fitting import Json
from unfreeze.app.predicting import RunsArgument
from unfreeze.core.errors import StorageError


def explain(
    run: RunsArgument,
    images: Annotated[list[Path], typer.Argument(help="Photos, folders of photos, or tables.", metavar="IMAGE...")],
    out: Annotated[Path | None, typer.Option(help="The page (by default explain.html).", metavar="FILE")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="auto, cells, grad-cam, rollout or occlusion; auto takes what the run's networks have.", metavar="NAME"
        ),
    ] = "auto",
    json: Json = False,
) -> None:
    """Show where in photos their class was read, as the run's networks allow, and the training photos most like them.

    Cells are exact (probes); Grad-CAM and attention rollout look into trained networks; occlusion is for every run and
    for several as RUN+RUN. With --json a page is written only if --out names one.

    Example: `unfreeze explain runs/masks new/face.jpg new/other.jpg --out why.html`
    """
    target = out or (None if json else Path("explain.html"))
    if target and (target.suffix.lower() not in (".html", ".htm") or target.is_dir()):
        raise StorageError(f"--out {target}: is an HTML page; name a file {target.stem or 'explain'}.html.")
    from unfreeze.deliver.explain import explain as find
    from unfreeze.deliver.map_words import WORDS, apart, place_of

    found = find(run, images, target, method=method, reporter=reporter(json))
    if json:
        emit_json(found.described())
        return
    good = [photo for photo in found.photos if not photo.error]
    show(
        f"{len(good):,} photo(s) explained",
        ["photo", "class", "against", "map", "strongest", "apart"],
        [[p.path, p.label, p.runner_up, h.method, place_of(h) or "none", apart(h)] for p in good for h in p.heat],
        ["apart"],
    )
    for photo in found.photos:
        if photo.error:
            say(f"Not explained: {photo.path}: {photo.error}")
    for way in found.methods:
        say(f"{WORDS[way].name} ({WORDS[way].paper}) shows {WORDS[way].says} {WORDS[way].says_not}")
    if found.note:
        say(found.note)
    say(f"Page: {target}")
    then(f"unfreeze report {shlex.quote(str(found.lead.path))}")
