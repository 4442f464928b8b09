"""Where in a photo a probe's heads read what they read, from memory: the exact map of `probe.contributions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore
from unfreeze.core.errors import SourceError, listed
from unfreeze.data.images import decode_sized
from unfreeze.learn.blend import Blend
from unfreeze.learn.direct import Direct
from unfreeze.learn.direct_sight import Prepared
from unfreeze.learn.probe.contributions import contributions, mean_rooted, placed_columns
from unfreeze.learn.probe.features import Features, cached_features
from unfreeze.learn.probe.inputs import JoinedFeatures

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class PlaceMap:
    """What one network's cells add to the first class's logit less the second's: float64 (grid, grid), row 0 on top.

    title: the network. square: left, top, right, bottom of what it saw, as shares of the upright photo. placeless: what
    features without a place add.
    """

    title: str
    square: tuple[float, float, float, float]
    cells: F64
    placeless: float


@dataclass(frozen=True)
class Why:
    """first, second: numbers of the two most probable classes. margin: their logits' difference; start: what of it
    was there before any cell was read. start, cells and placeless sum to it."""

    first: int
    second: int
    margin: float
    start: float
    maps: tuple[PlaceMap, ...]


@dataclass(frozen=True)
class Seen:
    """A photo ready for `Mapper.why`, and what each sight shows of it, as shares of the upright photo."""

    photo: Prepared
    squares: list[tuple[float, float, float, float]]


class _Rows:
    """Rows in memory, read as a `RowStore` reads them."""

    def __init__(self, rows: NDArray[np.float16]) -> None:
        self._rows = rows

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float16]:
        return self._rows[places[:, 1]]

    def forget_pages(self) -> None:
        """Nothing is mapped here."""


@dataclass(frozen=True)
class Mapper:
    """Maps for one probe run. reference: the mean training photo where the cache has it, else zeros."""

    direct: Direct
    reference: tuple[NDArray[np.float32], ...] | None

    @classmethod
    def of(cls, direct: Direct) -> Mapper:
        """SourceError where the run is none whose heads read the frozen network alone."""
        source = direct.source
        if isinstance(source, Blend):
            raise SourceError("several runs that answer together have no map; serve one of them.")
        if source.run.strategies != ("probe",):
            raise SourceError(f"a {listed(source.run.strategies)} run has no map; probe runs have one.")
        return cls(direct, _mean_training_photo(direct))

    def see(self, data: bytes) -> Seen:
        """A photo's bytes made ready, by any thread. PhotoError as `Direct.prepare`."""
        return Seen(self.direct.prepare(data), self._squares(data))

    def why(self, seen: Seen) -> Why:
        """A photo's map; only the thread that predicts may ask for it."""
        direct, source = self.direct, self.direct.source
        assert not isinstance(source, Blend)
        run, photo = source.run, seen.photo
        views = tuple(run.recipe.probe.views)
        parts = []
        for reader in direct.readers:
            stores = [_Rows(rows) for rows in reader.read([photo], views)]
            parts.append(
                Features(
                    cast("tuple[RowStore, ...]", tuple(stores)),
                    tuple(np.zeros((1, 2), np.int64) for _ in stores),
                    reader.engine.blocks,
                    {},
                    reader.engine.name,
                )
            )
        found = contributions(
            JoinedFeatures(tuple(parts)),
            np.zeros(1, np.int64),
            source.heads,
            [reader.graph.taps.grid for reader in direct.readers],
            views,
            self.reference,
            [placed_columns(reader.graph) for reader in direct.readers],
        )
        # Ranked as the answer is: by probability, which is the mean of the folds' and not of their logits.
        order = np.argsort(-direct.probabilities([photo])[0], kind="stable")
        first, second = int(order[0]), int(order[1])
        logits = found.logits()[0]
        maps = []
        for i, reader in enumerate(direct.readers):
            own = [block for block in found.blocks if block.input == i]
            cells = np.sum([block.values[0, first] - block.values[0, second] for block in own], axis=0)
            rest = sum(float(block.whole[0, first] - block.whole[0, second]) for block in own)
            maps.append(PlaceMap(reader.graph.title(), seen.squares[reader.sight], cells, rest))
        margin, start = logits[first] - logits[second], found.base[first] - found.base[second]
        return Why(first, second, float(margin), float(start), tuple(maps))

    def _squares(self, data: bytes) -> list[tuple[float, float, float, float]]:
        """What each sight shows of the photo."""
        eyes = self.direct.eyes
        _, (width, height) = decode_sized(data, 1, eyes.max_pixels)
        boxes, found = eyes.boxes(data), []
        for sight in eyes.sights:
            box = boxes[sight.face] if sight.face else None
            if box is None:
                side = min(width, height) * sight.crop
                wide, high = (sight.crop,) * 2 if sight.squash else (side / width, side / height)
                box = ((1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2)
            found.append(box)
        return found


def _mean_training_photo(direct: Direct) -> tuple[NDArray[np.float32], ...] | None:
    """Signed roots (D,) for each network; None where the cache lacks any training photo."""
    run = direct.source.run
    table = run.photos()
    hashes: Sequence[str] = table.loc[table["fold"] >= 0, "hash"].tolist()
    keys = np.array([(int(h[:16], 16), int(h[16:], 16)) for h in hashes if h], np.uint64).reshape(-1, 2)
    parts = []
    for reader in direct.readers:
        views = run.recipe.probe.views
        part = cached_features(keys, np.ones(len(keys), bool), reader.graph, views, run.recipe.engine)
        if part is None or not len(keys):
            return None
        parts.append(part)
    return tuple(mean_rooted(JoinedFeatures(tuple(parts)), np.arange(len(keys))))
