"""Folder tree of an image data set, and the layout recognized in it.

`Folder` is a tree built from image paths. `Layout` maps each folder to a label and a split. The functions below
classify folders by name and nesting: split folders, wrapper folders around the data set, and class folders.
`layouts` combines them into a decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from unfreeze.core.dataset import Finding
from unfreeze.core.names import nfc
from unfreeze.data.split_names import (
    in_order,
    is_container_name,
    is_dataset_name,
    is_unlabeled_name,
    split_name,
    split_of,
    splitting,
    tokens_of,
)


@dataclass
class Folder:
    """A folder that contains images, directly or in subfolders.

    Attributes:
        path: Path relative to the source, with `/`; empty for the source itself.
        name: Folder name.
        direct: Number of images directly in the folder.
        images: Number of images in the folder and all subfolders.
        children: Subfolders that contain images, by name.
    """

    path: str
    name: str
    direct: int = 0
    images: int = 0
    children: dict[str, Folder] = field(default_factory=dict)

    @property
    def subfolders(self) -> list[Folder]:
        """Subfolders sorted by name."""
        return [self.children[name] for name in sorted(self.children)]

    @property
    def names(self) -> set[str]:
        """Subfolder names in NFC, for comparison between folders."""
        return set(map(nfc, self.children))

    def find(self, path: str) -> Folder | None:
        """Find a folder by relative path.

        An exact match has priority. Otherwise a match that ignores case and Unicode normalization is used if it is
        unique.

        Args:
            path: Path relative to this folder, with `/`.

        Returns:
            The folder, or None if there is none or the match is ambiguous.
        """
        at = self
        for part in path.split("/"):
            exact = at.children.get(part)
            like = [child for name, child in at.children.items() if folded(name) == folded(part)]
            if exact is None and len(like) != 1:
                return None
            at = exact or like[0]
        return at

    def walk(self) -> Iterator[Folder]:
        """Yield all subfolders in breadth-first order."""
        level = self.subfolders
        while level:
            yield from level
            level = [child for folder in level for child in folder.subfolders]


# Archive members can be nested arbitrarily deep; deeper levels are irrelevant to the layout.
_DEPTH = 16


def folder_tree(name: str, images: Iterable[str]) -> Folder:
    """Build the tree of folders that contain images.

    Images below the maximum depth are counted in the deepest folder that is kept.

    Args:
        name: Name of the source.
        images: Image paths relative to the source, with `/`.

    Returns:
        The root of the tree.
    """
    root = Folder("", name)
    for path, count in Counter(image.rpartition("/")[0] for image in images).items():
        at = root
        at.images += count
        for part in path.split("/", _DEPTH)[:_DEPTH] if path else []:
            below = f"{at.path}/{part}" if at.path else part
            at = at.children.setdefault(part, Folder(below, part))
            at.images += count
        at.direct += count
    return root


@dataclass(frozen=True)
class Split:
    """A folder used as a split.

    Attributes:
        path: Folder path relative to the source. If `Layout.class_first`, the folder name only.
        split: "train" or "test".
        classes: Path of the folder that contains its class folders: `path` or a folder below it.
    """

    path: str
    split: str
    classes: str


@dataclass(frozen=True)
class Layout:
    """The class folders and split folders of a source.

    Attributes:
        kind: Name of the reader that handles this layout.
        base: Folder that contains the classes or splits: empty, or the path below the wrapper folders.
        splits: Split folders; empty for plain class folders.
        class_first: Whether split folders are inside class folders. `splits` then holds their names.
        unlabeled: Paths of folders whose images have no class.
        left_out: Paths of folders that are neither a class nor a split.
        findings: Notes for the user about the choice.
    """

    kind: Literal["class_folders", "split_folders"]
    base: str = ""
    splits: tuple[Split, ...] = ()
    class_first: bool = False
    unlabeled: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def place(self, folder: str) -> tuple[str, str] | None:
        """Label and split of the images in a folder, or None if the folder is not inside a class folder."""
        if not self.splits:
            below = _below(folder, self.base)
            return (below[0], "train") if below else None
        if self.class_first:
            below = _below(folder, self.base)
            split = {one.path: one.split for one in self.splits}.get(below[1]) if len(below) > 1 else None
            return (below[0], split) if split else None
        for one in self.splits:
            if below := _below(folder, one.classes):
                return below[0], one.split
        return None

    def is_class_folder(self, folder: str) -> bool:
        """Whether a folder is at the level of the class folders, even if it contains no images."""
        parent = folder.rpartition("/")[0]
        bases = {*(one.classes for one in self.splits), *self.unlabeled}
        if self.class_first or not self.splits:
            bases = {self.base}
        return parent in bases

    def is_unlabeled(self, folder: str) -> bool:
        """Whether a folder is one of the unlabeled folders or inside one."""
        return any(within(folder, one) for one in self.unlabeled)

    def described(self, pooled: bool) -> str:
        """Describe the split assignment for `ImageDataset.choice`.

        Args:
            pooled: Whether all splits are pooled.

        Returns:
            A description; empty if there are no splits.
        """
        if not self.splits:
            return ""
        roles = {one.path: one.split for one in self.splits}
        said = f"{' + '.join(in_order(roles))} pooled, nothing kept for testing" if pooled else splitting(roles)
        if self.class_first:
            said += ", in each class folder"
        # Folders between a split and its classes, such as `images` in train/images/cat.
        wrapped = [one.classes for one in self.splits if one.classes != one.path and not self.class_first]
        if wrapped:
            said += f", classes in {' and '.join(in_order(wrapped))}"
        without = [("without classes", self.unlabeled), ("left out", self.left_out)]
        return said + "".join(f", {' + '.join(in_order(paths))} {what}" for what, paths in without if paths)


def folded(name: str) -> str:
    """Case-folded name in NFC. macOS stores Hangul and accented characters decomposed."""
    return nfc(name).casefold()


def within(folder: str, other: str) -> bool:
    """Whether a folder path equals another one or is inside it."""
    return not other or folder == other or folder.startswith(f"{other}/")


def _below(folder: str, base: str) -> list[str]:
    """Path components of `folder` below `base`; empty if it is not below."""
    if not folder or folder == base or not within(folder, base):
        return []
    return (folder[len(base) + 1 :] if base else folder).split("/")


@dataclass(frozen=True)
class Level:
    """Subfolders of one folder, partitioned by name.

    Attributes:
        folder: The parent folder.
        splits: Subfolders named like splits.
        unlabeled: Subfolders whose names mark unlabeled images, or carry no information (`images`).
        others: All other subfolders: classes, or splits with unknown names.
    """

    folder: Folder
    splits: list[Folder]
    unlabeled: list[Folder]
    others: list[Folder]


def level_of(folder: Folder) -> Level:
    kids = folder.subfolders
    named = {one.name: split_name(one.name) for one in kids}
    words: dict[tuple[str, ...], set[str]] = {}
    for found in named.values():
        if found:
            words.setdefault(found.rest, set()).add(found.word)
    # `fruit_train` next to `fruit_test` is a split; `training shoes` next to `dress shoes` is a class.
    splits = [
        one
        for one in kids
        if (found := named[one.name]) and (not found.rest or len(words[found.rest]) > 1 or kids == [one])
    ]
    unlabeled = [
        one for one in kids if one not in splits and (is_unlabeled_name(one.name) or is_container_name(one.name))
    ]
    order = in_order(one.name for one in splits)  # training first, in messages and in the table search
    splits.sort(key=lambda one: order.index(one.name))
    return Level(folder, splits, unlabeled, [one for one in kids if one not in splits and one not in unlabeled])


def unwrapped(folder: Folder) -> Folder:
    """Descend through folders with a single subfolder, until one is named like a split."""
    while len(folder.subfolders) == 1 and not split_name(folder.subfolders[0].name):
        folder = folder.subfolders[0]
    return folder


def is_wrapper(only: Folder) -> bool:
    """Whether a single subfolder wraps the data set, as opposed to being a class."""
    if is_container_name(only.name):
        return True
    if not only.subfolders:
        return False
    if is_dataset_name(only.name):
        return True
    level = level_of(unwrapped(only))
    return bool(level.splits) and (not level.others or any(class_root(one).subfolders for one in level.splits))


def holds_splits(folder: Folder) -> bool:
    """Whether a folder consists of split folders.

    True if every subfolder is a split or unlabeled folder, at least one is a split, and at least half of the images are
    inside subfolders.
    """
    return (
        bool(folder.subfolders)
        and 2 * folder.direct <= folder.images
        and all(split_of(one.name) or is_unlabeled_name(one.name) for one in folder.subfolders)
        and any(split_of(one.name) for one in folder.subfolders)
    )


def split_folders_of(folder: Folder) -> set[str]:
    return {one.name for one in folder.subfolders if split_of(one.name)}


def is_product(kids: Sequence[Folder]) -> bool:
    """Whether folder names combine split and class: train_cat, train_dog, test_cat."""
    found = [split_name(one.name) for one in kids]
    return all(found) and len({one.word for one in found if one}) > 1 and len({one.rest for one in found if one}) > 1


def are_parts(kids: Sequence[Folder]) -> bool:
    """Whether folders are numbered parts of one image set: images_001, images_002."""
    names = {tuple(token for token in tokens_of(one.name) if not token.isdecimal()) for one in kids}
    return len(kids) > 1 and len(names) == 1 and any(is_container_name(word) for word in next(iter(names)))


def class_root(folder: Folder, known: frozenset[str] = frozenset()) -> Folder:
    """Find the folder below a split that contains its class folders.

    Skips duplicated folders (`train/train`) and wrapper folders (`train/images`).

    Args:
        folder: The split folder.
        known: Class names found in other splits. A folder with such a name is a class, even if it is called `images` or
            `test`.

    Returns:
        The folder that contains the class folders; `folder` itself if nothing is skipped.
    """
    at = folder
    while len(at.subfolders) == 1 and not at.direct and nfc((only := at.subfolders[0]).name) not in known:
        same = split_of(only.name) is not None and split_of(only.name) == split_of(folder.name)
        if not (same or folded(only.name) == folded(at.name) or is_container_name(only.name)):
            break
        at = only
    return at


def says_nothing(folder: Folder) -> bool:
    """Whether the only subfolder of a test split holds images without giving their class, as in test/unknown."""
    name = folder.name
    unnamed = name.casefold() == "unknown" or split_of(name) or is_unlabeled_name(name) or is_container_name(name)
    return not folder.subfolders and bool(unnamed)


def shared_subfolders(folders: Sequence[Folder], least: int = 2) -> list[str]:
    """Sorted subfolder names that all folders share.

    Args:
        folders: Folders to compare.
        least: Minimum number of shared names.

    Returns:
        The shared names; empty if there are fewer than `least`, or less than half of all names are shared.
    """
    inner = [class_root(one).names for one in folders]
    if len(inner) < 2:
        return []
    shared = set.intersection(*inner)
    return sorted(shared) if len(shared) >= least and 2 * len(shared) >= len(set.union(*inner)) else []


def holds_classes(folder: Folder, labels: set[str]) -> bool:
    """Whether at least two, and at least half, of the subfolders have the names of known classes."""
    names = class_root(folder).names
    return len(names & labels) > 1 and 2 * len(names & labels) >= len(names)


def folder_at(at: Folder, path: str) -> Folder:
    """The folder at `path`, a source-relative path inside `at`; `at` itself if there is none."""
    below = path[len(at.path) :].strip("/")
    return (at.find(below) or at) if below else at
