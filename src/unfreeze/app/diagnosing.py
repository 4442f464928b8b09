"""The command that says why a test score differs: diagnose."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unfreeze.app.console import emit_json, reporter, say, show, then
from unfreeze.app.fitting import Json, PathColumn, Root
from unfreeze.app.looking import RunArgument
from unfreeze.core.errors import StorageError

if TYPE_CHECKING:
    from unfreeze.study.diagnose import Diagnosis


def diagnose(
    run: RunArgument,
    test: Annotated[
        Path | None,
        typer.Option(
            help="The photos to be judged on: a folder or a table; labels, if there, give the real score beside. "
            "By default the run's own test split.",
            metavar="IMAGES|CSV",
        ),
    ] = None,
    exported: Annotated[
        Path | None,
        typer.Option(help="A file that `unfreeze export` wrote: does it see as the run does?", metavar="FILE"),
    ] = None,
    path: PathColumn = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Validation good, test bad: leakage, overfitting, shift, preprocessing, calibration, labels, each measured.

    Every cause has its size in macro F1 and what to do about it; the gravest comes first.

    Example: `unfreeze diagnose runs/masks --test new/`
    """
    from unfreeze.deliver.report import write_report
    from unfreeze.study.diagnose import diagnose as measure

    voice = reporter(json)
    beside = []
    if exported:
        from unfreeze.deliver.exported import check_exported

        beside.append(check_exported(run, exported, voice))
    found = measure(run, test, path_column=path or "", root=root or "", beside=beside, reporter=voice)
    try:
        write_report(run)
    except StorageError as error:  # a run that may only be read can be diagnosed all the same
        voice.say(f"The report stays as it was: {error}")
    if json:
        emit_json(found.to_json())
        return
    _print(found)
    first = found.causes[0]
    command = first.command if found.first and first.command else ""
    then(command or f"unfreeze report {shlex.quote(str(run))}")


def _print(found: Diagnosis) -> None:
    rows = [
        [
            cause.severity if cause.measured else "-",
            cause.name,
            "" if cause.cost is None else f"{cause.cost['value']:+.3f}",
            "" if cause.cost is None else f"{cause.cost['low']:+.3f} to {cause.cost['high']:+.3f}",
            cause.evidence,
        ]
        for cause in found.causes
    ]
    columns = ["", "cause", "macro F1", "95 %", "what was measured"]
    show("What may lie between validation and test, the gravest first", columns, rows, ["macro F1", "95 %"])
    for note in found.notes:
        say(note)
    for cause in found.causes:
        if cause.severity in ("error", "warning") and cause.remedy:
            say(f"{cause.name}: {cause.remedy}")
    say(f"{found.sentence} ({found.seconds:.1f} s)")
