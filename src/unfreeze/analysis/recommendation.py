"""The recommendation of a strategy: its table, its reasons and its wording."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import erf, sqrt
from typing import TYPE_CHECKING, Any

from unfreeze.core.format import format_estimate, format_probability
from unfreeze.core.messages import Brief, wording

if TYPE_CHECKING:
    from unfreeze.analysis.learning_curve import Curve
    from unfreeze.analysis.pretraining_similarity import Similarity
    from unfreeze.analysis.strategy_race import Changes


# Rule of thumb for transfer learning by (enough images, similar to the pretraining data), as in the notes of CS231n.
CELLS: dict[tuple[bool, bool], str] = {
    (True, True): "freeze the backbone and train the classifier",
    (True, False): "train all of it",
    (False, True): "freeze the backbone and train the classifier",
    (False, False): "do not use this pretrained model: another one, or your own",
}


@dataclass(frozen=True)
class StrategyRow:
    """Result of one candidate strategy.

    Attributes:
        name: Name of the candidate.
        changes: Changes to the recipe.
        macro_f1: Macro F1 on the evaluated images with its 95% interval, from the largest training size it reached.
        difference: Difference to the probe at equal training size.
        expected: Posterior mean of the difference with all images, given results on other data sets.
        doubt: Posterior standard deviation of that difference.
        photos: Number of training images reached, summed over all blocks.
        of: Number of training images available, summed over all blocks.
        seconds: Duration of its trials.
        full_seconds: Predicted duration of the full run.
        out: Reason why it was stopped; empty if it was not.
    """

    name: str
    changes: Changes
    macro_f1: dict[str, float]
    difference: dict[str, float]
    expected: float
    doubt: float
    photos: int
    of: int
    seconds: float
    full_seconds: float
    out: str


@dataclass(frozen=True)
class BackboneRow:
    """Result of one backbone, compared with a probe on the same images.

    Attributes:
        name: Name of the backbone.
        macro_f1: Macro F1 of the probe with its 95% interval.
        gmacs: Compute of one forward pass, in GMACs.
        seconds: Duration of feature extraction and probe.
    """

    name: str
    macro_f1: dict[str, float]
    gmacs: float
    seconds: float


@dataclass(frozen=True)
class Block:
    """A split that was raced on.

    Attributes:
        folds: Outer folds that it selected a strategy for; empty if it selected for the run as a whole.
        learnt_from: Number of training images.
        judged: Number of evaluated images.
        recommended: Name of the selected candidate.
    """

    folds: tuple[int, ...]
    learnt_from: int
    judged: int
    recommended: str


@dataclass(frozen=True, repr=False)
class StrategyRecommendation(Brief):
    """Recommended strategy and the evidence for it.

    Attributes:
        recommended: Name of the recommended candidate.
        changes: Its changes to the recipe, for `Recipe.replace`.
        reason: Explanation in words.
        runner_up: Name of the second best candidate; empty if there is none.
        would_change: Evidence that could change the recommendation, in words.
        table: The candidates, highest expected score first.
        blocks: The splits that were raced on.
        backbones: The compared backbones, best first.
        similar: Similarity to the pretraining data; None if not measured.
        enough: Learning curve; None if not measured.
        left_out: Candidates that were not tried, and why.
        photos: Number of images.
        groups: Number of their groups.
        seconds: Duration.
    """

    recommended: str
    changes: Changes
    reason: str
    runner_up: str
    would_change: str
    table: tuple[StrategyRow, ...]
    blocks: tuple[Block, ...]
    backbones: tuple[BackboneRow, ...]
    similar: Similarity | None
    enough: Curve | None
    left_out: tuple[str, ...]
    photos: int
    groups: int
    seconds: float

    def _brief(self) -> str:
        return f"{self.recommended}: {self.reason}"

    @property
    def cell(self) -> tuple[bool, bool] | None:
        """(enough images, similar to the pretraining data): key into `CELLS`; None if the axes were not measured."""
        if self.similar is None or self.enough is None:
            return None
        return self.enough.position.value >= 0.5, self.similar.position >= 0.5

    @property
    def taught(self) -> str:
        """The rule of thumb for that cell; empty without one."""
        return CELLS[self.cell] if self.cell else ""

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {**asdict(self), "cell": list(self.cell) if self.cell else None, "taught": self.taught}


def reason(best: StrategyRow, others: list[StrategyRow], judged: int, backbones: int = 0) -> str:
    """Explain the recommendation: scores, selection bias, expected difference and cost.

    Args:
        best: The recommended candidate.
        others: The other candidates, best first.
        judged: Number of images that the candidates were evaluated on.
        backbones: Number of backbones compared on the same images before.
    """
    f1 = best.macro_f1
    first = (
        f"{best.name.capitalize()} scored macro F1 {format_estimate(f1)} on {judged:,} images of groups that it was "
        "not trained on"
    )
    if not others:
        return f"{first}. Nothing else was tried."
    among = f"{len(others) + 1} strategies" + (f" and {backbones} backbones" if backbones > 1 else "")
    next_best = others[0]
    gap = best.expected - next_best.expected
    return (
        f"{first}; it was chosen among {among} on the same images, so this score is optimistic. "
        f"Given the results on other data sets, its expected macro F1 is {abs(gap):.3f} "
        f"{'above' if gap >= 0 else 'below'} that of {next_best.name}, and "
        "the probability that it is the better of the two is "
        f"{format_probability(probability_better(best, next_best))}, for about "
        f"{approximate_duration(best.full_seconds)} instead of {approximate_duration(next_best.full_seconds)}."
    )


def would_change(best: StrategyRow, others: list[StrategyRow]) -> str:
    """Describe the evidence that could change the recommendation."""
    partly = [row for row in others if row.photos < row.of and not row.out.startswith("significantly")]
    if partly:
        names = " and ".join(row.name for row in partly).capitalize()
        return (
            f"{names} learned from {partly[0].photos:,} of {partly[0].of:,} images only; a longer "
            f"{wording('--budget', 'train.time_budget')} would have "
            f"{'it' if len(partly) == 1 else 'them'} learn from all."
        )
    if not others:
        return "Another strategy in recommend.candidates."
    needed = best.expected - others[0].expected
    return f"{others[0].name.capitalize()} would have to gain {needed:.3f} more macro F1 on further groups."


def probability_better(one: StrategyRow, other: StrategyRow) -> float:
    """Probability that `one` is better, with independent normal differences to the probe."""
    spread = sqrt(one.doubt**2 + other.doubt**2)
    return 0.5 * (1 + erf((one.expected - other.expected) / spread / sqrt(2))) if spread else 0.5


def approximate_duration(seconds: float) -> str:
    """Format a duration: `40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
