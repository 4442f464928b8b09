"""The photos that an exported file is checked, calibrated and judged on, as the file's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import SourceError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.core.tables import Photos
from unfreeze.core.work import in_threads
from unfreeze.data.images import is_there, load_square, read_bytes
from unfreeze.data.listing import list_images
from unfreeze.data.looks import look
from unfreeze.deliver.folded import Plan
from unfreeze.learn.classifier import Classifier

Pixels = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Shown:
    """Photo files that can be read, and what is cut from each: float64 (n, 4), None for the centre of all."""

    files: list[Path]
    squares: NDArray[np.float64] | None
    limit: int

    @classmethod
    def of(cls, classifier: Classifier, files: Sequence[Path], reporter: Reporter) -> tuple[Shown, NDArray[np.bool_]]:
        """Those of `files` that can be read, and which these are, bool (n,)."""
        run = classifier.run
        names = [str(file) for file in files]
        table = pd.DataFrame({"path": names, "label": run.classes[0], "group": names, "split": "test"})
        photos = Photos(table, Path(), run.classes, tuple(run.info["answers"]), (), "images", "")
        limit = int(run.recipe.image.max_megapixels * 1e6)
        looks = look(photos, limit, reporter)
        good = looks.readable
        cut = classifier.squares(list(files), looks.keys, good, reporter)
        kept = [file for file, fine in zip(files, good, strict=True) if fine]
        return cls(kept, None if cut is None else cut[good], limit), good

    def some(self, rows: NDArray[np.int64]) -> Shown:
        """Only these rows."""
        return Shown([self.files[i] for i in rows], None if self.squares is None else self.squares[rows], self.limit)

    def batches(self, plan: Plan, batch: int) -> Iterator[Pixels]:
        """One array (n, size, size, 3) for each input, n at most `batch`; decoded in threads, in order."""
        loaded = in_threads(lambda i: self._photo(i, plan), list(range(len(self.files))))
        waiting: list[list[NDArray[np.uint8]]] = []
        for photo in loaded:
            waiting.append(photo)
            if len(waiting) == batch:
                yield [np.stack(each) for each in zip(*waiting, strict=True)]
                waiting = []
        if waiting:
            yield [np.stack(each) for each in zip(*waiting, strict=True)]

    def _photo(self, i: int, plan: Plan) -> Pixels:
        file = self.files[i]
        data = read_bytes(file)
        found = []
        for p in plan.frames():
            box = None
            if p.face and self.squares is not None and not np.isnan(self.squares[i, 0]):
                left, top, right, bottom = map(float, self.squares[i])
                box = (left, top, right, bottom)
            found.append(load_square(data, p.size, p.crop, self.limit, file, p.resample, p.squash, box))
        return found


def photos_to_check(run: Run, photos: str | Path | None, count: int) -> list[Path]:
    """Up to `count` files, spread evenly over what there is. SourceError where there are none."""
    if photos is not None:
        root, names = list_images(Path(photos))
        files = [root / name for name in names]
    else:
        files = files_of(run, run.photos())
    if not files:
        raise SourceError(
            f"{run.path}: its photos are no longer in {run.info['root']}, and the file is held against the run on "
            "photos; name some with --photos FOLDER."
        )
    return [files[i] for i in spread(len(files), count)]


def files_of(run: Run, table: pd.DataFrame) -> list[Path]:
    """Those of a run's photos table that could be read and are still there."""
    root = Path(run.info["root"])
    files = [root / path for path in table.loc[table["hash"] != "", "path"]]
    return [file for file in files if is_there(file)]


def spread(there: int, count: int) -> NDArray[np.int64]:
    """Up to `count` of 0..there-1, evenly apart."""
    return (
        np.unique(np.linspace(0, there - 1, min(count, there)).round().astype(np.int64)) if there else np.zeros(0, int)
    )
