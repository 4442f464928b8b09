"""In-memory prediction: from the bytes of images to probabilities, without files, caches or tables.

The probabilities equal those of `Classifier.predict`. That method scans and hashes each file and caches its features,
which pays off for repeated images; this module serves images that occur once with low latency. All models are
loaded once; frozen networks and image crops are shared between the runs of an ensemble.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F16, F64
from unfreeze.core.errors import PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode_process import Look
from unfreeze.features.crops import Cropper, FaceCropSpec, NetworkCrop, Prepared
from unfreeze.features.matrix import HALF_MAX, signed_root
from unfreeze.inference.ensemble import Ensemble, load
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.ensembling import require_finite, weighted_mean
from unfreeze.models.engines import BATCH, Engine, open_engine
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.training.linear_probe.heads import LinearHead
from unfreeze.training.linear_probe.solver import softmax

if TYPE_CHECKING:
    from unfreeze.inference.loaded_networks import LoadedNetworks


@dataclass(frozen=True)
class Reader:
    """A frozen network with its inference engine.

    Attributes:
        graph: The network.
        engine: The engine that runs it.
        sight: Index of the crop that it reads.
    """

    graph: FeatureExtractor
    engine: Engine
    sight: int

    def read(self, photos: Sequence[Prepared], looks: Sequence[str]) -> list[F16]:
        """Compute features in the precision of the cache: for each view float16 (n, D)."""
        pixels = np.stack([photo[self.sight] for photo in photos])
        # Views are concatenated, so that a single image and its mirror image share a batch.
        every = np.concatenate([pixels[:, :, ::-1] if view == "flip" else pixels for view in looks])
        parts = self.engine.run(every[i : i + BATCH] for i in range(0, len(every), BATCH))
        rows = np.clip(np.concatenate(list(parts)), -HALF_MAX, HALF_MAX).astype(np.float16)
        return np.split(rows, len(looks))


class _Reading:
    """Features of a batch of images, computed once per network and shared between runs."""

    def __init__(self, readers: Sequence[Reader], photos: Sequence[Prepared]) -> None:
        self._readers, self.photos = readers, photos
        self._known: dict[tuple[int, tuple[str, ...]], list[F16]] = {}

    def of(self, reader: int, looks: tuple[str, ...]) -> list[F16]:
        if (reader, looks) not in self._known:
            self._known[reader, looks] = self._readers[reader].read(self.photos, looks)
        return self._known[reader, looks]

    def rooted(self, reader: int, looks: tuple[str, ...]) -> NDArray[np.float32]:
        """Input of the heads, float32 (n, D): signed square roots of the mean over the views."""
        views = self.of(reader, looks)
        total = np.zeros(views[0].shape, np.float32)
        for view in views:
            total += view
        total /= len(views)
        return signed_root(total)


@dataclass(frozen=True)
class _Heads:
    """Linear heads of the folds. Heads with the same inputs are fused into one matrix.

    Attributes:
        readers: Index of the reader of each input.
        joined: (inputs, weight float32 (D, k * C), bias float32 (k * C,)) for each set of inputs.
        count: Number of heads.
    """

    readers: tuple[int, ...]
    joined: tuple[tuple[tuple[int, ...], NDArray[np.float32], NDArray[np.float32]], ...]
    count: int

    @classmethod
    def of(cls, heads: Sequence[LinearHead], readers: Sequence[int]) -> _Heads:
        alike: dict[tuple[int, ...], list[LinearHead]] = {}
        for head in heads:
            alike.setdefault(head.inputs, []).append(head)
        joined = tuple(
            (inputs, np.concatenate([h.weight for h in some], 1), np.concatenate([h.bias for h in some]))
            for inputs, some in alike.items()
        )
        return cls(tuple(readers), joined, len(heads))

    def say(self, reading: _Reading, looks: tuple[str, ...], classes: int) -> F64:
        """Mean probability over the heads, float64 (n, C)."""
        total = np.zeros((len(reading.photos), classes))
        for inputs, weight, bias in self.joined:
            features = np.concatenate([reading.rooted(self.readers[i], looks) for i in inputs], 1)
            logits = (features @ weight + bias).reshape(-1, classes)
            total += softmax(logits).reshape(len(features), -1, classes).sum(1)
        return np.asarray(total / self.count)


@dataclass(frozen=True)
class _Tuned:
    """Fine-tuned networks, with input from a reader (strategy partial) or from pixels."""

    held: LoadedNetworks
    reader: int | None
    sight: int

    def say(self, reading: _Reading, looks: tuple[str, ...]) -> F64:
        if self.reader is not None:
            return self.held.of_activations(reading.of(self.reader, looks))
        return self.held.of_pixels(np.stack([photo[self.sight] for photo in reading.photos]), looks)


@dataclass(frozen=True)
class _Member:
    """One run: its models, their weights, and the permutation of its classes to the order of the first run."""

    looks: tuple[str, ...]
    answers: tuple[_Heads | _Tuned, ...]
    shares: tuple[int, ...]
    columns: tuple[int, ...]

    def say(self, reading: _Reading, looks: tuple[str, ...] | None) -> F64:
        views, classes = looks or self.looks, len(self.columns)
        found = [
            one.say(reading, views, classes) if isinstance(one, _Heads) else one.say(reading, views)
            for one in self.answers
        ]
        return np.asarray(np.average(found, axis=0, weights=self.shares), np.float64)[:, self.columns]


@dataclass(frozen=True)
class InMemoryPredictor:
    """A run or an ensemble of runs in memory. `prepare` is thread-safe; all other methods are not.

    Attributes:
        source: The classifier or ensemble.
        classes: Order of the probability columns.
        eyes: Decodes and crops images for all networks.
        readers: Frozen networks.
        members: The runs.
        weights: float64, weights of the runs, sum 1.
    """

    source: Classifier | Ensemble
    classes: tuple[str, ...]
    eyes: Cropper
    readers: tuple[Reader, ...]
    members: tuple[_Member, ...]
    weights: F64

    @classmethod
    def load(
        cls,
        run: str | Path | Run | Sequence[str | Path | Run] | Classifier | Ensemble,
        max_megapixels: float = 50.0,
        reporter: Reporter | None = None,
    ) -> InMemoryPredictor:
        """Open the engines and load all networks.

        Args:
            run: Anything that `uf.load` accepts or returns.
            max_megapixels: Larger images are refused; limited by image.max_megapixels of the runs.
            reporter: Receives progress messages.

        Raises:
            RunError: As raised by `load`.
            EngineError: If no engine runs on this machine.
            DetectorError: If the face detector cannot be used.
        """
        source = run if isinstance(run, Classifier | Ensemble) else load(run)
        reporter = reporter or Reporter()
        whole = source.classifiers if isinstance(source, Ensemble) else (source,)
        weights = source.weights if isinstance(source, Ensemble) else np.ones(1)
        asked = [(c, w) for c, w in zip(whole, weights, strict=True) if w]
        limit = min(max_megapixels, *(c.run.recipe.image.max_megapixels for c, _ in asked))
        making = _Making(reporter, [c.run for c, _ in asked], int(limit * 1e6))
        classes = source.run.classes
        members = [making.member(c, tuple(c.run.classes.index(name) for name in classes)) for c, _ in asked]
        eyes = Cropper(making.sights, int(limit * 1e6))
        readers = making.readers()
        return cls(source, classes, eyes, readers, tuple(members), np.array([w for _, w in asked]))

    def prepare(self, data: bytes, look: Look | None = None) -> Prepared:
        """Decode and crop an image for all networks.

        Args:
            data: Content of an image file.
            look: Decoder to use; by default images are decoded in this process.

        Raises:
            PhotoError: If the data is empty or not a readable image.
        """
        if not data:
            raise PhotoError("photo", "the file is empty")
        return (self.eyes.through(look) if look else self.eyes).prepare(data)

    def probabilities(self, photos: Sequence[Prepared], looks: tuple[str, ...] | None = None) -> F64:
        """Predict images returned by `prepare`.

        Args:
            photos: Prepared images.
            looks: ("plain",) or ("plain", "flip"); by default the views of training.

        Returns:
            float64 (n, C).
        """
        if not photos:
            return np.zeros((0, len(self.classes)))
        reading = _Reading(self.readers, photos)
        found = [member.say(reading, looks) for member in self.members]
        return require_finite(found[0] if len(found) == 1 else weighted_mean(found, self.weights))


class _Making:
    """Collects the networks and crops that the runs need, without duplicates."""

    def __init__(self, reporter: Reporter, runs: Sequence[Run], max_pixels: int) -> None:
        self.reporter, self.runs, self.max_pixels = reporter, runs, max_pixels
        self.sights: list[NetworkCrop] = []
        self._graphs: dict[str, tuple[int, FeatureExtractor, str, int]] = {}  # key -> index, graph, engine, sight

    def member(self, classifier: Classifier, columns: tuple[int, ...]) -> _Member:
        recipe, answers, shares = classifier.run.recipe, list[_Heads | _Tuned](), list[int]()
        face = FaceCropSpec.of(recipe)
        if classifier.heads:
            readers = [self._reader(graph, recipe.engine, face) for graph in classifier.graphs]
            answers.append(_Heads.of(classifier.heads, readers))
            shares.append(len(classifier.heads))
        for tuned, times in zip(classifier.tuned, classifier.tuned_weights, strict=True):
            s = tuned.setting
            if s.cut:
                reader: int | None = self._reader(s.front, s.engine, face)
                sight = -1
            else:
                reader, sight = None, self._sight(NetworkCrop.of_frame(s.frame, face))
            from unfreeze.inference.loaded_networks import LoadedNetworks  # imports torch

            answers.append(_Tuned(LoadedNetworks.of(tuned), reader, sight))
            shares.append(times * len(tuned.files))
        return _Member(tuple(recipe.probe.views), tuple(answers), tuple(shares), columns)

    def readers(self) -> tuple[Reader, ...]:
        """Open the engines."""
        found = self._graphs.values()
        return tuple(Reader(graph, open_engine(graph, wish, self.reporter), sight) for _, graph, wish, sight in found)

    def _reader(self, graph: FeatureExtractor, wish: str, face: FaceCropSpec) -> int:
        sight = self._sight(NetworkCrop.of_network(graph.preprocessing, face))
        key = json.dumps([graph.described(), wish, sight])
        if key not in self._graphs:
            self._graphs[key] = (len(self._graphs), graph, wish, sight)
        return self._graphs[key][0]

    def _sight(self, sight: NetworkCrop) -> int:
        if sight not in self.sights:
            self.sights.append(sight)
        return self.sights.index(sight)
