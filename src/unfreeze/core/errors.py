"""Exception hierarchy, and helpers that format error messages.

Every error that a user can cause derives from `UnfreezeError`. Its message is one line that states what happened,
where, and how to fix it. The command line prints this line without a traceback and exits with `exit_code`. Any other
exception that escapes is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_ONE_LINE = {
    **dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}"),
    **dict.fromkeys(map(ord, "\t\n\r\v\f\x85\u2028\u2029"), " "),
}


class UnfreezeError(Exception):
    """Base class of all errors that the user can fix.

    Attributes:
        exit_code: Exit code of the command line.
    """

    exit_code = 2

    def __str__(self) -> str:
        # File names may contain control characters, which could break the line or control the terminal, and lone
        # surrogates (bytes that are not UTF-8), which cannot be printed.
        return super().__str__().translate(_ONE_LINE).encode("utf-8", "backslashreplace").decode("utf-8")


class ArgumentTypeError(UnfreezeError, TypeError):
    """An argument of a Python function has an unsupported type."""


class SourceError(UnfreezeError):
    """The data source (folder, table or archive) cannot be read as an image dataset."""


class PhotoError(UnfreezeError):
    """An image cannot be decoded.

    Attributes:
        path: Path of the image.
        reason: Reason, without the path.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[type[PhotoError], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # makes the error picklable across processes


class FoldError(UnfreezeError):
    """The requested folds are impossible with the given groups and classes."""


class RecipeError(UnfreezeError):
    """A recipe contains an unknown key or an invalid value."""


class BackboneError(UnfreezeError):
    """A backbone or its weights are unknown, missing or not the expected ones."""


class DetectorError(UnfreezeError):
    """A face detector or its weights are unknown or not the expected ones."""


class EngineError(UnfreezeError):
    """No inference engine can run the backbone on this machine, or a Ray cluster failed."""


class ProbabilityError(UnfreezeError):
    """A predicted probability is not finite."""


class CacheError(UnfreezeError):
    """The cache cannot be used, or rows were missing or damaged when they were read."""


class RunError(UnfreezeError):
    """A run folder is missing, unfinished, damaged, already finished, or written by a newer version."""


class TemplateError(UnfreezeError):
    """A submission does not match its template, or cannot be written as requested."""


class CorrectionsError(UnfreezeError):
    """A corrections file cannot be read, or contains an unknown correction or class."""


class MissingExtraError(UnfreezeError):
    """A feature needs an optional package that is not installed. The message names the package."""


class StorageError(UnfreezeError):
    """A file or folder cannot be accessed: full disk, read-only file system, no permission, unreachable URL."""


def wrong_type(argument: str, value: object, accepted: str) -> ArgumentTypeError:
    """Build the error for an argument of the wrong type.

    Args:
        argument: Name of the argument.
        value: Value that was passed.
        accepted: Description of the accepted types, as in `a Recipe`.
    """
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ in ("builtins", __name__) else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type):
        name = f"the class {value.__qualname__}"
    if (dtype := getattr(value, "dtype", None)) is not None:
        name += f" of {dtype}"
    return ArgumentTypeError(f"{argument}: {name} is not accepted. Give {accepted}.")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Suggest the closest of `choices` as ` Did you mean 'x'?`; empty if none is close."""
    match = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def join_names(items: Iterable[object], limit: int = 5) -> str:
    """Join the first `limit` items and count the others: `a, b and 3 more`."""
    # Names come from files and tables and may contain line breaks or control characters.
    texts = [sanitize(str(item)) for item in items]
    head = ", ".join(texts[:limit])
    return head if len(texts) <= limit else f"{head} and {len(texts) - limit} more"


def one_line(error: object) -> str:
    """Type name and last message line of an exception from another library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def sanitize(text: str) -> str:
    """Replace non-printable characters, since names come from files and must not control the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
