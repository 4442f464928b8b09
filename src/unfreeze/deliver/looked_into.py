"""Where each fold's model looked in photos that it had not learnt from and got wrong, and the photos most like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.cache import content_key
from unfreeze.core.errors import PhotoError, UnfreezeError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import read_bytes
from unfreeze.learn.classifier import Classifier, networks_read
from unfreeze.learn.maps import HeatMap
from unfreeze.learn.maps_heads import head_contributions, head_maps, shown_box
from unfreeze.learn.maps_networks import Mapper
from unfreeze.learn.maps_training import ByFold, Neighbour, cached_inputs, near_by_network, trained_on
from unfreeze.model.graphs import Graph

NEIGHBOURS = 3
# Of a network from scratch no features are kept: so many training photos are read anew, for every fold, not more.
MOST_READ = 300
UNASKED = "its fold was trained, and its map waits for `unfreeze report RUN --explain`"


@dataclass(frozen=True)
class LookedInto:
    """One wrong photo. maps: of the model of its own fold, for the class `said` rather than its `label`; why: if none.

    near: the most alike of the photos that this model learnt from.
    """

    path: str
    fold: int
    label: str
    said: str
    maps: tuple[HeatMap, ...] = ()
    near: tuple[Neighbour, ...] = ()
    why: str = ""

    def described(self) -> dict[str, Any]:
        """The same as JSON; classes of the maps by number, in the run's order."""
        told = {"path": self.path, "fold": self.fold, "label": self.label, "said": self.said, "why": self.why}
        return told | {"maps": [m.described() for m in self.maps], "near": [n.described() for n in self.near]}


def look_into(
    run: Run, wrong: Sequence[tuple[str, str]], *, trained: bool = False, reporter: Reporter | None = None
) -> list[LookedInto]:
    """Maps of cross-validated photos. wrong: path, as in the run's tables, and the class that was said.

    Each is drawn with what was learnt for the photo's own fold, which has not seen it, and held against that fold's
    training photos. Heads' maps come from the cache and cost next to nothing; of networks that were trained only if
    `trained`, by their own method, for then they are loaded and asked. Never raises for a photo, fold or run: what
    cannot be had is told in `why`.
    """
    table = run.photos().set_index("path")
    rows = [
        LookedInto(path, int(table["fold"][path]), str(table["label"][path]), said)
        for path, said in wrong
        if path in table.index
    ]
    found: dict[str, LookedInto] = {}
    graphs = networks_read(run)
    training = ByFold.cached(run, graphs) if rows else None
    with (reporter or Reporter()).bar("Looking into wrong photos", len(rows)) as advance:
        for fold in sorted({row.fold for row in rows}):
            own = [row for row in rows if row.fold == fold]
            try:
                drawn = _of_fold(_Asked(run, fold, own, table.loc[[r.path for r in own]], graphs, training), trained)
            except UnfreezeError as error:
                drawn = [replace(row, why=f"the model of its fold, {fold}, cannot be asked ({error})") for row in own]
            found |= {row.path: row for row in drawn}
            advance(len(own))
    return [found[row.path] for row in rows]


def _of_fold(asked: _Asked, trained: bool) -> list[LookedInto]:
    run, fold = asked.run, asked.fold
    drawn = [replace(row, near=near) for row, near in zip(asked.rows, asked.near(), strict=True)]
    if not trained and not any(fold in m.folds and m.recipe.strategy == "probe" for m in run.members):
        return [replace(row, why=UNASKED) for row in drawn]
    classifier = Classifier.load(run, folds=(fold,))
    if classifier.tuned and asked.training is None and len(trained_on(run, fold)) <= MOST_READ:
        drawn = [replace(row, near=near) for row, near in zip(drawn, asked.read(classifier), strict=True)]
    if classifier.heads:
        drawn = asked.cells(classifier, drawn)
    lacking = classifier.tuned or not all(row.maps for row in drawn)
    return asked.looked(Mapper(classifier) if trained and lacking else None, drawn)


@dataclass(frozen=True)
class _Asked:
    """Some photos of one fold. about: their rows of the photos table, in the order of `rows`.

    graphs, training: the frozen networks that the run's heads read, and what these made of the training photos.
    """

    run: Run
    fold: int
    rows: list[LookedInto]
    about: pd.DataFrame
    graphs: tuple[Graph, ...]
    training: ByFold | None

    @property
    def hashes(self) -> list[str]:
        return [str(found) for found in self.about["hash"]]

    @property
    def files(self) -> list[Path]:
        return [Path(self.run.info["root"]) / row.path for row in self.rows]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Numbers of the class that was said, and of the label."""
        classes = self.run.classes
        return [(classes.index(row.said), classes.index(row.label)) for row in self.rows]

    def near(self) -> list[tuple[Neighbour, ...]]:
        """The nearest training photos by the frozen networks' features."""
        own = cached_inputs(self.run, self.hashes, self.graphs) if self.training else None
        if self.training is None or own is None:
            return [()] * len(self.rows)
        return self.training.near(own.rooted(np.arange(len(self.rows))), self.fold, self.hashes, NEIGHBOURS)

    def read(self, classifier: Classifier) -> list[tuple[Neighbour, ...]]:
        """The same by the fold's trained network, which reads the training photos anew."""
        tuned, files = classifier.tuned[0], self.files
        found = near_by_network(self.run, tuned, files, self.hashes, NEIGHBOURS, Reporter(), self.fold)
        return [near for near, _ in found] if found else [()] * len(self.rows)

    def cells(self, classifier: Classifier, rows: list[LookedInto]) -> list[LookedInto]:
        """With the heads' maps."""
        features = cached_inputs(self.run, self.hashes, classifier.graphs)
        if self.training is None or features is None:
            why = "the cache no longer holds what the heads read; `unfreeze report RUN --explain` asks anew"
            return [replace(row, why=why) for row in rows]
        every = self.training.centre(self.fold)
        centre = [every[self.graphs.index(graph)] for graph in classifier.graphs]
        keys = np.array([(int(h[:16], 16), int(h[16:], 16)) for h in self.hashes], np.uint64)
        squares = classifier.squares(self.files, keys, np.ones(len(keys), bool), Reporter())
        found, drawn = head_contributions(classifier, features, centre), []
        sizes = self.about[["width", "height"]].to_numpy(int).tolist()
        for i, (row, (wide, high), pair) in enumerate(zip(rows, sizes, self.pairs, strict=True)):
            boxes = [shown_box(graph, (wide, high), box_of(squares, i)) for graph in classifier.graphs]
            drawn.append(replace(row, maps=head_maps(classifier, found, i, *pair, boxes)))
        return drawn

    def looked(self, mapper: Mapper | None, rows: list[LookedInto]) -> list[LookedInto]:
        """With what the fold's networks draw when asked; and without any map where the photo is gone or another."""
        drawn = []
        for row, file, name, pair in zip(rows, self.files, self.hashes, self.pairs, strict=True):
            try:
                data = read_bytes(file)
                if "{:016x}{:016x}".format(*content_key(data)) != name:
                    drawn.append(replace(row, maps=(), why="the photo is another one now"))
                    continue
                ways = [way for way in mapper.default() if way != "cells" or not row.maps] if mapper else []
                maps = [found for way in ways for found in mapper.draw(data, way, *pair)] if mapper else []
                drawn.append(replace(row, maps=(*row.maps, *maps), why="" if maps else row.why))
            except PhotoError as error:
                drawn.append(replace(row, maps=(), why=f"the photo cannot be read ({error.reason})"))
        return drawn
