"""Entry point of the command `unfreeze`.

Registers the commands, which parse arguments, call the library and print the result. Errors end in one line on stderr
and an exit code.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import typer

from unfreeze.cli import (
    analysis,
    compare,
    data,
    demo,
    fit,
    labels,
    models,
    predict,
    scores,
    server,
)
from unfreeze.cli.console import complain
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.files import is_valid_utf8
from unfreeze.core.messages import command_line
from unfreeze.core.progress import PROGRESS_FILE_ENV

# Since 0.16 typer bundles its own copy of click and raises the exceptions of that copy.
UsageError: Any = typer.BadParameter.__mro__[1]
INTERRUPTED = 130

app = typer.Typer(
    name="unfreeze",
    help="Train an image classifier on a folder of labeled images and estimate its accuracy on groups that are "
    "not in the training data.\n\nExample: `unfreeze demo`",
    no_args_is_help=True,
    # On narrow terminals the boxes of the rich help truncate option names; the plain help does not.
    rich_markup_mode="markdown" if shutil.get_terminal_size().columns >= 72 else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    data.check,
    analysis.recommend,
    fit.fit,
    predict.predict,
    scores.scores,
    data.report,
    analysis.diagnose,
    predict.export,
    predict.explain,
    compare.compare,
    analysis.tune,
    labels.label_issues,
    labels.review,
    server.serve,
    server.studio,
    data.runs,
    models.models,
    models.inspect,
    data.cache,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        import unfreeze

        print(f"unfreeze {unfreeze.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 success, 1 a requested check failed, 2 invalid input or usage, 130 interrupted, 141 broken pipe.
    """
    for stream in (sys.stdout, sys.stderr):  # a name may have characters that the terminal cannot encode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    interrupts = _recorded_interrupts()
    try:
        _refuse_bytes(sys.argv[1:])
        with command_line():
            code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
            raise KeyboardInterrupt
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        _end_interrupted()
    except Exception as error:
        # A C++ library on the call stack may turn KeyboardInterrupt into an exception of its own.
        _end_interrupted() if interrupts else _end(error)


def _recorded_interrupts() -> list[int]:
    """Install a SIGINT handler that records each signal in the returned list, besides raising KeyboardInterrupt."""
    numbers: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        numbers.append(number)
        signal.default_int_handler(number, frame)

    # The studio stops its jobs by SIGINT, even if the shell that started it ignores Ctrl-C.
    if os.environ.get(PROGRESS_FILE_ENV) or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)
    return numbers


def _end_interrupted() -> NoReturn:
    complain("interrupted; the same command goes on from here.")
    sys.exit(INTERRUPTED)


def _end(error: Exception) -> NoReturn:
    """Exit with the message and code of an expected error. Any other error is a bug and is raised again."""
    try:
        raise error
    except UsageError as error:
        if text := error.format_message():  # empty if the help was shown because arguments are missing
            complain(f"{text.splitlines()[0].rstrip('.')}. {_help_hint(error)}")
        sys.exit(2)
    except UnfreezeError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `unfreeze runs | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # not translated into an UnfreezeError
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}. Check the path, its permissions and the space left on the disk.")
        sys.exit(2)


def _refuse_bytes(arguments: list[str]) -> None:
    """Raise an UnfreezeError for an argument that is not valid UTF-8, which no recipe, table or page can represent."""
    for argument in arguments:
        if not is_valid_utf8(argument):
            raise UnfreezeError(f"{argument}: this is not valid UTF-8; rename the file or folder.")


def _help_hint(error: UsageError) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path if context else 'unfreeze'} --help` shows how."


if __name__ == "__main__":
    main()
