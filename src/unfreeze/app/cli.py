"""The command `unfreeze`: parses, calls, prints. One thin function a command; errors end here in one line."""

from __future__ import annotations

import contextlib
import os
import sys

import typer

from unfreeze.app import demo, fitting, looking
from unfreeze.app.console import complain
from unfreeze.core.errors import UnfreezeError

app = typer.Typer(
    name="unfreeze",
    help="From a folder of labelled photos to a classifier, and an honest account of how good it is on groups it has never seen.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    looking.check,
    fitting.fit,
    fitting.predict,
    looking.scores,
    looking.report,
    looking.runs,
    looking.models,
    looking.cache,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        import unfreeze

        print(f"unfreeze {unfreeze.__version__}")
        raise typer.Exit


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 a check failed as asked, 2 bad input or usage, 130 interrupted."""
    try:
        app()
    except UnfreezeError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from here.")
        sys.exit(130)
    except BrokenPipeError:  # `unfreeze runs | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
