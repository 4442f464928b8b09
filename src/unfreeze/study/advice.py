"""Advice: what a race and two measured axes say, as a table, a recommendation and the words for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import erf, sqrt
from typing import TYPE_CHECKING, Any

from unfreeze.study.candidates import Changes

if TYPE_CHECKING:
    from unfreeze.study.curve import Curve
    from unfreeze.study.similarity import Similarity

# What every course teaches, in the words of the log (CS231n's notes on transfer learning have the same table).
CELLS: dict[tuple[bool, bool], str] = {
    (True, True): "freeze the backbone and train the classifier",
    (True, False): "train all of it",
    (False, True): "freeze the backbone and train the classifier",
    (False, False): "do not use this pretrained model: another one, or your own",
}


@dataclass(frozen=True)
class Row:
    """A candidate in the table.

    macro_f1: with its 95 % interval, on the judged photos, from the most photos that it learnt from. difference: to the
    probe from equal photos. expected, doubt: of the difference on all photos, with what other sets have shown. photos:
    learnt from, of so many, all blocks together. seconds: that the tries took; full_seconds: what the full run is
    predicted to take. out: why it was stopped.
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
class Ranked:
    """A backbone that was compared: the probe on it, on equal photos. log_me: of its features, by You et al. 2021."""

    name: str
    macro_f1: dict[str, float]
    log_me: float
    gmacs: float
    seconds: float


@dataclass(frozen=True)
class Block:
    """A split that was raced on, and for which outer folds it chose (none: for the run as a whole)."""

    folds: tuple[int, ...]
    learnt_from: int
    judged: int
    recommended: str


@dataclass(frozen=True)
class Advice:
    """What to do with these photos, and why.

    changes: to the recipe, for `Recipe.replace`. table: the best expected first. enough, similar: the two axes, None
    where they were not measured. full: whether all photos were learnt from (no outer folds to keep clear of).
    """

    recommended: str
    changes: Changes
    reason: str
    runner_up: str
    would_change: str
    table: tuple[Row, ...]
    blocks: tuple[Block, ...]
    backbones: tuple[Ranked, ...]
    similar: Similarity | None
    enough: Curve | None
    left_out: tuple[str, ...]
    photos: int
    groups: int
    seconds: float

    @property
    def cell(self) -> tuple[bool, bool] | None:
        """(enough, similar): where in the table the photos are."""
        if self.similar is None or self.enough is None:
            return None
        return self.enough.position.value >= 0.5, self.similar.position >= 0.5

    @property
    def taught(self) -> str:
        """What the table of the courses says for that cell."""
        return CELLS[self.cell] if self.cell else ""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {**asdict(self), "cell": list(self.cell) if self.cell else None, "taught": self.taught}


def reason(best: Row, others: list[Row], judged: int) -> str:
    """Two sentences: what it scored beside the others, and at what cost."""
    f1 = best.macro_f1
    first = (
        f"{best.name.capitalize()} reached macro F1 {f1['value']:.3f} (95 % between {f1['low']:.3f} and "
        f"{f1['high']:.3f}) on {judged:,} photos of groups that it had not seen"
    )
    if not others:
        return f"{first}. Nothing else was tried."
    next_best = others[0]
    gap = best.expected - next_best.expected
    chance = sure(best, next_best)
    return (
        f"{first}. With what other sets have shown it is expected {gap:.3f} above {next_best.name}, and to be the "
        f"better of the two with a probability of {chance:.0%}, for about {time(best.full_seconds)} instead of "
        f"{time(next_best.full_seconds)}."
    )


def would_change(best: Row, others: list[Row]) -> str:
    """What further evidence could turn the recommendation."""
    partly = [row for row in others if row.photos < row.of and not row.out.startswith("clearly")]
    if partly:
        names = " and ".join(row.name for row in partly).capitalize()
        return (
            f"{names} learnt from {partly[0].photos:,} of {partly[0].of:,} photos only; a longer --budget would have "
            f"{'it' if len(partly) == 1 else 'them'} learn from all."
        )
    if not others:
        return "Another strategy in advise.candidates."
    needed = best.expected - others[0].expected
    return f"{others[0].name.capitalize()} would have to gain {needed:.3f} more macro F1 on further groups."


def sure(one: Row, other: Row) -> float:
    """Probability that `one` is the better: both differences to the probe taken as normal and independent."""
    spread = sqrt(one.doubt**2 + other.doubt**2)
    return 0.5 * (1 + erf((one.expected - other.expected) / spread / sqrt(2))) if spread else 1.0


def time(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
