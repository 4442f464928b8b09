"""The commands that take a finished run further: export, explain."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import emit_json, reporter, say, show, size, then
from unfreeze.app.fitting import Json
from unfreeze.app.looking import RunArgument
from unfreeze.core.errors import StorageError


def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="openvino (.xml and .bin) or onnx (.onnx).", metavar="KIND")] = "openvino",
    out: Annotated[
        Path | None, typer.Option(help="Where to write (by default the run's name, here).", metavar="FILE")
    ] = None,
    views: Annotated[
        str | None, typer.Option(help="plain or flip; by default the views of training.", metavar="NAME")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Photos to check the file on, instead of the run's own.", metavar="IMAGES")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Json = False,
) -> None:
    """Write the run as one network for other programs, held against the run itself.

    Example: `unfreeze export runs/masks --to onnx --out masks.onnx`
    """
    from unfreeze.deliver.export import export as write

    found = write(run, to, out, views=views, photos=photos, force=force, reporter=reporter(json))
    if json:
        emit_json(found.described())
        return
    say(
        f"In {found.runtime} its probabilities differ from the run's by at most {found.difference:.1g} on "
        f"{found.photos} photos ({found.tolerance:g} is allowed); the class is the same in {found.same} of them."
    )
    say(f"Takes {', '.join(found.inputs)}: uint8 RGB, (N, size, size, 3). Written: {found.path}, {size(found.bytes)}")
    then(f"unfreeze explain {shlex.quote(str(run))} PHOTO")


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
