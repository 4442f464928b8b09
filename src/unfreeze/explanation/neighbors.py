"""Nearest training images by cosine similarity of features.

`TrainingFeatures` and `TrainingFeaturesByFold` hold the cached features of frozen networks; `near_by_network` uses the
last feature map of a fine-tuned network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import F32
from unfreeze.core.cache import ArrayStore, cache_root, content_hash, stable_hash
from unfreeze.core.errors import PhotoError
from unfreeze.core.parallel import map_threads
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode import DECODER, read_bytes
from unfreeze.explanation.linear import mean_features, nearest_photos
from unfreeze.features.matrix import HALF_MAX, FeatureMatrix, JoinedFeatureMatrix, cached_features
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.training.linear_probe.projection import pieces_of

if TYPE_CHECKING:
    from unfreeze.inference.networks import FineTunedNetworks

# Above this number of images, computing features with a fine-tuned network only to find neighbors takes too long.
MOST_READ = 1000
# Size of the sample that reports search in, so that large data sets do not delay them.
MOST_COMPARED, _COMPARED_BYTES = 2000, 256 << 20
_BATCH = 16


@dataclass(frozen=True)
class Neighbor:
    """A similar training image.

    Attributes:
        path: Path as in the run's tables.
        label: Label.
        group: Group.
        cosine: Cosine similarity of the centered signed-root features; 1 is identical.
    """

    path: str
    label: str
    group: str
    cosine: float

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingFeatures:
    """Frozen features of the training images, from the feature cache.

    Attributes:
        features: The features.
        centre: Mean signed-root features, float32 (D,) for each input.
        table: Path, label, group, hash and fold of the images.
    """

    features: JoinedFeatureMatrix
    centre: list[F32]
    table: pd.DataFrame

    @classmethod
    def cached(cls, run: Run, graphs: Sequence[FeatureExtractor]) -> TrainingFeatures | None:
        """Features of a run's cross-validated images from these frozen networks; None if any is not cached."""
        table = training_table(run)
        features = cached_inputs(run, table["hash"].tolist(), graphs)
        return cls(features, mean_features(features, np.arange(len(table))), table) if features else None

    def near(
        self, queries: JoinedFeatureMatrix, asked: NDArray[np.int64], hashes: list[str], count: int
    ) -> list[tuple[tuple[Neighbor, ...], bool]]:
        """Nearest training images of each query, without the query itself.

        Args:
            queries: Features of the query images.
            asked: int64, rows of `queries`.
            hashes: Content hashes of the query images.
            count: Number of neighbors.

        Returns:
            For each query, its neighbors and whether it is a training image itself.
        """
        cosines = nearest_photos(self.features, np.arange(len(self.table)), queries, asked, self.centre)
        return nearest(self.table, cosines, hashes, count)


@dataclass(frozen=True)
class TrainingFeaturesByFold:
    """Features of the training images in memory, searchable for the training part of a single fold.

    Attributes:
        rooted: float32 (n, D), signed-root features of at most MOST_COMPARED images; larger data sets are sampled.
        widths: Number of features of each input.
        table: As in `TrainingFeatures`.
    """

    rooted: F32
    widths: tuple[int, ...]
    table: pd.DataFrame

    @classmethod
    def cached(cls, run: Run, graphs: Sequence[FeatureExtractor]) -> TrainingFeaturesByFold | None:
        """Load the features; None if any is not cached."""
        table = training_table(run)
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
        """Mean over the images that the fold's model was trained on (None: all images), float32 (D,) per input."""
        mean = self.rooted[(self.table["fold"] != fold).to_numpy()].mean(0)
        return np.split(mean, np.cumsum(self.widths)[:-1])

    def near(self, queries: F32, fold: int, hashes: list[str], count: int) -> list[tuple[Neighbor, ...]]:
        """Nearest images among those that the fold's model was trained on.

        Args:
            queries: float32 (m, D), signed-root features.
            fold: The held-out fold.
            hashes: Content hashes of the queries.
            count: Number of neighbors.
        """
        own = (self.table["fold"] != fold).to_numpy()
        middle = np.concatenate(self.centre(fold)).astype(np.float64)
        # Centers both sides without copying all features: (q - c)(x - c) = (q - c)x - (q - c)c.
        wanted = queries - middle
        dots = self.rooted @ np.stack([*wanted, middle], 1).astype(np.float32)
        squares = np.einsum("nd,nd->n", self.rooted, self.rooted) - 2 * dots[:, -1] + middle @ middle
        sizes = np.linalg.norm(wanted, axis=1)[:, None] * np.sqrt(np.maximum(squares, 1e-12))
        cosines = (dots[:, :-1].T - (wanted @ middle)[:, None]) / np.maximum(sizes, 1e-12)
        table = self.table[own].reset_index(drop=True)
        return [near for near, _ in nearest(table, cosines[:, own].astype(np.float32), hashes, count)]


def training_table(run: Run, without: int | None = None) -> pd.DataFrame:
    """Cross-validated images of a run, without those of fold `without`."""
    table = run.photos()
    return table[(table["fold"] >= 0) & (table["fold"] != without)].reset_index(drop=True)


def cached_inputs(run: Run, hashes: Sequence[str], graphs: Sequence[FeatureExtractor]) -> JoinedFeatureMatrix | None:
    """Cached features of images by content hash (as in `ImageScan.hashes`); None if any is not cached."""
    parts = [_cached(run, _keys(hashes), graph) for graph in graphs]
    found = tuple(part for part in parts if part is not None)
    return JoinedFeatureMatrix(found) if found and len(found) == len(parts) else None


def _cached(run: Run, keys: NDArray[np.uint64], graph: FeatureExtractor) -> FeatureMatrix | None:
    views, wish, there = run.recipe.probe.views, run.recipe.engine, np.ones(len(keys), bool)
    return cached_features(keys, there, graph, views, wish)


def nearest(
    table: pd.DataFrame, cosines: F32, hashes: list[str], count: int
) -> list[tuple[tuple[Neighbor, ...], bool]]:
    """The `count` rows of `table` with the highest cosine similarity, for each query.

    Args:
        table: Images to search in.
        cosines: float32 (n, len(table)).
        hashes: Content hashes of the queries. Rows with the same content are left out.
        count: Number of neighbors.

    Returns:
        For each query, its neighbors and whether a row has the same content.
    """
    found = []
    for cosine, own in zip(cosines, hashes, strict=True):
        same = (table["hash"] == own).to_numpy()
        order = [i for i in np.argsort(-cosine, kind="stable") if not same[i]][:count]
        rows = table.iloc[order]
        neighbours = tuple(
            Neighbor(str(r.path), str(r.label), str(r.group), float(cosine[i]))
            for i, r in zip(order, rows.itertuples(), strict=True)
        )
        found.append((neighbours, bool(same.any())))
    return found


def near_by_network(
    run: Run,
    tuned: FineTunedNetworks,
    files: list[Path],
    hashes: list[str],
    count: int,
    reporter: Reporter,
    without: int | None = None,
) -> list[tuple[tuple[Neighbor, ...], bool]] | None:
    """Nearest training images by the first fold's fine-tuned network.

    The features are the network's last feature map, averaged over the image. They are stored in the cache, so that a
    second call only computes features of new images.

    Args:
        run: The run.
        tuned: Its fine-tuned networks.
        files: Paths of the query images.
        hashes: Content hashes of the query images.
        count: Number of neighbors.
        reporter: Receives progress.
        without: Fold whose images are left out.

    Returns:
        As `nearest`, or None if there are more than MOST_READ training images, the network sees face crops, or no
        training image can be read.
    """
    table = training_table(run, without)
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


def _last_maps(tuned: FineTunedNetworks, wanted: dict[str, Path], limit: int, reporter: Reporter) -> dict[str, F32]:
    """Pooled last feature map of the first network, float32 (D,), by content hash; readable images only."""
    from unfreeze.explanation.networks import FullNetworks

    network, setting = FullNetworks(tuned), tuned.setting
    side = setting.preprocessing.size
    width = network.features(np.zeros((1, side, side, 3), np.uint8)).shape[1]
    weights = "{:016x}{:016x}".format(*content_hash(read_bytes(tuned.files[0])))
    shown = {"preprocessing": asdict(setting.preprocessing), "weights": weights, "version": 1, "decoder": DECODER}
    about = {"what": f"last maps of a trained {setting.backbone.title}", **shown}
    store = ArrayStore(cache_root() / "features" / stable_hash(about), np.float16, (width,), about, reporter)
    names = list(wanted)
    keys = _keys(names)
    lacking = np.flatnonzero(store.find(keys)[:, 0] < 0).tolist()

    def square(i: int) -> NDArray[np.uint8] | None:
        try:
            data = read_bytes(wanted[names[i]])
            same = content_hash(data) == (int(keys[i, 0]), int(keys[i, 1]))
            return network.cut(None).of(data, limit).pixels if same else None
        except PhotoError:
            return None

    waiting: list[tuple[int, NDArray[np.uint8]]] = []
    done: list[int] = []
    rows: list[F32] = []
    with reporter.bar("Reading the training photos", len(lacking)) as advance:
        for n, (i, pixels) in enumerate(zip(lacking, map_threads(square, lacking), strict=True), 1):
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
    """Parse content hashes, as written by `ImageScan.hashes`, into uint64 (n, 2)."""
    return np.array([(int(h[:16], 16), int(h[16:], 16)) if h else (0, 0) for h in hashes], np.uint64).reshape(-1, 2)
