"""The training photos most like some photos, by whatever of the run has seen both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import UnfreezeError
from unfreeze.core.progress import Reporter
from unfreeze.learn.classifier import Classifier, networks_read
from unfreeze.learn.maps_heads import SeenPhotos
from unfreeze.learn.maps_training import MOST_READ, Neighbour, TrainingPhotos, near_by_network
from unfreeze.learn.probe.inputs import JoinedFeatures

BY_HEADS, BY_FROZEN = "the frozen network's features", "the features of the network that training began from"
BY_TRAINED = "the last map of the first fold's trained network"
GONE = (
    "The cache no longer holds the training photos' features, so the nearest of them are not shown; fit the run again "
    "to have them."
)
NOT_READ = (
    "The nearest training photos are not shown: the cache holds no features of them, and they cannot be read anew "
    f"(gone, seen by their faces, or more than {MOST_READ:,})."
)


@dataclass(frozen=True)
class Alike:
    """near: for each photo its nearest training photos. by: what they were found by; empty where there are none.

    features: of the photos, where frozen networks were asked, and centre the training photos' mean of the same. note:
    why there are no nearest photos.
    """

    near: list[tuple[Neighbour, ...]]
    by: str = ""
    features: JoinedFeatures | None = None
    centre: list[NDArray[np.float32]] | None = None
    note: str = ""

    @classmethod
    def of(cls, classifier: Classifier, seen: SeenPhotos, count: int, reporter: Reporter) -> Alike:
        """By the networks that heads read; else by the trained network; else by the one that training began from."""
        if classifier.heads:
            return cls._frozen(classifier, classifier.graphs, seen, count, BY_HEADS) or cls._none(seen, GONE)
        run, tuned = classifier.run, classifier.tuned[0]
        found = near_by_network(run, tuned, seen.files, seen.hashes, count, reporter)
        if found is not None:
            return cls([near for near, _ in found], BY_TRAINED)
        try:
            graphs: Any = networks_read(run)
        except UnfreezeError:
            graphs = ()
        return cls._frozen(classifier, graphs, seen, count, BY_FROZEN) or cls._none(seen, NOT_READ)

    @classmethod
    def _frozen(cls, classifier: Classifier, graphs: Any, seen: SeenPhotos, count: int, by: str) -> Alike | None:
        training = TrainingPhotos.cached(classifier.run, graphs)
        if training is None:
            return None
        features = seen.features(classifier, graphs)
        found = training.near(features, np.arange(len(seen.files)), seen.hashes, count)
        return cls([near for near, _ in found], by, features, training.centre)

    @classmethod
    def _none(cls, seen: SeenPhotos, note: str) -> Alike:
        return cls([()] * len(seen.files), note=note)
