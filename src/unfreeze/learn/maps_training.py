"""What a photo is held against: the training photos, their mean, and those most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.core.work import in_threads
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import read_bytes
from unfreeze.learn.probe.contributions import mean_rooted, nearest_photos
from unfreeze.learn.probe.features import cached_features
from unfreeze.learn.probe.inputs import JoinedFeatures
from unfreeze.model.graphs import Graph

F32 = NDArray[np.float32]
# Reading more photos than these with a trained network, only to name the nearest, is not worth the wait.
MOST_READ = 1000
_BATCH = 16


@dataclass(frozen=True)
class Neighbour:
    """A training photo that looks alike to the networks; cosine of centred signed roots, 1 is the same."""

    path: str
    label: str
    group: str
    cosine: float


@dataclass(frozen=True)
class TrainingPhotos:
    """The training photos' frozen features, as the cache holds them. table: path, label, group, hash and fold."""

    features: JoinedFeatures
    centre: list[F32]
    table: pd.DataFrame

    @classmethod
    def cached(cls, run: Run, graphs: Sequence[Graph]) -> TrainingPhotos | None:
        """Of a run's cross-validated photos, as these frozen networks saw them; None where the cache lacks any."""
        table, parts = trained_on(run), []
        keys = np.array([(int(h[:16], 16), int(h[16:], 16)) for h in table["hash"]], np.uint64).reshape(-1, 2)
        for graph in graphs:
            part = cached_features(keys, np.ones(len(keys), bool), graph, run.recipe.probe.views, run.recipe.engine)
            if part is None:
                return None
            parts.append(part)
        if not parts:
            return None
        features = JoinedFeatures(tuple(parts))
        return cls(features, mean_rooted(features, np.arange(len(table))), table)

    def near(
        self, queries: JoinedFeatures, asked: NDArray[np.int64], hashes: list[str], count: int
    ) -> list[tuple[tuple[Neighbour, ...], bool]]:
        """For each photo its nearest training photos, itself left out, and whether it is one of them."""
        cosines = nearest_photos(self.features, np.arange(len(self.table)), queries, asked, self.centre)
        return nearest(self.table, cosines, hashes, count)


def trained_on(run: Run) -> pd.DataFrame:
    """The photos that a run was cross-validated on."""
    table = run.photos()
    return table[table["fold"] >= 0].reset_index(drop=True)


def nearest(
    table: pd.DataFrame, cosines: F32, hashes: list[str], count: int
) -> list[tuple[tuple[Neighbour, ...], bool]]:
    """The `count` rows of `table` with the highest cosine, for each row of cosines (n, len(table)).

    hashes: content of each asked photo; where a row has the same content it is left out, and that is told.
    """
    found = []
    for cosine, own in zip(cosines, hashes, strict=True):
        same = (table["hash"] == own).to_numpy()
        order = [i for i in np.argsort(-cosine, kind="stable") if not same[i]][:count]
        rows = table.iloc[order]
        neighbours = tuple(
            Neighbour(str(r.path), str(r.label), str(r.group), float(cosine[i]))
            for i, r in zip(order, rows.itertuples(), strict=True)
        )
        found.append((neighbours, bool(same.any())))
    return found


def near_by_network(
    run: Run, tuned: object, files: list[Path], hashes: list[str], count: int, reporter: Reporter
) -> list[tuple[tuple[Neighbour, ...], bool]] | None:
    """The nearest training photos by what the first fold's trained network makes of its last map, pooled to one cell.

    tuned: a `TunedModels`. files, hashes: of the photos asked about. None where there are more than MOST_READ training
    photos, where the network sees faces, or where no training photo can be read any more.
    """
    from unfreeze.learn.maps_networks import WholeNetworks
    from unfreeze.learn.train.tuned_models import TunedModels

    assert isinstance(tuned, TunedModels)
    table = trained_on(run)
    if len(table) > MOST_READ or tuned.setting.preprocessing.face:
        return None
    network = WholeNetworks(tuned)
    limit, root = int(run.recipe.image.max_megapixels * 1e6), Path(run.info["root"])

    def square(file: Path) -> NDArray[np.uint8] | None:
        try:
            return network.square(read_bytes(file), limit, box_of(None, 0))
        except PhotoError:
            return None

    paths = [*(root / path for path in table["path"]), *files]
    parts: list[F32] = []
    there: list[int] = []
    waiting: list[NDArray[np.uint8]] = []
    with reporter.bar("Reading the training photos", len(paths)) as advance:
        for i, pixels in enumerate(in_threads(square, paths)):
            advance(1)
            if pixels is not None:
                there.append(i)
                waiting.append(pixels)
            if len(waiting) == _BATCH or (waiting and i == len(paths) - 1):
                parts.append(network.features(np.stack(waiting)))
                waiting = []
    own = [i for i in there if i < len(table)]
    if not own or len(there) - len(own) < len(files):
        return None
    rows = np.concatenate(parts)
    rows = np.copysign(np.sqrt(np.abs(rows)), rows)
    rows -= rows[: len(own)].mean(0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return nearest(table.iloc[own].reset_index(drop=True), rows[len(own) :] @ rows[: len(own)].T, hashes, count)
