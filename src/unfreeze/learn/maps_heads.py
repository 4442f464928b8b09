"""The exact maps of linear heads, many photos at once: features from the cache, as a prediction computed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import SourceError
from unfreeze.core.progress import Reporter
from unfreeze.core.tables import Photos
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import Box
from unfreeze.data.looks import look
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.maps import HeatMap, cell_maps, centre_box
from unfreeze.learn.probe.contributions import Contributions, contributions, placed_columns
from unfreeze.learn.probe.features import compute_features
from unfreeze.learn.probe.inputs import JoinedFeatures
from unfreeze.model.graphs import Graph


@dataclass(frozen=True)
class SeenPhotos:
    """Readable photos and how a run's networks are shown them.

    keys: uint64 (n, 2), content hashes, also as `hashes`. sizes: width and height of each upright photo. squares:
    float64 (n, 4), what is cut round faces, NaN where none was found; None where the networks see no faces.
    """

    files: list[Path]
    keys: NDArray[np.uint64]
    hashes: list[str]
    sizes: list[tuple[int, int]]
    squares: NDArray[np.float64] | None

    @classmethod
    def of(cls, classifier: Classifier, paths: Sequence[str]) -> SeenPhotos:
        """Of photos that were read just before. SourceError where one cannot be read any more."""
        run = classifier.run
        table = pd.DataFrame({"path": list(paths), "label": run.classes[0], "group": list(paths), "split": "test"})
        photos = Photos(table, Path(), run.classes, tuple(run.info["answers"]), (), "images", "")
        looks = look(photos, int(run.recipe.image.max_megapixels * 1e6))
        if not looks.readable.all():
            raise SourceError(f"{paths[0]}: the photos changed while they were read; run the same command again.")
        squares = classifier.squares(photos.files(), looks.keys, looks.readable, Reporter())
        sizes = list(zip(looks.width.tolist(), looks.height.tolist(), strict=True))
        return cls(photos.files(), looks.keys, looks.hashes(), sizes, squares)

    def features(self, classifier: Classifier, graphs: Sequence[Graph]) -> JoinedFeatures:
        """What frozen networks make of them, from the cache or computed. SourceError where a photo has just gone."""
        run = classifier.run
        limit, there, parts = int(run.recipe.image.max_megapixels * 1e6), np.ones(len(self.files), bool), []
        for graph in graphs:
            views, wish = run.recipe.probe.views, run.recipe.engine
            asked = (self.files, self.keys, there, graph, views, wish, limit, Reporter(), self.squares)
            parts.append(compute_features(*asked))
            if parts[-1].failed:
                raise SourceError(f"{self.files[0]}: the photos changed while they were read; run it again.")
        return JoinedFeatures(tuple(parts))

    def box(self, graph: Graph, row: int) -> Box:
        """What a network is shown of a photo, as shares of its width and height."""
        return shown_box(graph, self.sizes[row], box_of(self.squares, row))


def shown_box(graph: Graph, size: tuple[int, int], face: Box | None) -> Box:
    """What a network is shown of a photo of this width and height; face: the square round it, if one was found."""
    p = graph.preprocessing
    return face if p.face and face else centre_box(*size, p.crop, p.squash)


def head_contributions(
    classifier: Classifier, features: JoinedFeatures, centre: Sequence[NDArray[np.float32]] | None
) -> Contributions:
    """What each cell adds to each class, for all photos of `features`. centre: as of `mean_rooted`; None: zero."""
    return contributions(
        features,
        np.arange(len(features.parts[0].places[0])),
        classifier.heads,
        [graph.taps.grid for graph in classifier.graphs],
        classifier.run.recipe.probe.views,
        centre,
        [placed_columns(graph) for graph in classifier.graphs],
    )


def head_maps(
    classifier: Classifier, found: Contributions, row: int, label: int, runner_up: int, boxes: Sequence[Box]
) -> tuple[HeatMap, ...]:
    """Maps of one photo of `head_contributions`. boxes: what of it each of the classifier's networks is shown."""
    return cell_maps(found, row, label, runner_up, boxes, [graph.title() for graph in classifier.graphs])
