"""A finished run held in memory: the bytes of photos to probabilities, with no file, cache or table in between.

The same numbers as `Classifier.predict`, which goes by way of files: it looks at each photo, hashes it, and keeps its
features on disk, which pays where photos come again, and not where each comes once and somebody waits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.images import Pixels, read_bytes
from unfreeze.judge.selection import blended
from unfreeze.learn.blend import Blend, load
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.direct_sight import Eyes, Face, Prepared, Sight
from unfreeze.learn.probe.feature_table import HALF_MAX, signed_root
from unfreeze.learn.probe.heads import LinearHead
from unfreeze.learn.probe.softmax import softmax
from unfreeze.model.engines import BATCH, Engine, open_engine
from unfreeze.model.graphs import Graph

if TYPE_CHECKING:
    from unfreeze.learn.direct_tuned import HeldNetworks

F16 = NDArray[np.float16]
F64 = NDArray[np.float64]
# Photos of the run that bfloat16 is held against float32 on, as an engine asks.
_SAMPLE = 4 * BATCH


@dataclass(frozen=True)
class Reader:
    """A frozen network with its engine, and which of a photo's squares it reads."""

    graph: Graph
    engine: Engine
    sight: int

    def read(self, photos: Sequence[Prepared], looks: Sequence[str]) -> list[F16]:
        """For each view float16 (n, D), as the cache would keep them."""
        pixels = np.stack([photo[self.sight] for photo in photos])
        # Views side by side, so that a single photo and its mirror image fill a batch together.
        every = np.concatenate([pixels[:, :, ::-1] if view == "flip" else pixels for view in looks])
        parts = self.engine.run(every[i : i + BATCH] for i in range(0, len(every), BATCH))
        rows = np.clip(np.concatenate(list(parts)), -HALF_MAX, HALF_MAX).astype(np.float16)
        return np.split(rows, len(looks))


class _Reading:
    """What the networks made of some photos; each network reads them once, whoever asks."""

    def __init__(self, readers: Sequence[Reader], photos: Sequence[Prepared]) -> None:
        self._readers, self.photos = readers, photos
        self._known: dict[tuple[int, tuple[str, ...]], list[F16]] = {}

    def of(self, reader: int, looks: tuple[str, ...]) -> list[F16]:
        if (reader, looks) not in self._known:
            self._known[reader, looks] = self._readers[reader].read(self.photos, looks)
        return self._known[reader, looks]

    def rooted(self, reader: int, looks: tuple[str, ...]) -> NDArray[np.float32]:
        """float32 (n, D): signed roots of the mean over the views, what heads work on."""
        views = self.of(reader, looks)
        total = np.zeros(views[0].shape, np.float32)
        for view in views:
            total += view
        total /= len(views)
        return signed_root(total)


@dataclass(frozen=True)
class _Heads:
    """The folds' linear heads; those of the same inputs are one matrix.

    readers: the number of each input's reader. joined: inputs, weight (D, k * C), bias (k * C,).
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
        """float64 (n, C), the mean over the heads."""
        total = np.zeros((len(reading.photos), classes))
        for inputs, weight, bias in self.joined:
            features = np.concatenate([reading.rooted(self.readers[i], looks) for i in inputs], 1)
            logits = (features @ weight + bias).reshape(-1, classes)
            total += softmax(logits).reshape(len(features), -1, classes).sum(1)
        return np.asarray(total / self.count)


@dataclass(frozen=True)
class _Tuned:
    """Fine-tuned networks, fed by a reader (strategy late) or by a square of pixels."""

    held: HeldNetworks
    reader: int | None
    sight: int

    def say(self, reading: _Reading, looks: tuple[str, ...]) -> F64:
        if self.reader is not None:
            return self.held.of_activations(reading.of(self.reader, looks))
        return self.held.of_pixels(np.stack([photo[self.sight] for photo in reading.photos]), looks)


@dataclass(frozen=True)
class _Voice:
    """One run: what answers in it, how often each counts, and where its classes stand in the first run's order."""

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
class Direct:
    """A run, or several that answer together, in memory. `prepare` may be called by many threads, the rest by one.

    classes: order of all probability columns. readers: its frozen networks. weights: of the runs, sum 1.
    """

    source: Classifier | Blend
    classes: tuple[str, ...]
    eyes: Eyes
    readers: tuple[Reader, ...]
    voices: tuple[_Voice, ...]
    weights: F64

    @classmethod
    def load(
        cls,
        run: str | Path | Run | Sequence[str | Path | Run] | Classifier | Blend,
        max_megapixels: float = 50.0,
        reporter: Reporter | None = None,
    ) -> Direct:
        """Of what `uf.load` takes or gives. Opens engines and loads every network.

        max_megapixels: photos with more are refused; never more than the run's own image.max_megapixels.
        Raises RunError as `load`, EngineError where no engine runs here, DetectorError as `Eyes`.
        """
        source = run if isinstance(run, Classifier | Blend) else load(run)
        reporter = reporter or Reporter()
        whole = source.classifiers if isinstance(source, Blend) else (source,)
        weights = source.weights if isinstance(source, Blend) else np.ones(1)
        asked = [(c, w) for c, w in zip(whole, weights, strict=True) if w]
        limit = min(max_megapixels, *(c.run.recipe.image.max_megapixels for c, _ in asked))
        making = _Making(reporter, [c.run for c, _ in asked], int(limit * 1e6))
        classes = source.run.classes
        voices = [making.voice(c, tuple(c.run.classes.index(name) for name in classes)) for c, _ in asked]
        eyes = Eyes(making.sights, int(limit * 1e6))
        readers = making.readers(eyes)
        return cls(source, classes, eyes, readers, tuple(voices), np.array([w for _, w in asked]))

    def prepare(self, data: bytes) -> Prepared:
        """What the networks see of an image file's bytes. PhotoError with the reason where it is none."""
        if not data:
            raise PhotoError("photo", "the file is empty")
        return self.eyes.prepare(data)

    def probabilities(self, photos: Sequence[Prepared], looks: tuple[str, ...] | None = None) -> F64:
        """float64 (n, C) of photos from `prepare`. looks: ('plain',) or ('plain', 'flip'); None: as in training."""
        if not photos:
            return np.zeros((0, len(self.classes)))
        reading = _Reading(self.readers, photos)
        found = [voice.say(reading, looks) for voice in self.voices]
        return found[0] if len(found) == 1 else blended(found, self.weights)


class _Making:
    """Collects what runs need, so that what two of them share is there once."""

    def __init__(self, reporter: Reporter, runs: Sequence[Run], max_pixels: int) -> None:
        self.reporter, self.runs, self.max_pixels = reporter, runs, max_pixels
        self.sights: list[Sight] = []
        self._graphs: dict[str, tuple[int, Graph, str, int]] = {}  # key -> number, graph, wish, sight

    def voice(self, classifier: Classifier, columns: tuple[int, ...]) -> _Voice:
        recipe, answers, shares = classifier.run.recipe, list[_Heads | _Tuned](), list[int]()
        face = Face.of(recipe)
        if classifier.heads:
            readers = [self._reader(graph, recipe.engine, face) for graph in classifier.graphs]
            answers.append(_Heads.of(classifier.heads, readers))
            shares.append(len(classifier.heads))
        for tuned, times in zip(classifier.tuned, classifier.heard or (1,) * len(classifier.tuned), strict=True):
            from unfreeze.learn.direct_tuned import HeldNetworks  # torch, which a probe may do without

            s = tuned.setting
            if s.cut:
                reader: int | None = self._reader(s.front, s.engine, face)
                sight = -1
            else:
                reader, sight = None, self._sight(Sight.of_frame(s.frame, face))
            answers.append(_Tuned(HeldNetworks.of(tuned), reader, sight))
            shares.append(times * len(tuned.files))
        return _Voice(tuple(recipe.probe.views), tuple(answers), tuple(shares), columns)

    def readers(self, eyes: Eyes) -> tuple[Reader, ...]:
        """Opens the engines. Where the run's photos are still there, reduced precision is checked on them."""
        if not self._graphs:
            return ()
        sample = _run_photos(self.runs, eyes)
        found = []
        for _, graph, wish, sight in self._graphs.values():
            pixels = np.stack([p[sight] for p in sample]) if sample else _smooth(graph.preprocessing.size)
            found.append(Reader(graph, open_engine(graph, pixels, wish, self.reporter), sight))
        return tuple(found)

    def _reader(self, graph: Graph, wish: str, face: Face) -> int:
        sight = self._sight(Sight.of_network(graph.preprocessing, face))
        key = json.dumps([graph.described(), wish, sight])
        if key not in self._graphs:
            self._graphs[key] = (len(self._graphs), graph, wish, sight)
        return self._graphs[key][0]

    def _sight(self, sight: Sight) -> int:
        if sight not in self.sights:
            self.sights.append(sight)
        return self.sights.index(sight)


def _run_photos(runs: Sequence[Run], eyes: Eyes) -> list[Prepared]:
    """Some photos that a run learnt from, where they still are."""
    run = runs[0]
    table, root, found = run.photos(), Path(run.info["root"]), list[Prepared]()
    good = table.loc[table["hash"] != "", "path"]
    for path in good.iloc[:: max(1, len(good) // _SAMPLE)].head(_SAMPLE):
        try:
            found.append(eyes.prepare(read_bytes(root / path)))
        except PhotoError:
            if not found:  # moved away: asking for the rest would only take time
                break
    return found


def _smooth(size: int) -> Pixels:
    """uint8 (n, size, size, 3) of coarse random colours grown large: in place of photos, where there are none."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (_SAMPLE, 7, 7, 3), np.uint8)
    grown = [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse]
    return np.stack(grown)
