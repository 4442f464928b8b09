"""Out-of-fold evaluation of ensembling, test-time augmentation and group voting for finished runs.

Everything that is selected on predictions (ensemble weights, vote sharpness) is selected on the other folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.arrays import Proba
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import RunError, SourceError
from unfreeze.core.format import format_estimate
from unfreeze.core.messages import Brief, option
from unfreeze.core.names import positions
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, as_run
from unfreeze.features.views import parse_tta
from unfreeze.inference.ensemble import AlignedPredictions, every_run
from unfreeze.inference.group_voting import GroupConstantLabels
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.classification import score_predictions
from unfreeze.metrics.differences import differences, macro, simultaneous
from unfreeze.metrics.ensembling import nested_blend, nested_votes
from unfreeze.metrics.label_columns import group_scores


@dataclass(frozen=True)
class Variant:
    """One prediction method and its out-of-fold scores. The intervals of all variants of a call hold simultaneously.

    Attributes:
        name: Name of the variant.
        scores: accuracy, macro_f1 and log_loss, each {"value", "low", "high"}.
        difference: Difference in macro F1 to the variant `against`; None for the first variant and for the single runs
            of an ensemble.
        against: Name of the variant it is compared with.
    """

    name: str
    scores: dict[str, dict[str, float]]
    difference: dict[str, float] | None = None
    against: str = ""

    @property
    def outcome(self) -> str:
        """One of "helps", "hurts" and "not significant"; empty without a comparison."""
        if self.difference is None:
            return ""
        if self.difference["low"] > 0:
            return "helps"
        return "hurts" if self.difference["high"] < 0 else "not significant"


@dataclass(frozen=True, repr=False)
class VariantComparison(Brief):
    """Result of `compare_variants`.

    Attributes:
        ways: The variants.
        photos: Number of images.
        groups: Number of their groups.
        weights: Run name -> weight in the ensemble; empty for a single run.
        sentence: The result in words.
    """

    ways: tuple[Variant, ...]
    photos: int
    groups: int
    weights: dict[str, float]
    sentence: str

    def described(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        rows = [
            {"name": w.name, **w.scores, "difference": w.difference, "against": w.against, "outcome": w.outcome}
            for w in self.ways
        ]
        return {
            "ways": rows,
            "photos": self.photos,
            "groups": self.groups,
            "weights": self.weights,
            "sentence": self.sentence,
        }


def compare_variants(
    run: str | Path | Run | Sequence[str | Path | Run],
    *,
    tta: str | None = None,
    vote: bool = False,
    reporter: Reporter | None = None,
) -> VariantComparison:
    """Score finished runs out of fold with ensembling, test-time augmentation or group voting.

    With several runs, the ensemble weights for each fold are chosen on the other folds (nested), and the ensemble is
    compared with the best single run, chosen in the same way.

    Args:
        run: A finished run, several, or "RUN+RUN".
        tta: Additional views, as for `Classifier.predict`. The images of each fold are predicted with the models that
            were not trained on that fold.
        vote: Whether images of a group vote on the label columns that are constant within groups.
        reporter: Receives progress messages.

    Returns:
        The comparison.

    Raises:
        RunError: If there is nothing to compare, or the runs cannot be aligned.
        SourceError: If `tta` adds no view, the images cannot be read, or the groups share no label.
    """
    reporter = reporter or Reporter()
    runs = [as_run(one) for one in every_run(run)]
    if len(runs) < 2 and not tta and not vote:
        raise RunError(
            f"{runs[0].path}: nothing to try; name several runs as RUN+RUN, views ({option('tta')}) or a vote "
            f"({option('vote', True)})."
        )
    found, first = AlignedPredictions.of(runs), runs[0]
    shared = GroupConstantLabels.of(first) if vote else None
    folds = found.table["fold"].to_numpy(np.int64)
    ways: dict[str, tuple[Proba, str]] = {}
    base, probas = "as it is", found.probas
    names = _names(runs)
    if len(runs) > 1:
        blend, single = nested_blend(found.truth, found.probas, folds)
        base = "best single run, chosen inside"
        ways |= {base: (single, ""), "blend": (blend, base)}
        ways |= {name: (proba, "") for name, proba in zip(names, found.probas, strict=True)}
    else:
        ways[base] = (found.probas[0], "")
    last = list(ways)[1] if len(runs) > 1 else base
    if tta:
        seen = [parse_tta(tta, r.recipe.probe.views) for r in runs]
        if all(s == parse_tta(None, r.recipe.probe.views) for s, r in zip(seen, runs, strict=True)):
            raise SourceError(f"{option('tta', tta)}: is how the run predicts already; name further views.")
        again = [_anew(r, found, tta, reporter) for r in runs]
        probas = tuple(np.where(np.isfinite(a), a, p) for a, p in zip(again, found.probas, strict=True))
        proba = nested_blend(found.truth, probas, folds)[0] if len(runs) > 1 else probas[0]
        ways[f"{last}, views {tta}" if len(runs) > 1 else f"views {tta}"] = (proba, last)
        last = list(ways)[-1]
    if shared is not None:
        agreed = nested_votes(found.truth, ways[last][0], shared.of_class, found.groups, folds)
        name = f"vote of each group on {', '.join(shared.names)}"
        ways[name if last == base else f"{last}, {name}"] = (agreed, last)
    judged = _judged(ways, found, first)
    weights = dict(zip(names, found.weights().tolist(), strict=True)) if len(runs) > 1 else {}
    return VariantComparison(judged, len(found.truth), len(np.unique(found.units)), weights, _sentence(judged))


def by_group(run: str | Path | Run) -> pd.DataFrame:
    """Out-of-fold scores of each group of a run, worst first (see `metrics.label_columns.group_scores`)."""
    run = as_run(run)
    found = AlignedPredictions.of([run])
    return group_scores(found.truth, found.probas[0], found.groups, run.classes)


def _names(runs: Sequence[Run]) -> list[str]:
    """Folder names of the runs; full paths if two folders have the same name."""
    short = [run.path.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def _anew(run: Run, found: AlignedPredictions, tta: str, reporter: Reporter) -> Proba:
    """Predict each image with additional views, by the models of its own fold.

    Returns:
        float64 (n, C) in the row order of the first run; NaN for unreadable images.
    """
    root, oof = Path(run.info["root"]), run.predictions().set_index("path")
    own_names = oof.index.tolist()
    paths = pd.Series([own_names[i] for i in positions(found.table["path"], own_names, one_to_one=True)])
    own = oof.loc[paths, "fold"].to_numpy(np.int64)
    out = np.full(found.probas[0].shape, np.nan)
    # Fills the feature cache for all images, so that the network is not opened once per fold.
    if run.strategies == ("probe",):
        Classifier.load(run, folds=(int(own[0]),)).predict([root / p for p in paths], tta=tta, reporter=reporter)
        reporter = Reporter()
    for fold in np.unique(own).tolist():
        rows = np.flatnonzero(own == fold)
        classifier = Classifier.load(run, folds=(fold,))
        table = classifier.predict([root / p for p in paths.iloc[rows]], tta=tta, reporter=reporter)
        out[rows] = table[probability_columns(found.classes)].to_numpy(np.float64)
    lost = int((~np.isfinite(out).all(1)).sum())
    if lost == len(out):
        raise SourceError(f"{root}: none of the run's photos can be read any more, so views cannot be tried on them.")
    if lost:
        reporter.say(f"{lost:,} photos can no longer be read; of these the stored prediction counts.")
    return out


def _judged(ways: dict[str, tuple[Proba, str]], found: AlignedPredictions, run: Run) -> tuple[Variant, ...]:
    predicted = {name: proba.argmax(1) for name, (proba, _) in ways.items()}
    pairs = {name: against for name, (_, against) in ways.items() if against}
    seed, count = run.recipe.seed, len(run.classes)
    family = differences(found.truth, predicted, pairs, found.units, count, {"macro": macro}, seed=seed)
    (more,) = simultaneous([family])
    found_of = {name: more.at(p) for p, name in enumerate(pairs)}
    out = []
    for name, (proba, against) in ways.items():
        scores = score_predictions(found.truth, proba, found.units, run.classes, seed=run.recipe.seed)
        heads = {k: scores[k] for k in ("macro_f1", "accuracy", "log_loss")}
        out.append(Variant(name, heads, found_of.get(name), against))
    return tuple(out)


def _sentence(ways: tuple[Variant, ...]) -> str:
    """`Blend: +1.3 [+0.4, +2.2] points of macro F1 against 'best single run, chosen inside' (95% interval): helps.`"""
    said = []
    for way in ways:
        if way.difference is None:
            continue
        d = {k: 100 * v for k, v in way.difference.items()}
        said.append(
            f"{way.name[0].upper()}{way.name[1:]}: {format_estimate(d, 1, signed=True)} points of macro F1 "
            f"against '{way.against}' "
            f"(95% interval): {way.outcome}."
        )
    several = "These intervals hold at once. " if len(said) > 1 else ""
    return " ".join(said) + f" {several}Blends, views and votes of other calls are not counted." if said else ""
