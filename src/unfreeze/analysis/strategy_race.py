"""Race of training strategies within the training data, in two rounds.

All candidates are first trained on a small subset. Those not significantly behind the probe are then trained on all
images of the block, cheapest first, within a budget. A normal prior from other data sets regularizes the differences.
`strategy_candidates` defines the candidates: each strategy as changes to a recipe, with reduced settings for its trials
and its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.analysis.splits import inner_split, subsample_training
from unfreeze.core.arrays import Rows
from unfreeze.core.errors import RecipeError, UnfreezeError
from unfreeze.core.messages import wording
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.metrics.classification import confusion_matrix, macro_f1, score_predictions
from unfreeze.metrics.differences import paired_difference
from unfreeze.training.class_balance import check_balance
from unfreeze.training.context import FitContext
from unfreeze.training.inner_eval import Candidate, CandidateResult, evaluate_candidates

Changes = dict[str, Any]
# Cost of a training step of strategy partial relative to the whole network, from cached activations: measured on
# EfficientNet-Lite0 and ResNet-50 (benchmarks/results/partial.csv, training.csv).
_LATE = 0.25
# Strategy scratch is tried on small images and for fewer epochs, enough to show that it is far behind. Small images
# cost more than their share of pixels: a step at 64 px was measured at a third of one at 224 px.
_SCRATCH_SIDE, _SCRATCH_EPOCHS = 64, 6


@dataclass(frozen=True)
class GainPrior:
    """Normal prior of a strategy's gain in macro F1 over the probe, from the data sets it was measured on."""

    mean: float
    deviation: float


# From benchmarks/results/recommendation.csv: about 420 images per data set, three folds; partial also from four full
# data sets of
# partial.csv.
PRIORS = {
    "probe": GainPrior(0.0, 0.0),
    "partial": GainPrior(0.013, 0.02),
    "full": GainPrior(0.005, 0.04),
    "scratch": GainPrior(-0.5, 0.2),
}


@dataclass(frozen=True)
class StrategyCandidate:
    """A strategy to race.

    Costs are in units of one training step of the whole network for one image at the resolution of the recipe.

    Attributes:
        name: Display name.
        strategy: Name of the strategy.
        changes: Changes to the recipe for the full run.
        tried: Further changes for a trial.
        step: Cost of a training step of the full run.
        epochs: Number of epochs of the full run.
        tried_step: Cost of a training step of a trial.
        tried_epochs: Number of epochs of a trial.
    """

    name: str
    strategy: str
    changes: Changes
    tried: Changes
    step: float
    epochs: int
    tried_step: float
    tried_epochs: int

    @property
    def prior(self) -> GainPrior:
        """Prior of the gain over the probe."""
        return PRIORS[self.strategy]

    def recipe(self, base: Recipe) -> Recipe:
        """Recipe of the full run."""
        return base.replace(**self.changes)

    def trial(self, base: Recipe) -> Recipe:
        """Recipe of a trial."""
        return base.replace(**self.changes, **self.tried)

    def full_cost(self, folds: int, photos: int) -> float:
        """Cost of a full run with `folds` folds over `photos` images, in steps of the whole network."""
        return self.step * self.epochs * photos * (folds - 1)


def strategy_candidates(recipe: Recipe, photos: int) -> tuple[list[StrategyCandidate], list[str]]:
    """Candidates of the recipe that can be trained here, the probe first.

    Args:
        recipe: Recipe with the section `recommend`.
        photos: Number of training images per fold.

    Returns:
        The candidates, and the reasons why others are not available.

    Raises:
        UnfreezeError: If the probe itself is not possible.
    """
    found, left_out = [], []
    asked = dict.fromkeys(("probe", *recipe.recommend.candidates))
    further = [("partial", boundary) for boundary in recipe.recommend.unfreeze_from if "partial" in asked]
    for strategy, boundary in [*((strategy, "") for strategy in asked), *further]:
        name = f"partial from {boundary}" if boundary else strategy
        try:
            own = recipe.replace(**{"train.trainable": boundary}) if boundary else recipe
            candidate = _candidate(own, strategy, photos)
            if boundary:
                changes = {**candidate.changes, "train.trainable": boundary}
                candidate = replace(candidate, name=name, changes=changes)
            found.append(candidate)
        except UnfreezeError as error:
            if strategy == "probe":
                raise
            left_out.append(f"{name}: {error}")
    return found, left_out


def _candidate(recipe: Recipe, strategy: str, photos: int) -> StrategyCandidate:
    changes: Changes = {"strategy": strategy}
    if strategy == "probe":
        # Settings that a probe does not support rule out the race, which includes a probe
        check_balance(recipe.replace(**changes))
        return StrategyCandidate(strategy, strategy, changes, {}, 0.0, 0, 0.0, 0)
    if recipe.probe.input_candidates:
        raise RecipeError(
            f"{wording('--quality best', 'probe.input_candidates')} races inputs of probes; its training would "
            "be of one network."
        )
    from unfreeze.training.fine_tune.settings import TrainSetup, resolve_settings
    from unfreeze.training.fine_tune.strategy import check_training

    own = recipe.replace(**changes)
    check_training(own)
    settings = resolve_settings(own, photos)
    setting = TrainSetup.of(own, settings)
    step = _LATE if setting.cut else 1.0
    if strategy != "scratch":
        return StrategyCandidate(
            strategy, strategy, changes, {"train.time_budget": ""}, step, settings.epochs, step, settings.epochs
        )
    size, epochs = setting.size, min(settings.epochs, _SCRATCH_EPOCHS)
    side = min(size, setting.backbone.workable_size(min(size, _SCRATCH_SIDE)))
    tried = {"image.size": side, "train.epochs": epochs, "train.time_budget": ""}
    return StrategyCandidate(
        strategy, strategy, changes, tried, step, settings.epochs, min(1.0, 1.2 * side / size), epochs
    )


# Number of parts of a block: one is for evaluation, the others are for training.
PARTS = 3
# Minimum budget of a race in steps of EfficientNet-Lite0 at 224 px: about a minute on two ordinary cores.
_MINUTE = 2000.0
_SHARE = 0.1  # budget as a share of the cost of a full fit
# Minimum number of training images of a trial, in total and per class.
_LEAST, _A_CLASS = 64, 6
# Decimals of macro F1 that count: candidates equal after rounding are ordered by cost.
SHOWN = 3
# Observed standard deviation between a difference on a subset of the images and that on all of them.
_ELSEWHERE = 0.02


@dataclass(frozen=True)
class InnerSplit:
    """A split nested in the training data.

    Attributes:
        folds: int64 (n,), 0 for evaluation, 1 and above for training, -1 for ignored rows.
    """

    folds: Rows

    @property
    def judged(self) -> Rows:
        """Indices of the evaluated rows."""
        return np.flatnonzero(self.folds == 0)

    @property
    def photos(self) -> int:
        """Number of training images."""
        return int((self.folds > 0).sum())


@dataclass
class CandidateState:
    """State of a candidate in a block.

    Attributes:
        candidate: The candidate.
        tries: Number of training images -> result of the trial.
        difference: Macro F1 minus that of the probe at the largest common training size, with its interval over groups.
        fewer: Standard deviation of the error made by training on fewer than all images of the block.
        most: Upper bound of the difference: 1 minus the macro F1 of the probe.
        expected: Posterior mean of the difference with all images (`posterior`).
        doubt: Posterior standard deviation of the difference.
        out: Reason why it was stopped; empty if it completed the race.
    """

    candidate: StrategyCandidate
    tries: dict[int, CandidateResult] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=lambda: {"value": 0.0, "low": 0.0, "high": 0.0})
    fewer: float = 0.0
    most: float = 1.0
    expected: float = 0.0
    doubt: float = 0.0
    out: str = ""

    @property
    def photos(self) -> int:
        """Largest training size tried."""
        return max(self.tries)

    @property
    def last(self) -> NDArray[np.float64]:
        """Probabilities from the largest training size, float64 (n, C)."""
        return self.tries[self.photos].proba


@dataclass(frozen=True)
class RaceResult:
    """A block and its candidates, highest expected score first."""

    block: InnerSplit
    standings: tuple[CandidateState, ...]

    @property
    def best(self) -> CandidateState:
        """The recommended candidate."""
        return self.standings[0]

    def of(self, name: str) -> CandidateState:
        """State of the candidate with this name."""
        return next(s for s in self.standings if s.candidate.name == name)


def one_block(work: FitContext, rows: Rows, seed: int) -> InnerSplit:
    """Split rows so that about a third of the groups is for evaluation."""
    return InnerSplit(inner_split(work.labels, work.units, rows, PARTS, seed))


def cross_fit_halves(work: FitContext) -> list[tuple[tuple[int, ...], InnerSplit]]:
    """Split the outer folds into two halves, each with a block made only of the images of the other half.

    The selection for a fold then depends on no image of that fold.

    Returns:
        For each half the outer folds to select for, and the block.
    """
    folds = work.todo
    first, second = folds[: len(folds) // 2], folds[len(folds) // 2 :]
    out: list[tuple[tuple[int, ...], InnerSplit]] = []
    for chosen_for, learnt_from in ((first, second), (second, first)):
        rows = np.flatnonzero(np.isin(work.folds, learnt_from))
        out.append((chosen_for, one_block(work, rows, work.recipe.seed + len(out))))
    return out


def budget_of(work: FitContext, candidates: Sequence[StrategyCandidate], scale: float) -> float:
    """Budget of a race in steps of the whole network: a tenth of a full fit, and at least about a minute.

    Args:
        work: Prepared context.
        candidates: Candidates of the race.
        scale: Compute of the network at the resolution of the recipe, relative to EfficientNet-Lite0 at 224 px.
    """
    full = next((c for c in candidates if c.strategy == "full"), None)
    n = int((work.folds >= 0).sum())
    epochs = full.epochs if full else 3
    return max(_MINUTE / scale, _SHARE * epochs * n * (work.recipe.folds.n_splits - 1))


def race(
    work: FitContext,
    blocks: Sequence[InnerSplit],
    candidates: Sequence[StrategyCandidate],
    budget: float,
    reporter: Reporter,
) -> list[RaceResult]:
    """Race the candidates on each block independently.

    First, all candidates are trained on as many images as half of the budget allows. Then those not significantly
    behind the probe (95% interval of the paired difference) are trained on all images, cheapest first, while the
    budget lasts.

    Args:
        work: Prepared context.
        blocks: Splits to race on.
        candidates: Candidates, the probe among them.
        budget: Budget for all blocks together, in steps of the whole network.
        reporter: Receives progress messages.

    Returns:
        The result of each block.
    """
    few = [_few(work, block, candidates, budget / len(blocks)) for block in blocks]
    standings = [[CandidateState(c) for c in candidates] for _ in blocks]
    _try(work, blocks, few, standings, [[True] * len(candidates)] * len(blocks), reporter)
    again = []
    for block, count, some in zip(blocks, few, standings, strict=True):
        _judge(work, block, some)
        again.append(_to_go_on(block, count, some, budget / len(blocks)))
    if any(any(flags) for flags in again):
        _try(work, blocks, [block.photos for block in blocks], standings, again, reporter)
        for block, some in zip(blocks, standings, strict=True):
            _judge(work, block, some)
    return [
        RaceResult(block, tuple(sorted(some, key=lambda s: (-round(s.expected, SHOWN), s.candidate.step))))
        for block, some in zip(blocks, standings, strict=True)
    ]


def _few(work: FitContext, block: InnerSplit, candidates: Sequence[StrategyCandidate], budget: float) -> int:
    """Training size of the first round: half of the budget, and at least some images per class."""
    each = sum(c.tried_step * c.tried_epochs for c in candidates)
    classes = len(np.unique(work.labels[block.folds > 0]))
    few = max(_LEAST, _A_CLASS * classes, int(budget / 2 / each) if each else block.photos)
    return block.photos if few > 0.8 * block.photos else few


def _try(
    work: FitContext,
    blocks: Sequence[InnerSplit],
    photos: Sequence[int],
    standings: Sequence[Sequence[CandidateState]],
    wanted: Sequence[Sequence[bool]],
    reporter: Reporter,
) -> None:
    trials, places = [], []
    for block, count, some, flags in zip(blocks, photos, standings, wanted, strict=True):
        folds = subsample_training(work.labels, work.units, block.folds, count, work.recipe.seed)
        for standing, asked in zip(some, flags, strict=True):
            if asked:
                trials.append(Candidate(standing.candidate.trial(work.recipe), folds))
                places.append((standing, count))
    for (standing, count), tried in zip(places, evaluate_candidates(work, trials, reporter), strict=True):
        standing.tries[count] = tried


def _judge(work: FitContext, block: InnerSplit, standings: Sequence[CandidateState]) -> None:
    """Update the paired differences to the probe at equal training size, and their posteriors."""
    base = next(s for s in standings if s.candidate.strategy == "probe")
    for standing in standings:
        if standing is base:
            continue
        count = max(set(standing.tries) & set(base.tries))
        ours, theirs = standing.tries[count].proba, base.tries[count].proba
        rows = block.judged[np.isfinite(ours[block.judged, 0]) & np.isfinite(theirs[block.judged, 0])]
        found = paired_difference(work.labels[rows], theirs[rows], ours[rows], work.units[rows], seed=work.recipe.seed)
        standing.difference = found
        standing.fewer = _ELSEWHERE * (1 - count / block.photos)
        error = float(np.hypot(standard_error(found), standing.fewer))
        judged = confusion_matrix(work.labels[rows], theirs[rows].argmax(1), work.classes)
        standing.most = 1 - float(macro_f1(judged))
        standing.expected, standing.doubt = posterior(found["value"], error, standing.candidate.prior, standing.most)


def standard_error(difference: dict[str, float]) -> float:
    """Standard error of a paired difference, from the width of its 95% interval.

    It is never 0, because `paired_difference` adds one image of disagreement (Agresti & Min 2005).
    """
    return (difference["high"] - difference["low"]) / 3.92


def posterior(value: float, error: float, prior: GainPrior, most: float = 1.0) -> tuple[float, float]:
    """Posterior mean and standard deviation of a difference under a normal prior and a normal likelihood.

    This is the empirical Bayes estimate for two normal distributions.

    Args:
        value: Measured difference.
        error: Its standard error.
        prior: Prior from other data sets.
        most: Upper bound of the mean: if the probe makes no error, nothing can be better.

    References:
        Efron & Morris 1975, "Data Analysis Using Stein's Estimator and its Generalizations", JASA 70.
    """
    if prior.deviation == 0:
        return prior.mean, 0.0
    weight = prior.deviation**2 / (prior.deviation**2 + error**2)
    return min(most, prior.mean + weight * (value - prior.mean)), float(np.sqrt(weight)) * error


def together(standings: Sequence[CandidateState], judged: Sequence[int]) -> tuple[dict[str, float], float, float]:
    """Pool a candidate over several blocks.

    The raw differences are averaged and the prior is applied once. Averaging the posterior means instead would
    underestimate the error, since they share the error of the prior. Blocks share no image, so that the errors of their
    differences are independent; the error due to fewer training images is taken to be common to all blocks.

    Args:
        standings: State of the candidate in each block.
        judged: Number of evaluated images of each block.

    Returns:
        Pooled difference to the probe {"value", "low", "high"}, and mean and standard deviation of its `posterior`.
    """
    shares = np.array(judged) / sum(judged)
    value = float(shares @ [s.difference["value"] for s in standings])
    below = float(np.linalg.norm(shares * [s.difference["value"] - s.difference["low"] for s in standings]))
    above = float(np.linalg.norm(shares * [s.difference["high"] - s.difference["value"] for s in standings]))
    difference = {"value": value, "low": value - below, "high": value + above}
    error = float(np.hypot(standard_error(difference), shares @ [s.fewer for s in standings]))
    most = float(shares @ [s.most for s in standings])
    return difference, *posterior(value, error, standings[0].candidate.prior, most)


def _to_go_on(block: InnerSplit, few: int, standings: Sequence[CandidateState], budget: float) -> list[bool]:
    """Candidates to train on all images of the block: those not significantly behind, cheapest first."""
    if few >= block.photos:
        return [False] * len(standings)
    spent = sum(s.candidate.tried_step * s.candidate.tried_epochs * few for s in standings)
    order = sorted(range(len(standings)), key=lambda i: (standings[i].candidate.step, -standings[i].expected))
    go = [False] * len(standings)
    for i in order:
        standing = standings[i]
        if standing.candidate.strategy == "probe":
            go[i] = True
            continue
        if standing.difference["high"] < 0:
            standing.out = f"significantly behind the probe on {few:,} photos"
            continue
        cost = standing.candidate.tried_step * standing.candidate.tried_epochs * block.photos
        if spent + cost > budget:
            standing.out = f"judged on {few:,} photos; all {block.photos:,} would go beyond the budget"
            continue
        spent += cost
        go[i] = True
    return go


def pooled_scores(work: FitContext, raced: Sequence[RaceResult], name: str) -> dict[str, Any]:
    """Scores of a candidate over the evaluated images of all blocks, as returned by `score_predictions`."""
    proba = np.full((len(work.labels), work.classes), np.nan)
    for one in raced:
        proba[one.block.judged] = one.of(name).last[one.block.judged]
    rows = np.flatnonzero(np.isfinite(proba[:, 0]))
    return score_predictions(
        work.labels[rows], proba[rows], work.units[rows], work.photos.classes, seed=work.recipe.seed
    )
