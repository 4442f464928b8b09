"""Strategy 'probe': features of a frozen network, computed once, and a linear head per fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import label_columns
from unfreeze.core.progress import Reporter
from unfreeze.features.derived_matrix import ExtendedFeatureMatrix
from unfreeze.features.extra_samples import ExtraSamples
from unfreeze.features.inputs import extract_inputs
from unfreeze.features.matrix import JoinedFeatureMatrix
from unfreeze.metrics.classification import Tally
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.training.class_balance import for_probe
from unfreeze.training.context import FitContext, StrategyResult, added_rows
from unfreeze.training.linear_probe.heads import MODELS, LinearHead, combine_heads, fit_folds, kept_heads, predict_folds


@dataclass(frozen=True)
class Probe:
    """Fitted heads and the features that they read.

    Attributes:
        features: Features of the images.
        graphs: Feature extractors, one per input.
        heads: Fold -> head, in fold order.
        identity: Hash of the images and folds.
        added: Extra samples.
        extended: Features of the images followed by those of the extra samples; None without extra samples.
        parts: Fold -> head combined from the label attributes, if `labels.model` is 'both'.
    """

    features: JoinedFeatureMatrix
    graphs: list[FeatureExtractor]
    heads: dict[int, LinearHead]
    identity: str
    added: ExtraSamples = field(default_factory=ExtraSamples)
    extended: ExtendedFeatureMatrix | None = None
    parts: dict[int, LinearHead] = field(default_factory=dict)

    def of_fold(self, fold: int) -> list[LinearHead]:
        """Return the heads whose probabilities are averaged in a fold: one or two."""
        return [heads[fold] for heads in (self.heads, self.parts) if heads]

    @property
    def inner(self) -> dict[int, Tally]:
        """Fold -> predictions of the inner models; folds without such models are absent."""
        return {k: head.inner for k, head in self.heads.items() if head.inner}

    def info(self, work: FitContext) -> dict[str, Any]:
        """Return what run.json must contain to predict with the heads."""
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

    def out_of_fold(self, work: FitContext) -> NDArray[np.float64]:
        """Return out-of-fold probabilities, float64 (n, C); NaN for rows without a fold."""
        return self._by(work, {k: self.of_fold(k) for k in self.heads})

    def components(self, work: FitContext) -> dict[str, NDArray[np.float64]]:
        """Return the out-of-fold probabilities of each of the averaged models, if `labels.model` is 'both'."""
        both = {"joint": self.heads, "parts": self.parts} if self.parts else {}
        return {name: self._by(work, {k: [h] for k, h in heads.items()}) for name, heads in both.items()}

    def _by(self, work: FitContext, heads: dict[int, list[LinearHead]]) -> NDArray[np.float64]:
        proba = np.full((len(work.labels), work.classes), np.nan)
        for k, some in heads.items():
            rows = np.flatnonzero(work.folds == k)
            proba[rows] = predict_folds(self.features, some, rows)
        return proba


def fit_probe(work: FitContext, like: Probe | None = None) -> Probe:
    """Extract features, or load them from the cache, and fit a head for each fold.

    Args:
        work: The images and their folds.
        like: A probe on the same images and inputs, whose features are reused.

    Returns:
        The probe.
    """
    with work.clock("features"):
        if like is None:
            files, looks = work.photos.files(), work.looks
            found = extract_inputs(files, looks.keys, looks.readable, work.recipe, work.reporter, work.squares)
        features, graphs = found if like is None else (like.features, like.graphs)
        work.leave_out(features.failed)
        added, seen = _added(work, graphs)
    identity = work.identity()
    with work.clock("heads"):
        features = features.held() if like is None else features
        extended = ExtendedFeatureMatrix(features, len(work.labels), added, seen).held() if len(added) else None
        fitted = Probe(features, graphs, {}, identity, added, extended)
        first, *second = MODELS[work.recipe.labels.model]
        fitted.heads.update(_heads(work, fitted, first, "head"))
        for model in second:
            fitted.parts.update(_heads(work, fitted, model, "parts"))
    return fitted


def _added(work: FitContext, graphs: list[FeatureExtractor]) -> tuple[ExtraSamples, tuple[JoinedFeatureMatrix, ...]]:
    """Return the extra samples, and the features of their views, from the cache or newly computed."""
    added = added_rows(work)
    if not len(added):
        return added, ()
    from unfreeze.features.extra_views import (  # imports torch, which a probe does not always need
        compute_added,
        crop_spec,
        load_views,
    )

    recipe, files, keys = work.recipe, work.photos.files(), work.looks.keys
    limit, parts = int(recipe.image.max_megapixels * 1e6), []
    for graph in graphs:
        views, wish, frame = recipe.probe.views, recipe.engine, crop_spec(graph.preprocessing)
        failed = compute_added(added, files, keys, graph, views, frame, wish, limit, work.reporter, work.squares)
        work.leave_out(failed)
        added = added.without(failed)
        parts.append((graph, views, wish))
    every = [load_views(added, keys, *part) for part in parts]
    return added, tuple(JoinedFeatureMatrix(tuple(inputs)) for inputs in zip(*every, strict=True))


def probe(work: FitContext) -> tuple[StrategyResult, Probe]:
    """Run the strategy 'probe'. Return its result and the probe."""
    fitted = fit_probe(work)
    folds: dict[int, dict[str, Any]] = {}
    for k, head in fitted.heads.items():
        folds[k] = {"strength": head.strength, "inputs": list(head.inputs)}
        if strengths := fitted.of_fold(k)[-1].strengths:
            named = zip(label_columns(work.photos), strengths, strict=True)
            folds[k]["strengths"] = {part.name: strength for part, strength in named}
    every = [head for k in fitted.heads for head in fitted.of_fold(k)]
    test = predict_folds(fitted.features, every, work.tested())
    outcome = StrategyResult(
        fitted.out_of_fold(work), test, folds, fitted.info(work), fitted.components(work), fitted.inner
    )
    return outcome, fitted


def score_random_split(work: FitContext, fitted: Probe, folds: Rows) -> NDArray[np.float64]:
    """Return out-of-fold probabilities, float64 (n, C), for other folds with the same features, for comparison only."""
    alone = np.arange(len(work.labels), dtype=np.int64)
    identity = stable_hash([work.identity(), folds.tolist()])
    proba = np.full((len(work.labels), work.classes), np.nan)
    models = MODELS[work.recipe.labels.model]
    every = [dict(fit_heads(work, fitted, alone, folds, identity, model=model)) for model in models]
    for k in every[0]:
        rows = np.flatnonzero(folds == k)
        proba[rows] = predict_folds(fitted.features, [heads[k] for heads in every], rows)
    return proba


def fit_heads(
    work: FitContext,
    fitted: Probe,
    units: Rows,
    folds: Rows,
    identity: str,
    only: list[int] | None = None,
    reporter: Reporter | None = None,
    model: str = "",
    inner: bool = False,
) -> Iterator[tuple[int, LinearHead]]:
    """Fit a head for each fold. Extra samples are in the groups and folds of their images.

    Args:
        work: The images.
        fitted: Probe with the features.
        units: int (n,), group of each image.
        folds: int (n,), fold of each image.
        identity: Hash of the images and folds.
        only: Folds to fit; None means all.
        reporter: Progress reporter.
        model: 'joint' or 'parts'; by default the recipe's, and 'joint' if it is 'both'.
        inner: As in `fit_folds`.

    Yields:
        (fold, head), in order.
    """
    recipe, added = work.recipe, fitted.added
    if len(added):
        identity = stable_hash([identity, added.views, added.photo.tolist(), added.view.tolist()])

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
            inner,
        )

    if (model or MODELS[recipe.labels.model][0]) == "joint":
        yield from fit(work.labels, work.classes)
        return
    # Each attribute has its own labels, weights and penalty. The projections only depend on the rows and come from the
    # cache.
    parts, widths = label_columns(work.photos), [part.width for part in fitted.features.parts]
    by_part = [dict(fit(part.of(work.labels), len(part.values))) for part in parts]
    for k in by_part[0]:
        yield k, combine_heads([heads[k] for heads in by_part], parts, widths)


def _heads(work: FitContext, fitted: Probe, model: str, file: str) -> dict[int, LinearHead]:
    """Return a head for each fold: from an interrupted run, or newly fitted and saved at once.

    Args:
        work: The images and their folds.
        fitted: Probe with the features.
        model: 'joint' or 'parts'.
        file: Name of the file in the folder of the fold.

    Returns:
        Fold -> head.
    """
    recipe, classes = work.recipe, work.photos.classes
    fitted_on = [work.labels.tolist(), work.units.tolist(), classes, recipe.probe.model_dump(mode="json"), recipe.seed]
    fitted_on += [recipe.balance.model_dump(mode="json"), fitted.added.photo.tolist()]
    if model != "joint":
        fitted_on += [[part.name, part.values, part.of_class] for part in label_columns(work.photos)]
    mark = stable_hash([fitted.features.identity, fitted.identity, *fitted_on])
    files = {k: work.folder / f"fold-{k}" / f"{file}.safetensors" for k in work.todo}

    def fit(folds: list[int]) -> Iterator[tuple[int, LinearHead]]:
        inner, identity = not work.trial, fitted.identity
        return fit_heads(work, fitted, work.units, work.folds, identity, folds, work.reporter, model, inner)

    return kept_heads(files, mark, classes, fit)
