"""Explain predictions with heat maps and the most similar training images.

`explain_images` is the entry point: it predicts the images, draws the heat maps and searches the nearest training
images with `NeighborSearch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import SourceError, UnfreezeError
from unfreeze.core.messages import Brief
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode import Box, read_bytes
from unfreeze.data.face_boxes import crop_of
from unfreeze.data.list_images import Images, Listing, collected
from unfreeze.explanation.heatmap import CELLS, HeatMap, PreparedImages, head_contributions, head_maps, top2
from unfreeze.explanation.linear import Contributions
from unfreeze.explanation.neighbors import MOST_READ, Neighbor, TrainingFeatures, near_by_network
from unfreeze.explanation.networks import Explainer, active_members
from unfreeze.features.matrix import JoinedFeatureMatrix
from unfreeze.inference.ensemble import Ensemble, load
from unfreeze.inference.predictor import Classifier, frozen_backbones
from unfreeze.models.feature_extractor import FeatureExtractor

BY_HEADS, BY_FROZEN = "the frozen network's features", "the features of the network that training began from"
BY_TRAINED = "the last map of the first fold's trained network"
GONE = (
    "The cache no longer holds the training photos' features, so the nearest of them are not shown; fit the run again "
    "to have them."
)
NOT_READ = (
    "The nearest training photos are not shown: the cache holds no features of them, and the images cannot be read "
    f"(missing, cropped to faces, or more than {MOST_READ:,})."
)


@dataclass(frozen=True)
class NeighborSearch:
    """Nearest training images of a batch of images.

    Attributes:
        near: Nearest training images of each image, in the order of the images.
        by: Name of the features that the distance is computed on; empty if there are no neighbors.
        features: Frozen features of the images, if frozen networks were used.
        centre: Mean of the training images' signed-root features, float32 (D,) per input, if frozen networks were used.
        note: Why there are no neighbors; empty otherwise.
    """

    near: list[tuple[Neighbor, ...]]
    by: str = ""
    features: JoinedFeatureMatrix | None = None
    centre: list[NDArray[np.float32]] | None = None
    note: str = ""

    @classmethod
    def of(cls, classifier: Classifier, seen: PreparedImages, count: int, reporter: Reporter) -> NeighborSearch:
        """Search with the first feature source that is available.

        The sources are, in this order: the frozen networks that the linear heads read; for runs without heads, the last
        feature map of the fine-tuned network of the first fold; the frozen network that training started from.
        """
        if classifier.heads:
            return cls._frozen(classifier, classifier.graphs, seen, count, BY_HEADS) or cls._none(seen, GONE)
        run, tuned = classifier.run, classifier.tuned[0]
        found = near_by_network(run, tuned, seen.files, seen.hashes, count, reporter)
        if found is not None:
            return cls([near for near, _ in found], BY_TRAINED)
        try:
            graphs: Any = frozen_backbones(run)
        except UnfreezeError:
            graphs = ()
        return cls._frozen(classifier, graphs, seen, count, BY_FROZEN) or cls._none(seen, NOT_READ)

    @classmethod
    def _frozen(
        cls, classifier: Classifier, graphs: Any, seen: PreparedImages, count: int, by: str
    ) -> NeighborSearch | None:
        training = TrainingFeatures.cached(classifier.run, graphs)
        if training is None:
            return None
        features = seen.features(classifier, graphs)
        found = training.near(features, np.arange(len(seen.files)), seen.hashes, count)
        return cls([near for near, _ in found], by, features, training.centre)

    @classmethod
    def _none(cls, seen: PreparedImages, note: str) -> NeighborSearch:
        return cls([()] * len(seen.files), note=note)


PHOTOS = 100  # the HTML page embeds the images
NEIGHBOURS = 6
FROM_ZERO = "The maps start from zero instead of the mean training photo."


@dataclass(frozen=True)
class Explained:
    """Explanation of one image.

    For linear heads (method 'cells'), `base`, the cells and `whole` (features without a position, such as class tokens)
    sum to the logits, for every class.

    Attributes:
        path: Path of the image.
        error: Why the image could not be explained; the other fields then have their defaults.
        label: Predicted class.
        runner_up: Second most probable class.
        probabilities: Probability by class name.
        heat: Heat maps of the evidence for `label` against `runner_up`.
        logits: Logit by class name; linear heads only.
        base: Logit by class name before any cell is added; linear heads only.
        maps: One mapping per feature block of the linear heads: `input`, `block`, `grid`, `whole` ({class: number}) and
            `classes` ({class: rows of cells}).
        neighbours: Nearest training images.
        trained_on: Whether the run was fitted on an image with the same content. Its prediction then says nothing about
            new images.
        square: The face crop as shares of width and height, if the network sees a face crop of the image.
    """

    path: str
    error: str = ""
    label: str = ""
    runner_up: str = ""
    probabilities: dict[str, float] | None = None
    heat: tuple[HeatMap, ...] = ()
    logits: dict[str, float] | None = None
    base: dict[str, float] | None = None
    maps: tuple[dict[str, Any], ...] = ()
    neighbours: tuple[Neighbor, ...] = ()
    trained_on: bool = False
    square: Box | None = None

    def margin(self) -> float:
        """Logit of the predicted class minus the logit of the runner-up, from the linear heads."""
        assert self.logits is not None
        return self.logits[self.label] - self.logits[self.runner_up]

    def start(self) -> float:
        """Part of the margin that comes from `base`, before any cell is added."""
        assert self.base is not None
        return self.base[self.label] - self.base[self.runner_up]

    def contrast(self, block: dict[str, Any]) -> NDArray[np.float64]:
        """A block's map for the predicted class minus the map for the runner-up, float64 (grid, grid)."""
        return np.array(block["classes"][self.label]) - np.array(block["classes"][self.runner_up])

    def placeless(self, block: dict[str, Any]) -> float:
        """Contribution to the margin of the block's features that have no position."""
        return float(block["whole"][self.label] - block["whole"][self.runner_up])

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, with classes by name."""
        content = asdict(replace(self, heat=()))
        names = {"label": self.label, "runner_up": self.runner_up}
        return {**content, "heat": [{**heat.described(), **names} for heat in self.heat]}


@dataclass(frozen=True, repr=False)
class Explanation(Brief):
    """Explained images, in the order given.

    Attributes:
        run: The run, or the first run of an ensemble.
        runs: Runs with a nonzero weight.
        lead: The run with the largest weight. Its training images are the neighbors shown.
        methods: Heat map methods that were used.
        inputs: Description of the networks that the linear heads read; only for method 'cells'.
        gray: Whether any run sees the images in grayscale.
        reference: Reference point of the 'cells' maps: the mean training image or zero.
        alike: Features that the neighbors were searched with.
        note: What could not be computed, and why.
        photos: One explanation per image.
    """

    run: Run
    runs: tuple[Run, ...]
    lead: Run
    methods: tuple[str, ...]
    inputs: tuple[dict[str, Any], ...]
    gray: bool
    reference: str
    alike: str
    note: str
    photos: tuple[Explained, ...]

    def _brief(self) -> str:
        return f"{len(self.photos)} photos by {', '.join(str(run.path) for run in self.runs)}"

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return {
            "run": str(self.run.path),
            "runs": [str(run.path) for run in self.runs],
            "classes": list(self.run.classes),
            "methods": list(self.methods),
            "inputs": list(self.inputs),
            "reference": self.reference,
            "alike": self.alike,
            "note": self.note,
            "photos": [photo.described() for photo in self.photos],
        }


def explain_images(
    run: str | Path | Run | Sequence[str | Path | Run] | Classifier | Ensemble,
    images: Images | Listing,
    *,
    method: str = "auto",
    neighbours: int = NEIGHBOURS,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explain the predictions of a finished run or of an ensemble.

    For each image the result holds the predicted class and the runner-up, a heat map of the evidence for the one
    against the other, and the nearest training images. No method shows what caused the prediction.

    Args:
        run: A run, several runs, `"RUN+RUN"`, or a loaded `Classifier` or `Ensemble`.
        images: As in `Classifier.predict`; at most `PHOTOS` images.
        method: 'cells' (exact contribution of each grid cell to the logits of linear heads), 'grad-cam' (fine-tuned
            networks with spatial feature maps), 'rollout' (attention rollout of fine-tuned vision transformers),
            'occlusion' (effect of covering a patch; for every run and ensemble, 64 predictions per image), or 'auto':
            cells for linear probes, otherwise Grad-CAM or rollout, otherwise occlusion. If the folds use both linear
            heads and fine-tuned networks, 'auto' draws both kinds of maps.
        neighbours: Number of nearest training images per image.
        reporter: Receives progress.

    Returns:
        The explanations, in the order of the images.

    Raises:
        SourceError: The run does not support the method, or there are no images, too many, or none that can be read.
        RunError: As `uf.load`.
    """
    source = run if isinstance(run, Classifier | Ensemble) else load(run)
    reporter = reporter or Reporter()
    mapper = Explainer(source, reporter=reporter)
    mapper.check(method)
    ways = mapper.default() if method == "auto" else (method,)
    with collected(images) as listing:
        return _explained(source, mapper, ways, listing, neighbours, reporter)


def _explained(
    source: Classifier | Ensemble,
    mapper: Explainer,
    ways: tuple[str, ...],
    listing: Listing,
    neighbours: int,
    reporter: Reporter,
) -> Explanation:
    paths = _once(listing)
    predicted = source.predict(Listing(Path(), paths), reporter=reporter)
    errors = predicted["error"].tolist()
    good = [i for i, error in enumerate(errors) if not error]
    if not good:
        raise SourceError(f"none of the {len(paths)} photo(s) can be read: {paths[0]}: {errors[0]}.")
    probabilities = predicted.loc[good, probability_columns(source.run.classes)].to_numpy(np.float64)
    lead = max(active_members(source), key=lambda c: _weight(source, c))
    seen = PreparedImages.of(lead, [paths[i] for i in good])
    alike = NeighborSearch.of(lead, seen, neighbours, reporter)
    note = [alike.note]
    found: Contributions | None = None
    if "cells" in ways:
        features = alike.features or seen.features(lead, lead.graphs)
        found = head_contributions(lead, features, alike.centre)
        note += [] if alike.centre else [FROM_ZERO]
    drawn = _drawn(mapper, [way for way in ways if way != "cells"], [paths[i] for i in good], probabilities, reporter)
    known = {h for c in active_members(source) for h in c.run.photos().query("fold >= 0")["hash"]}
    explained: list[Explained] = [Explained(path, error) for path, error in zip(paths, errors, strict=True)]
    for row, place in enumerate(good):
        first, second = top2(probabilities[row])
        boxes = [seen.box(graph, row) for graph in lead.graphs]
        cells = head_maps(lead, found, row, first, second, boxes) if found else ()
        one = Explained(
            paths[place],
            label=source.run.classes[first],
            runner_up=source.run.classes[second],
            probabilities=_named(source.run, probabilities[row]),
            heat=(*cells, *drawn[row]),
            neighbours=alike.near[row],
            trained_on=seen.hashes[row] in known,
            square=crop_of(seen.squares, row),
        )
        explained[place] = _with_blocks(one, source.run, found, row) if found else one
    return Explanation(
        source.run,
        tuple(c.run for c in active_members(source)),
        lead.run,
        ways,
        tuple(_input(graph) for graph in lead.graphs) if found else (),
        any(c.run.recipe.image.color == "gray" for c in active_members(source)),
        ("the mean training photo" if alike.centre else "zero") if found else "",
        alike.by,
        " ".join(filter(None, note)),
        tuple(explained),
    )


def _drawn(
    mapper: Explainer, ways: Sequence[str], paths: list[str], probabilities: NDArray[np.float64], reporter: Reporter
) -> list[tuple[HeatMap, ...]]:
    """Heat maps of each image that need further forward passes (all methods but 'cells')."""
    found: list[tuple[HeatMap, ...]] = []
    many = CELLS**2 if "occlusion" in ways else 1
    if not ways:
        return [()] * len(paths)
    what = "Computing occlusion maps" if many > 1 else "Computing maps"
    with reporter.bar(what, len(paths) * many) as advance:
        for path, own in zip(paths, probabilities, strict=True):
            data, (first, second) = read_bytes(Path(path)), top2(own)
            maps = [m for way in ways for m in mapper.draw(data, way, first, second, advance if many > 1 else None)]
            found.append(tuple(maps))
            if many == 1:
                advance(1)
    return found


def _with_blocks(photo: Explained, run: Run, maps: Contributions, row: int) -> Explained:
    """Add logits, base and per-block maps of the linear heads, by class name."""
    blocks = tuple(
        {
            "input": block.input,
            "block": block.block,
            "grid": block.grid,
            "whole": _named(run, block.whole[row]),
            "classes": {name: block.values[row, c].tolist() for c, name in enumerate(run.classes)},
        }
        for block in maps.blocks
    )
    return replace(photo, logits=_named(run, maps.logits()[row]), base=_named(run, maps.base), maps=blocks)


def _named(run: Run, values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(run.classes, values, strict=True)}


def _weight(source: Classifier | Ensemble, one: Classifier) -> float:
    pairs = zip(source.classifiers, source.weights, strict=True) if isinstance(source, Ensemble) else [(source, 1.0)]
    return next(float(weight) for classifier, weight in pairs if classifier is one)


def _input(graph: FeatureExtractor) -> dict[str, Any]:
    p = graph.preprocessing
    shown = {"size": p.size, "crop": p.crop, "squash": p.squash, "face": bool(p.face), "gray": p.gray}
    return {"title": graph.title(), **shown, "grid": graph.taps.grid}


def _once(listing: Listing) -> list[str]:
    """Unique image paths, in the order given."""
    paths = list(dict.fromkeys(str(listing.root / path) for path in listing.paths))
    if not paths:
        raise SourceError("no photo to explain; name one.")
    if len(paths) > PHOTOS:
        raise SourceError(f"{len(paths):,} photos are more than a page explains ({PHOTOS}); name those of interest.")
    return paths
