"""Photos in class folders, alone or within splits."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from unfreeze.core.errors import SourceError, listed
from unfreeze.core.recipe_sections import Source
from unfreeze.data.walk import SPLIT_WORDS, Draft, Found, counted, is_hidden, skipped, splitting, walk


def has_splits(source: object) -> bool:
    """Whether this is a folder with train/ and val/ or test/, each with class folders."""
    if not isinstance(source, Path) or not source.is_dir():
        return False
    folders = _subfolders(source)
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_WORDS]
    train = [folder for folder in splits if folder.name.lower() in ("train", "training")]
    # `train` may also be a class, beside `bus` and `car`: so it needs class folders of its own, and company
    # that are splits as well, or no company at all.
    return any(_subfolders(folder) for folder in train) and (len(splits) > 1 or len(folders) == 1)


def split_draft(root: Path, options: Source) -> Draft:
    """Class folders inside train/, val/, test/: training and validation pooled, test kept apart."""
    found = walk(root)
    pool = options.split == "none"
    rows, loose = [], list[str]()
    words = set()
    for path in found.photos:
        folder, _, rest = path.partition("/")
        label, inside, _ = rest.partition("/")
        word = folder.lower()
        if inside and word in SPLIT_WORDS:
            words.add(word)
            rows.append((path, label, "train" if pool else SPLIT_WORDS[word]))
        else:
            loose.append(path)
    filled = {"/".join(path.split("/")[:2]) for path, *_ in rows}
    class_folders = (f for f in found.folders if f.count("/") == 1 and f.partition("/")[0].lower() in SPLIT_WORDS)
    empty = [folder for folder in class_folders if folder not in filled]
    pooled = f"{' + '.join(word for word in SPLIT_WORDS if word in words)} pooled, nothing kept for testing"
    said = pooled if pool else splitting(words)
    return _folder_draft(root, found, rows, loose, empty, f"split folders {root.name}", said)


def class_draft(root: Path) -> Draft:
    """A folder a class, with photos at any depth below it."""
    found = walk(root)
    rows = [(path, path.partition("/")[0], "train") for path in found.photos if "/" in path]
    loose = [path for path in found.photos if "/" not in path]
    labels = {label for _, label, _ in rows}
    if len(labels) == 1:
        only = next(iter(labels))
        inner = {path.split("/")[1] for path, _, _ in rows if path.count("/") > 1}
        hint = f" Its subfolders look like classes: give {root / only}." if len(inner) > 1 else ""
        raise one_class(only, str(root), hint)
    empty = [folder for folder in found.folders if "/" not in folder and folder not in labels]
    return _folder_draft(root, found, rows, loose, empty, f"class folders {root.name}")


def _folder_draft(
    root: Path,
    found: Found,
    rows: list[tuple[str, str, str]],
    loose: list[str],
    empty: list[str],
    taken: str,
    splitting: str = "",
) -> Draft:
    """What both folder readers do with (path, label, split) rows, photos of no class, and class folders."""
    if not found.photos:
        raise found.no_photos(root)
    if not rows:
        raise SourceError(
            f"{root}: {counted(len(loose), 'photo')}, none of them in a class folder ({listed(loose, 2)}). "
            "Sort them into one folder a class, or give a CSV that names their classes."
        )
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    table["group"] = table["path"]
    findings = [
        *found.findings(),
        skipped(
            "no_class",
            "warning",
            loose,
            "photo outside of class folders",
            "photos outside of class folders",
            "Move them into a class folder.",
        ),
        skipped(
            "empty_class",
            "warning",
            empty,
            "class folder without photos",
            "class folders without photos",
            "Remove them, or add their photos.",
        ),
    ]
    return Draft(
        root=root.resolve(),
        table=table,
        attributes=("label",),
        taken=taken,
        grouping="each photo its own group",
        splitting=splitting,
        findings=tuple(finding for finding in findings if finding is not None),
    )


def folder_of(source: object, options: Source) -> Path:
    """The folder itself, once no option was given that speaks of columns. SourceError otherwise."""
    if not isinstance(source, Path):
        raise SourceError("a DataFrame is no folder. Leave --reader out.")
    if options.group:
        raise SourceError(
            f"{source}: a folder has no column '{options.group}' (--group). Give --group-regex with a "
            "pattern for the paths, or a CSV with a group column."
        )
    split = "" if options.split == "none" else options.split
    given = {
        "--label": options.label,
        "--path-column": options.path_column,
        "--split": split,
        "--root": options.root,
    }
    useless = [name for name, value in given.items() if value]
    if useless:
        raise SourceError(f"{source}: a folder has no use for {listed(useless)}. Leave it out, or give a CSV.")
    return source


def one_class(name: str, root: str, hint: str = "") -> SourceError:
    """The error for photos that are all of one class."""
    return SourceError(f"{root}: needs at least two classes; found only '{name}'.{hint}")


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not is_hidden(path.name) and path.is_dir()]
