"""What a photo is held against: the training photos, their mean, and those most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.cache import RowStore, cache_root, content_key, fingerprint
from unfreeze.core.errors import PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.core.work import in_threads
from unfreeze.data.images import read_bytes
from unfreeze.learn.probe.contributions import mean_rooted, nearest_photos
from unfreeze.learn.probe.feature_table import HALF_MAX, Features, cached_features, stores_of
from unfreeze.learn.probe.inputs import JoinedFeatures
from unfreeze.learn.probe.rotation import pieces_of
from unfreeze.model.engines import recorded_engine
from unfreeze.model.graphs import Graph

if TYPE_CHECKING:
    from unfreeze.learn.train.tuned_models import TunedModels

F32 = NDArray[np.float32]
# Reading more photos than these with a trained network, only to name the nearest, is not worth the wait.
MOST_READ = 1000
# What is compared with for a report, which does not wait for a hundred thousand photos.
MOST_COMPARED, _COMPARED_BYTES = 2000, 256 << 20
_BATCH = 16


@dataclass(frozen=True)
class Neighbour:
    """A training photo that looks alike to the networks; cosine of centred signed roots, 1 is the same."""

    path: str
    label: str
    group: str
    cosine: float

    def described(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingPhotos:
    """The training photos' frozen features, as the cache holds them. table: path, label, group, hash and fold."""

    features: JoinedFeatures
    centre: list[F32]
    table: pd.DataFrame

    @classmethod
    def cached(cls, run: Run, graphs: Sequence[Graph]) -> TrainingPhotos | None:
        """Of a run's cross-validated photos, as these frozen networks saw them; None where the cache lacks any."""
        table = trained_on(run)
        features = cached_inputs(run, table["hash"].tolist(), graphs)
        return cls(features, mean_rooted(features, np.arange(len(table))), table) if features else None

    def near(
        self, queries: JoinedFeatures, asked: NDArray[np.int64], hashes: list[str], count: int
    ) -> list[tuple[tuple[Neighbour, ...], bool]]:
        """For each photo its nearest training photos, itself left out, and whether it is one of them."""
        cosines = nearest_photos(self.features, np.arange(len(self.table)), queries, asked, self.centre)
        return nearest(self.table, cosines, hashes, count)


@dataclass(frozen=True)
class ByFold:
    """The same in memory, to be asked for the training photos of one fold's model at a time.

    rooted: float32 (n, D), signed roots, of at most MOST_COMPARED photos, drawn where there are more. widths: D of each
    input. table: as of `TrainingPhotos`.
    """

    rooted: F32
    widths: tuple[int, ...]
    table: pd.DataFrame

    @classmethod
    def cached(cls, run: Run, graphs: Sequence[Graph]) -> ByFold | None:
        """None where the cache lacks any photo that is needed."""
        table = trained_on(run)
        one = cached_inputs(run, table["hash"].tolist()[:1], graphs)
        if one is None:
            return None
        most = min(MOST_COMPARED, max(100, _COMPARED_BYTES // (4 * one.width)))
        if len(table) > most:
            table = table.sample(most, random_state=0).sort_index().reset_index(drop=True)
        features = cached_inputs(run, table["hash"].tolist(), graphs)
        if features is None:
            return None
        rooted = np.concatenate([features.rooted(piece) for piece in pieces_of(np.arange(len(table)))])
        return cls(rooted, tuple(part.width for part in features.parts), table)

    def centre(self, fold: int | None = None) -> list[F32]:
        """The mean photo of what the fold's model learnt from (None: of all), float32 (D,) for each input."""
        mean = self.rooted[(self.table["fold"] != fold).to_numpy()].mean(0)
        return np.split(mean, np.cumsum(self.widths)[:-1])

    def near(self, queries: F32, fold: int, hashes: list[str], count: int) -> list[tuple[Neighbour, ...]]:
        """The `count` most alike photos that the fold's model learnt from. queries: signed roots float32 (m, D)."""
        own = (self.table["fold"] != fold).to_numpy()
        middle = np.concatenate(self.centre(fold)).astype(np.float64)
        # Both sides less the mean, without a copy of them all: (q - c)(x - c) = (q - c)x - (q - c)c.
        wanted = queries - middle
        dots = self.rooted @ np.stack([*wanted, middle], 1).astype(np.float32)
        squares = np.einsum("nd,nd->n", self.rooted, self.rooted) - 2 * dots[:, -1] + middle @ middle
        sizes = np.linalg.norm(wanted, axis=1)[:, None] * np.sqrt(np.maximum(squares, 1e-12))
        cosines = (dots[:, :-1].T - (wanted @ middle)[:, None]) / np.maximum(sizes, 1e-12)
        table = self.table[own].reset_index(drop=True)
        return [near for near, _ in nearest(table, cosines[:, own].astype(np.float32), hashes, count)]


def trained_on(run: Run, without: int | None = None) -> pd.DataFrame:
    """The photos that a run was cross-validated on, but for one fold's."""
    table = run.photos()
    return table[(table["fold"] >= 0) & (table["fold"] != without)].reset_index(drop=True)


def cached_inputs(run: Run, hashes: Sequence[str], graphs: Sequence[Graph]) -> JoinedFeatures | None:
    """Features of photos by their content hashes, as of `Looks.hashes`; None where the cache lacks any."""
    parts = [_cached(run, _keys(hashes), graph) for graph in graphs]
    found = tuple(part for part in parts if part is not None)
    return JoinedFeatures(found) if found and len(found) == len(parts) else None


def _cached(run: Run, keys: NDArray[np.uint64], graph: Graph) -> Features | None:
    views, wish, there = run.recipe.probe.views, run.recipe.engine, np.ones(len(keys), bool)
    if recorded_engine(graph, wish):
        return cached_features(keys, there, graph, views, wish)
    # No engine was measured for this network, as where torch ran it: what that keeps is float32.
    stores = stores_of(graph, views, "f32", graph.blocks(), Reporter())
    places = tuple(store.find(keys) for store in stores)
    return Features(stores, places, graph.blocks(), {}, "cache") if all((p[:, 0] >= 0).all() for p in places) else None


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
    run: Run,
    tuned: TunedModels,
    files: list[Path],
    hashes: list[str],
    count: int,
    reporter: Reporter,
    without: int | None = None,
) -> list[tuple[tuple[Neighbour, ...], bool]] | None:
    """The nearest training photos by what the first fold's trained network makes of its last map, pooled to one cell.

    files, hashes: of the photos asked about. without: a fold whose photos are left out. None where there are more than
    MOST_READ training photos, where the network sees faces, or where no training photo can be read. What is read is
    kept in the cache: the second call reads new photos only.
    """
    table = trained_on(run, without)
    if len(table) > MOST_READ or tuned.setting.preprocessing.face:
        return None
    root, limit = Path(run.info["root"]), int(run.recipe.image.max_megapixels * 1e6)
    wanted = dict(zip([*table["hash"], *hashes], [*(root / path for path in table["path"]), *files], strict=True))
    known = _last_maps(tuned, wanted, limit, reporter)
    own = [i for i, name in enumerate(table["hash"]) if name in known]
    if not own or any(name not in known for name in hashes):
        return None
    rows = np.stack([known[name] for name in [*table["hash"].iloc[own], *hashes]])
    rows = np.copysign(np.sqrt(np.abs(rows)), rows)
    rows -= rows[: len(own)].mean(0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return nearest(table.iloc[own].reset_index(drop=True), rows[len(own) :] @ rows[: len(own)].T, hashes, count)


def _last_maps(tuned: TunedModels, wanted: dict[str, Path], limit: int, reporter: Reporter) -> dict[str, F32]:
    """Of photos by content hash the first network's pooled last map, float32 (D,); of those that can be read."""
    from unfreeze.learn.maps_networks import WholeNetworks

    network, setting = WholeNetworks(tuned), tuned.setting
    side = setting.preprocessing.size
    width = network.features(np.zeros((1, side, side, 3), np.uint8)).shape[1]
    weights = "{:016x}{:016x}".format(*content_key(read_bytes(tuned.files[0])))
    shown = {"preprocessing": asdict(setting.preprocessing), "weights": weights, "version": 1}
    about = {"what": f"last maps of a trained {setting.backbone.title}", **shown}
    store = RowStore(cache_root() / "features" / fingerprint(about), np.float16, (width,), about, reporter)
    names = list(wanted)
    keys = _keys(names)
    lacking = np.flatnonzero(store.find(keys)[:, 0] < 0).tolist()

    def square(i: int) -> NDArray[np.uint8] | None:
        try:
            data = read_bytes(wanted[names[i]])
            same = content_key(data) == (int(keys[i, 0]), int(keys[i, 1]))
            return network.square(data, limit, None) if same else None
        except PhotoError:
            return None

    waiting: list[tuple[int, NDArray[np.uint8]]] = []
    done: list[int] = []
    rows: list[F32] = []
    with reporter.bar("Reading the training photos", len(lacking)) as advance:
        for n, (i, pixels) in enumerate(zip(lacking, in_threads(square, lacking), strict=True), 1):
            advance(1)
            waiting += [] if pixels is None else [(i, pixels)]
            if waiting and (len(waiting) == _BATCH or n == len(lacking)):
                rows.append(network.features(np.stack([pixels for _, pixels in waiting])))
                done += [i for i, _ in waiting]
                waiting.clear()
    if done:
        store.append(keys[done], np.concatenate(rows).clip(-HALF_MAX, HALF_MAX))
    places = store.find(keys)
    there = np.flatnonzero(places[:, 0] >= 0)
    return dict(zip([names[i] for i in there], store.take(places[there]).astype(np.float32), strict=True))


def _keys(hashes: Sequence[str]) -> NDArray[np.uint64]:
    """uint64 (n, 2) of content hashes as `Looks.hashes` writes them."""
    return np.array([(int(h[:16], 16), int(h[16:], 16)) if h else (0, 0) for h in hashes], np.uint64).reshape(-1, 2)
