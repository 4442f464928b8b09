"""Groups of images, from a regular expression on their paths or from a table column.

Images of one group must stay in the same fold. The regular expression runs in a child process with limits on time and
memory, because it may come from a recipe by another author. Python's `re` uses backtracking: a pattern such as
`(a+)+$` takes time that doubles with each character, and nested repeats can take any amount of memory to compile.
`re` offers no limits and cannot be interrupted from within the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import SourceError, join_names
from unfreeze.core.format import pluralize
from unfreeze.core.messages import option
from unfreeze.core.names import nfc, on_disk
from unfreeze.core.recipe_schema import Source
from unfreeze.data.text_table import KINDS, read_sheet

MAX_SECONDS = 1.0
"""CPU time limit of a pattern in seconds; 10 microseconds per path are added."""
_SECONDS_A_PATH = 1e-5
_MAX_MEMORY = 1 << 30
_MAX_PATTERN = 10_000
# Additional wall-clock seconds, since the child may wait for a processor on a busy machine.
_WALL = 10.0
_TOO_SLOW = (
    "{option}: takes more than {seconds:.1f} s on these paths. Nested repeats such as (a+)+ are the "
    "usual reason; write the pattern without them."
)

# `-I` and `-S` keep the working directory and site-packages out of the module path of the child. It starts in 20 ms and
# imports only the standard library.
_CHILD = """
import json, re, signal, sys
asked = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (asked["memory"], asked["memory"]))
    signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
except (ImportError, ValueError, OSError, AttributeError):
    pass
try:
    regex = re.compile(asked["pattern"])
except (re.error, OverflowError, RecursionError, MemoryError) as error:
    answer = {"error": str(error) or type(error).__name__}
else:
    if "group" in regex.groupindex:
        found = map(regex.search, asked["paths"])
        answer = {"groups": [match["group"] if match else None for match in found]}
    else:
        answer = {"error": ""}
json.dump(answer, sys.stdout)
"""


class PatternError(SourceError):
    """The pattern is invalid, has no named group `group`, or exceeds the limits on time or memory."""


def named_groups(paths: list[str], pattern: str) -> list[str | None]:
    """Apply a pattern to each path and return the match of its named group `group`.

    Args:
        paths: Strings to search with `re.search`.
        pattern: Regular expression with `(?P<group>...)`, in the syntax of Python's `re`.

    Returns:
        The matched group of each path; None if the pattern does not match.

    Raises:
        PatternError: The pattern is invalid or too long, has no such group, or exceeds the limits on time or memory.
    """
    named, example = option("group_regex", pattern), f"for example {option('group_regex', '(?P<group>[^/_]+)_[^/]*$')}"
    if len(pattern) > _MAX_PATTERN:
        raise PatternError(f"{option('group_regex')}: {len(pattern):,} characters are more than a pattern may have.")
    # Windows cannot limit the CPU time of the child, so the wall-clock time is limited instead.
    seconds = MAX_SECONDS + _SECONDS_A_PATH * len(paths)
    request = {"pattern": pattern, "paths": paths, "seconds": seconds, "memory": _MAX_MEMORY + 600 * len(paths)}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps(request).encode("ascii"),
            capture_output=True,
            timeout=seconds if sys.platform == "win32" else seconds + _WALL,
        )
    except subprocess.TimeoutExpired:
        raise PatternError(_TOO_SLOW.format(option=named, seconds=seconds)) from None
    if done.returncode < 0:
        raise PatternError(_TOO_SLOW.format(option=named, seconds=seconds))
    if done.returncode:
        raise PatternError(f"{named}: needs too much memory. Write it without large repeats.")
    answer = json.loads(done.stdout)
    if answer.get("error"):
        raise PatternError(f"{named}: is not a valid pattern ({answer['error']}). Fix it, {example}.")
    if "groups" not in answer:
        raise PatternError(f"{named}: no part is named group. Name it (?P<group>...), {example}.")
    groups: list[str | None] = answer["groups"]
    return groups


_ABSENT = frozenset({"nan", "NaN", "<NA>", "NaT", "None", "null", "NULL"})
"""Text representations of missing values."""


def groups_from_regex(paths: list[str], pattern: str) -> list[str]:
    """Extract the group of each image from its path.

    Args:
        paths: Path of each image.
        pattern: Regular expression with `(?P<group>...)`.

    Returns:
        The group of each image, in NFC.

    Raises:
        SourceError: The pattern is invalid, or does not match some paths.
    """
    groups = named_groups([nfc(path) for path in paths], nfc(pattern))
    # An empty match would join unrelated images, so it counts as no match.
    without = [path for path, group in zip(paths, groups, strict=True) if not group]
    if without:
        raise SourceError(
            f"{option('group_regex', pattern)}: no group in {len(without):,} of {len(paths):,} paths: "
            f"{join_names(without)}. Fix the pattern."
        )
    return [nfc(group) for group in groups if group]


def groups_by_column(
    table: str, column: str, groups: list[str], own: list[str], asked: bool
) -> tuple[list[str], str, list[Finding]]:
    """Get the group of each image from a table column with possibly missing values.

    Args:
        table: Name of the table, for messages.
        column: Name of the column; empty if no column defines groups.
        groups: Values of the column; empty for images without a group.
        own: For each image, the name of a singleton group.
        asked: Whether the user named the column; otherwise it was detected by its name.

    Returns:
        The groups, a description of them, and findings. An image without a group becomes its own group. A detected
        column without values is ignored.

    Raises:
        SourceError: A column that the user named has no values.
    """
    if not column:
        return own, "each photo its own group", []
    names = set(groups) - {""}
    if not names or names <= _ABSENT:
        if asked:
            raise SourceError(
                f"{table}: '{column}' is empty in all rows. Leave {option('group')} out, or name another column."
            )
        finding = Finding(
            "no_group",
            "info",
            f"the column '{column}' is empty in all rows: each image is a group of its own",
            f"Fill it in where images belong together, or name another column: {option('group', metavar='COL')}.",
        )
        return own, f"'{column}' ignored, because it is empty: each image is its own group", [finding]
    findings, text, empty = list[Finding](), f"group '{column}'", groups.count("")
    if empty:
        text += f" ({empty:,} without: each its own)"
        message = (
            f"{pluralize(empty, 'image')} of {len(groups):,} without a group in '{column}': each is a group of its own"
        )
        fix = "Fill in the column where images belong together; else two images of a group can be in two folds."
        findings.append(Finding("no_group", "warning", message, fix))
    for word in sorted(names & _ABSENT):
        message = f"{pluralize(groups.count(word), 'image')} in the group '{word}' of '{column}': one group"
        fix = f"Empty those cells if '{word}' means that an image has no group: each is then a group of its own."
        findings.append(Finding("no_group", "warning", message, fix))
    filled = []
    for group, name in zip(groups, own, strict=True):
        while not group and name in names:
            name = f"{name} (no group)"
        filled.append(group or name)
    return filled, text, findings


def groups_from_table(
    sources: Sequence[Path],
    names: list[str],
    column: str | None,
    pattern: str | None,
    options: Source | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[str] | None:
    """Get the group of each image to predict.

    Args:
        sources: Sources passed to `list_images.list_all`.
        names: Image names returned by `list_images.list_all`.
        column: Column of the table that defines the groups, or None.
        pattern: Regular expression with `(?P<group>...)`, or None.
        options: Section `source` of the recipe, as for `list_images.list_all`.
        notice: Called with a message about images without a group; each of these becomes its own group.

    Returns:
        The group of each image; None if neither a column nor a pattern is given.

    Raises:
        SourceError: Both a column and a pattern are given; the source is not a table; the column does not exist or
            has no values; or the pattern is invalid or does not match some paths.
    """
    if column and pattern:
        raise SourceError(f"{option('group')} and {option('group_regex')} cannot be combined. Give one of them.")
    if pattern:
        return groups_from_regex(names, pattern)
    if not column:
        return None
    images = on_disk(sources[0]) if sources else Path()
    if len(sources) != 1 or not images.is_file() or images.suffix.lower() not in KINDS:
        given = join_names(sources)
        raise SourceError(
            f"{option('group', column)}: {given} is not a table; specify with {option('group_regex')} how "
            "paths name the group."
        )
    sheet = read_sheet(images, options)
    groups, _, findings = groups_by_column(sheet.name, column, sheet.column(column), names, asked=True)
    if notice is not None:
        for finding in findings:
            notice(f"{finding.message}.")
    return groups
