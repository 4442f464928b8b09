"""Images that an exported file is checked, calibrated and evaluated on, as inputs of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import SourceError
from unfreeze.core.messages import option
from unfreeze.core.parallel import map_threads
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode import exists, load_crop, read_bytes
from unfreeze.data.list_images import list_images
from unfreeze.data.scan import scan_images
from unfreeze.exporters.graph import ExportPlan
from unfreeze.inference.predictor import Classifier

Pixels = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class ExportImages:
    """Readable image files and their crops.

    Attributes:
        files: Paths.
        squares: float64 (n, 4), face crops, NaN for the center crop; None if all images use the center crop.
        limit: Maximum number of pixels of an image.
    """

    files: list[Path]
    squares: NDArray[np.float64] | None
    limit: int

    @classmethod
    def of(
        cls, classifier: Classifier, files: Sequence[Path], reporter: Reporter
    ) -> tuple[ExportImages, NDArray[np.bool_]]:
        """The readable files, and bool (n,) telling which of `files` these are."""
        run = classifier.run
        names = [str(file) for file in files]
        table = pd.DataFrame({"path": names, "label": run.classes[0], "group": names, "split": "test"})
        photos = ImageDataset(table, Path(), run.classes, tuple(run.info["answers"]), (), "images", "")
        limit = int(run.recipe.image.max_megapixels * 1e6)
        looks = scan_images(photos, limit, reporter)
        good = looks.readable
        cut = classifier.squares(list(files), looks.keys, good, reporter)
        kept = [file for file, fine in zip(files, good, strict=True) if fine]
        return cls(kept, None if cut is None else cut[good], limit), good

    def some(self, rows: NDArray[np.int64]) -> ExportImages:
        """Select rows."""
        return ExportImages(
            [self.files[i] for i in rows], None if self.squares is None else self.squares[rows], self.limit
        )

    def batches(self, plan: ExportPlan, batch: int) -> Iterator[Pixels]:
        """Yield one uint8 array (n, size, size, 3) per input, n at most `batch`; decoded in threads, in order."""
        loaded = map_threads(lambda i: self._photo(i, plan), list(range(len(self.files))))
        waiting: list[list[NDArray[np.uint8]]] = []
        for photo in loaded:
            waiting.append(photo)
            if len(waiting) == batch:
                yield [np.stack(each) for each in zip(*waiting, strict=True)]
                waiting = []
        if waiting:
            yield [np.stack(each) for each in zip(*waiting, strict=True)]

    def _photo(self, i: int, plan: ExportPlan) -> Pixels:
        file = self.files[i]
        data = read_bytes(file)
        found = []
        for p in plan.frames():
            box = None
            if p.face and self.squares is not None and not np.isnan(self.squares[i, 0]):
                left, top, right, bottom = map(float, self.squares[i])
                box = (left, top, right, bottom)
            found.append(load_crop(data, p.size, p.crop, self.limit, file, p.resample, p.squash, box))
        return found


def photos_to_check(run: Run, photos: str | Path | None, count: int) -> list[Path]:
    """Up to `count` files, evenly spaced over the available ones.

    Raises:
        SourceError: There are none.
    """
    if photos is not None:
        root, names = list_images(Path(photos))
        files = [root / name for name in names]
    else:
        files = files_of(run, run.photos())
    if not files:
        raise SourceError(
            f"{run.path}: its photos are no longer in {run.info['root']}, and the exported file is checked on "
            f"images; name some with {option('photos', metavar='FOLDER')}."
        )
    return [files[i] for i in spread(len(files), count)]


def files_of(run: Run, table: pd.DataFrame) -> list[Path]:
    """Files of the rows of a run's image table that were readable and still exist."""
    root = Path(run.info["root"])
    files = [root / path for path in table.loc[table["hash"] != "", "path"]]
    return [file for file in files if exists(file)]


def spread(there: int, count: int) -> NDArray[np.int64]:
    """Up to `count` evenly spaced indices out of range(there), int64."""
    return (
        np.unique(np.linspace(0, there - 1, min(count, there)).round().astype(np.int64)) if there else np.zeros(0, int)
    )
