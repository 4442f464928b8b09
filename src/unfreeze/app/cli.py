"""The command `unfreeze`: parses, calls, prints. One thin function a command; errors end here in one line."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
from typing import Any

import typer

from unfreeze.app import (
    advising,
    attributes,
    balancing,
    comparing,
    delivering,
    demo,
    diagnosing,
    exporting,
    fitting,
    labelling,
    looking,
    modelling,
    predicting,
    scoring,
    serving,
    studying,
    tuning,
)
from unfreeze.app.console import complain
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.files import is_text
from unfreeze.core.progress import WATCHED

# typer carries its own copy of click from 0.16 on; its errors are that copy's.
UsageError: Any = typer.BadParameter.__mro__[1]
INTERRUPTED = 130

app = typer.Typer(
    name="unfreeze",
    help="From a folder of labelled photos to a classifier, and an honest account of how good it is on groups "
    "it has never seen.\n\nExample: `unfreeze demo`",
    no_args_is_help=True,
    add_completion=False,
    # The boxes of the rich help cut option names off on narrow terminals; the plain help does not.
    rich_markup_mode="markdown" if shutil.get_terminal_size().columns >= 72 else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    looking.check,
    advising.advise,
    fitting.fit,
    predicting.predict,
    scoring.scores,
    looking.report,
    diagnosing.diagnose,
    exporting.export,
    delivering.explain,
    comparing.compare,
    tuning.tune,
    balancing.compare_balance,
    attributes.compare_labels,
    labelling.suspects,
    labelling.review,
    serving.serve,
    studying.studio,
    looking.runs,
    modelling.models,
    modelling.inspect,
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
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get(WATCHED):  # the studio stops its jobs so, also where the shell that began it ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _refuse_bytes(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code, in silence
            raise KeyboardInterrupt
        sys.exit(code)
    except UsageError as error:
        if text := error.format_message():  # none where the help was shown for want of arguments
            complain(f"{text.splitlines()[0].rstrip('.')}. {_help_hint(error)}")
        sys.exit(2)
    except UnfreezeError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted; the same command goes on from here.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `unfreeze runs | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # what the stages have not put into words of their own
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}. Check the path, its permissions and the space left on the disk.")
        sys.exit(2)


def _refuse_bytes(arguments: list[str]) -> None:
    """UnfreezeError for an argument that is not valid UTF-8: no recipe, table or page could hold such a name."""
    for argument in arguments:
        if not is_text(argument):
            raise UnfreezeError(f"{argument}: this is not valid UTF-8; rename the file or folder.")


def _help_hint(error: UsageError) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path if context else 'unfreeze'} --help` shows how."


if __name__ == "__main__":
    main()
