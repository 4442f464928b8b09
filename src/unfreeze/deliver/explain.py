"""Why a photo got its class: the linear heads' exact maps, block by block, and the training photos most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import SourceError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import Box
from unfreeze.data.listing import list_images
from unfreeze.data.looks import look
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.probe.contributions import Contributions, contributions, mean_rooted, nearest_photos, placed_columns
from unfreeze.learn.probe.features import cached_features, compute_features
from unfreeze.learn.probe.inputs import JoinedFeatures

PHOTOS = 100  # a page holds its photos; more are a matter for `predict`
NEIGHBOURS = 6
NO_TRAINING = (
    "The cache no longer holds the training photos' features, so the maps start from zero instead of the mean "
    "training photo, and the nearest training photos are not shown; fit the run again to have both."
)


@dataclass(frozen=True)
class Neighbour:
    """A training photo that looks alike to the networks; cosine of centred signed roots, 1 is the same."""

    path: str
    label: str
    group: str
    cosine: float


@dataclass(frozen=True)
class Explained:
    """One photo. `maps`: for each block {input, block, grid, whole: {class: number}, classes: {class: rows of cells}}.

    base, cells and whole (of features that have no place, such as class tokens) sum to the logits, class by class.
    runner_up: the second most probable class. trained_on: the run was fitted on this very content, so that its
    prediction says nothing of new photos. square: what was seen of it where that is the square around a face, as shares
    of its width and height. error: why there is nothing.
    """

    path: str
    error: str = ""
    label: str = ""
    runner_up: str = ""
    probabilities: dict[str, float] | None = None
    logits: dict[str, float] | None = None
    base: dict[str, float] | None = None
    maps: tuple[dict[str, Any], ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    trained_on: bool = False
    square: Box | None = None

    def margin(self) -> float:
        """Logit of the predicted class less that of the runner-up."""
        assert self.logits is not None
        return self.logits[self.label] - self.logits[self.runner_up]

    def start(self) -> float:
        """What of the margin was there before any cell was read."""
        assert self.base is not None
        return self.base[self.label] - self.base[self.runner_up]

    def contrast(self, block: dict[str, Any]) -> NDArray[np.float64]:
        """A block's map for the predicted class less that for the runner-up: (grid, grid)."""
        return np.array(block["classes"][self.label]) - np.array(block["classes"][self.runner_up])

    def placeless(self, block: dict[str, Any]) -> float:
        """The same of the block's features that have no place."""
        return float(block["whole"][self.label] - block["whole"][self.runner_up])


@dataclass(frozen=True)
class Explanation:
    """Explained photos in the order given. reference: what the maps start from. note: what could not be had."""

    run: Run
    inputs: tuple[dict[str, Any], ...]
    reference: str
    note: str
    photos: tuple[Explained, ...]

    def described(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "run": str(self.run.path),
            "classes": list(self.run.classes),
            "inputs": list(self.inputs),
            "reference": self.reference,
            "note": self.note,
            "photos": [asdict(photo) for photo in self.photos],
        }


def explain(
    run: str | Path | Run | Classifier,
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    neighbours: int = NEIGHBOURS,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explains the predictions of a finished probe run; with `out`, also as one HTML page.

    images: photos, folders of photos, or tables that name them. For each photo: the predicted class and the
    runner-up, what every grid cell of every block adds to every class's logit (exact, nothing is approximated), and the
    nearest training photos. What a cell adds is what the linear heads read there, not what caused the class.
    Raises SourceError if there are no photos, too many, or none can be read; RunError as `uf.load` does.
    """
    classifier = run if isinstance(run, Classifier) else Classifier.load(run)
    if not hasattr(classifier, "heads") or classifier.run.strategies != ("probe",):
        did = listed(classifier.run.strategies)
        raise SourceError(f"{classifier.run.path}: a {did} run; explain takes probe runs.")
    reporter = reporter or Reporter()
    paths = _listed(images)
    predicted = classifier.predict(paths, reporter=reporter)
    errors = predicted["error"].tolist()
    good = [i for i, error in enumerate(errors) if not error]
    if not good:
        raise SourceError(f"none of the {len(paths)} photo(s) can be read: {paths[0]}: {errors[0]}.")
    features, hashes, squares = _features(classifier, [paths[i] for i in good])
    training = _Training.of(classifier)
    rows = np.arange(len(good))
    maps = contributions(
        features,
        rows,
        classifier.heads,
        [graph.taps.grid for graph in classifier.graphs],
        classifier.run.recipe.probe.views,
        training.centre if training else None,
        [placed_columns(graph) for graph in classifier.graphs],
    )
    probabilities = predicted.loc[good, probability_columns(classifier.run.classes)].to_numpy(np.float64)
    near = training.near(features, rows, hashes, neighbours) if training else [((), False)] * len(good)
    explained: list[Explained] = [Explained(path, error) for path, error in zip(paths, errors, strict=True)]
    for row, place in enumerate(good):
        seen = box_of(squares, row)
        explained[place] = _explained(classifier, paths[place], maps, row, probabilities[row], *near[row], seen)
    found = Explanation(
        classifier.run,
        tuple(
            {
                "title": g.title(),
                "size": g.preprocessing.size,
                "crop": g.preprocessing.crop,
                "squash": g.preprocessing.squash,
                "face": bool(g.preprocessing.face),
                "gray": g.preprocessing.gray,
                "grid": g.taps.grid,
            }
            for g in classifier.graphs
        ),
        "the mean training photo" if training else "zero",
        "" if training else NO_TRAINING,
        tuple(explained),
    )
    if out is not None:
        from unfreeze.deliver.explain_page import write_page

        write_page(found, Path(out))
    return found


@dataclass(frozen=True)
class _Training:
    """The training photos' features, as the cache holds them."""

    features: JoinedFeatures
    centre: list[NDArray[np.float32]]
    table: Any

    @classmethod
    def of(cls, classifier: Classifier) -> _Training | None:
        """None where the cache lacks any of them."""
        run = classifier.run
        table = run.photos()
        table = table[table["fold"] >= 0].reset_index(drop=True)
        keys = np.array([(int(h[:16], 16), int(h[16:], 16)) for h in table["hash"]], np.uint64).reshape(-1, 2)
        parts = []
        for graph in classifier.graphs:
            part = cached_features(keys, np.ones(len(keys), bool), graph, run.recipe.probe.views, run.recipe.engine)
            if part is None:
                return None
            parts.append(part)
        features = JoinedFeatures(tuple(parts))
        return cls(features, mean_rooted(features, np.arange(len(table))), table)

    def near(
        self, queries: JoinedFeatures, asked: NDArray[np.int64], hashes: list[str], count: int
    ) -> list[tuple[tuple[Neighbour, ...], bool]]:
        """For each photo its nearest training photos, itself left out, and whether it is one of them."""
        cosines = nearest_photos(self.features, np.arange(len(self.table)), queries, asked, self.centre)
        found = []
        for cosine, own in zip(cosines, hashes, strict=True):
            same = (self.table["hash"] == own).to_numpy()
            order = [i for i in np.argsort(-cosine, kind="stable") if not same[i]][:count]
            rows = self.table.iloc[order]
            neighbours = tuple(
                Neighbour(str(r.path), str(r.label), str(r.group), float(cosine[i]))
                for i, r in zip(order, rows.itertuples(), strict=True)
            )
            found.append((neighbours, bool(same.any())))
        return found


def _explained(
    classifier: Classifier,
    path: str,
    maps: Contributions,
    row: int,
    probabilities: NDArray[np.float64],
    neighbours: tuple[Neighbour, ...],
    trained_on: bool,
    square: Box | None,
) -> Explained:
    classes = classifier.run.classes
    first, second = np.argsort(-probabilities, kind="stable")[:2]

    def named(values: NDArray[np.float64]) -> dict[str, float]:
        return {name: float(value) for name, value in zip(classes, values, strict=True)}

    return Explained(
        path,
        label=classes[first],
        runner_up=classes[second],
        probabilities=named(probabilities),
        logits=named(maps.logits()[row]),
        base=named(maps.base),
        maps=tuple(
            {
                "input": block.input,
                "block": block.block,
                "grid": block.grid,
                "whole": named(block.whole[row]),
                "classes": {name: block.values[row, c].tolist() for c, name in enumerate(classes)},
            }
            for block in maps.blocks
        ),
        neighbours=neighbours,
        trained_on=trained_on,
        square=square,
    )


def _listed(images: str | Path | Sequence[str | Path]) -> list[str]:
    """Every photo once, in the order given."""
    paths: list[str] = []
    for given in [images] if isinstance(images, str | Path) else images:
        root, names = list_images(Path(given))
        paths += [str(root / name) for name in names]
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise SourceError("no photo to explain; name one.")
    if len(paths) > PHOTOS:
        raise SourceError(f"{len(paths):,} photos are more than a page explains ({PHOTOS}); name those of interest.")
    return paths


def _features(classifier: Classifier, paths: list[str]) -> tuple[JoinedFeatures, list[str], NDArray[np.float64] | None]:
    """Of photos that were just predicted: features by the run's own views, from the cache, content hashes, squares."""
    import pandas as pd

    run = classifier.run
    limit = int(run.recipe.image.max_megapixels * 1e6)
    table = pd.DataFrame({"path": paths, "label": run.classes[0], "group": paths, "split": "test"})
    photos = Photos(table, Path(), run.classes, tuple(run.info["answers"]), (), "images", "")
    looks = look(photos, limit)
    files, reporter, parts = photos.files(), Reporter(), []
    squares = classifier.squares(files, looks.keys, looks.readable, reporter)
    for graph in classifier.graphs:
        views, wish = run.recipe.probe.views, run.recipe.engine
        part = compute_features(files, looks.keys, looks.readable, graph, views, wish, limit, reporter, squares)
        parts.append(part)
        if part.failed or not looks.readable.all():
            raise SourceError(f"{paths[0]}: the photos changed while they were read; run the same command again.")
    return JoinedFeatures(tuple(parts)), looks.hashes(), squares
