"""Commands about networks: `models` and `inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unfreeze.cli.console import emit_json, reporter, say, show, then
from unfreeze.cli.fit import Json

if TYPE_CHECKING:
    from unfreeze.models.checkpoints import LoadReport
    from unfreeze.models.inspect import Inspection
    from unfreeze.models.registry import CatalogEntry

_SHOWN = 60  # rows of a long table on a terminal


def models(
    pattern: Annotated[
        str | None, typer.Argument(help="Networks of both libraries: `*convnext*`, `torchvision/*`.", metavar="PATTERN")
    ] = None,
    available: Annotated[bool, typer.Option("--available", help="Only those whose weights are here now.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Every classifier of timm and torchvision.")] = False,
    json: Json = False,
) -> None:
    """List the backbones: parameters, input size, compute, license, whether the weights are here.

    Without PATTERN or --all, a short list of common ones.

    Example: `unfreeze models '*convnext*' --available`
    """
    from unfreeze.models.registry import LOOKED_AT, recommended_models, search_models

    progress = reporter(json)
    short = pattern is None and not all_ and not available
    found = recommended_models(progress) if short else search_models(pattern or "*", available, progress)
    if json:
        emit_json([{**asdict(entry), "input_size": entry.pixels} for entry in found])
        return
    columns = ["backbone", "params", "px", "GMACs", "licence", "weights"]
    show(_title(found, short, available), columns, map(_row, found), ["params", "px", "GMACs"])
    for entry in found if len(found) <= LOOKED_AT else ():
        if entry.note:
            say(f"{entry.name} cannot be used here: {entry.note}")
    if any(entry.parameters is None and not entry.note for entry in found):
        say(f"Parameters and GMACs are worked out where at most {LOOKED_AT} match: name a narrower PATTERN.")
    if any(not entry.commercial for entry in found):
        say("Licences marked (!) forbid commercial use, or may: read them first.")
    if short:
        say("This is a short list; `unfreeze models --all` lists every classifier of timm and torchvision.")
    then("unfreeze inspect NAME" if found else "unfreeze models")


def _title(found: list[CatalogEntry], short: bool, available: bool) -> str:
    here = sum(entry.available for entry in found)
    one = "backbone" if len(found) == 1 else "backbones"
    return (
        f"{len(found):,} {one} whose weights are here" if available else f"{len(found):,} {one}, weights of {here} here"
    )


def _row(entry: CatalogEntry) -> list[object]:
    short = (
        entry.remedy if entry.remedy.startswith("pip") else "to fetch" if "fetched" in entry.remedy else "none known"
    )
    weights = "here" if entry.available else short
    return [
        entry.name,
        "" if entry.parameters is None else f"{entry.parameters / 1e6:.1f} M",
        entry.pixels,
        "" if entry.gmacs is None else f"{entry.gmacs:.2f}",
        entry.licence + ("" if entry.commercial else " (!)"),
        "cannot be used here" if entry.note else weights,
    ]


def inspect(
    model: Annotated[str, typer.Argument(help="A name from `unfreeze models --all`.", metavar="MODEL")],
    depth: Annotated[int, typer.Option(help="How deep the tree is shown.", min=0, metavar="N")] = 2,
    weights: Annotated[
        Path | None, typer.Option(help="A weights file to compare with the network.", metavar="FILE")
    ] = None,
    unfreeze: Annotated[
        str, typer.Option(help="What would train: all, head, last:N or STAGE- (from that stage on).", metavar="WISH")
    ] = "all",
    size: Annotated[int, typer.Option(help="Side of the input; 0: the network's own.", min=0, metavar="PX")] = 0,
    json: Json = False,
) -> None:
    """Show a network: modules, output shapes, parameters and buffers, stages, what is frozen.

    Needs no weights. With --weights, also missing and unexpected tensors of the file.

    Example: `unfreeze inspect torchvision/densenet161 --unfreeze last:2`
    """
    from unfreeze.models.inspect import inspect as look

    found = look(model, unfreeze=unfreeze, size=size, weights=weights or "")
    if json:
        emit_json(asdict(found))
        return
    _show_tree(found, depth)
    _say_what(found, depth)
    if found.fit is not None:
        _say_fit(weights, found.fit)
    if found.fit is None or found.fit.whole:
        given = f" --weights {weights}" if weights else ""
        then(f"unfreeze fit SOURCE --backbone {found.name}{given}")


def _show_tree(found: Inspection, depth: int) -> None:
    rows = [
        [
            "  " * row.depth + (row.path.rpartition(".")[2] or found.name.partition("/")[2]),
            row.kind,
            "x".join(map(str, row.output)),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.gmacs:.3f}" if row.gmacs >= 0.0005 else "",
            _state(row.parameters, row.frozen),
            str(found.stages.index(row.stage)) if row.stage in found.stages else row.stage,
        ]
        for row in found.tree
        if row.depth <= depth
    ]
    columns = ["module", "kind", "output", "params", "GMACs", "", "stage"]
    show(f"{found.name} at {found.size} px, {found.classes:,} classes", columns, rows, columns[2:])


def _state(parameters: int, frozen: int) -> str:
    if not parameters:
        return ""
    return "trains" if not frozen else "frozen" if frozen == parameters else f"{frozen / parameters:.0%} frozen"


def _say_what(found: Inspection, depth: int) -> None:
    names = {kind: [n for n, k in found.entries.items() if k == kind] for kind in ("parameter", "buffer")}
    whole = found.parameters + found.auxiliary_parameters
    say(
        f"{found.parameters / 1e6:.2f} M parameters and {found.gmacs:.2f} GMACs a photo; with --unfreeze "
        f"{found.unfreeze} {found.trained / max(whole, 1):.0%} of the parameters train."
    )
    say(f"{len(found.stages)} stages: " + ", ".join(f"{i} {name}" for i, name in enumerate(found.stages)) + ".")
    say(f"Classifier, new for your classes: {', '.join(found.classifier) or 'none'}.")
    for name, weight in found.auxiliary.items():
        say(f"Auxiliary head, only in training: {name}, its loss weighs {weight}.")
    say(
        f"parameters() gives {len(names['parameter'])} tensors, which gradients change; state_dict() gives those and "
        f"{len(names['buffer'])} buffers ({found.buffers:,} numbers), which are not trained"
        + (", as BatchNorm's statistics." if any("running_mean" in n for n in names["buffer"]) else ".")
    )
    if depth >= 3:
        for name, kind in found.entries.items():
            say(f"  {name}: {kind}")


def _say_fit(weights: Path | None, fit: LoadReport) -> None:
    say(f"{weights}: {fit}")
    for what, names in (
        ("missing", fit.missing),
        ("of another shape", fit.misshaped),
        ("not used", fit.unexpected),
        ("new and untrained", fit.untrained),
    ):
        for name in names[3:_SHOWN]:  # the summary names the first three
            say(f"  {what}: {name}")
        if len(names) > _SHOWN:
            say(f"  {what}: {len(names) - _SHOWN} more; --json lists all")
