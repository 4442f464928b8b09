"""Explain misclassified training images with the model of their own held-out fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.cache import content_hash
from unfreeze.core.errors import PhotoError, UnfreezeError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode import read_bytes
from unfreeze.data.face_boxes import crop_of
from unfreeze.explanation.heatmap import HeatMap, head_contributions, head_maps, visible_box
from unfreeze.explanation.neighbors import (
    Neighbor,
    TrainingFeaturesByFold,
    cached_inputs,
    near_by_network,
    training_table,
)
from unfreeze.explanation.networks import Explainer
from unfreeze.inference.predictor import Classifier, frozen_backbones
from unfreeze.models.feature_extractor import FeatureExtractor

NEIGHBOURS = 3
# Networks trained from scratch have no cached features: the training images are read again for every fold, so only
# up to this number of images.
MOST_READ = 300
UNASKED = "its fold has a fine-tuned network; a report with `explain` computes its map"


@dataclass(frozen=True)
class ExplainedMistake:
    """Explanation of one misclassified image.

    Attributes:
        path: Path as in the run's tables.
        fold: Fold that the image was held out in.
        label: Label.
        said: Predicted class.
        maps: Heat maps from the models of the image's fold, for `said` against `label`.
        near: Nearest training images of these models.
        why: Why there are no maps; empty otherwise.
    """

    path: str
    fold: int
    label: str
    said: str
    maps: tuple[HeatMap, ...] = ()
    near: tuple[Neighbor, ...] = ()
    why: str = ""

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict; the maps hold class indices in the run's order."""
        content = {"path": self.path, "fold": self.fold, "label": self.label, "said": self.said, "why": self.why}
        return content | {"maps": [m.described() for m in self.maps], "near": [n.described() for n in self.near]}


def explain_mistakes(
    run: Run, wrong: Sequence[tuple[str, str]], *, trained: bool = False, reporter: Reporter | None = None
) -> list[ExplainedMistake]:
    """Explain misclassified images with the models of their held-out folds.

    Each image is explained with the model that has not seen it, and compared with the training images of that model.
    Maps of linear heads come from the cached features and are cheap. Never raises for a single image, fold or run:
    `why` holds the reason instead.

    Args:
        run: A finished run.
        wrong: Path, as in the run's tables, and predicted class of each image.
        trained: Whether to load fine-tuned networks and draw their maps as well.
        reporter: Receives progress.

    Returns:
        One entry per image in `wrong` that is in the run's table.
    """
    table = run.photos().set_index("path")
    rows = [
        ExplainedMistake(path, int(table["fold"][path]), str(table["label"][path]), said)
        for path, said in wrong
        if path in table.index
    ]
    found: dict[str, ExplainedMistake] = {}
    graphs = frozen_backbones(run)
    training = TrainingFeaturesByFold.cached(run, graphs) if rows else None
    with (reporter or Reporter()).bar("Explaining wrong predictions", len(rows)) as advance:
        for fold in sorted({row.fold for row in rows}):
            own = [row for row in rows if row.fold == fold]
            try:
                drawn = _of_fold(_Asked(run, fold, own, table.loc[[r.path for r in own]], graphs, training), trained)
            except UnfreezeError as error:
                drawn = [replace(row, why=f"the model of fold {fold} cannot be used ({error})") for row in own]
            found |= {row.path: row for row in drawn}
            advance(len(own))
    return [found[row.path] for row in rows]


def _of_fold(asked: _Asked, trained: bool) -> list[ExplainedMistake]:
    run, fold = asked.run, asked.fold
    drawn = [replace(row, near=near) for row, near in zip(asked.rows, asked.near(), strict=True)]
    if not trained and not any(fold in m.folds and m.recipe.strategy == "probe" for m in run.members):
        return [replace(row, why=UNASKED) for row in drawn]
    classifier = Classifier.load(run, folds=(fold,))
    if classifier.tuned and asked.training is None and len(training_table(run, fold)) <= MOST_READ:
        drawn = [replace(row, near=near) for row, near in zip(drawn, asked.read(classifier), strict=True)]
    if classifier.heads:
        drawn = asked.cells(classifier, drawn)
    lacking = classifier.tuned or not all(row.maps for row in drawn)
    return asked.looked(Explainer(classifier) if trained and lacking else None, drawn)


@dataclass(frozen=True)
class _Asked:
    """Misclassified images of one fold.

    Attributes:
        run: The run.
        fold: The fold.
        rows: The images.
        about: Their rows of the image table, in the order of `rows`.
        graphs: Frozen networks that the run's heads read.
        training: Features of the training images from these networks.
    """

    run: Run
    fold: int
    rows: list[ExplainedMistake]
    about: pd.DataFrame
    graphs: tuple[FeatureExtractor, ...]
    training: TrainingFeaturesByFold | None

    @property
    def hashes(self) -> list[str]:
        return [str(found) for found in self.about["hash"]]

    @property
    def files(self) -> list[Path]:
        return [Path(self.run.info["root"]) / row.path for row in self.rows]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Class indices of the prediction and of the label."""
        classes = self.run.classes
        return [(classes.index(row.said), classes.index(row.label)) for row in self.rows]

    def near(self) -> list[tuple[Neighbor, ...]]:
        """Nearest training images by the features of the frozen networks."""
        own = cached_inputs(self.run, self.hashes, self.graphs) if self.training else None
        if self.training is None or own is None:
            return [()] * len(self.rows)
        return self.training.near(own.rooted(np.arange(len(self.rows))), self.fold, self.hashes, NEIGHBOURS)

    def read(self, classifier: Classifier) -> list[tuple[Neighbor, ...]]:
        """Nearest training images by the fold's fine-tuned network, which reads the training images again."""
        tuned, files = classifier.tuned[0], self.files
        found = near_by_network(self.run, tuned, files, self.hashes, NEIGHBOURS, Reporter(), self.fold)
        return [near for near, _ in found] if found else [()] * len(self.rows)

    def cells(self, classifier: Classifier, rows: list[ExplainedMistake]) -> list[ExplainedMistake]:
        """Add the maps of the linear heads."""
        features = cached_inputs(self.run, self.hashes, classifier.graphs)
        if self.training is None or features is None:
            why = "the cache no longer holds the features; a report with `explain` computes it"
            return [replace(row, why=why) for row in rows]
        every = self.training.centre(self.fold)
        centre = [every[self.graphs.index(graph)] for graph in classifier.graphs]
        keys = np.array([(int(h[:16], 16), int(h[16:], 16)) for h in self.hashes], np.uint64)
        squares = classifier.squares(self.files, keys, np.ones(len(keys), bool), Reporter())
        found, drawn = head_contributions(classifier, features, centre), []
        sizes = self.about[["width", "height"]].to_numpy(int).tolist()
        for i, (row, (wide, high), pair) in enumerate(zip(rows, sizes, self.pairs, strict=True)):
            boxes = [visible_box(graph, (wide, high), crop_of(squares, i)) for graph in classifier.graphs]
            drawn.append(replace(row, maps=head_maps(classifier, found, i, *pair, boxes)))
        return drawn

    def looked(self, mapper: Explainer | None, rows: list[ExplainedMistake]) -> list[ExplainedMistake]:
        """Add the maps of the fine-tuned networks; drop all maps if the file is gone or has changed."""
        drawn = []
        for row, file, name, pair in zip(rows, self.files, self.hashes, self.pairs, strict=True):
            try:
                data = read_bytes(file)
                if "{:016x}{:016x}".format(*content_hash(data)) != name:
                    drawn.append(replace(row, maps=(), why="the file has changed since the fit"))
                    continue
                ways = [way for way in mapper.default() if way != "cells" or not row.maps] if mapper else []
                maps = [found for way in ways for found in mapper.draw(data, way, *pair)] if mapper else []
                drawn.append(replace(row, maps=(*row.maps, *maps), why="" if maps else row.why))
            except PhotoError as error:
                drawn.append(replace(row, maps=(), why=f"the photo cannot be read ({error.reason})"))
        return drawn
