"""Resolution of the paths in a table column to files.

Relative paths start from `--root DIR` or the folder of the table, and must stay inside it. Absolute paths may point
anywhere unless `--root` is given, but outside of that folder only to files with an image suffix. Paths from another
machine (`C:\\set\\a.jpg`, `/content/drive/set/a.jpg`) are matched by their last components, names without suffix to the
image with that name, and relative paths also inside the subfolders of the start folder. `Located.note` describes every
interpretation that is not literal.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unfreeze.core.errors import SourceError, join_names
from unfreeze.core.files import unescape_formula
from unfreeze.core.format import pluralize
from unfreeze.core.messages import from_command_line, option
from unfreeze.data.directory_walk import is_image_name
from unfreeze.data.file_lookup import FileLookup, as_absolute, existing, is_absolute, is_file, with_slashes

_ADDRESS = re.compile(r"(https?|s3|gs|ftp|hf|az)://", re.I)
_MOST_SHOWN = 3
_PARENTS = 3  # parent folders to search for a fix


@dataclass(frozen=True)
class Located:
    """The files of a column, in row order.

    Attributes:
        root: Folder that relative paths start from.
        paths: Paths relative to `root` with `/`; absolute paths only if the caller keeps them.
        note: Description of non-literal interpretations for `ImageDataset.choice`; may be empty.
        escaped: Whether paths have the leading apostrophe of spreadsheet-safe tables.
    """

    root: Path
    paths: list[str]
    note: str = ""
    escaped: bool = False


@dataclass
class Search:
    """One attempt to locate all files, with a given start folder.

    Attributes:
        texts: Cells of the column.
        start: Folder that relative paths start from.
        inside: Folder that must contain all files; None for no restriction on absolute paths.
        lookup: Cached file system lookups.
        full: Whether to try non-literal interpretations as well.
        as_named: Whether a file that exists in another Unicode normalization form keeps the form of the text instead of
            the form on disk.
        files: File of each text; empty if there is none.
        missing: Positions of texts without a file.
        outside: Texts that leave the folder.
        unnamed: Texts of absolute paths to files outside of the folder that have no image suffix.
        ambiguous: Texts that match several files, with these files.
        notes: Descriptions of non-literal interpretations.
        escaped: See `Located`.
    """

    texts: Sequence[str]
    start: Path
    inside: Path | None
    lookup: FileLookup
    full: bool = True
    as_named: bool = False
    files: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    escaped: bool = False

    def run(self) -> Search:
        """Locate the files of all texts and return `self`."""
        self.files = [""] * len(self.texts)
        home = self.start if self.inside is None else self.inside
        self._start, self._prefixes = as_absolute("", self.start), _prefixes(home)
        self._added, self._found_outside = Counter[str](), 0
        for i, text in enumerate(self.texts):
            self._place(i, text, self._as_written(text) or (self._by_suffix(text) if self.full else ""))
        if self.full and self.missing:
            self._relocate()
            if self.missing and not any(self.files) and not self.outside:
                self._in_subfolders()
        if self._added:
            self.notes.append(f"without suffix, found as {join_names(sorted(self._added))}")
        return self

    @property
    def failed(self) -> bool:
        """Whether some texts have no usable file."""
        return bool(self.missing or self.outside or self.unnamed or self.ambiguous)

    @property
    def hits(self) -> int:
        """Number of texts that name a file, including files outside of the folder."""
        return sum(map(bool, self.files)) + self._found_outside + len(self.ambiguous)

    def in_home(self, file: str) -> str | None:
        """Path relative to the folder that paths must stay in; None if the file is elsewhere."""
        prefix = next((prefix for prefix in self._prefixes if file.startswith(prefix)), None)
        return None if prefix is None else file.removeprefix(prefix)

    def _as_written(self, text: str) -> str:
        for spelled in _spellings(text):
            path = as_absolute(spelled, self._start)
            if there := existing(path):
                path = path if self.as_named else there
                given = (text, text.strip())
                self.escaped |= spelled not in given and spelled in map(unescape_formula, given)
                return path
        return ""

    def _by_suffix(self, text: str) -> str:
        """The only image whose name is `text` plus a suffix."""
        for spelled in _spellings(text):
            found = self.lookup.find(as_absolute(spelled, self._start))
            if len(found) > 1:
                self.ambiguous[text] = found
                return ""
            if found:
                self._added[f".{found[0].rpartition('.')[2]}"] += 1
                return found[0]
        return ""

    def _place(self, i: int, text: str, file: str) -> None:
        if text in self.ambiguous:
            return
        slashed = with_slashes(text).strip()
        written = file or as_absolute(slashed, self._start)
        leaves = self.in_home(written) is None and (self.inside is not None or not is_absolute(slashed))
        if leaves and (file or not is_absolute(slashed)):
            self.outside.append(text)
            self._found_outside += bool(file)
        elif not file:
            self.missing.append(i)
        elif self.in_home(file) is None and not is_image_name(file):
            self.unnamed.append(text)
        else:
            self.files[i] = file

    def _relocate(self) -> None:
        """Match absolute paths that do not exist to files below `start` by dropping leading components.

        The same number of components is dropped from all paths.
        """
        foreign = [i for i in self.missing if is_absolute(with_slashes(self.texts[i]).strip())]
        parts = [with_slashes(self.texts[i]).strip().strip("/").split("/") for i in foreign]
        fewest = min((len(each) for each in parts), default=0)
        for cut in range(1, fewest):
            found = [self._below("/".join(each[cut:])) for each in parts[:20]]
            if not all(found):
                continue
            found += [self._below("/".join(each[cut:])) for each in parts[20:]]
            if all(found):
                first = with_slashes(self.texts[foreign[0]]).strip()
                self.notes.append(f"'{first[: -len('/'.join(parts[0][cut:])) - 1]}' read as {self.start}")
                break
        else:
            return
        for i, file in zip(foreign, found, strict=True):
            self.files[i] = file
        gone = set(foreign)
        self.missing = [i for i in self.missing if i not in gone]

    def _below(self, tail: str) -> str:
        found = self.lookup.find(as_absolute(tail, self._start)) if ".." not in tail.split("/") else ()
        return found[0] if len(found) == 1 and self.in_home(found[0]) is not None else ""

    def _in_subfolders(self) -> None:
        """Search the subfolders of `start` for relative paths, if none of them exists in `start` itself."""
        folders = self.lookup.subfolders(self.start)
        names, still, added = set[str](), [], Counter[str]()
        for i in self.missing:
            text = with_slashes(self.texts[i]).strip()
            found = []
            if not is_absolute(text) and ".." not in text.split("/"):
                found = [(f.name, one) for f in folders for one in self.lookup.find(as_absolute(text, f))]
            if len(found) > 1:
                self.ambiguous[self.texts[i]] = tuple(file for _, file in found)
            elif not found:
                still.append(i)
            else:
                ((folder, self.files[i]),) = found
                names.add(folder)
                if not is_image_name(text):
                    added[f".{self.files[i].rpartition('.')[2]}"] += 1
        if any(self.files):
            self.notes.append(f"in {join_names(sorted(names))}")
            self._added += added
        self.missing = still


def find_paths(
    texts: Sequence[str],
    column: str,
    name: str,
    table_folder: Path,
    root: Path | None,
    *,
    missing_ok: bool = False,
    keep_absolute: bool = False,
) -> Located:
    """Locate the files that a column names.

    Args:
        texts: Cells of the column, unmodified.
        column: Column name, for messages.
        name: Table name, for messages.
        table_folder: Folder that relative paths start from if there is no `root`: the folder of the table.
        root: Folder given by the user; no path may leave it.
        missing_ok: Keep paths without a file, unless no file exists at all.
        keep_absolute: Keep absolute paths to files elsewhere. Otherwise, `root` of the result is the deepest folder
            that contains all files.

    Returns:
        The located files.

    Raises:
        SourceError: If files are missing, outside of the folder or ambiguous; the message suggests a fix.
    """
    lookup = FileLookup()
    first = Search(texts, root or table_folder, root, lookup, as_named=missing_ok).run()
    search = first
    if root is not None and first.failed:
        # Paths such as `../images/1.jpg` may be relative to the table even though the root is another folder.
        second = Search(texts, table_folder, root, lookup, as_named=missing_ok).run()
        if not second.failed or (missing_ok and second.hits > first.hits and not second.outside):
            search = second
            search.notes.append(f"relative to {table_folder}")
    if search.outside or search.unnamed or search.ambiguous or (search.missing and not missing_ok):
        raise _error(search, column, name, table_folder, root)
    if search.missing and not any(search.files):
        raise _error(search, column, name, table_folder, root)
    return _located(search, keep_absolute)


def path_hits(texts: Sequence[str], table_folder: Path, root: Path | None, lookup: FileLookup, full: bool) -> int:
    """Number of texts that name files.

    Args:
        texts: Cells of a column.
        table_folder: Folder of the table.
        root: Folder given by the user; None if there is none.
        lookup: Cached file system lookups.
        full: Whether to try non-literal interpretations as well.

    Returns:
        The larger number of the two start folders.
    """
    starts = [root, table_folder] if root is not None else [table_folder]
    return max(Search(texts, start, root, lookup, full).run().hits for start in starts)


def _located(search: Search, keep_absolute: bool) -> Located:
    home = search.start if search.inside is None else search.inside
    files = [
        file or as_absolute(with_slashes(search.texts[i]).strip(), search.start) for i, file in enumerate(search.files)
    ]
    paths = [search.in_home(file) for file in files]
    elsewhere = [file for file, path in zip(files, paths, strict=True) if path is None]
    notes = list(search.notes)
    if not elsewhere or keep_absolute:
        if elsewhere:
            notes.insert(0, f"{len(elsewhere):,} absolute")
        named = [file if path is None else path for file, path in zip(files, paths, strict=True)]
        return Located(home, named, "; ".join(notes), search.escaped)
    here = home.resolve().as_posix().rstrip("/")
    files = [file if path is None else f"{here}/{path}" for file, path in zip(files, paths, strict=True)]
    root = _common_folder(files)
    notes.insert(0, f"{len(elsewhere):,} absolute, root {root}")
    prefix = f"{root.rstrip('/')}/"
    return Located(Path(root), [file.removeprefix(prefix) for file in files], "; ".join(notes), search.escaped)


def _common_folder(files: Sequence[str]) -> str:
    """The deepest folder that contains all files. Raises `SourceError` if they are on several Windows drives."""
    try:
        return posixpath.commonpath({posixpath.dirname(file) for file in files})
    except ValueError:
        raise SourceError("the absolute paths lie on several drives. Bring the images into one folder.") from None


def _spellings(text: str) -> Iterator[str]:
    """Yield the possible readings of a cell.

    These are: literal, stripped, without the spreadsheet apostrophe, and with Windows separators replaced by `/`.
    """
    yield text
    stripped = text.strip()
    if stripped != text:
        yield stripped
    for one in (text, stripped):
        if unescape_formula(one) != one:
            yield unescape_formula(one)
    if "\\" in text:  # written on Windows
        yield with_slashes(stripped)


def _prefixes(folder: Path) -> dict[str, None]:
    """Path prefixes of a folder: as given and with symbolic links resolved."""
    return {f"{as_absolute('', root).rstrip('/')}/": None for root in (folder, folder.resolve())}


def _error(search: Search, column: str, name: str, table_folder: Path, root: Path | None) -> SourceError:
    """Build the error for the first kind of failure, with a verified fix if there is one."""
    there = search.start if search.inside is None else search.inside
    if search.ambiguous:
        text, files = next(iter(search.ambiguous.items()))
        shown = [posixpath.relpath(file, as_absolute("", search.start)) for file in files]
        several = Counter(posixpath.dirname(file) for file in files)
        return SourceError(
            f"{name}: {pluralize(len(search.ambiguous), 'value')} in '{column}' with several files, first: "
            f"{text} ({join_names(shown, _MOST_SHOWN)}). "
            + (_choose(search, table_folder) if len(several) > 1 else "Write the suffix, or remove one of the files.")
        )
    if search.outside:
        helps = _remedy(search, table_folder, root) or (
            f"Write all paths relative to one folder, and name it: {option('root', metavar='DIR')}."
        )
        return SourceError(
            f"{name}: {pluralize(len(search.outside), 'path')} in '{column}' outside of {there}, first: "
            f"{search.outside[0]}. {helps}"
        )
    if search.unnamed:
        return SourceError(
            f"{name}: {pluralize(len(search.unnamed), 'path')} in '{column}' outside of {there} and no image by name, "
            f"first: {search.unnamed[0]}. Remove those rows."
        )
    texts = [search.texts[i] for i in search.missing]
    return SourceError(
        f"{name}: no such file in {there} for {len(texts):,} of {len(search.texts):,} paths in "
        f"'{column}': {join_names(texts)}. {_hint(search, texts, table_folder, root)}"
    )


def _choose(search: Search, table_folder: Path) -> str:
    fits = [f for f in search.lookup.subfolders(search.start) if _solves(search, f, table_folder)]
    options = " or ".join(map(_root_option, fits[:_MOST_SHOWN]))
    return f"Name the folder: {options or option('root', metavar='DIR')}."


def _root_option(folder: Path) -> str:
    """Format `--root FOLDER`, quoted for a shell, or the equivalent Python argument."""
    return option("root", shlex.quote(str(folder)) if from_command_line() else str(folder))


def _remedy(search: Search, table_folder: Path, root: Path | None) -> str:
    """An option that makes all paths resolve, verified by a search; empty if there is none."""
    if root is not None and not Search(search.texts, table_folder, None, search.lookup).run().failed:
        return f"Leave {option('root')} out."
    start = table_folder if root is None else root
    found = [as_absolute(spelled, start) for text in search.texts for spelled in _spellings(text)]
    files = [path for path in found if is_file(path)]
    near = [start.absolute(), *start.absolute().parents[:_PARENTS]]
    if files:
        common = Path(_common_folder(files))
        near = [common, *common.parents[:_PARENTS], *near]
    for folder in (*near, *search.lookup.subfolders(start)):
        if _solves(search, folder, table_folder):
            return f"Name the folder that holds them all: {_root_option(folder)}."
    return ""


def _solves(search: Search, root: Path, table_folder: Path) -> bool:
    """Whether `--root root` resolves every path, and agrees with files found relative to the table."""
    for texts in (search.texts[:100], search.texts):  # most folders fail on the first rows
        attempts = (Search(texts, start, root, search.lookup).run() for start in (root, table_folder))
        good = next((attempt for attempt in attempts if not attempt.failed), None)
        if good is None:
            return False
        written = [as_absolute(with_slashes(text).strip(), table_folder) for text in texts]
        if any(is_file(path) and path != file for path, file in zip(written, good.files, strict=True)):
            return False
    return True


def _hint(search: Search, texts: list[str], table_folder: Path, root: Path | None) -> str:
    if _ADDRESS.match(texts[0].strip()):
        return "These are addresses: download the images, and give their paths."
    if helps := _remedy(search, table_folder, root):
        return helps
    slashed = with_slashes(texts[0]).strip()
    if is_absolute(slashed):
        parts = slashed.strip("/").split("/")
        tail = "/".join(parts[-2:])
        return (
            f"They are absolute paths of another computer, or the images were moved: name the folder that holds "
            f"{tail}: {option('root', metavar='DIR')}."
        )
    near = search.lookup.near(as_absolute(slashed, search.start))
    there = f"{near.rpartition('/')[2]} is there, under another suffix or case. " if near else ""
    return f"{there}Correct them, or name the folder that they start from: {option('root', metavar='DIR')}."
