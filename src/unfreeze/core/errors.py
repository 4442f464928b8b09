"""The whole error tree.

Every error a user can cause derives from `UnfreezeError`. Its text is one line for people: what
happened, where, and what to do. The command line prints that line and exits with `exit_code`; it
never shows a traceback for one of these. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_ONE_LINE = {
    **dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}"),
    **dict.fromkeys(map(ord, "\t\n\r\v\f\x85\u2028\u2029"), " "),
}


class UnfreezeError(Exception):
    """Base of all errors that people can mend. `exit_code` is the command line's."""

    exit_code = 2

    def __str__(self) -> str:
        # One line whatever a file is called: control characters could break it or drive the terminal, and
        # surrogates (names that are not UTF-8) cannot be printed.
        return super().__str__().translate(_ONE_LINE).encode("utf-8", "backslashreplace").decode("utf-8")


class SourceError(UnfreezeError):
    """The photos' source (folder, CSV, layout) cannot be read as one."""


class PhotoError(UnfreezeError):
    """One photo cannot be decoded; `reason` says why without the path."""

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[type[PhotoError], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # so that it survives the way out of another process


class FoldError(UnfreezeError):
    """Folds as asked for are not possible with these groups and classes."""


class RecipeError(UnfreezeError):
    """A recipe names an unknown key or holds a value out of range."""


class BackboneError(UnfreezeError):
    """A backbone or its weights are unknown, absent or not what they claim to be."""


class DetectorError(UnfreezeError):
    """A face detector or its weights are unknown or not what they claim to be."""


class EngineError(UnfreezeError):
    """No engine can run the backbone here."""


class CacheError(UnfreezeError):
    """The cache cannot be used at all (no permission, no space); damage is rebuilt, not raised."""


class RunError(UnfreezeError):
    """A run folder is missing, unfinished, of a newer version, or already finished."""


class TemplateError(UnfreezeError):
    """A submission does not match its template."""


class VerdictsError(UnfreezeError):
    """A file of verdicts cannot be read, or names a verdict or class that does not exist."""


class MissingExtraError(UnfreezeError):
    """A feature needs a package that is not installed; the text says what to install."""


class StorageError(UnfreezeError):
    """The disk is full, read-only or not ours to write to."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest of `choices`, else an empty string."""
    match = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def listed(items: Iterable[object], limit: int = 5) -> str:
    """The first `limit` items as text, and how many more there are: `a, b and 3 more`."""
    # Names come from files and tables: a line break or control character in one must not break the line.
    texts = [printable(str(item)) for item in items]
    head = ", ".join(texts[:limit])
    return head if len(texts) <= limit else f"{head} and {len(texts) - limit} more"


def in_a_line(error: object) -> str:
    """What another library raised, as its type and the last line that it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def printable(text: str) -> str:
    """The text with control characters replaced: names come from files, and may not drive a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
