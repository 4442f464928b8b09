"""Listing of unlabeled images from files, folders, tables, archives, glob patterns and in-memory objects.

`list_images` handles a single path, `list_all` several command-line arguments, and `collected` the objects accepted by
the Python API, including images in memory.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from unfreeze.core.errors import SourceError, wrong_type
from unfreeze.core.names import on_disk
from unfreeze.core.recipe_schema import Source
from unfreeze.data.decode import MAX_BYTES
from unfreeze.data.directory_walk import (
    head_of,
    image_format,
    is_image_name,
    packed,
    readable_name,
    refuse_other_places,
    scan_folder,
    unreadable,
)
from unfreeze.data.in_memory import ACCEPTED, encoded, held, name_of
from unfreeze.data.read_tables import paths_of
from unfreeze.data.read_webdataset import is_shards, photos_in
from unfreeze.data.tar_index import has_member, split_path
from unfreeze.data.text_table import KINDS

OneImage: TypeAlias = (
    str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | bytes | bytearray | memoryview | IO[bytes]
)
Images: TypeAlias = OneImage | pd.DataFrame | Iterable[OneImage]
"""Types accepted by the Python API; `in_memory.ACCEPTED` describes them for messages."""
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Listing:
    """Images in input order.

    Attributes:
        root: Folder that the paths are relative to.
        paths: Paths relative to `root`, or names of in-memory images. These are the names that tables show.
    """

    root: Path
    paths: list[str]


def list_images(
    path: str | Path, options: Source | None = None, notice: Callable[[str], None] | None = None
) -> tuple[Path, list[str]]:
    """List the images of a file, folder, table, archive or glob pattern.

    Folder contents are sorted; tables and .tar files keep their order. A file without an image suffix is identified by
    its content. Hidden files and non-image files in a folder are skipped; images that cannot be decoded are
    kept. The path column of a table is found as in training (`options.path_column`, `options.root`).
    Absolute paths outside the root stay absolute.

    Args:
        path: A path or a pattern such as `photos/**/*.jpg`.
        options: How to read a table.
        notice: Called with one line if the paths of a table are not interpreted literally.

    Returns:
        Root folder and image paths relative to it.

    Raises:
        SourceError: If there are no images.
    """
    path = on_disk(_expanded(path))
    if is_shards(path):
        try:
            return photos_in(path)
        except OSError as error:
            raise unreadable(path, error) from None
    if path.is_dir():
        found = scan_folder(path)
        if not found.photos:
            raise found.no_photos(path)
        return path, found.photos
    if (inside := split_path(path)) and has_member(*inside):
        archive = Path(inside[0])
        return archive.parent, [f"{archive.name}/{inside[1]}"]
    if not path.is_file():
        if not exists(path):
            refuse_other_places(path)
            if matches := _matches(path):
                return list_all(matches, options, notice)
        raise SourceError(f"{path}: no such file or folder.")
    if is_image_name(path.name):
        return path.parent, [path.name]
    if path.suffix.lower() in KINDS:
        try:
            return paths_of(path, options or Source(), notice)
        except OSError as error:
            raise unreadable(path, error) from None
    if _is_image(path):
        return path.parent, [path.name]
    why = packed(path) or f"neither a photo, a folder of photos, a .tar, nor a table ({', '.join(sorted(KINDS))})."
    raise SourceError(f"{path}: {why}")


def expand(sources: Sequence[str | Path]) -> list[Path]:
    """Replace each glob pattern by its matches.

    An existing file whose name is a valid pattern is used literally.

    Args:
        sources: Paths and patterns.

    Returns:
        Paths in order.

    Raises:
        SourceError: If a source is a URL, or a pattern matches nothing.
    """
    found: list[Path] = []
    for source in sources:
        path = _expanded(source)
        if exists(path):
            found.append(path)
            continue
        refuse_other_places(path)
        inside = split_path(path)
        if (inside and has_member(*inside)) or not _PATTERN.search(str(path)):
            found.append(path)
        elif matches := _matches(path):
            found += map(Path, matches)
        else:
            raise SourceError(f"{path}: no file matches this pattern. Check the spelling.")
    return found


def list_all(
    sources: Sequence[str | Path], options: Source | None = None, notice: Callable[[str], None] | None = None
) -> tuple[Path, list[str]]:
    """List the images of several sources.

    Args:
        sources: Paths and patterns; see `list_images`.
        options: How to read tables.
        notice: Called with one line if the paths of a table are not interpreted literally.

    Returns:
        The deepest common folder, relative to the working directory if it is inside it, and the image paths relative to
        that folder: in order and without duplicates.

    Raises:
        SourceError: If there are no images, or they are on several Windows drives.
    """
    sources = expand(sources)
    if len(sources) == 1:
        return list_images(sources[0], options, notice)
    files: dict[str, None] = {}
    for source in sources:
        root, names = list_images(source, options, notice)
        files.update(dict.fromkeys(os.path.normpath(root.absolute() / name) for name in names))
    if not files:
        raise SourceError("no images given. Give files, folders, tables or patterns.")
    try:
        base = Path(os.path.commonpath([os.path.dirname(file) for file in files]))  # noqa: PTH120
    except ValueError:  # Windows
        raise SourceError("the images lie on several drives. Predict those of each drive apart.") from None
    names = [Path(file).relative_to(base).as_posix() for file in files]
    here = Path.cwd()
    return (base.relative_to(here) if base.is_relative_to(here) else base), names


@contextlib.contextmanager
def collected(images: Images | Listing, argument: str = "images") -> Iterator[Listing]:
    """Context manager that lists the images given to the Python API.

    While the block runs, `decode.read_bytes` can read every listed image, including in-memory ones.

    Args:
        images: Objects as described by `in_memory.ACCEPTED`. A single path is expanded by `list_images`. In a list, the
            path of an image is one image; folders, tables, archives and patterns are expanded. An in-memory image is
            named `<image N>`, where N is its zero-based position in the list.
        argument: Argument name for messages.

    Yields:
        The listing. A missing file in a list is kept, and fails when it is read.

    Raises:
        ArgumentTypeError: If an object has an unsupported type.
        SourceError: If there is nothing to list, an array has an unsupported shape, or a table has no column `path`.
    """
    if isinstance(images, Listing):
        yield images
        return
    if isinstance(images, str | os.PathLike):
        yield Listing(*list_images(_text(images, argument)))
        return
    if isinstance(images, pd.DataFrame):
        if "path" not in images.columns:
            names = ", ".join(map(str, images.columns))
            raise SourceError(f"{argument}: the table has no column 'path'; it has {names}.")
        images = images["path"].tolist()
    elif isinstance(images, np.ndarray) and images.dtype.kind in "OU":
        images = images.tolist()
    if (data := encoded(images, argument, MAX_BYTES)) is None:
        paths, in_memory = _each(images, argument)
    else:
        paths, in_memory = [name_of(0)], {name_of(0): data}
    with held(in_memory):
        yield Listing(Path(), paths)


def _each(images: Any, argument: str) -> tuple[list[str], dict[str, bytes]]:
    """Paths and names of the images in a list, and the bytes of in-memory images by name."""
    if isinstance(images, Mapping | set | frozenset) or not isinstance(images, Iterable) or _is_tensor(images):
        raise _refused(argument, images)
    paths: list[str] = []
    in_memory: dict[str, bytes] = {}
    for position, image in enumerate(images):
        called = f"{argument}[{position}]"
        if isinstance(image, str | os.PathLike):
            paths += _listed(_text(image, called))
        elif (data := encoded(image, called, MAX_BYTES)) is not None:
            in_memory[name_of(position)] = data
            paths.append(name_of(position))
        else:
            raise _refused(called, image)
    return paths, in_memory


def _refused(argument: str, value: Any) -> Exception:
    if _is_tensor(value):
        return wrong_type(
            argument, value, "a NumPy array of uint8, H x W x 3: tensor.permute(1, 2, 0).numpy(force=True)"
        )
    return wrong_type(argument, value, ACCEPTED)


def _is_tensor(value: Any) -> bool:
    """Whether `value` is a tensor of another library, which is iterable but does not yield images."""
    return type(value).__module__.partition(".")[0] in ("torch", "tensorflow", "jax", "jaxlib")


def _listed(text: str) -> list[str]:
    """Images that one list entry expands to; the entry itself if it does not exist."""
    path = _expanded(text)
    holds_images = path.is_dir() or (path.is_file() and (path.suffix.lower() in KINDS or is_shards(path)))
    if holds_images or (not exists(path) and _matches(path)):
        root, names = list_images(path)
        return [str(root / name) for name in names]
    return [str(path) if text.startswith("~") else text]


def _text(path: str | os.PathLike[Any], argument: str) -> str:
    text = os.fspath(path)
    if not isinstance(text, str):
        raise wrong_type(argument, text, ACCEPTED)
    return text


def _expanded(path: str | Path) -> Path:
    path = Path(path)
    with contextlib.suppress(RuntimeError):  # ~user with an unknown user
        path = path.expanduser()
    return readable_name(path)


def exists(path: Path) -> bool:
    """Whether a file or folder exists; False for names that the operating system rejects."""
    return os.path.lexists(path) if "\0" not in str(path) else False


def _matches(path: Path) -> list[str]:
    """Sorted matches of a pattern with `*`, `?` or `[]`: images, archives and folders with images.

    Tables match only if the pattern ends with their suffix. Returns an empty list if `path` is no pattern or nothing
    matches.

    Raises:
        SourceError: If files match, but none is an image.
    """
    pattern = str(path)
    if not _PATTERN.search(pattern) or "\0" in pattern:
        return []
    spellings = (pattern, *(unicodedata.normalize(form, pattern) for form in ("NFC", "NFD")))
    found = next((some for one in spellings if (some := glob.glob(one, recursive=True))), [])  # noqa: PTH207
    found.sort()
    if not found:
        return []
    # A folder expands to its contents, so `**` must not list both the folder and its files.
    if "**" in pattern:
        found = [one for one in found if not os.path.isdir(one)]  # noqa: PTH112
    kept = [one for one in found if _is_meant(Path(one), path.suffix.lower())]
    if not kept:
        raise SourceError(f"{pattern}: no images among the {len(found):,} files that match it.")
    return kept


def _is_meant(path: Path, ending: str) -> bool:
    if path.is_dir():
        return bool(scan_folder(path).photos)
    if not path.is_file():
        return False
    if is_image_name(path.name) or is_shards(path):
        return True
    if (kind := path.suffix.lower()) in KINDS:
        return kind == ending
    return not path.suffix and _is_image(path)


def _is_image(path: Path) -> bool:
    """Whether the file content is an image, regardless of its name."""
    try:
        return bool(image_format(head_of(path)))
    except OSError:
        return False
