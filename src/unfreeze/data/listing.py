"""What is to be predicted: a photo, a folder of photos, .tar files, or a table that names them; no labels asked."""

from __future__ import annotations

from pathlib import Path

from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_sections import Source
from unfreeze.data.shards import has_member, split_path
from unfreeze.data.sheet import KINDS
from unfreeze.data.tabular import paths_of
from unfreeze.data.walk import is_image_name, readable_name, unreadable, walk
from unfreeze.data.webdataset import is_shards, photos_in


def list_images(path: Path, options: Source | None = None) -> tuple[Path, list[str]]:
    """Root and relative paths: a folder's photos sorted, a table's and those of .tar files in their order.

    Hidden and non-image files of a folder are passed over. A table's path column is found as when training
    (options.path_column, options.root). Raises SourceError if there is nothing to predict.
    """
    readable_name(path)
    if is_shards(path):
        try:
            return photos_in(path)
        except OSError as error:
            raise unreadable(path, error) from None
    if path.is_dir():
        found = walk(path)
        if not found.photos:
            raise found.no_photos(path)
        return path, found.photos
    if (inside := split_path(path)) and has_member(*inside):
        archive = Path(inside[0])
        return archive.parent, [f"{archive.name}/{inside[1]}"]
    if not path.is_file():
        raise SourceError(f"{path}: no such file or folder.")
    if is_image_name(path.name):
        return path.parent, [path.name]
    if path.suffix.lower() in KINDS:
        try:
            return paths_of(path, options or Source())
        except OSError as error:
            raise unreadable(path, error) from None
    raise SourceError(f"{path}: neither a photo, a folder of photos, a .tar, nor a table ({', '.join(sorted(KINDS))}).")
