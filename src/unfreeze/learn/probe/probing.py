"""Strategy probe: the frozen network's features, computed once, and a linear head for each fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.attributes import parts_of
from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RunError
from unfreeze.core.progress import Reporter
from unfreeze.learn.added import AddedRows
from unfreeze.learn.balance import for_probe
from unfreeze.learn.fitting import Outcome, Rows, Work, added_rows
from unfreeze.learn.probe.extended import ExtendedFeatures
from unfreeze.learn.probe.heads import LinearHead, fit_folds, predict_folds
from unfreeze.learn.probe.inputs import JoinedFeatures, compute_inputs
from unfreeze.learn.probe.parts import MODELS, as_one
from unfreeze.model.graphs import Graph


@dataclass(frozen=True)
class Probe:
    """Fitted heads, in fold order, with the features that they read; and the added rows, where there are any.

    parts: the second head of each fold where `labels.model` is both: that of the parts.
    """

    features: JoinedFeatures
    graphs: list[Graph]
    heads: dict[int, LinearHead]
    identity: str
    added: AddedRows = field(default_factory=AddedRows)
    extended: ExtendedFeatures | None = None
    parts: dict[int, LinearHead] = field(default_factory=dict)

    def of_fold(self, fold: int) -> list[LinearHead]:
        """The heads whose probabilities are averaged in a fold: one, or two."""
        return [heads[fold] for heads in (self.heads, self.parts) if heads]

    def info(self, work: Work) -> dict[str, Any]:
        """What run.json must know to predict with the heads."""
        inputs = [
            {**graph.described(), "features": part.width}
            for graph, part in zip(self.graphs, self.features.parts, strict=True)
        ]
        return {
            "backbone_info": self.graphs[0].backbone.describe(),
            "inputs": inputs,
            "views": list(work.recipe.probe.views),
            "engine": self.features.engine,
            "identity": self.identity,
        }

    def out_of_fold(self, work: Work) -> NDArray[np.float64]:
        """float64 (n, C), each photo by the head that has not seen its fold; NaN for rows in no fold."""
        return self._by(work, {k: self.of_fold(k) for k in self.heads})

    def beside(self, work: Work) -> dict[str, NDArray[np.float64]]:
        """What is averaged, where `labels.model` is both: each alone, out of fold."""
        both = {"joint": self.heads, "parts": self.parts} if self.parts else {}
        return {name: self._by(work, {k: [h] for k, h in heads.items()}) for name, heads in both.items()}

    def _by(self, work: Work, heads: dict[int, list[LinearHead]]) -> NDArray[np.float64]:
        proba = np.full((len(work.labels), work.classes), np.nan)
        for k, some in heads.items():
            rows = np.flatnonzero(work.folds == k)
            proba[rows] = predict_folds(self.features, some, rows)
        return proba


def fit_probe(work: Work, like: Probe | None = None) -> Probe:
    """Features from the cache or computed, then a head for each fold.

    like: a probe of the same photos and input, whose features are used again.
    """
    with work.clock("features"):
        if like is None:
            files, looks = work.photos.files(), work.looks
            found = compute_inputs(files, looks.keys, looks.readable, work.recipe, work.reporter, work.squares)
        features, graphs = found if like is None else (like.features, like.graphs)
        work.leave_out(features.failed)
        added, seen = _added(work, graphs)
    identity = work.identity()
    with work.clock("heads"):
        features = features.held() if like is None else features
        extended = ExtendedFeatures(features, len(work.labels), added, seen).held() if len(added) else None
        fitted = Probe(features, graphs, {}, identity, added, extended)
        first, *second = MODELS[work.recipe.labels.model]
        fitted.heads.update(_heads(work, fitted, first, "head"))
        for model in second:
            fitted.parts.update(_heads(work, fitted, model, "parts"))
    return fitted


def _added(work: Work, graphs: list[Graph]) -> tuple[AddedRows, tuple[JoinedFeatures, ...]]:
    """The rows to add, and the features of their views, from the cache or computed."""
    added = added_rows(work)
    if not len(added):
        return added, ()
    from unfreeze.learn.added_views import compute_added, frame_of, kept_views  # torch, which a probe may do without

    recipe, files, keys = work.recipe, work.photos.files(), work.looks.keys
    limit, parts = int(recipe.image.max_megapixels * 1e6), []
    for graph in graphs:
        views, wish, frame = recipe.probe.views, recipe.engine, frame_of(graph.preprocessing)
        failed = compute_added(added, files, keys, graph, views, frame, wish, limit, work.reporter, work.squares)
        work.leave_out(failed)
        added = added.without(failed)
        parts.append((graph, views, wish))
    every = [kept_views(added, keys, *part) for part in parts]
    return added, tuple(JoinedFeatures(tuple(inputs)) for inputs in zip(*every, strict=True))


def probe(work: Work) -> tuple[Outcome, Probe]:
    """The whole strategy."""
    fitted = fit_probe(work)
    folds: dict[int, dict[str, Any]] = {}
    for k, head in fitted.heads.items():
        folds[k] = {"strength": head.strength, "inputs": list(head.inputs)}
        if strengths := fitted.of_fold(k)[-1].strengths:
            named = zip(parts_of(work.photos), strengths, strict=True)
            folds[k]["strengths"] = {part.name: strength for part, strength in named}
    every = [head for k in fitted.heads for head in fitted.of_fold(k)]
    test = predict_folds(fitted.features, every, work.tested())
    return Outcome(fitted.out_of_fold(work), test, folds, fitted.info(work), fitted.beside(work)), fitted


def split_at_random(work: Work, fitted: Probe, folds: Rows) -> NDArray[np.float64]:
    """Out-of-fold probabilities float64 (n, C) under other folds, from the same features: for comparison only."""
    alone = np.arange(len(work.labels), dtype=np.int64)
    identity = fingerprint([work.identity(), folds.tolist()])
    proba = np.full((len(work.labels), work.classes), np.nan)
    models = MODELS[work.recipe.labels.model]
    every = [dict(heads_of(work, fitted, alone, folds, identity, model=model)) for model in models]
    for k in every[0]:
        rows = np.flatnonzero(folds == k)
        proba[rows] = predict_folds(fitted.features, [heads[k] for heads in every], rows)
    return proba


def heads_of(
    work: Work,
    fitted: Probe,
    units: Rows,
    folds: Rows,
    identity: str,
    only: list[int] | None = None,
    reporter: Reporter | None = None,
    model: str = "",
) -> Iterator[tuple[int, LinearHead]]:
    """A head for each fold, or each of `only`, under these groups and folds; added rows follow their photos.

    model: joint or parts; by default the recipe's, and of both the first.
    """
    recipe, added = work.recipe, fitted.added
    if len(added):
        identity = fingerprint([identity, added.views, added.photo.tolist(), added.view.tolist()])

    def fit(labels: Rows, classes: int) -> Iterator[tuple[int, LinearHead]]:
        return fit_folds(
            fitted.features if fitted.extended is None else fitted.extended,
            added.extended(labels),
            added.extended(units),
            added.extended(folds),
            classes,
            recipe.probe,
            recipe.seed,
            identity,
            work.folder / "scratch",
            only,
            reporter,
            for_probe(recipe.balance),
            len(work.labels),
        )

    if (model or MODELS[recipe.labels.model][0]) == "joint":
        yield from fit(work.labels, work.classes)
        return
    # Part by part, each with its own labels, weights and penalty; the rotations are those of the rows, from the cache.
    parts, widths = parts_of(work.photos), [part.width for part in fitted.features.parts]
    by_part = [dict(fit(part.of(work.labels), len(part.values))) for part in parts]
    for k in by_part[0]:
        yield k, as_one([heads[k] for heads in by_part], parts, widths)


def _heads(work: Work, fitted: Probe, model: str, file: str) -> dict[int, LinearHead]:
    """A head for each fold; those that an interrupted run has left are taken, the others fitted and kept at once.

    model: joint or parts. file: its name in the fold's folder.
    """
    recipe, classes = work.recipe, work.photos.classes
    fitted_on = [work.labels.tolist(), work.units.tolist(), classes, recipe.probe.model_dump(mode="json"), recipe.seed]
    fitted_on += [recipe.balance.model_dump(mode="json"), fitted.added.photo.tolist()]
    if model != "joint":
        fitted_on += [[part.name, part.values, part.of_class] for part in parts_of(work.photos)]
    mark = fingerprint([fitted.features.identity, fitted.identity, *fitted_on])
    heads: dict[int, LinearHead] = {}
    for k in work.todo:
        try:
            head, about = LinearHead.load(work.folder / f"fold-{k}" / f"{file}.safetensors")
        except RunError:
            continue
        if about["identity"] == mark:
            heads[k] = head
    todo = [k for k in work.todo if k not in heads]
    for k, head in heads_of(work, fitted, work.units, work.folds, fitted.identity, todo, work.reporter, model):
        head.save(work.folder / f"fold-{k}" / f"{file}.safetensors", mark, classes)
        heads[k] = head
    return {k: heads[k] for k in work.todo}
