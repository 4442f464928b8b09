"""Strategies race inside the training data: all on a few photos, and those not clearly behind on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.progress import Reporter
from unfreeze.judge.metrics import out_of_fold_scores
from unfreeze.judge.paired import paired_difference
from unfreeze.learn.fitting import Rows, Work
from unfreeze.learn.tryout import Trial, Tried, try_out
from unfreeze.study.candidates import Candidate
from unfreeze.study.splits import inner_parts, smaller

# Parts of a block: one is judged, the others are learnt from.
PARTS = 3
# Of the smallest race: about a minute on two ordinary cores, in steps of EfficientNet-Lite0 at 224 px.
_MINUTE = 2000.0
_SHARE = 0.1  # of what a full fit takes
# Fewer photos tell nothing about a strategy; a class should have some of them.
_LEAST, _A_CLASS = 64, 6
# Decimals of macro F1 that count: what is no better by them and dearer is no better.
SHOWN = 3
# How far a difference on part of the photos may lie from that on all: the standard deviation that was seen.
_ELSEWHERE = 0.02


@dataclass(frozen=True)
class Block:
    """A split nested in the training data. folds: int64 (n,), 0 judged, 1 and above learnt from, -1 not touched."""

    folds: Rows

    @property
    def judged(self) -> Rows:
        """Rows that are predicted."""
        return np.flatnonzero(self.folds == 0)

    @property
    def photos(self) -> int:
        """How many are learnt from."""
        return int((self.folds > 0).sum())


@dataclass
class Standing:
    """How a candidate stands in a block.

    tries: what was tried, by the number of photos learnt from. difference: macro F1 less the probe's on the most photos
    that it was tried on, with its interval over groups. expected, doubt: the same with what was known before, on all
    photos: mean and standard deviation. out: why it was stopped, '' if it ran to the end.
    """

    candidate: Candidate
    tries: dict[int, Tried] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=lambda: {"value": 0.0, "low": 0.0, "high": 0.0})
    expected: float = 0.0
    doubt: float = 0.0
    out: str = ""

    @property
    def photos(self) -> int:
        """The most photos that it learnt from."""
        return max(self.tries)

    @property
    def last(self) -> NDArray[np.float64]:
        """float64 (n, C) from the most photos."""
        return self.tries[self.photos].proba


@dataclass(frozen=True)
class Raced:
    """A block and its standings, the best expected first."""

    block: Block
    standings: tuple[Standing, ...]

    @property
    def best(self) -> Standing:
        """The recommended one."""
        return self.standings[0]

    def of(self, name: str) -> Standing:
        """The standing of that candidate."""
        return next(s for s in self.standings if s.candidate.name == name)


def one_block(work: Work, rows: Rows, seed: int) -> Block:
    """A split of these rows: a third of their groups judged."""
    return Block(inner_parts(work.labels, work.units, rows, PARTS, seed))


def halves(work: Work) -> list[tuple[tuple[int, ...], Block]]:
    """The outer folds in two halves, each with a block made of the other half's photos only.

    What is chosen for a fold so depends on no photo of that fold.
    """
    folds = work.todo
    first, second = folds[: len(folds) // 2], folds[len(folds) // 2 :]
    out: list[tuple[tuple[int, ...], Block]] = []
    for chosen_for, learnt_from in ((first, second), (second, first)):
        rows = np.flatnonzero(np.isin(work.folds, learnt_from))
        out.append((chosen_for, one_block(work, rows, work.recipe.seed + len(out))))
    return out


def budget_of(work: Work, candidates: Sequence[Candidate], scale: float) -> float:
    """Steps of the whole network that a race may take: a tenth of a full fit, and a minute's at least.

    scale: the network's compute at the recipe's size, in EfficientNet-Lite0s at 224 px.
    """
    full = next((c for c in candidates if c.strategy == "full"), None)
    n = int((work.folds >= 0).sum())
    epochs = full.epochs if full else 3
    return max(_MINUTE / scale, _SHARE * epochs * n * (work.recipe.folds.count - 1))


def race(
    work: Work, blocks: Sequence[Block], candidates: Sequence[Candidate], budget: float, reporter: Reporter
) -> list[Raced]:
    """Each block's standings; no block knows of another.

    First all candidates learn from as many photos as the budget allows for all, then those that are not clearly behind
    (95 % interval of the paired difference, groups resampled) from all photos, the cheapest first, as long as the
    budget lasts. budget: in steps of the whole network, for all blocks together.
    """
    few = [_few(work, block, candidates, budget / len(blocks)) for block in blocks]
    standings = [[Standing(c) for c in candidates] for _ in blocks]
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
        Raced(block, tuple(sorted(some, key=lambda s: (-round(s.expected, SHOWN), s.candidate.step))))
        for block, some in zip(blocks, standings, strict=True)
    ]


def _few(work: Work, block: Block, candidates: Sequence[Candidate], budget: float) -> int:
    """Photos that every candidate learns from first: half of the budget, at least some of each class."""
    each = sum(c.tried_step * c.tried_epochs for c in candidates)
    classes = len(np.unique(work.labels[block.folds > 0]))
    few = max(_LEAST, _A_CLASS * classes, int(budget / 2 / each) if each else block.photos)
    return block.photos if few > 0.8 * block.photos else few


def _try(
    work: Work,
    blocks: Sequence[Block],
    photos: Sequence[int],
    standings: Sequence[Sequence[Standing]],
    wanted: Sequence[Sequence[bool]],
    reporter: Reporter,
) -> None:
    trials, places = [], []
    for block, count, some, flags in zip(blocks, photos, standings, wanted, strict=True):
        folds = smaller(work.labels, work.units, block.folds, count, work.recipe.seed)
        for standing, asked in zip(some, flags, strict=True):
            if asked:
                trials.append(Trial(standing.candidate.trial(work.recipe), folds))
                places.append((standing, count))
    for (standing, count), tried in zip(places, try_out(work, trials, reporter), strict=True):
        standing.tries[count] = tried


def _judge(work: Work, block: Block, standings: Sequence[Standing]) -> None:
    """Differences to the probe on equal photos, and what they lead to expect."""
    base = next(s for s in standings if s.candidate.strategy == "probe")
    for standing in standings:
        if standing is base:
            continue
        count = max(set(standing.tries) & set(base.tries))
        ours, theirs = standing.tries[count].proba, base.tries[count].proba
        rows = block.judged[np.isfinite(ours[block.judged, 0]) & np.isfinite(theirs[block.judged, 0])]
        found = paired_difference(work.labels[rows], theirs[rows], ours[rows], work.units[rows], seed=work.recipe.seed)
        standing.difference = found
        error = max((found["high"] - found["low"]) / 3.92, 1e-3)
        spread = np.hypot(error, _ELSEWHERE * (1 - count / block.photos))
        prior = standing.candidate.prior
        # Two normal distributions multiplied: what other sets have shown, and what this one shows.
        weight = prior.deviation**2 / (prior.deviation**2 + spread**2)
        standing.expected = float(prior.mean + weight * (found["value"] - prior.mean))
        standing.doubt = float(np.sqrt(weight) * spread)


def _to_go_on(block: Block, few: int, standings: Sequence[Standing], budget: float) -> list[bool]:
    """Which candidates learn from all photos of the block: those not clearly behind, the cheapest first."""
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
            standing.out = f"clearly behind the probe on {few:,} photos"
            continue
        cost = standing.candidate.tried_step * standing.candidate.tried_epochs * block.photos
        if spent + cost > budget:
            standing.out = f"judged on {few:,} photos; all {block.photos:,} would go beyond the budget"
            continue
        spent += cost
        go[i] = True
    return go


def pooled(work: Work, raced: Sequence[Raced], name: str) -> dict[str, Any]:
    """Scores of a candidate over all blocks' judged photos together, as `out_of_fold_scores` gives them."""
    proba = np.full((len(work.labels), work.classes), np.nan)
    for one in raced:
        proba[one.block.judged] = one.of(name).last[one.block.judged]
    rows = np.flatnonzero(np.isfinite(proba[:, 0]))
    return out_of_fold_scores(
        work.labels[rows], proba[rows], work.units[rows], work.photos.classes, seed=work.recipe.seed
    )
