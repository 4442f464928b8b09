"""Why a photo got its class: a map of where it was read, and the training photos most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import SourceError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.core.tables import probability_columns
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import Box, read_bytes
from unfreeze.data.listing import list_images
from unfreeze.deliver.explain_near import Alike
from unfreeze.learn.blend import Blend, load
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.maps import CELLS, HeatMap, first_two
from unfreeze.learn.maps_heads import SeenPhotos, head_contributions, head_maps
from unfreeze.learn.maps_networks import Mapper, asked
from unfreeze.learn.maps_training import Neighbour
from unfreeze.learn.probe.contributions import Contributions
from unfreeze.model.graphs import Graph

PHOTOS = 100  # a page holds its photos; more are a matter for `predict`
NEIGHBOURS = 6
FROM_ZERO = "The maps start from zero instead of the mean training photo."


@dataclass(frozen=True)
class Explained:
    """One photo. `heat`: its maps, for the predicted class rather than the runner-up, the second most probable.

    Of linear heads (method 'cells') also `maps`, for each block {input, block, grid, whole: {class: number}, classes:
    {class: rows of cells}}: base, cells and whole (of features that have no place, such as class tokens) sum to the
    logits, class by class. trained_on: the run was fitted on this very content, so that its prediction says nothing of
    new photos. square: what was seen of it where that is the square around a face, as shares of its width and height.
    error: why there is nothing.
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
    neighbours: tuple[Neighbour, ...] = ()
    trained_on: bool = False
    square: Box | None = None

    def margin(self) -> float:
        """Logit of the predicted class less that of the runner-up, by the linear heads."""
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

    def described(self) -> dict[str, Any]:
        """The same as JSON, classes by name."""
        told = asdict(replace(self, heat=()))
        names = {"label": self.label, "runner_up": self.runner_up}
        return {**told, "heat": [{**heat.described(), **names} for heat in self.heat]}


@dataclass(frozen=True)
class Explanation:
    """Explained photos in the order given. methods: how the maps were made. runs: those that answered.

    lead: of these the one of the greatest weight, whose training photos are shown. inputs: the networks that linear
    heads read, for 'cells'. gray: whether photos were seen without their colours. reference: what the cells start from.
    alike: what the nearest training photos were found by. note: what could not be had.
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

    def described(self) -> dict[str, Any]:
        """The same as JSON."""
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


def explain(
    run: str | Path | Run | Sequence[str | Path | Run] | Classifier | Blend,
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    method: str = "auto",
    neighbours: int = NEIGHBOURS,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explains the predictions of a finished run, or of several as `"RUN+RUN"`; with `out`, also as one HTML page.

    images: photos, folders of photos, or tables that name them. For each photo: the predicted class and the
    runner-up, a map of what in the photo spoke for the one rather than the other, and the nearest training photos.
    method: 'cells' (what every grid cell adds to the logits of linear heads, exactly), 'grad-cam' (trained networks
    that keep maps), 'rollout' (of attention, trained vision transformers), 'occlusion' (what covering a patch costs;
    for every run and blend, 64 answers a photo). 'auto' takes the run's own: cells for probes, else Grad-CAM or
    rollout, else occlusion; where folds were learnt in both ways, both. None of them shows what caused the class.
    Raises SourceError for a method that the run has not, if there are no photos, too many, or none can be read;
    RunError as `uf.load` does.
    """
    source = run if isinstance(run, Classifier | Blend) else load(run)
    reporter = reporter or Reporter()
    mapper = Mapper(source, reporter=reporter)
    mapper.check(method)
    ways = mapper.default() if method == "auto" else (method,)
    paths = _listed(images)
    predicted = source.predict(paths, reporter=reporter)
    errors = predicted["error"].tolist()
    good = [i for i, error in enumerate(errors) if not error]
    if not good:
        raise SourceError(f"none of the {len(paths)} photo(s) can be read: {paths[0]}: {errors[0]}.")
    probabilities = predicted.loc[good, probability_columns(source.run.classes)].to_numpy(np.float64)
    lead = max(asked(source), key=lambda c: _weight(source, c))
    seen = SeenPhotos.of(lead, [paths[i] for i in good])
    alike = Alike.of(lead, seen, neighbours, reporter)
    note = [alike.note]
    found: Contributions | None = None
    if "cells" in ways:
        features = alike.features or seen.features(lead, lead.graphs)
        found = head_contributions(lead, features, alike.centre)
        note += [] if alike.centre else [FROM_ZERO]
    drawn = _drawn(mapper, [way for way in ways if way != "cells"], [paths[i] for i in good], probabilities, reporter)
    known = {h for c in asked(source) for h in c.run.photos().query("fold >= 0")["hash"]}
    explained: list[Explained] = [Explained(path, error) for path, error in zip(paths, errors, strict=True)]
    for row, place in enumerate(good):
        first, second = first_two(probabilities[row])
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
            square=box_of(seen.squares, row),
        )
        explained[place] = _with_blocks(one, source.run, found, row) if found else one
    answer = Explanation(
        source.run,
        tuple(c.run for c in asked(source)),
        lead.run,
        ways,
        tuple(_input(graph) for graph in lead.graphs) if found else (),
        any(c.run.recipe.image.color == "gray" for c in asked(source)),
        ("the mean training photo" if alike.centre else "zero") if found else "",
        alike.by,
        " ".join(filter(None, note)),
        tuple(explained),
    )
    if out is not None:
        from unfreeze.deliver.explain_page import write_page

        write_page(answer, Path(out))
    return answer


def _drawn(
    mapper: Mapper, ways: Sequence[str], paths: list[str], probabilities: NDArray[np.float64], reporter: Reporter
) -> list[tuple[HeatMap, ...]]:
    """The maps of each photo that its networks are asked for anew."""
    found: list[tuple[HeatMap, ...]] = []
    many = CELLS**2 if "occlusion" in ways else 1
    if not ways:
        return [()] * len(paths)
    what = "Covering each photo's places" if many > 1 else "Looking into the networks"
    with reporter.bar(what, len(paths) * many) as advance:
        for path, own in zip(paths, probabilities, strict=True):
            data, (first, second) = read_bytes(Path(path)), first_two(own)
            maps = [m for way in ways for m in mapper.draw(data, way, first, second, advance if many > 1 else None)]
            found.append(tuple(maps))
            if many == 1:
                advance(1)
    return found


def _with_blocks(photo: Explained, run: Run, maps: Contributions, row: int) -> Explained:
    """With all numbers of the linear heads, class by class."""
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


def _weight(source: Classifier | Blend, one: Classifier) -> float:
    pairs = zip(source.classifiers, source.weights, strict=True) if isinstance(source, Blend) else [(source, 1.0)]
    return next(float(weight) for classifier, weight in pairs if classifier is one)


def _input(graph: Graph) -> dict[str, Any]:
    p = graph.preprocessing
    shown = {"size": p.size, "crop": p.crop, "squash": p.squash, "face": bool(p.face), "gray": p.gray}
    return {"title": graph.title(), **shown, "grid": graph.taps.grid}


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
