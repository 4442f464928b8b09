"""The command that shows why photos got their class: explain."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import emit_json, reporter, say, show, then
from unfreeze.app.fitting import Json
from unfreeze.app.looking import RunArgument
from unfreeze.core.errors import StorageError


def explain(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(help="Photos, folders of photos, or tables.", metavar="IMAGE...")],
    out: Annotated[Path | None, typer.Option(help="The page (by default explain.html).", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Show what the model read where in photos, exactly, and the training photos most like them.

    With --json a page is written only if --out names one.

    Example: `unfreeze explain runs/masks new/face.jpg new/other.jpg --out why.html`
    """
    target = out or (None if json else Path("explain.html"))
    if target and (target.suffix.lower() not in (".html", ".htm") or target.is_dir()):
        raise StorageError(f"--out {target}: is an HTML page; name a file {target.stem or 'explain'}.html.")
    from unfreeze.deliver.explain import explain as find

    found = find(run, images, target, reporter=reporter(json))
    if json:
        emit_json(found.described())
        return
    good = [photo for photo in found.photos if not photo.error]
    show(
        f"{len(good):,} photo(s) explained; the sum of the map is what the cells add for the class",
        ["photo", "class", "against", "logits apart", "of it the map"],
        [[p.path, p.label, p.runner_up, f"{p.margin():+.2f}", f"{p.margin() - p.start():+.2f}"] for p in good],
        ["logits apart", "of it the map"],
    )
    for photo in found.photos:
        if photo.error:
            say(f"Not explained: {photo.path}: {photo.error}")
    if found.note:
        say(found.note)
    say(f"Page: {target}")
    then(f"unfreeze report {shlex.quote(str(run))}")
