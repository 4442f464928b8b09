"""What one fold's model says of a photo, by the very path that prediction takes; from the cache, or decoded anew."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import cache_root
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.core.tables import probability_columns
from unfreeze.learn.classifier import Classifier

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]

# What the cache knows of networks and this machine, and not of photos.
_OF_NETWORKS = ("engines", "cards", "plans")


def spoken(run: Run, files: list[Path], folds: Rows, reporter: Reporter) -> F64:
    """Probabilities float64 (n, C) of each file by the models of one fold: folds[i], int64 (n,). NaN: unreadable.

    Several views and the ensemble of a fold's own parts are averaged as in prediction; folds are not.
    """
    whole = Classifier.load(run)
    if whole.heads:  # one pass of the frozen network for all: the folds then read its features from the cache
        replace(whole, tuned=(), heard=()).predict(list(files), reporter=reporter)
    out = np.full((len(files), len(run.classes)), np.nan)
    for fold in np.unique(folds).tolist():
        rows = np.flatnonzero(folds == fold)
        one = Classifier.load(run, folds=[fold])
        found = one.predict([files[i] for i in rows], reporter=Reporter())
        out[rows] = found[probability_columns(run.classes)].to_numpy(np.float64)
    return out


@contextmanager
def decoded_anew() -> Iterator[None]:
    """For a while, nothing that was computed from a photo is known: each is decoded and computed again.

    What is known of networks (conversions, timings) stays. For this process and its children.
    """
    real, before = cache_root(), os.environ.get("UNFREEZE_CACHE")
    with tempfile.TemporaryDirectory(prefix="unfreeze-anew-") as folder:
        for name in _OF_NETWORKS:
            if (real / name).is_dir():
                (Path(folder) / name).symlink_to((real / name).resolve(), target_is_directory=True)
        os.environ["UNFREEZE_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["UNFREEZE_CACHE"]
            else:
                os.environ["UNFREEZE_CACHE"] = before
