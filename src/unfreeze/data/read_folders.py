"""Reader for image folders: class folders, alone or inside split folders.

The layout is recognized by `layouts`, or given by the reader name or by `--split train=FOLDER,test=FOLDER`, which
`named_splits` parses.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import SourceError, did_you_mean, join_names
from unfreeze.core.format import pluralize
from unfreeze.core.messages import option
from unfreeze.core.recipe_schema import Source
from unfreeze.data.directory_walk import FolderContents, ParsedSource, scan_folder, skipped
from unfreeze.data.label_tables import table_beside
from unfreeze.data.layout_tree import Folder, Layout, Split, folded, folder_tree, within
from unfreeze.data.layouts import SourceFolder, as_classes, as_splits, recognize, split_layout
from unfreeze.data.split_names import SPLIT_WORDS, split_of

_KEYS = "|".join(word for word in sorted(SPLIT_WORDS, key=len, reverse=True) if word.isascii())
# Folder names may contain commas: only a comma followed by a split word and `=` is a separator.
_SEPARATOR = re.compile(rf",\s*(?=(?:{_KEYS})\s*=)", re.IGNORECASE)


def _example() -> str:
    return (
        f"{option('split', 'train=FOLDER,test=FOLDER')} (several of one split: train=A+B), or "
        f"{option('split', 'none')} to pool all"
    )


def named_splits(root: Folder, text: str, source: SourceFolder, class_first: bool = False) -> Layout:
    """Parse a split option such as `train=trainset+extra,test=holdout_2020`.

    Args:
        root: Folder tree of the source.
        text: Comma-separated split=folder items. A folder is a path in the source, the name of a folder below wrapper
            folders, or the name of a folder in every class folder.
        source: Source information for messages.
        class_first: Whether the split folders are inside the class folders (`--reader class_folders`).

    Returns:
        The layout.

    Raises:
        SourceError: If the text is malformed, a split or folder is unknown, a folder is named twice, or there is no
            training folder.
    """
    chosen = {
        split: [_found(root, name, source) for name in names] for split, names in _parsed(root, text, source).items()
    }
    if "train" not in chosen:
        raise SourceError(f"{option('split', text)}: names no folder to train on. Write it as {_example()}.")
    if class_first or any(len(found) > 1 for each in chosen.values() for found in each):
        return _class_first(root, text, chosen, source)
    single = {split: [found[0] for found in each] for split, each in chosen.items()}
    paths = sorted(one.path for each in single.values() for one in each)
    for one, other in pairwise(paths):  # sorted, so that a folder precedes its subfolders
        if within(other, one):
            raise SourceError(
                f"{option('split', text)}: names '{one}' and '{other}', which is the same folder or a part of it."
            )
    at = root
    while (
        below := next((b for b in at.subfolders if all(p.startswith(f"{b.path}/") for p in paths)), None)
    ) is not None:
        at = below
    return split_layout(root, at, single, source)


def _parsed(root: Folder, text: str, source: SourceFolder) -> dict[str, list[str]]:
    """Parse the option text into split -> folder names as written."""
    chosen: dict[str, list[str]] = {}
    for part in _SEPARATOR.split(text):
        key, equals, value = part.partition("=")
        split = split_of(key.strip()) if equals else None
        if not equals:
            raise SourceError(
                f"{source.path}: {option('split', text)} names no folders, and a folder has no columns. "
                f"Write it as {_example()}."
            )
        if split is None or not value.strip():
            raise SourceError(
                f"{option('split', text)}: {part!r} is not of the form SPLIT=FOLDER. Write it as {_example()}."
            )
        # Folder names may contain a plus sign: it is a separator only if no folder has the whole name.
        names = [value] if _matches(root, value, source) else value.split("+")
        chosen.setdefault(split, []).extend(names)
    return chosen


def _found(root: Folder, name: str, source: SourceFolder) -> list[Folder]:
    found = _matches(root, name, source)
    if not found:
        names = [one.path for one in root.walk()]
        raise SourceError(
            f"{source.path}: no folder '{name.strip()}' with images in it ({option('split')})."
            f"{did_you_mean(name.strip(), names)} "
            f"There are {join_names(names) or 'no folders'}."
        )
    return found


def _matches(root: Folder, name: str, source: SourceFolder) -> list[Folder]:
    """The folder at this path, otherwise the least nested folders with this name."""
    path = re.sub(r"/+", "/", name.strip()).removeprefix("./").rstrip("/")
    for prefix in ("", source.path.rstrip("/") + "/", f"{root.name}/"):
        if prefix and not path.startswith(prefix):
            continue
        if found := root.find(path.removeprefix(prefix)):
            return [found]
    like = [one for one in root.walk() if folded(f"/{one.path}").endswith(folded(f"/{path}"))]
    depth = min((one.path.count("/") for one in like), default=0)
    return [one for one in like if one.path.count("/") == depth]


def _class_first(root: Folder, text: str, chosen: dict[str, list[list[Folder]]], source: SourceFolder) -> Layout:
    """Layout with splits below classes: each name refers to the folders of that name in all class folders."""
    found = [(split, one) for split, each in chosen.items() for some in each for one in some]
    parents = {one.path.rpartition("/")[0].rpartition("/")[0] if "/" in one.path else None for _, one in found}
    base = next(iter(parents))
    if len(parents) > 1 or base is None or (base and base != as_classes(root).base):
        where = join_names(one.path for _, one in found)
        raise SourceError(
            f"{source.path}: {option('split', text)} could mean {where}. Give whole paths: "
            f"{option('split', 'train=A/B,test=C/D')}."
        )
    splits = {(one.name, split) for split, one in found}
    if len({name for name, _ in splits}) < len(splits):
        raise SourceError(f"{option('split', text)}: names a folder as two splits. Write it as {_example()}.")
    return Layout(
        "split_folders", base, tuple(Split(name, split, "") for name, split in sorted(splits)), class_first=True
    )


def parse_folders(root: Path, options: Source) -> ParsedSource:
    """Read images from class folders and split folders.

    The layout is recognized automatically unless `options.reader` (class_folders, split_folders) or `options.split`
    determines it.

    Args:
        root: Source folder.
        options: How to read the source.

    Returns:
        The parsed source.

    Raises:
        SourceError: If there are no images, or the layout is ambiguous or invalid.
    """
    found = scan_folder(root)
    if not found.photos:
        raise found.no_photos(root)
    tree = folder_tree(root.resolve().name, found.photos)

    def remedy(folders: Sequence[Folder]) -> str:
        return table_beside(root, found.others, found.photos, [one.path for one in folders])

    layout = _layout(tree, options, SourceFolder(str(root), remedy))
    return _draft(root, found, tree, layout, pooled=options.split == "none")


def _layout(tree: Folder, options: Source, source: SourceFolder) -> Layout:
    pooled = options.split == "none"
    if options.split and not pooled:
        return named_splits(tree, options.split, source, class_first=options.reader == "class_folders")
    if options.reader == "class_folders":
        return as_classes(tree)
    if options.reader == "split_folders":
        return as_splits(tree, source, pooled)
    return recognize(tree, source, pooled)


def _draft(root: Path, found: FolderContents, tree: Folder, layout: Layout, pooled: bool) -> ParsedSource:
    """Apply the layout to all images; images and folders that are left out are reported as findings."""
    folders = [_folder(path) for path in found.photos]
    placed = {folder: layout.place(folder) for folder in set(folders)}
    places = [placed[folder] for folder in folders]
    rows = [
        (path, place[0], "train" if pooled else place[1])
        for path, place in zip(found.photos, places, strict=True)
        if place
    ]
    without = [path for path, place in zip(found.photos, places, strict=True) if not place]
    unlabeled = [path for path in without if layout.is_unlabeled(_folder(path))]
    loose = [path for path in without if not layout.is_unlabeled(_folder(path))]
    if not rows:
        remedy = table_beside(root, found.others, found.photos, [""]) or "Or give a CSV that names their classes."
        raise SourceError(
            f"{root}: {pluralize(len(found.photos), 'photo')}, none of them in a class folder "
            f"({join_names(found.photos, 2)}). Sort them into one folder a class. {remedy}"
        )
    labels = {label for _, label, _ in rows}
    if len(labels) == 1 and not layout.splits:
        only = next(iter(labels))
        at = (tree.find(layout.base) or tree).children[only]
        hint = f" Its subfolders look like classes: give {root / at.path}." if len(at.children) > 1 else ""
        if not at.children and (table_hint := table_beside(root, found.others, found.photos, [at.path])):
            hint = f" {table_hint}"
        raise one_class(only, str(root), hint)
    filled = {folder.path for folder in tree.walk()}
    empty = [folder for folder in found.folders if folder not in filled and layout.is_class_folder(folder)]
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    table["group"] = table["path"]
    return ParsedSource(
        root=root.resolve(),
        table=table,
        attributes=("label",),
        taken=" ".join(["split folders" if layout.splits else "class folders", _shown(root, layout.base)]),
        grouping="each photo its own group",
        splitting=layout.described(pooled),
        findings=(*found.findings(), *layout.findings, *_findings(root, layout, loose, unlabeled, empty)),
        reader=layout.kind,
    )


def _findings(
    root: Path, layout: Layout, loose: list[str], unlabeled: list[str], empty: list[str]
) -> tuple[Finding, ...]:
    """Findings about images and folders that are not used."""
    more = (
        f" If {join_names(layout.left_out)} belongs to a split, name it: {option('split', 'train=A+B,test=C')}."
        if layout.left_out
        else ""
    )
    folders, first = join_names(layout.unlabeled), shlex.quote(str(root / next(iter(layout.unlabeled), "")))
    findings = (
        skipped(
            "no_class",
            "warning",
            loose,
            "photo outside of class folders",
            "photos outside of class folders",
            f"Move them into a class folder.{more}",
        ),
        skipped(
            "unlabeled",
            "info",
            unlabeled,
            f"image without a class in {folders}",
            f"images without a class in {folders}",
            f"None needed: a run predicts them, unfreeze predict RUN {first}.",
        ),
        skipped(
            "empty_class",
            "warning",
            empty,
            "class folder without photos",
            "class folders without photos",
            "Remove them, or add their photos.",
        ),
    )
    return tuple(finding for finding in findings if finding is not None)


def folder_of(source: object, options: Source) -> Path:
    """Validate that the source is a folder and that no option refers to columns.

    Args:
        source: The source.
        options: How to read the source.

    Returns:
        The source folder.

    Raises:
        SourceError: If the source is not a path, or an option requires a table.
    """
    if not isinstance(source, Path):
        raise SourceError(f"a DataFrame is not a folder. Leave {option('reader')} out.")
    if options.group:
        raise SourceError(
            f"{source}: a folder has no column '{options.group}' ({option('group')}). Give {option('group_regex')} "
            "with a "
            "pattern for the paths, or a CSV with a group column."
        )
    given = {"label": options.label, "path": options.path_column, "root": options.root}
    useless = [option(name) for name, value in given.items() if value]
    if useless:
        raise SourceError(f"{source}: {join_names(useless)} cannot be used with a folder. Leave it out, or give a CSV.")
    return source


def one_class(name: str, root: str, hint: str = "") -> SourceError:
    """Build the error for a data set with a single class."""
    return SourceError(f"{root}: needs at least two classes; found only '{name}'.{hint}")


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _shown(root: Path, base: str) -> str:
    return f"{root.name}/{base}" if base else root.name
