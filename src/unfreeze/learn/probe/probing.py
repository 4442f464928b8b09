"""Strategy probe: the frozen network's features, computed once, and a linear head for each fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RunError
from unfreeze.learn.fitting import Outcome, Rows, Work
from unfreeze.learn.probe.heads import LinearHead, fit_folds, predict_folds
from unfreeze.learn.probe.inputs import JoinedFeatures, compute_inputs
from unfreeze.model.graphs import Graph


@dataclass(frozen=True)
class Probe:
    """Fitted heads, in fold order, with the features that they read."""

    features: JoinedFeatures
    graphs: list[Graph]
    heads: list[LinearHead]
    identity: str

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
        proba = np.full((len(work.labels), work.classes), np.nan)
        for k, head in enumerate(self.heads):
            rows = np.flatnonzero(work.folds == k)
            proba[rows] = predict_folds(self.features, [head], rows)
        return proba


def fit_probe(work: Work) -> Probe:
    """Features from the cache or computed, then a head for each fold."""
    with work.clock("features"):
        files, looks = work.photos.files(), work.looks
        features, graphs = compute_inputs(files, looks.keys, looks.readable, work.recipe, work.reporter)
        work.leave_out(features.failed)
    identity = work.identity()
    with work.clock("heads"):
        features = features.held()
        heads = _heads(work, features, identity)
    return Probe(features, graphs, heads, identity)


def probe(work: Work) -> tuple[Outcome, Probe]:
    """The whole strategy."""
    fitted = fit_probe(work)
    folds = [{"strength": head.strength, "inputs": list(head.inputs)} for head in fitted.heads]
    test = predict_folds(fitted.features, fitted.heads, work.tested())
    return Outcome(fitted.out_of_fold(work), test, folds, fitted.info(work)), fitted


def split_at_random(work: Work, fitted: Probe, folds: Rows) -> NDArray[np.float64]:
    """Out-of-fold probabilities float64 (n, C) under other folds, from the same features: for comparison only."""
    alone = np.arange(len(work.labels), dtype=np.int64)
    identity = fingerprint([work.identity(), folds.tolist()])
    proba = np.full((len(work.labels), work.classes), np.nan)
    scratch, recipe = work.folder / "scratch", work.recipe
    for k, head in fit_folds(
        fitted.features, work.labels, alone, folds, work.classes, recipe.probe, recipe.seed, identity, scratch
    ):
        rows = np.flatnonzero(folds == k)
        proba[rows] = predict_folds(fitted.features, [head], rows)
    return proba


def _heads(work: Work, features: JoinedFeatures, identity: str) -> list[LinearHead]:
    """A head for each fold; those that an interrupted run has left are taken, the others fitted and kept at once."""
    recipe, classes = work.recipe, work.photos.classes
    fitted_on = [work.labels.tolist(), work.units.tolist(), classes, recipe.probe.model_dump(mode="json"), recipe.seed]
    mark = fingerprint([features.identity, identity, *fitted_on])
    heads: dict[int, LinearHead] = {}
    for k in range(recipe.folds.count):
        try:
            head, about = LinearHead.load(work.folder / f"fold-{k}" / "head.safetensors")
        except RunError:
            continue
        if about["identity"] == mark:
            heads[k] = head
    todo = [k for k in range(recipe.folds.count) if k not in heads]
    fitted = fit_folds(
        features,
        work.labels,
        work.units,
        work.folds,
        len(classes),
        recipe.probe,
        recipe.seed,
        identity,
        work.folder / "scratch",
        todo,
        work.reporter,
    )
    for k, head in fitted:
        head.save(work.folder / f"fold-{k}" / "head.safetensors", mark, classes)
        heads[k] = head
    return [heads[k] for k in range(recipe.folds.count)]
