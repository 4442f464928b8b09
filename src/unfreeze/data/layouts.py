"""Recognition of the folder layout: which folders are classes and which are splits.

The decision uses only folder names and nesting, so folders on disk and folders in archives are treated alike.
Ambiguous layouts are rejected with an error that names the option to resolve them: `--reader class_folders`,
`--reader split_folders`, or `--split` with folder names.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import SourceError, join_names
from unfreeze.core.format import pluralize
from unfreeze.core.messages import from_command_line, option, wording
from unfreeze.core.names import nfc
from unfreeze.data.layout_tree import (
    Folder,
    Layout,
    Level,
    Split,
    are_parts,
    class_root,
    folded,
    folder_at,
    holds_classes,
    holds_splits,
    is_product,
    is_wrapper,
    level_of,
    says_nothing,
    shared_subfolders,
    split_folders_of,
    unwrapped,
    within,
)
from unfreeze.data.split_names import TRAIN_WORDS, in_order, is_container_name, is_unlabeled_name, split_name, split_of

Remedy = Callable[[Sequence[Folder]], str]
"""Returns a sentence that says where the labels of images without class folders are, or an empty string."""


def as_classes_remedy() -> str:
    """Sentence that tells the user how to treat the folders as classes."""
    return f"If these folders are the classes: {option('reader', 'class_folders')}."


@dataclass(frozen=True)
class SourceFolder:
    """Source information for error messages.

    Attributes:
        path: Path of the source as the user gave it.
        remedy: Finds where the labels of images without class folders may be.
    """

    path: str
    remedy: Remedy = lambda folders: ""

    def refused(self, folder: Folder, what: str, *remedies: str) -> SourceError:
        """Build the error for a layout that cannot be read as it is."""
        return SourceError(" ".join([f"{self.at(folder)}: {what}.", *filter(None, remedies)]))

    def at(self, folder: Folder) -> str:
        """Displayed path of a folder."""
        return f"{self.path.rstrip('/')}/{folder.path}" if folder.path else self.path


def recognize(root: Folder, source: SourceFolder, pooled: bool = False) -> Layout:
    """Recognize the layout from folder names and nesting.

    Args:
        root: Folder tree of the source.
        source: Source information for messages.
        pooled: Whether the splits will be pooled (`--split none`).

    Returns:
        The layout.

    Raises:
        SourceError: If the folders could be classes or splits, or images are not in class folders.
    """
    at = root
    while True:
        level = level_of(at)
        if len(at.subfolders) == 1 and folded(at.subfolders[0].name) == folded(at.name):
            at = at.subfolders[0]  # test/test, where the user passed the outer folder
            continue
        if level.splits and (found := _splits(level, source, pooled)):
            return found
        only = at.subfolders[0] if len(at.subfolders) == 1 else None
        if only is None or not is_wrapper(only):
            break
        at = only
    if not at.subfolders and at is not root:
        raise _without_classes(source, root, [at])
    return replace(found := _classes(at, source), findings=(*found.findings, *_split_names(at, found, source)))


def as_classes(root: Folder) -> Layout:
    """Treat folders as classes regardless of their names, below any wrapper folders."""
    at = root
    while len(at.subfolders) == 1 and at.subfolders[0].subfolders:
        at = at.subfolders[0]
    return Layout("class_folders", at.path)


def _split_names(at: Folder, found: Layout, source: SourceFolder) -> tuple[Finding, ...]:
    """Findings about classes that are named like splits."""
    names = [one.name for one in at.subfolders if split_of(one.name)] if not found.splits else []
    if not names:
        return ()
    several = len(names) > 1
    return (
        Finding(
            "split_names",
            "warning" if several else "info",
            f"{'classes' if several else 'a class'} named like {'splits' if several else 'a split'}: "
            f"{join_names(names)}",
            f"None needed if that is meant. Images of a split need class folders: {source.at(at)}/{names[0]}/CLASS/.",
        ),
    )


def as_splits(root: Folder, source: SourceFolder, pooled: bool = False) -> Layout:
    """Treat folders as splits.

    Args:
        root: Folder tree of the source.
        source: Source information for messages.
        pooled: Use all folders, not only those named like splits.

    Returns:
        The layout.

    Raises:
        SourceError: If no folder is named like a split, or none contains class folders.
    """
    at = root
    while len(at.subfolders) == 1 and not split_name(at.subfolders[0].name) and at.subfolders[0].subfolders:
        at = at.subfolders[0]
    chosen = at.subfolders if pooled else [one for one in at.subfolders if split_name(one.name)]
    if not chosen:
        raise source.refused(
            root,
            "not for the reader 'split_folders': no folder is named like a split, as train/ and test/ are",
            f"Name the folders: {option('split', 'train=FOLDER,test=FOLDER')}.",
        )
    splits = [_split(one) for one in chosen]
    found = _with_classes(at, splits, [one for one in at.subfolders if one not in chosen])
    if not found.splits:
        raise _without_classes(source, at, chosen)
    return found


def split_layout(root: Folder, at: Folder, chosen: dict[str, list[Folder]], source: SourceFolder) -> Layout:
    """Build the layout for explicitly chosen split folders.

    Args:
        root: Folder tree of the source.
        at: Folder that contains all chosen folders.
        chosen: Split name -> its folders.
        source: Source information for messages.

    Returns:
        The layout.

    Raises:
        SourceError: If a training folder contains no class folders.
    """
    splits = [Split(one.path, split, one.path) for split, folders in chosen.items() for one in folders]
    taken = [folder for folders in chosen.values() for folder in folders]
    rest = [one for one in at.subfolders if not any(f"{each.path}/".startswith(f"{one.path}/") for each in taken)]
    by_path = {one.path: one for one in taken}
    found = _with_classes(at, [(split, by_path[split.path]) for split in splits], rest)
    untrained = [one for one in chosen.get("train", []) if one.path in found.unlabeled]
    if untrained:
        raise _without_classes(source, at, untrained)
    return found


def _splits(level: Level, source: SourceFolder, pooled: bool) -> Layout | None:
    """The layout of the split folders at one level; None if their names are class names."""
    at, splits, others = level.folder, level.splits, level.others
    if len(at.subfolders) == 1 and holds_splits(splits[0]) and len(split_folders_of(splits[0])) > 1:
        return None  # train_test/{train, test}: a wrapper
    deep = [one for one in splits if class_root(one).subfolders]
    strong = [one for one in splits if split_of(one.name)]
    if not deep:
        return _flat(level, source)
    if not strong and len(at.subfolders) > 1:
        # `dev board` and `test board` are classes with subfolders; `pets_train` and `pets_test` are splits.
        trains = [one for one in deep if (name := split_name(one.name)) and name.split == "train"]
        if not trains or (len(deep) > 1 and not shared_subfolders([*deep, *others], least=1)):
            raise _unsure(source, at, splits)
    labels = {name for one in deep for name in class_root(one).names}
    alike = [one for one in others if holds_classes(one, labels)]
    if alike and pooled:
        splits = [*splits, *alike]
    elif alike:
        names = [one.name for one in alike]
        raise source.refused(
            at,
            f"the subfolders of {join_names(names)} are those of {join_names(one.name for one in splits)}, "
            "but the name says no split",
            f"Name the folders of each split, and leave out what is none: {mapping_of(splits, alike)}.",
            as_classes_remedy(),
        )
    elif len(splits) == 1 and others:
        # `bus`, `car` and `train` are vehicle classes, unless only `train` has subfolders.
        if any(one.subfolders for one in others) or len(class_root(splits[0]).subfolders) < 2:
            return None
        raise _unsure(source, at, splits)
    found = _with_classes(at, [_split(one) for one in splits], [*level.unlabeled, *others])
    if not found.splits:
        raise _without_classes(source, at, splits)
    _refuse_untrained(found, at, splits, source)
    inner = [below for one in found.splits for below in folder_at(at, one.classes).subfolders]
    if all(split_of(one.name) for one in inner):
        if not any(one.subfolders for one in inner):
            raise _without_classes(source, at, inner)
        raise source.refused(
            at,
            f"{join_names(one.path for one in found.splits)} holds folders named like splits "
            f"({join_names(one.name for one in inner)})",
            f"Name the folders to train and to test on: {mapping_of(inner)}.",
        )
    if (
        len({nfc(one.name) for one in inner}) > 1
        and not any(one.direct for one in inner)
        and (shared := shared_subfolders(inner))
    ):
        below = [Split(one.path, next(s.split for s in found.splits if within(one.path, s.path)), "") for one in inner]
        raise source.refused(
            at,
            f"{join_names(dict.fromkeys(one.name for one in inner))} hold the same subfolders ({join_names(shared)}), "
            "so that the classes may be the folders or the subfolders",
            f"If the folders are the classes: {_mapping(found.splits, pooled)}.",
            f"If the subfolders are: {_mapping(below, pooled)}.",
        )
    return found


def _mapping(splits: Sequence[Split], pooled: bool) -> str:
    """The `--split` option that names these splits explicitly."""
    chosen: dict[str, list[str]] = {}
    for one in splits:
        chosen.setdefault("train" if pooled else one.split, []).append(one.path)
    return mapping_option(",".join(f"{split}={'+'.join(paths)}" for split, paths in chosen.items()))


def _flat(level: Level, source: SourceFolder) -> Layout | None:
    """Handle folders that are named like splits but contain images and no class folders.

    Returns:
        None if the folders are classes.

    Raises:
        SourceError: If the layout is ambiguous, or the images have no class folders.
    """
    at, splits = level.folder, level.splits
    if level.others:
        table = source.remedy([class_root(one) for one in splits]) if len(splits) > 1 else ""
        if table:
            raise source.refused(at, _counts(splits) + ", without class folders", table, as_classes_remedy())
        if is_product(at.subfolders):
            raise _unsure(source, at, splits)
        return None
    if not any(split_of(one.name) for one in splits):
        if len(at.subfolders) == 1:
            return None
        raise _unsure(source, at, splits)
    raise _without_classes(source, at, [*splits, *level.unlabeled])


def _without_classes(source: SourceFolder, at: Folder, folders: Sequence[Folder]) -> SourceError:
    """Build the error for images that are not in class folders."""
    several = len(at.subfolders) > 1
    remedy = source.remedy([class_root(one) for one in folders]) or (
        "Sort them into one folder per class, or give a table with a path and a label for each image."
    )
    return source.refused(
        at, f"{_counts(folders)}, none of them in a class folder", remedy, as_classes_remedy() if several else ""
    )


def _unsure(source: SourceFolder, at: Folder, splits: Sequence[Folder]) -> SourceError:
    names = join_names(one.name for one in splits)
    deep = any(class_root(one).subfolders for one in splits)
    may = "may be a split as well as a class" if len(splits) == 1 else "may be splits as well as classes"
    ways = (
        f"If they are splits: {option('reader', 'split_folders')}, or {mapping_of(splits)}."
        if deep
        else ("If they are splits, sort their images into class folders inside of each.")
    )
    return source.refused(at, f"{names} {may}", as_classes_remedy(), ways)


def _refuse_untrained(found: Layout, at: Folder, splits: Sequence[Folder], source: SourceFolder) -> None:
    """Raise `SourceError` if no training folder has class folders although other splits do."""
    trained = [one for one in splits if (name := split_name(one.name)) and name.word in TRAIN_WORDS]
    flat = [one for one in trained if one.path in found.unlabeled]
    if flat and len(flat) == len(trained):
        others = [one for one in splits if one not in flat]
        raise source.refused(
            at,
            f"{_counts(flat)}, none of them in a class folder, though {join_names(one.name for one in others)} "
            "has some",
            source.remedy([class_root(one) for one in flat]) or "Sort them into one folder per class.",
            f"To train on the others: {mapping_of(others)}.",
        )


def _classes(at: Folder, source: SourceFolder) -> Layout:
    """The layout of class folders, with or without split folders inside them.

    Raises:
        SourceError: If the classes may be at a lower level.
    """
    kids = at.subfolders
    inner = [one for one in kids if holds_splits(one)]
    wrapped = {one.name: unwrapped(one) for one in kids}
    several = [one for one in kids if holds_splits(wrapped[one.name]) and len(split_folders_of(wrapped[one.name])) > 1]
    if inner and len(inner) == len(kids) > 1:
        names = {below.name: split for one in kids for below in one.subfolders if (split := split_of(below.name))}
        nested = [below for one in kids for below in one.subfolders if class_root(below).subfolders]
        if not nested and not all(is_container_name(one.name) or one.name.casefold() in _COMPANIONS for one in kids):
            unlabeled = tuple(b.path for one in kids for b in one.subfolders if not split_of(b.name))
            splits = tuple(Split(name, split, "") for name, split in names.items())
            return Layout(
                "split_folders", at.path, splits, class_first=True, unlabeled=unlabeled, findings=_val_only(names)
            )
        mapping = ",".join(f"{split}={'+'.join(some)}" for split in ("train", "test") if (some := _of(names, split)))
        raise source.refused(
            at,
            f"{join_names(one.name for one in kids)} each hold the splits {join_names(in_order(names))}",
            f"If they are data sets, give one: {shlex.quote(source.at(kids[0]))}.",
            f"If they are classes: {option('reader', 'class_folders')} pools the splits, "
            f"{_both(option('reader', 'class_folders'), mapping_option(mapping))} keeps them.",
        )
    if several:
        which = (
            f"{several[0].name} holds" if len(several) < len(kids) else f"{join_names(one.name for one in kids)} hold"
        )
        raise source.refused(
            at,
            f"{which} split folders ({join_names(in_order(split_folders_of(wrapped[several[0].name])))})"
            + (", unlike the folders next to it" if len(several) < len(kids) else ""),
            f"Give that folder: {shlex.quote(source.at(several[0]))}.",
            as_classes_remedy(),
        )
    containers = [one for one in kids if is_container_name(one.name) and len(one.subfolders) > 1]
    if containers and len(kids) > 1:
        raise source.refused(
            at,
            f"{containers[0].name} is not named like a class, and holds folders "
            f"({join_names(sorted(containers[0].children))})",
            f"If those are the classes: {shlex.quote(source.at(containers[0]))}.",
            as_classes_remedy(),
        )
    again = [one for one in kids if len(one.children) > 1 and one.names <= at.names]
    if again:
        raise source.refused(
            at,
            f"{again[0].name} holds folders named like those next to it ({join_names(sorted(again[0].children))})",
            f"If it is a copy of them, remove it, or give it alone: {shlex.quote(source.at(again[0]))}.",
            as_classes_remedy(),
        )
    if len(kids) > 1 and not any(one.direct for one in kids) and (shared := shared_subfolders(kids)):
        raise source.refused(
            at,
            f"{join_names(one.name for one in kids)} hold the same subfolders ({join_names(shared)}), "
            "so that the classes may be the folders or the subfolders",
            f"If the folders are the classes: {option('reader', 'class_folders')}.",
            f"If the subfolders are: {_both(option('reader', 'split_folders'), option('split', 'none'))} pools them, "
            f"{mapping_of([], kids)} "
            f"makes splits of them, and {shlex.quote(source.at(kids[0]))} is one alone.",
        )
    if are_parts(kids) and (table := source.remedy(kids)):
        raise source.refused(at, f"{_counts(kids)}, none of them in a class folder", table, as_classes_remedy())
    return Layout("class_folders", at.path)


_COMPANIONS = frozenset(("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"))
"""Names of sibling folders of `images` that hold per-image annotations."""


def _of(names: dict[str, str], split: str) -> list[str]:
    return in_order(name for name, its in names.items() if its == split)


def _split(folder: Folder) -> tuple[Split, Folder]:
    name = split_name(folder.name)
    return Split(folder.path, name.split if name else "train", folder.path), folder


def _with_classes(at: Folder, splits: list[tuple[Split, Folder]], rest: Sequence[Folder]) -> Layout:
    """Build the layout of split folders, separating those with class folders from those with unlabeled images.

    Splits inside a split are expanded (`train/{train,val}`).
    """
    known = frozenset(name for _, one in splits if len(one.children) > 1 for name in one.names)
    opened = list[tuple[Split, Folder]]()
    for split, folder in splits:
        root = class_root(folder, known)
        if (
            holds_splits(root)
            and len(split_folders_of(root)) > 1
            and any(class_root(one).subfolders for one in root.subfolders)
        ):
            for one in root.subfolders:
                inner = split_of(one.name) or "train"
                opened.append((Split(one.path, "test" if split.split == "test" else inner, ""), class_root(one)))
        else:
            opened.append((split, root))
    # A single subfolder that all splits share is a wrapper, because it would be the only class: train/flowers/rose.
    while True:
        deep = [folder for _, folder in opened if folder.subfolders]
        below = [one.subfolders[0] for one in deep if len(one.subfolders) == 1 and not one.direct]
        below = [one for one in below if one.subfolders and not split_of(one.name)]
        if not deep or len(below) < len(deep) or len({nfc(one.name) for one in below}) > 1:
            break
        opened = [(split, folder.subfolders[0] if folder.subfolders else folder) for split, folder in opened]
    labels = {name for split, folder in opened if split.split == "train" for name in folder.names}
    found, unlabeled = list[Split](), list[str]()
    for split, folder in opened:
        only = folder.subfolders[0] if len(folder.subfolders) == 1 and not folder.direct else None
        if not folder.subfolders or (only and nfc(only.name) not in labels and says_nothing(only)):
            unlabeled.append(split.path)
        else:
            found.append(replace(split, classes=folder.path))
    names = {one.path.rpartition("/")[2]: one.split for one in found}
    unlabeled += [one.path for one in rest if is_unlabeled_name(one.name)]
    left_out = [one.path for one in rest if not is_unlabeled_name(one.name)]
    return Layout(
        "split_folders",
        at.path,
        tuple(found),
        unlabeled=tuple(unlabeled),
        left_out=tuple(left_out),
        findings=_val_only(names),
    )


def _val_only(splits: dict[str, str]) -> tuple[Finding, ...]:
    """Finding that the model trains on validation folders because there is no training folder."""
    trained = [found for name, split in splits.items() if split == "train" and (found := split_name(name))]
    if not trained or not all(found.validation for found in trained):
        return ()
    names = join_names(in_order(name for name, split in splits.items() if split == "train"))
    fix = (
        "None needed if that is all there is. Otherwise add the training images, or name the folders with "
        f"{option('split')}."
    )
    return (Finding("no_train", "warning", f"no training folder: {names} is trained on", fix),)


def _counts(folders: Sequence[Folder]) -> str:
    return ", ".join(f"{one.name} holds {pluralize(one.images, 'image')}" for one in folders)


def mapping_of(splits: Sequence[Folder], unnamed: Sequence[Folder] = ()) -> str:
    """Format the option `--split train=A+B,test=C` for folders.

    Args:
        splits: Folders; those without a split word in their name are assigned to training.
        unnamed: Folders assigned to the first unused split: training, then test.

    Returns:
        The option text. If nothing is assigned to training, the test folders are.
    """
    chosen: dict[str, list[str]] = {"train": [], "test": []}
    for one in splits:
        found = split_name(one.name)
        chosen[found.split if found else "train"].append(one.path)
    for one in unnamed:
        chosen["train" if not chosen["train"] or chosen["test"] else "test"].append(one.path)
    if not chosen["train"]:
        chosen = {"train": chosen["test"], "test": []}
    text = ",".join(f"{split}={'+'.join(paths)}" for split, paths in chosen.items() if paths)
    return mapping_option(text)


def _both(*options: str) -> str:
    return wording(" ", ", ").join(options)


def mapping_option(text: str) -> str:
    """Format `--split TEXT`, quoted for a shell on the command line, or the equivalent Python argument."""
    return option("split", shlex.quote(text) if from_command_line() else text)
