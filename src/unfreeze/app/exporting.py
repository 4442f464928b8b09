"""The command that takes a finished run to other programs: export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unfreeze.app.console import emit_json, reporter, say, size, then
from unfreeze.app.fitting import Json
from unfreeze.app.looking import RunArgument


def export(
    run: RunArgument,
    to: Annotated[
        str, typer.Option(help="openvino (.xml and .bin), onnx (.onnx) or torchscript (.pt).", metavar="KIND")
    ] = "openvino",
    out: Annotated[
        Path | None, typer.Option(help="Where to write (by default the run's name, here).", metavar="FILE")
    ] = None,
    views: Annotated[
        str | None, typer.Option(help="plain or flip; by default the views of training.", metavar="NAME")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(help="Only what was learnt for this fold, a smaller file.", metavar="K")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="In whole numbers of 8 bits, if that costs no more than --allow.")
    ] = False,
    allow: Annotated[
        float, typer.Option(help="Points of macro F1, out of fold, that --int8 may cost.", metavar="POINTS")
    ] = 0.5,
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

    voice = reporter(json)
    found = write(
        run, to, out, views=views, photos=photos, fold=fold, int8=int8, allow=allow, force=force, reporter=voice
    )
    if json:
        emit_json(found.described())
        return
    allowed = "" if found.int8 else f" ({found.tolerance:g} is allowed)"
    say(
        f"In {found.runtime} its probabilities differ from the run's by at most {found.difference:.1g}{allowed}, "
        f"{found.mean_difference:.1g} on average, on {found.photos} photos; the class is the same in {found.same} of "
        f"them. {found.images_per_second:.0f} images/s here."
    )
    if found.int8:
        cost, speed, held = found.int8["macro_f1"], found.int8["images_per_second"], found.int8["bytes"]
        difference = {key: 100 * value for key, value in cost["difference"].items()}
        say(
            f"int8 against float32 on {found.int8['photos']:,} out-of-fold photos: macro F1 {cost['int8']:.3f} against "
            f"{cost['float32']:.3f}, {difference['value']:+.2f} points ({difference['low']:+.2f} to "
            f"{difference['high']:+.2f}; {-allow:g} is allowed); {speed['int8']:.0f} against {speed['float32']:.0f} "
            f"images/s; {size(held['int8'])} against {size(held['float32'])}."
        )
    many = f"{found.networks} networks, " if found.networks > 1 else ""
    say(f"Takes {', '.join(found.inputs)}: uint8 RGB, (N, size, size, 3); how to fill it: {found.about}")
    say(f"Written: {found.path}, {many}{size(found.bytes)}")
    then(f"unfreeze explain {shlex.quote(str(run))} PHOTO")
